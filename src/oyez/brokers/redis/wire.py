"""A record as an entry of a Redis stream, and back."""

from __future__ import annotations

from oyez.brokers.kit.streams import too_large
from oyez.ports import Position, Record

SEQUENCE_BITS = 20
MAX_BYTES = 64 * 1024 * 1024
"""The largest record, well below Redis's limit of 512 MiB for a value."""

Command = tuple[str | bytes | int, ...]
Entry = tuple[bytes, list[bytes]]
"""An entry id, and the names and values of its fields in turn."""


def key_of(stream: str, partition: int) -> bytes:
    """Return the name of the Redis stream that is a partition."""
    return f"{stream}:{partition}".encode()


def encode(record: Record, partition: int) -> Command:
    """Return the command that appends a record. Raises BrokerRefused for one that is too large."""
    size = len(record.data or b"") + sum(map(len, record.headers.values()))
    if size > MAX_BYTES:
        raise too_large(record.stream, size, MAX_BYTES)
    command: list[str | bytes] = ["XADD", key_of(record.stream, partition), "*"]
    if record.key is not None:
        command += (b"key", record.key)
    for name, value in record.headers.items():
        command += (f"ce_{name}", value)
    if record.data is not None:
        command += (b"data", record.data)
    if len(command) == 3:
        command += (b"empty", b"")  # a Redis entry needs a field
    return tuple(command)


def decode(entry: Entry, stream: str, partition: int) -> Record:
    """Return the record of an entry; one in another form is unchanged, for the lane to judge."""
    place, fields = entry
    try:
        key, headers, data = _ours(fields)
    except (LookupError, UnicodeDecodeError):
        key, headers, data = _any(fields)
    position = position_of(place)
    return Record(
        stream=stream,
        key=key,
        headers=headers,
        data=data,
        partition=partition,
        position=position,
        time=(position >> SEQUENCE_BITS) / 1000,
    )


_Opened = tuple[str | None, dict[str, str], bytes | None]


def _ours(fields: list[bytes]) -> _Opened:
    """Open fields in the order of `encode`. Raises LookupError or UnicodeDecodeError for others."""
    if fields[-2] != b"data":
        raise LookupError
    key, first = (fields[1].decode(), 2) if fields[0] == b"key" else (None, 0)
    named = zip(fields[first:-2:2], fields[first + 1 : -2 : 2], strict=True)
    return key, {_PLAIN[name]: value.decode() for name, value in named}, fields[-1]


def _any(fields: list[bytes]) -> _Opened:
    """Open fields of any names in any order; bytes that are not text are replaced."""
    headers: dict[str, str] = {}
    key: str | None = None
    data: bytes | None = None
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name == b"data":
            data = value
        elif name == b"key":
            key = value.decode(errors="replace")
        else:
            plain = name.decode(errors="replace").removeprefix("ce_")
            headers[plain] = value.decode(errors="replace")
            if len(_PLAIN) < _NAMES:
                _PLAIN[name] = plain
    headers.pop("empty", None) if data is None and key is None and len(headers) == 1 else None
    return key, headers, data


_NAMES = 1024
_PLAIN: dict[bytes, str] = {}
"""The plain names of headers that were met, neither key nor data, and at most `_NAMES`."""


def position_of(place: bytes) -> Position:
    """Return the position of an entry id."""
    millis, _, sequence = place.partition(b"-")
    return int(millis) << SEQUENCE_BITS | int(sequence)


def id_of(position: Position) -> str:
    """Return the entry id of a position."""
    return f"{position >> SEQUENCE_BITS}-{position & (1 << SEQUENCE_BITS) - 1}"
