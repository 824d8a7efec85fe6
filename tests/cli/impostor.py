"""Listens where an agent would, and answers every question with ``reply``."""

from __future__ import annotations

import os
import socket
import sys
import threading

directory = os.environ["LEAKHUNT_DIR"]
os.makedirs(directory, mode=0o700, exist_ok=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(f"{directory}/{os.getpid()}.sock")
listener.listen()
reply = b""


def answer() -> None:
    while True:
        sock, _ = listener.accept()
        with sock:
            sock.recv(65536)
            if reply:
                sock.sendall(reply + b"\n")


threading.Thread(target=answer, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
