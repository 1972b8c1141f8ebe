"""Handles a service's history once more, in a process of its own beside the running service.

A replay has positions, an inbox and parked events of its own, under its own reader, so that it goes
on where it stopped. It takes no part in the share of the service's replicas: whoever replays under
a name last owns its positions, and a former process is fenced.

Handlers whose only effects are keyed state and the events they return make that state anew, under
other kinds or in another store. Any other handler is called again only if it is declared
``replay="safe"``.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import cast

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.envelope import open_record, parse_time
from oyez.errors import InvalidEvent, ReplayRefused
from oyez.handler import Handler
from oyez.parameters import ContextParameter, EventParameter, StateParameter
from oyez.ports import (
    BEGINNING,
    Batch,
    Broker,
    Changes,
    Claim,
    Parameters,
    Position,
    Record,
    Store,
    Writes,
)
from oyez.runtime.audit import Actor, audited
from oyez.runtime.batches import SAVE, Batches
from oyez.runtime.calls import THREADS, Calls
from oyez.runtime.claims import CRASHES
from oyez.runtime.commits import Commits
from oyez.runtime.execution import Execution
from oyez.runtime.handlers import Handlers
from oyez.runtime.lane import Chains, Lane
from oyez.runtime.loop import Bell
from oyez.runtime.parked import ParkedEvents
from oyez.runtime.reading import Reading
from oyez.runtime.reports import Reports
from oyez.service import Service
from oyez.state import StateType
from oyez.transaction import Announcer, Origin, UnitOfWork

ROUND = 0.2
"""Seconds between two looks at the lanes, unless one comes to its end."""
QUIET = 1.0
"""Seconds without a record after which the broker is asked whether there is one left."""
LEAVING = "what is being forgotten"
"""The mark of a replay whose rows are being deleted."""

Place = tuple[str, int]
"""A stream and a partition."""


# -- which handlers --------------------------------------------------------------------------------


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The handlers of a replay."""

    folds: tuple[Handler, ...] = ()
    """Those that make keyed state anew."""
    safe: tuple[Handler, ...] = ()
    """Those that are called again as they are."""
    refused: Mapping[str, str] = {}
    """Why each of the others can't be replayed, by name."""

    @property
    def kinds(self) -> tuple[StateType, ...]:
        """The kinds of keyed state that are made anew."""
        found = [each.kind for handler in self.folds for each in handler.states]
        return tuple({kind.name: kind for kind in found if isinstance(kind, StateType)}.values())

    def under(self, name: str) -> tuple[Handler, ...]:
        """Return all its handlers, those of ``folds`` with their state under kinds of that name."""
        return tuple(_under(handler, name) for handler in self.folds) + self.safe


def choose(service: Service, names: Collection[str] = (), *, outward: bool = False) -> Chosen:
    """Return the handlers of these names, by default all that can be replayed.

    ``outward`` permits those without a transaction. Raises ReplayRefused when one of the named, or
    none at all, can be replayed.
    """
    known = {handler.name: handler for handler in service.handlers}
    for name in names:
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise ReplayRefused(f"{service.name} has no handler {name!r}; there are: {there}")
    folds, safe = [], []
    refused: dict[str, str] = {}
    for handler in known.values():
        if names and handler.name not in names:
            continue
        why = _objection(handler)
        if why is None:
            why = _incomplete(handler, service.handlers, names)
            if why is None:
                folds.append(handler)
        elif handler.replay == "safe":
            why = None
            if handler.transactional or outward:
                safe.append(handler)
            else:
                why = f"{handler.name} acts outside of the store: permit that with --outward"
        if why is not None:
            refused[handler.name] = why
    if refused and (names or not (folds or safe)):
        raise ReplayRefused("; ".join(refused.values()))
    if not (folds or safe):
        raise ReplayRefused(f"{service.name} has no handlers")
    return Chosen(folds=tuple(folds), safe=tuple(safe), refused=refused)


def _objection(handler: Handler) -> str | None:
    """Return why a handler does more than to change keyed state and to return events, or None."""
    name = handler.name
    declare = 'declare it replay="safe" if that changes nothing'
    if not handler.transactional:
        return f"{name} acts outside of the store, and would do so twice: {declare}"
    if handler.reads:
        return f"{name} writes to tables by itself, and would do so twice: {declare}"
    for each in handler.states:
        if not isinstance(each.kind, StateType):
            return f"{name} keeps {each.kind.name}, which is no State: it is not replayed"
    for parameter in handler.parameters:
        if not isinstance(parameter, EventParameter | ContextParameter | StateParameter):
            return f"{name} is given {parameter.declared.name}, and may act with it: {declare}"
    return None


def _incomplete(handler: Handler, every: Sequence[Handler], names: Collection[str]) -> str | None:
    """Return why the replay would not have all the handlers that make this one's state, or None."""
    kinds = {each.kind.name for each in handler.states}
    group: list[Handler] = []
    while True:
        found = [each for each in every if any(s.kind.name in kinds for s in each.states)]
        if len(found) == len(group):
            break
        group = found
        kinds = {state.kind.name for each in group for state in each.states}
    shared = ", ".join(sorted(kinds))
    for each in group:
        why = _objection(each)
        if why is not None:
            return (
                f"{handler.name} shares {shared} with {each.name}, which can't be replayed: {why}"
            )
    lacking = [each.name for each in group if names and each.name not in names]
    if lacking:
        asked = " ".join(f"--handler {name}" for name in lacking)
        return f"{handler.name} makes {shared} only together with {', '.join(lacking)}: add {asked}"
    return None


def _under(handler: Handler, name: str) -> Handler:
    parameters = tuple(
        each.under(kind_under(each.correlation.kind.name, name))
        if isinstance(each, StateParameter)
        else each
        for each in handler.parameters
    )
    states = tuple(each.correlation for each in parameters if each.correlation is not None)
    return msgspec.structs.replace(handler, parameters=parameters, states=states)


def kind_under(kind: str, name: str) -> str:
    """Return the kind of the rows that a replay of that name makes."""
    return f"{kind}@{name}"


# -- which events ----------------------------------------------------------------------------------


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """The part of history that is replayed; positions apply to each partition. All inclusive."""

    since: float = -math.inf
    """In seconds since 1970, as the broker recorded it."""
    first: Position = BEGINNING
    until: float = math.inf
    last: Position | None = None

    def covers(self, record: Record) -> bool:
        """Return whether the record is within it."""
        return (
            record.position >= self.first
            and (self.last is None or record.position <= self.last)
            and self.since <= record.time <= self.until
        )


async def ends(
    broker: Broker, system: str, chosen: Chosen, stretch: Stretch
) -> dict[Place, Position]:
    """Return the present end of each partition that the handlers read, within the stretch."""
    found: dict[Place, Position] = {}
    handlers = (*chosen.folds, *chosen.safe)
    for stream in await broker.streams():
        if any(handler.subscribes(stream, system) for handler in handlers):
            for partition, end in enumerate(await broker.ends(stream)):
                last = end if stretch.last is None else min(end, stretch.last)
                found[stream, partition] = last
    return found


async def deleted(
    broker: Broker, places: Mapping[Place, Position], stretch: Stretch
) -> dict[Place, Position]:
    """Return the partitions whose first records retention has deleted, with their number.

    Those where the stretch begins later are left out.
    """
    found: dict[Place, Position] = {}
    for stream in sorted({stream for stream, _ in places}):
        for partition, start in enumerate(await broker.starts(stream)):
            place = (stream, partition)
            if not start or place not in places or start < stretch.first:
                continue
            if not await _begins_before(broker, place, start, stretch.since):
                found[place] = start
    return found


async def _begins_before(broker: Broker, place: Place, start: Position, since: float) -> bool:
    """Return whether the first record that is left is older than ``since``."""
    if since == -math.inf:
        return False
    stream, partition = place
    if (await broker.ends(stream))[partition] <= start:
        return True  # nothing is left: what is deleted was old enough to be
    batches = cast(AsyncGenerator[Batch, None], broker.read(stream, partition, start))
    async with aclosing(batches):
        return (await anext(batches)).records[0].time < since


class Passage:
    """A consumer that passes on the records of a stretch; see `Consumer`.

    With a ``mark`` they bear it as what is handled once more.
    """

    def __init__(
        self,
        lane: Lane,
        batches: Batches,
        mark: str | None,
        stretch: Stretch,
        end: Position,
        *,
        ambient: Ambient,
        bell: Bell,
        over: asyncio.Event,
        outside: Callable[[Sequence[Record]], Awaitable[None]] | None,
    ) -> None:
        """``bell`` is rung at ``end``. There it waits for ``over``, unless there is an ``outside``.

        ``outside`` is given the records that are not within the stretch, also those after ``end``.
        """
        self.lane = lane
        self.end = end
        self.passed = 0
        """The number of records that it has seen up to its end."""
        self.reached = lane.position
        """The position of the last record that it has seen."""
        self.seen_at = ambient.monotonic()
        """The time of its last record, on the monotonic clock."""
        self._batches = batches
        self._mark = mark
        self._stretch = stretch
        self._ambient = ambient
        self._bell = bell
        self._over = over
        self._outside = outside

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return self.lane.position >= self.end

    def finish(self) -> None:
        """Record that there is nothing left up to its end."""
        self.lane.position = max(self.lane.position, self.end)

    async def take(self, batch: Batch) -> int:
        lane, events = self.lane, 0
        if self.done and self._outside is None:
            await self._over.wait()
            return 0
        inside: list[Record] = []
        others: list[Record] = []
        for record in batch.records:
            covered = record.position <= self.end and self._stretch.covers(record)
            (inside if covered else others).append(record)
        if others and self._outside is not None:
            await self._outside(others)
        if inside:
            mark = self._mark
            events = await self._batches.take(
                Batch([once_more(each, mark) for each in inside] if mark else inside)
            )
        last = batch.records[-1].position
        self.passed += sum(record.position <= self.end for record in batch.records)
        lane.position = max(lane.position, min(last, self.end))
        self.reached = max(self.reached, last)
        self.seen_at = self._ambient.monotonic()
        if self.done:
            self._bell.ring()
        elif self.seen_at - lane.saved_at > SAVE:
            await lane.save()
        return events


def once_more(record: Record, mark: str | None) -> Record:
    """Return the record of an event that is handled once more, as what bears the ``mark`` if any.

    A command that was there in time has not expired, however late it is replayed.
    """
    try:
        envelope = open_record(record.headers, record.data)
        expires = envelope.expires
        if expires is not None and record.time <= parse_time(expires, "expires").timestamp():
            expires = None
    except InvalidEvent:
        return record  # it becomes a dead letter, as it did before
    replayed = mark or envelope.replayed
    envelope = msgspec.structs.replace(envelope, replayed=replayed, expires=expires)
    return msgspec.structs.replace(record, headers=envelope.headers(), data=envelope.data)


# -- the replay ------------------------------------------------------------------------------------


class Withheld(Commits):
    """Commits without the announced events, which are counted by type."""

    def __init__(self, store: Store, announcer: Announcer, ambient: Ambient) -> None:
        super().__init__(store, announcer, ambient)
        self._announcing = announcer
        self.events: Counter[str] = Counter()
        """The number of withheld events, by type."""

    def unit(self, claim: Claim | None) -> UnitOfWork:
        """Return a unit of work whose events are not published."""
        unit = _Silent(self.store, self._announcing)
        unit.counted = self.events
        unit.changes.claim = claim
        return unit


class _Silent(UnitOfWork):
    counted: Counter[str]

    def _queue(self, sql: str, parameters: Parameters, wave: int) -> None:
        if sql is not tables.DELETE_NAMED:  # it clears the way for an event that is withheld
            super()._queue(sql, parameters, wave)

    async def commit(self) -> None:
        kinds = [each.headers["type"] for each in self.changes.announced]
        self.changes.announced = []
        await super().commit()
        self.counted.update(kinds)


class Replay:
    """A replay in this process."""

    def __init__(
        self,
        name: str,
        handlers: Sequence[Handler],
        places: Mapping[Place, Position],
        stretch: Stretch,
        *,
        system: str,
        service: str,
        broker: Broker,
        store: Store,
        ambient: Ambient,
        reports: Reports,
        provided: Mapping[type, object] | None = None,
        announce: bool = False,
        outside: Callable[[Sequence[Record]], Awaitable[None]] | None = None,
        reader: str | None = None,
    ) -> None:
        """``places``: the partitions, each with its end. ``outside`` as in `Passage`.

        Without ``announce``, the events that handlers publish are withheld. With a ``reader`` it
        goes on for that one, and nothing is marked as replayed: whoever reads for it later goes on
        after it.
        """
        self.reader = reader or reader_of(name)
        self._mark = None if reader else self.reader
        self.passages: dict[Place, Passage] = {}
        announcer = Announcer(system, service, ambient, lambda: broker.capabilities.max_bytes)
        self._withheld = Withheld(store, announcer, ambient)
        self._commits = Commits(store, announcer, ambient) if announce else self._withheld
        self._places = places
        self._stretch = stretch
        self._broker = broker
        self._store = store
        self._ambient = ambient
        self._reports = reports
        self._outside = outside
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{ambient.bits(32):08x}"
        self._handlers = Handlers(system, service, handlers)
        self._handlers.bind(provided or {})
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"{service}-replay")
        calls = Calls(self._handlers, ambient, self._threads)
        self._execution = Execution(calls, self._commits, ambient, reports)
        self._work, self._bell, self._over = Bell(ambient), Bell(ambient), asyncio.Event()
        self._lanes: dict[Place, Lane] = {}
        self._readings: list[Reading] = []
        self._records = 0
        self._parked = ParkedEvents(
            self._owner,
            self._handlers,
            self._execution,
            self._lanes,
            store=store,
            ambient=ambient,
            reports=reports,
            work=self._work,
        )

    @property
    def withheld(self) -> Counter[str]:
        """The number of events, by type, that were not published."""
        return self._withheld.events

    @property
    def progress(self) -> tuple[int, int]:
        """The number of records that it has passed, and about the number that it has to pass."""
        passed = sum(each.passed for each in self.passages.values())
        return passed, max(passed, self._records)

    async def start(self) -> None:
        """Take over the positions of this replay, and read on from there.

        Another process that replays under the same name is fenced.
        """
        for place in self._places:
            passage = await self._begin(place)
            if not passage.done:
                stream, partition = place
                lag = await self._broker.lag(stream, {partition: passage.lane.position})
                self._records += lag.get(partition, 0)
        for passage in self.passages.values():
            reading = Reading(
                passage.lane,
                passage,
                broker=self._broker,
                ambient=self._ambient,
                reports=self._reports,
            )
            self._readings.append(reading)
            reading.start()
        self._parked.start()

    async def finished(self, told: Callable[[], None] = lambda: None) -> None:
        """Wait until every partition is at its end, and no event is parked.

        ``told`` is called after each round. Raises ReplayRefused when another process has taken
        over.
        """
        while not all(each.done and not each.lane.chains.total for each in self._each()):
            await self._bell.wait(ROUND)
            await self._skip_gaps()
            told()

    async def reach(self, positions: Mapping[Place, Position]) -> None:
        """Wait until ``outside`` has been given every record up to these positions.

        Raises ReplayRefused when one of the partitions is none of this replay.
        """
        for place, position in positions.items():
            if position and place not in self.passages:
                raise ReplayRefused(f"stream {place[0]} was added meanwhile: replay again")
        for place, position in positions.items():
            each = self.passages.get(place)
            while each and each.reached < position and not await self._is_quiet(each):
                await self._bell.wait(ROUND)
                self._each()

    async def stop(self, grace: float) -> None:
        """Stop within ``grace`` seconds, and save every position. Safe when called twice."""
        self._over.set()
        await asyncio.gather(*(reading.stop() for reading in self._readings))
        await self._parked.stop(grace)
        self._threads.shutdown(wait=False, cancel_futures=True)
        unit = self._commits.unit(None)
        tx = unit.transaction(Origin())
        for lane in self._lanes.values():
            claim = lane.claim
            tx.execute(tables.RELEASE, **msgspec.structs.asdict(claim))
        await unit.commit()

    def _each(self) -> Collection[Passage]:
        """Return the passages. Raises ReplayRefused when one may take no more."""
        if any(lane.fenced for lane in self._lanes.values()):
            raise ReplayRefused(f"another process has taken over {self.reader}")
        if any(lane.doubtful for lane in self._lanes.values()):
            raise ReplayRefused(
                "the store did not answer while events were parked: give the same command again, "
                "and it goes on where it has stopped"
            )
        return self.passages.values()

    async def _skip_gaps(self) -> None:
        """Finish partitions whose last records are none of events, or were deleted meanwhile."""
        for each in self.passages.values():
            if not each.done and await self._is_quiet(each):
                each.finish()

    async def _is_quiet(self, passage: Passage) -> bool:
        """Return whether no record is left."""
        idle = self._ambient.monotonic() - passage.seen_at > QUIET
        if not (passage.lane.idle and idle):
            return False
        claim = passage.lane.claim
        passage.seen_at = self._ambient.monotonic()
        at = max(passage.reached, passage.lane.position)
        lag = await self._broker.lag(claim.stream, {claim.partition: at})
        return lag.get(claim.partition, 0) == 0

    async def _begin(self, place: Place) -> Passage:
        stream, partition = place
        cursor = {"stream": stream, "partition": partition, "reader": self.reader}
        unit = self._commits.unit(None)
        tx = unit.transaction(Origin())
        try:
            tx.execute(tables.ADD_CURSOR, **cursor)
            asked = {**cursor, "owner": self._owner, "now": self._ambient.now()}
            row = await tx.fetch_one(tables.CLAIM, **asked)
            await unit.commit()
        finally:
            await unit.rollback()
        if row is None:  # a replay has no lease, so that its claims never stand
            raise ReplayRefused(f"a running replica reads for {self.reader}")
        claim = Claim(
            stream=stream,
            partition=partition,
            owner=self._owner,
            epoch=row["epoch"],
            reader=self.reader,
        )
        rows = await self._store.fetch(tables.BLOCKED, cursor)
        position = row["position"]
        if self._outside is None:  # nobody wants what lies before
            position = max(position, min(self._stretch.first - 1, self._places[place]))
        lane = self._lanes[place] = Lane(
            claim,
            position,
            Chains({each["chain"]: each["parked"] for each in rows}, self._ambient),
            broker=self._broker,
            commits=self._commits,
            ambient=self._ambient,
            reports=self._reports,
            work=self._work,
            suspects=row["crashes"] > 0,
            careful=row["crashes"] >= CRASHES,
        )
        batches = Batches(
            lane,
            self._handlers,
            self._execution,
            broker=self._broker,
            commits=self._commits,
            ambient=self._ambient,
            reports=self._reports,
        )
        passage = self.passages[place] = Passage(
            lane,
            batches,
            self._mark,
            self._stretch,
            self._places[place],
            ambient=self._ambient,
            bell=self._bell,
            over=self._over,
            outside=self._outside,
        )
        return passage


# -- its rows --------------------------------------------------------------------------------------


def reader_of(name: str) -> str:
    """Return the reader of a replay, which its events and its announcements bear as well."""
    return f"{tables.REPLAY}{name}"


def mark_of(name: str) -> str:
    """Return the name of the row in ``oyez_migration`` that says what a replay is of."""
    return f"oyez:replay:{name}"


async def begin_replay(store: Store, name: str, of: str, ambient: Ambient, *, by: Actor) -> None:
    """Note what a replay is ``of``, before it begins or goes on.

    Raises ReplayRefused when there is one of this name that is of something else.
    """
    mark = mark_of(name)
    now = ambient.now()
    begun = store.begin()
    try:
        added = await begun.fetch(tables.MARK_FIRST, {"name": mark, "mark": of, "now": now}, [])
        (found,) = await begun.fetch(tables.ACTIVE, {"name": mark}, [])
        if not added and found["version"] != of:
            raise ReplayRefused(
                f"replay {name} is one of {found['version']}, not of {of}: give this one "
                "another --name, or --forget the former"
            )
        before = {} if added else {"of": of}
        audit = audited(by, "replay.begin", _target(name), now, before, {"of": of})
        await begun.commit(Changes(writes=[audit], time=now))
    finally:
        await begun.rollback()


async def swap(
    store: Store, name: str, chosen: Chosen, system: str, ambient: Ambient, *, by: Actor
) -> bool:
    """Put the rows that a replay has made in the place of the service's, in one transaction.

    False, with nothing changed, when the service has not read exactly as far as the replay, or has
    events parked for these handlers; then replay again. Raises ReplayRefused when the replay has
    dead letters.
    """
    reader = reader_of(name)
    begun = store.begin()
    try:
        live, made = [
            {
                (row["stream"], row["partition"]): row["position"]
                for row in await begun.fetch(tables.HOLD_CURSORS, {"reader": each}, [])
                if row["position"]
                and any(h.subscribes(row["stream"], system) for h in chosen.folds)
            }
            for each in ("", reader)
        ]
        (row,) = await begun.fetch(tables.DEAD_OF_READER, {"reader": reader}, [])
        if row["letters"]:
            raise ReplayRefused(
                f"not swapped: {row['letters']} events failed in the replay; redrive or discard "
                "them with `oyez dead`, and call this again"
            )
        parked = list(await begun.fetch(tables.PARKED, {"reader": reader}, []))
        for handler in chosen.folds:
            asked = {"handler": handler.name, "after": 0, "limit": 1}
            parked += await begun.fetch(tables.IN_FLIGHT, asked, [])
        if parked or live != made:
            return False
        now = ambient.now()
        kinds = {"kinds": [kind.name for kind in chosen.kinds]}
        writes = [
            *_leaving(name, now),
            audited(by, "replay.swap", _target(name), now, after=kinds),
        ]
        for kind in chosen.kinds:
            fresh = kind_under(kind.name, name)
            writes.append((tables.REPLACED_STATE, [{"kind": kind.name}]))
            writes.append((tables.RENAME_STATE, [{"kind": kind.name, "made": fresh}]))
        await begun.commit(Changes(writes=writes, time=now))
    finally:
        await begun.rollback()
    await _clear(store, name, ambient)
    return True


async def forget(store: Store, name: str, ambient: Ambient, *, by: Actor) -> None:
    """Delete everything of a replay. A process that replays it is fenced."""
    now = ambient.now()
    audit = audited(by, "replay.forget", _target(name), now)
    await store.begin().commit(Changes(writes=[*_leaving(name, now), audit], time=now))
    await _clear(store, name, ambient)


async def _clear(store: Store, name: str, ambient: Ambient) -> None:
    """Delete what a replay has left that nobody goes on with."""
    kinds = await store.fetch(tables.KINDS_LIKE, {"kind": kind_under("%", name)})
    reader = {"reader": reader_of(name)}
    for sql, asked in (
        *((tables.DELETE_STATE, row) for row in kinds),
        (tables.DELETE_INBOX, reader),
        (tables.DELETE_LETTERS, reader),
    ):
        while await _delete(store, sql, asked, ambient):
            await ambient.sleep(0)  # other transactions may write between two rounds
    gone: Writes = [(tables.DELETE_MARK, [{"name": mark_of(name)}])]
    await store.begin().commit(Changes(writes=gone, time=ambient.now()))


def _target(name: str) -> str:
    return f"replay {name}"


def _leaving(name: str, now: float) -> Writes:
    """Return the statements after which nobody goes on with a replay that is half deleted."""
    return [
        (tables.CHANGE_MARK, [{"name": mark_of(name), "mark": LEAVING, "now": now}]),
        (tables.DELETE_CURSORS, [{"reader": reader_of(name)}]),
    ]


async def _delete(store: Store, sql: str, asked: Parameters, ambient: Ambient) -> bool:
    """Delete a bounded number of rows; return whether there were any."""
    begun = store.begin()
    try:
        deleted = await begun.fetch(sql, asked, [])
        await begun.commit(Changes(time=ambient.now()))
    finally:
        await begun.rollback()
    return bool(deleted)
