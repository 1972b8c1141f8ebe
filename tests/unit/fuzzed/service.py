"""What a service reads: its configuration, messages of every broker from any producer, envelopes.

A message of any bytes becomes a record, for its lane to judge; an envelope is good or refused by
name; and a good one is read back as it was written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import msgspec
from confluent_kafka import Message

from fuzzed.target import Check, Target
from oyez.brokers.kafka import wire as kafka
from oyez.brokers.nats import wire as nats
from oyez.brokers.nats.link import Link
from oyez.brokers.postgres import wire as postgres
from oyez.brokers.rabbitmq import wire as rabbitmq
from oyez.brokers.redis import wire as redis
from oyez.brokers.sns_sqs import wire as sns_sqs
from oyez.config import load
from oyez.envelope import Envelope, open_record
from oyez.errors import BrokerRefused, ConfigurationError, InvalidEvent
from oyez.ports import Record

STREAM = "shop.orders"
GAP = b"\r\n\r\n"
"""Parts what comes before the data from the data."""

Read = Callable[[bytes], Iterable[Record]]
"""The records of a message of these bytes."""
Carry = Callable[[Record], Record]
"""A record as it is read after it was written."""

HEADERS = {
    "specversion": "1.0",
    "id": "01a3185c-506e-70e4-9df3-fe2527b7ca1c",
    "source": "/shop/orders",
    "type": "shop.order.placed",
    "subject": "é 7",
    "time": "2026-01-01T00:00:00.000000Z",
    "datacontenttype": "application/json",
    "partitionkey": 'k"1%',
    "mine": "x",
}
EVENT = Record(stream=STREAM, key='k"1%', headers=HEADERS, data=b'{"a":[1,-1.5e3,null]}')
BARE = Record(stream=STREAM, key=None, headers={"id": "1", "type": "t"}, data=b"\xff")
STRUCTURED = msgspec.json.encode(HEADERS | {"data": {"a": 1}})


def _envelope(folder: Path) -> Check:
    def check(data: bytes) -> None:
        lines, gap, content = data.partition(GAP)
        headers = dict(_named(lines))
        _judge(Record(stream=STREAM, key=None, headers=headers, data=content if gap else None))

    return check


def _judge(record: Record) -> Envelope | None:
    assert record.key is None or isinstance(record.key, str)
    assert record.data is None or isinstance(record.data, bytes)
    assert all(type(text) is str for pair in record.headers.items() for text in pair)
    refused: InvalidEvent | None = None
    try:
        envelope = open_record(record.headers, record.data)
    except InvalidEvent as error:
        refused = error
    if refused is not None:
        assert str(refused).isprintable()
        return None
    assert envelope.id
    assert envelope.source
    assert envelope.type
    assert open_record(envelope.headers(), envelope.data) == envelope
    return envelope


def _broker(read: Read, carry: Carry) -> Callable[[Path], Check]:
    def make(folder: Path) -> Check:
        def check(data: bytes) -> None:
            for record in read(data):
                envelope = _judge(record)
                if envelope is None:
                    continue
                headers = envelope.headers()
                sent = Record(stream=STREAM, key=envelope.key, headers=headers, data=envelope.data)
                with contextlib.suppress(BrokerRefused):
                    came = carry(sent)
                    assert (came.key, came.headers, came.data) == (sent.key, headers, sent.data)

        return check

    return make


def _named(lines: bytes) -> list[tuple[str, str]]:
    """Names and values of lines as HTTP has them."""
    pairs = (
        line.decode(errors="backslashreplace").partition(": ") for line in lines.split(b"\r\n")
    )
    return [(name, value) for name, colon, value in pairs if colon]


def _lines(record: Record) -> bytes:
    return b"\r\n".join(f"{name}: {value}".encode() for name, value in record.headers.items())


# -- each broker's messages ------------------------------------------------------------------------


def _kafka(data: bytes) -> Iterable[Record]:
    """A key, a line each for headers (one without a colon has no value), and the data."""
    lines, gap, content = data.partition(GAP)
    key, *rest = lines.split(b"\r\n")
    headers: list[tuple[str, bytes | None]] = []
    for line in rest:
        name, colon, value = line.partition(b": ")
        headers.append((name.decode(errors="replace"), value if colon else None))
    yield _kafka_read(key or None, headers, content if gap else None)


def _kafka_read(key: bytes | None, headers: Any, data: bytes | None) -> Record:
    message = Message(key=key, headers=headers, value=data, offset=6, timestamp=(1, 7))
    return kafka.decode(message, STREAM, 0)


def _kafka_carry(record: Record) -> Record:
    _, data, key, _, headers = kafka.encode(record, 0)
    texts = [(name, cast(str, value).encode()) for name, value in headers]
    return _kafka_read(key, texts, data)


def _nats(data: bytes) -> Iterable[Record]:
    header, _, payload = data.partition(GAP)
    yield nats.decode(header + GAP, payload, STREAM, 0, 7, 1.0)


def _nats_carry(record: Record) -> Record:
    return nats.decode(nats.encode(record) + b"\r\n", record.data or b"", STREAM, 0, 7, 1.0)


def _rabbitmq(data: bytes) -> Iterable[Record]:
    properties, _, body = data.partition(GAP)
    yield rabbitmq.decode(STREAM, 0, properties, body, 7, 1.0)


def _rabbitmq_carry(record: Record) -> Record:
    return rabbitmq.decode(STREAM, 0, rabbitmq.encode(record, 1.0), record.data or b"", 7, 1.0)


def _redis(data: bytes) -> Iterable[Record]:
    """Fields with a separator between all names and values; Redis gives at least one pair."""
    fields = data.split(GAP)
    fields += [b""] * (len(fields) % 2)
    yield redis.decode((b"1795947880039-7", fields), STREAM, 0)


def _redis_fields(record: Record) -> list[bytes]:
    given = redis.encode(record, 0)[3:]
    return [each.encode() if isinstance(each, str) else cast(bytes, each) for each in given]


def _redis_carry(record: Record) -> Record:
    return redis.decode((b"1795947880039-7", _redis_fields(record)), STREAM, 0)


def _postgres(data: bytes) -> Iterable[Record]:
    """A key, headers as JSON, and the data."""
    key, _, rest = data.partition(GAP)
    headers, gap, content = rest.partition(GAP)
    row = (7, 1.0, key or None, headers, content if gap else None)
    return postgres.decode([row], (STREAM, 0))


def _postgres_carry(record: Record) -> Record:
    _, _, key, headers = postgres.encode(record)
    (found,) = postgres.decode([(7, 1.0, key, headers, record.data)], (STREAM, 0))
    return found


def _sns_sqs(data: bytes) -> Iterable[Record]:
    """Message attributes, and the body."""
    lines, _, body = data.partition(GAP)
    return _sns_sqs_read(dict(_named(lines)), body.decode(errors="replace"))


def _sns_sqs_read(attributes: dict[str, str], body: str) -> list[Record]:
    message = {
        "Body": body,
        "MessageAttributes": {name: {"StringValue": text} for name, text in attributes.items()},
        "Attributes": {"MessageGroupId": "g"},
    }
    return [
        Record(stream=STREAM, key=content.key, headers=content.headers, data=content.data)
        for content in sns_sqs.decode(message)
    ]


def _sns_sqs_carry(record: Record) -> Record:
    kind, body = sns_sqs.join([sns_sqs.encode(record)])
    (found,) = _sns_sqs_read({sns_sqs.CONTENT_TYPE: kind}, body)
    return found


# -- a connection to NATS --------------------------------------------------------------------------


class _Transport(asyncio.Transport):
    """Notes that it was ended."""

    ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        self.ended = True


def _nats_link(folder: Path) -> Check:
    """What a server says is the same in one piece and in many, or ends the connection."""
    runner = asyncio.Runner()

    async def heard(pieces: list[bytes]) -> tuple[list[object], bool]:
        messages: list[object] = []
        link, transport = Link("nats:4222"), _Transport()
        link.connection_made(transport)
        link.subscribe(lambda *parts: messages.append(parts), lambda: None)
        for piece in pieces:
            if not transport.ended:
                link.data_received(piece)
        link.connection_lost(None)
        return messages, transport.ended

    def check(data: bytes) -> None:
        whole, refused = runner.run(heard([data]))
        parts, refused_in_parts = runner.run(
            heard([data[at : at + 7] for at in range(0, len(data), 7)])
        )
        assert whole == parts
        assert refused == refused_in_parts

    return check


# -- the configuration -----------------------------------------------------------------------------


def _config(folder: Path) -> Check:
    file = folder / "oyez.toml"

    def check(data: bytes) -> None:
        file.write_bytes(data)
        refused: ConfigurationError | None = None
        try:
            load(file, {})
        except ConfigurationError as error:
            refused = error
        assert refused is None or str(refused).isprintable()

    return check


CONFIG = b"""
[system]
name = "shop"
broker = "kafka://u:p@127.0.0.1:9092?acks=all"
store = "sqlite:.oyez/{service}.db"
log = "json"

[services.orders]
app = "orders.service:service"
http = "127.0.0.1:8001"
replicas = "1..4"

[gateway]
listen = "127.0.0.1:8080"
body_limit = 65536

[[gateway.routes]]
path = "/orders/{id}"
methods = ["GET", "POST"]
service = "orders"
access = "anonymous"
rate = "10/s"
"""
SAID = (
    b'INFO {"server_id":"a","version":"2.15.0","max_payload":1048576}\r\nPING\r\n'
    b"MSG a 1 5\r\nhello\r\nHMSG a 1 reply 12 14\r\nNATS/1.0\r\n\r\nhi\r\n+OK\r\n"
)
TARGETS = {
    "envelope": Target(
        _envelope,
        [
            _lines(EVENT) + GAP + cast(bytes, EVENT.data),
            b"content-type: application/cloudevents+json" + GAP + STRUCTURED,
            b"datacontenttype: application/cloudevents+json"
            + GAP
            + b'{"specversion":"1.0","id":"1",'
            b'"source":"/s","type":"t","data_base64":"YQ==","n":7,"b":true}',
        ],
    ),
    "config": Target(_config, [CONFIG]),
    "kafka": Target(
        _broker(_kafka, _kafka_carry),
        [
            b"k\r\ncontent-type: application/json\r\nce_"
            + _lines(EVENT).replace(b"\r\n", b"\r\nce_")
            + GAP
            + cast(bytes, EVENT.data),
            b"\r\ncontent-type: application/cloudevents+json" + GAP + STRUCTURED,
            b"k\r\nforeign: \xff\r\nnone" + GAP,
        ],
    ),
    "nats": Target(
        _broker(_nats, _nats_carry),
        [
            *(nats.encode(each) + b"\r\n" + cast(bytes, each.data) for each in (EVENT, BARE)),
            GAP + STRUCTURED,
            b'NATS/1.0\r\nCE-ID: "a\\"b"\r\nce-x:%ff\r\nOyez-Absent: data\r\nNats-Stream: s' + GAP,
        ],
    ),
    "nats-link": Target(
        _nats_link,
        [
            b"MSG a 1 -12\r\n",
            b"HMSG a 1 8 4\r\nNATS\r\n",
            SAID,
            b"-ERR 'Permissions Violation for Publish to \"a\"'\r\nMSG a 9 0\r\n\r\n",
        ],
    ),
    "rabbitmq": Target(
        _broker(_rabbitmq, _rabbitmq_carry),
        [rabbitmq.encode(each, 1.0) + GAP + cast(bytes, each.data) for each in (EVENT, BARE)],
    ),
    "redis": Target(
        _broker(_redis, _redis_carry),
        [GAP.join(_redis_fields(each)) for each in (EVENT, BARE)],
    ),
    "postgres": Target(
        _broker(_postgres, _postgres_carry),
        [
            GAP.join((b"k", postgres.encode(each)[3], cast(bytes, each.data)))
            for each in (EVENT, BARE)
        ]
        + [GAP.join((b"", b'{"id":1,"a":null,"b":[{}]}', b""))],
    ),
    "sns_sqs": Target(
        _broker(_sns_sqs, _sns_sqs_carry),
        [
            f"content-type: {sns_sqs.EVENT}".encode() + GAP + sns_sqs.encode(EVENT),
            f"content-type: {sns_sqs.BATCH}".encode() + GAP + b"[" + sns_sqs.encode(BARE) + b"]",
            b"ce-id: 1\r\nce_type: t\r\nce:source: /s\r\ncontent-type: application/json"
            + GAP
            + b"{}",
            GAP
            + msgspec.json.encode(
                {"Type": "Notification", "TopicArn": "a", "Message": STRUCTURED.decode()}
            ),
        ],
    ),
}
