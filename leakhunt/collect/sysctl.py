"""Kernel settings of a network namespace.

What ``/proc/sys/net`` shows depends on who *reads*, not on whose ``/proc`` it is. For another
namespace a short-lived child enters it and reads there, see
:mod:`leakhunt.collect.namespaces`. Run as a program this file is that child; standard library
only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from leakhunt.collect.namespaces import enter
from leakhunt.errors import NotTestable

_TIMEOUT_S: Final = 10.0


def read_files(
    names: Sequence[str], proc: Path = Path("/proc"), namespaces: Sequence[str] = ()
) -> dict[str, str]:
    """The text of files below ``/proc`` (``sys/net/core/somaxconn``), those that can be read.

    :param namespaces: files of namespaces to enter before, in their order.

    Raises :class:`NotTestable` when they cannot be entered.
    """
    if not namespaces:
        return _read(names, proc)
    command = [sys.executable, "-S", "-P", "-m", "leakhunt.collect.sysctl"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    try:
        done = subprocess.run(
            [*command, json.dumps({"names": list(names), "namespaces": list(namespaces)})],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as exc:
        raise NotTestable(
            f"entering the namespaces {', '.join(namespaces)} took more than {_TIMEOUT_S:g} s"
        ) from exc
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise NotTestable(f"the settings of another network cannot be read: {lines[-1]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _read(names: Sequence[str], proc: Path) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = (proc / name).read_text()
        except OSError:
            continue  # not in this kernel, or not loaded
    return found


def _child(argument: str) -> None:
    asked = json.loads(argument)
    for path in asked["namespaces"]:
        enter(path)
    # "self" is the child, in its new network; with another mount of /proc it is still right.
    sys.stdout.write(json.dumps(_read(asked["names"], Path("/proc"))))


if __name__ == "__main__":
    _child(sys.argv[1])
