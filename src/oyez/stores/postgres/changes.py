"""The changes of a commit as a few statements over sets, whatever their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from oyez.causes import cause_of
from oyez.errors import Fenced, Superseded
from oyez.ports import Announcement, Changes, Claim, DeadLetter, Parked, Position, rounds
from oyez.postgresql import Connection
from oyez.stores.postgres.state import keep
from oyez.stores.postgres.statements import write
from oyez.tables import Inbox

_encode = msgspec.json.Encoder().encode

FENCE = """update oyez_cursor set position = coalesce($1, position)
 where stream = $2 and partition = $3 and reader = $4 and owner = $5 and epoch = $6"""
HANDLED = """insert into oyez_inbox (event_id, source, handler, seen, reader)
select event_id, coalesce(source, ($3)[1]), coalesce(handler, ($4)[1]), $1, $5
from unnest($2::text[], $3::text[], $4::text[]) e (event_id, source, handler)"""
SENT = "delete from oyez_outbox where seq = any($6::bigint[])"
ANNOUNCED = """insert into oyez_outbox (due, stream, key, headers, data, event_id, name)
select coalesce(due, ($7)[1]), coalesce(stream, ($8)[1]), key, headers, data, event_id, name
from unnest($7::float8[], $8::text[], $9::text[], $10::bytea[], $11::bytea[], $12::text[],
  $13::text[]) with ordinality a (due, stream, key, headers, data, event_id, name, n) order by n"""
NAMED = """on conflict (name) where name is not null do update set due = excluded.due,
  stream = excluded.stream, key = excluded.key, headers = excluded.headers, data = excluded.data,
  event_id = excluded.event_id"""
"""What the last one ends with if any of these events has a name."""
_ALL_THREE = f"with handled as ({HANDLED}), sent as ({SENT}) {ANNOUNCED} {NAMED}"
_DEAD = """insert into oyez_dead (event_id, source, type, handler, stream, partition, position, key,
  reason, traceback, attempts, history, headers, data, time, reader, cause)
select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::int[],
  $7::bigint[], $8::text[], $9::text[], $10::text[], $11::int[], $12::bytea[], $13::bytea[],
  $14::bytea[], $15::float8[], $16::text[], $17::text[])"""
_SETTLED = f"""with settled as (
  update oyez_inbox set state = {Inbox.HANDLED:d}, seen = $1, due = null, chain = null,
    history = null, headers = null, data = null, key = null
  where seq = any($2::bigint[]) and state = {Inbox.DUE:d} returning seq
), freed as (
  update oyez_inbox set state = {Inbox.DUE:d}, due = 0 where state = {Inbox.BEHIND:d} and seq in (
    select (select min(i.seq) from oyez_inbox i where i.stream = c.stream
      and i.partition = c.partition and i.chain = c.chain and i.reader = c.reader
      and i.state > {Inbox.HANDLED:d} and i.seq <> all($2::bigint[]))
    from unnest($3::text[], $4::int[], $5::text[], $6::text[]) c (stream, partition, chain, reader))
)
select count(*) from settled"""
_RETRIED = f"""update oyez_inbox i set due = r.due, attempt = r.attempt, history = r.history
from unnest($1::bigint[], $2::float8[], $3::int[], $4::bytea[]) r (seq, due, attempt, history)
where i.seq = r.seq and i.state = {Inbox.DUE:d}"""
_PARKED = f"""insert into oyez_inbox (event_id, source, handler, reader, seen, state, stream,
  partition, position, chain, due, attempt, history, key, headers, data)
select event_id, source, handler, reader, $1,
  case when chain is not null and (nth > 1 or exists (select from oyez_inbox i
    where i.stream = p.stream and i.partition = p.partition and i.chain = p.chain
      and i.reader = p.reader and i.state > {Inbox.HANDLED:d}))
  then {Inbox.BEHIND:d} else {Inbox.DUE:d} end,
  stream, partition, position, chain, due, attempt, history, key, headers, data
from (
  select *, row_number() over (partition by stream, partition, chain, reader order by n) as nth
  from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::int[], $7::bigint[], $8::text[],
    $9::float8[], $10::int[], $11::bytea[], $12::text[], $13::bytea[], $14::bytea[],
    $15::text[]) with ordinality e (event_id, source, handler, stream, partition, position, chain,
    due, attempt, history, key, headers, data, reader, n)
) p order by n"""


async def fence(connection: Connection, claim: Claim, position: Position | None) -> None:
    """Move the claim's position and lock its row until the end. Raises Fenced."""
    check_fence(claim, await connection.execute(FENCE, *fence_arguments(claim, position)))


def fence_arguments(claim: Claim | None, position: Position | None) -> list[Any]:
    """Return the values of ``$1`` to ``$6`` of `FENCE`; all are None without a claim."""
    if claim is None:
        return [None] * 6
    return [
        position, claim.stream, claim.partition, claim.reader, claim.owner, claim.epoch
    ]  # fmt: skip


def fence_text(claim: Claim, position: Position | None) -> str:
    """Return the same as SQL without parameters, to be sent together with ``begin``."""
    return (
        f"update oyez_cursor set position = {'position' if position is None else int(position)}"
        f" where stream = {_literal(claim.stream)} and partition = {int(claim.partition)}"
        f" and reader = {_literal(claim.reader)} and owner = {_literal(claim.owner)}"
        f" and epoch = {int(claim.epoch)}"
    )


def check_fence(claim: Claim, done: str) -> None:
    """Raise Fenced unless the statement found the claim; ``done`` is its command tag."""
    if done != "UPDATE 1":
        raise fenced(claim)


def fenced(claim: Claim) -> Fenced:
    """Return the error for a claim that is no longer valid."""
    return Fenced(f"{claim.stream}[{claim.partition}] is no longer owned by {claim.owner}")


async def apply(connection: Connection, changes: Changes) -> None:
    """Write all changes but the fence.

    Raises Superseded, StateConflict, StoreRefused and driver errors.
    """
    now = changes.time
    await write(connection, changes.writes)
    if changes.kept:
        await keep(connection, changes.kept, now)
    if changes.handled or changes.announced or changes.sent:
        await connection.execute(_ALL_THREE, *arguments(changes))
    if changes.dead:
        await connection.execute(_DEAD, *_columns([_dead(letter) for letter in changes.dead], 17))
    for settled in rounds(changes.settled):
        await _settle(connection, settled, now)
    if changes.retried:
        await _retry(connection, changes.retried)
    if changes.parked:
        rows = [_parked(parked) for parked in changes.parked]
        await connection.execute(_PARKED, now, *_columns(rows, 14))


def arguments(changes: Changes) -> list[Any]:
    """Return the values of ``$1`` to ``$13`` of `HANDLED`, `SENT` and `ANNOUNCED`."""
    ids, sources, handlers = _columns(changes.handled, 3)
    announced = _columns([_announced(each) for each in changes.announced], 7)
    due, streams, keys, headers, data, event_ids, names = announced
    return [
        changes.time,
        ids,
        short(sources),
        short(handlers),
        "" if changes.claim is None else changes.claim.reader,
        changes.sent,
        short(due),
        short(streams),
        keys,
        headers,
        data,
        event_ids if any(event_ids) else (),
        names if any(names) else (),
    ]


def short(column: Sequence[Any]) -> Sequence[Any]:
    """Return a column of equal values as one value: the driver spends 0.3 µs on each."""
    return column[:1] if column and column.count(column[0]) == len(column) else column


async def _settle(connection: Connection, settled: list[Parked], now: float) -> None:
    chains = [(p.stream, p.partition, p.chain, p.reader) for p in settled if p.chain is not None]
    numbers = [parked.seq for parked in settled]
    count = await connection.fetchval(_SETTLED, now, numbers, *_columns(chains, 4))
    if count != len(settled):
        raise _superseded(settled)


async def _retry(connection: Connection, retried: list[Parked]) -> None:
    last = {parked.seq: parked for parked in retried}  # of the same event, the last one counts
    rows = [(p.seq, p.due, p.attempt, _encode(p.history)) for p in last.values()]
    done = await connection.execute(_RETRIED, *_columns(rows, 4))
    if done != f"UPDATE {len(rows)}":
        raise _superseded(retried)


def _superseded(parked: list[Parked]) -> Superseded:
    events = ", ".join(f"{one.event_id} of {one.handler}" for one in parked)
    return Superseded(f"settled already: event {events}")


def _columns(rows: list[Any], count: int) -> list[tuple[Any, ...]]:
    return list(zip(*rows, strict=True)) if rows else [()] * count


def _announced(one: Announcement) -> tuple[Any, ...]:
    return (
        one.due, one.stream, one.key, _encode(one.headers), one.data, one.event_id, one.name
    )  # fmt: skip


def _parked(one: Parked) -> tuple[Any, ...]:
    return (
        one.event_id, one.source, one.handler, one.stream, one.partition, one.position, one.chain,
        one.due, one.attempt, _encode(one.history), None if one.key is None else _text(one.key),
        _encode(one.headers), one.data, one.reader,
    )  # fmt: skip


def _dead(one: DeadLetter) -> tuple[Any, ...]:
    kind, reason = _text(one.type), _text(one.reason)
    return (
        _text(one.event_id), _text(one.source), kind, one.handler, one.stream, one.partition,
        one.position, None if one.key is None else _text(one.key), reason, _text(one.traceback),
        one.attempts, _encode(one.history), _encode(one.headers), one.data, one.time,
        one.reader, cause_of(one.handler, kind, reason),
    )  # fmt: skip


def _text(value: str) -> str:
    """Return the text without NUL, which PostgreSQL can't store and a dead letter may contain."""
    return value.replace("\0", "\ufffd") if "\0" in value else value


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"
