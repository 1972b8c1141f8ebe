"""The default broker: all streams of a system in one SQLite file, used by many processes at once.

An append is durable when `publish` returns; appends of one process that arrive while another is
being flushed share the next commit, and processes queue for the file by its lock. Readers go by
position; a committer wakes them with a datagram (see `oyez.sqlite`), and a slow poll is the
safety net where that can't reach. Old records are deleted by age and by size.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import Annotated, TypeVar
from zlib import crc32

import apsw
import msgspec

from oyez.ambient import Ambient
from oyez.brokers.kit.calls import Deadline
from oyez.brokers.kit.heads import Heads
from oyez.brokers.kit.streams import Place, Streams, behind, check_count, partitions_of
from oyez.brokers.kit.watch import Look, every, stop
from oyez.endpoint import BatchBytes, Count, Partitions, Retention, Seconds, limits
from oyez.errors import (
    BrokerCorrupt,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
)
from oyez.ports import BEGINNING, Batch, Capabilities, Finding, Position, Record
from oyez.sqlite import SqliteFile

STEPS = (
    """
create table partition (
  id integer primary key, stream text not null, partition integer not null,
  last integer not null default 0,
  unique (stream, partition)
);
create table record (
  partition integer not null, position integer not null,
  time real not null, key text, headers blob not null, data blob, crc integer not null,
  primary key (partition, position)
) without rowid;
create table housekeeping (id integer primary key check (id = 1), due real not null);
insert into housekeeping values (1, 0);
""",
)
"""The schema, step by step: what changes it is appended, never edited into an earlier step."""

_encode = msgspec.json.Encoder().encode
_headers = msgspec.json.Decoder(dict[str, str]).decode


T = TypeVar("T")


class EmbeddedOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the embedded broker behaves."""

    partitions: Partitions = 8
    """How many a stream gets that is made by its first record."""
    retention: Retention = 7 * 86_400.0
    """Records older than this many seconds are deleted."""
    retention_bytes: Annotated[int, limits(1, 2**50, "bytes")] = 4 * 1024**3
    """When the file holds more than this many bytes, the oldest records are deleted."""
    batch: Count = 256
    """Records in one batch, at most."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """Bytes of data in one batch, at most (one record may exceed it alone)."""
    poll: Seconds = 0.5
    """Seconds between two looks at the file when no datagram comes."""
    deadline: Seconds = 30.0
    """Seconds after which a call gives up with BrokerUnavailable."""
    housekeeping: Seconds = 60.0
    """Seconds between two rounds of deleting, by whichever process is first."""


class EmbeddedBroker:
    """Streams in one file; the face is `oyez.ports.Broker`."""

    capabilities = Capabilities(durability="power-loss", history=True, processes=True)

    def __init__(
        self, path: Path, ambient: Ambient, options: EmbeddedOptions | None = None
    ) -> None:
        self.options = options or EmbeddedOptions()
        self._ambient = ambient
        self._file = SqliteFile(path, steps=STEPS)
        self._path = path
        self._streams: Streams[list[int]] = Streams()
        self._ends: dict[Place, Position] = {}
        self._heads: Heads[Place] = Heads()
        self._look = Look(self._refresh, f"look {path.name}")
        self._poller: asyncio.Task[None] | None = None

    async def open(self) -> None:
        if self._poller is not None:
            return
        try:
            await self._file.open()
        except StoreError as error:
            raise _as_broker_error(error) from error
        self._file.on_ring(self._look.soon)
        await self._refresh()
        self._poller = asyncio.create_task(
            every(self._ambient, self.options.poll, self._poll), name=f"poll {self._path.name}"
        )

    async def close(self) -> None:
        await stop(self._poller)
        await self._look.stop()
        self._poller = None
        await self._file.close()

    async def publish(self, records: Sequence[Record]) -> None:
        append = partial(self._append, records, [_encode(record.headers) for record in records])
        await self._call(self._file.write(partial(append, self._ambient.now()), ring=True))

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        place = (stream, partition)
        while True:
            if self._ends.get(place, BEGINNING) > after:
                batch = await self._call(self._file.read(partial(self._fetch, place, after)))
                if batch is not None:
                    after = batch.records[-1].position
                    yield batch
                    continue
                # Everything up to the head was deleted by retention.
                self._ends.pop(place, None)
            await self._heads.wait(place)

    async def streams(self) -> Mapping[str, int]:
        await self._refresh()
        return {stream: len(places) for stream, places in self._streams.known.items()}

    async def create(self, stream: str, partitions: int) -> None:
        def make(connection: apsw.Connection) -> int:
            sql = "select count(*) from partition where stream = ?"
            found: int = connection.execute(sql, (stream,)).get
            return found or len(self._make(connection, stream, partitions))

        check_count(stream, await self._call(self._file.write(make, ring=True)), partitions)

    async def ends(self, stream: str) -> Sequence[Position]:
        sql = "select last from partition where stream = ? order by partition"
        return await self._call(
            self._file.read(lambda c: [last for (last,) in c.execute(sql, (stream,))])
        )

    async def starts(self, stream: str) -> Sequence[Position]:
        sql = """select coalesce(
            (select min(position) - 1 from record where partition = partition.id), last)
          from partition where stream = ? order by partition"""
        return await self._call(
            self._file.read(lambda c: [start for (start,) in c.execute(sql, (stream,))])
        )

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        return behind(await self.ends(stream), positions)

    async def inspect(self) -> Sequence[Finding]:
        return await self._call(self._file.inspect())

    def handled(self, stream: str, partition: int, position: Position) -> None:
        pass  # records stay for other readers

    def on_streams(self, callback: Callable[[], None]) -> None:
        self._streams.listen(callback)

    # -- waking readers, on the event loop --------------------------------------------------------

    async def _refresh(self) -> None:
        sql = "select id, stream, partition, last from partition order by stream, partition"
        rows = await self._call(self._file.read(lambda c: list(c.execute(sql))))
        ids: dict[str, list[int]] = {}
        for identity, stream, partition, last in rows:
            ids.setdefault(stream, []).append(identity)
            place = (stream, partition)
            if last > self._ends.get(place, BEGINNING):
                self._ends[place] = last
                self._heads.wake(place)
        self._streams.replace(ids)

    async def _poll(self) -> None:
        await self._refresh()
        await self._keep_house()

    async def _keep_house(self) -> None:
        now = self._ambient.now()
        sql = "select due from housekeeping"
        if await self._call(self._file.read(lambda c: c.execute(sql).get)) > now:
            return
        while await self._call(self._file.write(partial(self._delete_old, now))):
            await self._ambient.sleep(0.05)  # let appends go between two rounds

    async def _call(self, answer: Awaitable[T]) -> T:
        try:
            async with Deadline(self.options.deadline, self._path):
                return await answer
        except StoreError as error:
            raise _as_broker_error(error) from error

    # -- what runs on the file's threads ----------------------------------------------------------

    def _append(
        self,
        records: Sequence[Record],
        encoded: Sequence[bytes],
        now: float,
        connection: apsw.Connection,
    ) -> None:
        streams = {record.stream for record in records}
        places = {stream: self._places(connection, stream) for stream in streams}
        indexes = partitions_of(records, {stream: len(places[stream]) for stream in streams})
        last: dict[int, int] = {}
        rows = []
        for record, headers, index in zip(records, encoded, indexes, strict=True):
            place = places[record.stream][index]
            position = last.get(place)
            if position is None:
                sql = "select last from partition where id = ?"
                position = connection.execute(sql, (place,)).get
            position += 1
            last[place] = position
            key, data = record.key, record.data
            crc = _sum(None if key is None else key.encode(), headers, data)
            rows.append((place, position, now, key, headers, data, crc))
        connection.executemany("insert into record values (?, ?, ?, ?, ?, ?, ?)", rows)
        connection.executemany(
            "update partition set last = ? where id = ?",
            [(position, place) for place, position in last.items()],
        )

    def _places(self, connection: apsw.Connection, stream: str) -> list[int]:
        # Only what a reader has seen committed is remembered: a stream made here may still be
        # rolled back, and its numbers given to another.
        known = self._streams.known.get(stream)
        if known is not None:
            return known
        sql = "select id from partition where stream = ? order by partition"
        found = [place for (place,) in connection.execute(sql, (stream,))]
        return found or self._make(connection, stream, self.options.partitions)

    def _make(self, connection: apsw.Connection, stream: str, partitions: int) -> list[int]:
        sql = "insert into partition (stream, partition) values (?, ?) returning id"
        return [connection.execute(sql, (stream, index)).get for index in range(partitions)]

    def _fetch(self, place: Place, after: Position, connection: apsw.Connection) -> Batch | None:
        stream, partition = place
        sql = """select position, time, cast(key as blob), headers, data, crc from record
          where partition = ? and position > ? order by position limit ?"""
        records: list[Record] = []
        room = self.options.batch_bytes
        identity = self._streams.known[stream][partition]
        rows = connection.execute(sql, (identity, after, self.options.batch))
        for position, time, key, headers, data, crc in rows:
            if not _sound(key, headers, data, crc):
                raise BrokerCorrupt(
                    f"{self._path}: record {position} of {stream}[{partition}] fails its checksum: "
                    "the disk or the file is damaged; restore the file from a backup"
                )
            records.append(
                Record(
                    stream=stream,
                    key=None if key is None else key.decode(),
                    headers=_headers(headers),
                    data=data,
                    partition=partition,
                    position=position,
                    time=time,
                )
            )
            room -= len(data or b"")
            if room <= 0:
                break
        if not records:
            return None
        return Batch(records, missed=records[0].position - after - 1)

    def _delete_old(self, now: float, connection: apsw.Connection) -> bool:
        """Delete a bounded number of records; whether there may be more to delete."""
        count = 1_000
        places = list(connection.execute("select id, last from partition"))
        horizon = now - self.options.retention
        more = False
        for place, _ in places:
            more = self._delete(connection, place, horizon, count) or more
        pages, free, size = (
            connection.pragma(name) for name in ("page_count", "freelist_count", "page_size")
        )
        used = (pages - free) * size
        excess = used - self.options.retention_bytes
        if excess > 0:
            sql = "select time, position from record where partition = ? order by position limit 1"
            firsts = [
                (time, place, last - position + 1)
                for place, last in places
                for time, position in connection.execute(sql, (place,))
            ]
            if firsts:
                records = sum(number for _, _, number in firsts)
                share = ceil(records * excess / used)
                self._delete(connection, min(firsts)[1], inf, min(share, count))
                more = True
        for _ in connection.execute("pragma incremental_vacuum(1000)"):
            pass  # each row frees one page
        connection.execute("update housekeeping set due = ?", (now + self.options.housekeeping,))
        return more

    def _delete(self, connection: apsw.Connection, place: int, horizon: float, count: int) -> bool:
        """Delete up to ``count`` of the oldest records before ``horizon``; whether it was full."""
        sql = "select position, time from record where partition = ? order by position limit ?"
        old = [pos for pos, time in connection.execute(sql, (place, count)) if time < horizon]
        if old:
            sql = "delete from record where partition = ? and position <= ?"
            connection.execute(sql, (place, old[-1]))
        return len(old) == count


def _sum(key: bytes | None, headers: bytes, data: bytes | None) -> int:
    return crc32(data or b"", crc32(key or b"", crc32(headers)))


def _sound(key: object, headers: object, data: object, crc: object) -> bool:
    if not isinstance(headers, bytes) or not isinstance(data, bytes | None):
        return False
    return isinstance(key, bytes | None) and _sum(key, headers, data) == crc


def _as_broker_error(error: StoreError) -> BrokerError:
    if isinstance(error, StoreCorrupt):
        return BrokerCorrupt(str(error))
    if isinstance(error, StoreUnavailable):
        return BrokerUnavailable(str(error))
    return BrokerRefused(str(error))
