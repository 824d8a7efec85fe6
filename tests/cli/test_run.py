"""``leakhunt run``: the command stays what it was, and its servers are followed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets
from websockets.sync.client import connect

import leakhunt
from leakhunt.__main__ import main
from leakhunt.bootstrap.sitecustomize import MOUNTS
from leakhunt.cli import run as command

HERE = Path(__file__).parent
ROOT = Path(leakhunt.__file__).parent.parent
FACTS = str(HERE / "run_facts.py")
SERVER = str(HERE / "run_server.py")
PYTHON = sys.executable
RUN = (PYTHON, "-I", "-m", "leakhunt", "run")
"""-I: what a test puts into PYTHONPATH is for the command, not for ours."""

pytestmark = pytest.mark.usefixtures("nothing_left")


def done(*words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, input=stdin, capture_output=True, text=True, check=False, timeout=30,
        env={**os.environ, **env}, cwd=HERE,
    )  # fmt: skip


Started = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Started]:
    """Starts commands; at the end their stdin closes, and they have to end by themselves."""
    running: list[subprocess.Popen[str]] = []

    def start(*words: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **env}, start_new_session=True, cwd=HERE,
        )  # fmt: skip
        running.append(process)
        return process

    yield start
    for process in running:
        try:
            process.communicate(timeout=20)
        finally:
            process.kill()
            process.wait()


def port_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready "):
        pytest.fail(f"it said {line!r} and {process.communicate(timeout=20)}")
    return int(line.split()[1])


def agents(
    process: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> list[dict[str, Any]]:
    """All agents in a process and its workers."""
    assert main(["status", str(process.pid), "--json"]) == 0
    processes = json.loads(capsys.readouterr().out)["processes"]
    return [agent for one in processes for agent in one["agents"]]


def has_agent(process: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]) -> bool:
    code = main(["status", str(process.pid), "--json"])
    capsys.readouterr()
    return code == 0


# --- the command is what it was -------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The facts as a program with its interpreter in its first line."""
    file = tmp_path_factory.mktemp("programs") / "facts.py"
    file.write_text(f"#!{PYTHON}\n" + Path(FACTS).read_text())
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("form", ["python", "file", "module", "program", "console script"])
@pytest.mark.parametrize("path", [None, "", "somewhere", "somewhere:"])
def test_nothing_is_different(form: str, path: str | None, program: Path) -> None:
    """Output, exit code, stdin, cwd, sys.path, modules and environment are those without run."""
    plain, ran = {
        "python": ([PYTHON, FACTS], [PYTHON, FACTS]),
        "file": ([PYTHON, FACTS], [FACTS]),
        "module": ([PYTHON, "-m", "run_facts"], ["-m", "run_facts"]),
        "program": ([str(program)], [str(program)]),
        "console script": (["facts.py"], ["facts.py"]),
    }[form]
    env = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    if path is not None:
        env["PYTHONPATH"] = path
    if form == "module":
        env["PYTHONPATH"] = f"{HERE}:{path or ''}".rstrip(":") + ":" * (path or "").endswith(":")
    expected = done(*plain, "3", "-x", "--", stdin="some words", **env)
    got = done(*RUN, "--evict-after", "9", "--", *ran, "3", "-x", "--", stdin="some words", **env)
    assert got.returncode == expected.returncode == 3
    assert got.stderr == expected.stderr
    assert json.loads(got.stdout) == json.loads(expected.stdout)


@pytest.mark.parametrize("locale", [{}, {"LC_CTYPE": "C"}, {"LC_ALL": "C"}, {"LANG": "C.UTF-8"}])
def test_only_our_variables_are_new(locale: dict[str, str]) -> None:
    """The environment of the command has the settings and the way in, nothing else."""
    before = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LEAKHUNT_", "LC_", "LANG"))
    } | locale
    listed = subprocess.run(
        [*RUN, "--observe", "--", "env", "-0"], capture_output=True, text=True, check=True,
        timeout=30, env={**before, "PYTHONPATH": "x"},
    )  # fmt: skip
    after = dict(line.split("=", 1) for line in listed.stdout.rstrip("\0").split("\0"))
    new = {name: value for name, value in after.items() if before.get(name) != value}
    assert new == {"LEAKHUNT_MODE": "observe", "PYTHONPATH": f"{command.BOOTSTRAP}:x"}


def test_signals_are_treated_as_before() -> None:
    """What Python ignores for itself is not ignored in the command."""
    words = ("grep", "Sig[IB][gl]", "/proc/self/status")
    assert done(*RUN, "--", *words).stdout == done(*words).stdout != ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_it_as_before(start: Started, number: signal.Signals) -> None:
    """A signal to the pid that was started reaches the server, which ends in its own way."""
    ends = []
    for prefix in ((), (*RUN, "--")):
        process = start(*prefix, PYTHON, SERVER)
        port_of(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        ends.append((process.returncode, out, err))
    assert ends[0] == ends[1]
    assert ends[0][0] == -number


def test_ctrl_c_reaches_server_and_workers(start: Started) -> None:
    """Ctrl-C, which a terminal sends to the whole group, ends a server with workers as before."""
    ends = []
    for prefix in ((), (*RUN, "--")):
        process = start(*prefix, PYTHON, SERVER, "fork")
        port_of(process)
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        ends.append((process.returncode, out))
    assert ends[0] == ends[1]


def test_a_framework_that_cannot_be_imported_fails_as_before(tmp_path: Path) -> None:
    """The traceback of a broken framework has no frame of ours in it."""
    package = tmp_path / "websockets" / "asyncio"
    package.mkdir(parents=True)
    for file in (package.parent / "__init__.py", package / "__init__.py"):
        file.touch()
    (package / "server.py").write_text("def load():\n    import nowhere\nload()\n")
    words = (PYTHON, "-c", "import websockets.asyncio.server")
    expected = done(*words, PYTHONPATH=str(tmp_path))
    got = done(*RUN, "--", *words, PYTHONPATH=str(tmp_path))
    assert "No module named 'nowhere'" in got.stderr
    assert (got.returncode, got.stdout, got.stderr) == (1, "", expected.stderr)


@pytest.mark.parametrize("content", ["print('mine', __name__)", "raise ValueError('mine')"])
def test_the_users_sitecustomize_runs(tmp_path: Path, content: str) -> None:
    """A sitecustomize that ours stands in front of runs, once, and may fail as before."""
    (tmp_path / "sitecustomize.py").write_text(content)
    words = (PYTHON, "-c", "import sys, sitecustomize; print(sitecustomize.__file__)")
    expected = done(*words, PYTHONPATH=str(tmp_path))
    got = done(*RUN, "--", *words, PYTHONPATH=str(tmp_path))
    assert "mine" in got.stdout + got.stderr
    assert (got.returncode, got.stdout, got.stderr) == (
        expected.returncode, expected.stdout, expected.stderr,
    )  # fmt: skip


def test_run_within_run() -> None:
    """Twice is once: the inner one's settings win, and there is one finder."""
    code = "import os, sys; print(os.environ['LEAKHUNT_EVICT_AFTER'], sys.meta_path)"
    inner = (PYTHON, "-m", "leakhunt", "run", "--evict-after", "8", "--", PYTHON, "-c", code)
    got = done(*RUN, "--evict-after", "9", "--", *inner)
    assert (got.returncode, got.stderr) == (0, "")
    assert got.stdout.startswith("8 ")
    assert got.stdout.count("sitecustomize") == 1


# --- its servers are followed ---------------------------------------------------------------


@pytest.mark.parametrize("mode", ["plain", "fork", "spawn"])
def test_a_server_is_followed(
    start: Started, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server in the process, or in its worker, has one agent with the settings given."""
    process = start(
        *RUN, "--evict-after", "12", "--", PYTHON, SERVER, mode, LEAKHUNT_POLICY="block"
    )
    port = port_of(process)
    [agent] = agents(process, capsys)
    assert agent["name"] == "default"
    assert agent["settings"]["evict_after_s"] == 12.0
    assert agent["settings"]["policy"] == "block"
    with connect(f"ws://127.0.0.1:{port}") as client:
        client.send("hello")
        assert client.recv(timeout=20) == "hello"
        [agent] = agents(process, capsys)
        assert agent["ledger"]["believed"] == 1
        assert agent["adapters"] == ["websockets"]


def silent_client(port: int) -> socket.socket:
    """A client that never answers a ping, as a stalled one does not."""
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += client.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return client


def read_to_the_end(client: socket.socket) -> bytes:
    data = b""
    try:
        while piece := client.recv(4096):
            data += piece
    except ConnectionResetError:
        pass
    return data


def test_the_dead_are_evicted_and_only_watched_with_observe(
    start: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    """A silent client is pinged and dropped; with --observe it gets no byte and stays."""
    enforcing = start(*RUN, "--evict-after", "1", "--", PYTHON, SERVER)
    observing = start(*RUN, "--observe", "--evict-after", "1", "--", PYTHON, SERVER)
    with silent_client(port_of(observing)) as watched, silent_client(port_of(enforcing)) as dropped:
        assert read_to_the_end(dropped)[:1] == b"\x89"  # a ping, and then the end
        [agent] = agents(enforcing, capsys)
        assert agent["evictions"] == {"no-pong": 1}
        assert agent["mode"] == "enforce"
        suspects = 0
        while not suspects:
            [agent] = agents(observing, capsys)
            suspects = agent["states"].get("suspect", 0)
        assert agent["mode"] == "observe"
        assert agent["ledger"]["believed"] == 1
        watched.setblocking(False)
        with pytest.raises(BlockingIOError):
            watched.recv(1)


@pytest.mark.parametrize(("options", "mode"), [([], "enforce"), (["--observe"], "observe")])
def test_mounted_in_the_code_too_is_one_agent(
    start: Started, capsys: pytest.CaptureFixture[str], options: list[str], mode: str
) -> None:
    """A program that mounts its own agent keeps it; it is the only one, and observes if told to."""
    words = ("--evict-after", "9", *options, "--", PYTHON, str(HERE / "real_server.py"))
    process = start(*RUN, *words)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    with connect(f"ws://127.0.0.1:{port}") as client:
        client.send("lobby")
        assert client.recv(timeout=20) == "joined"
        [agent] = agents(process, capsys)
        assert agent["name"] == "game"
        assert agent["mode"] == mode
        assert agent["settings"]["evict_after_s"] == 20.0
        assert agent["ledger"]["believed"] == 1
        assert agent["rooms"]["memberships"] == 1


def test_an_agent_of_the_program_is_used(
    start: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that has an agent, but has not mounted it, is followed by that one."""
    process = start(*RUN, "--", PYTHON, SERVER, "own")
    with connect(f"ws://127.0.0.1:{port_of(process)}"):
        [agent] = agents(process, capsys)
        assert agent["name"] == "own"
        assert agent["ledger"]["believed"] == 1


def test_by_environment_alone(
    start: Started, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Options win over variables, variables over the file, from wherever it is named."""
    (tmp_path / "settings.toml").write_text(
        'evict_after = "2m"\nhigh_water = 4096\npolicy = "block"\nmode = "observe"\n'
    )
    process = subprocess.Popen(
        [*RUN, "--evict-after", "12s", "--", PYTHON, SERVER], cwd=tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LEAKHUNT_CONFIG": "settings.toml",
             "LEAKHUNT_EVICT_AFTER": "11", "LEAKHUNT_POLICY": "drop_stale"},
    )  # fmt: skip
    try:
        port_of(process)
        [agent] = agents(process, capsys)
    finally:
        process.communicate(timeout=20)
    assert agent["mode"] == "observe"
    assert agent["settings"]["evict_after_s"] == 12.0
    assert agent["settings"]["policy"] == "drop_stale"
    assert agent["settings"]["high_water_bytes"] == 4096


def test_an_interpreter_without_leakhunt(
    start: Started, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Where leakhunt is not installed it comes from the command's own place, and nothing else."""
    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "websockets").symlink_to(Path(websockets.__file__).parent)
    python = str(tmp_path / "venv" / "bin" / "python")
    env = {"PYTHONPATH": str(packages)}
    assert done(python, "-c", "import leakhunt", **env).returncode == 1
    code = (
        "import sys; before = list(sys.path)\n"
        "import websockets.asyncio.server, leakhunt.adapters.websockets\n"
        "assert sys.path == before\n"
        "import pytest"
    )
    got = done(*RUN, "--", python, "-c", code, **env)
    assert got.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'pytest'"
    process = start(*RUN, "--", python, SERVER, **env)
    port_of(process)
    assert len(agents(process, capsys)) == 1


@pytest.mark.parametrize("option", ["-I", "-E", "-S", "-bI", "-Wignore -I"])
def test_an_isolated_interpreter_runs_without_us(
    start: Started, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """python -I, -E and -S cannot be reached: they run as ever, and run says so."""
    process = start(*RUN, "--", PYTHON, *option.split(), FACTS, "0")
    out, err = process.communicate("", timeout=20)
    assert process.returncode == 0
    assert "sitecustomize" not in out
    warning, rest = err.split("\n", 1)
    assert warning.startswith("warning: python -")
    assert "runs without leakhunt" in warning
    assert rest == "last words\n"


@pytest.mark.parametrize("words", ["-W Ignore x.py -I", "-c I", "-m E", "x.py -S", "-XI -u x.py"])
def test_what_only_looks_isolated(words: str) -> None:
    """Values and the program's own options are not taken for options of Python."""
    assert list(command.out_of_reach(["python3", *words.split()])) == []


# --- our failures ---------------------------------------------------------------------------

BROKEN = {
    "another leakhunt": {"__init__.py": ""},
    "a failing one": {"__init__.py": "raise RuntimeError('no\\nluck')"},
    "a failing adapter": {
        "__init__.py": "",
        "adapters/__init__.py": "",
        "adapters/websockets.py": "def auto_mount(module): raise OSError('no luck')",
        "adapters/websockets_sync.py": "import nowhere",
    },
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_failure_of_ours_leaves_the_server_running(
    start: Started, capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str
) -> None:
    """The server serves without us, with one line on stderr, whatever else it imports."""
    for name, content in BROKEN[what].items():
        file = tmp_path / "leakhunt" / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(content)
    also = "import websockets.sync.server, runpy; runpy.run_path({!r}, run_name='__main__')"
    environ = command.environment({**os.environ, "PYTHONPATH": str(tmp_path)}, {})
    process = start(PYTHON, "-c", also.format(SERVER), **environ)
    with connect(f"ws://127.0.0.1:{port_of(process)}") as client:
        client.send("hello")
        assert client.recv(timeout=20) == "hello"
        assert not has_agent(process, capsys)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert err.startswith("leakhunt: not mounted, the server runs without it: ")
    assert err.count("\n") == 1


def test_settings_that_became_wrong_leave_the_server_running(
    start: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable that nobody checked is one warning; the server serves without us."""
    environ = command.environment(os.environ, {"LEAKHUNT_EVICT_AFTER": "soon"})
    process = start(PYTHON, SERVER, **environ)
    with connect(f"ws://127.0.0.1:{port_of(process)}"):
        assert not has_agent(process, capsys)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "LEAKHUNT_EVICT_AFTER='soon' is not a duration" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("loader", ["a class", "an archive"])
def test_loaders_that_are_shared(loader: str, tmp_path: Path) -> None:
    """A loader of many modules mounts after the one that it is about, or says that it cannot."""
    hook = (
        "import sys\n"
        "from importlib.machinery import ModuleSpec\n"
        "class Loader:\n"
        "    @classmethod\n"
        "    def create_module(cls, spec): return None\n"
        "    @classmethod\n"
        "    def exec_module(cls, module): print('runs', module.__name__)\n"
        "class Finder:\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        if name.startswith('tornado'):\n"
        "            return ModuleSpec(name, SHARED, is_package=name == 'tornado')\n"
        f"SHARED = Loader{'' if loader == 'a class' else '()'}\n"
        "sys.meta_path.insert(1, Finder)\n"
        "import leakhunt.adapters as a, types\n"
        "a.tornado = sys.modules['leakhunt.adapters.tornado'] = types.ModuleType('tornado')\n"
        "a.tornado.auto_mount = lambda module: print('mounts', module.__name__)\n"
        "import tornado.web, tornado.other\n"
    )
    got = done(*RUN, "--", PYTHON, "-c", hook)
    assert got.returncode == 0, got.stderr
    if loader == "a class":
        assert got.stdout.split("\n")[:-1] == [
            "runs tornado", "runs tornado.web", "runs tornado.other",
        ]  # fmt: skip
        assert got.stderr == (
            "leakhunt: not mounted, the server runs without it: "
            "TypeError: Loader cannot be hooked\n"
        )
    else:
        assert got.stdout.split("\n")[:-1] == [
            "runs tornado", "runs tornado.web", "mounts tornado.web", "runs tornado.other",
        ]  # fmt: skip
        assert got.stderr == ""


def test_an_old_python_runs_without_us(tmp_path: Path) -> None:
    """An interpreter that is older than we support is told so when it imports a server."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.version_info = (3, 9)")
    got = done(
        *RUN, "--", PYTHON, "-c", "import websockets.asyncio.server; print('runs')",
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert got.stdout == "runs\n"
    assert got.stderr == (
        "leakhunt: not mounted, the server runs without it: "
        "RuntimeError: it needs Python 3.11, this is 3.9\n"
    )


def test_the_docs_have_every_module_and_option() -> None:
    """docs/run.md lists each module that is mounted, and each option."""
    text = (ROOT / "docs" / "run.md").read_text()
    for name in (*MOUNTS, *command.VALUED, "--observe"):
        assert f"`{name}" in text, name


# --- what cannot be done --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "complaint", "hint"),
    [
        ([], "there is no command to run", "leakhunt run -- uvicorn app:app"),
        (["--"], "there is no command to run", "leakhunt run -- uvicorn app:app"),
        (["--nonsense", "--", "true"], "--nonsense is not an option", "leakhunt run -- COMMAND"),
        (["--evict-after"], "--evict-after needs a value", "--help"),
        (["--evict-after", "soon", "true"], "--evict-after='soon' is not a duration", ""),
        (["--evict-after=0.5", "true"], "--evict-after='0.5' is not a number from 1", ""),
        (["--config", "nowhere.toml", "true"], "--config='nowhere.toml' is not a file", "path"),
        (["--", "no-such-command"], "there is no command no-such-command", "PATH"),
        (["--", "./nowhere.py"], "there is no command ./nowhere.py", "PATH"),
        (["--", "/"], "/ is a directory", ""),
        (["--", "{tmp}/plain"], "plain is not executable", "chmod +x"),
        (["--", "{tmp}/orphan"], "orphan cannot be started: No such file", "first line"),
        (["--", "{tmp}/nothing"], "nothing cannot be started: Exec format error", "first line"),
    ],
)  # fmt: skip
def test_mistakes_have_clear_answers(
    args: list[str], complaint: str, hint: str, tmp_path: Path
) -> None:
    """Whatever keeps the command from starting is told with its next step, exit code 2."""
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    for name, content in (("orphan", "#!/nowhere/python\n"), ("nothing", "what?\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    got = done(*RUN, *(word.format(tmp=tmp_path) for word in args))
    assert (got.returncode, got.stdout) == (2, "")
    assert complaint in got.stderr.splitlines()[0]
    assert got.stderr.startswith("error: ")
    assert hint in got.stderr.partition("hint: ")[2]
    assert "Traceback" not in got.stderr


def test_a_misspelt_variable_is_a_warning() -> None:
    """A LEAKHUNT_ variable that means nothing is named with its neighbour; the command runs."""
    got = done(*RUN, "--", "echo", "runs", LEAKHUNT_EVICTAFTER="3")
    assert (got.returncode, got.stdout) == (0, "runs\n")
    assert got.stderr == (
        "warning: LEAKHUNT_EVICTAFTER is not a setting of leakhunt "
        "(did you mean LEAKHUNT_EVICT_AFTER?)\n"
    )


def test_it_needs_no_package() -> None:
    """leakhunt run works with the middleware alone, without the packages of the other commands."""
    code = (
        "import sys\n"
        "for name in ('typer', 'rich', 'psutil', 'msgspec', 'click'): sys.modules[name] = None\n"
        "from leakhunt.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    got = done(PYTHON, "-c", code, "run", "--evict-after", "9", "--", "sh", "-c", "exit 7")
    assert (got.returncode, got.stderr) == (7, "")
    helped = done(PYTHON, "-c", code, "run", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--evict-after DURATION" in helped.stdout


def test_the_neighbour_of_our_own_command(tmp_path: Path) -> None:
    """A command of an environment that was not activated is found beside ours."""
    got = done(*RUN, "--", "python", "-c", "import sys; print(sys.prefix)", PATH=str(tmp_path))
    assert (got.stdout, got.stderr) == (f"{sys.prefix}\n", "")


@pytest.mark.parametrize("module", MOUNTS)
def test_every_mount_is_silent_and_imports_nothing_else(module: str) -> None:
    """Each module is there, its adapter mounts, and no package is imported but ours, in its order.

    What leakhunt needs itself is of the standard library, which its import may bring earlier.
    """
    code = (
        f"import {module}, sys\n"
        f"known = sys.modules.get('leakhunt.adapters.{MOUNTS[module]}')\n"
        "print(known and callable(known.auto_mount))\n"
        "ours = {'leakhunt', *sys.stdlib_module_names}\n"
        "print(*(name for name in sys.modules if name.partition('.')[0] not in ours), sep='\\n')"
    )
    expected = done(PYTHON, "-c", code)
    got = done(*RUN, "--", PYTHON, "-c", code)
    assert (got.returncode, got.stderr) == (0, expected.stderr)
    assert expected.stdout.startswith("None\n")
    assert got.stdout == expected.stdout.replace("None", "True", 1)
