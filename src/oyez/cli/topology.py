"""``oyez topology``: publishers and handlers of events, as a table, a drawing or JSON."""

from __future__ import annotations

import click
from rich.text import Text

from oyez.cli.invocation import json_option
from oyez.cli.printing import Cell, print_json, print_line, print_table, warn, write
from oyez.inspection.drawing import mermaid, svg
from oyez.inspection.form import escape
from oyez.inspection.topology import Topology, as_value, survey
from oyez.project import Project


@click.command("topology")
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "mermaid", "svg", "json"]),
    default="table",
    help="What to print.",
)
@json_option
def command(style: str, as_json: bool) -> None:
    """Show the publishers and handlers of each event type.

    They are read from the services' code; no service needs to run.
    """
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
