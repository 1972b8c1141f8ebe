"""Keyed state: rows are locked when they are loaded, and written in one statement.

Every transaction locks rows in one order, that of the keys. A row that is missing is inserted with
version 0, so that there is something to lock; it is deleted again if it was not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oyez.errors import StateConflict
from oyez.ports import Kept
from oyez.postgresql import Connection

_LOAD = """select s.kind, s.key, s.version, s.shape, s.data, s.status, s.step, s.started, s.ended,
  s.correlationid
from unnest($1::text[], $2::text[]) with ordinality k (kind, key, n)
join oyez_state s on s.kind = k.kind and s.key = k.key
order by k.n for no key update of s"""
_ADD = """insert into oyez_state (kind, key, version, shape, data, changed)
select kind, key, 0, 0, '', 0 from unnest($1::text[], $2::text[]) with ordinality k (kind, key, n)
order by n on conflict (kind, key) do nothing returning kind, key"""
_KEEP = """update oyez_state s set version = s.version + 1, changed = $1, shape = k.shape,
  data = k.data, status = k.status, step = k.step, started = k.started, ended = k.ended,
  correlationid = k.correlationid
from unnest($2::text[], $3::text[], $4::bigint[], $5::int[], $6::bytea[], $7::text[], $8::text[],
  $9::float8[], $10::float8[], $11::text[]) k (kind, key, version, shape, data, status, step,
  started, ended, correlationid)
where s.kind = k.kind and s.key = k.key and s.version = k.version"""
_DELETE = """delete from oyez_state s
using unnest($1::text[], $2::text[], $3::bigint[]) k (kind, key, version)
where s.kind = k.kind and s.key = k.key and s.version = k.version"""


async def load(connection: Connection, keys: Sequence[tuple[str, str]]) -> list[Kept]:
    """Lock and return the rows of these keys; see `StoreTransaction.load`. Raises driver errors."""
    wanted = sorted(keys)
    rows = await connection.fetch(_LOAD, *_columns(wanted, 2))
    found = {(row["kind"], row["key"]): _kept(row) for row in rows}
    missing = [key for key in wanted if key not in found]
    if missing:
        added = await connection.fetch(_ADD, *_columns(missing, 2))
        mine = {(row["kind"], row["key"]) for row in added}
        found.update((key, Kept(kind=key[0], key=key[1])) for key in mine)
        theirs = [key for key in missing if key not in mine]
        if theirs:  # another transaction was faster, and has committed them
            rows = await connection.fetch(_LOAD, *_columns(theirs, 2))
            found.update({(row["kind"], row["key"]): _kept(row) for row in rows})
            if len(found) < len(wanted):
                raise StateConflict("keyed state was deleted while it was loaded")
    return [found[key] for key in wanted]


async def keep(connection: Connection, rows: Sequence[Kept], now: float) -> None:
    """Write loaded rows, and delete those without data.

    Raises StateConflict unless each has the version that was loaded, and driver errors.
    """
    gone = [(row.kind, row.key, row.version) for row in rows if row.data is None]
    left = [_values(row) for row in rows if row.data is not None]
    done = 0
    if left:
        done += _count(await connection.execute(_KEEP, now, *_columns(left, 10)))
    if gone:
        done += _count(await connection.execute(_DELETE, *_columns(gone, 3)))
    if done != len(rows):
        raise StateConflict("keyed state was changed by a transaction that did not load it")


def _kept(row: Any) -> Kept:
    version = row["version"]
    return Kept(
        kind=row["kind"],
        key=row["key"],
        version=version,
        shape=row["shape"],
        data=row["data"] if version else None,
        status=row["status"],
        step=row["step"],
        started=row["started"],
        ended=row["ended"],
        correlationid=row["correlationid"],
    )


def _values(row: Kept) -> tuple[Any, ...]:
    return (
        row.kind, row.key, row.version, row.shape, row.data, row.status, row.step, row.started,
        row.ended, row.correlationid,
    )  # fmt: skip


def _columns(rows: Sequence[Sequence[Any]], count: int) -> list[tuple[Any, ...]]:
    return list(zip(*rows, strict=True)) if rows else [()] * count


def _count(tag: str) -> int:
    return int(tag.rpartition(" ")[2])
