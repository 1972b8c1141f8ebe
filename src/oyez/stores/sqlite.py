"""The default store: one SQLite file per service, also shared by the service's replicas.

All transactions of a process go through one writer and are flushed together (see
`oyez.sqlite`); replicas on the same machine queue for the file by its lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import apsw
import msgspec

from oyez.ambient import Ambient
from oyez.causes import cause_of, causes_of
from oyez.endpoint import located
from oyez.errors import Fenced, StateConflict, StoreMissing, StoreRefused, Superseded
from oyez.ports import (
    Announcement,
    Answer,
    Capabilities,
    Changes,
    Claim,
    DeadLetter,
    Finding,
    Kept,
    Parameters,
    Parked,
    Position,
    Row,
    Store,
    Writes,
    rounds,
)
from oyez.presence import Presence
from oyez.sqlite import SqliteFile, Step, Turn, answer, bind
from oyez.tables import SET_CAUSE, WITHOUT_CAUSE, Inbox, Outbox, halves, reserved

_AUDIT = """
create table oyez_audit (
  id integer primary key autoincrement,
  time real not null, who text not null, via text not null, act text not null,
  target text not null, reason text not null, before text not null, after text not null
);
create index oyez_audit_time on oyez_audit (time);

alter table oyez_dead add column cause text not null default '';
create index oyez_dead_cause on oyez_dead (state, cause, id, time);
create index oyez_dead_key on oyez_dead (substr(key, 1, 100), id) where state = 'dead';

alter table oyez_timer add column traceparent text;
alter table oyez_timer add column tracestate text;
"""


def _add_audit(connection: apsw.Connection) -> None:
    """Add the audit, and to each dead letter its cause, some at a time."""
    _finish(connection.execute(_AUDIT))
    while rows := bind(connection, WITHOUT_CAUSE, {}):
        connection.executemany(SET_CAUSE, causes_of(rows))


STEPS: tuple[Step, ...] = (
    """
create table oyez_inbox (
  seq integer primary key,
  event_id text not null, source text not null, handler text not null,
  seen real not null,
  state integer not null default 0,      -- oyez.tables.Inbox
  stream text, partition integer, position integer, chain text,
  due real, attempt integer, history blob, key text, headers blob, data blob
);
create unique index oyez_inbox_event on oyez_inbox (event_id, source, handler);
create index oyez_inbox_due on oyez_inbox (handler, due) where state = 2;
create index oyez_inbox_chain on oyez_inbox (stream, partition, chain, seq) where state > 0;

create table oyez_outbox (
  seq integer primary key autoincrement,
  due real not null default 0,           -- 0: as soon as possible
  stream text not null, key text, headers blob not null, data blob not null
);
create index oyez_outbox_due on oyez_outbox (due, seq);

create table oyez_cursor (
  stream text not null, partition integer not null, position integer not null default 0,
  owner text, epoch integer not null default 0,
  crashes integer not null default 0, crashed_at integer not null default -1,
  primary key (stream, partition)
) without rowid;

create table oyez_replica (
  owner text primary key, until real not null, started real not null, note text not null
) without rowid;

create table oyez_dead (
  id integer primary key autoincrement,
  event_id text not null, source text not null, type text not null, handler text not null,
  stream text not null, partition integer not null, position integer not null, key text,
  reason text not null, traceback text not null, attempts integer not null,
  history blob not null, headers blob not null, data blob, time real not null,
  state text not null default 'dead', note text not null default ''
);
create index oyez_dead_state on oyez_dead (state, id);

create table oyez_migration (name text primary key, digest text not null, applied real not null)
  without rowid;
""",
    """
alter table oyez_inbox add column reader text not null default '';
drop index oyez_inbox_event;
create unique index oyez_inbox_event on oyez_inbox (event_id, source, handler, reader);
drop index oyez_inbox_chain;
create index oyez_inbox_chain on oyez_inbox (stream, partition, chain, reader, seq) where state > 0;

alter table oyez_outbox add column state integer not null default 0;
drop index oyez_outbox_due;
create index oyez_outbox_due on oyez_outbox (due, seq) where state = 0;
create index oyez_outbox_held on oyez_outbox (stream, key) where state > 0;

alter table oyez_dead add column reader text not null default '';

create table oyez_cursor_2 (
  stream text not null, partition integer not null, reader text not null default '',
  position integer not null default 0,
  owner text, epoch integer not null default 0,
  crashes integer not null default 0, crashed_at integer not null default -1,
  primary key (stream, partition, reader)
) without rowid;
insert into oyez_cursor_2 (stream, partition, position, owner, epoch, crashes, crashed_at)
 select stream, partition, position, owner, epoch, crashes, crashed_at from oyez_cursor;
drop table oyez_cursor;
alter table oyez_cursor_2 rename to oyez_cursor;
""",
    """
create table oyez_state (
  kind text not null, key text not null,
  version integer not null, shape integer not null, data blob not null, changed real not null,
  status text, step text, started real, ended real, correlationid text,
  primary key (kind, key)
) without rowid;
create index oyez_state_status on oyez_state (kind, status, changed) where status is not null;
create index oyez_state_ended on oyez_state (ended) where ended is not null;
create view oyez_saga as
 select kind, key, version, shape, data, changed, status, step, started, ended, correlationid
 from oyez_state where status is not null;

create table oyez_saga_log (
  kind text not null, key text not null, version integer not null,
  at real not null, event_id text not null, type text not null, step text not null,
  outputs blob not null,
  primary key (kind, key, version)
) without rowid;

create table oyez_timer (
  kind text not null, key text not null, name text not null,
  due real not null, part integer not null, armed real not null,
  primary key (kind, key, name)
) without rowid;
create index oyez_timer_due on oyez_timer (part, kind, due);

alter table oyez_outbox add column event_id text;
alter table oyez_outbox add column name text;
create index oyez_outbox_event on oyez_outbox (event_id) where event_id is not null;
create unique index oyez_outbox_name on oyez_outbox (name) where name is not null;
""",
    _add_audit,
    """
alter table oyez_timer add column authid text;
alter table oyez_timer add column authtype text;
""",
)
"""The schema as steps: a change is a new step at the end; steps are never edited."""
_FOR_EVER = 1e12

_encode = msgspec.json.Encoder().encode
_headers = msgspec.json.Decoder(dict[str, str]).decode
_history = msgspec.json.Decoder(list[dict[str, Any]]).decode

_FENCE = """update oyez_cursor set position = coalesce(:position, position)
 where stream = :stream and partition = :partition and reader = :reader
  and owner = :owner and epoch = :epoch"""
_HANDLED = "insert into oyez_inbox (event_id, source, handler, seen, reader) values (?, ?, ?, ?, ?)"
_HANDLED_BY = """insert into oyez_inbox (event_id, source, handler, seen, reader)
 select value, ?, ?, ?, ? from json_each(?)"""
_MANY = 8
"""As many events of one source for one handler are one statement: a step of SQLite is a hand-over
of the interpreter's lock, so rows that share a step cost half of what they cost alone."""
_AT_ONCE = 32
"""The number of announced events that one statement inserts."""
_ANNOUNCED = "insert into oyez_outbox (due, stream, key, headers, data) values (?, ?, ?, ?, ?)"
_ANNOUNCED_AT_ONCE = _ANNOUNCED + ", (?, ?, ?, ?, ?)" * (_AT_ONCE - 1)
_ANNOUNCED_LATER = """insert into oyez_outbox (due, stream, key, headers, data, event_id, name)
 values (?, ?, ?, ?, ?, ?, ?)
 on conflict (name) where name is not null do update set due = excluded.due,
  stream = excluded.stream, key = excluded.key, headers = excluded.headers, data = excluded.data,
  event_id = excluded.event_id"""
_SENT = "delete from oyez_outbox where seq between ? and ?"
_PARKED = f"""insert into oyez_inbox (event_id, source, handler, reader, seen, state, stream,
  partition, position, chain, due, attempt, history, key, headers, data)
 values (:event_id, :source, :handler, :reader, :seen,
  case when :chain is not null and exists (select 1 from oyez_inbox where stream = :stream
    and partition = :partition and chain = :chain and reader = :reader
    and state > {Inbox.HANDLED:d}) then {Inbox.BEHIND:d} else {Inbox.DUE:d} end,
  :stream, :partition, :position, :chain, :due, :attempt, :history, :key, :headers, :data)"""
_SETTLED = f"""update oyez_inbox set state = {Inbox.HANDLED:d}, seen = ?, due = null,
  chain = null, history = null, headers = null, data = null, key = null
 where seq = ? and state = {Inbox.DUE:d}"""
_NEXT = f"""update oyez_inbox set state = {Inbox.DUE:d}, due = 0
 where seq = (select min(seq) from oyez_inbox where stream = ? and partition = ?
   and chain = ? and reader = ? and state > {Inbox.HANDLED:d})
  and state = {Inbox.BEHIND:d}"""
_RETRIED = f"""update oyez_inbox set due = :due, attempt = :attempt, history = :history
 where seq = :seq and state = {Inbox.DUE:d}"""
_DEAD = """insert into oyez_dead (event_id, source, type, handler, reader, stream, partition,
  position, key, reason, traceback, attempts, history, headers, data, time, cause)
 values (:event_id, :source, :type, :handler, :reader, :stream, :partition, :position, :key,
  :reason, :traceback, :attempts, :history, :headers, :data, :time, :cause)"""
_SEEN = """select event_id, source, handler from oyez_inbox
 where event_id in (select value from json_each(?)) and reader = ?"""
_OUTBOX = f"""select seq, due, stream, key, headers, data from oyez_outbox
 where due = 0 and seq > :after and state = {Outbox.WAITING:d} order by seq limit :limit"""
_DELAYED = f"""select seq, due, stream, key, headers, data from oyez_outbox
 where due > 0 and due <= :now and state = {Outbox.WAITING:d}
 order by due, seq limit :limit offset :offset"""
_DUE = f"""select i.seq, event_id, source, handler, i.reader, i.stream, i.partition, i.position,
  chain, due, attempt, history, key, headers, data
 from oyez_inbox i join oyez_cursor c
  on c.stream = i.stream and c.partition = i.partition and c.reader = i.reader
 where state = {Inbox.DUE:d} and handler = :handler and due {{when}} and c.owner = :owner
 order by due, i.seq limit :limit"""
_DUE_AT_ONCE = _DUE.format(when="= 0")
_DUE_NOW = _DUE.format(when="> 0 and due <= :now")
_LOAD = """select kind, key, version, shape, data, status, step, started, ended, correlationid
 from oyez_state where kind = ? and key = ?"""
_KEEP = """update oyez_state set version = version + 1, changed = ?, shape = ?, data = ?,
  status = ?, step = ?, started = ?, ended = ?, correlationid = ?
 where kind = ? and key = ? and version = ?"""
_KEEP_NEW = """insert into oyez_state (version, changed, shape, data, status, step, started, ended,
  correlationid, kind, key) values (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing"""
_DELETE = "delete from oyez_state where kind = ? and key = ? and version = ?"
_ALIVE = """insert into oyez_replica (owner, until, started, note) values (:owner, :until, :now,
  :note) on conflict (owner) do update set until = excluded.until, note = excluded.note"""


class SqliteStore:
    """A store in one SQLite file; an `oyez.ports.Store`."""

    def __init__(
        self, path: Path, ambient: Ambient, *, inline: bool = False, durable: bool = True
    ) -> None:
        """``inline`` and ``durable`` as in `SqliteFile`: for tests alone."""
        self.capabilities = Capabilities(
            durability="power-loss" if durable else "process-crash",
            history=False,
            processes=not inline,
        )
        self._file = SqliteFile(path, steps=STEPS, inline=inline, durable=durable)
        self._ambient = ambient
        self._inline = inline
        self._presence = Presence(path)
        self._stop_keeping: Callable[[], None] | None = None

    async def open(self, *, create: bool = True) -> None:
        if not create and not self._file.path.exists():
            raise StoreMissing(f"{self._file.path} does not exist yet")
        await self._file.open(upgrade=create)

    async def close(self) -> None:
        self._stop_keeping = None
        await self._file.close()

    async def migrate(self, scripts: Sequence[tuple[str, str]]) -> list[str]:
        done = []
        for name, sql in scripts:
            now = self._ambient.now()
            if await self._file.write(partial(_migrate, name=name, sql=sql, now=now)):
                done.append(name)
        return done

    def begin(self, *, claims: bool = False) -> SqliteTransaction:
        return SqliteTransaction(self._file)

    async def fetch(self, sql: str, parameters: Parameters) -> list[Row]:
        return await self._file.read(lambda connection: bind(connection, sql, parameters))

    async def seen(
        self, events: Sequence[tuple[str, str, str]], reader: str = ""
    ) -> set[tuple[str, str, str]]:
        ids = _text({event_id for event_id, _, _ in events})
        found = await self._file.read(lambda c: c.execute(_SEEN, (ids, reader)).fetchall())
        return set(events).intersection(found) if found else set()

    async def outbox(self, after: int, now: float, limit: int) -> list[Announcement]:
        def read(connection: apsw.Connection) -> list[Announcement]:
            share = reserved(limit)
            late = list(connection.execute(_DELAYED, {"now": now, "limit": share, "offset": 0}))
            asked = {"after": after, "limit": limit - len(late)}
            rows = [*connection.execute(_OUTBOX, asked), *late]
            if len(late) == share and len(rows) < limit:
                rest = {"now": now, "limit": limit - len(rows), "offset": share}
                rows.extend(connection.execute(_DELAYED, rest))
            return [
                Announcement(
                    seq=seq, due=due, stream=stream, key=key, headers=_headers(headers), data=data
                )
                for seq, due, stream, key, headers, data in rows
            ]

        return await self._file.read(read)

    async def due(self, owner: str, handler: str, now: float, limit: int) -> list[Parked]:
        parameters = {"owner": owner, "handler": handler, "now": now, "limit": limit}

        def read(connection: apsw.Connection) -> list[Parked]:
            at_once = connection.execute(_DUE_AT_ONCE, parameters).fetchall()
            now_due = connection.execute(_DUE_NOW, parameters).fetchall()
            return [_parked(row) for row in halves(at_once, now_due, limit)]

        return await self._file.read(read)

    async def keep(self, owner: str, seconds: float, note: str) -> None:
        def renew(connection: apsw.Connection) -> None:
            now = self._ambient.now()
            # Inline, nothing renews a lease while a test moves the clock, so it must not expire.
            until = _FOR_EVER if self._inline else now + seconds
            row = {"owner": owner, "until": until, "now": now, "note": note}
            connection.execute(_ALIVE, row)

        if self._stop_keeping is None:
            self._presence.show(owner)
            await self._file.write(renew)
            self._stop_keeping = self._file.every(seconds / 3, renew)

    async def bury(self) -> None:
        rows = await self.fetch("select owner from oyez_replica", {})
        died = [row["owner"] for row in rows if self._presence.has_died(row["owner"])]
        if died:

            def end(connection: apsw.Connection) -> None:
                sql = "update oyez_replica set until = 0 where owner = ?"
                connection.executemany(sql, [(owner,) for owner in died])

            await self._file.write(end)

    async def leave(self, owner: str) -> None:
        if self._stop_keeping is not None:
            self._stop_keeping()
            self._stop_keeping = None

        def release(connection: apsw.Connection) -> None:
            connection.execute("delete from oyez_replica where owner = ?", (owner,))
            connection.execute("update oyez_cursor set owner = null where owner = ?", (owner,))

        await self._file.write(release, ring=True)
        self._presence.hide()

    async def inspect(self) -> Sequence[Finding]:
        return await self._file.inspect()

    def on_commit(self, callback: Callable[[], None]) -> None:
        self._file.on_ring(callback)

    def on_leave(self, callback: Callable[[], None]) -> None:
        pass  # a ring does not tell what of, and all commits ring


class SqliteTransaction:
    """A transaction on the file; an `oyez.ports.StoreTransaction`.

    A transaction that only writes is a single job of the writer. The first read takes a turn: no
    other transaction of any process runs until this one ends, so what was read remains true.
    """

    dialect = "sqlite"

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._turn: Turn | None = None

    async def fetch(self, sql: str, parameters: Parameters, before: Writes) -> list[Row]:
        def job(connection: apsw.Connection) -> list[Row]:
            _write(connection, before)
            return bind(connection, sql, parameters)

        return await self._take_turn().run(job)

    async def run(self, sql: str, sets: Sequence[Sequence[Any]], before: Writes) -> Answer:
        def job(connection: apsw.Connection) -> Answer:
            _write(connection, before)
            return answer(connection, sql, sets)

        return await self._take_turn().run(job)

    async def load(self, keys: Sequence[tuple[str, str]], *, alone: bool) -> list[Kept]:
        return await self._take_turn().run(partial(_load, keys=keys))

    async def rollback_to(self, savepoint: str) -> None:
        await self._take_turn().rollback_to(savepoint)

    async def commit(self, changes: Changes) -> None:
        other = changes.ring or bool(changes.parked or changes.retried)
        ring = other or bool(changes.announced)
        quiet = changes.told and not other and not any(each.due for each in changes.announced)
        job = partial(_apply, changes=changes)
        if self._turn is None:
            await self._file.write(job, ring=ring, quiet=quiet)
        else:
            await self._turn.finish(job, ring=ring, quiet=quiet)

    async def rollback(self) -> None:
        if self._turn is not None and self._turn.pending:
            # The rollback is shielded: a cancelled task must not leave the file locked.
            await asyncio.shield(self._turn.cancel())

    def _take_turn(self) -> Turn:
        if self._turn is None:
            self._turn = self._file.turn()
        return self._turn


def _apply(connection: apsw.Connection, changes: Changes) -> None:
    claim = changes.claim
    if claim is not None:
        _check(connection, claim, changes.position)
    now = changes.time
    if changes.handled:
        reader = "" if claim is None else claim.reader
        _remember(connection, changes.handled, now, reader)
    _write(connection, changes.writes)
    if changes.kept:
        _keep(connection, changes.kept, now)
    if changes.announced:
        changes.stored = _announce(connection, changes.announced)
    if changes.sent:
        connection.executemany(_SENT, _runs(changes.sent))
    if changes.dead:
        connection.executemany(_DEAD, map(_dead_row, changes.dead))
    for settled in rounds(changes.settled):
        _settle(connection, settled, now)
    for parked in changes.retried:
        connection.execute(
            _RETRIED,
            {
                "due": parked.due,
                "attempt": parked.attempt,
                "history": _encode(parked.history),
                "seq": parked.seq,
            },
        )
        _check_still_parked(connection, parked)
    for parked in changes.parked:
        connection.execute(_PARKED, _parked_row(parked, now))


def _settle(connection: apsw.Connection, settled: Sequence[Parked], now: float) -> None:
    """Settle events of different chains, and release the next of each. Raises Superseded."""
    before = connection.total_changes()
    connection.executemany(_SETTLED, [(now, parked.seq) for parked in settled])
    if connection.total_changes() - before != len(settled):
        events = ", ".join(f"{each.event_id} of {each.handler}" for each in settled)
        raise Superseded(f"settled already: event {events}")
    chains = [(p.stream, p.partition, p.chain, p.reader) for p in settled if p.chain is not None]
    connection.executemany(_NEXT, chains)


def _remember(
    connection: apsw.Connection, handled: Sequence[tuple[str, str, str]], now: float, reader: str
) -> None:
    """Add rows to the inbox."""
    groups: dict[tuple[str, str], list[str]] = {}
    for event_id, source, handler in handled:
        groups.setdefault((source, handler), []).append(event_id)
    rows: list[tuple[str, str, str, float, str]] = []
    for (source, handler), ids in groups.items():
        if len(ids) < _MANY:
            rows += [(event_id, source, handler, now, reader) for event_id in ids]
        else:
            connection.execute(_HANDLED_BY, (source, handler, now, reader, _text(ids)))
    if rows:
        connection.executemany(_HANDLED, rows)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last of each run of numbers; all are one run, or each is."""
    first, last = min(numbers), max(numbers)
    if last - first + 1 == len(numbers) == len(set(numbers)):
        return [(first, last)]
    return [(number, number) for number in numbers]


def _announce(connection: apsw.Connection, announced: Sequence[Announcement]) -> int | None:
    """Add rows to the outbox, in order; return the number of the first, if none is due later.

    One that is due later takes the place of its name.
    """
    rows = [(a.due, a.stream, a.key, _encode(a.headers), a.data) for a in announced]
    if any(a.due for a in announced):
        ids = [(a.event_id, a.name) for a in announced]
        later = [(*row, *each) for row, each in zip(rows, ids, strict=True)]
        connection.executemany(_ANNOUNCED_LATER, later)
        return None
    whole = len(rows) - len(rows) % _AT_ONCE
    for start in range(0, whole, _AT_ONCE):
        together = chain.from_iterable(rows[start : start + _AT_ONCE])
        connection.execute(_ANNOUNCED_AT_ONCE, tuple(together))
    if whole < len(rows):
        connection.executemany(_ANNOUNCED, rows[whole:])
    return connection.last_insert_rowid() - len(rows) + 1


def _load(connection: apsw.Connection, keys: Sequence[tuple[str, str]]) -> list[Kept]:
    found = {}
    for (
        kind,
        key,
        version,
        shape,
        data,
        status,
        step,
        started,
        ended,
        correlationid,
    ) in connection.executemany(_LOAD, keys):
        found[kind, key] = Kept(
            kind=kind,
            key=key,
            version=version,
            shape=shape,
            data=data,
            status=status,
            step=step,
            started=started,
            ended=ended,
            correlationid=correlationid,
        )
    return [found.get(key) or Kept(kind=key[0], key=key[1]) for key in keys]


def _keep(connection: apsw.Connection, rows: Sequence[Kept], now: float) -> None:
    """Write loaded rows, and delete those without data. Raises StateConflict."""
    before = connection.total_changes()
    expected = len(rows)
    changed, added, gone = [], [], []
    for row in rows:
        place = (row.kind, row.key)
        if row.data is None:
            gone.append((*place, row.version))
            expected -= not row.version
            continue
        fields = (
            now, row.shape, row.data, row.status, row.step, row.started, row.ended,
            row.correlationid, *place,
        )  # fmt: skip
        if row.version:
            changed.append((*fields, row.version))
        else:
            added.append(fields)
    for sql, sets in ((_KEEP, changed), (_KEEP_NEW, added), (_DELETE, gone)):
        if sets:
            connection.executemany(sql, sets)
    if connection.total_changes() - before != expected:
        raise StateConflict("keyed state was changed by a transaction that did not load it")


def _check(connection: apsw.Connection, claim: Claim, position: Position | None) -> None:
    connection.execute(
        _FENCE,
        {
            "position": position,
            "stream": claim.stream,
            "partition": claim.partition,
            "reader": claim.reader,
            "owner": claim.owner,
            "epoch": claim.epoch,
        },
    )
    if connection.changes() == 0:
        raise Fenced(f"{claim.stream}[{claim.partition}] is no longer owned by {claim.owner}")


def _check_still_parked(connection: apsw.Connection, parked: Parked) -> None:
    if connection.changes() == 0:
        raise Superseded(f"event {parked.event_id} of {parked.handler} is settled already")


def _write(connection: apsw.Connection, writes: Writes) -> None:
    for sql, rows in writes:
        if len(rows) == 1:
            cursor = connection.execute(sql, rows[0])
        else:
            cursor = connection.executemany(sql, rows)
        _finish(cursor)


def _text(values: Iterable[str]) -> str:
    """Return an array for ``json_each``."""
    return _encode(values).decode()


def _finish(cursor: apsw.Cursor) -> None:
    # apsw stops at the first row of a statement, before later statements have run.
    for _ in cursor:
        pass


def _migrate(connection: apsw.Connection, name: str, sql: str, now: float) -> bool:
    digest = sha256(sql.encode()).hexdigest()
    found = list(connection.execute("select digest from oyez_migration where name = ?", (name,)))
    if found:
        if found[0][0] != digest:
            raise StoreRefused(
                f"migration {name} has run and was changed since: restore it and put the change "
                "into a new file with the next number"
            )
        return False
    try:
        _finish(connection.execute(sql))
    except apsw.SQLError as error:
        raise StoreRefused(f"migration {name}: {error}") from error
    connection.execute("insert into oyez_migration values (?, ?, ?)", (name, digest, now))
    return True


def _parked_row(parked: Parked, now: float) -> dict[str, Any]:
    return {
        "event_id": parked.event_id,
        "source": parked.source,
        "handler": parked.handler,
        "reader": parked.reader,
        "seen": now,
        "stream": parked.stream,
        "partition": parked.partition,
        "position": parked.position,
        "chain": parked.chain,
        "due": parked.due,
        "attempt": parked.attempt,
        "history": _encode(parked.history),
        "key": parked.key,
        "headers": _encode(parked.headers),
        "data": parked.data,
    }


def _parked(row: Iterable[Any]) -> Parked:
    (seq, event_id, source, handler, reader, stream, partition, position, chain, due, attempt,
     history, key, headers, data) = row  # fmt: skip
    return Parked(
        seq=seq,
        event_id=event_id,
        source=source,
        handler=handler,
        reader=reader,
        stream=stream,
        partition=partition,
        position=position,
        chain=chain,
        due=due,
        attempt=attempt,
        history=_history(history),
        key=key,
        headers=_headers(headers),
        data=data,
    )


def _dead_row(dead: DeadLetter) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.structs.asdict(dead)
    row["history"] = _encode(dead.history)
    row["headers"] = _encode(dead.headers)
    row["cause"] = cause_of(dead.handler, dead.type, dead.reason)
    return row


def connect(url: str, ambient: Ambient, *, root: Path) -> Store:
    """Return the store in a URL's file, not opened yet; see `oyez.stores.Connect`."""
    return SqliteStore(root / url.partition(":")[2], ambient)


def site(url: str, *, root: Path) -> str:
    """Return the site of a URL, its file; see `oyez.sites.Site`."""
    return f"sqlite:{located(url, root)}"
