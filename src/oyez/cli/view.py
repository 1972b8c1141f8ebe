"""``oyez view``: the views of services, their versions, drift and beginning, and the way back."""

from __future__ import annotations

from collections import Counter

import click
from rich.text import Text

from oyez import tables
from oyez.cli.gaps import refuse
from oyez.cli.invocation import actor, json_option, run_async, why_option
from oyez.cli.printing import UNKNOWN, Cell, print_json, print_line, print_table, warn
from oyez.cli.replay import reports_of, run_to_end
from oyez.errors import BrokerRefused, HistoryMissing, OyezError, ReplayRefused
from oyez.handler import Handler
from oyez.inspection.beginning import begin, lost
from oyez.inspection.drift import as_value as as_json_value
from oyez.inspection.drift import kind_of, verify
from oyez.inspection.views import ViewVersion, as_value, list_views
from oyez.ports import Broker, Store
from oyez.project import Project
from oyez.runtime.audit import Actor, record
from oyez.runtime.replay import Chosen, Replay, Stretch, ends
from oyez.runtime.views import go_back, lacks, prepare, show, versions_in
from oyez.view import ViewType

ROUNDS = 5
"""How often a version is filled up to the present, when another one has gone on meanwhile."""
_SHOWN = 20
"""The number of differing fields that are printed as a table."""


@click.group("view")
def command() -> None:
    """List views, compare one with the history, let one begin after a backfill, or go back.

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


@command.command("verify")
@click.argument("service")
@click.argument("view")
@click.option(
    "--sample", type=click.IntRange(1, 100_000_000), default=1_000, help="About so many rows."
)
@click.option("--key", help="The row of this key alone.")
@click.option("--repair", is_flag=True, help="Write what the history says into rows that differ.")
@why_option
@json_option
def verify_(
    service: str,
    view: str,
    sample: int,
    key: str | None,
    repair: bool,
    why: str,
    as_json: bool,
) -> None:
    """Compare rows of VIEW with the history, and print the fields that differ.

    It reads the whole history, and folds the events of some keys in memory. Exit code 1 if any row
    differs, and was not repaired.
    """
    by = actor(why) if repair else None
    found = run_async(verify(Project.open(), service, view, sample=sample, key=key, repair=by))
    for gap in found.gaps:
        warn(str(gap))
    if as_json:
        print_json(as_json_value(found))
    elif found.differences:
        shown = found.differences[:_SHOWN]
        print_table(
            "KEY FIELD HISTORY VIEW".split(),
            [
                [each.key, each.field or "(row)", repr(each.expected), repr(each.found)]
                for each in shown
            ],
        )
    rows = len({each.key for each in found.differences})
    if rows > found.repaired:
        remedy = "use --repair, or raise its version, so that it is filled again"
        if repair:
            remedy = "they changed meanwhile, or history is missing: verify them again"
        raise OyezError(
            f"{rows - found.repaired} of {found.rows} rows of {view} version {found.version} "
            f"differ from the history: {remedy}"
        )
    if rows and not as_json:
        print_line(f"{rows} of {found.rows} rows are repaired")
        return
    if not as_json:
        print_line(f"{found.rows} rows of {view} version {found.version} are what the history says")


@command.command("build")
@click.argument("service")
@click.argument("view")
@click.option("--swap", "swap_in", is_flag=True, help="Then let SQL and readers have this version.")
@why_option
def build(service: str, view: str, swap_in: bool, why: str) -> None:
    """Fill the version of VIEW that the code has, and end when it has read all there is.

    A job to run with the new code before it is deployed, beside the replicas with the old one. The
    first replica with the new code goes on from there, and lets the version take its place; with
    --swap this command does. It goes on where it was interrupted. Exit codes: 0 done, 1 events
    failed or it could not be swapped.
    """
    run_async(_build(Project.open(), service, view, swap_in=swap_in, by=actor(why)))


async def _build(project: Project, service: str, view: str, *, swap_in: bool, by: Actor) -> None:
    system = project.config.system.name
    code = project.service(project.settings(service).name)
    kind = kind_of(code, view)
    handler = code.views[kind]
    async with project.opened_store(service) as store, project.opened_broker(service) as broker:
        active = await _prepare(project, service, kind, handler, store, broker, by)
        for _ in range(ROUNDS):
            failed: Counter[str] = Counter()
            replay = Replay(
                kind.name,
                [handler],
                await ends(broker, system, Chosen(folds=(handler,)), Stretch()),
                Stretch(),
                system=system,
                service=service,
                broker=broker,
                store=store,
                ambient=project.ambient,
                reports=reports_of(service, failed),
                reader=kind.name,
            )
            try:
                await run_to_end(replay, what=f"{view} version {kind.version}")
            except click.Abort:
                warn("interrupted: the same command goes on from here")
                raise
            except ReplayRefused as error:
                raise OyezError(f"{error}, which goes on with it") from error
            found = await lacks(store.fetch, view, kind.version, active)
            if found.get("dead"):
                raise OyezError(
                    f"{found['dead']} events of version {kind.version} failed, so it can't take "
                    f"its place: see `oyez dead list {service}`"
                )
            now = project.ambient.now()
            whole = await show(store, kind, now, by=by) if swap_in else not found
            if whole:
                break
        else:
            if swap_in:
                raise OyezError(
                    f"not swapped: version {active} goes on meanwhile. The first replica with "
                    f"version {kind.version} lets it take its place"
                )
        (rows,) = await store.fetch(tables.COUNT_STATE, {"kind": kind.name})
    shown = " and is shown" if swap_in else ""
    print_line(f"{view} version {kind.version} has {rows['rows']} rows{shown}")


async def _prepare(
    project: Project,
    service: str,
    kind: ViewType,
    handler: Handler,
    store: Store,
    broker: Broker,
    by: Actor,
) -> int:
    """Make the table of the version; return the active one. Refuse what can't be built."""
    view, version = kind.view, kind.version
    if not broker.capabilities.history:
        raise BrokerRefused(
            f"a version is filled from the history, and this broker keeps none: {view} takes what "
            "is published from its service's first start on"
        )
    known = versions_in(await store.fetch(tables.VIEW_MARKS, {})).get(view)
    active = known.active if known else version
    if active > version:
        raise OyezError(f"version {active} of {view} is active, and the code has version {version}")
    now = project.ambient.now()
    await record(store, by, "view.build", f"view {view}", now, {"version": version})
    await prepare(store, [kind], project.ambient)
    asked = {"reader": kind.name, "now": project.ambient.now()}
    (living,) = await store.fetch(tables.LIVE_READERS, asked)
    if living["living"]:
        raise OyezError(
            f"a running replica of {service} fills version {version} of {view} already: see "
            f"`oyez view list {service}`"
        )
    gone = await lost(project, handler, kind, store, broker)
    for (stream, partition), count in gone.items():
        raise HistoryMissing(
            f"{view} can't be filled: retention has deleted the first {count} records of "
            f"{stream}[{partition}]: see `oyez view begin {service} {view}`"
        )
    return active


@command.command("begin")
@click.argument("service")
@click.argument("view")
@why_option
def begin_(service: str, view: str, why: str) -> None:
    """Let VIEW begin behind what retention has deleted, where a backfill stands for it.

    First let each service whose history is missing announce what it has: `oyez backfill OWNER EVENT
    --for SERVICE`. The view begins where these backfills did, and is filled from there on; nothing
    is done, with the reason, unless they have ended and all that came since is still there.
    """
    begun = run_async(begin(Project.open(), service, view, by=actor(why)))
    if not begun:
        print_line(f"{view} lacks nothing of its history")
        return
    for (stream, partition), position in sorted(begun.items()):
        print_line(f"{view} reads {stream}[{partition}] after {position}")


@command.command("back")
@click.argument("service")
@click.argument("view")
@why_option
def back(service: str, view: str, why: str) -> None:
    """Show the version of VIEW before the active one again.

    The version that was active stays as it is until a newer one takes its place. A version that no
    replica reads stands still: deploy the code that has it as well.
    """
    project = Project.open()
    by = actor(why)

    async def go() -> int:
        async with project.opened_store(service) as store:
            return await go_back(store, view, project.ambient.now(), by=by)

    print_line(f"{view} shows version {run_async(go())}")
