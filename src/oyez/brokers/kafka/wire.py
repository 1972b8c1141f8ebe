"""A record as a Kafka message and back: CloudEvents in binary mode, protocol binding 1.0.2."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from operator import methodcaller

from confluent_kafka import Message

from oyez.ports import Record

FRAMING = 4096
"""Bytes kept free of a topic's ``max.message.bytes`` for what Kafka writes around a record."""
WEIGHT = 1024
"""Bytes that a record in memory takes besides its data, roughly."""

# For a header's name that is not UTF-8 the driver returns a broken list and sets an error. Called
# directly, Python's specialised instructions overlook the error once the code is warm, and the
# process crashes on the list; this way the call is always checked.
_headers_of = methodcaller("headers")

Outgoing = tuple[str, bytes | None, bytes | None, int, list[tuple[str, str | bytes | None]]]
"""Topic, value, key, partition and headers."""


def encode(record: Record, partition: int) -> Outgoing:
    """What the driver is handed for a record."""
    key = record.key
    headers = [(_wire_name(name), value) for name, value in record.headers.items()]
    encoded = None if key is None else key.encode()
    return record.stream, record.data, encoded, partition, headers  # type: ignore[return-value]


def size(record: Record) -> int:
    """Key, headers and data in bytes."""
    headers = record.headers
    text = "".join((record.key or "", *headers, *headers.values()))
    return (len(text) if text.isascii() else len(text.encode())) + len(record.data or b"")


def decode(message: Message, stream: str, partition: int) -> Record:
    """Return the record of a message from any producer; bytes that are not text are escaped.

    Headers with the prefix of CloudEvents have plain names. Others beside them belong to the
    transport and are left out; a message that has none at all keeps what it has.
    """
    key = message.key()
    try:
        found = _headers_of(message) or ()
    except (SystemError, UnicodeDecodeError):
        found = ()  # a header's name is not UTF-8: the driver can't give any of them
    try:
        headers = {_PLAIN[name]: value.decode() for name, value in found}
    except (KeyError, AttributeError, UnicodeDecodeError):
        headers = _foreign(found)
    return Record(
        stream=stream,
        key=None if key is None else _text(key),
        headers=headers,
        data=message.value(),
        partition=partition,
        position=(message.offset() or 0) + 1,
        time=message.timestamp()[1] / 1000,
    )


def _foreign(found: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """The headers of a message that may not be ours, or has extensions."""
    plain: dict[str, str] = {}
    others: dict[str, str] = {}
    for name, value in found:
        if value is None:
            continue
        if name in _PLAIN:
            plain[_PLAIN[name]] = _text(value)
        elif name.startswith("ce_") and name != "ce_":
            plain[name[3:]] = _text(value)
        else:
            others[name] = _text(value)
    return plain if plain.keys() - {"datacontenttype"} else plain | others


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode(errors="backslashreplace")


_PLAIN = {
    "content-type": "datacontenttype",
    "ce_specversion": "specversion",
    "ce_id": "id",
    "ce_source": "source",
    "ce_type": "type",
    "ce_subject": "subject",
    "ce_time": "time",
    "ce_dataschema": "dataschema",
    "ce_partitionkey": "partitionkey",
    "ce_correlationid": "correlationid",
    "ce_causationid": "causationid",
    "ce_traceparent": "traceparent",
    "ce_tracestate": "tracestate",
    "ce_dataref": "dataref",
    "ce_replayed": "replayed",
    "ce_recipient": "recipient",
    "ce_expires": "expires",
    "ce_authid": "authid",
    "ce_authtype": "authtype",
}


@lru_cache(maxsize=1024)
def _wire_name(name: str) -> str:
    return "content-type" if name == "datacontenttype" else f"ce_{name}"
