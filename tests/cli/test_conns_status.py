"""``leakhunt conns`` and ``leakhunt status`` against real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shown import on_a_terminal

from leakhunt.__main__ import main

Serve = Callable[..., "subprocess.Popen[str]"]
Tell = Callable[["subprocess.Popen[str]", str], None]


def conns(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    assert main(["conns", *map(str, args), "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def ids(content: dict[str, Any]) -> list[int]:
    return [row["id"] for row in content["connections"]]


def test_json_has_every_connection(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints one object with the registry's rows, plain numbers and the pid."""
    process = serve("chat")
    content = conns(capsys, process.pid)
    assert content["kind"] == "conns"
    assert content["total"] == 5
    assert ids(content) == [1, 2, 3, 4, 5]
    row = content["connections"][1]
    assert row["pid"] == process.pid
    assert row["tls"] is True
    assert row["rooms"] == ["lobby"]
    assert row["last_heard_s"] == 20.0
    assert content["connections"][0]["kernel_bytes"] is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--silent-for 30s", [3, 4, 5]),
        ("--silent-for 0.5m", [3, 4, 5]),
        ("--room [bold]x[/]", [1, 3, 5]),
        ("--room nobody", []),
        ("--sort silent", [5, 4, 3, 2, 1]),
        ("--sort buffered --limit 2", [1, 2]),
        ("--sort opened --limit 1", [5]),
        ("--sort latency", [5, 4, 2, 1, 3]),
        ("--sort queued", [2, 5, 1, 4, 3]),
        ("--sort messages", [5, 4, 3, 1, 2]),
        ("--sort lost", [1, 3, 5, 2, 4]),
        ("--sort peer", [1, 2, 3, 4, 5]),
        ("--silent-for 20s --sort silent --limit 2", [5, 4]),
    ],
)
def test_filters_and_order(
    serve: Serve, capsys: pytest.CaptureFixture[str], options: str, expected: list[int]
) -> None:
    """The options choose and order the connections."""
    content = conns(capsys, serve("chat").pid, *options.split())
    assert ids(content) == expected
    assert content["total"] == 5


def test_table_in_a_pipe_is_plain_and_whole(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe there are no colours and nothing is cut; markup in data stays text."""
    assert main(["conns", str(serve("chat").pid)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "lobby, [bold]x[/], \\x1b]0;owned\\x07" in out
    assert "10.0.0.2:40002 tls" in out
    assert "4.0 kB" in out
    assert "5 connections: 4 alive, 1 suspect" in out


def test_table_on_a_terminal_fits(serve: Serve) -> None:
    """On a terminal of 100 columns there are colours, no line is longer, and the head is whole."""
    out = on_a_terminal("conns", str(serve("chat").pid), columns=100)
    assert "\x1b[" in out
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    assert max(map(len, lines)) <= 100
    head = "id peer state open silent latency buffered queued in out lost rooms"
    assert lines[0].split() == head.split()


def test_no_connections(serve: Serve, tell: Tell, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty registry says so."""
    process = serve("chat")
    tell(process, "sources[0].describe_connections = lambda: iter([])")
    assert main(["conns", str(process.pid)]) == 0
    assert capsys.readouterr().out.strip() == "no connections"


def test_several_agents_have_a_column(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """With two agents in the process the table says whose connection it is."""
    process = serve("chat", "admin")
    assert main(["conns", str(process.pid), "--sort", "silent"]) == 0
    head, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "agent"
    assert conns(capsys, process.pid)["total"] == 10


def test_workers_are_asked_with_their_parent(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """conns of a parent without an agent gathers its workers' connections."""
    parent = serve("2", program="parent.py")
    content = conns(capsys, parent.pid)
    pids = {row["pid"] for row in content["connections"]}
    assert len(pids) == 2
    assert parent.pid not in pids
    assert content["total"] == 10
    assert main(["status", str(parent.pid), "--json"]) == 0
    processes = json.loads(capsys.readouterr().out)["processes"]
    assert {process["pid"] for process in processes} == pids


def test_status_json(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """status --json has the ledger, settings and the loop of each agent."""
    process = serve("chat", "admin")
    assert main(["status", str(process.pid), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["kind"] == "status"
    [one] = content["processes"]
    assert one["pid"] == process.pid
    chat, admin = one["agents"]
    assert admin["name"] == "admin"
    assert chat["ledger"] == {"opened": 9, "closed": {"client": 3, "no-pong": 1}, "believed": 5}
    assert chat["settings"]["evict_after_s"] == 30.0
    assert chat["loop"]["blocked"] is False


def test_status_for_people(serve: Serve, tell: Tell, capsys: pytest.CaptureFixture[str]) -> None:
    """status shows ledger, evictions, breaker, settings with units, and what blocks the loop."""
    process = serve("chat")
    assert main(["status", str(process.pid)]) == 0
    out = capsys.readouterr().out
    assert "9 opened, 4 closed, 5 believed" in out
    assert "1 no-pong; 1 stuck teardowns; the breaker has tripped and holds 2 back" in out
    assert "4.1 kB held (of 1.0 MB)" in out
    assert "30 s" in out
    assert "blocked" not in out
    tell(process, "sources[0].blocked = True")
    assert main(["status", str(process.pid)]) == 0
    out = capsys.readouterr().out
    assert "blocked for 3.2 s" in out
    assert "time.sleep(9)" in out


# --- what goes wrong ------------------------------------------------------------------------


def failure(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Run a command that must fail: exit code 2, nothing on stdout, no traceback."""
    assert main([*map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_unknown_pid(capsys: pytest.CaptureFixture[str]) -> None:
    """A pid that does not exist is named."""
    assert failure(capsys, "conns", 2**22 + 1).startswith("error: there is no process 4194305")


def test_a_dead_process(capsys: pytest.CaptureFixture[str]) -> None:
    """A process that has ended and waits to be reaped is not asked."""
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert "it exited" in failure(capsys, "conns", child.pid)
    child.communicate()


def test_no_agent(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """A process without an agent is said to have none, with a hint."""
    err = failure(capsys, "status", serve().pid)
    assert "it has no leakhunt socket" in err
    assert "\nhint: " in err


def test_a_stopped_process(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process is recognised, and how to wake it is said."""
    from leakhunt.collect.agent import AgentClient, AgentUnreachable

    process = serve("chat")
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        with (
            AgentClient(process.pid, timeout=0.2) as client,
            pytest.raises(AgentUnreachable, match="the process is stopped") as caught,
        ):
            client.hello()  # fmt: skip
        assert caught.value.hint == f"kill -CONT {process.pid} wakes it"
    finally:
        os.kill(process.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ("HTTP/1.1 400 Bad Request", "is no leakhunt agent"),
        ("\\xff\\xfe", "is no leakhunt agent"),
        ("[]", "is no leakhunt agent"),
        ("{}", "is no leakhunt agent"),
        ('{"v":2,"kind":"conns"}', "speaks version 2 of the protocol, this leakhunt speaks 1"),
        ('{"v":1,"kind":"error","message":"not today"}', "not today"),
        ('{"v":1,"kind":"hello"}', "it answered 'hello' to 'conns'"),
        ('{"v":1,"kind":"conns"}\\n{"id":"x"}', "a connection is malformed"),
        ('{"v":1,"kind":"conns"}\\n{"v":1,"kind":"end","rows":3}', "0 rows came, 3 were announced"),
        ('{"v":1,"kind":"conns"}\\n{"kind":"error","message":"broke off"}', "broke off"),
        ("", "closed the connection without an answer"),
    ],
)
def test_garbage_on_the_socket(
    serve: Serve, tell: Tell, capsys: pytest.CaptureFixture[str], reply: str, complaint: str
) -> None:
    """Whatever answers instead of an agent is refused with what it said."""
    process = serve(program="impostor.py")
    tell(process, f"reply = {reply!r}.encode('latin-1').decode('unicode_escape').encode('latin-1')")
    assert complaint in failure(capsys, "conns", process.pid)


def test_a_malformed_status(serve: Serve, tell: Tell, capsys: pytest.CaptureFixture[str]) -> None:
    """A status that is not one is refused."""
    process = serve(program="impostor.py")
    tell(process, """reply = b'{"v":1,"kind":"status","pid":1,"version":"1","agents":[3]}'""")
    assert "its status is malformed" in failure(capsys, "status", process.pid)


def test_a_socket_of_another_process_is_refused(
    serve: Serve, capsys: pytest.CaptureFixture[str], socket_directory: Path
) -> None:
    """A file with the right name that another process serves is not believed."""
    victim, impostor = serve(), serve(program="impostor.py")
    os.rename(socket_directory / f"{impostor.pid}.sock", socket_directory / f"{victim.pid}.sock")
    err = failure(capsys, "conns", victim.pid)
    assert f"its socket file belongs to process {impostor.pid}" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_users_process(serve: Serve) -> None:
    """Another user's process is refused, with the way in."""
    code = (
        "import os, sys\n"
        "from leakhunt.__main__ import main\n"
        "assert main(sys.argv[1:]) == 0  # and everything is imported that root may read\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "conns", str(serve("chat").pid)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "it belongs to uid 0, and this is uid 65534" in done.stderr
    assert "as that user, or as root" in done.stderr


def test_found_without_the_directory(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket is found by what the process holds, whatever directory it uses."""
    process = serve("chat")
    monkeypatch.setenv("LEAKHUNT_DIR", "/nonexistent")
    assert conns(capsys, process.pid)["total"] == 5


IN_A_CONTAINER = (
    "unshare", *(("--map-root-user",) if os.geteuid() else ()), "--mount", "sh", "-c",
    'mkdir -p "$LEAKHUNT_DIR" && mount -t tmpfs -o mode=700 none "$LEAKHUNT_DIR" && exec "$@"', "-",
)  # fmt: skip


def test_found_in_a_container(
    serve: Serve, capsys: pytest.CaptureFixture[str], socket_directory: Path
) -> None:
    """A socket that exists in the server's own mount namespace only is found, too."""
    works = subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True, text=True, check=False)
    if works.returncode:
        pytest.skip(f"no mount namespace can be made here: {works.stderr.strip()}")
    process = serve("chat", prefix=IN_A_CONTAINER)
    assert os.listdir(socket_directory) == []
    assert conns(capsys, process.pid)["total"] == 5


def test_a_client_survives_a_restart_of_the_agent(serve: Serve, tell: Tell) -> None:
    """A kept connection that broke is opened again by itself."""
    from leakhunt.collect.agent import AgentClient

    process = serve("chat")
    with AgentClient(process.pid) as client:
        assert client.hello()["pid"] == process.pid
        tell(process, "endpoint.detach(sources[0]); endpoint.attach(sources[0])")
        assert len(client.connections()) == 5
        assert client.status().agents[0].name == "chat"
