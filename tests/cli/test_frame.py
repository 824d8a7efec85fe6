"""The frame of the command line: errors, exit codes, help, and what it imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from leakhunt.__main__ import main
from leakhunt._version import __version__
from leakhunt.cli import main as frame
from leakhunt.collect.recording import Recorder
from leakhunt.core.samples import Sample
from leakhunt.errors import LeakhuntError, ScenarioError

Serve = Callable[..., "subprocess.Popen[str]"]


def python(code: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=False,
        timeout=30, env={**os.environ, **env},
    )  # fmt: skip


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the version."""
    assert main([option]) == 0
    assert capsys.readouterr().out == f"leakhunt {__version__}\n"


@pytest.mark.parametrize("package", ["typer", "rich", "psutil", "msgspec"])
def test_a_missing_package_is_one_line(serve: Serve, package: str) -> None:
    """Without the extra every command says in one line what to install, --version works."""
    code = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"  # what makes Python raise ModuleNotFoundError
        "from leakhunt.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    assert python(code, "--version").stdout == f"leakhunt {__version__}\n"
    done = python(code, "conns", str(serve("chat").pid))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "pip install 'leakhunt-ws[cli]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert repr(package) in done.stderr


def test_a_bug_of_ours_is_not_hidden_as_a_missing_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A module of leakhunt itself that is missing is a bug, not something to install."""
    broken = frame.Command("leakhunt.cli.nowhere", "nothing", "Does not exist.")
    monkeypatch.setitem(frame.COMMANDS, "broken", broken)
    with pytest.raises(ModuleNotFoundError, match=r"leakhunt\.cli\.nowhere"):
        main(["broken"])


def test_help_names_every_command_without_importing_one() -> None:
    """leakhunt --help is quick: it imports no command."""
    code = (
        "import sys\n"
        "from leakhunt.__main__ import main\n"
        "code = main(['--help'])\n"
        "loaded = [m for m in sys.modules if m.startswith(('leakhunt.cli.', 'leakhunt.collect',"
        " 'leakhunt.prove', 'psutil', 'msgspec'))]\n"
        "print('loaded', loaded)\n"
        "sys.exit(code)\n"
    )
    done = python(code)
    assert done.returncode == 0
    assert "loaded ['leakhunt.cli.main']" in done.stdout
    for name in frame.COMMANDS:
        assert f"  {name} " in done.stdout


def test_conns_does_not_import_the_prover(serve: Serve) -> None:
    """leakhunt conns does not wait for what only prove needs."""
    code = (
        "import sys\n"
        "from leakhunt.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not [m for m in sys.modules if m.startswith('leakhunt.prove')]\n"
        "sys.exit(code)\n"
    )
    done = python(code, "conns", str(serve("chat").pid))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list(frame.COMMANDS))
def test_every_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's help shows how it is called."""
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"  leakhunt {name} " in out.partition("xample")[2]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["cons", "1"], "Did you mean 'conns'?"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["conns"], "PID"),
        (["conns", "many"], "integer"),
        (["conns", "0"], "PID"),
        (["conns", "1", "--silent-for", "soon"], "'soon' is not a duration"),
        (["conns", "1", "--silent-for", "-3"], "-3"),
        (["conns", "1", "--sort", "colour"], "colour"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    args: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was typed wrong is named, on stderr, with exit code 2."""
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err


def command_that_raises(error: BaseException) -> Callable[[], None]:
    def command() -> NoReturn:
        """Fail."""
        raise error

    return command


def test_our_errors_have_fact_and_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of ours is two lines on stderr and exit code 2."""
    from leakhunt.cli import status

    error = ScenarioError("clients=0 is not a number of clients", hint="say --clients 500")
    monkeypatch.setattr(status, "status", command_that_raises(error))
    assert main(["status"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: clients=0 is not a number of clients\nhint: say --clients 500\n"


def test_without_a_hint_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No empty hint is printed."""
    from leakhunt.cli import status

    monkeypatch.setattr(status, "status", command_that_raises(LeakhuntError("it rains")))
    assert main(["status"]) == 2
    assert capsys.readouterr().err == "error: it rains\n"


def test_interrupt_is_130_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends a command with exit code 130."""
    from leakhunt.cli import status

    monkeypatch.setattr(status, "status", command_that_raises(KeyboardInterrupt()))
    assert main(["status"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_real_interrupt(serve: Serve) -> None:
    """So does a real SIGINT while an answer is awaited."""
    server = serve("chat")
    os.kill(server.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, server.pid, os.WSTOPPED | os.WNOWAIT)
    command = subprocess.Popen(
        [sys.executable, "-c", "import sys; from leakhunt.__main__ import main\n"
         "import leakhunt.collect.agent as a; ask = a.AgentClient._line\n"
         "def tell(self): print('asking', flush=True); return ask(self)\n"
         "a.AgentClient._line = tell; sys.exit(main(sys.argv[1:]))",
         "conns", str(server.pid)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert command.stdout is not None
    assert command.stdout.readline() == "asking\n"
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=20)
    assert command.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("options", [["--json"], []])
def test_a_reader_that_leaves_is_no_error(serve: Serve, options: list[str]) -> None:
    """`leakhunt conns PID | head -0` prints nothing on stderr."""
    command = subprocess.Popen(
        [sys.executable, "-m", "leakhunt", "conns", str(serve("chat").pid), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert command.stdout is not None
    command.stdout.close()
    assert command.stderr is not None
    with command.stderr:
        assert command.stderr.read() == ""
    assert command.wait(20) == 128 + signal.SIGPIPE


def test_a_reader_that_leaves_on_the_way_is_no_leak(tmp_path: Path) -> None:
    """`leakhunt watch --replay FILE | head -1` ends as SIGPIPE would end it, not with 1."""
    path = tmp_path / "long.leakhunt"
    with Recorder(path) as recorder:
        for second in range(2000):
            recorder.add(Sample(at=float(second), wall=1e9 + second, rss_bytes=1_000_000))
    command = subprocess.Popen(
        [sys.executable, "-m", "leakhunt", "watch", "--replay", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert command.stdout is not None
    assert command.stdout.readline().startswith("{")
    command.stdout.close()
    assert command.stderr is not None
    with command.stderr:
        assert command.stderr.read() == ""
    assert command.wait(20) == 128 + signal.SIGPIPE


def test_python_m_leakhunt_is_the_command() -> None:
    """python -m leakhunt is the same as leakhunt."""
    done = subprocess.run(
        [sys.executable, "-m", "leakhunt", "conns", "4194305"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no process 4194305\nhint: ")
