"""Which library serves the WebSockets of a process."""

from __future__ import annotations


def library_of(pid: int) -> str:
    """The library of a server, if its process tells it, as :func:`leakhunt.core.tuning.library`
    names it: what its connections are known to need."""
    from leakhunt.collect.packages import read_program
    from leakhunt.core.readings import Reading
    from leakhunt.core.tuning import library

    try:
        program = read_program(pid)
    except OSError:  # another user's process, another system than Linux, or it is gone
        return ""
    return library(
        Reading(
            pid=pid,
            runtime=program.runtime,
            server=program.server,
            options=program.options,
            packages=program.packages,
            loaded=program.loaded,
        )
    )
