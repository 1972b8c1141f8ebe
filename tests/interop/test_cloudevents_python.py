"""CloudEvents' Python SDK and Oyez read each other's events, in both modes, on every protocol.

The SDK has bindings for Kafka, AMQP, RabbitMQ (Knative's) and HTTP. It has none for NATS, whose
binding writes headers as that of HTTP does, so that one stands in. Oyez has no face for CloudEvents
over HTTP: its envelope's own functions are held to the SDK's there, without a server.

In binary mode the SDK writes a string as it is, also as JSON, and a list as Python's repr. So it
is given encoded data in that mode.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cases import CASES, COUNT, FLAG, MODES, agree, record_of, same
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings import amqp, http, kafka, rabbitmq
from cloudevents.core.exceptions import CloudEventValidationError
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import Message as KafkaDriverMessage
from dateutil.parser import isoparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pamqp.commands import Basic
from wires import (
    PARTITIONS,
    WIRES,
    Message,
    http_headers,
    line,
    plain_headers,
)

from oyez.brokers.kafka import wire as kafka_wire
from oyez.brokers.nats import wire as nats_wire
from oyez.brokers.rabbitmq import wire as rabbitmq_wire
from oyez.envelope import Envelope, format_time, open_record
from oyez.errors import InvalidEvent
from oyez.partitioning import partition_of
from oyez.ports import Record


class Binding(NamedTuple):
    """One of the SDK's bindings, to and from messages."""

    wire: str
    write: Callable[[BaseCloudEvent, str], Message]
    read: Callable[[Message], BaseCloudEvent]
    exact: timedelta = timedelta(0)
    """How exact the times are that it writes in binary mode."""


def write_kafka(event: BaseCloudEvent, mode: str) -> Message:
    sent = getattr(kafka, f"to_{mode}_event")(event)
    return Message(sent.headers, sent.value, sent.key)


def read_kafka(message: Message) -> BaseCloudEvent:
    return kafka.from_kafka_event(kafka.KafkaMessage(message.headers, message.key, message.body))


def write_amqp(event: BaseCloudEvent, mode: str) -> Message:
    sent = getattr(amqp, f"to_{mode}_event")(event)
    kind = sent.properties.get("content-type")
    return Message(sent.application_properties, sent.application_data, key_of(event), kind)


def read_amqp(message: Message) -> BaseCloudEvent:
    properties = {} if message.kind is None else {"content-type": message.kind}
    return amqp.from_amqp_event(amqp.AMQPMessage(properties, message.headers, message.body))


def write_rabbitmq(event: BaseCloudEvent, mode: str) -> Message:
    sent = getattr(rabbitmq, f"to_{mode}_event")(event)
    return Message(sent.headers, sent.body, key_of(event), sent.content_type)


def write_http(event: BaseCloudEvent, mode: str) -> Message:
    sent = getattr(http, f"to_{mode}_event")(event)
    return Message(sent.headers, sent.body, key_of(event))


def read_http(message: Message) -> BaseCloudEvent:
    return http.from_http_event(http.HTTPMessage(message.headers, message.body))


def key_of(event: BaseCloudEvent) -> str | None:
    return event.get_extension("partitionkey") or event.get_subject()


BINDINGS = {
    "kafka": Binding("kafka", write_kafka, read_kafka),
    "amqp": Binding("rabbitmq", write_amqp, read_amqp, timedelta(milliseconds=1)),
    "rabbitmq": Binding("rabbitmq", write_rabbitmq, read_amqp),
    "nats": Binding("nats", write_http, read_http),
}
READERS = {binding.wire: binding for name, binding in BINDINGS.items() if name != "rabbitmq"}
"""What Oyez writes has AMQP's names, which the SDK's binding for RabbitMQ does not know."""


def event_of(envelope: Envelope, mode: str) -> CloudEvent:
    """The SDK's event, with the types of CloudEvents where it has them."""
    attributes: dict[str, Any] = dict(envelope.headers())
    if time := attributes.pop("time", None):
        attributes["time"] = isoparse(time)
    if COUNT in attributes:
        attributes[COUNT] = int(attributes[COUNT])
    if FLAG in attributes:
        attributes[FLAG] = attributes[FLAG] == "true"
    data: Any = envelope.data or None
    if data is not None and mode == "structured" and envelope.datacontenttype.endswith("json"):
        data = json.loads(data)
    elif data is not None and envelope.datacontenttype == "text/plain":
        data = data.decode()
    return CloudEvent(attributes, data)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BINDINGS)
async def test_oyez_reads_what_the_sdk_writes(name: str, mode: str, tmp_path: Path) -> None:
    binding = BINDINGS[name]
    async with line(binding.wire, tmp_path) as to:
        messages = [binding.write(event_of(case, mode), mode) for case in CASES.values()]
        await to.wire.write(messages)
        records = await to.records(len(CASES))
    exact = binding.exact if mode == "binary" else timedelta(0)
    keys = {}
    for record in records:
        envelope = open_record(record.headers, record.data)
        same(envelope, CASES[envelope.id], exact=exact)
        keys[envelope.id] = record.key
        if envelope.key is not None and (record.key is not None or binding.wire != "kafka"):
            assert record.partition == partition_of(envelope.key, PARTITIONS)
    assert keys.keys() == CASES.keys()
    if binding.wire == "kafka":
        assert keys == {name: case.partitionkey for name, case in CASES.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wire", WIRES)
async def test_the_sdk_reads_what_oyez_writes(wire: str, mode: str, tmp_path: Path) -> None:
    async with line(wire, tmp_path) as to:
        await to.broker.publish([record_of(case, mode, to.stream) for case in CASES.values()])
        messages = await to.wire.read(len(CASES))
    found = {event.get_id(): event for event in map(READERS[wire].read, messages)}
    assert found.keys() == CASES.keys()
    for name, event in found.items():
        agree(event.get_attributes(), event.get_data(), CASES[name])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_over_http(name: str, mode: str) -> None:
    """Both ways, by the functions of the SDK and of the envelope."""
    case = CASES[name]
    record = record_of(case, mode, "s")
    assert record.data is not None
    event = read_http(Message(http_headers(record.headers), record.data))
    agree(event.get_attributes(), event.get_data(), case)
    sent = write_http(event_of(case, mode), mode)
    same(open_record(plain_headers(sent.headers), sent.body), case)


# -- what must not get in --------------------------------------------------------------------------

INJECTION = "a\r\nce-type: evil\r\nce_type: evil\r\n\r\nbody"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BINDINGS)
async def test_line_ends_in_an_attribute_are_refused(name: str, mode: str, tmp_path: Path) -> None:
    binding = BINDINGS[name]
    attributes = {"id": "1", "source": "/s", "type": "good", "subject": INJECTION}
    async with line(binding.wire, tmp_path) as to:
        await to.wire.write([binding.write(CloudEvent(attributes, {"a": 1}), mode)])
        (record,) = await to.records(1)
    if mode == "binary":
        assert record.headers["type"] == "good"
        assert record.headers["subject"] == INJECTION
    with pytest.raises(InvalidEvent) as caught:
        open_record(record.headers, record.data)
    assert caught.value.field == "subject"


@pytest.mark.parametrize("wire", WIRES)
async def test_line_ends_in_an_attribute_of_ours_stay_in_it(wire: str, tmp_path: Path) -> None:
    """No service can announce such an event; a bridge carries whatever there is."""
    envelope = Envelope(id="1", source="/s", type="good", data=b"{}", subject=INJECTION)
    async with line(wire, tmp_path) as to:
        await to.broker.publish([record_of(envelope, "binary", to.stream)])
        (message,) = await to.wire.read(1)
    event = READERS[wire].read(message)
    assert (event.get_type(), event.get_subject()) == ("good", INJECTION)
    assert event.get_data() == {}


@pytest.mark.parametrize("wire", WIRES)
async def test_names_in_mixed_case(wire: str, tmp_path: Path) -> None:
    """No SDK writes them. Headers of NATS have any case, as those of HTTP; others are refused."""
    attributes = {"id": "1", "source": "/s", "type": "a"}
    with pytest.raises(CloudEventValidationError):
        CloudEvent({**attributes, "traceId": "x"}, {})
    binding = READERS[wire]
    message = binding.write(CloudEvent({**attributes, "traceid": "x"}, {}), "binary")
    mixed = {name.replace("traceid", "traceId"): value for name, value in message.headers.items()}
    async with line(wire, tmp_path) as to:
        await to.wire.write([message._replace(headers=mixed)])
        (record,) = await to.records(1)
    if wire == "nats":
        assert open_record(record.headers, record.data).extensions == {"traceid": "x"}
    else:
        with pytest.raises(InvalidEvent) as caught:
            open_record(record.headers, record.data)
        assert caught.value.field == "traceId"


# -- other forms that the bindings allow -----------------------------------------------------------


async def test_nats_without_headers_is_structured(tmp_path: Path) -> None:
    """All that version 1.0.2 of the binding has; it is older than headers in NATS."""
    async with line("nats", tmp_path) as to:
        bodies = [write_http(event_of(c, "structured"), "structured").body for c in CASES.values()]
        await to.wire.write([Message({}, body) for body in bodies])
        records = await to.records(len(CASES))
    found = {each.id: each for each in (open_record(r.headers, r.data) for r in records)}
    assert found.keys() == CASES.keys()
    for name, envelope in found.items():
        same(envelope, CASES[name])


@pytest.mark.parametrize("prefix", ["cloudEvents:", "cloudEvents_", "ce-"])
async def test_values_of_amqps_own_types(prefix: str, tmp_path: Path) -> None:
    """Receivers take AMQP's timestamps, integers and booleans besides their canonical strings."""
    attributes = {
        "specversion": "1.0",
        "id": "1",
        "source": "/s",
        "type": "a",
        "time": datetime(2024, 6, 30, 23, 59, 59, tzinfo=UTC),
        COUNT: -5,
        FLAG: True,
    }
    headers = {prefix + name: value for name, value in attributes.items()}
    async with line("rabbitmq", tmp_path) as to:
        await to.wire.write([Message(headers, b"{}", kind="application/json")])
        (record,) = await to.records(1)
    envelope = open_record(record.headers, record.data)
    assert envelope.extensions == {COUNT: "-5", FLAG: "true"}
    assert envelope.time == "2024-06-30T23:59:59+00:00"


@pytest.mark.parametrize("time", [2**62, -(2**62), 10**17])
def test_a_number_that_is_no_time_is_refused(time: int) -> None:
    attributes = {"specversion": "1.0", "id": "1", "source": "/s", "type": "a", "time": time}
    headers = {f"cloudEvents_{name}": value for name, value in attributes.items()}
    record = from_rabbitmq(Message(headers, b"{}"))
    with pytest.raises(InvalidEvent) as caught:
        open_record(record.headers, record.data)
    assert caught.value.field == "time"


# -- any event, without a server -------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e30, 1e30) | TEXT,
    lambda inner: st.lists(inner | st.none(), max_size=3) | st.dictionaries(TEXT, inner),
    max_leaves=8,
)
OPTIONAL = (
    "subject dataschema partitionkey correlationid causationid traceparent tracestate".split()
)


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    """Any event with a time; the SDK makes up one, and takes JSON null for no data."""
    if draw(st.booleans()):
        kind, data = "application/json", json.dumps(draw(VALUES)).encode()
    else:
        kind = draw(st.sampled_from(["text/plain", "application/octet-stream", "image/png"]))
        data = draw(st.binary(max_size=40) | TEXT.map(str.encode))
    names = st.from_regex(r"x[a-z0-9]{0,19}", fullmatch=True)
    return Envelope(
        id=draw(TEXT),
        source=draw(TEXT),
        type=draw(TEXT),
        data=data,
        datacontenttype=kind,
        time=format_time(draw(st.floats(1, 4e9))),
        extensions=draw(st.dictionaries(names, TEXT, max_size=3)),
        **{name: draw(st.none() | TEXT) for name in OPTIONAL},
    )


def over_kafka(record: Record) -> Message:
    _, value, key, _, headers = kafka_wire.encode(record, 0)
    named = {n: v.encode() if isinstance(v, str) else v or b"" for n, v in headers}
    return Message(named, value or b"", None if key is None else key.decode())


def from_kafka(message: Message) -> Record:
    key = None if message.key is None else message.key.encode()
    headers: Sequence[Any] = list(message.headers.items())
    driver = KafkaDriverMessage(topic="s", value=message.body, key=key, headers=headers)
    return kafka_wire.decode(driver, "s", 0)


def over_nats(record: Record) -> Message:
    lines = nats_wire.encode(record).decode().split("\r\n")[1:-1]
    return Message(dict(line.split(": ", 1) for line in lines), record.data or b"")


def from_nats(message: Message) -> Record:
    lines = "".join(f"{name}: {value}\r\n" for name, value in message.headers.items())
    return nats_wire.decode(f"NATS/1.0\r\n{lines}".encode(), message.body, "s", 0, 1, 0.0)


def over_rabbitmq(record: Record) -> Message:
    sealed = rabbitmq_wire.encode(record, 0.0)
    properties = Basic.Properties()
    properties.unmarshal(int.from_bytes(sealed[:2]), sealed[2:])
    return Message(dict(properties.headers or {}), record.data or b"", kind=properties.content_type)


def from_rabbitmq(message: Message) -> Record:
    properties = Basic.Properties(content_type=message.kind, headers=message.headers)
    return rabbitmq_wire.decode("s", 0, properties.marshal(), message.body, 1, 0.0)


PASSAGES = {
    "kafka": (over_kafka, from_kafka),
    "rabbitmq": (over_rabbitmq, from_rabbitmq),
    "nats": (over_nats, from_nats),
}
"""What the adapters' own functions make of a record, and of a message."""


@pytest.mark.parametrize("there", MODES)
@pytest.mark.parametrize("back", MODES)
@pytest.mark.parametrize("wire", PASSAGES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(envelope=envelopes())
def test_any_event_comes_back(wire: str, back: str, there: str, envelope: Envelope) -> None:
    """From Oyez to the SDK in one mode, from there to Oyez in the same or the other."""
    over, from_ = PASSAGES[wire]
    binding = READERS[wire]
    event = binding.read(over(record_of(envelope, there, "s")))
    data = event.get_data()
    if back == "binary" and envelope.datacontenttype == "application/json":
        data = json.dumps(data).encode()
    record = from_(binding.write(CloudEvent(event.get_attributes(), data), back))
    exact = binding.exact if back == "binary" else timedelta(0)
    same(open_record(record.headers, record.data), envelope, exact=exact)
