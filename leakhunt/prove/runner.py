"""One run: connect, let die, watch from outside, judge.

::

    start or find the server
      -> a reading without clients
      -> controls connect, victims connect, everything settles
      -> the victims die (several waves, with churn)
      -> watch until all are gone, or until the bound has passed for the last one
      -> controls, agent, memory; verdict

This is the choreography. What goes on meanwhile, the samples of the kernel's table above
all, is :mod:`leakhunt.prove.watch`; what comes of it in the end :mod:`leakhunt.prove.result`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

from leakhunt.core.proof import AgentResult, Proof
from leakhunt.errors import NotTestable, ProcessGone
from leakhunt.prove.agreement import NO_AGENT, ask_agreement
from leakhunt.prove.casualties import Casualties
from leakhunt.prove.deaths import DEATHS, Party
from leakhunt.prove.fleet import ClientSpec, Fleet, Group
from leakhunt.prove.observer import Observer
from leakhunt.prove.progress import OnProgress, ProgressTeller, nobody
from leakhunt.prove.result import Finished, proof_of
from leakhunt.prove.scenario import Churn, Scenario, split_deaths
from leakhunt.prove.target import Target, open_target
from leakhunt.prove.vanish.destroy import end_sockets
from leakhunt.prove.vanish.means import Means, MeansMaker
from leakhunt.prove.vanish.tiers import TierChoice
from leakhunt.prove.watch import Watch
from leakhunt.prove.worker_process import WorkerGone

GOODBYE_S: Final = 1.0
"""How long the clients that survived may take to leave."""

_PRESTARTED_WORKERS: Final = 30
_CHURN_CONNECT_TIMEOUT_S: Final = 15.0


@dataclass(slots=True)
class Victims:
    """A party before its death."""

    death: str
    group: Group
    means: Means
    seen_as: dict[int, tuple[str, int]]


async def prove(
    scenario: Scenario, choice: TierChoice | None, *, on_progress: OnProgress = nobody
) -> Proof:
    """Run ``scenario`` once. ``choice`` is the tier by which clients vanish, if any do.

    Leaves nothing behind, on whatever way it ends. Raises :class:`NotTestable` when nothing
    could be found out, with the reason.
    """
    async with AsyncExitStack() as stack:
        run = _Run(scenario, choice, on_progress)
        await run.begin(stack)
        return await run.finish()


class _Run:
    def __init__(
        self, scenario: Scenario, choice: TierChoice | None, on_progress: OnProgress
    ) -> None:
        self.scenario = scenario
        self.choice = choice
        self.started_at = time.monotonic()
        self.casualties = Casualties()
        self.progress = ProgressTeller(
            on_progress,
            self.casualties,
            clients=scenario.total_clients + scenario.controls,
            started_at=self.started_at,
        )
        self.controls: Group | None = None
        self.slow: list[Group] = []
        self.waves_ended_at = 0.0
        self.server_ended = False
        self.target: Target
        self.observer: Observer
        self.watch: Watch
        self.fleet: Fleet
        self.maker: MeansMaker
        self.spec: ClientSpec

    async def begin(self, stack: AsyncExitStack) -> None:
        """Everything up to the end of watching."""
        self.progress.tell()
        scenario = self.scenario
        self.target = target = await open_target(stack, scenario)
        self.observer = observer = stack.enter_context(Observer(target))
        await observer.read_before(alone=target.started is not None)
        self.progress.observer = observer
        self.watch = Watch(target, observer, self.casualties, self.progress)
        self.fleet = await stack.enter_async_context(Fleet(on_close=self.casualties.note_closed))
        self.maker = MeansMaker(
            self.choice.tier if self.choice else None,
            target.address,
            stack,
            own_namespace=self.choice is not None and self.choice.enter is not None,
        )
        if not target.started and self.choice is not None and self.choice.tier == "netns":
            stack.callback(self._free_the_server)
        self.spec = client_spec(scenario, target)
        try:
            await self._connect_and_die()
            await self.watch.until_decided(scenario.within_s)
        except ProcessGone:
            self._server_gone()

    async def finish(self) -> Proof:
        """Controls, agent, memory, verdict."""
        self.progress.tell("checking")
        stats = await self.controls.stats() if self.controls is not None else None
        slow_alive = sum([(await group.stats()).connected for group in self.slow])
        agent = NO_AGENT
        if not self.server_ended:
            try:
                agent = await self._agreement()
                self.watch.sample()
            except ProcessGone:
                self._server_gone()
        self.casualties.raise_for_our_own_failures()
        await self._say_goodbye()
        result = proof_of(
            Finished(
                scenario=self.scenario,
                choice=self.choice,
                server=replace(self.target.seen(), alive_at_end=not self.server_ended),
                address=self.target.address,
                casualties=self.casualties,
                control_ids=_ids(self.controls),
                slow_ids=_ids(*self.slow),
                slow_alive=slow_alive,
                stats=stats,
                agent=agent,
                readings=self.observer.readings,
                relayed=self.maker.relayed,
                notes=(*self.maker.notes, *self.observer.notes),
                started_at=self.started_at,
                waves_ended_at=self.waves_ended_at,
                ended_at=time.monotonic(),
            )
        )
        self.progress.tell("ending")
        return result

    # -- the course of the run

    async def _connect_and_die(self) -> None:
        scenario = self.scenario
        self.progress.tell("connecting")
        if scenario.controls:
            self.controls = await self.watch.during(
                self.fleet.group(
                    "controls",
                    self.spec,
                    scenario.controls,
                    on_progress=self.progress.connected_after(0),
                )
            )
            self.progress.connected = scenario.controls
        if scenario.churn is not None:
            await self.watch.during(self._churn())
            return
        victims = await self.watch.during(self._connect(scenario.clients, "all"))
        self.progress.tell("settling")
        await self.watch.during(asyncio.sleep(scenario.settle_s))
        self.casualties.raise_if_unwanted(_ids(*(party.group for party in victims)))
        self.progress.tell("dying")
        await self.watch.during(self._strike(victims))
        self.waves_ended_at = time.monotonic()

    async def _churn(self) -> None:
        churn = self.scenario.churn
        assert churn is not None
        # An interpreter that starts costs a fraction of a second of a processor: that must not
        # fall into the time in which latencies are measured.
        wanted = churn.waves * len(split_deaths(churn.wave, self.scenario.deaths))
        await self.fleet.prestart(min(wanted, _PRESTARTED_WORKERS))
        await asyncio.sleep(self.scenario.settle_s)
        begun = time.monotonic()
        last_death = begun + churn.waves * churn.every_s + churn.stay_s
        self.progress.deadline = last_death + self.scenario.within_s
        self.progress.tell("dying")
        await all_of(
            self._wave(begun + number * churn.every_s, number, churn)
            for number in range(churn.waves)
        )
        self.waves_ended_at = time.monotonic()

    async def _wave(self, begins_at: float, number: int, churn: Churn) -> None:
        await asyncio.sleep(max(0.0, begins_at - time.monotonic()))
        victims = await self._connect(
            churn.wave, f"wave-{number + 1}", timeout_s=_CHURN_CONNECT_TIMEOUT_S
        )
        self.progress.connected += churn.wave
        if number == 0 and self.controls is not None:
            await self.controls.reset_latency()
        await asyncio.sleep(churn.stay_s)
        self.casualties.raise_if_unwanted(_ids(*(party.group for party in victims)))
        await self._strike(victims)

    async def _connect(
        self, count: int, name: str, *, timeout_s: float | None = None
    ) -> list[Victims]:
        victims = []
        done = self.progress.connected
        for death_name, share in split_deaths(count, self.scenario.deaths):
            death = DEATHS[death_name]
            means = await self.maker.make(vanishes=death_name == "vanish")
            group = await self.fleet.group(
                f"{death_name}-{name}",
                means.adapt(death.adapt(self.spec, self.scenario.slow_bytes_s)),
                share,
                namespaces=means.namespaces,
                timeout_s=timeout_s,
                on_progress=self.progress.connected_after(done) if timeout_s is None else None,
            )
            done += share
            if death.expected == "kept":
                self.slow.append(group)
            seen_as = {}
            for client in group.clients:
                address = await means.seen_as(client)
                if address is None:
                    raise NotTestable(f"the relay lost track of client {client.id}")
                seen_as[client.id] = address
            victims.append(Victims(death_name, group, means, seen_as))
        return victims

    async def _strike(self, victims: list[Victims]) -> None:
        if self.scenario.churn is None and self.controls is not None:
            await self.controls.reset_latency()
        self.watch.sample()  # what is there right before
        await all_of(self._strike_one(party) for party in victims)

    async def _strike_one(self, victims: Victims) -> None:
        group, means = victims.group, victims.means
        clients = group.clients  # a group that is gone has none

        async def cut() -> None:
            await means.cut(clients)

        async def look() -> None:
            await dead.wait()
            await self.watch.right_after_death()

        dead = asyncio.Event()

        def died_and_look(at: float) -> None:
            self.watch.died(victims.death, clients, victims.seen_as, at)
            dead.set()

        looking = asyncio.create_task(look())
        try:
            await DEATHS[victims.death].strike(Party(group, died_and_look, cut, self.maker.relayed))
            await looking
        except (TimeoutError, WorkerGone) as error:
            raise NotTestable(
                f"{victims.death}: the clients could not be made to die: {error or 'timeout'}"
            ) from error
        finally:
            looking.cancel()

    # -- the end

    def _server_gone(self) -> None:
        self.server_ended = True
        if not self.casualties.died_at:
            raise NotTestable(
                "the server ended before any client died",
                hint="\n".join(("its last output:", *self.target.last_output[-12:])),
            )

    async def _say_goodbye(self) -> None:
        """The living leave properly: a server that goes on running has no errors to log."""
        for group in (self.controls, *self.slow):
            if group is not None and not self.server_ended:
                await group.close(timeout_s=GOODBYE_S)

    def _free_the_server(self) -> None:
        """A server that we did not start must not keep what our clients left in it."""
        end_sockets(
            [
                trace.last
                for trace in self.casualties.traces.get("vanish", [])
                if trace.is_open and trace.last is not None
            ]
        )

    async def _agreement(self) -> AgentResult:
        mortal = self.casualties.mortal_traces()
        dead = {f"{host}:{port}" for host, port in (trace.seen_as for trace in mortal)}
        return await ask_agreement(
            self.target.pid, self.target.address[1], self.observer.count_descriptors, dead
        )


def client_spec(scenario: Scenario, target: Target) -> ClientSpec:
    """What every client of the run has in common."""
    spec = ClientSpec(
        url=target.url,
        headers=scenario.headers,
        tls_ca=scenario.tls_ca,
        tls_insecure=scenario.tls_insecure,
        join=scenario.join,
        answers=scenario.answers,
        load="chat" if scenario.load == "chat" else "push" if scenario.load == "push" else "idle",
        chat_interval_s=scenario.chat_interval_s,
        sent_at_field=scenario.sent_at,
        connect_host=target.address[0],
        connect_port=target.address[1],
    )
    if scenario.chat_message is not None:
        spec = replace(spec, chat_message=scenario.chat_message)
    return spec


def _ids(*groups: Group | None) -> set[int]:
    return {client.id for group in groups if group is not None for client in group.clients}


async def all_of(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of them at once; when one fails, the others are cancelled first."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
