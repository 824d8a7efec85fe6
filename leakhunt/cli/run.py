"""``leakhunt run -- COMMAND``: an existing server with leakhunt mounted, its code untouched.

It checks everything, prepares the environment, and becomes the command (``exec``): output,
signals, exit code, pid, working directory and stdin are the command's own, as nothing stands in
between. The mounting is done by ``leakhunt/bootstrap/sitecustomize.py`` in the command's own
interpreter, and in those of its workers.

This command needs no package, so that it works in a container with the middleware alone.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from leakhunt.agent.environment import (
    CONFIG,
    settings_from,
    unknown_variables,
    variable_of,
    variables_from,
)
from leakhunt.cli.say import print_error, say
from leakhunt.errors import LeakhuntError, RunError

HELP: Final = """Usage: leakhunt run [OPTIONS] [--] COMMAND ...

  Start a server with leakhunt mounted in it, its code untouched.

  COMMAND is what starts it now: uvicorn, hypercorn, daphne, granian or gunicorn
  with its options, `python FILE`, `-m MODULE`, or a Python file. Its output,
  signals, exit code and working directory stay its own. Every setting is a
  variable, too: LEAKHUNT_EVICT_AFTER, LEAKHUNT_MODE, ... An option wins over a
  variable, and a variable over the file.

  Examples:

      leakhunt run --evict-after 10s -- uvicorn app:app --port 8000

      leakhunt run --observe -- python server.py

      LEAKHUNT_EVICT_AFTER=10 leakhunt run -- gunicorn -k uvicorn_worker.UvicornWorker app:app

Options:
  --observe               Record only: ping nobody, drop nobody.
  --evict-after DURATION  By when a dead client is gone (30s).
  --config FILE           A TOML file with settings: evict_after = "10s"
  -h, --help              Show this message and exit.
"""

VALUED: Final = {"--evict-after": variable_of("evict_after"), "--config": CONFIG}
SPOKEN: Final = {variable: option for option, variable in VALUED.items()}

BOOTSTRAP: Final = Path(__file__).parent.parent / "bootstrap"


def main(args: Sequence[str]) -> int:
    """Become the command; returns, with an exit code, only if that cannot be done."""
    try:
        options, command = split(args)
        if options is None:
            sys.stdout.write(HELP)
            return 0
        given = as_started()
        settings = settings_from({**given, **options}, spoken=SPOKEN)
        file, words = find(command)
        for warning in (*unknown_variables(given), *out_of_reach(words)):
            say(f"warning: {warning}")
        become(file, words, environment(given, variables_from(settings)))
    except LeakhuntError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def split(args: Sequence[str]) -> tuple[dict[str, str] | None, list[str]]:
    """Our options, as variables, and the command; ``None``: help is wanted.

    Raises:
        RunError: an option is not one of ours, or there is no command.
    """
    rest = list(args)
    options: dict[str, str] = {}
    while rest and rest[0].startswith("-") and rest[0] != "-m":
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            break
        if word in ("-h", "--help"):
            return None, []
        if word == "--observe":
            options[variable_of("mode")] = "observe"
        elif name in VALUED:
            if not equals and not rest:
                raise RunError(f"{name} needs a value", hint="see `leakhunt run --help`")
            options[VALUED[name]] = value if equals else rest.pop(0)
        else:
            raise RunError(
                f"{word} is not an option of `leakhunt run`",
                hint="options of the command stand behind it: leakhunt run -- COMMAND ...",
            )
    if not rest:
        raise RunError(
            "there is no command to run", hint="for instance: leakhunt run -- uvicorn app:app"
        )
    return options, rest


def find(command: Sequence[str]) -> tuple[str, list[str]]:
    """The file to execute and its words, the first of them included.

    Raises:
        RunError: there is no such command.
    """
    name = command[0]
    if name == "-m":
        return sys.executable, [sys.executable, *command]
    if name.endswith(".py") and os.path.isfile(name) and not is_program(name):
        return sys.executable, [sys.executable, *command]
    if file := shutil.which(name):
        return file, list(command)
    # The neighbour of our own command, in an environment that was not activated.
    neighbour = os.path.join(os.path.dirname(sys.executable), name)
    if os.sep not in name and os.access(neighbour, os.X_OK):
        return neighbour, [neighbour, *command[1:]]
    if os.path.isdir(name):
        raise RunError(f"{name} is a directory", hint="name the file or the command in it")
    if os.path.exists(name):
        raise RunError(f"{name} is not executable", hint=f"python {name}, or chmod +x {name}")
    raise RunError(
        f"there is no command {name}",
        hint="is it installed here, and its directory in PATH? a module is `-m MODULE`",
    )


def is_program(file: str) -> bool:
    """Whether a Python file names its interpreter and may be executed as it is named."""
    if os.sep not in file or not os.access(file, os.X_OK):
        return False
    with open(file, "rb") as opened:
        return opened.read(2) == b"#!"


def out_of_reach(words: Sequence[str]) -> Iterator[str]:
    """A warning for ``python -I``, ``-E`` and ``-S``, which leave our way in out."""
    if not os.path.basename(words[0]).startswith("python"):
        return
    for word in words[1:]:
        if not word.startswith("-") or word.startswith("--"):
            return
        for letter in word[1:]:
            if letter in "IES":
                yield f"python -{letter} does not look at PYTHONPATH: it runs without leakhunt"
                return
            if letter in "cmWX":  # what follows is its value
                break
        if word[-1] in "cm":
            return


def as_started() -> dict[str, str]:
    """The environment that this process was started with.

    Where there is no locale Python sets ``LC_CTYPE`` for itself and its children (PEP 538); the
    command shall decide that for itself.
    """
    environ = dict(os.environ)
    try:
        started_with = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return environ  # not Linux: nobody tells
    environ.pop("LC_CTYPE", None)
    for line in started_with:
        if line.startswith(b"LC_CTYPE="):
            environ["LC_CTYPE"] = os.fsdecode(line.partition(b"=")[2])
    return environ


def environment(environ: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """The command's environment: ``environ``, the settings, and the way in.

    The file's settings are among them, so no worker has to find and to read the file again.

    Raises:
        RunError: our directory cannot stand in ``PYTHONPATH``.
    """
    directory = str(BOOTSTRAP)
    if os.pathsep in directory or not BOOTSTRAP.is_dir():
        raise RunError(
            f"{directory} cannot be in PYTHONPATH",
            hint="install leakhunt-ws as files, in a directory without a colon in its name",
        )
    # An empty entry would be the working directory: none where there was none.
    path = [directory, environ["PYTHONPATH"]] if environ.get("PYTHONPATH") else [directory]
    prepared = {**environ, **settings, "PYTHONPATH": os.pathsep.join(path)}
    prepared.pop(CONFIG, None)
    return prepared


def become(file: str, words: list[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process by the command.

    Raises:
        RunError: the system cannot execute it.
    """
    # What Python ignores for itself would stay ignored in the command.
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execve(file, words, environ)
    except OSError as error:
        hint = {
            errno.ENOENT: "is the interpreter that its first line names still there?",
            errno.ENOEXEC: "the first line of a script names its interpreter: #!/usr/bin/env ...",
            errno.EACCES: "may you execute it, and the interpreter that its first line names?",
        }.get(error.errno or 0, "")
        raise RunError(f"{file} cannot be started: {error.strerror}", hint=hint) from None
