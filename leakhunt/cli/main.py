"""The frame of the command line: commands by name, and one place for errors.

A command's module is imported when that command runs, so that ``leakhunt --help`` and
``leakhunt conns`` do not wait for what only ``leakhunt prove`` needs.

Exit codes of all commands: 0 fine, 1 a leak was found or disproven, 2 it could not be done,
130 interrupted, 141 the reader of the output has gone.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from leakhunt._version import __version__
from leakhunt.errors import LeakhuntError


class Command(NamedTuple):
    """Where a command is, and its line in ``leakhunt --help``."""

    module: str
    function: str
    summary: str


COMMANDS: Final = {
    # Named here for the help; `leakhunt.__main__` runs it, as it needs no package.
    "run": Command("leakhunt.cli.run", "main", "Start a server with leakhunt mounted in it."),
    "conns": Command("leakhunt.cli.conns", "conns", "List the connections of a running server."),
    "status": Command("leakhunt.cli.status", "status", "Show what an agent did and how it is set."),
    "watch": Command(
        "leakhunt.cli.watch", "watch", "Watch a running server from outside, or record it."
    ),
    "diagnose": Command(
        "leakhunt.cli.diagnose", "diagnosing", "Look at a server for a while, say what is wrong."
    ),
    "snapshot": Command(
        "leakhunt.cli.snapshot", "snapshot", "Write the heap of a running server to a file."
    ),
    "diff": Command("leakhunt.cli.diff", "diff", "Show what grows from one heap file to the next."),
    "why": Command(
        "leakhunt.cli.why", "why", "Show what holds the connections that should be gone."
    ),
    "doctor": Command(
        "leakhunt.cli.doctor", "doctor", "Show what limits a server, and how to change it."
    ),
    "prove": Command(
        "leakhunt.cli.prove",
        "prove",
        "Let clients die and check that the server drops them.",
    ),
}

HELP: Final = """Find the WebSocket connections that your server believes in and nobody is behind.

Examples:

    leakhunt diagnose 4711 --for 30s

    leakhunt watch --port 8765

    leakhunt conns 4711 --silent-for 20s

    leakhunt run --evict-after 10s -- uvicorn app:app

    leakhunt prove --death stall --within 30s -- python server.py
"""


class LazyGroup(TyperGroup):
    """A group that imports a command when it runs, and only names it in its help."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of :data:`COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command itself, or ``None`` for a name that is not ours."""
        if cmd_name not in COMMANDS:
            return None
        if ctx.resilient_parsing or ctx.meta.get("leakhunt.listing"):
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name].summary)
        return load(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Render the help from the names alone."""
        ctx.meta["leakhunt.listing"] = True
        super().format_help(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; typer looks for similar names in ``commands``."""
        self.commands = dict.fromkeys(COMMANDS, None)  # type: ignore[assignment]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="leakhunt",
    cls=LazyGroup,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"leakhunt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", "-V", callback=_print_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass  # options of `leakhunt` itself


def load(name: str) -> Any:
    """Import the command ``name`` and make it ready to run."""
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    function: Callable[..., Any] = getattr(module, command.function)
    single = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    settings = getattr(function, "context_settings", {})
    single.command(
        name,
        context_settings={"help_option_names": ["-h", "--help"], **settings},
        short_help=command.summary,
    )(function)
    return typer.main.get_command(single)


def run(args: Sequence[str]) -> int:
    """Run ``leakhunt ARGS`` and return its exit code; prints every error of ours."""
    try:
        result = typer.main.get_command(app).main(
            args=list(args), prog_name="leakhunt", standalone_mode=True
        )
    except LeakhuntError as error:
        from leakhunt.cli.say import print_error

        print_error(error)
        return 2
    except KeyboardInterrupt:
        from leakhunt.cli.say import say

        say("interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return _quiet_end_of_output()
    except SystemExit as exit_:
        if isinstance(exit_.__context__, BrokenPipeError):  # click makes it a 1, our "leak"
            return _quiet_end_of_output()
        code = exit_.code
        return code if isinstance(code, int) else (0 if code is None else 2)
    return result if isinstance(result, int) else 0


def _quiet_end_of_output() -> int:
    """The reader of our output has gone (``| head``): end without a word, as SIGPIPE would."""
    # Python flushes stdout once more at exit; there must be something that takes it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
