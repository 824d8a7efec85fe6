"""Which server is meant: the command that we start, or a process that runs already."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from leakhunt.collect.process import ProcessHandle, find_listener, listening_ports
from leakhunt.core.proof import ServerSeen
from leakhunt.errors import NotTestable, ProcessGone, ScenarioError
from leakhunt.prove.scenario import Scenario
from leakhunt.prove.server import StartedServer, is_wildcard, resolve, url_at
from leakhunt.prove.spec import parse_url
from leakhunt.prove.vanish.tiers import Target as TierTarget

_NO_UNIX = NotTestable(
    "a server on a Unix socket cannot be proven from outside: the kernel does not tell which of"
    " its ends belongs to which client",
    hint="let it listen on a TCP port of 127.0.0.1 for the proof",
)


@dataclass(slots=True)
class Target:
    """The server under test, as the run uses it."""

    url: str
    address: tuple[str, int]
    """Numeric address and port where clients connect."""

    pid: int
    process: ProcessHandle
    program: str
    command: tuple[str, ...] | None = None
    started: StartedServer | None = None
    """If it is ours."""

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        if self.started is not None:
            return self.started.alive
        return self.process.alive

    @property
    def last_output(self) -> tuple[str, ...]:
        """The last lines that a server of ours printed."""
        return self.started.last_output if self.started is not None else ()

    def seen(self) -> ServerSeen:
        """The server as the report names it."""
        alive = self.alive
        return ServerSeen(
            url=self.url,
            command=self.command,
            pid=self.pid,
            program=self.program,
            alive_at_end=alive,
            last_output=() if alive else self.last_output[-20:],
        )


async def open_target(stack: AsyncExitStack, scenario: Scenario) -> Target:
    """Start the command (it ends with ``stack``), or find the running server.

    Raises :class:`NotTestable` or :class:`ScenarioError` with the reason why it cannot be.
    """
    if scenario.url is not None and scenario.url.startswith("ws+unix:"):
        raise _NO_UNIX
    if scenario.command:
        server = await stack.enter_async_context(
            StartedServer(scenario.command, url=scenario.url, within_s=scenario.start_within_s)
        )
        address = await resolve(server.url)
        process = _handle(server.pid)
        return Target(
            server.url, address, server.pid, process, process.name(), server.command, server
        )
    url, pid = find_target(scenario)
    process = _handle(pid)
    return Target(url, await resolve(url), pid, process, process.name())


def find_target(scenario: Scenario) -> tuple[str, int]:
    """URL and process of a server that runs already."""
    if scenario.pid is not None:
        if scenario.url is not None:
            return scenario.url, scenario.pid
        places = sorted(listening_ports(scenario.pid))
        if not places:
            raise NotTestable(f"process {scenario.pid} listens on no TCP port")
        ports = sorted({port for _host, port in places})
        if len(ports) > 1:
            raise ScenarioError(
                f"process {scenario.pid} listens on several ports: {', '.join(map(str, ports))}",
                hint="name the one that is meant with --url ws://127.0.0.1:PORT/",
            )
        return url_at(None, *places[0]), scenario.pid
    assert scenario.url is not None
    endpoint = parse_url(scenario.url)
    return scenario.url, find_listener(endpoint.host, endpoint.port)


def tier_target(scenario: Scenario) -> TierTarget:
    """What the choice of a tier has to know about the server."""
    if scenario.command or (scenario.url is not None and scenario.url.startswith("ws+unix:")):
        return TierTarget(starts_command=bool(scenario.command), url=scenario.url)
    url, pid = find_target(scenario)
    wanted = parse_url(url).port
    hosts = [host for host, port in listening_ports(pid) if port == wanted]
    return TierTarget(
        starts_command=False, url=url, listens_everywhere=any(is_wildcard(h) for h in hosts)
    )


def _handle(pid: int) -> ProcessHandle:
    try:
        return ProcessHandle(pid)
    except ProcessGone as error:
        raise NotTestable(str(error)) from error
