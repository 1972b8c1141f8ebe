"""``oyez audit``: what persons did to the services of a system."""

from __future__ import annotations

import click

from oyez.cli.gaps import refuse
from oyez.cli.invocation import json_option, run_async
from oyez.cli.printing import Cell, local_time, print_json, print_line, print_table, warn
from oyez.inspection.audit import as_value, list_audit
from oyez.project import Project


@click.command("audit")
@click.argument("service", required=False)
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=100, help="The newest first.")
@json_option
def command(service: str | None, limit: int, as_json: bool) -> None:
    """Show who did what to one service, or to all: the acts of commands and of the console."""
    project = Project.open()
    names = [project.settings(service).name] if service else list(project.config.services)
    found = run_async(list_audit(project, names, limit=limit))
    for gap in found.gaps:
        refuse(gap)
    if as_json:
        print_json({"acts": [as_value(name, act) for name, act in found.acts], "more": found.more})
        return
    if not found.acts:
        print_line("no acts")
        return
    rows: list[list[Cell]] = [
        [
            local_time(act.time),
            name,
            act.who,
            act.via,
            act.act,
            act.target,
            _change(act.before, act.after),
            act.reason or None,
        ]
        for name, act in found.acts
    ]
    print_table("TIME SERVICE WHO VIA ACT TARGET CHANGE REASON".split(), rows)
    if found.more:
        warn(f"there are more: --limit {limit * 10}")


def _change(before: dict[str, object], after: dict[str, object]) -> str | None:
    """Return what differs, on one line."""
    parts = [
        f"{name}: {before[name]} → {value}" if name in before else f"{name}: {value}"
        for name, value in after.items()
        if before.get(name) != value
    ]
    return ", ".join(parts) or None
