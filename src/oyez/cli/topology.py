"""``oyez topology``: publishers and handlers of events, as a table, a drawing or JSON."""

from __future__ import annotations

import click
from rich.text import Text

from oyez.cli.invocation import json_option
from oyez.cli.printing import Cell, print_json, print_line, print_table, warn, write
from oyez.inspection.drawing import mermaid, svg
from oyez.inspection.form import escape
from oyez.inspection.lint import as_value as lint_as_value
from oyez.inspection.lint import lint
from oyez.inspection.topology import Topology, as_value, survey
from oyez.project import Project


@click.command("topology")
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "mermaid", "svg", "json", "github"]),
    help="What to print; github is for --check in a workflow.  [default: table]",
)
@click.option("--check", is_flag=True, help="Look for faults between services instead.")
@click.option("--strict", is_flag=True, help="With --check: warnings fail too.")
@json_option
@click.pass_context
def command(
    context: click.Context, style: str | None, check: bool, strict: bool, as_json: bool
) -> None:
    """Show the publishers and handlers of each event type.

    They are read from the services' code; no service needs to run. With --check, faults between
    services are listed instead, and the exit code is 1 if one of them is an error.
    """
    if check:
        _check(context, "json" if as_json else style, strict)
        return
    if strict or style == "github":
        raise click.UsageError(f"{'--strict' if strict else '--format github'} needs --check")
    topology = survey(Project.open())
    for gap in topology.gaps:
        warn(str(gap))
    if as_json or style == "json":
        print_json(as_value(topology))
    elif style == "mermaid":
        write(mermaid(topology))
    elif style == "svg":
        write(svg(topology))
    else:
        _print(topology)


def _check(context: click.Context, style: str | None, strict: bool) -> None:
    if style in ("mermaid", "svg"):
        raise click.UsageError(f"--check can't print {style}")
    faults, failed = lint(Project.open())
    for name, reason in failed.items():
        warn(f"{name} can't be imported and is left out: {reason}")
    if style == "json":
        print_json(lint_as_value(faults, failed))
    elif style == "github":
        for each in faults:
            place = f"file={each.file},line={each.line}," if each.file else ""
            text = f"{each.text}: {each.remedy}".replace("%", "%25").replace("\n", "%0A")
            write(f"::{each.level} {place}title={each.code}::{text}\n")
    else:
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
    if failed or any(strict or each.level == "error" for each in faults):
        context.exit(1)


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
