"""PostgreSQL as an append log: rows of one table, numbered without gaps in each partition.

An append takes the advisory locks of the partitions that it goes to, always in the same order, and
numbers on from the last record of each: so commit order is position order, a reader never passes a
record that is not committed yet, and publishers of different partitions do not wait for each other.
No row counts, since each change of one leaves a dead version behind that the next has to walk past
while any old transaction is open (a backup, say). Calls of one process that wait while an append is
under way go together into the next. Readers are told by a notification that is sent after the
commit, since one within it would make all commits of the server wait for each other; a slow look at
the ends of all partitions is the safety net.

A producer in another language calls one function, in a transaction of its own if it likes, and
gets the position; it computes the partition from the key as Kafka does. While that transaction is
open, others who publish to the same partition wait::

    select oyez.publish('shop.orders', 'order-1', '{"specversion": "1.0", …}', '{"total": 5}')

``record.headers`` is a JSON object of CloudEvents attributes in UTF-8, ``key`` is UTF-8, ``data``
is null for a tombstone; ``progress`` shows what each consumer group has handled, for tools such as
KEDA. ``select oyez.forget_stream('shop.orders')`` deletes a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from oyez.ambient import Ambient, backoff
from oyez.endpoint import BatchBytes, Count, Endpoint, Partitions, Retention, Seconds
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable, StoreError, StoreUnavailable
from oyez.partitioning import murmur2, partition_of, partition_without_key
from oyez.ports import BEGINNING, Batch, Capabilities, Finding, Position, Record, weigh
from oyez.postgresql import (
    Listener,
    Missing,
    PostgresServer,
    ServerOptions,
    as_broker_error,
)

SCHEMA = """
create table {schema}.setup (version int not null, tidied double precision not null);
insert into {schema}.setup values ({version}, 0);

create table {schema}.stream (
  id bigint generated always as identity primary key,
  name text not null unique, partitions int not null check (partitions > 0)
);

-- Ids begin at a number of chance, so that those of an earlier schema never mean something else.
create table {schema}.partition (
  id bigint generated always as identity (start with {start}) primary key,
  stream bigint not null references {schema}.stream on delete cascade, partition int not null,
  first bigint not null default 0,       -- up to here, records have been deleted
  unique (stream, partition)
);

create table {schema}.record (
  partition bigint not null, position bigint not null,
  time double precision not null,        -- seconds since 1970, by this server's clock
  key bytea, headers bytea not null, data bytea,
  primary key (partition, position)
) with (autovacuum_vacuum_scale_factor = 0.05);
alter table {schema}.record alter data set storage external;

create view {schema}.ends as
  select s.name as stream, p.partition, p.id, p.first, coalesce((select max(r.position)
    from {schema}.record r where r.partition = p.id and r.position > p.first), p.first) as last
  from {schema}.stream s join {schema}.partition p on p.stream = s.id;

create table {schema}.progress (
  consumer text not null, partition bigint not null references {schema}.partition on delete cascade,
  position bigint not null, time double precision not null,
  primary key (consumer, partition)
);

-- Appends to partitions, each named once and in order; a record's slot says to which, and nth as
-- which of the new ones there. Returns where each ended before, or nothing when one does not exist.
-- The locks come in statements of their own, so that the next one sees what was committed before.
-- Plans are kept, since making one takes longer than appending a record.
create function {schema}.append(
  places bigint[], slots int[], nths int[], keys bytea[], headers bytea[], data bytea[]
) returns bigint[] language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  locked bigint;
  ends bigint[];
begin
  foreach locked in array places loop
    perform pg_advisory_xact_lock(locked);
  end loop;
  ends := array(
    select coalesce((select max(r.position) from {schema}.record r
      where r.partition = p.id and r.position > p.first), p.first)
    from {schema}.partition p where p.id = any(places) order by p.id
  );
  if cardinality(ends) < cardinality(places) then
    return null;
  end if;
  insert into {schema}.record
    select places[r.slot], ends[r.slot] + r.nth, extract(epoch from clock_timestamp()),
      r.key, r.headers, r.data
    from unnest(slots, nths, keys, headers, data) r (slot, nth, key, headers, data);
  return ends;
end $$;

create function {schema}.make_stream(stream text, count int) returns void language plpgsql as $$
declare
  made bigint;
begin
  insert into {schema}.stream (name, partitions) values (stream, count)
    on conflict (name) do nothing returning id into made;
  if made is not null then
    insert into {schema}.partition (stream, partition)
      select made, number from generate_series(0, count - 1) number;
    perform pg_notify('{channel}', '');
  end if;
end $$;

create function {schema}.forget_stream(name text) returns void language plpgsql as $$
#variable_conflict use_column
declare
  gone bigint[] := array(select e.id from {schema}.ends e where e.stream = name order by e.id);
  locked bigint;
begin
  foreach locked in array gone loop
    perform pg_advisory_xact_lock(locked);
  end loop;
  delete from {schema}.record where partition = any(gone);
  delete from {schema}.stream s where s.name = forget_stream.name;
  perform pg_notify('{channel}', '');
end $$;

create function {schema}.forget_records(place bigint, horizon double precision, most int)
returns int language plpgsql as $$
#variable_conflict use_column
declare
  upto bigint;
  count int := 0;
begin
  select max(position) filter (where time < horizon) into upto from (
    select r.position, r.time from {schema}.record r join {schema}.partition p on p.id = place
    where r.partition = place and r.position > p.first order by r.position limit most
  ) oldest;
  if upto is not null then
    delete from {schema}.record where partition = place and position <= upto;
    get diagnostics count = row_count;
    update {schema}.partition set first = greatest(first, upto) where id = place;
  end if;
  return count;
end $$;

create function {schema}.murmur2(data bytea) returns bigint language plpgsql
immutable strict parallel safe as $$
declare
  m constant bigint := 1540483477;
  mask constant bigint := 4294967295;
  size int := length(data);
  words int := size / 4;
  h bigint := 2538058380 # size;
  k bigint;
begin
  for word in 0 .. words - 1 loop
    k := get_byte(data, word * 4)::bigint | (get_byte(data, word * 4 + 1)::bigint << 8)
      | (get_byte(data, word * 4 + 2)::bigint << 16) | (get_byte(data, word * 4 + 3)::bigint << 24);
    k := k * m & mask;                   -- below 2^63, as m is below 2^31
    k := k # (k >> 24);
    h := (h * m & mask) # (k * m & mask);
  end loop;
  if size % 4 = 3 then h := h # (get_byte(data, words * 4 + 2)::bigint << 16); end if;
  if size % 4 >= 2 then h := h # (get_byte(data, words * 4 + 1)::bigint << 8); end if;
  if size % 4 >= 1 then h := (h # get_byte(data, words * 4)) * m & mask; end if;
  h := (h # (h >> 13)) * m & mask;
  return (h # (h >> 15)) & mask;
end $$;

create function {schema}.publish(
  stream text, key text, headers json, data bytea, partition int default null
) returns bigint language plpgsql as $$
#variable_conflict use_variable
declare
  bytes bytea := convert_to(key, 'UTF8');
  index bigint := partition;
  count int;
  place bigint;
  ends bigint[];
  at bigint;
begin
  select s.partitions into count from {schema}.stream s where s.name = stream;
  if count is null then
    raise 'stream % does not exist', stream
      using hint = 'make it: select {schema}.make_stream(''' || stream || ''', 8)';
  end if;
  if index is null then
    index := coalesce({schema}.murmur2(bytes), hashtext(headers ->> 'id'), 0);
    index := (index & 2147483647) % count;
  end if;
  select e.id into place from {schema}.ends e where e.stream = publish.stream
    and e.partition = index;
  ends := {schema}.append(
    array[place], '{{1}}', '{{1}}',
    array[bytes], array[convert_to(headers::text, 'UTF8')], array[data]
  );
  if ends is null then
    raise 'stream % has no partition %', stream, index;
  end if;
  at := ends[1] + 1;
  perform pg_notify('{channel}', place || ':' || at);
  return at;
end $$;
"""
VERSION = 1
SESSION = """set default_transaction_isolation = 'read committed';
set statement_timeout = {millis}; set tcp_keepalives_idle = 30; set tcp_keepalives_interval = 10;
set tcp_keepalives_count = 3"""
"""So that an append that nobody waits for any more ends, and does not come in long after others."""
MAX_BYTES = 32 * 1024 * 1024
"""The largest record; PostgreSQL takes more, but needs several times of it in memory."""
WINDOW = 1_024
"""Records in one append, at most."""
WINDOW_BYTES = 4 * 1024 * 1024
"""Bytes in one append, at most (one record may exceed it alone)."""
TELLING = 200
"""Partitions in one notification, at most; PostgreSQL takes 8,000 bytes."""
DELETING = 1_000
"""Records deleted in one transaction, at most."""

Place = tuple[str, int]
Row = tuple[int, str, str | None, str, bytes | None, bytes, bytes | None]
"""Size, stream, key and event id; then what is stored: key, headers, data."""

_encode = msgspec.json.Encoder().encode
_headers = msgspec.json.Decoder(dict[str, str]).decode

_APPEND = "select {schema}.append($1, $2, $3, $4, $5, $6)"
_HEADS = "select stream, partition, id, last from {schema}.ends order by stream, partition"
_RECORDS = """select position, time, key, headers, data from (
  select position, time, key, headers, data, coalesce(octet_length(data), 0) as size,
    sum(coalesce(octet_length(data), 0)) over (order by position rows unbounded preceding) as total
  from (select * from {schema}.record where partition = $1 and position > $2
    order by position limit $3) next
 ) counted where total - size < $4 order by position"""
_BOUNDS = "select first, last from {schema}.ends where stream = $1 order by partition"
_LAST = "select last from {schema}.ends where id = $1"
_TELL = "select pg_notify($1, told) from unnest($2::text[]) told"
_PROGRESS = """insert into {schema}.progress
 select $1, place, position, extract(epoch from clock_timestamp())
 from unnest($2::bigint[], $3::bigint[]) told (place, position)
   join {schema}.partition p on p.id = place
 on conflict (consumer, partition)
   do update set position = excluded.position, time = excluded.time"""
_TIDY = """update {schema}.setup set tidied = extract(epoch from clock_timestamp())
 where tidied <= extract(epoch from clock_timestamp()) - $1 returning tidied"""
_OLD = """select p.id from {schema}.partition p
 cross join lateral (select time from {schema}.record r
  where r.partition = p.id and r.position > p.first order by r.position limit 1) oldest
 where oldest.time < $1 order by p.id"""
_FORGET = "select {schema}.forget_records($1, $2, $3)"


class PostgresOptions(ServerOptions, frozen=True, kw_only=True):
    """How the PostgreSQL broker behaves."""

    partitions: Partitions = 8
    """How many a stream gets that is made by its first record."""
    retention: Retention = 7 * 86_400.0
    """Records older than this many seconds are deleted."""
    batch: Count = 256
    """Records in one batch, at most."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """Bytes of data in one batch, at most (one record may exceed it alone)."""
    poll: Seconds = 0.5
    """Seconds between two looks at the ends of all partitions."""
    housekeeping: Seconds = 60.0
    """Seconds between two rounds of deleting, by whichever process is first."""


class PostgresBroker:
    """Streams in one schema of a database; the face is `oyez.ports.Broker`."""

    def __init__(
        self, endpoint: Endpoint, ambient: Ambient, options: PostgresOptions, group: str = ""
    ) -> None:
        """``group`` is the consumer under which `handled` shows what is committed."""
        self.options = options
        self.capabilities = Capabilities(
            durability="process-crash", history=True, processes=True, max_bytes=MAX_BYTES
        )
        self._ambient = ambient
        self._group = group
        self._server = PostgresServer(
            endpoint, ambient, options, session=SESSION.format(millis=int(options.deadline * 1000))
        )
        self._channel = f"{options.schema}.record"
        self._listener = Listener(self._server, self._channel, self._hear, self._look)
        self._installed = False
        self._closed = False
        self._heads = _Heads()
        self._listeners: list[Callable[[], None]] = []
        self._queue: deque[_Append] = deque()
        self._appending: asyncio.Task[None] | None = None
        self._moved: dict[int, Position] = {}
        self._telling: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._again = False
        self._handled: dict[Place, Position] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """See `Broker.open`."""
        if self._tasks:
            return
        self._closed = False
        try:
            await self._refresh(patient=False)
        except BrokerUnavailable:
            self._start()
            raise
        self._start()

    async def close(self) -> None:
        """See `Broker.close`."""
        tasks, self._tasks = self._tasks, []
        if self._appending is not None:
            await asyncio.wait([self._appending])
        await self._listener.stop()
        for task in (*tasks, self._telling, self._looking):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._handled:
            with contextlib.suppress(BrokerError):
                await self._show_handled()
        self._closed = True
        await self._server.close()

    async def publish(self, records: Sequence[Record]) -> None:
        """See `Broker.publish`."""
        rows = [_row(record) for record in records]
        for window in _windows(rows):
            await self._append(window)

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        """See `Broker.read`."""
        cursor = _Cursor((stream, partition), after)
        while True:
            try:
                batch = await self._next(cursor)
            except BrokerUnavailable:
                if not self._tasks:
                    raise
                continue  # the call has waited for its deadline
            if batch is None:
                await self._heads.wait(cursor.place)
            else:
                yield batch

    def handled(self, stream: str, partition: int, position: Position) -> None:
        """See `Broker.handled`."""
        if self._group:
            self._handled[stream, partition] = position

    async def streams(self) -> Mapping[str, int]:
        """See `Broker.streams`."""
        await self._refresh()
        return {stream: len(ids) for stream, ids in self._heads.ids.items()}

    async def create(self, stream: str, partitions: int) -> None:
        """See `Broker.create`."""
        await self._make(stream, partitions)
        found = len(self._heads.ids.get(stream, ()))
        if found != partitions:
            raise BrokerRefused(
                f"stream {stream} has {found} partitions, not {partitions}: the number is fixed "
                "when a stream is made; set system.partitions to it or use a new stream"
            )

    async def ends(self, stream: str) -> Sequence[Position]:
        """See `Broker.ends`."""
        return [row["last"] for row in await self._fetch(_BOUNDS, stream)]

    async def starts(self, stream: str) -> Sequence[Position]:
        """See `Broker.starts`."""
        return [row["first"] for row in await self._fetch(_BOUNDS, stream)]

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        """See `Broker.lag`."""
        ends = await self.ends(stream)
        return {p: max(0, ends[p] - at) for p, at in positions.items() if 0 <= p < len(ends)}

    async def inspect(self) -> Sequence[Finding]:
        """See `Broker.inspect`."""
        try:
            return await self._server.inspect()
        except StoreError as error:
            raise as_broker_error(error) from error

    def on_streams(self, callback: Callable[[], None]) -> None:
        """See `Broker.on_streams`."""
        self._listeners.append(callback)

    # -- talking to the server ---------------------------------------------------------------------

    def _start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._watch(), name="postgres watch"),
            asyncio.create_task(self._keep_house(), name="postgres housekeeping"),
        ]
        self._listener.start()

    async def _fetch(
        self, sql: str, *parameters: Any, patient: bool = True, share: float = 0.5
    ) -> list[Any]:
        """The rows of a statement, which runs again while the server is out of reach, if patient.

        One attempt may take ``share`` of the deadline, so that another fits in when the connection
        had died.
        """
        statement = sql.format(schema=f'"{self.options.schema}"')
        if self._closed:
            raise BrokerUnavailable(f"{self._server.name}: the broker is closed")
        failures = 0
        deadline = self.options.deadline
        problem = f"{self._server.name} did not answer within {deadline:g} s"
        try:
            async with asyncio.timeout(deadline):
                while True:
                    try:
                        await self._install()
                        async with self._server.connection(deadline * share) as connection:
                            return await connection.fetch(statement, *parameters)
                    except StoreError as error:
                        if isinstance(error, Missing):
                            self._installed = False  # someone dropped the schema
                        elif not isinstance(error, StoreUnavailable):
                            raise
                        problem = str(error)
                        if not patient or not self._tasks:
                            raise
                    failures += 1
                    await self._ambient.sleep(backoff(failures, self._ambient.chance(), most=1.0))
        except TimeoutError as error:
            raise BrokerUnavailable(problem) from error
        except StoreError as error:
            raise as_broker_error(error) from error

    async def _install(self) -> None:
        """Make the schema where it is missing."""
        if self._installed:
            return
        name = self.options.schema
        async with self._server.connection() as connection, connection.transaction():
            # Two processes that make the schema at once would fail on each other.
            await connection.execute("select pg_advisory_xact_lock(hashtext($1))", self._channel)
            exists = "select true from pg_namespace where nspname = $1"
            if not await connection.fetchval(exists, name):
                await connection.execute(f'create schema "{name}"')
            if await connection.fetchval("select to_regclass($1)", f'"{name}".setup') is None:
                script = SCHEMA.format(
                    schema=f'"{name}"',
                    channel=self._channel,
                    version=VERSION,
                    start=1 + (self._ambient.bits(40) << 20),
                )
                await connection.execute(script)
            version = await connection.fetchval(f'select version from "{name}".setup')
        if version > VERSION:
            raise BrokerRefused(
                f"{self._server.name}: schema {name} was made by a newer Oyez (version {version}, "
                f"this one knows {VERSION}): upgrade Oyez"
            )
        self.capabilities = Capabilities(
            durability=await self._server.durability(),
            history=True,
            processes=True,
            max_bytes=MAX_BYTES,
        )
        self._installed = True

    # -- appending ---------------------------------------------------------------------------------

    async def _append(self, rows: list[Row]) -> None:
        entry = _Append(rows, asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        if self._appending is None or self._appending.done():
            self._appending = asyncio.create_task(self._work(), name="postgres append")
        try:
            async with asyncio.timeout(self.options.deadline):
                await entry.done
        except TimeoutError as error:
            raise BrokerUnavailable(
                f"{self._server.name} did not confirm within {self.options.deadline:g} s"
            ) from error

    async def _work(self) -> None:
        while self._queue:
            entries = self._take()
            try:
                await self._append_now([row for entry in entries for row in entry.rows])
            except BrokerRefused as error:
                # One of them is at fault: the others should not fail with it.
                if len(entries) == 1:
                    entries[0].fail(error)
                else:
                    await self._append_each(entries)
            except BaseException as error:  # noqa: BLE001 - it is the callers'
                for entry in entries:
                    entry.fail(error)
            else:
                for entry in entries:
                    entry.succeed()

    def _take(self) -> list[_Append]:
        """The waiting appends that go together."""
        taken: list[_Append] = []
        count = size = 0
        while self._queue:
            entry = self._queue[0]
            count += len(entry.rows)
            size += entry.size
            if taken and (count > WINDOW or size > WINDOW_BYTES):
                break
            self._queue.popleft()
            if not entry.done.done():  # else its caller has given up while it waited
                taken.append(entry)
        return taken

    async def _append_each(self, entries: list[_Append]) -> None:
        for entry in entries:
            try:
                await self._append_now(entry.rows)
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                entry.fail(error)
            else:
                entry.succeed()

    async def _append_now(self, rows: list[Row]) -> None:
        while rows:
            for stream in {row[1] for row in rows} - self._heads.ids.keys():
                await self._make(stream, self.options.partitions)
            counts, parameters = _arrays(rows, self._heads.ids)
            ((ends,),) = await self._fetch(_APPEND, list(counts), *parameters, share=1.0)
            if ends is not None:
                moved = {
                    identity: end + count
                    for (identity, count), end in zip(counts.items(), ends, strict=True)
                }
                for identity, last in moved.items():
                    self._heads.move(identity, last)
                if self.options.listen != "poll":
                    self._tell(moved)
                return
            await self._refresh()  # a stream was deleted, and its partitions are no more

    async def _make(self, stream: str, partitions: int) -> None:
        await self._fetch("select {schema}.make_stream($1, $2)", stream, partitions)
        await self._refresh()

    # -- telling and hearing -----------------------------------------------------------------------

    def _tell(self, moved: Mapping[int, Position]) -> None:
        """Tell the other processes where partitions end now, one message at a time."""
        self._moved.update(moved)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_all(), name="postgres notify")

    async def _tell_all(self) -> None:
        while self._moved:
            moved, self._moved = list(self._moved.items()), {}
            told = [
                ",".join(f"{identity}:{last}" for identity, last in moved[i : i + TELLING])
                for i in range(0, len(moved), TELLING)
            ]
            with contextlib.suppress(BrokerError):  # who is not told looks by itself
                await self._fetch(_TELL, self._channel, told, patient=False)

    def _hear(self, payload: str) -> None:
        for told in payload.split(","):
            identity, _, last = told.partition(":")
            if not (last.isdecimal() and self._heads.move(int(identity), int(last))):
                self._look()  # a stream was made or deleted
                return

    def _look(self) -> None:
        # Reasons come faster than looks: one look at a time, and one more if there was a reason.
        if self._looking is not None and not self._looking.done():
            self._again = True
            return
        self._looking = asyncio.create_task(self._look_now(), name="postgres look")

    async def _look_now(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            with contextlib.suppress(BrokerError):  # whoever reads or publishes reports it
                await self._refresh()

    async def _refresh(self, *, patient: bool = True) -> None:
        before = self._heads.snapshot()
        rows = await self._fetch(_HEADS, patient=patient)
        if self._heads.replace(rows, before):
            for callback in self._listeners:
                callback()

    async def _watch(self) -> None:
        shown = self._ambient.monotonic()
        while True:
            await self._ambient.sleep(self.options.poll)
            with contextlib.suppress(BrokerError):  # whoever reads or publishes reports it
                await self._refresh()
                if self._handled and self._ambient.monotonic() - shown >= 1.0:
                    shown = self._ambient.monotonic()
                    await self._show_handled()

    async def _show_handled(self) -> None:
        moved, self._handled = self._handled, {}
        known = {
            self._heads.ids[stream][partition]: position
            for (stream, partition), position in moved.items()
            if partition < len(self._heads.ids.get(stream, ()))
        }
        try:
            await self._fetch(_PROGRESS, self._group, list(known), list(known.values()))
        except BrokerError:
            self._handled = {**moved, **self._handled}
            raise

    # -- reading -----------------------------------------------------------------------------------

    async def _next(self, cursor: _Cursor) -> Batch | None:
        """What stands behind the cursor, which moves on; None when nothing does yet."""
        while (head := self._heads.get(cursor.place)) is not None:
            cursor.follow(head.id)
            if head.last < cursor.position:
                # What we know of the end may be old; the server knows.
                rows = await self._fetch(_LAST, head.id)
                if not rows:
                    await self._refresh()
                    continue
                if rows[0]["last"] < cursor.position:
                    cursor.restart()
                self._heads.move(head.id, rows[0]["last"])
                continue
            if head.last <= max(cursor.position, cursor.seen):
                return None
            end = head.last
            limits = (self.options.batch, self.options.batch_bytes)
            rows = await self._fetch(_RECORDS, head.id, cursor.position, *limits)
            if rows:
                return cursor.take(rows)
            cursor.seen = end  # up to there, retention has deleted everything
        return None

    # -- housekeeping ------------------------------------------------------------------------------

    async def _keep_house(self) -> None:
        while True:
            await self._ambient.sleep(self.options.housekeeping)
            with contextlib.suppress(BrokerError):
                if await self._fetch(_TIDY, self.options.housekeeping * 0.9):
                    await self._delete_old()

    async def _delete_old(self) -> None:
        (row,) = await self._fetch("select extract(epoch from clock_timestamp())::float8 as now")
        horizon = row["now"] - self.options.retention
        for (identity,) in await self._fetch(_OLD, horizon):
            while (await self._fetch(_FORGET, identity, horizon, DELETING))[0][0] == DELETING:
                await self._ambient.sleep(0.02)  # let appends go between two rounds


class _Head:
    """Where a partition ends, as far as is known, and who waits for more."""

    __slots__ = ("id", "last")

    def __init__(self, identity: int, last: Position) -> None:
        self.id = identity
        self.last = last


class _Heads:
    """The ends of all partitions, and the readers that wait for one to move."""

    def __init__(self) -> None:
        self.ids: dict[str, list[int]] = {}
        """Each stream's partitions, by the numbers that the tables know them by."""
        self._heads: dict[Place, _Head] = {}
        self._places: dict[int, Place] = {}
        self._waiting: dict[Place, asyncio.Future[None]] = {}

    def get(self, place: Place) -> _Head | None:
        return self._heads.get(place)

    def snapshot(self) -> dict[int, Position]:
        return {head.id: head.last for head in self._heads.values()}

    def move(self, identity: int, last: Position) -> bool:
        """The partition ends there, or behind it, now; False where it is not known."""
        place = self._places.get(identity)
        if place is None:
            return False
        head = self._heads[place]
        if last > head.last:
            head.last = last
            self._wake(place)
        return True

    def replace(self, rows: list[Any], before: Mapping[int, Position]) -> bool:
        """Take over what the server says; whether there are other streams than before.

        ``before`` is what was known when the server was asked: an end that lies before that has
        gone back (a backup was restored), any other may have moved on since.
        """
        ids: dict[str, list[int]] = {}
        heads: dict[Place, _Head] = {}
        for stream, partition, identity, last in rows:
            ids.setdefault(stream, []).append(identity)
            place = (stream, partition)
            head = self._heads.get(place)
            if head is None or head.id != identity:
                head = _Head(identity, last)
                self._wake(place)
            elif last > head.last or last < before.get(identity, 0):
                head.last = last
                self._wake(place)
            heads[place] = head
        changed = ids != self.ids
        self.ids = ids
        self._heads = heads
        if changed:
            self._places = {head.id: place for place, head in heads.items()}
        return changed

    async def wait(self, place: Place) -> None:
        """Return when the partition may have moved."""
        waiting = self._waiting.get(place)
        if waiting is None or waiting.done():
            waiting = self._waiting[place] = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiting)

    def _wake(self, place: Place) -> None:
        waiting = self._waiting.pop(place, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


class _Cursor:
    """How far one reader has come."""

    def __init__(self, place: Place, position: Position) -> None:
        self.place = place
        self.position = position
        self.seen = BEGINNING
        """An end up to which nothing is there any more."""
        self._id: int | None = None
        self._restarted = False

    def follow(self, identity: int) -> None:
        """Start over where the partition is another one than before."""
        if self._id is not None and self._id != identity:
            self.restart()
        self._id = identity

    def restart(self) -> None:
        self.position = self.seen = BEGINNING
        self._restarted = True

    def take(self, rows: list[Any]) -> Batch:
        stream, partition = self.place
        records = [
            Record(
                stream=stream,
                key=None if key is None else key.decode("utf-8", "surrogateescape"),
                headers=_decoded(headers),
                data=data,
                partition=partition,
                position=position,
                time=time,
            )
            for position, time, key, headers, data in rows
        ]
        batch = Batch(records, records[0].position - self.position - 1, self._restarted)
        self.position = records[-1].position
        self._restarted = False
        return batch


class _Append:
    """Records of one call, and whoever waits for them."""

    __slots__ = ("done", "rows", "size")

    def __init__(self, rows: list[Row], done: asyncio.Future[None]) -> None:
        self.rows = rows
        self.size = sum(row[0] for row in rows)
        self.done = done

    def succeed(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def _row(record: Record) -> Row:
    try:
        headers = _encode(record.headers)
    except UnicodeEncodeError:
        headers = json.dumps(record.headers).encode()
    key = None if record.key is None else record.key.encode("utf-8", "surrogateescape")
    data = record.data
    size = len(key or b"") + len(headers) + len(data or b"")
    if size > MAX_BYTES < (size := weigh(record.headers, data)):
        raise BrokerRefused(
            f"the record is {size} bytes; {MAX_BYTES} are allowed: set system.claim_check"
        )
    return (size, record.stream, record.key, record.headers.get("id", ""), key, headers, data)


def _windows(rows: list[Row]) -> Iterator[list[Row]]:
    """The rows in order, cut so that each part fits into one append."""
    window: list[Row] = []
    size = 0
    for row in rows:
        size += row[0]
        if window and (len(window) == WINDOW or size > WINDOW_BYTES):
            yield window
            window, size = [], row[0]
        window.append(row)
    if window:
        yield window


def _arrays(
    rows: list[Row], ids: Mapping[str, list[int]]
) -> tuple[dict[int, int], Sequence[list[Any]]]:
    """How many records go to each partition, in order, and the arrays to append."""
    counts: dict[int, int] = {}
    places, nths = [], []
    for _, stream, key, event_id, stored, _, _ in rows:
        partitions = ids[stream]
        if key is None or stored is None:
            index = partition_without_key(event_id, len(partitions))
        elif key.isprintable():
            index = partition_of(key, len(partitions))
        else:  # it may hold bytes that are no text
            index = (murmur2(stored) & 0x7FFFFFFF) % len(partitions)
        place = partitions[index]
        nth = counts[place] = counts.get(place, 0) + 1
        places.append(place)
        nths.append(nth)
    counts = dict(sorted(counts.items()))
    slots = {place: slot for slot, place in enumerate(counts, 1)}
    stored_columns = ([row[column] for row in rows] for column in (4, 5, 6))
    return counts, ([slots[place] for place in places], nths, *stored_columns)


def _decoded(headers: bytes) -> dict[str, str]:
    """The headers of any record; what is not ours comes as text, for the lane to judge."""
    try:
        return _headers(headers)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    try:
        found = json.loads(headers.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return {}
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in found.items()
        if value is not None
    }
