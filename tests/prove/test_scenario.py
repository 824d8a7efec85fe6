"""Scenario files and options: what is read, and how a mistake is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from leakhunt.errors import ScenarioError
from leakhunt.prove.scenario import (
    Churn,
    Scenario,
    from_mapping,
    load_scenario,
    override,
    require_target,
    split_deaths,
)

PROBES = Path(__file__).parents[2] / "probes"


@pytest.mark.parametrize("path", sorted(PROBES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_are_valid(path: Path) -> None:
    """Each scenario in probes/ loads, under its own name."""
    assert load_scenario(path).name == path.stem


def test_a_file(tmp_path: Path) -> None:
    """Keys are the options' names, with their spellings of values."""
    path = tmp_path / "x.toml"
    path.write_text(
        'death = ["stall", "slow"]\nwithin = "500ms"\nclients = 7\nslow-rate = "20kB/s"\n'
        'header = { Cookie = "a=b" }\ncommand = "python s.py --port {port}"\nsent-at = "t"\n'
        'answer = ["0=40", "2=3=4"]\n[churn]\nwave = 5\nevery = "1s"\nfor = 10\n'
    )
    scenario = load_scenario(path)
    assert scenario.deaths == ("stall", "slow")
    assert (scenario.within_s, scenario.clients, scenario.slow_bytes_s) == (0.5, 7, 20_000)
    assert scenario.headers == (("Cookie", "a=b"),)
    assert scenario.answers == (("0", "40"), ("2", "3=4"))
    assert scenario.command == ("python", "s.py", "--port", "{port}")
    assert scenario.churn == Churn(wave=5, every_s=1.0, for_s=10.0)
    assert scenario.total_clients == 50
    assert scenario.name == "x"


def test_options_win_over_the_file() -> None:
    """What is given on the command line replaces what the file says, and nothing else."""
    base = from_mapping({"death": "kill", "within": 9, "clients": 3})
    changed = override(base, {"within": "1s"}, source="options")
    assert (changed.within_s, changed.clients, changed.deaths) == (1.0, 3, ("kill",))


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"deth": "kill"}, "unknown key 'deth'"),
        ({"death": "murder"}, "death='murder' is not one of: kill, leave, reset, half-close"),
        ({"death": []}, "death=[] is not a name or a list of names"),
        ({"within": "soon"}, "within='soon' is not a duration such as 30"),
        ({"within": 0}, "within=0 is not at least 100ms"),
        ({"clients": 0}, "clients=0 is not a whole number from 1 to"),
        ({"clients": 2.5}, "clients=2.5 is not a whole number"),
        ({"clients": True}, "clients=True is not a whole number"),
        ({"controls": -1}, "controls=-1 is not a whole number"),
        ({"load": "heavy"}, "load='heavy' is not one of: idle, push, chat"),
        ({"tier": "magic"}, "tier='magic' is not one of: userns, netns, relay"),
        ({"url": "http://x/"}, "url='http://x/' is not a WebSocket address"),
        ({"url": "ws://"}, "is not a WebSocket address"),
        ({"header": ["Cookie"]}, "header='Cookie' is not NAME=VALUE"),
        ({"header": ["A=b\r\nX: y"]}, "is not a valid HTTP header"),
        ({"answer": ["2"]}, "answer='2' is not NAME=VALUE"),
        ({"answer": "2=3"}, "answer='2=3' is not a table or a list of NAME=VALUE"),
        ({"answer": {"2": 3}}, "answer '2'=3 is not text"),
        ({"answer": ["=3"]}, "answer='=3' answers every message"),
        ({"slow-rate": "fast"}, "slow-rate='fast' is not a rate above zero"),
        ({"tls-insecure": "yes"}, "tls-insecure='yes' is not true or false"),
        ({"command": "'"}, "cannot be split"),
        ({"command": []}, "is not a command line"),
        ({"churn": 3}, "churn=3 is not a table"),
        ({"churn": {"waves": 3}}, "unknown key 'churn.waves'"),
        ({"churn": {"wave": 0}}, "churn.wave=0 is not a whole number"),
        ({"churn": {"every": "5s", "for": "2s"}}, "churn.for=2s is shorter than"),
        ({"clients": 1, "death": ["kill", "stall"]}, "1 clients cannot die in 2 ways"),
    ],
)
def test_a_mistake_is_named(table: dict[str, object], complaint: str) -> None:
    """The complaint has the key, the value, and what is accepted."""
    with pytest.raises(ScenarioError) as raised:
        from_mapping(table, source="x.toml")
    assert str(raised.value).startswith("x.toml: ")
    assert complaint in str(raised.value)


def test_unreadable_files(tmp_path: Path) -> None:
    """A file that is missing or no TOML is said to be so."""
    with pytest.raises(ScenarioError, match="cannot be read: No such file"):
        load_scenario(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("death = ")
    with pytest.raises(ScenarioError, match="is not TOML"):
        load_scenario(tmp_path / "bad.toml")


def test_one_server_is_named() -> None:
    """Exactly one of command, pid and url must say which server is meant."""
    with pytest.raises(ScenarioError, match="no server was named"):
        require_target(Scenario())
    with pytest.raises(ScenarioError, match="both a command and --pid"):
        require_target(Scenario(command=("x",), pid=1))
    with pytest.raises(ScenarioError, match="which only a command"):
        require_target(Scenario(url="ws://127.0.0.1:{port}/"))
    require_target(Scenario(command=("x",), url="ws://127.0.0.1:{port}/"))


def test_deaths_share_the_clients() -> None:
    """Clients are split evenly, the first deaths get the odd ones, nobody is lost."""
    assert split_deaths(8, ("kill", "stall", "mute")) == [("kill", 3), ("stall", 3), ("mute", 2)]
    assert split_deaths(1, ("kill", "stall")) == [("kill", 1)]
