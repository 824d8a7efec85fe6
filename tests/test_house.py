"""The house: what is installed, what is imported, and what may not stand in any file."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "leakhunt"


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False,
        timeout=55, env={**os.environ, **env},
    )  # fmt: skip


# --- imports --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    ["import leakhunt", "import leakhunt.agent.endpoint", "import leakhunt; leakhunt.Agent()"],
)
def test_a_server_imports_the_standard_library_only(statement: str) -> None:
    """`import leakhunt` in a server imports no package but leakhunt."""
    code = (
        "import sys, json; before = set(sys.modules)\n"
        f"{statement}\n"
        "print(json.dumps(sorted({m.partition('.')[0] for m in set(sys.modules) - before})))\n"
    )
    done = run(sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}")
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout))
    assert imported - set(sys.stdlib_module_names) <= {"leakhunt"}
    assert "leakhunt" in imported


def test_the_middleware_does_not_import_the_command_line() -> None:
    """An agent leaves commands, reports, prover and collectors alone."""
    code = (
        "import sys, leakhunt; leakhunt.Agent()\n"
        "print(*(m for m in sys.modules if m.startswith('leakhunt.')))"
    )
    done = run(sys.executable, "-c", code)
    assert "leakhunt.agent.heartbeat" in done.stdout
    layers = {module.split(".")[1] for module in done.stdout.split()}
    assert not layers & {"cli", "report", "prove", "collect", "adapters"}


def imported_packages(file: Path) -> set[str]:
    """Top-level names of everything that a file imports anywhere, for types, too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


ADAPTED = {"socketio": {"socketio", "engineio"}, "websockets_sync": {"websockets"}}
"""What an adapter imports, where that has another name than the adapter."""

EMBEDDED = sorted(
    file
    for layer in ("agent", "adapters", "core")
    for file in (PACKAGE / layer).rglob("*.py")
    if file.parent != PACKAGE / "core" / "heap"  # the analysis of heap files: no agent imports it
)


@pytest.mark.parametrize("file", EMBEDDED, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_what_is_embedded_needs_the_standard_library_only(file: Path) -> None:
    """core, agent and adapters import the standard library; an adapter its framework, too."""
    allowed = {"leakhunt", *sys.stdlib_module_names}
    if file.parent.name == "adapters":
        allowed |= ADAPTED.get(file.stem, {file.stem})
    assert imported_packages(file) <= allowed


# --- what is installed ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the files that are here now."""
    out = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out)
    assert done.returncode == 0, done.stderr
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of commands of a fresh environment: the wheel and nothing else."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, symlinks=True, with_pip=False)
    installed = run(
        sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "--quiet",
        "--no-index", wheel,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    return home / "bin"


def test_the_wheel_needs_nothing(wheel: Path) -> None:
    """The distribution is leakhunt-ws, and without an extra it has no dependency."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [path] = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(path).decode())
    assert metadata["Name"] == "leakhunt-ws"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    needs = metadata.get_all("Requires-Dist") or []
    assert [need for need in needs if "extra ==" not in need] == []
    assert {"cli", "heap", "all"} <= set(metadata.get_all("Provides-Extra") or [])
    assert "leakhunt/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {
        "leakhunt", path.partition("/")[0],
    }  # fmt: skip


def test_the_bare_command_knows_its_version(bare: Path) -> None:
    """Without any extra `leakhunt --version` works, whatever the directory."""
    done = run(bare / "leakhunt", "--version", cwd=bare, PYTHONPATH="")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"leakhunt \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize("args", [["conns", "1"], ["--help"], ["prove"], []])
def test_the_bare_command_says_what_to_install(bare: Path, args: list[str]) -> None:
    """Without its extra every command says in one line what to install, with exit code 2."""
    done = run(bare / "leakhunt", *args, cwd=bare, PYTHONPATH="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("pip install 'leakhunt-ws[cli]'\n")
    assert done.stderr.count("\n") == 1


def test_the_bare_middleware_imports(bare: Path) -> None:
    """The middleware works in that environment."""
    code = "import leakhunt; print(leakhunt.Agent(evict_after=5.0))"
    done = run(bare / "python", "-c", code, cwd=bare, PYTHONPATH="")
    assert done.stdout.startswith("<leakhunt.Agent"), done.stderr


# --- files ----------------------------------------------------------------------------------


def tracked_files() -> list[Path]:
    listed = run("git", "ls-files", "-z")
    if listed.returncode:
        pytest.fail(f"not a checkout: {listed.stderr}")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


FORBIDDEN = {
    "a package registry's host": re.compile(
        r"(pypi|pythonhosted|npmjs|anaconda)\.(org|com)\b|artifactory|devpi", re.I
    ),
    "a path of one machine": re.compile(r"/(work|home|root|Users)/[\w.]+|/tmp/(venv|x)\b"),
    "a credential": re.compile(r"https?://[^\s/:@]+:[^\s/@]+@|-----BEGIN [A-Z ]*PRIVATE KEY"),
}


def test_no_file_names_a_machine_or_a_registry() -> None:
    """No tracked file names a registry's host, a path of somebody's machine, or a secret."""
    found = []
    for file in tracked_files():
        if file == Path(__file__) or not file.is_file():
            continue
        text = file.read_text("utf-8", "replace")
        for what, pattern in FORBIDDEN.items():
            if match := pattern.search(text):
                line = text[: match.start()].count("\n") + 1
                found.append(f"{file.relative_to(ROOT)}:{line}: {what}: {match[0]}")
    assert found == []


def test_every_pinned_version_is_exact() -> None:
    """constraints.txt holds name==version, one per package, and nothing else."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin), pin
    names = [re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins]
    assert len(names) == len(set(names))


def test_everything_that_is_installed_is_pinned() -> None:
    """Each dependency that pyproject.toml names, for users or for us, has its pin."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = [
        *project["dependency-groups"]["dev"],
        *(need for extra in project["project"]["optional-dependencies"].values() for need in extra),
        *project["build-system"]["requires"],
    ]
    pinned = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    }
    names = {re.split(r"[\[<>=!~; ]", need, maxsplit=1)[0].lower() for need in wanted}
    assert names - pinned == {"leakhunt-ws"}


def test_the_changelog_has_this_version_or_what_comes() -> None:
    """The changelog speaks of what is being built."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "## [Unreleased]" in text or "## [0." in text


# --- CI -------------------------------------------------------------------------------------

REPORT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.test_a" name="test_runs"/>
<testcase classname="tests.test_a" name="test_one[x]"><skipped message="needs root"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("allowed", "code", "said"),
    [
        ("# nothing\n", 1, "tests.test_a::test_one[x]: needs root"),
        ("tests.test_a::test_one[x]  # containers have no root\n", 0, ""),
        ("tests.test_a::test_one*  # containers have no root\n", 0, ""),
        ("tests.test_a::test_on  # too short\n", 1, "test_one[x]"),
        ("tests.test_a::test_one[x]\n", 1, "no reason"),
    ],
)
def test_ci_fails_when_a_test_is_skipped(
    tmp_path: Path, allowed: str, code: int, said: str
) -> None:
    """A skipped test fails CI unless it is listed with its reason."""
    (tmp_path / "report.xml").write_text(REPORT)
    (tmp_path / "allowed.txt").write_text(allowed)
    done = run(
        sys.executable, ROOT / ".ci" / "check_skips.py",
        tmp_path / "report.xml", tmp_path / "allowed.txt",
    )  # fmt: skip
    assert done.returncode == code
    assert said in done.stdout + done.stderr


def test_ci_fails_without_a_report(tmp_path: Path) -> None:
    """No report means that the tests did not come to their end."""
    (tmp_path / "allowed.txt").write_text("")
    done = run(
        sys.executable, ROOT / ".ci" / "check_skips.py", tmp_path / "none", tmp_path / "allowed.txt"
    )
    assert done.returncode == 1
    assert "is missing" in done.stdout
