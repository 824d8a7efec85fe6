"""A parent without an agent and its workers, each with one: ``python parent.py COUNT``."""

from __future__ import annotations

import os
import subprocess
import sys

served = os.path.join(os.path.dirname(__file__), "served.py")
workers = [
    subprocess.Popen(
        [sys.executable, served, "chat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for _ in range(int(sys.argv[1]))
]
for worker in workers:
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
print("ready", flush=True)
sys.stdin.read()  # the workers end with us: their stdin closes
