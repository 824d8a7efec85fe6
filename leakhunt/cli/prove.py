"""``leakhunt prove``: let clients die on purpose, and check what the server does about it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from leakhunt.cli.prove_progress import Display
from leakhunt.core.proof import Comparison, Proof
from leakhunt.errors import LeakhuntError, NotTestable, ScenarioError
from leakhunt.prove import signals
from leakhunt.prove.compare import compare, prove_or_say_why, untestable
from leakhunt.prove.deaths import DEATHS
from leakhunt.prove.scenario import (
    Scenario,
    load_scenario,
    override,
    require_target,
)
from leakhunt.prove.target import tier_target
from leakhunt.prove.vanish.isolate import run_isolated
from leakhunt.prove.vanish.tiers import Target as TierTarget
from leakhunt.prove.vanish.tiers import TierChoice, choose_tier
from leakhunt.report.console import stdout_console

Writer = Callable[[Proof | Comparison], str]

_DEATH_HELP: Final = "How clients die; may be repeated. " + "; ".join(
    f"{name}: {death.about}" for name, death in DEATHS.items()
)
_STDOUT: Final = "-"


def prove(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SCENARIO.toml] [-- COMMAND ...]",
            help="A file with settings; and the command that starts the server, with its port"
            " in $PORT or for {port}.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where clients connect: ws:// or wss://."),
    ] = None,
    pid: Annotated[int | None, typer.Option(metavar="PID", help="A server that runs.")] = None,
    clients: Annotated[int | None, typer.Option(help="Clients that die (500).")] = None,
    controls: Annotated[int | None, typer.Option(help="Clients that must survive (25).")] = None,
    death: Annotated[
        list[str] | None, typer.Option(metavar="DEATH", help=_DEATH_HELP, show_default=False)
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(
            metavar="LOAD",
            help="idle, push (the server writes by itself) or chat (clients write, too).",
        ),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="By when a dead client must be gone (30s)."),
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(metavar="MESSAGE", help="What each client says first; {id} is its number."),
    ] = None,
    answer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BEGINNING=REPLY",
            help="What clients reply to text messages that begin so; may be repeated.",
            show_default=False,
        ),
    ] = None,
    chat_message: Annotated[
        str | None, typer.Option(metavar="MESSAGE", help="What chatting clients say.")
    ] = None,
    chat_interval: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How often they do (1s).")
    ] = None,
    slow_rate: Annotated[
        str | None, typer.Option(metavar="RATE", help="How fast slow clients read (20kB/s).")
    ] = None,
    sent_at: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="JSON key of the server's monotonic time stamp, to measure latencies.",
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="A header of the opening request.", show_default=False),
    ] = None,
    tls_ca: Annotated[
        str | None, typer.Option(metavar="FILE", help="Certificates to trust.")
    ] = None,
    tls_insecure: Annotated[
        bool, typer.Option("--tls-insecure", help="Accept any certificate.")
    ] = False,
    tier: Annotated[
        str | None,
        typer.Option(
            metavar="TIER",
            help="How clients vanish: userns, netns or relay. By default the best that works.",
        ),
    ] = None,
    start_within: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="By when a command must listen (30s)."),
    ] = None,
    settle: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Pause before the first death (1s)."),
    ] = None,
    compare_: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="'CMD A' 'CMD B'",
            help="Run the same on two servers; the second is the one that must hold.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the result as JSON (- is stdout).")
    ] = None,
    junit: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write it as JUnit XML.")
    ] = None,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write it as Markdown, for a CI summary.")
    ] = None,
) -> None:
    """Let clients die on purpose and check from outside that the server drops them.

    Exit code 0: proven. 1: disproven, and the worst offender is named. 2: it could not be
    tested, or the options make no sense.

    Examples:

        leakhunt prove --death stall --death vanish --within 30s -- python server.py --port {port}

        leakhunt prove --url wss://localhost:8443/chat --tls-ca ca.pem --load push --clients 200

        leakhunt prove probes/churn.toml --compare "python old.py {port}" "python new.py {port}"
    """
    scenario = _scenario(
        words or [],
        {
            "url": url,
            "pid": pid,
            "clients": clients,
            "controls": controls,
            "death": death or None,
            "load": load,
            "within": within,
            "join": join,
            "answer": answer or None,
            "chat-message": chat_message,
            "chat-interval": chat_interval,
            "slow-rate": slow_rate,
            "sent-at": sent_at,
            "header": header or None,
            "tls-ca": tls_ca,
            "tls-insecure": tls_insecure or None,
            "tier": tier,
            "start-within": start_within,
            "settle": settle,
        },
    )
    outputs = _outputs(json, junit, markdown)
    commands = _commands(scenario, compare_)
    if commands is None:
        require_target(scenario)
    raise typer.Exit(_carry_out(scenario, commands, outputs))


def _scenario(words: list[str], options: dict[str, Any]) -> Scenario:
    """The file, if the first word is one, the command, and the options above both."""
    scenario = Scenario()
    if words and words[0].endswith(".toml"):
        scenario, words = load_scenario(words[0]), words[1:]
    given = {key: value for key, value in options.items() if value is not None}
    if words:
        given["command"] = words
    if "pid" in given or ("url" in given and not words):
        # Another server than the file's own command is meant.
        scenario = replace(scenario, command=())
    return override(scenario, given, source="options")


def _commands(
    scenario: Scenario, compared: tuple[str, str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    if compared is None:
        return None
    if scenario.command or scenario.pid is not None:
        raise ScenarioError("--compare brings its own two commands: no other server can be named")
    one, other = (
        override(Scenario(), {"command": command}, source="--compare").command
        for command in compared
    )
    return one, other


def _carry_out(
    scenario: Scenario,
    commands: tuple[tuple[str, ...], tuple[str, ...]] | None,
    outputs: list[tuple[Path | None, Writer]],
) -> int:
    choice = None
    if "vanish" in scenario.deaths:
        target = (
            tier_target(scenario)
            if commands is None
            else TierTarget(starts_command=True, url=scenario.url)
        )
        try:
            choice = choose_tier(target, scenario.tier)
        except NotTestable as error:
            return _report(untestable(scenario, None, error), outputs)

    def job() -> int:
        return _guarded(lambda: _report(_run(scenario, commands, choice), outputs))

    if choice is not None and choice.enter is not None:
        return run_isolated(choice.enter, job)
    return job()


def _run(
    scenario: Scenario,
    commands: tuple[tuple[str, ...], tuple[str, ...]] | None,
    choice: TierChoice | None,
) -> Proof | Comparison:
    with Display() as display:
        if commands is None:
            return signals.run(prove_or_say_why(scenario, choice, on_progress=display.of()))
        return signals.run(compare(scenario, commands, choice, on_progress=display.of))


def _guarded(work: Callable[[], int]) -> int:
    """Errors as the frame of the command line shows them, also in a forked child."""
    from leakhunt.cli.say import print_error

    try:
        return work()
    except signals.Interrupted as interrupted:
        sys.stderr.write(f"{interrupted}; everything was cleaned up\n")
        return interrupted.exit_code
    except KeyboardInterrupt:
        # Before or after the run itself: nothing had been started, or all was over.
        return 128 + signal.SIGINT
    except LeakhuntError as error:
        print_error(error)
        return 2


def _outputs(
    json: str | None, junit: str | None, markdown: str | None
) -> list[tuple[Path | None, Writer]]:
    """Where to write what, checked before anything is run; ``None`` is stdout."""
    from leakhunt.report.junit import junit_xml
    from leakhunt.report.markdown import markdown as markdown_text
    from leakhunt.report.prove_json import result_json

    outputs: list[tuple[Path | None, Writer]] = []
    for option, place, writer in (
        ("--json", json, result_json),
        ("--junit", junit, junit_xml),
        ("--markdown", markdown, markdown_text),
    ):
        if place is None:
            continue
        path = None if place == _STDOUT else Path(place).absolute()
        if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise ScenarioError(f"{option}={place!r}: the directory cannot be written to")
        outputs.append((path, writer))
    if sum(path is None for path, _writer in outputs) > 1:
        raise ScenarioError("only one of --json, --junit and --markdown can go to stdout")
    return outputs


def _report(result: Proof | Comparison, outputs: list[tuple[Path | None, Writer]]) -> int:
    for path, writer in outputs:
        text = writer(result)
        if path is None:
            sys.stdout.write(text)
        else:
            try:
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                raise ScenarioError(f"{path} cannot be written: {error.strerror}") from error
    if all(path is not None for path, _writer in outputs):
        _print(result)
    sys.stdout.flush()
    return result.exit_code


def _print(result: Proof | Comparison) -> None:
    from leakhunt.report.prove_terminal import comparison_report, proof_report

    report = proof_report(result) if isinstance(result, Proof) else comparison_report(result)
    stdout_console().print(report)
