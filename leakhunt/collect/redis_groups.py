"""The groups that channels_redis keeps in a Redis, read without changing anything there.

::

    with RedisGroups("redis://127.0.0.1:6379/0") as groups:
        sample = groups.added_to(sampler.sample())

=======================  =======  ==========================================================
key                      type     what is in it
=======================  =======  ==========================================================
``asgi:group:NAME``      zset     channel names, scored by when they were added; it lives for
                                  ``group_expiry`` (a day) after the last one was
``asgispecific.NODE!``   zset     messages for all channels of one process, scored by when
                                  they were sent; it lives for ``expiry`` (a minute) after
                                  the last one was
=======================  =======  ==========================================================

A channel is named ``specific.NODE!RANDOM``; NODE is the client prefix of its process's layer, 32
random hexadecimal digits. A name without one belongs to whoever listens. Names of groups and
channels stay in here: a sample has counts, and those random numbers.

Besides what opens a connection only ``TIME``, ``SCAN``, ``ZRANGE``, ``ZCARD`` and ``PTTL`` are
sent. A look takes a bounded time, reads a bounded number of members, and is followed by a rest that
is four times as long.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Final, Self
from urllib.parse import urlsplit

from leakhunt.core.samples import Sample, StoreNode, StoreSample
from leakhunt.errors import StoreUnreachable

EVERY_S: Final = 1.0
"""Redis is looked at at most this often."""

LOOK_S: Final = 1.0
"""How long a look may read members, and then how long it may search for groups."""

SCAN_EVERY_S: Final = 10.0
"""So often new groups are searched for."""

MOST_GROUPS: Final = 50_000
MOST_MEMBERS: Final = 500_000
MOST_NODES: Final = 100

_REST: Final = 4
_TIMEOUT_S: Final = 2.0
_RETRY_S: Final = 5.0
_PAGE: Final = 1000
_AT_ONCE: Final = 200
_SCHEMES: Final = ("redis", "rediss", "unix")
_OWNED: Final = re.compile(rb"(.*\.([0-9a-f]{32}))!", re.DOTALL)


class RedisGroups:
    """Looks at the groups of one Redis again and again.

    :param url: ``redis://``, ``rediss://`` or ``unix://``, as the ``redis`` package reads it.
    :param prefix: that of the layer (``CONFIG: {"prefix": ...}``).

    Raises :class:`StoreUnreachable` when it cannot be read, :class:`ModuleNotFoundError` when
    the package ``redis`` is not installed.
    """

    def __init__(self, url: str, *, prefix: str = "asgi") -> None:
        self.where: Final = without_secrets(url)
        """The URL as it may be shown: without user, password and options."""

        self._prefix = prefix.encode()
        self._redis = self._open(url)
        self._due_at = float("-inf")
        self._scanned_at = float("-inf")
        self._cursor = 0
        self._found_all = False
        self._keys: dict[bytes, None] = {}
        self._deadline = float("inf")
        self._first: StoreSample | None = None
        try:
            self._first = self.look()  # whoever may not read it hears so at once
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def added_to(self, sample: Sample) -> Sample:
        """The sample with what is in Redis now; without it when it is not time yet, and with the
        reason in ``missing`` when Redis cannot be read any more."""
        try:
            store = self.look()
        except StoreUnreachable as error:
            self._due_at = time.monotonic() + _RETRY_S
            return replace(sample, missing=(*sample.missing, f"groups: {error}"))
        missing = sample.missing
        if store is not None and store.cut:
            text = (
                f"groups: {self.where} has more than could be read in time: these are least counts"
            )
            missing = (*missing, text)
        return replace(sample, store=store, missing=missing)

    def look(self) -> StoreSample | None:
        """Read the groups and the queues of their members' processes; ``None``: the last look
        was just now. Raises :class:`StoreUnreachable`."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        begin = time.monotonic()
        if begin < self._due_at:
            return None
        with self._errors():
            self._find_groups(begin)
            self._deadline = time.monotonic() + LOOK_S
            counts = _Counts()
            cut = not self._count(counts) or not self._found_all
            nodes = counts.nodes()
            cut |= len(nodes) > MOST_NODES
            at, rows = self._queues(nodes[:MOST_NODES])
        self._due_at = begin + max(EVERY_S * 0.9, (1 + _REST) * (time.monotonic() - begin))
        return StoreSample(
            at=at,
            groups=counts.groups,
            members=counts.members,
            largest=counts.largest,
            unowned=counts.unowned,
            nodes=tuple(rows),
            cut=cut,
        )

    def _find_groups(self, now: float) -> None:
        if self._cursor == 0 and now - self._scanned_at < SCAN_EVERY_S:
            return
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", self._prefix) + b":group:*"
        while True:
            self._cursor, keys = self._redis.scan(self._cursor, match=pattern, count=_PAGE)
            self._keys.update(dict.fromkeys(keys))
            if self._cursor == 0 or len(self._keys) > MOST_GROUPS:
                self._found_all = len(self._keys) <= MOST_GROUPS
                self._cursor = 0
                self._scanned_at = now
                return
            if time.monotonic() - now > LOOK_S:
                return  # it goes on with the next look

    def _count(self, counts: _Counts) -> bool:
        """Count the members of all groups; ``False``: there are too many."""
        keys = iter(list(self._keys)[:MOST_GROUPS])
        while some := list(islice(keys, _AT_ONCE)):
            with self._redis.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.zrange(key, 0, _PAGE - 1, withscores=True)
                pages = pipe.execute(raise_on_error=False)
            for key, page in zip(some, pages, strict=True):
                if isinstance(page, Exception):
                    if not str(page).startswith("WRONGTYPE"):
                        raise page
                    page = ()  # somebody else's key of that name
                if not page:
                    del self._keys[key]  # everybody has left
                elif not self._count_group(counts, key, page):
                    return False
            if self._is_over(counts):
                return False
        return True

    def _count_group(self, counts: _Counts, key: bytes, page: Any) -> bool:
        size = 0
        while page:
            counts.add(page)
            size += len(page)
            counts.largest = max(counts.largest, size)
            if len(page) < _PAGE:
                break
            if self._is_over(counts):
                return False
            page = self._redis.zrange(key, size, size + _PAGE - 1, withscores=True)
        counts.groups += 1
        return True

    def _is_over(self, counts: _Counts) -> bool:
        return counts.members >= MOST_MEMBERS or time.monotonic() > self._deadline

    def _queues(self, nodes: list[_Node]) -> tuple[float, list[StoreNode]]:
        """Redis's time, and the rows, each with its queue."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for node in nodes:
                key = self._prefix + node.channels + b"!"
                pipe.zcard(key)
                pipe.zrange(key, 0, 0, withscores=True)
                pipe.pttl(key)
            (seconds, micros), *answers = pipe.execute()
        at = seconds + micros / 1e6
        rows = []
        for place, node in enumerate(nodes):
            waiting, head, ttl_ms = answers[3 * place : 3 * place + 3]
            rows.append(
                StoreNode(
                    node=node.name,
                    members=node.members,
                    oldest_s=max(0.0, at - node.oldest),
                    newest_s=max(0.0, at - node.newest),
                    waiting=waiting,
                    head_at=float(head[0][1]) if head else None,
                    ttl_s=ttl_ms / 1000 if ttl_ms >= 0 else None,
                )
            )
        return at, rows

    def _open(self, url: str) -> Any:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        try:
            _check(url)
            client = redis.Redis.from_url(
                url,
                decode_responses=False,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
            )
            client.connection_pool.make_connection()  # which looks at the options
        except (ValueError, TypeError, redis.RedisError) as error:
            raise StoreUnreachable(
                self.where,
                str(error),
                hint="for example --redis redis://127.0.0.1:6379/0, or LEAKHUNT_REDIS_URL",
            ) from None
        return client

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        import redis

        try:
            yield
        except redis.AuthenticationError as error:
            raise StoreUnreachable(
                self.where, str(error), hint="user and password stand in the URL: "
                "redis://USER:PASSWORD@HOST:PORT/DB; LEAKHUNT_REDIS_URL keeps them out of `ps`",
            ) from None  # fmt: skip
        except redis.ConnectionError as error:
            raise StoreUnreachable(
                self.where, str(error).rstrip("."), hint="is it the URL that the server has?"
            ) from None
        except (redis.RedisError, OSError) as error:
            raise StoreUnreachable(self.where, str(error).rstrip(".")) from None


class _Node:
    """One process by its channels' names."""

    __slots__ = ("channels", "members", "name", "newest", "oldest")

    def __init__(self, channels: bytes, name: bytes) -> None:
        self.channels = channels
        self.name = name.decode()
        self.members = 0
        self.oldest = float("inf")
        self.newest = float("-inf")


class _Counts:
    """What was seen in the groups."""

    def __init__(self) -> None:
        self.groups = self.members = self.largest = self.unowned = 0
        self._nodes: dict[bytes, _Node] = {}

    def add(self, page: Any) -> None:
        """Count ``(channel, when it was added)``."""
        self.members += len(page)
        for channel, added in page:
            found = _OWNED.match(channel)
            if found is None:
                self.unowned += 1
                continue
            node = self._nodes.get(found[1])
            if node is None:
                node = self._nodes[found[1]] = _Node(found[1], found[2])
            node.members += 1
            node.oldest = min(node.oldest, added)
            node.newest = max(node.newest, added)

    def nodes(self) -> list[_Node]:
        """Those with the most members first; one of each name."""
        by_name: dict[str, _Node] = {}
        for node in sorted(self._nodes.values(), key=lambda one: -one.members):
            # A process may name channels in several ways; its queue is then that of the most.
            main = by_name.setdefault(node.name, node)
            if main is not node:
                main.members += node.members
                main.oldest = min(main.oldest, node.oldest)
                main.newest = max(main.newest, node.newest)
        return list(by_name.values())


def _check(url: str) -> None:
    """Refuse what the package would take for something else; no reason quotes the URL."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it is checked when it is read
    except ValueError:
        raise ValueError("host and port cannot be told (a / in a password is %2F)") from None
    if parts.scheme not in _SCHEMES or (parts.scheme == "unix" and not parts.path):
        raise ValueError("it is no redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix://PATH")
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise ValueError("its database is not a number")


def without_secrets(url: str) -> str:
    """A URL as it may be shown: scheme, host, port and path, however malformed it is."""
    base, _, options = url.partition("?")
    scheme, mark, rest = base.rpartition("://") if "://" in base else ("", "", base)
    if "@" in rest:
        rest = rest.rpartition("@")[2]
    elif "@" in options:
        rest = "..."  # where the password ends cannot be told
    return f"{scheme.rpartition('@')[2]}{mark}{rest}"
