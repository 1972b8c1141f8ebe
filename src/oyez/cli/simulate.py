"""``oyez simulate``: crash testing of a project's services, repeatable by a seed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from oyez.cli.invocation import json_option
from oyez.cli.printing import Cell, print_json, print_line, print_table
from oyez.errors import OyezError
from oyez.project import Project

if TYPE_CHECKING:
    from oyez.simulation.search import Found


@click.command("simulate")
@click.option("--seeds", default=1_000, show_default=True, type=click.IntRange(1), metavar="N")
@click.option("--seed", type=click.IntRange(0), metavar="S", help="Run this seed alone.")
@click.option("--first", default=0, type=click.IntRange(0), metavar="S", help="The first seed.")
@click.option(
    "--jobs", default=os.cpu_count() or 1, type=click.IntRange(1, 64), help="Processes at once."
)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after these.")
@click.option("--faults", metavar="NAME,…", help="Let these alone go wrong; `none` for nothing.")
@click.option("--broker", metavar="NAME,…", help="Run as on these alone; by default on each kind.")
@click.option(
    "--replay",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Begin as a flow of production did: a file of `oyez flow ID --export FILE`.",
)
@click.option("--replicas", default=2, show_default=True, type=click.IntRange(1, 8))
@json_option
def command(
    seeds: int,
    seed: int | None,
    first: int,
    jobs: int,
    minutes: float | None,
    faults: str | None,
    broker: str | None,
    file: Path | None,
    replicas: int,
    as_json: bool,
) -> None:
    """Run the services in virtual time with crashes, lost answers and other faults.

    The scenario is `async def scenario(sim)` of simulate.py, beside oyez.toml; without one, events
    are drawn from the contracts. It ends with 1 if anything does not hold for a seed, and tells the
    shortest story of it that was found.
    """
    from oyez.simulation.broker import KINDS
    from oyez.simulation.project import Simulated
    from oyez.simulation.replay import replaying
    from oyez.simulation.search import search
    from oyez.simulation.world import FAULTS

    replayed = None if file is None else replaying(file)
    plan = Simulated(Project.open()).plan(replayed)
    plan.replicas = replicas
    if faults is not None:
        plan.faults = [] if faults == "none" else _names(faults, FAULTS, "--faults")
    if broker is not None:
        plan.brokers = _names(broker, KINDS, "--broker")
    wanted = range(first, first + seeds) if seed is None else range(seed, seed + 1)
    found = search(plan, wanted, jobs=jobs if seed is None else 0, minutes=minutes)
    again = ""
    if found.shrunk is not None:
        replay = None if file is None else str(file)
        asked = {"--faults": faults, "--broker": broker, "--replay": replay}
        again = _again(found.shrunk.seed, asked, replicas)
    if as_json:
        print_json(_value(found, again))
    else:
        _print(found, again)
    if found.shrunk is not None:
        raise click.exceptions.Exit(1)
    if found.unreached and seed is None:
        raise OyezError(
            f"in {found.seeds} seeds never reached: {', '.join(found.unreached)}: what is not "
            "reached is not tested; let the scenario do more of it"
        )


def _names(text: str, known: Collection[str], option: str) -> list[str]:
    """Return the names in the value of an option. Raises BadParameter for an unknown one."""
    names = [each.strip() for each in text.split(",")]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise click.BadParameter(
            f"unknown: {', '.join(unknown)}; there are: {', '.join(known)}", param_hint=option
        )
    return names


def _again(seed: int, asked: Mapping[str, str | None], replicas: int) -> str:
    parts = [f"oyez simulate --seed {seed}"]
    parts += [f"{option} {shlex.quote(value)}" for option, value in asked.items() if value]
    parts += [f"--replicas {replicas}"] if replicas != 2 else []
    return " ".join(parts)


def _value(found: Found, again: str) -> dict[str, Any]:
    value: dict[str, Any] = {
        "seeds": found.seeds,
        "seconds": found.seconds,
        "virtual_seconds": found.virtual,
        "unreached": found.unreached,
        "failure": None,
    }
    if found.shrunk is not None:
        value["failure"] = {
            "seed": found.shrunk.seed,
            "what": found.shrunk.failures,
            "story": [msgspec.to_builtins(each) for each in found.shrunk.story],
            "again": again,
        }
    return value


def _print(found: Found, again: str) -> None:
    rate = found.seeds / found.seconds if found.seconds else 0.0
    ran = f"{found.seeds} seeds, {found.virtual:,.0f} virtual seconds in {found.seconds:.1f} s"
    at_once = f", {found.jobs} at once" if found.jobs > 1 else ""
    print_line(f"{ran} ({rate:.1f} a second{at_once})")
    if found.shrunk is None:
        print_line("nothing found")
        return
    from oyez.simulation.story import rows

    print_line(f"\nseed {found.shrunk.seed} fails:")
    for each in found.shrunk.failures:
        print_line(f"  {each}")
    print_line("")
    table: list[list[Cell]] = [
        [time, node, f"{'! ' if fault else '  '}{what}"]
        for time, node, what, fault in rows(found.shrunk.story)
    ]
    print_table(["TIME", "NODE", "WHAT"], table)
    print_line(f"\nagain: {again}")
