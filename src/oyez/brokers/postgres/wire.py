"""A record as a row, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from oyez.brokers.kit.streams import Place, partitions_of, too_large
from oyez.ports import Position, Record, weigh

MAX_BYTES = 32 * 1024 * 1024
"""The largest record; PostgreSQL accepts more, but needs several times its size in memory."""

Row = tuple[int, Record, bytes | None, bytes]
"""A record with its size, and its encoded key and headers."""

_json = msgspec.json.Encoder().encode
_attributes = msgspec.json.Decoder(dict[str, str]).decode


def encode(record: Record) -> Row:
    """Return the row of a record. Raises BrokerRefused for one that is too large."""
    try:
        headers = _json(record.headers)
    except UnicodeEncodeError:
        headers = json.dumps(record.headers).encode()
    key = None if record.key is None else record.key.encode("utf-8", "surrogateescape")
    data = record.data
    size = len(key or b"") + len(headers) + len(data or b"")
    if size > MAX_BYTES < (size := weigh(record.headers, data)):
        raise too_large(record.stream, size, MAX_BYTES)
    return size, record, key, headers


def arrays(
    rows: Sequence[Row], ids: Mapping[str, list[int]]
) -> tuple[dict[int, int], Sequence[list[Any]]]:
    """Return the number of records for each partition, in order, and the arrays to append."""
    records = [row[1] for row in rows]
    sizes = {stream: len(ids[stream]) for stream in {record.stream for record in records}}
    counts: dict[int, int] = {}
    places, nths = [], []
    for record, index in zip(records, partitions_of(records, sizes), strict=True):
        place = ids[record.stream][index]
        nth = counts[place] = counts.get(place, 0) + 1
        places.append(place)
        nths.append(nth)
    counts = dict(sorted(counts.items()))
    slots = {place: slot for slot, place in enumerate(counts, 1)}
    keys, headers = [row[2] for row in rows], [row[3] for row in rows]
    data = [record.data for record in records]
    return counts, ([slots[place] for place in places], nths, keys, headers, data)


def decode(
    rows: Iterable[tuple[Position, float, bytes | None, bytes, bytes | None]], place: Place
) -> list[Record]:
    """Return the records of rows; those in another form are unchanged, for the lane to judge.

    A row is position, time, key, headers and data.
    """
    stream, partition = place
    return [
        Record(
            stream=stream,
            key=None if key is None else key.decode("utf-8", "surrogateescape"),
            headers=_headers(headers),
            data=data,
            partition=partition,
            position=position,
            time=time,
        )
        for position, time, key, headers, data in rows
    ]


def _headers(headers: bytes) -> dict[str, str]:
    """Return the headers of a record; those in another form as text, for the lane to judge."""
    try:
        return _attributes(headers)
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
