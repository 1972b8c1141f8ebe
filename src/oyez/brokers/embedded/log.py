"""The statements on the tables in the file, which run on the file's threads.

By an index that is damaged, a statement may find less than there is. A batch has a checksum, and
what is missing between two has none: so the positions of a partition's batches have to follow each
other, from its ``first`` to its ``last``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil, inf
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import apsw

from oyez.brokers.embedded.options import EmbeddedOptions
from oyez.brokers.embedded.waiting import Waiter
from oyez.brokers.embedded.wire import (
    INSERT,
    Packed,
    checksum,
    name_checksum,
    pack,
    parts,
    unpack,
)
from oyez.brokers.kit.streams import Place, partitions_of
from oyez.errors import BrokerCorrupt
from oyez.ports import BEGINNING, Batch, Position, Record

_REMEDY = "the disk or the file is damaged; restore the file from a backup"

Grown = list[tuple[int, Position]]
"""Partitions, by id, with the position of their last record."""


class Looked(NamedTuple):
    """What has happened in the file since the last look."""

    grown: Grown
    named: Mapping[int, Place]
    """Those of them that were not known before."""
    answers: Sequence[tuple[Waiter, Batch]]


class Log:
    """The log: appends, fetches and deletes batches within a transaction of the file."""

    def __init__(self, path: Path, options: EmbeddedOptions) -> None:
        self._path = path
        self._options = options

    def make(
        self, streams: Iterable[str], partitions: int, connection: apsw.Connection
    ) -> dict[str, int]:
        """Create those streams that do not exist; return the number of partitions of each."""
        counts: dict[str, int] = {}
        for stream in streams:
            sql = "select count(*) from partition not indexed where stream = ?"
            counts[stream] = connection.execute(sql, (stream,)).get or partitions
            sql = "insert or ignore into partition (stream, partition, crc) values (?, ?, ?)"
            wanted = [
                (stream, index, name_checksum(stream, index)) for index in range(counts[stream])
            ]
            connection.executemany(sql, wanted)
        return counts

    def pack(self, records: Sequence[Record], streams: Mapping[str, list[int]]) -> list[Packed]:
        """Pack records, one batch for each partition; ``streams`` has the ids of those."""
        counts = {stream: len(streams[stream]) for stream in {one.stream for one in records}}
        groups: dict[int, list[Record]] = {}
        for record, index in zip(records, partitions_of(records, counts), strict=True):
            groups.setdefault(streams[record.stream][index], []).append(record)
        room = self._options.batch, self._options.batch_bytes
        return [
            pack(place, part) for place, group in groups.items() for part in parts(group, *room)
        ]

    def append(self, packed: Sequence[Packed], now: float, connection: apsw.Connection) -> Grown:
        """Append batches to their partitions; return the new ends of these."""
        sql = "update partition set last = last + ? where id = ? returning id, last"
        grown: Grown = list(
            connection.executemany(sql, [(each.count, each.place) for each in packed])
        )
        rows = [each.row(last, now) for (_, last), each in zip(grown, packed, strict=True)]
        connection.executemany(INSERT, rows)
        return grown

    def look(
        self,
        known: Mapping[int, Position],
        waiting: Sequence[tuple[Waiter, int]],
        connection: apsw.Connection,
    ) -> Looked:
        """Return what has grown beyond ``known``, with the first records for those who wait.

        Each waiter comes with the id of its partition. Raises BrokerCorrupt if what is not known
        yet is damaged.
        """
        lasts = {
            place: last
            for place, last in connection.execute("select id, last from partition")
            if last > known.get(place, -1)
        }
        named = {place: self._name(place, connection) for place in lasts if place not in known}
        answers = []
        room = self._options.batch
        for waiter, place in waiting:
            if room > 0 and lasts.get(place, BEGINNING) > waiter.after:
                try:
                    batch = self.fetch(waiter.place, place, waiter.after, connection)
                except BrokerCorrupt:
                    continue  # it meets the damage on its own, when it is woken
                if batch is not None:
                    answers.append((waiter, batch))
                    room -= len(batch.records)
        return Looked(list(lasts.items()), named, answers)

    def starts(self, places: Iterable[int], connection: apsw.Connection) -> list[Position]:
        """Return where the records of each of these partitions begin. Raises BrokerCorrupt."""
        sql = """select stream, partition, first, coalesce(
            (select last - count from batch where partition = partition.id order by last limit 1),
            last)
          from partition where id = ?"""
        found = []
        for place in places:
            stream, partition, first, start = next(connection.execute(sql, (place,)))
            if start != first:
                raise self._missing((stream, partition), first, start)
            found.append(first)
        return found

    def _name(self, identity: int, connection: apsw.Connection) -> Place:
        """Return what a partition is called. Raises BrokerCorrupt if that or its end is damaged."""
        sql = """select stream, partition, crc, last, coalesce(
            (select last from batch where partition = partition.id order by last desc limit 1),
            first)
          from partition where id = ?"""
        stream, partition, crc, last, end = next(connection.execute(sql, (identity,)))
        # A process of a former version has written none.
        if crc is not None and crc != name_checksum(stream, partition):
            raise BrokerCorrupt(
                f"{self._path}: the name {stream}[{partition}] fails its checksum: {_REMEDY}"
            )
        if end != last:
            raise self._missing((stream, partition), end, last)
        return stream, partition

    def _missing(self, place: Place, after: object, upto: object) -> BrokerCorrupt:
        stream, partition = place
        return BrokerCorrupt(
            f"{self._path}: the records of {stream}[{partition}] after {after}, up to {upto}, are "
            f"not to be found: {_REMEDY}"
        )

    def fetch(
        self, place: Place, identity: int, after: Position, connection: apsw.Connection
    ) -> Batch | None:
        """Return the records of a partition after a position, None without any.

        Raises BrokerCorrupt.
        """
        records: list[Record] = []
        most, room = self._options.batch, self._options.batch_bytes
        for found, size in self._read(place, identity, after, connection):
            if records and (len(records) + len(found) > most or size > room):
                break
            records.extend(found)
            room -= size
        if not records:
            return None
        if len(records) > most or room < 0:  # one batch alone; its writer had larger limits
            records = next(parts(records, most, self._options.batch_bytes))
        return Batch(records, missed=records[0].position - after - 1)

    def _read(
        self, place: Place, identity: int, after: Position, connection: apsw.Connection
    ) -> Iterator[tuple[list[Record], int]]:
        """Yield the records of each batch after a position, with the bytes of its body."""
        stream, partition = place
        sql = "select first, last from partition where id = ?"
        first, end = next(connection.execute(sql, (identity,)))
        reached, begun, left = max(after, first), False, self._options.batch
        # A flipped bit may have made a text of a value, and no valid one.
        sql = """select last, cast(count as integer), cast(time as real), cast(crc as integer),
           cast(body as blob)
          from batch where partition = ? and last > ? order by last limit ?"""
        rows = connection.execute(sql, (identity, after, self._options.batch))
        for last, count, time, crc, body in rows:
            if not _sound(identity, last, count, time, crc, body):
                raise BrokerCorrupt(
                    f"{self._path}: the batch of {stream}[{partition}] that ends with record "
                    f"{last} fails its checksum: {_REMEDY}"
                )
            start = last - count
            if start > reached or (begun and start < reached):
                raise self._missing(place, reached, start)
            reached, begun, left = last, True, left - 1
            found = unpack(body, stream=stream, partition=partition, last=last, time=time)
            seen = after - (last - count)
            yield found if seen <= 0 else found[seen:], len(body)
        if left and reached < end:
            raise self._missing(place, reached, end)

    def delete_old(self, now: float, connection: apsw.Connection) -> bool:
        """Delete a bounded number of records; return whether there may be more to delete."""
        count = 1_000
        places = list(connection.execute("select id, last from partition"))
        horizon = now - self._options.retention
        more = False
        for place, _ in places:
            more = self._delete(connection, place, horizon, count) or more
        pages, free, size = (
            connection.pragma(name) for name in ("page_count", "freelist_count", "page_size")
        )
        used = (pages - free) * size
        excess = used - self._options.retention_bytes
        if excess > 0:
            firsts = [
                (time, place, end - last + number)
                for place, end in places
                for last, number, time in _oldest(connection, place, 1)
            ]
            if firsts:
                records = sum(number for _, _, number in firsts)
                share = ceil(records * excess / used)
                self._delete(connection, min(firsts)[1], inf, min(share, count))
                more = True
        for _ in connection.execute("pragma incremental_vacuum(1000)"):
            pass  # each row frees one page
        connection.execute("update housekeeping set due = ?", (now + self._options.housekeeping,))
        return more

    def _delete(self, connection: apsw.Connection, place: int, horizon: float, count: int) -> bool:
        """Delete the oldest batches before ``horizon``, up to that with the ``count``-th record.

        Return whether there were so many.
        """
        upto = BEGINNING
        for last, number, time in _oldest(connection, place, count):
            if time >= horizon:
                break
            upto = last
            count -= number
            if count <= 0:
                break
        if upto:
            sql = "delete from batch where partition = ? and last <= ?"
            connection.execute(sql, (place, upto))
        return count <= 0


def _oldest(
    connection: apsw.Connection, place: int, count: int
) -> Iterator[tuple[Position, int, float]]:
    """Yield a partition's first batches: the last position, the number of records, the time."""
    sql = "select last, count, time from batch where partition = ? order by last limit ?"
    yield from connection.execute(sql, (place, count))


def _sound(
    place: int, last: Position, count: object, time: object, crc: object, body: object
) -> bool:
    if not isinstance(count, int) or not isinstance(time, float) or not isinstance(body, bytes):
        return False
    return checksum(place, last, count, time, crc32(body)) == crc
