"""Which library serves the WebSockets of a process."""

from __future__ import annotations


def library_of(pid: int) -> str:
    """The library of a server, if its process tells it, as :func:`leakhunt.core.tuning.library`
    names it: what its connections are known to need.

    Of a process that only starts others (a shell) the first child that is Python or Node counts.
    :data:`leakhunt.core.tuning.OTHER`: none of them is; empty: it cannot be told.
    """
    from leakhunt.collect.packages import read_program
    from leakhunt.collect.process import ProcessHandle
    from leakhunt.core.readings import Reading
    from leakhunt.core.tuning import OTHER, library
    from leakhunt.errors import LeakhuntError

    try:
        for process in ProcessHandle(pid).tree():
            program = read_program(process.pid)
            if not program.runtime:
                continue
            return library(
                Reading(
                    pid=process.pid,
                    runtime=program.runtime,
                    server=program.server,
                    options=program.options,
                    packages=program.packages,
                    loaded=program.loaded,
                )
            )
    except (OSError, LeakhuntError):
        return ""  # another user's process, another system than Linux, or it is gone
    return OTHER
