"""The unit of work: a service's queued writes and the events it publishes, in one commit.

Writes are queued and sent in few round trips. Within a unit each statement has a *wave*, one later
than the previous statement of its handler call, or of the previous call with its key. Waves run in
order, and within a wave equal SQL runs once for all its parameter sets. So the statements of one
key keep their order, while 256 events with the same two statements cost two calls.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError
from contextvars import ContextVar
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.contract import encode
from oyez.envelope import JSON, SPECVERSION, Envelope, format_time
from oyez.errors import InvalidEvent, StoreUnavailable, TransactionClosed
from oyez.event import MAX_KEY, EventType, describe
from oyez.ports import Announcement, Answer, Changes, Parameters, Row, Store, Writes, weigh
from oyez.spans import Span, Tracer
from oyez.state import Fold, Place, S, kind_of

T = TypeVar("T")

MAX_DELAY = 366 * 86_400.0
"""The longest delay, in seconds, of an event."""
MAX_NAME = 512
"""A longer name (characters) of a later event is refused."""

TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, version 00, section 3.2."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The origin of the events that a transaction publishes: cause, correlation, trace, and who."""

    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    authid: str | None = None
    """Who began it, and how that is known; see `Envelope`."""
    authtype: str | None = None
    replayed: str | None = None
    """The replay in which the event is handled once more; see `Envelope`."""

    @staticmethod
    def of(envelope: Envelope) -> Origin:
        """Return the origin of events that handlers of this event publish."""
        parent = envelope.traceparent
        if parent is not None:
            if TRACEPARENT.fullmatch(parent) is None:
                parent = None
            elif envelope.replayed is not None:
                parent = f"{parent[:53]}00"  # its trace is over: what follows is not recorded
        return Origin(
            correlationid=envelope.correlationid or envelope.id,
            causationid=envelope.id,
            traceparent=parent,
            tracestate=None if parent is None else envelope.tracestate,
            authid=envelope.authid,
            authtype=envelope.authtype,
            replayed=envelope.replayed,
        )


origin: ContextVar[Origin] = ContextVar("oyez_origin", default=Origin())  # noqa: B039 - frozen
"""The origin of work that no event caused: set per HTTP request by the service's process."""


committed_here: ContextVar[list[Announcement] | None] = ContextVar("oyez_committed", default=None)
"""A list that takes the events that a request publishes, once their transaction has committed."""


class Announcer:
    """A factory of the outbox rows of one service, with source, stream, ids and trace."""

    def __init__(
        self,
        system: str,
        service: str,
        ambient: Ambient,
        limit: Callable[[], int] = int,
        tracer: Tracer | None = None,
    ) -> None:
        """``limit`` returns the broker's size limit of a record in bytes, 0 for no limit.

        ``tracer`` records spans; None where none are recorded.
        """
        self._limit = limit
        self.tracer = tracer
        self.source = f"/{system}/{service}"
        self.stream = f"{system}.{service}"
        self.ambient = ambient
        self._known: dict[type, tuple[EventType, dict[str, str]]] = {}
        """Each class of events announced so far, and the headers that all of its events have."""

    def announce(
        self,
        event: object,
        since: Origin,
        time: str,
        due: float,
        key: str | None,
        span: str = "",
        recipient: str | None = None,
        expires: float | None = None,
        name: str | None = None,
    ) -> Announcement:
        """Return the outbox row of an event. Raises InvalidEvent naming the invalid field.

        ``span`` is the span of the call or request that announces it, if it is known;
        ``recipient`` is the only service it is for, by default the one that a command asks;
        ``expires`` is in seconds since 1970; ``name`` identifies an event that is due later.
        """
        kind, common = self._known.get(type(event)) or self._know(type(event))
        if key is None:
            key = kind.key(event)
        event_id = self.ambient.new_id()
        tracer = self.tracer
        parent = span or since.traceparent
        if parent is None or not (span or tracer):
            parent = self.span(parent)
        headers = {
            **common,
            "id": event_id,
            "time": time,
            "correlationid": since.correlationid or event_id,
            "traceparent": parent,
        }
        if key is not None:
            if not 0 < len(key) <= MAX_KEY or not key.isprintable():
                field = "key" if kind.key_field is None else f"$.{kind.key_field}"
                raise InvalidEvent(
                    field, f"is the key: expected 1 to {MAX_KEY} printable characters"
                )
            headers["subject"] = headers["partitionkey"] = key
        if recipient is not None:
            headers["recipient"] = recipient
        if expires is not None:
            headers["expires"] = format_time(expires)
        if since.causationid is not None:
            headers["causationid"] = since.causationid
        if since.tracestate:
            headers["tracestate"] = since.tracestate
        if since.authtype is not None:
            headers["authtype"] = since.authtype
            if since.authid is not None:
                headers["authid"] = since.authid
        if since.replayed is not None:
            headers["replayed"] = since.replayed
        data = encode(kind, event)
        limit = self._limit()
        if limit and (size := weigh(headers, data)) > limit:
            raise InvalidEvent(
                "$",
                f"{kind.name} is {size} bytes with its headers, and the broker takes {limit}: "
                "set system.claim_check, so that large data is kept outside the broker",
            )
        sending = None
        if tracer is not None and tracer.wants(parent):
            sending = tracer.send(parent, headers, self.stream, self.ambient.now())
            if sending is not None:
                headers["traceparent"] = sending.traceparent
        return Announcement(
            stream=self.stream,
            key=key,
            headers=headers,
            data=data,
            due=due,
            event_id=event_id if due else None,
            name=name if due else None,
            span=sending,
        )

    def announced(self, changes: Changes) -> None:
        """End the spans of what was announced, now that it is committed."""
        if self.tracer is not None and changes.announced:
            now = self.ambient.now()
            for each in changes.announced:
                if each.span is not None:
                    each.span.end(now)

    def _know(self, cls: type) -> tuple[EventType, dict[str, str]]:
        kind = describe(cls)
        common = {
            "specversion": SPECVERSION,
            "source": self.source,
            "type": kind.name,
            "datacontenttype": JSON,
            "dataschema": kind.dataschema,
        }
        if kind.to is not None:
            common["recipient"] = kind.to
        self._known[cls] = kind, common
        return kind, common

    def span(self, parent: str | None) -> str:
        """Return the traceparent of a new span: a child of that one, or the root of a trace."""
        bits = self.ambient.bits
        if parent is None:
            if self.tracer is not None:
                return self.tracer.root(self.ambient.now())
            return f"00-{bits(128):032x}-{bits(64):016x}-01"
        return f"{parent[:36]}{bits(64):016x}{parent[52:55]}"


class UnitOfWork:
    """The queued writes and events of one or more handler calls, for one commit."""

    def __init__(
        self,
        store: Store,
        announcer: Announcer,
        committed: Callable[[Changes], None] | None = None,
    ) -> None:
        """``committed`` is called after each commit; with empty changes if it may have failed.

        It tells the relay of what was announced.
        """
        self._committed = committed
        self.changes = Changes(time=announcer.ambient.now(), told=committed is not None)
        self._stamp: str | None = None
        self._store = store.begin()
        self._announcer = announcer
        self.states = Fold()
        self.begun = False
        """Whether it has read or locked something, so that no other unit can commit it."""
        self._waves: list[dict[str, list[Parameters]]] = []
        self._reached: dict[str, int] = {}
        self._announced_at: dict[str, list[Announcement]] = {}
        self._loop = asyncio._get_running_loop()
        self._visitor: asyncio.Task[Any] | None = None
        self.closed = False

    def transaction(self, since: Origin | Envelope, key: str | None = None) -> Transaction:
        """Return this unit's transaction for one handler call with an event of ``key``.

        ``since`` is the origin of the events that it publishes, or their cause.
        """
        return Transaction(self, since, key)

    def restamp(self) -> None:
        """Set the time of this unit, and so of events published from now on, to the present."""
        self.changes.time = self._announcer.ambient.now()
        self._stamp = None

    @property
    def time(self) -> str:
        """The time of this unit: RFC 3339, UTC."""
        stamp = self._stamp
        if stamp is None:  # most calls don't ask
            stamp = self._stamp = format_time(self.changes.time)
        return stamp

    async def load(self, places: Iterable[Place], *, alone: bool) -> None:
        """Load the keyed state of these places into ``states``, for `Fold.of`.

        Raises what `StoreTransaction.load` raises, and StateConflict in particular.
        """
        self._check()
        missing = self.states.missing(places)
        if missing:
            self.begun = True
            self.states.add(await self._store.load(missing, alone=alone))

    async def commit(self) -> None:
        """Commit writes, events and keyed state.

        Raises what `StoreTransaction.commit` raises, and StateMismatch.
        """
        changes, committed = self.seal(), Changes()
        clock = self._announcer.ambient.monotonic
        began = clock()
        try:
            await self._store.commit(changes)
            changes.seconds = clock() - began
            committed = changes
            self._announcer.announced(changes)
        except StoreUnavailable:
            self._announcer.announced(changes)  # it may be committed
            raise
        finally:
            if self._committed is not None:
                self._committed(committed)

    def seal(self) -> Changes:
        """End it and return its changes: if it has not ``begun``, another unit may `absorb` them.

        Raises StateMismatch.
        """
        self.closed = True
        self.changes.kept = self.states.changed()
        self.changes.writes = [*self._drain(), *self.states.tables.items()]
        return self.changes

    def absorb(self, changes: Changes) -> None:
        """Add changes of the same claim that were made elsewhere: a `seal`ed call's, or Oyez's own.

        They become part of this commit as if the call had been one of this unit, with a key of its
        own.
        """
        for wave, (sql, rows) in enumerate(changes.writes):
            self._extend(sql, rows, wave)
        names = {each.name for each in changes.announced if each.name is not None}
        if names:
            self._withdraw(lambda each: each.name in names)
        own = self.changes
        own.announced += changes.announced
        own.settled += changes.settled
        own.retried += changes.retried
        own.dead += changes.dead
        own.ring |= changes.ring

    async def rollback(self) -> None:
        """Undo everything. Safe at any time."""
        self.closed = True
        if self._visitor is not None:  # the thread of a handler that timed out
            self._visitor.cancel()
            await asyncio.wait([self._visitor])
        await self._store.rollback()

    # -- for layers that generate SQL -------------------------------------------------------------

    @property
    def dialect(self) -> str:
        """The SQL dialect of the store: ``sqlite`` or ``postgresql``."""
        return self._store.dialect

    async def run(self, sql: str, sets: Sequence[Sequence[Any]]) -> Answer:
        """Run the queued writes, then this statement; see `StoreTransaction.run`."""
        self._check()
        self.begun = True
        return await self._store.run(sql, sets, self._drain())

    async def savepoint(self, name: str) -> None:
        """Set a savepoint for `rollback_to`."""
        await self.run(f"savepoint {name}", [()])
        self._announced_at[name] = list(self.changes.announced)

    async def rollback_to(self, name: str) -> None:
        """Undo all writes and events since the savepoint, queued ones included."""
        self._check()
        self._drain()
        self.changes.announced[:] = self._announced_at[name]
        await self._store.rollback_to(name)

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run one of the above on the event loop, from the thread of a plain ``def``, and wait."""
        if self.closed or self._loop is None:
            work.close()
            raise TransactionClosed("this transaction has ended, or began outside of a loop")
        try:
            return asyncio.run_coroutine_threadsafe(self._visit(work), self._loop).result()
        except CancelledError as error:
            raise TransactionClosed("this transaction was rolled back meanwhile") from error

    async def _visit(self, work: Coroutine[Any, Any, T]) -> T:
        self._visitor = asyncio.current_task()
        try:
            return await work
        finally:
            self._visitor = None

    def _check(self) -> None:
        if self.closed:
            raise TransactionClosed("this transaction has ended; start another")

    def _queue(self, sql: str, parameters: Parameters, wave: int) -> None:
        if self.closed:
            self._check()
        if sql is tables.ARM:
            self.changes.ring = True  # the owner of its place may be another process
        self._extend(sql, (parameters,), wave)

    def _extend(self, sql: str, sets: Sequence[Parameters], wave: int) -> None:
        waves = self._waves
        while wave >= len(waves):
            waves.append({})
        rows = waves[wave].get(sql)
        if rows is None:
            waves[wave][sql] = [*sets]
        else:
            rows += sets

    async def _fetch(self, sql: str, parameters: Parameters) -> list[Row]:
        self._check()
        self.begun = True
        return await self._store.fetch(sql, parameters, self._drain())

    def _withdraw(self, which: Callable[[Announcement], bool]) -> bool:
        """Remove later events that this unit has not stored yet; return whether there were any."""
        announced = self.changes.announced
        left = [each for each in announced if not each.due or not which(each)]
        withdrawn = len(left) < len(announced)
        announced[:] = left
        return withdrawn

    def _drain(self) -> Writes:
        writes = [(sql, rows) for wave in self._waves for sql, rows in wave.items()]
        self._waves = []
        return writes


class Transaction:
    """A transaction of a service: writes to its own data and events, committed together.

    Handlers receive it by parameter type; HTTP handlers open one with ``service.transaction()``.
    """

    __slots__ = ("_key", "_since", "_span", "_unit", "_wave", "recorded")

    def __init__(self, unit: UnitOfWork, since: Origin | Envelope, key: str | None) -> None:
        self._unit = unit
        self._since = since
        self._span: str | None = None
        self.recorded: Span | None = None
        """The span of this call, if it is recorded."""
        self._key = key
        self._wave = unit._reached.get(key, 0) if key is not None else 0

    @property
    def _origin(self) -> Origin:
        since = self._since
        if isinstance(since, Envelope):
            since = self._since = Origin.of(since)  # not before it is needed: few publish
        return since

    @property
    def unit(self) -> UnitOfWork:
        """The unit of work that commits it; for layers such as `oyez.sqlalchemy`."""
        return self._unit

    @property
    def key(self) -> str | None:
        """The key of the event, or None."""
        return self._key

    @property
    def traceparent(self) -> str:
        """The span of this call, the parent of the events it publishes (W3C Trace Context)."""
        span = self._span
        if span is None:
            since = self._origin
            span = since.traceparent
            # A handler's call is a span of its own. A request with a traceparent is one already.
            if span is None or since.causationid is not None:
                span = self._unit._announcer.span(span)
            self._span = span
        return span

    @property
    def tracestate(self) -> str | None:
        """What other tracing systems have added to its trace."""
        return self._origin.tracestate

    @property
    def authid(self) -> str | None:
        """Who began what this is a part of, as the events it publishes say; see `Envelope`."""
        return self._origin.authid

    @property
    def authtype(self) -> str | None:
        """How that is known."""
        return self._origin.authtype

    def disown(self) -> None:
        """Let what it publishes say of nobody that they began it: it results from several events.

        For handlers of many people's events at once, such as a window.
        """
        self._since = msgspec.structs.replace(self._origin, authid=None, authtype=None)

    def record(self, span: Span) -> None:
        """Make this the span of the call, before it begins."""
        self.recorded = span
        self._span = span.traceparent

    @property
    def cause(self) -> str | None:
        """The id of the event that is handled; None for a request."""
        return self._origin.causationid

    @property
    def parent(self) -> str:
        """The span that caused this call, or empty."""
        return self._origin.traceparent or ""

    @property
    def time(self) -> str:
        """The start time of this transaction: RFC 3339, UTC."""
        return self._unit.time

    def new_id(self) -> str:
        """Return a new UUIDv7, for a row or an order: repeatable in a test."""
        return self._unit._announcer.ambient.new_id()

    def execute(self, sql: str, /, **parameters: Any) -> None:
        """Queue a write with ``:name`` parameters. It runs before any later read, or at commit."""
        wave = self._wave
        self._unit._queue(sql, parameters, wave)
        self._wave = wave + 1
        if self._key is not None:
            self._unit._reached[self._key] = wave + 1

    async def fetch(self, sql: str, /, **parameters: Any) -> list[Row]:
        """Return the rows of a query, or of a write with ``returning``; it sees all queued writes.

        After the first read, no other transaction writes to a SQLite store until this one ends: do
        not wait for the network meanwhile.
        """
        return await self._unit._fetch(sql, parameters)

    async def fetch_one(self, sql: str, /, **parameters: Any) -> Row | None:
        """Return the first row of a query, or None; as `fetch`."""
        rows = await self._unit._fetch(sql, parameters)
        return rows[0] if rows else None

    async def load(self, cls: type[S], key: str) -> S:
        """Return the keyed state of a key, to be changed; it is written with the commit.

        It is what a handler's parameter of this class gives it, for a request or another key; as
        after `fetch`, no other transaction writes meanwhile.
        """
        kind = kind_of(cls)
        await self._unit.load([(kind.name, key)], alone=True)
        state: S = self._unit.states.of(kind, key)
        return state

    def publish(
        self,
        event: object,
        *,
        delay: float | None = None,
        at: datetime | None = None,
        name: str | None = None,
        key: str | None = None,
        expires: float | None = None,
    ) -> str:
        """Publish an event with the commit, or ``delay`` seconds later, or ``at`` a time.

        Returns its id. ``at`` has a time zone; a time that is past is at once. A later event of
        its type may have a ``name``: it takes the place of one of that name that still waits.
        ``key`` overrides the event's own. A command that is not handled until ``expires`` seconds
        from now becomes a dead letter of its service instead. Raises InvalidEvent naming the
        invalid field.
        """
        unit = self._unit
        if unit.closed:
            raise TransactionClosed("this transaction has ended; the event was not announced")
        due = 0.0
        if delay is not None or at is not None or name is not None:
            due = _due(unit.changes.time, delay, at, name)
        full = None if name is None else _full_name(type(event), name)
        if expires is not None:
            if describe(type(event)).to is None:
                raise InvalidEvent("expires", "is for a Command; an event does not expire")
            if not 0 < expires <= MAX_DELAY:
                raise InvalidEvent(
                    "expires", f"expected up to {MAX_DELAY:.0f} seconds above 0, found {expires}"
                )
            expires += unit.changes.time
        announcement = unit._announcer.announce(
            event,
            self._origin,
            unit.time,
            due,
            key,
            self._span or self.traceparent,
            expires=expires,
            name=full,
        )
        if full is not None:
            unit._withdraw(lambda each: each.name == full)
            if not due:
                self.execute(tables.DELETE_NAMED, name=full)
        unit.changes.announced.append(announcement)
        return announcement.headers["id"]

    async def cancel(self, event: str | type, *, name: str | None = None) -> bool:
        """Cancel a later event, by its id or by its class and ``name``, with the commit.

        True: it will never be published, if this transaction commits. False: it has been, or will
        be, or there is none. It reads, as `fetch` does.
        """
        unit = self._unit
        if isinstance(event, str):
            waiting = unit._withdraw(lambda each: each.event_id == event)
            rows = await unit._fetch(tables.CANCEL, {"id": event})
        elif name is None:
            raise InvalidEvent("name", "is missing: cancel an id, or a class and a name")
        else:
            full = _full_name(event, name)
            waiting = unit._withdraw(lambda each: each.name == full)
            rows = await unit._fetch(tables.CANCEL_NAMED, {"name": full})
        return waiting or bool(rows)

    def publish_all(self, events: Iterable[object]) -> None:
        """Publish several events in their order."""
        for event in events:
            self.publish(event)


class After:
    """The queued writes and events of a handler without a transaction, for the commit at its end.

    A handler receives it by parameter type, instead of a `Transaction`, so that no transaction is
    open while it waits for the network. After it returns, its queued writes and events, the events
    it returned and its inbox entry are committed together. When it raises or its process dies,
    nothing of that is kept, and the handler runs again.
    """

    __slots__ = ("_tx",)

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx

    @property
    def time(self) -> str:
        """The present time: RFC 3339, UTC."""
        self._tx.unit.restamp()
        return self._tx.time

    def new_id(self) -> str:
        """Return a new UUIDv7, for a row: repeatable in a test."""
        return self._tx.new_id()

    def execute(self, sql: str, /, **parameters: Any) -> None:
        """Queue a write with ``:name`` parameters, after those queued before.

        If it breaks a constraint, the attempt fails and the handler runs again. Raises
        TransactionClosed when the handler has ended.
        """
        self._check()
        self._tx.execute(sql, **parameters)

    def publish(
        self,
        event: object,
        *,
        delay: float | None = None,
        at: datetime | None = None,
        name: str | None = None,
        key: str | None = None,
    ) -> str:
        """Queue an event for the commit, for ``delay`` seconds from now, or ``at`` a time.

        Returns its id; arguments and errors as for `Transaction.publish`. Raises
        TransactionClosed when the handler has ended.
        """
        self._check()
        self._tx.unit.restamp()
        return self._tx.publish(event, delay=delay, at=at, name=name, key=key)

    def _check(self) -> None:
        if self._tx.unit.closed:
            raise TransactionClosed("the handler has ended; this write or event was not recorded")


def _due(now: float, delay: float | None, at: datetime | None, name: str | None) -> float:
    """Return when an event is to be published; 0.0 for at once. Raises InvalidEvent."""
    if delay is None and at is None:
        if name is not None:
            raise InvalidEvent("name", "is for a later event: add delay or at")
        return 0.0
    if delay is not None:
        if at is not None:
            raise InvalidEvent("at", "is given beside delay: leave out one of them")
        if not 0 <= delay <= MAX_DELAY:
            raise InvalidEvent("delay", f"expected 0 to {MAX_DELAY:.0f} seconds, found {delay}")
        return now + delay if delay else 0.0
    assert at is not None
    if at.utcoffset() is None:
        raise InvalidEvent("at", f"has no time zone: {at}; for UTC, add tzinfo=datetime.UTC")
    due = at.timestamp()
    if due > now + MAX_DELAY:
        raise InvalidEvent("at", f"expected at most {MAX_DELAY:.0f} seconds from now, found {at}")
    return due if due > now else 0.0


def _full_name(cls: type, name: str) -> str:
    """Return the name of a later event, which is unique in its store. Raises InvalidEvent."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise InvalidEvent("name", f"expected 1 to {MAX_NAME} printable characters")
    return f"{describe(cls).name}/{name}"
