"""``oyez replay SERVICE``: a service's history, handled once more beside the running service."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TimeRemainingColumn,
)

from oyez import tables
from oyez.cli.invocation import actor, json_option, run_async, why_option
from oyez.cli.printing import print_json, print_line, print_table, shorten, warn
from oyez.envelope import parse_time
from oyez.errors import BrokerRefused, InvalidEvent, OyezError, ReplayRefused
from oyez.inspection import history
from oyez.listening import stop_signals
from oyez.ports import BEGINNING, Broker, Position, Record, Store
from oyez.project import Project
from oyez.runtime.audit import Actor
from oyez.runtime.comparison import Comparison, Difference
from oyez.runtime.process import provided
from oyez.runtime.rehearsal import Rehearsal
from oyez.runtime.replay import (
    Chosen,
    Place,
    Replay,
    Stretch,
    begin_replay,
    choose,
    deleted,
    ends,
    forget,
    kind_under,
    swap,
)
from oyez.runtime.reports import Reports
from oyez.service import Service
from oyez.signals import EventDead, Signal, Signals, Trouble
from oyez.stores.sqlite import SqliteStore

SHOWN = 20
"""The limit of differences that are shown."""
WIDTH = 60
"""The limit of characters of a value that is shown."""
PAGE = 1_000
"""Records of the service's stream that are held in memory."""
SWAPS = 5
"""How often a replay that is to be swapped in reads on, when the service has done so meanwhile."""
GRACE = 10.0
"""Seconds that work in flight has to finish when it is interrupted."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    service: str
    handlers: Sequence[str]
    begin: str
    stretch: Stretch
    name: str
    announce: bool
    swap: bool
    as_json: bool
    by: Actor


@click.command("replay")
@click.argument("service")
@click.option("--from", "begin", metavar="TIME|POSITION|beginning", help="The first event.")
@click.option("--to", "until", metavar="TIME|POSITION|now", default="now", help="The last event.")
@click.option("--handler", "handlers", multiple=True, help="Only this handler; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Write nothing; compare with what the service has.")
@click.option("--name", help="A name for this replay, to continue it or to keep several.")
@click.option("--outward", is_flag=True, help="Also safe handlers that act outside of the store.")
@click.option("--announce", is_flag=True, help="Publish the events that handlers return.")
@click.option(
    "--swap", "swap_in", is_flag=True, help="Then put the new state in the place of the old."
)
@click.option("--forget", "forget_it", is_flag=True, help="Delete what the replay --name has left.")
@why_option
@json_option
def command(
    service: str,
    begin: str | None,
    until: str,
    handlers: tuple[str, ...],
    dry_run: bool,
    name: str | None,
    outward: bool,
    announce: bool,
    swap_in: bool,
    forget_it: bool,
    why: str,
    as_json: bool,
) -> None:
    """Handle a service's history once more, beside the running service.

    Handlers whose only effects are State and the events they return make that state anew, under
    kinds of their own (Parcel@NAME); the service's rows are not touched. Other handlers are called
    again if they are declared replay="safe". The same command goes on where it was interrupted.

    TIME is as in RFC 3339, a POSITION applies to each partition. Exit codes: 0 done, 1 rows differ
    or events failed, 2 refused.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise click.BadParameter("expected up to 40 of a-z, 0-9 and '-'", param_hint="--name")
    project = Project.open()
    if forget_it:
        if name is None:
            raise click.UsageError("--forget deletes what a replay has left: add its --name.")
        run_async(_forget(project, project.settings(service).name, name, actor(why)))
        return
    if begin is None:
        raise click.UsageError("Missing option '--from'.")
    if swap_in and (dry_run or begin != "beginning" or until != "now"):
        raise click.UsageError("--swap is for a replay of everything: only with --from beginning.")
    if dry_run and announce:
        raise click.UsageError("--dry-run writes nothing: leave out --announce.")
    asked = _Asked(
        service=project.settings(service).name,
        handlers=handlers,
        begin=begin,
        stretch=_stretch(begin, until),
        name=name or sha256(repr((sorted(handlers), begin)).encode()).hexdigest()[:8],
        announce=announce,
        swap=swap_in,
        as_json=as_json,
        by=actor(why),
    )
    found = project.service(service)
    chosen = choose(found, handlers, outward=outward)
    if swap_in and chosen.safe:
        raise ReplayRefused(
            "--swap is for handlers that make state: name them with --handler, without "
            + ", ".join(handler.name for handler in chosen.safe)
        )
    for why in chosen.refused.values():
        warn(f"left out: {why}")
    if dry_run:
        code = run_async(_dry_run(project, asked, found, chosen))
    else:
        code = run_async(_replay(project, asked, found, chosen))
    raise click.exceptions.Exit(code)


def _stretch(begin: str, until: str) -> Stretch:
    fields: dict[str, Any] = {}
    for text, option, at, position in (
        (begin, "--from", "since", "first"),
        (until, "--to", "until", "last"),
    ):
        if text.isdecimal():
            fields[position] = int(text)
        elif text != ("beginning" if option == "--from" else "now"):
            try:
                fields[at] = parse_time(text).timestamp()
            except InvalidEvent as error:
                word = "beginning" if option == "--from" else "now"
                raise click.BadParameter(
                    f'expected a time as in RFC 3339, a position or "{word}", found {text!r}',
                    param_hint=option,
                ) from error
    return Stretch(**fields)


# -- a replay --------------------------------------------------------------------------------------


async def _replay(project: Project, asked: _Asked, service: Service, chosen: Chosen) -> int:
    failed: Counter[str] = Counter()
    broker_opened = project.opened_broker(asked.service)
    async with broker_opened as broker, project.opened_store(asked.service) as store:
        await _places(project, asked, broker, chosen)
        handlers = ", ".join(sorted(each.name for each in (*chosen.folds, *chosen.safe)))
        of = f"{handlers} from {asked.begin}"
        await begin_replay(store, asked.name, of, project.ambient, by=asked.by)
        async with AsyncExitStack() as resources:
            given = await provided(service, {}, resources) if chosen.safe else {}
            for _ in range(SWAPS if asked.swap else 1):
                places = await _places(project, asked, broker, chosen)
                replay = Replay(
                    asked.name,
                    chosen.under(asked.name),
                    _as_far(places, await _positions(store)) if asked.swap else places,
                    asked.stretch,
                    system=project.config.system.name,
                    service=asked.service,
                    broker=broker,
                    store=store,
                    ambient=project.ambient,
                    reports=reports_of(asked.service, failed),
                    provided=given,
                    announce=asked.announce,
                )
                try:
                    await run_to_end(replay)
                except click.Abort:
                    warn("interrupted: the same command goes on from here")
                    raise
                system = project.config.system.name
                if not asked.swap or await swap(
                    store, asked.name, chosen, system, project.ambient, by=asked.by
                ):
                    break
            else:
                raise OyezError(
                    f"not swapped: {asked.service} goes on meanwhile, or has events parked. Call "
                    f"this again with --name {asked.name} while it is quiet or stopped"
                )
        rows = {}
        for kind in chosen.kinds:
            name = kind.name if asked.swap else kind_under(kind.name, asked.name)
            (row,) = await store.fetch(tables.COUNT_STATE, {"kind": name})
            rows[name] = row["rows"]
    _print_replay(asked, replay, rows, failed)
    return 1 if failed else 0


async def _forget(project: Project, service: str, name: str, by: Actor) -> None:
    async with project.opened_store(service) as store:
        await forget(store, name, project.ambient, by=by)


def _print_replay(
    asked: _Asked, replay: Replay, rows: Mapping[str, int], failed: Mapping[str, int]
) -> None:
    if asked.as_json:
        value = {"name": asked.name, "rows": rows, "withheld": replay.withheld, "failed": failed}
        print_json(value)
        return
    done, _ = replay.progress
    print_line(f"replay {asked.name}: {done} records of {len(replay.passages)} partitions")
    for kind, count in rows.items():
        print_line(f"{kind}: {count} rows")
    for kind, count in sorted(replay.withheld.items()):
        print_line(f"withheld: {count} of {kind}")
    for handler, count in sorted(failed.items()):
        print_line(f"failed: {count} of {handler}, see `oyez dead list {asked.service}`")


# -- a dry run -------------------------------------------------------------------------------------


class _Found(msgspec.Struct, kw_only=True):
    """What a dry run has found."""

    shown: list[Difference] = []
    """The first differences."""
    kinds: dict[str, Counter[str]] = {}
    """The numbers of rows of each kind of state."""
    announced: Counter[str] | None = None
    """The numbers of events that safe handlers announce; None without such handlers."""
    withheld: Counter[str] = msgspec.field(default_factory=Counter)
    failed: Counter[str] = msgspec.field(default_factory=Counter)
    """The numbers of events that failed, by handler."""
    letters: int = 0
    """The number of dead letters of these handlers in the service."""

    @property
    def differ(self) -> int:
        """The number of differences."""
        counts = [*self.kinds.values(), self.announced or Counter()]
        return sum(each[what] for each in counts for what in ("added", "missing", "changed"))

    def note(self, difference: Difference) -> None:
        """Show the difference, unless there are many already."""
        if len(self.shown) < SHOWN:
            self.shown.append(difference)


async def _dry_run(project: Project, asked: _Asked, service: Service, chosen: Chosen) -> int:
    outward = [handler.name for handler in chosen.safe if not handler.transactional]
    for name in outward:
        warn(f"left out: {name} acts outside of the store, which a dry run can't undo")
    safe = tuple(handler for handler in chosen.safe if handler.transactional)
    chosen = msgspec.structs.replace(chosen, safe=safe)
    if not (chosen.folds or chosen.safe):
        raise ReplayRefused(
            "a dry run undoes everything, and none of these handlers allows that: "
            + ", ".join(outward)
        )
    found = _Found()
    broker_opened = project.opened_broker(asked.service)
    async with (
        broker_opened as broker,
        project.opened_store(asked.service) as live,
        _scratch(project) as scratch,
    ):
        # No further than the service itself: what it has not handled it can't have.
        reached = await _positions(live)
        if chosen.folds:
            folds = msgspec.structs.replace(chosen, safe=())
            places = _as_far(await _places(project, asked, broker, folds), reached)
            await _compare(project, asked, folds, places, found, broker, live, scratch)
        if chosen.safe:
            safe_ones = msgspec.structs.replace(chosen, folds=())
            places = _as_far(await _places(project, asked, broker, safe_ones), reached)
            await _rehearse(
                project, asked, service, safe_ones, places, found, broker, live, scratch
            )
        for handler in (*chosen.folds, *chosen.safe):
            (row,) = await live.fetch(tables.LETTERS_OF, {"reader": "", "handler": handler.name})
            found.letters += row["letters"]
    _print_dry_run(asked, found)
    return 1 if found.differ or found.failed else 0


async def _compare(
    project: Project,
    asked: _Asked,
    chosen: Chosen,
    places: Mapping[Place, Position],
    found: _Found,
    broker: Broker,
    live: Store,
    scratch: Store,
) -> None:
    """Make the state anew in the scratch store, and compare it with the service's."""
    comparison = Comparison(
        chosen.folds,
        system=project.config.system.name,
        service=asked.service,
        live=live,
        scratch=scratch,
        ambient=project.ambient,
    )
    await comparison.prepare()
    replay = Replay(
        asked.name,
        chosen.folds,
        places,
        asked.stretch,
        system=project.config.system.name,
        service=asked.service,
        broker=broker,
        store=scratch,
        ambient=project.ambient,
        reports=reports_of(asked.service, found.failed),
        outside=comparison.leave_out,
    )

    async def copy() -> None:
        await comparison.copy(chosen.kinds)
        now = await _positions(live)
        await replay.reach({place: now.get(place, BEGINNING) for place in places})

    await run_to_end(replay, copy)
    found.withheld = replay.withheld
    for kind in chosen.kinds:
        count = found.kinds[kind.name] = Counter(added=0, missing=0, changed=0)
        before = (comparison.rows, comparison.left_out)
        async for each in comparison.differences(kind):
            count[each.what] += 1
            found.note(each)
        count["compared"] = comparison.rows - before[0]
        count["left_out"] = comparison.left_out - before[1]


async def _rehearse(
    project: Project,
    asked: _Asked,
    service: Service,
    chosen: Chosen,
    places: Mapping[Place, Position],
    found: _Found,
    broker: Broker,
    live: Store,
    scratch: Store,
) -> None:
    """Call the safe handlers again, undo that, and compare what they announce."""
    system = project.config.system.name
    count = found.announced = Counter(added=0, missing=0, changed=0)
    async with AsyncExitStack() as resources:
        rehearsal = Rehearsal(
            chosen.safe,
            service.handlers,
            system=system,
            service=asked.service,
            broker=broker,
            live=live,
            scratch=scratch,
            ambient=project.ambient,
            reports=reports_of(asked.service, found.failed),
            provided=await provided(service, {}, resources),
        )
        resources.callback(rehearsal.close)
        await rehearsal.prepare()
        stopped = asyncio.Event()
        with stop_signals(stopped.set):
            await _remember(broker, f"{system}.{asked.service}", rehearsal, stopped)
            with _progress("dry run") as told:
                done, total = 0, await _number(broker, places)
                async for _, record in history.merged([(None, broker, places)], []):
                    if stopped.is_set():
                        raise click.Abort
                    done += 1
                    if done % 100 == 0:
                        told(done, max(done, total))
                    if asked.stretch.covers(record):
                        for each in await rehearsal.perform(record):
                            count[each.what] += 1
                            found.note(each)
    count["events"] = rehearsal.events
    count["same"] = rehearsal.same
    count["left_out"] = rehearsal.left_out


async def _remember(
    broker: Broker, stream: str, rehearsal: Rehearsal, stopped: asyncio.Event
) -> None:
    """Read what the service has announced, as far as it is still there."""
    places = await history.ends(broker, [stream])
    for place, start in enumerate(await broker.starts(stream)):
        if start:
            first = [batch async for batch in history.read(broker, (stream, place), start + 1)]
            since = first[0].records[0].time if first else math.inf
            rehearsal.since = max(rehearsal.since, since)
    page: list[Record] = []
    async for _, record in history.merged([(None, broker, places)], []):
        if stopped.is_set():
            raise click.Abort
        page.append(record)
        if len(page) >= PAGE:
            await rehearsal.remember(page)
            page = []
    await rehearsal.remember(page)


async def _number(broker: Broker, places: Mapping[Place, Position]) -> int:
    """Return about how many records there are."""
    total = 0
    for stream in {stream for stream, _ in places}:
        asked = {partition: BEGINNING for of, partition in places if of == stream}
        total += sum((await broker.lag(stream, asked)).values())
    return total


def _print_dry_run(asked: _Asked, found: _Found) -> None:
    if asked.as_json:
        print_json(
            {
                "kinds": found.kinds,
                "announced": found.announced,
                "differences": [msgspec.to_builtins(each) for each in found.shown],
                "withheld": found.withheld,
                "failed": found.failed,
                "dead_letters": found.letters,
            }
        )
        return
    _print_differences(found.shown)
    for name, count in found.kinds.items():
        print_line(
            f"{name}: {count['compared']} rows compared: {count['changed']} changed, "
            f"{count['added']} added, {count['missing']} missing"
        )
        if count["left_out"]:
            print_line(f"{name}: {count['left_out']} left out, as other events change them too")
    for kind_name, number in sorted(found.withheld.items()):
        print_line(f"not announced: {number} of {kind_name}")
    if (told := found.announced) is not None:
        print_line(
            f"announced by safe handlers for {told['events']} events: {told['same']} the same, "
            f"{told['changed']} changed, {told['added']} added, {told['missing']} missing; they "
            "saw the rows of today"
        )
        if told["left_out"]:
            print_line(
                f"{told['left_out']} events left out: what was announced for them is deleted, or "
                "not published yet"
            )
    for name, number in sorted(found.failed.items()):
        print_line(f"failed: {number} of {name}")
    if found.differ and found.letters:
        print_line(
            f"the service has {found.letters} dead letters of these handlers, as `oyez dead` shows"
        )


def _as_far(
    places: Mapping[Place, Position], reached: Mapping[Place, Position]
) -> dict[Place, Position]:
    """Return the ends, no further than the positions that a service has reached."""
    return {place: min(end, reached.get(place, BEGINNING)) for place, end in places.items()}


async def _positions(store: Store) -> dict[Place, Position]:
    """Return the positions of the service itself."""
    rows = await store.fetch(tables.CURSORS, {"reader": ""})
    return {(row["stream"], row["partition"]): row["position"] for row in rows}


@asynccontextmanager
async def _scratch(project: Project) -> AsyncIterator[Store]:
    with TemporaryDirectory(prefix="oyez-replay-") as folder:
        store = SqliteStore(Path(folder) / "replay.db", project.ambient, durable=False)
        try:
            await store.open()
            yield store
        finally:
            await store.close()


def _print_differences(shown: Sequence[Difference]) -> None:
    rows = []
    for each in shown:
        fields = ", ".join(
            f"{name}: {shorten(repr(live), WIDTH)} → {shorten(repr(made), WIDTH)}"
            for name, (live, made) in each.fields.items()
        )
        rows.append([each.kind, each.key, each.what, fields or None])
    if rows:
        print_table(["KIND", "KEY", "DIFFERENCE", "FIELDS (SERVICE → REPLAY)"], rows)
        print_line("")


# -- both ------------------------------------------------------------------------------------------


async def _places(
    project: Project, asked: _Asked, broker: Broker, chosen: Chosen
) -> dict[Place, Position]:
    """Return the partitions with their ends; refuse what the broker has not, or no longer has."""
    if not broker.capabilities.history:
        raise BrokerRefused("a replay is made of the history, and this broker keeps none")
    places = await ends(broker, project.config.system.name, chosen, asked.stretch)
    gone = await deleted(broker, places, asked.stretch)
    if gone:
        (stream, partition), count = max(gone.items(), key=lambda each: each[1])
        raise ReplayRefused(
            f"retention has deleted the beginning of {len(gone)} partitions, such as the first "
            f"{count} records of {stream}[{partition}]: begin after them, with --from"
        )
    return places


def reports_of(service: str, failed: Counter[str]) -> Reports:
    """Return reports that print troubles and failed events, and count the latter by handler."""

    def heard(signal: Signal) -> None:
        if isinstance(signal, Trouble):
            warn(f"{signal.part}: {signal.error}")
        elif isinstance(signal, EventDead):
            failed[signal.handler or "(unreadable)"] += 1
            if failed.total() <= SHOWN:
                warn(f"{signal.handler}: event {signal.event_id} failed: {signal.reason}")

    signals = Signals()
    signals.listen(heard)
    return Reports(service, signals)


async def run_to_end(
    replay: Replay, then: Callable[[], Awaitable[None]] | None = None, what: str = "replay"
) -> None:
    """Run the replay to its end, with a bar, and ``then``. Raises Abort on SIGTERM or Ctrl-C."""
    stopped = asyncio.Event()
    with stop_signals(stopped.set), _progress(what) as told:

        async def work() -> None:
            await replay.start()
            await replay.finished(lambda: told(*replay.progress))
            if then is not None:
                await then()

        working = asyncio.create_task(work(), name="replay")
        stop = asyncio.create_task(stopped.wait(), name="stop")
        try:
            await asyncio.wait([working, stop], return_when=asyncio.FIRST_COMPLETED)
            interrupted = not working.done()
            working.cancel()
            await asyncio.wait([working])
        finally:
            stop.cancel()
            await replay.stop(GRACE)
    if interrupted:
        raise click.Abort
    working.result()


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal; yields what is told (done, of how many)."""
    output = Console(stderr=True)
    if not output.is_terminal:
        yield lambda done, total: None
        return
    columns = (BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
