"""Compares a view with its history: folds the history again, in memory, for some of its rows.

The rows are a sample by the checksum of their keys, so a row that is missing is found as well. A
row that changes meanwhile is left out: the rest is compared as of the same positions. A row is
repaired under its lock, unless it has changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

import msgspec

from oyez import tables
from oyez.contract import decode
from oyez.envelope import open_record
from oyez.errors import ConfigurationError, EventError, HistoryMissing
from oyez.inspection import history
from oyez.inspection.reach import Gap
from oyez.ports import Broker, Changes, Kept, Position, Store
from oyez.project import Project
from oyez.runtime.audit import Actor, audited
from oyez.service import Service
from oyez.view import GONE, Entry, ViewType, apply

_PAGE = 5_000


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A field of a row that is not what the history says."""

    key: str
    field: str
    """Empty for a row that is there and should not be, or the other way round."""
    expected: Any
    found: Any


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a comparison."""

    view: str
    version: int
    rows: int
    """The number of rows compared, those included that neither side has any more."""
    left_out: int
    """The number of rows that changed meanwhile."""
    differences: tuple[Difference, ...]
    gaps: tuple[Gap, ...]
    """Partitions whose last records were deleted by retention."""
    repaired: int = 0
    """The number of differing rows that are now what the history says."""


class Snapshot(msgspec.Struct, frozen=True):
    """The chosen rows of a view, with the positions that they are as of."""

    rows: dict[str, Any]
    columns: dict[str, dict[str, Any]]
    versions: dict[str, int]
    """How often each row had changed."""
    places: dict[history.Place, Position]
    unapplied: set[tuple[str, str]]
    """Parked events and dead letters: (event id, source)."""
    moved: set[str]
    """Keys whose rows changed meanwhile."""


async def verify(
    project: Project,
    service: str,
    view: str,
    *,
    sample: int = 1_000,
    key: str | None = None,
    repair: Actor | None = None,
) -> Verified:
    """Compare about ``sample`` rows of a view, or the one of ``key``, with the history.

    It reads the whole history. ``repair`` is who has what the history says written into those that
    differ, unless retention has deleted some of it. Raises HistoryMissing where retention has
    deleted its beginning, ConfigurationError where the service's code has no such view, StoreError
    and BrokerError.
    """
    code = project.service(service)
    kind = kind_of(code, view)
    async with project.opened_store(service) as store, project.opened_broker(service) as broker:
        chosen = await _chooser(store, kind, sample, key)
        snapshot = await _snapshot(store, kind, chosen)
        await _check_whole(kind, broker, snapshot)
        short: list[history.Place] = []
        expected = await _fold(code, kind, broker, snapshot, chosen, short)
        keys = {*expected, *snapshot.rows, *snapshot.columns} - snapshot.moved
        found = [
            difference
            for each in sorted(keys)
            for difference in _differences(kind, each, expected.get(each), snapshot)
        ]
        repaired = 0
        if repair is not None and not short:
            for each in sorted({difference.key for difference in found}):
                version, now = snapshot.versions.get(each, 0), project.ambient.now()
                repaired += await _repair(
                    store, kind, each, expected.get(each), version, now, repair
                )
    return Verified(
        view=view,
        version=kind.version,
        rows=len(keys),
        left_out=len(snapshot.moved),
        differences=tuple(found),
        gaps=tuple(history.deleted(short)),
        repaired=repaired,
    )


async def _check_whole(kind: ViewType, broker: Broker, snapshot: Snapshot) -> None:
    """Raise HistoryMissing for a history from which rows would seem wrong that are right."""
    for stream in sorted({stream for stream, _ in snapshot.places}):
        for partition, start in enumerate(await broker.starts(stream)):
            if start and (stream, partition) in snapshot.places:
                raise HistoryMissing(
                    f"{kind.view} can't be verified: retention has deleted the first {start} "
                    f"records of {stream}[{partition}], which its rows are made of as well"
                )


async def _repair(
    store: Store, kind: ViewType, key: str, expected: Any, version: int, now: float, by: Actor
) -> bool:
    """Write a row; return False, with nothing written, if it changed since it was compared."""
    begun = store.begin()
    try:
        (found,) = await begun.load([(kind.name, key)], alone=True)
        if found.version != version:
            return False
        entry = Entry(kind, key, expected)
        # Without its data the row is written even if its columns alone differ.
        bare = Kept(kind=kind.name, key=key, version=version)
        closed = kind.close(entry, bare)
        sql, parameters = kind.write(entry, closed or bare)
        kept = [] if closed is None else [closed]
        audit = audited(by, "view.repair", f"view {kind.view}, row {key}", now)
        await begun.commit(Changes(kept=kept, writes=[(sql, [parameters]), audit], time=now))
    finally:
        await begun.rollback()
    return True


def kind_of(service: Service, view: str) -> ViewType:
    """Return the view of a service, by its name. Raises ConfigurationError."""
    for kind in service.views:
        if kind.view == view:
            return kind
    known = ", ".join(kind.view for kind in service.views) or "none"
    raise ConfigurationError(f"service {service.name} has no view {view}; its views: {known}")


async def _chooser(
    store: Store, kind: ViewType, sample: int, key: str | None
) -> Callable[[str], bool]:
    if key is not None:
        return lambda each: each == key
    (row,) = await store.fetch(tables.COUNT_STATE, {"kind": kind.name})
    every = max(1, row["rows"] // sample)
    return lambda each: crc32(each.encode()) % every == 0


async def _snapshot(store: Store, kind: ViewType, chosen: Callable[[str], bool]) -> Snapshot:
    before = await _state(store, kind, chosen)
    reader = {"reader": kind.name}
    cursors = await store.fetch(tables.CURSORS, reader)
    unapplied = await store.fetch(tables.UNAPPLIED, reader)
    columns = await _columns(store, kind, chosen)
    after = await _state(store, kind, chosen)
    return Snapshot(
        rows={key: kind.open(row).row for key, row in before.items()},
        columns=columns,
        versions={key: row.version for key, row in before.items()},
        places={(row["stream"], row["partition"]): row["position"] for row in cursors},
        unapplied={(row["event_id"], row["source"]) for row in unapplied},
        moved={
            key
            for key in {*before, *after}
            if key not in before or key not in after or before[key].version != after[key].version
        },
    )


async def _state(store: Store, kind: ViewType, chosen: Callable[[str], bool]) -> dict[str, Kept]:
    found: dict[str, Kept] = {}
    after = ""
    while True:
        asked = {"kind": kind.name, "after": after, "limit": _PAGE}
        page = await store.fetch(tables.STATES, asked)
        for row in page:
            if chosen(row["key"]):
                found[row["key"]] = Kept(kind=kind.name, **row)
        if len(page) < _PAGE:
            return found
        after = page[-1]["key"]


async def _columns(
    store: Store, kind: ViewType, chosen: Callable[[str], bool]
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    after = ""
    sql = (
        f'select * from {kind.table} where "{kind.key_field}" > :after'
        f' order by "{kind.key_field}" limit :limit'
    )
    while True:
        page = await store.fetch(sql, {"after": after, "limit": _PAGE})
        found.update((row[kind.key_field], row) for row in page if chosen(row[kind.key_field]))
        if len(page) < _PAGE:
            return found
        after = page[-1][kind.key_field]


async def _fold(
    service: Service,
    kind: ViewType,
    broker: Broker,
    snapshot: Snapshot,
    chosen: Callable[[str], bool],
    short: list[history.Place],
) -> dict[str, Any]:
    """Return the rows of the chosen keys as the history says, None for those that are gone."""
    handler = service.views[kind]
    (correlation,) = handler.states
    kinds = {each.name: each for each in handler.events}
    rows: dict[str, Any] = {}
    seen = set(snapshot.unapplied)
    async for _, record in history.merged([(None, broker, snapshot.places)], short):
        if history.attributes(record).get("type") not in kinds:
            continue
        try:
            envelope = open_record(record.headers, record.data)
            event = decode(kinds[envelope.type], envelope.data, envelope.dataschema)
            key = correlation.key_of(event, envelope.key)
        except EventError:
            continue  # a dead letter
        identity = (envelope.id, envelope.source)
        if envelope.recipient not in (None, service.name):
            continue
        if not chosen(key) or identity in seen:
            continue
        seen.add(identity)
        row = apply(kind, rows.get(key), event, key)
        rows[key] = None if row is GONE else row
    return rows


def _differences(
    kind: ViewType, key: str, expected: Any, snapshot: Snapshot
) -> Iterator[Difference]:
    row, columns = snapshot.rows.get(key), snapshot.columns.get(key)
    for found in (row, columns):
        if (expected is None) != (found is None):
            yield Difference(key=key, field="", expected=_plain(expected), found=_plain(found))
            return
    if expected is None:
        return
    wanted = kind.values(expected)
    assert columns is not None
    for column in kind.columns:
        mine, theirs = getattr(expected, column.name), getattr(row, column.name)
        if mine != theirs:
            yield Difference(
                key=key, field=column.name, expected=_plain(mine), found=_plain(theirs)
            )
        elif wanted[column.name] != columns[column.name]:
            yield Difference(
                key=key,
                field=column.name,
                expected=_plain(wanted[column.name]),
                found=_plain(columns[column.name]),
            )


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def as_value(verified: Verified) -> dict[str, Any]:
    """Return the result as a value for JSON."""
    value = msgspec.structs.asdict(verified)
    return {
        **{name: each for name, each in value.items() if name != "gaps"},
        "differences": [msgspec.structs.asdict(each) for each in verified.differences],
        "gaps": [str(gap) for gap in verified.gaps],
    }
