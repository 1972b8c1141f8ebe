"""Compares the keyed state that a replay has made with the one in the service's store.

Rows are compared of which every event is within the replay. The keys of other events (before the
stretch, or handled by the service since, or parked there) are noted in the scratch store, beside
copies of the service's rows, so that memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.envelope import open_record
from oyez.errors import InvalidEvent, StateMismatch
from oyez.handler import Handler
from oyez.ports import Changes, Kept, Parameters, Record, Row, Store
from oyez.runtime.execution import decode_for
from oyez.runtime.handlers import Handlers
from oyez.state import Keyed

PAGE = 200
"""Rows that are held in memory."""

_TABLES = """
create table replay_live (kind text not null, key text not null, shape integer not null,
 data blob not null, primary key (kind, key)) without rowid;
create table replay_other (kind text not null, key text not null, primary key (kind, key))
 without rowid;
"""
_COPY = "insert into replay_live (kind, key, shape, data) values (:kind, :key, :shape, :data)"
_OTHER = "insert into replay_other (kind, key) values (:kind, :key) on conflict do nothing"
_PAIRS = """with page as (
 select key from replay_live where kind = :kind and key > :after
 union select key from oyez_state where kind = :kind and key > :after order by key limit :limit)
select page.key, live.shape as live_shape, live.data as live, made.shape as made_shape,
 made.data as made, other.key is not null as other
 from page left join replay_live live on live.kind = :kind and live.key = page.key
 left join oyez_state made on made.kind = :kind and made.key = page.key
 left join replay_other other on other.kind = :kind and other.key = page.key
 order by page.key"""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A row that differs."""

    kind: str
    key: str
    what: Literal["added", "missing", "changed"]
    """``added``: the replay alone has it; ``missing``: the service alone has it."""
    fields: Mapping[str, tuple[Any, Any]] = {}
    """The fields that differ: (of the service, of the replay)."""


class Comparison:
    """The comparison of the rows that these handlers make."""

    def __init__(
        self,
        handlers: Sequence[Handler],
        *,
        system: str,
        service: str,
        live: Store,
        scratch: Store,
        ambient: Ambient,
    ) -> None:
        """``live`` is only read; ``scratch`` is the store of the replay, a new one of SQLite."""
        self.rows = 0
        """The number of rows that were compared."""
        self.left_out = 0
        """The number of rows that were not, since other events have changed them too."""
        self._handlers = Handlers(system, service, handlers)
        self._live = live
        self._scratch = scratch
        self._ambient = ambient

    async def prepare(self) -> None:
        """Create its tables, and leave out the rows of events that are parked in the service."""
        await self._scratch.migrate([("replay", _TABLES)])
        for handler in self._handlers:
            async for rows in pages(
                self._live, tables.IN_FLIGHT, {"handler": handler.name}, "seq", 0
            ):
                found = []
                for row in rows:
                    headers = msgspec.json.decode(row["headers"], type=dict[str, str])
                    found += _keys([handler], headers, row["data"])
                await self._write(_OTHER, found)

    async def leave_out(self, records: Sequence[Record]) -> None:
        """Leave out the rows of the events in these records."""
        found: list[Parameters] = []
        for record in records:
            wanted = self._handlers.of(record.stream)
            kind = record.headers.get("type")
            if kind is None or kind in wanted:
                handlers = [handler for each in wanted.values() for handler in each]
                found += _keys(handlers, record.headers, record.data, self._handlers.service)
        await self._write(_OTHER, found)

    async def copy(self, kinds: Iterable[Keyed]) -> None:
        """Copy the service's rows as they are now."""
        for kind in kinds:
            asked = {"kind": kind.name}
            async for rows in pages(self._live, tables.STATES, asked, "key", ""):
                await self._write(_COPY, [{**asked, **row} for row in rows])

    async def differences(self, kind: Keyed) -> AsyncIterator[Difference]:
        """Yield the rows of a kind that differ, by key."""
        async for rows in pages(self._scratch, _PAIRS, {"kind": kind.name}, "key", ""):
            for row in rows:
                if row["other"]:
                    self.left_out += 1
                    continue
                self.rows += 1
                found = _difference(kind, row)
                if found is not None:
                    yield found

    async def _write(self, sql: str, rows: Sequence[Parameters]) -> None:
        if rows:
            changes = Changes(writes=[(sql, list(rows))], time=self._ambient.now())
            await self._scratch.begin().commit(changes)


async def pages(
    store: Store, sql: str, asked: Parameters, column: str, after: int | str
) -> AsyncIterator[list[Row]]:
    """Yield the rows of a query in pages, each after the last value of a column."""
    while True:
        rows = await store.fetch(sql, {**asked, "after": after, "limit": PAGE})
        if not rows:
            return
        yield rows
        after = rows[-1][column]


def _keys(
    handlers: Iterable[Handler],
    headers: Mapping[str, str],
    data: bytes | None,
    service: str | None = None,
) -> list[Parameters]:
    """Return kind and key of the rows that belong to an event; none for one that is invalid."""
    try:
        envelope = open_record(headers, data)
    except InvalidEvent:
        return []
    if service is not None and envelope.recipient not in (None, service):
        return []
    found: list[Parameters] = []
    for handler in handlers:
        if all(kind.name != envelope.type for kind in handler.events):
            continue
        with suppress(Exception):  # a key's function may raise anything: then it has no row
            event = decode_for(handler, envelope, 0.0)
            found += [
                {"kind": state.kind.name, "key": state.key_of(event, envelope.key)}
                for state in handler.states
            ]
    return found


def _difference(kind: Keyed, row: Row) -> Difference | None:
    key = row["key"]
    if row["live"] is None:
        return Difference(kind=kind.name, key=key, what="added")
    if row["made"] is None:
        return Difference(kind=kind.name, key=key, what="missing")
    if (row["live_shape"], row["live"]) == (row["made_shape"], row["made"]):
        return None
    live, made = (_fields(kind, key, row[f"{side}_shape"], row[side]) for side in ("live", "made"))
    fields = {
        name: (live.get(name), made.get(name))
        for name in {**live, **made}
        if live.get(name) != made.get(name)
    }
    return Difference(kind=kind.name, key=key, what="changed", fields=fields) if fields else None


def _fields(kind: Keyed, key: str, shape: int, data: bytes) -> dict[str, Any]:
    """Return the fields of a row, in the version of its class that runs here."""
    try:
        value = kind.open(Kept(kind=kind.name, key=key, version=1, shape=shape, data=data))
    except StateMismatch as error:
        return {"(unreadable)": str(error)}
    found: dict[str, Any] = msgspec.to_builtins(value)
    return found
