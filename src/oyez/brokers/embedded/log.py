"""The tables in the file, and the statements that run on the file's threads."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from pathlib import Path
from zlib import crc32

import apsw
import msgspec

from oyez.brokers.embedded.options import EmbeddedOptions
from oyez.brokers.kit.streams import Place, Streams, partitions_of
from oyez.errors import BrokerCorrupt
from oyez.ports import Batch, Position, Record

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
"""The schema as steps: a change is a new step at the end; steps are never edited."""

encode = msgspec.json.Encoder().encode
"""The encoder of headers."""
_headers = msgspec.json.Decoder(dict[str, str]).decode


class Log:
    """The log: appends, fetches and deletes records within a transaction of the file."""

    def __init__(self, path: Path, options: EmbeddedOptions, streams: Streams[list[int]]) -> None:
        """Create it; ``streams`` are the committed ones, by their partitions' ids."""
        self._path = path
        self._options = options
        self._streams = streams

    def append(
        self,
        records: Sequence[Record],
        encoded: Sequence[bytes],
        now: float,
        connection: apsw.Connection,
    ) -> None:
        """Append records to their partitions; ``encoded`` are their headers."""
        streams = dict.fromkeys(record.stream for record in records)
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
        # Only committed streams are cached: one created here may still be rolled back, and its
        # ids be reused.
        known = self._streams.known.get(stream)
        if known is not None:
            return known
        sql = "select id from partition where stream = ? order by partition"
        found = [place for (place,) in connection.execute(sql, (stream,))]
        return found or self.make(connection, stream, self._options.partitions)

    def make(self, connection: apsw.Connection, stream: str, partitions: int) -> list[int]:
        """Create the partitions of a stream; return their ids."""
        sql = "insert into partition (stream, partition) values (?, ?) returning id"
        return [connection.execute(sql, (stream, index)).get for index in range(partitions)]

    def fetch(self, place: Place, after: Position, connection: apsw.Connection) -> Batch | None:
        """Return the records after a position, None without any. Raises BrokerCorrupt."""
        stream, partition = place
        sql = """select position, time, cast(key as blob), headers, data, crc from record
          where partition = ? and position > ? order by position limit ?"""
        records: list[Record] = []
        room = self._options.batch_bytes
        identity = self._streams.known[stream][partition]
        rows = connection.execute(sql, (identity, after, self._options.batch))
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
        connection.execute("update housekeeping set due = ?", (now + self._options.housekeeping,))
        return more

    def _delete(self, connection: apsw.Connection, place: int, horizon: float, count: int) -> bool:
        """Delete up to ``count`` of the oldest records before ``horizon``; True if it did."""
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
