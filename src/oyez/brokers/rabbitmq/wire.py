"""Records as AMQP messages: the binary mode of the CloudEvents AMQP binding, version 1.0.2.

Each attribute is a header ``cloudEvents:NAME``; ``datacontenttype`` is the property
``content-type``. What CloudEvents has no word for stands beside them: ``oyez-key`` (the key,
unless it is ``partitionkey``, or else ``subject``), ``oyez-no-key`` and ``oyez-tombstone``.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from struct import Struct

from pamqp import decode as tables

from oyez.errors import BrokerRefused
from oyez.ports import Position, Record

PREFIX = "cloudEvents:"
PREFIXES = (b"cloudEvents:", b"cloudEvents_", b"ce-")
"""What is read: both of the binding for AMQP, and that of Knative's binding for RabbitMQ."""
STRUCTURED = "application/cloudevents+json"

_KEY = b"oyez-key"
_NO_KEY = b"oyez-no-key"
_TOMBSTONE = b"oyez-tombstone"
_TIME = b"timestamp_in_ms"
_OFFSET = b"x-stream-offset"

_u16 = Struct(">H")
_u32 = Struct(">I")
_u64 = Struct(">Q")
_i64 = Struct(">q")
_TRUE = b"t\x01"
_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE, _TIMESTAMP = 0x8000, 0x2000, 0x1000, 0x0040
_SHORT_STRINGS = (0x0400, 0x0200, 0x0100, 0x0080)
"""correlation-id, reply-to, expiration and message-id: between priority and timestamp."""

_encoded: dict[str, bytes] = {}
_plain: dict[bytes, str | None] = {}
_REMEMBERED = 1_000
"""Names of headers that are remembered in their other form; the rest is computed each time."""


def encode(record: Record, now: float) -> bytes:
    """The properties of the message that carries a record.

    Raises BrokerRefused for a header name that AMQP has no room for.
    """
    headers = record.headers
    kind = headers.get("datacontenttype", "")
    apart = 0 < len(kind) < 256 and kind.isascii()
    parts: list[bytes] = []
    for name, value in headers.items():
        if name == "datacontenttype" and apart:
            continue
        text = _bytes(value, name)
        parts += (_encoded.get(name) or _encode_name(name), _u32.pack(len(text)), text)
    if record.key is None:
        if headers.get("partitionkey", headers.get("subject")) is not None:
            parts += (b"\x0boyez-no-key", _TRUE)
    elif record.key != headers.get("partitionkey", headers.get("subject")):
        text = _bytes(record.key, "key")
        parts += (b"\x08oyez-keyS", _u32.pack(len(text)), text)
    if record.data is None:
        parts += (b"\x0eoyez-tombstone", _TRUE)
    parts += (b"\x0ftimestamp_in_msl", _i64.pack(int(now * 1000)))
    table = b"".join(parts)
    flags = _HEADERS | _DELIVERY_MODE | _TIMESTAMP
    content_type = b""
    if apart:
        flags |= _CONTENT_TYPE
        content_type = bytes((len(kind),)) + kind.encode()
    return b"".join(
        (
            _u16.pack(flags),
            content_type,
            _u32.pack(len(table)),
            table,
            b"\x02",
            _u64.pack(int(now)),
        )
    )


def decode(
    stream: str, partition: int, properties: bytes, body: bytes, position: Position, now: float
) -> Record:
    """Return the record of a message from any producer, whatever its contents.

    ``position`` stands for the one in the message, where it has none. Never raises: what can't be
    understood is left out, and text that is not UTF-8 keeps its bytes as ``\\xNN``.
    """
    message = _Message()
    try:
        _open(properties, message)
    except (ValueError, IndexError, struct.error, UnicodeDecodeError):
        pass
    headers = message.headers
    if message.content_type is not None and (
        headers or message.content_type.startswith(STRUCTURED) or not message.others
    ):
        headers["datacontenttype"] = message.content_type
    elif not headers:
        # Not an event: its headers are kept for the dead letter.
        headers.update(message.others)
        if message.content_type is not None:
            headers["content-type"] = message.content_type
    key = message.key
    if key is None and not message.without_key:
        key = headers.get("partitionkey", headers.get("subject"))
    return Record(
        stream=stream,
        key=key,
        headers=headers,
        data=None if message.tombstone and not body else body,
        partition=partition,
        position=position if message.offset is None else message.offset + 1,
        time=message.time or now,
    )


def offset_of(properties: bytes) -> int | None:
    """The offset that a stream wrote into a message; None where no stream did."""
    # The server appends it, so the search from the end finds it at once.
    at = properties.rfind(b"\x0fx-stream-offsetl")
    if at < 0:
        return None
    return int(_i64.unpack_from(properties, at + 17)[0])


class _Message:
    __slots__ = (
        "content_type", "headers", "key", "offset", "others", "time", "tombstone", "without_key"
    )  # fmt: skip

    def __init__(self) -> None:
        self.content_type: str | None = None
        self.headers: dict[str, str] = {}
        self.others: dict[str, str] = {}
        self.key: str | None = None
        self.without_key = False
        self.tombstone = False
        self.offset: int | None = None
        self.time = 0.0


def _open(data: bytes, message: _Message) -> None:
    (flags,) = _u16.unpack_from(data)
    at = 2
    if flags & _CONTENT_TYPE:
        message.content_type, at = _short(data, at)
    if flags & 0x4000:
        _, at = _short(data, at)
    if flags & _HEADERS:
        (size,) = _u32.unpack_from(data, at)
        at += 4
        _open_table(data, at, at + size, message)
        at += size
    if flags & _TIMESTAMP and not message.time:
        at += bool(flags & _DELIVERY_MODE) + bool(flags & 0x0800)
        for flag in _SHORT_STRINGS:
            if flags & flag:
                at += 1 + data[at]
        message.time = float(_u64.unpack_from(data, at)[0])


def _open_table(data: bytes, at: int, stop: int, message: _Message) -> None:
    headers, names = message.headers, _plain
    while at < stop:
        start = at + 1
        at = start + data[at]
        raw = data[start:at]
        kind = data[at]
        at += 1
        value: object
        if kind == 83:  # S, a long string
            (size,) = _u32.unpack_from(data, at)
            at += 4
            content = data[at : at + size]
            at += size
            try:
                value = content.decode()
            except UnicodeDecodeError:
                value = content.decode(errors="backslashreplace")
        elif kind == 108:  # l, 64 bits
            (value,) = _i64.unpack_from(data, at)
            at += 8
        elif kind == 116:  # t
            value = data[at] != 0
            at += 1
        else:
            used, value = tables.embedded_value(data[at - 1 : stop])
            at += used - 1
        name = names[raw] if raw in names else _plain_name(raw)
        if name is not None:
            headers[name] = value if type(value) is str else _canonical(name, value)
        elif raw == _OFFSET:
            message.offset = value if isinstance(value, int) else None
        elif raw == _TIME:
            message.time = value / 1000 if isinstance(value, int) else 0.0
        elif raw == _KEY:
            message.key = _text(value)
        elif raw == _NO_KEY:
            message.without_key = True
        elif raw == _TOMBSTONE:
            message.tombstone = True
        elif not raw.startswith(b"x-"):
            message.others[raw.decode(errors="backslashreplace")] = _text(value)


def _short(data: bytes, at: int) -> tuple[str, int]:
    stop = at + 1 + data[at]
    return data[at + 1 : stop].decode(errors="backslashreplace"), stop


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes | bytearray):
        return value.decode(errors="backslashreplace")
    return "" if value is None else str(value)


def _canonical(name: str, value: object) -> str:
    """A value of AMQP's own types as CloudEvents writes it; a number as time is milliseconds."""
    if name == "time" and type(value) is int:
        try:
            value = datetime.fromtimestamp(value / 1000, UTC)
        except (ValueError, OverflowError, OSError):
            pass  # the lane will say that this is no time
    return value.isoformat() if isinstance(value, datetime) else _text(value)


def _plain_name(raw: bytes) -> str | None:
    name = None
    for prefix in PREFIXES:
        if raw.startswith(prefix):
            name = raw[len(prefix) :].decode(errors="backslashreplace")
    if len(_plain) < _REMEMBERED:
        _plain[raw] = name
    return name


def _encode_name(name: str) -> bytes:
    text = _bytes(PREFIX + name, name)
    if len(text) > 255:
        raise BrokerRefused(f"header {name[:40]}… is longer than the 243 bytes that AMQP takes")
    encoded = bytes((len(text),)) + text + b"S"
    if len(_encoded) < _REMEMBERED:
        _encoded[name] = encoded
    return encoded


def _bytes(text: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BrokerRefused(f"{name[:40]!r} is not text: {error.reason}") from None
