"""``oyez view``: the views of services, their versions, and the way back to the one before."""

from __future__ import annotations

import click
from rich.text import Text

from oyez.cli.invocation import json_option, refuse, run_async
from oyez.cli.printing import UNKNOWN, Cell, print_json, print_line, print_table, warn
from oyez.inspection.views import ViewVersion, as_value, list_views
from oyez.project import Project
from oyez.runtime.views import go_back


@click.group("view")
def command() -> None:
    """List views and their versions, or go back to the version before.

    These commands open the service's store themselves, whether the service runs or not.
    """


@command.command("list")
@click.argument("service", required=False)
@json_option
def list_(service: str | None, as_json: bool) -> None:
    """List the versions of each view, and how far they are behind.

    A version that is filling takes the place of the active one when it has read as far, and has
    no parked events and no dead letters.
    """
    project = Project.open()
    names = [project.settings(service).name] if service else list(project.config.services)
    found = run_async(list_views(project, names))
    for gap in found.gaps:
        if gap.cause == "configuration" or (service is not None and gap.part == "store"):
            refuse(gap)
        warn(str(gap))
    if as_json:
        print_json(as_value(found))
        return
    if not found.versions:
        print_line("no views")
        return
    titles = "SERVICE VIEW VERSION STATE BEHIND PARKED DEAD NOTE".split()
    print_table(titles, [_row(each) for each in found.versions])


def _row(each: ViewVersion) -> list[Cell]:
    style = {"active": "green", "filling": "yellow"}.get(each.state, "")
    return [
        each.service,
        each.view,
        each.version,
        Text(each.state, style=style),
        UNKNOWN if each.behind is None else each.behind,
        each.parked,
        each.dead,
        _note(each),
    ]


def _note(each: ViewVersion) -> Cell:
    if each.missing:
        return Text(f"retention has deleted its first {each.missing} records", style="red")
    return None if each.read else "no replica reads it"


@command.command("back")
@click.argument("service")
@click.argument("view")
def back(service: str, view: str) -> None:
    """Show the version of VIEW before the active one again.

    The version that was active stays as it is until a newer one takes its place. A version that no
    replica reads stands still: deploy the code that has it as well.
    """
    project = Project.open()

    async def go() -> int:
        async with project.opened_store(service) as store:
            return await go_back(store, view, project.ambient.now())

    print_line(f"{view} shows version {run_async(go())}")
