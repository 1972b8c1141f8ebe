"""Handlers called again in transactions that are rolled back, and what they would announce.

Each event is handled on the service's own store, and everything is undone: the handler sees the
rows of today, not those of then. What it announces is compared with the events in the history that
name this one as their cause.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.envelope import open_record
from oyez.errors import InvalidEvent
from oyez.handler import Handler, Retry
from oyez.ports import (
    Announcement,
    Broker,
    Changes,
    Claim,
    Parameters,
    Parked,
    Record,
    Row,
    Store,
)
from oyez.runtime.calls import THREADS, Calls
from oyez.runtime.commits import Commits
from oyez.runtime.comparison import Difference, pages
from oyez.runtime.execution import Execution
from oyez.runtime.handlers import Handlers
from oyez.runtime.lane import Chains, Lane
from oyez.runtime.loop import Bell
from oyez.runtime.replay import once_more, reader_of
from oyez.runtime.reports import Reports
from oyez.runtime.retry import Dead, Done
from oyez.transaction import Announcer, UnitOfWork

_TABLES = """
create table rehearsal_told (cause text not null, type text not null, key text, data blob);
create index rehearsal_told_cause on rehearsal_told (cause);
create table rehearsal_left (id text primary key) without rowid;
create table rehearsal_done (id text not null, source text not null, primary key (id, source))
 without rowid;
"""
_TELL = "insert into rehearsal_told (cause, type, key, data) values (:cause, :type, :key, :data)"
_LEAVE = "insert into rehearsal_left (id) values (:id) on conflict do nothing"
_TOLD = "select type, key, data from rehearsal_told where cause = :id"
_BEGIN = """insert into rehearsal_done (id, source) select :id, :source
 where not exists (select 1 from rehearsal_left where id = :id)
 on conflict do nothing returning id"""
_FLUSH = "select 1 as flushed"


class Unlike(Difference, frozen=True, kw_only=True):
    """An announced event that differs. ``kind`` is its type, ``key`` its key.

    ``added``: it is announced now; ``missing``: it was announced then.
    """

    event_id: str
    """The event that caused it."""


class _Undone(Commits):
    """Commits that leave nothing behind: units of work are run and rolled back."""

    def __init__(self, store: Store, announcer: Announcer, ambient: Ambient) -> None:
        super().__init__(store, announcer, ambient)
        self._announcing = announcer
        self.announced: list[Announcement] = []
        """What the units of work announced, to be emptied by the caller."""

    def unit(self, claim: Claim | None) -> UnitOfWork:
        unit = _Rehearsed(self.store, self._announcing)
        unit.take = self.announced.extend
        return unit

    async def save(self, changes: Changes) -> None:
        """Leave the failure of an event unrecorded."""


class _Rehearsed(UnitOfWork):
    take: Callable[[Iterable[Announcement]], None]

    async def commit(self) -> None:
        """Run what is queued; whoever made the unit rolls it back."""
        if self._waves:
            await self._fetch(_FLUSH, {})
        self.states.changed()
        self.closed = True
        self.take(self.changes.announced)


class Rehearsal:
    """A dry run of handlers that are declared ``replay="safe"``."""

    def __init__(
        self,
        chosen: Sequence[Handler],
        every: Iterable[Handler],
        *,
        system: str,
        service: str,
        broker: Broker,
        live: Store,
        scratch: Store,
        ambient: Ambient,
        reports: Reports,
        provided: Mapping[type, object],
    ) -> None:
        """``every``: all handlers of the service. ``live`` is its store, ``scratch`` a new one."""
        self.events = 0
        """The number of events whose announcements were compared."""
        self.left_out = 0
        """The number of those of which it is not known what was announced."""
        self.same = 0
        """The number of announced events that are the same."""
        self.since = float("-inf")
        """Before this time, what was announced may be deleted: such events are left out."""
        self._chosen = {handler.name for handler in chosen}
        once = Retry(attempts=1)  # nothing is repeated later here
        once_each = [msgspec.structs.replace(handler, retry=once) for handler in chosen]
        self._handlers = Handlers(system, service, once_each)
        self._handlers.bind(provided)
        self._every = Handlers(system, service, every)
        self._broker = broker
        self._live = live
        self._scratch = scratch
        self._ambient = ambient
        self._reports = reports
        announcer = Announcer(system, service, ambient, lambda: broker.capabilities.max_bytes)
        self._undone = _Undone(live, announcer, ambient)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"{service}-rehearsal")
        calls = Calls(self._handlers, ambient, self._threads)
        self._execution = Execution(calls, self._undone, ambient, reports)

    async def prepare(self) -> None:
        """Leave out the events of which the service has parked, or not yet published, something.

        Call it after the service's positions were read, and before the ends of its stream are.
        """
        await self._scratch.migrate([("rehearsal", _TABLES)])
        async for rows in pages(self._live, tables.ANNOUNCED, {}, "seq", 0):
            causes = (_headers(row).get("causationid") for row in rows)
            await self._write(_LEAVE, [{"id": cause} for cause in causes if cause])
        for name in self._chosen:
            asked = {"handler": name}
            async for rows in pages(self._live, tables.IN_FLIGHT, asked, "seq", 0):
                await self._write(_LEAVE, [{"id": _headers(row).get("id", "")} for row in rows])

    async def remember(self, records: Iterable[Record]) -> None:
        """Remember what these records of the service's stream say it has announced."""
        told: list[Parameters] = []
        for record in records:
            cause = record.headers.get("causationid")
            if cause and "replayed" not in record.headers:
                kind, data = record.headers.get("type", ""), record.data
                told.append({"cause": cause, "type": kind, "key": record.key, "data": data})
        await self._write(_TELL, told)

    async def perform(self, record: Record) -> list[Unlike]:
        """Handle the event once more, undo it, and return what it announces otherwise."""
        try:
            record = once_more(record, None)
            envelope = open_record(record.headers, record.data)
        except InvalidEvent:
            return []
        me = self._handlers.service
        handlers = self._handlers.of(record.stream).get(envelope.type, [])
        if not handlers or envelope.recipient not in (None, me):
            return []
        if record.time < self.since or envelope.replayed:
            self.left_out += 1
            return []
        if not await self._begin(envelope.id, envelope.source):
            return []
        self._undone.announced.clear()
        lane = self._lane(record)
        for handler in handlers:
            event = Parked(
                event_id=envelope.id,
                source=envelope.source,
                handler=handler.name,
                stream=record.stream,
                partition=record.partition,
                position=record.position,
                chain=None,
                due=0.0,
                attempt=0,
                history=[],
                key=record.key,
                headers=record.headers,
                data=record.data,
                reader=lane.claim.reader,
            )
            done = await self._execution.attempt(handler, event, lane, envelope=envelope)
            if not isinstance(done, Done):
                self.left_out += not isinstance(done, Dead)  # a death has been reported
                return []
        self.events += 1
        then = await self._scratch.fetch(_TOLD, {"id": envelope.id})
        now = [
            {"type": each.headers["type"], "key": each.key, "data": each.data}
            for each in self._undone.announced
        ]
        return self._compare(
            envelope.id, *self._comparable(record.stream, envelope.type, then, now)
        )

    def close(self) -> None:
        """End its threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _begin(self, event_id: str, source: str) -> bool:
        """Return whether the event is to be handled: not left out, and no copy of another."""
        asked = {"id": event_id, "source": source}
        begun = self._scratch.begin()
        try:
            if await begun.fetch(_BEGIN, asked, []):
                await begun.commit(Changes(time=self._ambient.now()))
                return True
        finally:
            await begun.rollback()
        left = "select id from rehearsal_left where id = :id"
        self.left_out += bool(await self._scratch.fetch(left, {"id": event_id}))
        return False

    def _comparable(
        self, stream: str, kind: str, then: list[Row], now: list[Row]
    ) -> tuple[list[Row], list[Row]]:
        """Return what the handlers alone have announced, without that of others of the service."""
        others = [
            handler
            for handler in self._every.of(stream).get(kind, [])
            if handler.name not in self._chosen
        ]
        if not others:
            return then, now
        theirs = {each.name for handler in others for each in handler.publishes}
        ours = {
            each.name
            for handler in self._handlers.of(stream).get(kind, [])
            for each in handler.publishes
        }
        types = (ours | {row["type"] for row in now}) - theirs
        return [r for r in then if r["type"] in types], [r for r in now if r["type"] in types]

    def _compare(self, event_id: str, then: list[Row], now: list[Row]) -> list[Unlike]:
        left = []
        for row in now:
            like = next((each for each in then if _same(each, row)), None)
            if like is None:
                left.append(row)
            else:
                then.remove(like)
                self.same += 1
        found = []
        for row in left:
            was = next(
                (e for e in then if (e["type"], e["key"]) == (row["type"], row["key"])), None
            )
            if was is not None:
                then.remove(was)
            found.append(_unlike(event_id, was, row))
        return found + [_unlike(event_id, row, None) for row in then]

    def _lane(self, record: Record) -> Lane:
        """Return a place for the attempt, of which nothing is stored."""
        claim = Claim(
            stream=record.stream,
            partition=record.partition,
            owner="",
            epoch=0,
            reader=reader_of("rehearsal"),
        )
        return Lane(
            claim,
            record.position,
            Chains({}, self._ambient),
            broker=self._broker,
            commits=self._undone,
            ambient=self._ambient,
            reports=self._reports,
            work=Bell(self._ambient),
        )

    async def _write(self, sql: str, rows: Sequence[Parameters]) -> None:
        if rows:
            changes = Changes(writes=[(sql, list(rows))], time=self._ambient.now())
            await self._scratch.begin().commit(changes)


def _headers(row: Row) -> dict[str, str]:
    return msgspec.json.decode(row["headers"], type=dict[str, str])


def _same(one: Row, other: Row) -> bool:
    return (one["type"], one["key"]) == (other["type"], other["key"]) and (
        one["data"] == other["data"] or _data(one) == _data(other)
    )


def _unlike(event_id: str, then: Row | None, now: Row | None) -> Unlike:
    row = now or then
    assert row is not None
    fields: Mapping[str, tuple[Any, Any]] = {}
    if then and now:
        old, new = _data(then), _data(now)
        fields = {
            name: (old.get(name), new.get(name))
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        }
    return Unlike(
        kind=row["type"],
        key=row["key"] or "",
        what="changed" if then and now else "added" if now else "missing",
        fields=fields,
        event_id=event_id,
    )


def _data(row: Row) -> dict[str, Any]:
    """Return the fields of an event; those of another form are one."""
    with suppress(ValueError, TypeError):
        found = json.loads(row["data"])
        if isinstance(found, dict):
            return found
    return {"data": repr(row["data"])}
