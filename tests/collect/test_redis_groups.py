"""The groups of Channels in a real Redis: counted, never changed, in bounded work."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from channels_redis.core import RedisChannelLayer
from redis_server import free_port, redis_server
from tls import make_certificate

from leakhunt.collect import redis_groups
from leakhunt.collect.agent_watch import summed
from leakhunt.collect.redis_groups import RedisGroups, without_secrets
from leakhunt.core.diagnosis.rules_store import CLEAN_UP
from leakhunt.core.samples import Sample, StoreSample
from leakhunt.core.views import AgentView, StatusView
from leakhunt.errors import StoreUnreachable

HERE, THERE = "5f" * 16, "60" * 16
SAMPLE = Sample(at=1.0, wall=1e9, rss_bytes=1)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with redis_server(tmp_path_factory.mktemp("redis")) as port:
        yield port


@pytest.fixture
def client(port: int) -> Iterator[redis.Redis]:
    with redis.Redis(port=port) as client:
        client.flushall()
        yield client


def look(port: int, **options: Any) -> StoreSample:
    with RedisGroups(f"redis://127.0.0.1:{port}", **options) as groups:
        found = groups.look()
    assert found is not None
    return found


def channels(
    node: str, count: int, added: float = 1.7e9, kind: str = "specific"
) -> dict[str, float]:
    return {f"{kind}.{node}!{number:032x}": added + number for number in range(count)}


async def test_what_channels_redis_writes_is_understood(client: redis.Redis, port: int) -> None:
    """The members, their processes by client prefix, and what waits for who takes nothing."""
    hosts = [{"address": f"redis://127.0.0.1:{port}", "socket_timeout": 30}]
    living, dead = (RedisChannelLayer(hosts=hosts) for _ in range(2))
    try:
        begin = time.time()
        ours, theirs = await living.new_channel(), await dead.new_channel()
        for group, channel in (("lobby", ours), ("lobby", theirs), ("news", theirs)):
            await living.group_add(group, channel)
        for number in range(3):
            await living.group_send("lobby", {"type": "said", "number": number})
            assert (await living.receive(ours))["number"] == number
        await living.wait_received()
        seen = look(port)
    finally:
        for layer in (living, dead):
            await layer.close_pools()
    assert (seen.groups, seen.members, seen.largest, seen.unowned) == (2, 3, 2, 0)
    assert not seen.cut
    assert begin <= seen.at <= time.time()
    idle, late = sorted(seen.nodes, key=lambda node: node.members)
    assert (idle.node, idle.members) == (living.client_prefix, 1)
    assert (idle.waiting, idle.head_at) == (0, None)
    assert (late.node, late.members, late.waiting) == (dead.client_prefix, 2, 3)
    assert late.head_at is not None
    assert begin <= late.head_at <= seen.at
    assert late.ttl_s is not None
    assert 50 < late.ttl_s <= 60
    assert 0 <= late.newest_s <= late.oldest_s < seen.at - begin + 1


def test_members_are_counted_by_process(client: redis.Redis, port: int) -> None:
    """In pages; kinds of channels of one process are one; names without a process are nobody's."""
    now = time.time()
    client.zadd("asgi:group:large", channels(HERE, 2500, now - 5000))
    client.zadd("asgi:group:small", channels(HERE, 3, now, kind="http.response"))
    client.zadd("asgi:group:small", channels(THERE, 1, now) | {"worker": now, "x.y!z": now})
    client.set("asgi:group:no-group", "a text")
    client.zadd("other:group:one", channels(HERE, 5))
    client.zadd("asgi:groups", channels(HERE, 5))
    seen = look(port)
    assert (seen.groups, seen.members, seen.largest, seen.unowned) == (2, 2506, 2500, 2)
    first, second = seen.nodes
    assert (first.node, first.members) == (HERE, 2503)
    assert (second.node, second.members) == (THERE, 1)
    assert 4999 < first.oldest_s < 5100
    assert first.newest_s < 100
    assert look(port, prefix="other").members == 5


def test_a_prefix_is_no_pattern(client: redis.Redis, port: int) -> None:
    """`*`, `?` and `[` in the prefix stand for themselves."""
    client.zadd("a*b[c]?:group:one", channels(HERE, 5))
    client.zadd("aXb[c]?:group:one", channels(HERE, 7))
    client.zadd(f"a*b[c]?specific.{HERE}!", {"message": 1.7e9})
    seen = look(port, prefix="a*b[c]?")
    assert (seen.members, seen.nodes[0].waiting) == (5, 1)


def test_nothing_is_written(client: redis.Redis, port: int) -> None:
    """Looks send commands that read, and no other."""
    client.zadd("asgi:group:lobby", channels(HERE, 1200))
    client.zadd(f"asgispecific.{HERE}!", {"message": 1.7e9})
    before = client.dbsize(), client.zrange("asgi:group:lobby", 0, -1, withscores=True)
    client.config_resetstat()
    look(port)
    sent = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    assert (client.dbsize(), client.zrange("asgi:group:lobby", 0, -1, withscores=True)) == before
    opening = {"hello", "auth", "select", "client|setinfo", "client|maint_notifications"}
    assert sent - opening - {"config|resetstat"} == {"time", "scan", "zrange", "zcard", "pttl"}


def test_the_clean_up_that_is_shown_takes_out_the_dead(client: redis.Redis, port: int) -> None:
    """Every member of the processes that it names, and no other."""
    living = {name.encode(): added for name, added in channels(HERE, 3).items()}
    for group in ("lobby", "a*[b]"):
        client.zadd(f"asgi:group:{group}", channels(THERE, 1500) | channels(HERE, 3))
    client.zadd("asgi:group:last", channels(THERE, 1))
    settings: dict[str, Any] = {"default": {"CONFIG": {}}}
    known = {"redis": redis, "URL": f"redis://127.0.0.1:{port}", "CHANNEL_LAYERS": settings}
    exec(CLEAN_UP % [THERE], known)
    known["client"].close()  # type: ignore[attr-defined]
    for group in ("lobby", "a*[b]"):
        assert dict(client.zrange(f"asgi:group:{group}", 0, -1, withscores=True)) == living
    assert not client.exists("asgi:group:last")


def test_groups_come_and_go(
    client: redis.Redis, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that is empty is forgotten; new ones are found with the next search; between two
    looks is a pause."""
    client.zadd("asgi:group:one", channels(HERE, 2))
    with RedisGroups(f"redis://127.0.0.1:{port}") as groups:
        assert groups.added_to(SAMPLE).store is not None
        assert groups.added_to(SAMPLE) == SAMPLE
        client.delete("asgi:group:one")
        client.zadd("asgi:group:two", channels(HERE, 3))
        monkeypatch.setattr(groups, "_due_at", 0.0)
        seen = groups.look()
        assert seen is not None
        assert (seen.groups, seen.members) == (0, 0)
        monkeypatch.setattr(redis_groups, "SCAN_EVERY_S", 0.0)
        monkeypatch.setattr(groups, "_due_at", 0.0)
        seen = groups.look()
        assert seen is not None
        assert (seen.groups, seen.members) == (1, 3)


def test_work_is_bounded(client: redis.Redis, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many members, groups or processes, or too little time: what was read is told, and that
    it is not all."""
    for number in range(300):
        client.zadd(f"asgi:group:{number}", channels(f"{number:032x}", 2))
    client.zadd("asgi:group:large", channels(HERE, 5000))
    for name, value in (("MOST_MEMBERS", 1000), ("MOST_GROUPS", 200), ("LOOK_S", 0.0)):
        with monkeypatch.context() as patch:
            patch.setattr(redis_groups, name, value)
            seen = look(port)
            assert seen.cut, name
            assert 0 < seen.members < 5600, name
            with RedisGroups(f"redis://127.0.0.1:{port}") as groups:
                (said,) = groups.added_to(SAMPLE).missing
            assert said.endswith("than could be read in time: these are least counts")
    seen = look(port)
    assert (seen.cut, seen.groups, seen.members) == (True, 301, 5600)
    assert len(seen.nodes) == redis_groups.MOST_NODES
    assert seen.nodes[0].node == HERE


def test_a_search_goes_on_with_the_next_look(
    client: redis.Redis, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among many other keys groups are found a part at a time."""
    client.mset({f"session:{number}": "" for number in range(3000)})
    for number in range(20):
        client.zadd(f"asgi:group:{number}", channels(HERE, 1))
    monkeypatch.setattr(redis_groups, "_PAGE", 100)
    monkeypatch.setattr(redis_groups, "LOOK_S", 0.0)
    with RedisGroups(f"redis://127.0.0.1:{port}") as groups:
        counts = []
        while not counts or not groups._found_all:
            monkeypatch.setattr(groups, "_due_at", 0.0)
            seen = groups.look()
            assert seen is not None
            counts.append(seen.groups)
            assert len(counts) < 100
    assert len(counts) > 10
    assert counts == sorted(counts)
    assert counts[-1] == 20


# --- how Redis is reached --------------------------------------------------------------------


def test_passwords_sockets_and_databases(tmp_path: Path) -> None:
    """A Unix socket, a user with a password and a numbered database; a wrong password is an error
    that does not show it."""
    path = tmp_path / "redis.sock"
    with (
        redis_server(tmp_path, "--requirepass", "p@ss/w?rd", "--unixsocket", str(path)) as port,
        redis.Redis(port=port, password="p@ss/w?rd", db=3) as client,
    ):
        client.zadd("asgi:group:one", channels(HERE, 4))
        for url in (
            f"unix://:p%40ss%2Fw%3Frd@{path}?db=3",
            f"redis://default:p%40ss%2Fw%3Frd@127.0.0.1:{port}/3",
            f"redis://127.0.0.1:{port}/3?password=p%40ss%2Fw%3Frd",
        ):
            with RedisGroups(url) as groups:
                seen = groups.look()
                assert seen is not None
                assert seen.members == 4
                assert groups.where in (f"unix://{path}", f"redis://127.0.0.1:{port}/3")
        for password in ("wrong-secret", ""):
            with pytest.raises(StoreUnreachable) as caught:
                RedisGroups(f"redis://:{password}@127.0.0.1:{port}/3")
            said = f"{caught.value} {caught.value.hint}"
            assert "secret" not in said
            assert str(caught.value).startswith(f"redis://127.0.0.1:{port}/3 cannot be read: ")
            assert "LEAKHUNT_REDIS_URL" in said


def test_a_user_who_may_not_read_it(client: redis.Redis, port: int) -> None:
    """Redis's own reason is told, before anything is watched."""
    client.zadd("asgi:group:one", channels(HERE, 4))
    client.acl_setuser(
        "blind", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-zrange"]
    )
    with pytest.raises(
        StoreUnreachable, match=r"cannot be read: .*no permissions.*zrange"
    ) as caught:
        RedisGroups(f"redis://blind:secret@127.0.0.1:{port}/0")
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_over_tls(tmp_path: Path) -> None:
    """rediss:// with the authority that the URL names; without it that is an error."""
    certificate, key = make_certificate(tmp_path)
    tls_port = free_port()
    options = {
        "--tls-port": str(tls_port), "--tls-cert-file": str(certificate),
        "--tls-key-file": str(key), "--tls-ca-cert-file": str(certificate),
        "--tls-auth-clients": "no",
    }  # fmt: skip
    with redis_server(tmp_path, *(word for pair in options.items() for word in pair)):
        url = f"rediss://localhost:{tls_port}/0"
        with RedisGroups(f"{url}?ssl_ca_certs={certificate}") as groups:
            assert groups.look() is not None
            assert groups.where == url
        with pytest.raises(StoreUnreachable, match="certificate verify failed"):
            RedisGroups(url)


@pytest.mark.parametrize(
    ("url", "why", "shown"),
    [
        ("localhost:6379", "it is no redis://HOST:PORT/DB", "localhost:6379"),
        ("http://:secret@host/0", "it is no redis://HOST:PORT/DB", "http://host/0"),
        ("unix://", "it is no redis://HOST:PORT/DB", "unix://"),
        ("redis://:sec/ret@host:6379/0", "host and port cannot be told", "redis://host:6379/0"),
        ("redis://:sec?ret@host:6379/0", "host and port cannot be told", "redis://..."),
        ("redis://:1/secret@host:6379/0", "its database is not a number", "redis://host:6379/0"),
        ("redis://h/zero", "its database is not a number", "redis://h/zero"),
        ("redis://h/0?db=secret", "Invalid value for", "redis://h/0"),
        ("redis://h/0?pasword=secret", "unexpected keyword argument 'pasword'", "redis://h/0"),
        ("redis://secret\N{FULLWIDTH SOLIDUS}@h/0", "host and port cannot be told", "redis://h/0"),
        ("redis://:secret@127.0.0.1:1/0", "refused", "redis://127.0.0.1:1/0"),
        ("unix://:secret@/nowhere/redis.sock", "No such file", "unix:///nowhere/redis.sock"),
    ],
)
def test_what_cannot_be_reached_says_why(url: str, why: str, shown: str) -> None:
    """One line: where, why, what to do; and no part of a password."""
    with pytest.raises(StoreUnreachable) as caught:
        RedisGroups(url)
    error = caught.value
    assert str(error).startswith(f"{shown} cannot be read: ")
    assert why in str(error)
    assert "sec" not in f"{error} {error.hint}"
    assert error.hint
    assert error.where == shown == without_secrets(url)


def test_a_redis_that_goes_away_is_missing(tmp_path: Path) -> None:
    """The samples go on without it, each with the reason."""
    with contextlib.ExitStack() as stack:
        with redis_server(tmp_path) as port:
            groups = stack.enter_context(RedisGroups(f"redis://127.0.0.1:{port}"))
            assert groups.added_to(SAMPLE).store is not None
        groups._due_at = 0.0
        sample = groups.added_to(SAMPLE)
    assert sample.store is None
    (said,) = sample.missing
    assert said.startswith(f"groups: redis://127.0.0.1:{port} cannot be read: ")


def test_without_the_package_it_says_what_to_install() -> None:
    """One line, exit code 2."""
    code = (
        "import sys; sys.modules['redis'] = None; from leakhunt.__main__ import main; "
        "import os; sys.exit(main(['diagnose', str(os.getpid()), '--redis', 'redis://h']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: this command needs the package 'redis': pip install 'leakhunt-ws[redis]'\n"
    )


def test_memberships_of_processes_add_up() -> None:
    """Agents of one process tell the same; processes have names of their own, or share one."""
    one = AgentView(name="a", store_members={HERE: 3})
    other = AgentView(name="b", store_members={HERE: 2, THERE: 1})
    told = [
        StatusView(pid=1, version="", agents=(one, replace(one, name="b"))),
        StatusView(pid=2, version="", agents=(other,)),
    ]
    assert summed(told).store_members == {HERE: 5, THERE: 1}
