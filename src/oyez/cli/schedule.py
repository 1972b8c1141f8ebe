"""``oyez schedule``: what a service is to do later, and cancelling scheduled events."""

from __future__ import annotations

import click

from oyez.cli.invocation import actor, json_option, run_async, why_option
from oyez.cli.printing import Cell, local_time, print_json, print_line, print_table, warn
from oyez.errors import NotCreated
from oyez.inspection.schedule import Later, as_value, cancel, list_later
from oyez.project import Project
from oyez.runtime.audit import Actor

_service = click.argument("service")


@click.group("schedule")
def command() -> None:
    """List what a service is to do later, or cancel an event of it.

    These commands open the service's store themselves, whether the service runs or not.
    """


@command.command("list")
@_service
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=100, help="How many, the next one first."
)
@json_option
def list_(service: str, limit: int, as_json: bool) -> None:
    """List scheduled events, schedules and timers, the next one first."""
    project = Project.open()
    name = project.settings(service).name
    found, more = run_async(_list(project, name, limit))
    if as_json:
        print_json({"later": [as_value(each) for each in found], "more": more})
        return
    if not found:
        print_line("nothing is scheduled")
        return
    rows: list[list[Cell]] = [
        [local_time(each.due), each.what, each.kind, each.key, each.name, each.id] for each in found
    ]
    print_table(["DUE", "WHAT", "TYPE", "KEY", "NAME", "ID"], rows)
    if more:
        warn(f"there are more: --limit {limit * 10}")


@command.command("cancel")
@_service
@click.argument("event", metavar="ID|NAME")
@why_option
def cancel_(service: str, event: str, why: str) -> None:
    """Cancel a scheduled event, by its id or by its name as it is listed."""
    project = Project.open()
    name = project.settings(service).name
    run_async(_cancel(project, name, event, actor(why)))
    print_line(f"cancelled: {name} {event}")


async def _list(project: Project, name: str, limit: int) -> tuple[list[Later], bool]:
    try:
        async with project.opened_store(name) as store:
            return await list_later(store, limit)
    except NotCreated:
        return [], False


async def _cancel(project: Project, name: str, event: str, by: Actor) -> None:
    async with project.opened_store(name) as store:
        await cancel(store, event, project.ambient.now(), by=by)
