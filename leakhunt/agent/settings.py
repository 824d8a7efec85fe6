"""What an :class:`~leakhunt.Agent` can be told, checked when it is constructed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Literal

from leakhunt.core.backpressure import Bounds, Policy
from leakhunt.core.liveness import Timing, derive_timing
from leakhunt.errors import SettingsError

Mode = Literal["enforce", "observe"]

_SHORTEST: Final = 1.0
_LONGEST: Final = 86_400.0
_MOST_BYTES: Final = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of an agent. Durations are seconds, sizes are bytes."""

    evict_after: float = 30.0
    """The promise: a dead client's descriptor is gone this long after its last sign of life."""

    mode: Mode = "enforce"
    """``observe`` records, but sends no ping and drops nobody."""

    ping_interval: float | None = None
    """Silence after which a ping is sent; by default half of ``evict_after``."""

    ping_timeout: float | None = None
    """How long a pong is waited for; by default what ``ping_interval`` leaves."""

    slow_after: float | None = None
    """Evict a client that reads more slowly than it is fed for this long; ``None``: never."""

    policy: str = "queue"
    """What guarded sends do without room, where the call does not say: see ``Policy``."""

    high_water: int = 64 * 1024
    """Bytes buffered for one client above which nothing more is given to the transport."""

    queue_bytes: int = 1024 * 1024
    """Most bytes that wait for one client under ``queue``."""

    queue_messages: int = 256
    """Most messages that wait for one client under ``queue``."""

    budget_bytes: int | None = None
    """Most bytes that are buffered or wait over all connections; ``None``: no such bound."""

    block_timeout: float = 10.0
    """How long a send under ``block`` waits for room."""

    overflow_code: int = 1013
    """Close code recorded when a queue overflows (1013: try again later, RFC 6455 registry)."""

    breaker_share: float = 0.5
    """Share of the connections that may be evicted within ``evict_after`` on our own word."""

    callback_timeout: float | None = None
    """How long an eviction waits for asynchronous ``on_evict`` callbacks, all together; by
    default 0.25 s, and at most a quarter of ``evict_after``."""

    endpoint: bool = True
    """Whether ``leakhunt conns`` and ``leakhunt status`` can ask this process."""

    watch_closed: bool = True
    """Whether the framework's objects of closed connections are counted while they still exist,
    for one weak reference each."""

    collect_closed: bool = False
    """Whether the agent may run a full collection on the event loop, at most once a minute, when
    such objects are there for 5 s: it tells those that somebody holds from garbage."""

    fork: bool = True
    """Whether ``leakhunt snapshot`` may fork this process to read its heap."""

    def __post_init__(self) -> None:
        _in_range("evict_after", self.evict_after, _SHORTEST, _LONGEST, "seconds")
        if self.mode not in ("enforce", "observe"):
            raise SettingsError("mode", self.mode, "one of 'enforce', 'observe'")
        if self.policy not in tuple(Policy):
            raise SettingsError("policy", self.policy, f"one of {_names(Policy)}")
        for name in ("ping_interval", "ping_timeout"):
            value = getattr(self, name)
            if value is not None:
                _in_range(name, value, 0.1, self.evict_after - 0.1, "seconds")
        if (
            self.ping_interval is not None
            and self.ping_timeout is not None
            and self.ping_interval + self.ping_timeout > self.evict_after + 1e-9
        ):
            raise SettingsError(
                "ping_interval + ping_timeout",
                self.ping_interval + self.ping_timeout,
                f"at most evict_after={self.evict_after:g}",
            )
        if self.slow_after is not None:
            _in_range("slow_after", self.slow_after, _SHORTEST, _LONGEST, "seconds")
        _in_range("block_timeout", self.block_timeout, 0.0, _LONGEST, "seconds")
        if self.callback_timeout is not None:
            quarter = self.evict_after / 4
            _in_range("callback_timeout", self.callback_timeout, 0.0, quarter, "seconds")
        _whole("high_water", self.high_water, 1, _MOST_BYTES)
        _whole("queue_bytes", self.queue_bytes, 0, _MOST_BYTES)
        _whole("queue_messages", self.queue_messages, 0, _MOST_BYTES)
        if self.budget_bytes is not None:
            _whole("budget_bytes", self.budget_bytes, 1, _MOST_BYTES)
        _whole("overflow_code", self.overflow_code, 1000, 4999)
        _in_range("breaker_share", self.breaker_share, 0.0, 1.0, "")
        for name in ("endpoint", "watch_closed", "collect_closed", "fork"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(name, getattr(self, name), "True or False")
        if self.collect_closed and not self.watch_closed:
            raise SettingsError("collect_closed", True, "possible with watch_closed=False")

    @property
    def timing(self) -> Timing:
        """The heartbeat's durations, with what was not set derived."""
        return derive_timing(
            float(self.evict_after),
            ping_interval=self.ping_interval,
            ping_timeout=self.ping_timeout,
            slow_after=self.slow_after,
        )

    @property
    def callback_limit(self) -> float:
        """The time for asynchronous callbacks, derived when it was not set; seconds."""
        if self.callback_timeout is None:
            return min(0.25, self.evict_after / 4)
        return self.callback_timeout

    @property
    def bounds(self) -> Bounds:
        """The guard's bounds for one client."""
        return Bounds(self.high_water, self.queue_bytes, self.queue_messages)

    @property
    def tick(self) -> float:
        """Resolution of the timing wheel in seconds: fine enough for the promise, and rare."""
        return min(max(self.evict_after / 100, 0.05), 0.25)

    def describe(self) -> dict[str, object]:
        """The settings with units in their names, as ``leakhunt status`` shows them."""
        timing = self.timing
        shown: dict[str, object] = {
            "ping_interval_s": timing.ping_interval,
            "ping_timeout_s": timing.ping_timeout,
            "callback_timeout_s": self.callback_limit,
        }
        for field in fields(self):
            if field.name in ("ping_interval", "ping_timeout", "callback_timeout", "mode"):
                continue
            shown[field.name + _UNITS.get(field.name, "")] = getattr(self, field.name)
        return shown


_UNITS: Final = {
    "evict_after": "_s",
    "slow_after": "_s",
    "block_timeout": "_s",
    "high_water": "_bytes",
}


def _names(values: type[Policy]) -> str:
    return ", ".join(repr(str(value)) for value in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_range(name: str, value: object, low: float, high: float, unit: str) -> None:
    if not _is_number(value) or not low <= value <= high:  # type: ignore[operator]
        raise SettingsError(name, value, f"a number from {low:g} to {high:g} {unit}".rstrip())


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(name, value, f"a whole number from {low} to {high}")
