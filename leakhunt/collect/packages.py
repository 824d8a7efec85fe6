"""What a server runs on: its language, its program, and the compiled parts that it has.

Nothing is attached to and nothing is run: the command line, ``/proc/PID/maps`` and the packages'
own files, as the process sees them (through ``/proc/PID/root``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

SERVERS: Final = ("uvicorn", "gunicorn", "hypercorn", "daphne", "granian", "sanic")
"""Programs that are known by the command line."""

PYTHON_PACKAGES: Final = (
    "websockets", "uvloop", "httptools", "aiohttp", "uvicorn", "hypercorn", "daphne", "granian",
    "tornado", "sanic", "wsproto", "python-engineio", "python-socketio",
)  # fmt: skip
NODE_PACKAGES: Final = ("ws", "socket.io", "engine.io", "bufferutil", "utf-8-validate", "eiows")

_COMPILED: Final = {
    "websockets": "websockets/speedups*.so",
    "uvloop": "uvloop/loop*.so",
    "httptools": "httptools/parser/*.so",
    "aiohttp": "aiohttp/_http_parser*.so",
    "tornado": "tornado/speedups*.so",
}
"""The compiled part of a Python package, in its site-packages."""

_MAPPED: Final = {
    "websockets": re.compile(r"/websockets/speedups[^/]*\.so$"),
    "uvloop": re.compile(r"/uvloop/loop[^/]*\.so$"),
    "httptools": re.compile(r"/httptools/parser/[^/]*\.so$"),
    "aiohttp": re.compile(r"/aiohttp/_http_parser[^/]*\.so$"),
    "tornado": re.compile(r"/tornado/speedups[^/]*\.so$"),
    "bufferutil": re.compile(r"/bufferutil/.*\.node$"),
    "utf-8-validate": re.compile(r"/utf-8-validate/.*\.node$"),
}
_PYTHON: Final = re.compile(r"^(python|pypy)[0-9.]*t?$")
_LIBPYTHON: Final = re.compile(r"/libpython3[^/]*\.so[^/]*$")
_NODE: Final = re.compile(r"^(node|nodejs)[0-9.]*$")


@dataclass(frozen=True, slots=True)
class Program:
    """A process's program, by what ``/proc`` tells."""

    runtime: str = ""
    server: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    compiled: frozenset[str] = frozenset()
    loaded: frozenset[str] = frozenset()


def read_program(pid: int, proc: Path = Path("/proc")) -> Program:
    """Look at a process; what cannot be read is empty. Raises ``PermissionError``."""
    here = proc / str(pid)
    words = (here / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    executable = (here / "exe").readlink()
    rows = (
        line.split(maxsplit=5) for line in (here / "maps").read_text(errors="replace").splitlines()
    )
    mapped = {row[5] for row in rows if len(row) == 6}
    loaded = frozenset(
        name for name, pattern in _MAPPED.items() if any(map(pattern.search, mapped))
    )
    server, options = parse_command(words)
    if _NODE.match(executable.name):
        installed = _node_packages(here, words)
        return Program("node", "node", {}, installed, frozenset(), loaded)
    embedded = any(map(_LIBPYTHON.search, mapped))
    if not _PYTHON.match(executable.name) and not embedded:
        return Program(loaded=loaded)
    packages: dict[str, str] = {}
    compiled = set()
    for directory in _site_packages(here, words, executable, mapped):
        packages = {**_distributions(directory), **packages}
        compiled |= {name for name, glob in _COMPILED.items() if any(directory.glob(glob))}
    return Program("python", server, options, packages, frozenset(compiled), loaded)


def parse_command(words: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The server of a command line and its long options: ``python -m uvicorn --ws wsproto``."""
    for index, word in enumerate(words[:4]):
        name = PurePosixPath(word).name
        if name in SERVERS and (index < 2 or words[index - 1] == "-m" or "/" in word):
            return name, _options(words[index + 1 :])
    return "", {}


def _options(words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        following = words[index + 1] if index + 1 < len(words) else ""
        found[name] = value if equals or following.startswith("-") else following
    return found


def _site_packages(
    here: Path, words: Sequence[str], executable: Path, mapped: set[str]
) -> Iterator[Path]:
    """Directories of packages that the process has, as we can open them."""
    root = here / "root"
    seen = set()
    for place in _places(here, words, executable, mapped):
        if place in seen:
            continue
        seen.add(place)
        directory = root / place.lstrip("/")
        if directory.is_dir():
            yield directory


def _places(here: Path, words: Sequence[str], executable: Path, mapped: set[str]) -> Iterator[str]:
    for path in sorted(mapped):
        if match := re.match(r"(.*/(?:site|dist)-packages)/", path):
            yield match[1]
    environment = _environment(here)
    prefixes = []
    if words and "/" in words[0]:
        # Not the executable: in a virtual environment that is a link to another place.
        interpreter = PurePosixPath(_directory(here)) / words[0]
        prefixes.append(str(interpreter.parent.parent))
    elif words:
        for entry in environment.get("PATH", "").split(":"):
            if entry.startswith("/") and (here / "root" / entry[1:] / words[0]).exists():
                prefixes.append(str(PurePosixPath(entry).parent))
                break
    if "VIRTUAL_ENV" in environment:
        prefixes.append(environment["VIRTUAL_ENV"])
    # Of a program that has Python in it, as uWSGI has, the name tells no version.
    version = executable.name.removeprefix("python") if _PYTHON.match(executable.name) else ""
    isolated = [
        prefix
        for prefix in prefixes
        if (here / "root" / prefix.lstrip("/") / "pyvenv.cfg").exists()
    ]
    if not isolated:
        prefixes += [str(executable.parent.parent), "/usr/local"]
    for prefix in isolated or prefixes:
        library = here / "root" / prefix.lstrip("/") / "lib"
        for directory in sorted(library.glob(f"python{version or '3*'}")):
            yield f"{prefix}/lib/{directory.name}/site-packages"
            yield f"{prefix}/lib/{directory.name}/dist-packages"
    if not isolated:
        yield "/usr/lib/python3/dist-packages"
    yield from (path for path in environment.get("PYTHONPATH", "").split(":") if path)


def _distributions(directory: Path) -> dict[str, str]:
    found = {}
    for entry in directory.glob("*.dist-info"):
        name, _, version = entry.name.removesuffix(".dist-info").partition("-")
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name in PYTHON_PACKAGES:
            found[name] = version
    return found


def _node_packages(here: Path, words: Sequence[str]) -> dict[str, str]:
    """Packages in the ``node_modules`` of the program's directory and those above it."""
    start = PurePosixPath(_directory(here))
    script = next((word for word in words[1:] if not word.startswith("-")), "")
    places = [start, start / PurePosixPath(script).parent] if script else [start]
    found: dict[str, str] = {}
    for place in places:
        for directory in (place, *place.parents):
            modules = here / "root" / str(directory).lstrip("/") / "node_modules"
            for name in NODE_PACKAGES:
                try:
                    content = json.loads((modules / name / "package.json").read_text())
                except (OSError, ValueError):
                    continue
                found.setdefault(name, str(content.get("version", "")))
    return found


def _environment(here: Path) -> dict[str, str]:
    try:
        entries = (here / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _directory(here: Path) -> str:
    try:
        return str((here / "cwd").readlink())
    except OSError:
        return "/"
