"""``oyez topology``: publishers and handlers of events, as a table, a drawing or JSON."""

from __future__ import annotations

import click
from rich.text import Text

from oyez.cli.invocation import json_option, run_async
from oyez.cli.printing import Cell, print_json, print_line, print_table, warn, write
from oyez.inspection.drawing import mermaid, svg
from oyez.inspection.form import escape
from oyez.inspection.lint import CODES, lint
from oyez.inspection.lint import as_value as lint_as_value
from oyez.inspection.lint.keyed import write_record
from oyez.inspection.lint.live import look
from oyez.inspection.lint.sarif import sarif
from oyez.inspection.lint.system import Fault
from oyez.inspection.topology import Topology, as_value, survey
from oyez.project import Project

_DRAWN = ("table", "mermaid", "svg", "json")
_CHECKED = ("text", "json", "github", "sarif")


@click.command("topology")
@click.option(
    "--format",
    "style",
    type=click.Choice([*_DRAWN, *_CHECKED]),
    help=f"{', '.join(_DRAWN)}; with --check: {', '.join(_CHECKED)}.  [default: the first]",
)
@click.option("--check", is_flag=True, help="Look for faults between services instead.")
@click.option("--strict", is_flag=True, help="With --check: warnings fail too.")
@click.option("--live", is_flag=True, help="With --check: look into the brokers and stores, too.")
@click.option(
    "--record",
    is_flag=True,
    help="With --check: record the fields of keyed state in contracts/state.json, to be compared "
    "with from then on.",
)
@json_option
@click.pass_context
def command(
    context: click.Context,
    style: str | None,
    check: bool,
    strict: bool,
    live: bool,
    record: bool,
    as_json: bool,
) -> None:
    """Show the publishers and handlers of each event type.

    They are read from the services' code; no service needs to run. With --check, faults between
    services are listed instead, and the exit code is 1 if one of them is an error.
    """
    style = "json" if as_json else style
    if style is not None and style not in (_CHECKED if check else _DRAWN):
        raise click.UsageError(f"--format {style} is {'not ' if check else ''}for --check")
    if check:
        _check(context, style, strict=strict, live=live, record=record)
        return
    for option, given in (("strict", strict), ("live", live), ("record", record)):
        if given:
            raise click.UsageError(f"--{option} is for --check")
    topology = survey(Project.open())
    for gap in topology.gaps:
        warn(str(gap))
    if style == "json":
        print_json(as_value(topology))
    elif style == "mermaid":
        write(mermaid(topology))
    elif style == "svg":
        write(svg(topology))
    else:
        _print(topology)


def _check(
    context: click.Context, style: str | None, *, strict: bool, live: bool, record: bool
) -> None:
    project = Project.open()
    services, failed = project.services()
    for name, reason in failed.items():
        warn(f"{name} can't be imported and is left out: {reason}")
    if record:
        write_record(project.config, services)
    standing, gaps = run_async(look(project, services)) if live else (None, [])
    for gap in gaps:
        warn(str(gap))
    faults = lint(project, services, standing)
    if style == "json":
        print_json(lint_as_value(faults, failed))
    elif style == "sarif":
        print_json(sarif(faults, failed, CODES))
    elif style == "github":
        _print_annotations(faults)
    else:
        _print_faults(faults)
    if failed or gaps or any(strict or each.level == "error" for each in faults):
        context.exit(1)


def _print_annotations(faults: list[Fault]) -> None:
    for each in faults:
        place = f"file={each.file},line={each.line}," if each.file else ""
        text = f"{each.text}: {each.remedy}".replace("%", "%25").replace("\n", "%0A")
        write(f"::{each.level} {place}title={each.code}::{text}\n")


def _print_faults(faults: list[Fault]) -> None:
    for each in faults:
        place = f"{each.file}:{each.line}: " if each.file else ""
        print_line(
            Text.assemble(
                (f"{each.code} {each.level:<8}", _STYLES[each.level]),
                escape(f"{place}{each.text} → {each.remedy}"),
            )
        )
    errors = sum(each.level == "error" for each in faults)
    print_line(Text(f"{_count(errors, 'error')}, {_count(len(faults) - errors, 'warning')}"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_STYLES = {"warning": "yellow", "error": "bold red"}


def _print(topology: Topology) -> None:
    rows: list[list[Cell]] = []
    for flow in topology.flows:
        handlers = [f"{service}.{handler}" for service, handler in flow.handlers]
        rows.append(
            [
                flow.type,
                ", ".join(flow.publishers) or Text("nobody", style="yellow"),
                ", ".join(handlers) or Text("nobody", style="yellow"),
            ]
        )
    print_table(("TYPE", "PUBLISHED BY", "HANDLED BY"), rows)
    for label, names in (
        ("nobody handles", topology.unhandled),
        ("no known publisher", topology.unpublished),
    ):
        if names:
            print_line(Text(f"{label}: {escape(', '.join(names))}", style="yellow"))
