"""The command ``leakhunt``. It starts with the standard library alone.

The middleware is installed without any dependency; whoever types the command there is told
in one line what to install.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from leakhunt._version import __version__

EXTRAS = {"igraph": "heap", "numpy": "heap", "objgraph": "heap", "redis": "redis"}
"""Packages that another extra than ``cli`` installs."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Never shows a traceback for our errors."""
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments[:1] in (["--version"], ["-V"]):
        sys.stdout.write(f"leakhunt {__version__}\n")
        return 0
    if arguments[:1] == ["run"]:
        # It needs no package: a server's container has the middleware alone.
        from leakhunt.cli.run import main as run_command

        return run_command(arguments[1:])
    try:
        from leakhunt.cli.main import run

        return run(arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "leakhunt"):
            raise  # a bug of ours: nothing that could be installed
        extra = EXTRAS.get(missing, "cli")
        sys.stderr.write(
            f"error: this command needs the package {missing!r}: "
            f"pip install 'leakhunt-ws[{extra}]'\n"
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
