"""The form in which a batch of records lies in the file: column by column, packed and checksummed.

The body is MessagePack: the keys, the headers by name, the data. A header that is the same in all
records of the batch is written once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from struct import Struct
from zlib import crc32

import msgspec

from oyez.ports import Position, Record

_Columns = dict[str, str | Sequence[str | None]]
"""By header, the value of every record, or one each: None for a record without the header."""


class _Body(msgspec.Struct, array_like=True, frozen=True):
    keys: list[str | None]
    headers: _Columns
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
    body = _encode(
        _Body(
            keys=[record.key for record in records],
            headers=_columns([record.headers for record in records]),
            data=[record.data for record in records],
        )
    )
    return Packed(place, len(records), body, crc32(body))


def unpack(
    body: bytes, *, stream: str, partition: int, last: Position, time: float
) -> list[Record]:
    """Return the records of a body, the last of which is at position ``last``."""
    found = _decode(body)
    count = len(found.keys)
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
            range(last - count + 1, last + 1),
            found.keys,
            _rows(found.headers, count),
            found.data,
            strict=True,
        )
    ]


def checksum(place: int, last: Position, count: int, time: float, crc: int) -> int:
    """Return the checksum of a whole row; ``crc`` is that of its body."""
    return crc32(_head(place, last, count, time), crc)


def _columns(headers: Sequence[Mapping[str, str]]) -> _Columns:
    if len(headers) == 1:
        return dict(headers[0])
    names: Sequence[str]
    columns: Iterable[Sequence[str | None]]
    each = [tuple(one) for one in headers]
    if each.count(each[0]) == len(each):
        names, columns = each[0], zip(*[one.values() for one in headers], strict=True)
    else:
        names = list(dict.fromkeys(chain.from_iterable(each)))
        columns = ([one.get(name) for one in headers] for name in names)
    found: _Columns = {}
    for name, column in zip(names, columns, strict=False):
        first = column[0]
        same = first is not None and column.count(first) == len(column)
        found[name] = first if same and first is not None else column
    return found


def _rows(columns: _Columns, count: int) -> Iterator[dict[str, str]]:
    once = {name: one for name, one in columns.items() if isinstance(one, str)}
    if len(once) == len(columns):
        return (once.copy() for _ in range(count))
    values = [repeat(one, count) if isinstance(one, str) else one for one in columns.values()]
    rows = zip(*values, strict=True)
    if any(None in one for one in columns.values() if not isinstance(one, str)):
        return (
            {name: value for name, value in zip(columns, row, strict=True) if value is not None}
            for row in rows
        )
    return (dict(zip(columns, row, strict=True)) for row in rows)
