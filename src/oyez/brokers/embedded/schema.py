"""The tables in the file, as steps: a change is a new step at the end; steps are never edited."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from zlib import crc32

import apsw
import msgspec

from oyez.brokers.embedded.wire import INSERT, name_checksum, pack, parts
from oyez.errors import StoreCorrupt
from oyez.ports import Record

_PART = 256, 4 * 1024 * 1024
"""Records, and bytes of data, that become one batch when a former file is upgraded."""


def _pack_records(connection: apsw.Connection) -> None:
    """Turn records, each a row until now, into batches as they were appended."""
    connection.execute(
        """create table batch (
          seq integer primary key,
          partition integer not null, last integer not null, count integer not null,
          time real not null, crc integer not null, body blob not null,
          unique (partition, last)
        )"""
    )
    for place, stream in list(connection.execute("select id, stream from partition")):
        for time, appended in groupby(_former(connection, place, stream), lambda one: one.time):
            for part in parts(appended, *_PART):
                connection.execute(INSERT, pack(place, part).row(part[-1].position, time))
        # So that the next ones take its pages, and the file does not grow to twice its size.
        connection.execute("delete from record where partition = ?", (place,))
    connection.execute("drop table record")


def _former(connection: apsw.Connection, place: int, stream: str) -> Iterator[Record]:
    """Yield the records of a partition. Raises StoreCorrupt for one that is damaged."""
    decode = msgspec.json.Decoder(dict[str, str]).decode
    sql = """select position, time, cast(key as blob), headers, data, crc from record
      where partition = ? order by position"""
    for position, time, key, headers, data, crc in connection.execute(sql, (place,)):
        if (
            not isinstance(headers, bytes)
            or not isinstance(key, bytes | None)
            or not isinstance(data, bytes | None)
            or crc32(data or b"", crc32(key or b"", crc32(headers))) != crc
        ):
            raise StoreCorrupt(
                f"record {position} of {stream} (partition {place} of the file) fails its "
                "checksum: the disk or the file is damaged; restore the file from a backup"
            )
        yield Record(
            stream=stream,
            key=None if key is None else key.decode(),
            headers=decode(headers),
            data=data,
            position=position,
            time=time,
        )


def _mark_partitions(connection: apsw.Connection) -> None:
    """Keep of each partition where its records begin, and a checksum of its name.

    A trigger does the former, so that a process of a former version, which still runs when the file
    is upgraded, does it as well.
    """
    connection.execute("alter table partition add column first integer not null default 0")
    connection.execute("alter table partition add column crc integer")
    connection.execute(
        """update partition set first = coalesce(
            (select batch.last - batch.count from batch where batch.partition = partition.id
              order by batch.last limit 1),
            last)"""
    )
    names = list(connection.execute("select stream, partition, id from partition"))
    connection.executemany(
        "update partition set crc = ? where id = ?",
        [(name_checksum(stream, index), place) for stream, index, place in names],
    )
    connection.execute(
        """create trigger batch_deleted after delete on batch begin
            update partition set first = max(first, old.last) where id = old.partition;
          end"""
    )


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
    _pack_records,
    _mark_partitions,
)
