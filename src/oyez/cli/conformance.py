"""``oyez conformance``: whether a program in any language follows wire 1.0."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import click
import msgspec

from oyez.cli.invocation import json_option, run_async
from oyez.cli.printing import print_json, warn, write
from oyez.wire import RULES, SETS, Level, vectors


@click.group("conformance")
def command() -> None:
    """Try a program in any language against the rules of wire 1.0; or list these."""


@command.command("run")
@click.option("--level", type=click.Choice([level.value for level in Level]), required=True)
@click.option("--broker", required=True, help="Its URL, such as nats://127.0.0.1:4222.")
@click.option("--start", required=True, help="The command of the program, run without a shell.")
@click.option("--store-check", default="", help="A command that prints what the program has.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn.")
@click.option(
    "--kills",
    type=click.IntRange(0, 1000),
    default=5,
    show_default=True,
    help="How often it is killed under load.",
)
@click.option(
    "--patience",
    type=click.FloatRange(1.0, 600.0),
    default=15.0,
    show_default=True,
    help="Seconds without progress after which what has not come is lost.",
)
@click.option(
    "--proxy",
    default="",
    help="HOST:PORT=PORT, for a broker that tells its clients where to connect.",
)
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), help="JUnit's XML.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Markdown.")
@json_option
@click.pass_context
def run(
    context: click.Context,
    level: str,
    broker: str,
    start: str,
    store_check: str,
    seed: int,
    kills: int,
    patience: float,
    proxy: str,
    junit: Path | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Start the program, try it, and report each rule. Exits with 1 if one is broken.

    What the program has to do is in docs/wire/conformance.md.
    """
    from oyez.testing.conformance import Plan, Referee
    from oyez.testing.conformance.referee import proxy_of

    plan = Plan(
        level=Level(level),
        broker=broker,
        start=_words("--start", start),
        check=_words("--store-check", store_check) if store_check else (),
        seed=seed,
        kills=kills,
        patience=patience,
        proxy=proxy_of(proxy) if proxy else None,
    )
    referee = Referee(plan, lambda trial: None if as_json else warn(f"trial: {trial}"))
    verdict = run_async(referee.judge())
    if junit is not None:
        junit.write_text(verdict.junit())
    if report is not None:
        report.write_text(verdict.markdown())
    if as_json:
        print_json({"ok": verdict.ok, **msgspec.to_builtins(verdict)})
    else:
        write("\n".join(verdict.lines()))
    if not verdict.ok:
        context.exit(1)


@command.command("rules")
@click.option("--level", type=click.Choice([level.value for level in Level]))
@json_option
def rules(level: str | None, as_json: bool) -> None:
    """List the rules of wire 1.0, or those of a level."""
    found = {
        name: rule for name, rule in RULES.items() if level is None or Level(level) in rule.levels
    }
    if as_json:
        print_json(
            [
                {"rule": name, "levels": sorted(rule.levels), "what": rule.what}
                for name, rule in found.items()
            ]
        )
        return
    write("\n".join(f"{name:<4}{rule.what}" for name, rule in found.items()))


@command.command("vectors")
@click.argument("name", type=click.Choice(SETS))
def print_vectors(name: str) -> None:
    """Print a set of test vectors as JSON."""
    print_json(vectors(name))


def _words(option: str, text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}: {text!r}", param_hint=option) from error
    if not words or shutil.which(words[0]) is None:
        raise click.BadParameter(f"there is no program {text!r}", param_hint=option)
    return words
