"""The form in which a batch of records lies in the file: column by column, packed and checksummed.

The body is MessagePack: columns of text, the first of which has the keys; the headers by name; the
data. A header that is the same in all records of the batch is written once, and so are columns that
are equal, such as an event's id and the id of what it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from struct import Struct
from zlib import crc32

import msgspec

from oyez.ports import Position, Record

_Column = Sequence[str | None]
"""A value for each record; None for a record without it."""
_Headers = dict[str, str | int]
"""By header, its value in every record, or the number of its column."""


class _Body(msgspec.Struct, array_like=True, frozen=True):
    columns: list[_Column]
    headers: _Headers
    data: list[bytes | None]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode
_head = Struct("<qqqd").pack

INSERT = """insert into batch (partition, last, count, time, crc, body)
 values (?, ?, ?, ?, ?, ?)"""
"""Adds a `Packed.row`."""


class Packed(msgspec.Struct, frozen=True):
    """Records that become one row; ``place`` is the id of their partition."""

    place: int
    count: int
    body: bytes
    crc: int
    """The checksum of the body alone."""

    def row(self, last: Position, time: float) -> tuple[int, int, int, float, int, bytes]:
        """Return the row, the last record of which is at position ``last``."""
        crc = checksum(self.place, last, self.count, time, self.crc)
        return self.place, last, self.count, time, crc, self.body


def parts(records: Iterable[Record], count: int, size: int) -> Iterator[list[Record]]:
    """Yield them in parts of at most ``count`` records and ``size`` bytes of data.

    One record may exceed the size alone.
    """
    part: list[Record] = []
    room = size
    for record in records:
        weight = len(record.data or b"")
        if part and (weight > room or len(part) == count):
            yield part
            part, room = [], size
        part.append(record)
        room -= weight
    if part:
        yield part


def pack(place: int, records: Sequence[Record]) -> Packed:
    """Pack records of one partition."""
    columns: list[_Column] = [tuple([record.key for record in records])]
    headers = _pack_headers([record.headers for record in records], columns)
    body = _encode(_Body(columns, headers, [record.data for record in records]))
    return Packed(place, len(records), body, crc32(body))


def unpack(
    body: bytes, *, stream: str, partition: int, last: Position, time: float
) -> list[Record]:
    """Return the records of a body, the last of which is at position ``last``."""
    found = _decode(body)
    keys = found.columns[0]
    return [
        Record(
            stream=stream,
            key=key,
            headers=headers,
            data=data,
            partition=partition,
            position=position,
            time=time,
        )
        for position, key, headers, data in zip(
            range(last - len(keys) + 1, last + 1),
            keys,
            _unpack_headers(found.headers, found.columns),
            found.data,
            strict=True,
        )
    ]


def checksum(place: int, last: Position, count: int, time: float, crc: int) -> int:
    """Return the checksum of a whole row; ``crc`` is that of its body."""
    return crc32(_head(place, last, count, time), crc)


def name_checksum(stream: str, partition: int) -> int:
    """Return the checksum of what a partition is called."""
    return crc32(f"{stream}[{partition}]".encode())


def _pack_headers(headers: Sequence[Mapping[str, str]], columns: list[_Column]) -> _Headers:
    """Return the headers of records, and add to ``columns`` what differs among them."""
    if len(headers) == 1:
        return dict(headers[0])
    names: Sequence[str]
    rows: Iterable[_Column]
    each = [tuple(one) for one in headers]
    if each.count(each[0]) == len(each):
        names, rows = each[0], zip(*[one.values() for one in headers], strict=True)
    else:
        names = list(dict.fromkeys(chain.from_iterable(each)))
        rows = (tuple([one.get(name) for one in headers]) for name in names)
    found: _Headers = {}
    for name, column in zip(names, rows, strict=False):
        first = column[0]
        if first is not None and column.count(first) == len(column):
            found[name] = first
            continue
        if column not in columns:
            columns.append(column)
        found[name] = columns.index(column)
    return found


def _unpack_headers(headers: _Headers, columns: Sequence[_Column]) -> list[dict[str, str]]:
    # A copy of a dict that has its size, and assignments, take half the time of building one.
    whole = {name: one if isinstance(one, str) else "" for name, one in headers.items()}
    found = [whole.copy() for _ in columns[0]]
    for name, number in headers.items():
        if isinstance(number, int):
            for one, value in zip(found, columns[number], strict=True):
                if value is None:
                    del one[name]
                else:
                    one[name] = value
    return found
