"""Events of others, over real sockets onto the embedded broker: who may send what, and how."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cloudevents.core.bindings import http as sdk
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_gateway import Client, Clock, serving
from test_tracing import SAMPLED, Recorder

from oyez.brokers import connect
from oyez.brokers.memory.broker import MemoryBroker
from oyez.cloudevents import Arrived, open_arrived
from oyez.config import Config, SenderSettings, load
from oyez.envelope import format_time, open_record
from oyez.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InvalidEvent,
    RecordRefused,
)
from oyez.event import MAX_DATA
from oyez.gateway import gateway
from oyez.gateway.ingest.admission import Admission, NotAllowed
from oyez.gateway.ingest.publisher import LIMIT, Publisher
from oyez.gateway.ingest.quota import Quota
from oyez.observe.metrics import Metrics
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Record
from oyez.principal import Principal
from oyez.testing import VirtualAmbient

KEYS = ("meter-1", "meter-2", "partner", "stranger")
SOURCE = "/iot/gateway/key:meter-1"

CONTRACT = """
from oyez import Command, Event

class Reading(Event, type="iot.reading.taken", key="meter"):
    meter: str
    celsius: float

class Alarm(Event, type="iot.alarm.raised"):
    text: str

class Reset(Command, type="iot.meter.reset", to="meters"):
    meter: str

class Plain:
    pass
"""

SENDERS = """
[gateway.ingest.senders.meters]
principals = ["key:meter-*"]
events = ["contract:Reading", "contract:Alarm"]

[gateway.ingest.senders.partner]
principals = ["key:partner"]
types = ["partner.*", "iot.note"]
sources = ["https://partner.example", "/partners/{subject}/*"]
stream = "partners"
"""


EMBEDDED = "embedded:.oyez/events.db"


def settings(
    folder: Path, more: str = SENDERS, options: str = "", broker: str = EMBEDDED
) -> Config:
    (folder / "contract.py").write_text(CONTRACT)
    digests = {name: hashlib.sha256(f"key of {name}".encode()).hexdigest() for name in KEYS}
    keys = "".join(f'[keys.{name}]\nsha256 = "{each}"\n' for name, each in digests.items())
    (folder / "keys.toml").write_text(keys)
    (folder / "keys.toml").chmod(0o600)
    (folder / "oyez.toml").write_text(
        f"""
        [system]
        name = "iot"
        broker = "{broker}"
        [gateway]
        listen = "127.0.0.1:0"
        keys = "keys.toml"
        {options}
        [gateway.ingest]
        {more}
        """
    )
    return load(folder / "oyez.toml", {})


@contextlib.asynccontextmanager
async def taking_in(
    folder: Path, *arguments: str, observer: Metrics | None = None
) -> AsyncIterator[Client]:
    with fresh_contract():
        async with serving(settings(folder, *arguments), observer=observer) as client:
            client.headers["x-api-key"] = "key of meter-1"
            yield client


@contextlib.contextmanager
def fresh_contract() -> Iterator[None]:
    """Each test has a module of its own, in its own folder."""
    before = list(sys.path)
    sys.modules.pop("contract", None)
    try:
        yield
    finally:
        sys.modules.pop("contract", None)
        sys.path[:] = before


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with taking_in(tmp_path) as client:
        yield client


async def on_the_broker(folder: Path, stream: str = "iot.gateway") -> list[Record]:
    """All records of a stream, those of a partition in their order."""
    broker = connect(EMBEDDED, Clock(), root=folder)
    await broker.open()
    found: list[Record] = []
    try:
        for partition, end in enumerate(await broker.ends(stream)):
            position = BEGINNING
            async with contextlib.aclosing(broker.read(stream, partition, position)) as batches:
                while position < end:
                    found += (await asyncio.wait_for(anext(batches), 10)).records
                    position = found[-1].position
    finally:
        await broker.close()
    return found


def reading(number: int = 1, **changes: Any) -> dict[str, Any]:
    event = {
        "specversion": "1.0",
        "id": f"r{number}",
        "source": SOURCE,
        "type": "iot.reading.taken",
        "data": {"meter": "m7", "celsius": 20.5},
    }
    return {name: value for name, value in {**event, **changes}.items() if value is not ...}


async def send(client: Client, *events: dict[str, Any], form: str = "batch") -> httpx.Response:
    if form == "binary":
        (event,) = events
        headers = {f"ce-{n}": str(v) for n, v in event.items() if n not in ("data", "kind")}
        headers["content-type"] = event.get("kind", "application/json")
        data = event.get("data", b"")
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        return await client.post("/events", content=content, headers=headers)
    if form == "structured":
        (event,) = events
        kind, text = "application/cloudevents+json", json.dumps(event)
    elif form == "lines":
        kind, text = "application/x-ndjson", "".join(f"{json.dumps(each)}\n" for each in events)
    else:
        kind, text = "application/cloudevents-batch+json", json.dumps(events)
    return await client.post("/events", content=text, headers={"content-type": kind})


def refused(response: httpx.Response, status: int, code: str) -> list[dict[str, Any]]:
    """The errors that a refusal lists."""
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert "Traceback" not in response.text
    return problem.get("errors", [])


# What passes


@pytest.mark.parametrize("form", ["binary", "structured", "batch", "lines"])
async def test_an_event_passes_in_every_form(client: Client, tmp_path: Path, form: str) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await send(client, reading(traceparent=trace, colour="red"), form=form)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1})
    (record,) = await on_the_broker(tmp_path)
    assert record.key == "m7"
    assert record.partition == partition_of("m7", 8)
    assert json.loads(record.data or b"") == {"meter": "m7", "celsius": 20.5}
    time = record.headers.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time)
    assert record.headers == {
        "specversion": "1.0",
        "id": "r1",
        "source": SOURCE,
        "type": "iot.reading.taken",
        "subject": "m7",
        "partitionkey": "m7",
        "datacontenttype": "application/json",
        "dataschema": "urn:oyez:iot.reading.taken:1",
        "correlationid": "r1",
        "traceparent": trace,
        "authtype": "api_key",
        "authid": "key:meter-1",
        "colour": "red",
    }
    assert open_record(record.headers, record.data).id == "r1"


async def test_what_the_sender_leaves_out_is_filled_in(client: Client, tmp_path: Path) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    client.headers["traceparent"] = trace
    await send(client, reading(traceparent="nonsense", tracestate="a=1"))
    (record,) = await on_the_broker(tmp_path)
    assert record.headers["traceparent"][:36] == trace[:36]
    assert record.headers["traceparent"] != trace
    assert "tracestate" not in record.headers


async def test_what_the_sender_says_is_kept(client: Client, tmp_path: Path) -> None:
    said = {"time": "2024-02-29T12:00:00+01:00", "correlationid": "order-1", "subject": "s"}
    await send(client, reading(**said))
    (record,) = await on_the_broker(tmp_path)
    assert said.items() <= record.headers.items()
    assert record.headers["partitionkey"] == "m7"


async def test_nobody_gives_another_name_for_his_own(client: Client, tmp_path: Path) -> None:
    await send(client, reading(authid="key:admin", authtype="system"))
    (record,) = await on_the_broker(tmp_path)
    assert (record.headers["authid"], record.headers["authtype"]) == ("key:meter-1", "api_key")


async def test_a_batch_keeps_its_order_by_key(client: Client, tmp_path: Path) -> None:
    events = [
        reading(n, data={"meter": f"m{n % 7}", "celsius": 1}, colour=str(n)) for n in range(700)
    ]
    assert (await send(client, *events)).json() == {"accepted": 700}
    assert (await send(client, *events[:300], form="lines")).json() == {"accepted": 300}
    found = await on_the_broker(tmp_path)
    for key in range(7):
        seen = [int(each.headers["colour"]) for each in found if each.key == f"m{key}"]
        assert seen == [n for n in range(700) if n % 7 == key] + [
            n for n in range(300) if n % 7 == key
        ]


async def test_an_empty_batch_is_accepted(client: Client) -> None:
    assert (await send(client)).json() == {"accepted": 0}
    assert (await send(client, form="lines")).json() == {"accepted": 0}


async def test_binary_values_are_percent_encoded(client: Client, tmp_path: Path) -> None:
    headers = {"ce-subject": '"Euro %E2%82%AC \\" 100%25"', "ce-colour": "gr%C3%BCn"}
    head = {f"ce-{n}": v for n, v in reading().items() if n != "data"}
    data = b'{"meter": "m7", "celsius": 1e0}'
    sent = {**head, **headers, "content-type": "application/json; charset=utf-8"}
    answer = await client.post("/events", content=data, headers=sent)
    assert answer.status_code == 202, answer.text
    (record,) = await on_the_broker(tmp_path)
    assert record.headers["subject"] == 'Euro € " 100%'
    assert record.headers["colour"] == "grün"
    assert record.data == data


@pytest.mark.parametrize("mode", ["binary", "structured"])
async def test_the_official_sdk_is_understood(client: Client, tmp_path: Path, mode: str) -> None:
    attributes = {"id": "sdk", "source": SOURCE, "type": "iot.alarm.raised", "subject": "häuser"}
    event = CloudEvent(attributes, {"text": "zu heiß"})
    message = getattr(sdk, f"to_{mode}_event")(event)
    answer = await client.post("/events", content=message.body, headers=message.headers)
    assert answer.status_code == 202, answer.text
    (record,) = await on_the_broker(tmp_path)
    assert record.headers["subject"] == record.key == "häuser"
    assert json.loads(record.data or b"") == {"text": "zu heiß"}


async def test_data_that_is_not_json(client: Client, tmp_path: Path) -> None:
    client.headers["x-api-key"] = "key of partner"
    common = {"source": "https://partner.example", "type": "partner.photo"}
    picture = b"\x89PNG\x00"
    inside = {"datacontenttype": "image/png", "data": ...}
    encoded = base64.b64encode(picture).decode()
    answers = [
        await send(client, reading(1, **common, data=picture, kind="image/png"), form="binary"),
        await send(client, reading(2, **common, **inside, data_base64=encoded)),
    ]
    assert [each.status_code for each in answers] == [202, 202]
    found = await on_the_broker(tmp_path, "iot.partners")
    assert [each.data for each in found] == [picture, picture]
    assert {each.headers["datacontenttype"] for each in found} == {"image/png"}


# Who may send what


async def test_only_who_is_known_and_named_may_send(client: Client, tmp_path: Path) -> None:
    client.headers["x-api-key"] = "key of stranger"
    refused(await send(client, reading()), 403, "sender_not_allowed")
    client.headers["x-api-key"] = "no key"
    refused(await send(client, reading()), 401, "key_invalid")
    del client.headers["x-api-key"]
    refused(await send(client, reading()), 401, "credentials_missing")
    await client.post("/session")
    refused(await send(client, reading()), 403, "sender_not_allowed")
    assert await on_the_broker(tmp_path) == []


async def test_types_and_sources_are_those_of_the_sender(client: Client, tmp_path: Path) -> None:
    for changes, field in [
        ({"type": "iot.reading.deleted"}, "type"),
        ({"type": "partner.photo"}, "type"),
        ({"type": "iot.meter.reset"}, "type"),
        ({"source": "/iot/meters"}, "source"),
        ({"source": "/iot/gateway/key:meter-2"}, "source"),
        ({"source": f"{SOURCE}0"}, "source"),
    ]:
        (error,) = refused(await send(client, reading(**changes)), 403, "event_not_allowed")
        assert (error["index"], error["field"]) == (0, field)
    assert SOURCE in error["detail"]
    assert (await send(client, reading(source=f"{SOURCE}/cellar"))).status_code == 202
    client.headers["x-api-key"] = "key of partner"
    for source, status in [
        ("https://partner.example", 202),
        ("https://partner.example/x", 403),
        ("/partners/partner/x", 202),
        ("/partners/partner", 403),
        ("/partners/other/x", 403),
        ("/iot/gateway/key:partner", 403),
    ]:
        answer = await send(client, reading(type="partner.x", source=source, data=1))
        assert answer.status_code == status, source
    for type_, status in [("iot.note", 202), ("iot.notes", 403), ("partner.", 202)]:
        answer = await send(client, reading(type=type_, source="https://partner.example"))
        assert answer.status_code == status, type_
    assert len(await on_the_broker(tmp_path)) == 1
    assert len(await on_the_broker(tmp_path, "iot.partners")) == 4


def test_scopes_admit_as_names_do(tmp_path: Path) -> None:
    config = settings(tmp_path)
    sender = SenderSettings(name="users", scopes=("events:write",), types=("a",))
    admission = Admission(config, Clock(), [sender])

    def user(subject: str = "a|b c", **more: Any) -> Principal:
        return Principal(kind="user", issuer="login", subject=subject, **more)

    assert admission.of(user()) is None
    assert admission.of(user(scopes=frozenset({"events"}))) is None
    admitted = admission.of(user(scopes=frozenset({"events:write"})))
    assert admitted is not None
    allowed = admitted.allowed("a")
    assert allowed is not None
    assert allowed.sources[0] == "/iot/gateway/login:a%7Cb%20c"
    for subject in ("a" * 507, "a\nb"):  # names that no event can have
        assert admission.of(user(subject, scopes=frozenset({"events:write"}))) is None


async def test_nobody_speaks_for_a_service(tmp_path: Path) -> None:
    more = SENDERS.replace('sources = ["https', 'sources = ["/iot/*", "https')
    async with taking_in(tmp_path, more + "[services.orders]\napp = 'a:b'") as client:
        client.headers["x-api-key"] = "key of partner"
        for source, status in [("/iot/orders", 403), ("/iot/order", 202), ("/iot/orders/x", 202)]:
            answer = await send(client, reading(type="iot.note", source=source))
            assert answer.status_code == status, source


async def test_data_fits_its_class(client: Client, tmp_path: Path) -> None:
    good = reading(1)
    for data, field in [
        ({"meter": "m7"}, "data"),
        ({"meter": "m7", "celsius": "warm"}, "data.celsius"),
        ({"meter": None, "celsius": 1}, "data.meter"),
        ({"meter": "", "celsius": 1}, "data.meter"),
        ({"meter": "m" * 513, "celsius": 1}, "data.meter"),
        ([], "data"),
        (None, "data"),
        (..., "data"),
    ]:
        answer = await send(client, good, reading(2, data=data))
        (error,) = refused(answer, 422, "invalid_event")
        assert (error["index"], error["field"]) == (1, field)
    for changes, field in [
        ({"partitionkey": "other"}, "partitionkey"),
        ({"dataschema": "urn:oyez:iot.reading.taken:2"}, "dataschema"),
        ({"datacontenttype": "text/plain", "data": "x"}, "datacontenttype"),
    ]:
        (error,) = refused(await send(client, reading(**changes)), 422, "invalid_event")
        assert error["field"] == field
    assert await on_the_broker(tmp_path) == []


async def test_all_events_of_a_request_or_none(client: Client, tmp_path: Path) -> None:
    events = [reading(n, id="" if n % 3 == 0 else ...) for n in range(90)]
    errors = refused(await send(client, *events), 422, "invalid_event")
    assert [each["index"] for each in errors] == list(range(20))
    assert [each["field"] for each in errors] == ["id"] * 20
    events = [reading(n, **({"id": ""} if n in (5, 70) else {})) for n in range(90)]
    for form in ("batch", "lines"):
        errors = refused(await send(client, *events, form=form), 422, "invalid_event")
        assert errors == [
            {"index": 5, "field": "id", "detail": "is empty"},
            {"index": 70, "field": "id", "detail": "is empty"},
        ]
    assert await on_the_broker(tmp_path) == []


# Bad input


LONG = "x" * 65_536


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        *[({name: ...}, name) for name in ("id", "source", "type", "specversion")],
        *[({name: ""}, name) for name in ("id", "source", "type", "specversion", "subject")],
        *[({name: None}, name) for name in ("id", "source", "type", "specversion")],
        ({"specversion": "0.3"}, "specversion"),
        ({"specversion": 1.0}, "specversion"),
        ({"Colour": "red"}, "Colour"),
        ({"größe": "red"}, "größe"),
        ({"a_b": "red"}, "a_b"),
        ({"a" * 21: "red"}, "a" * 21),
        ({"id": "a\r\nb"}, "id"),
        ({"subject": "a\nb"}, "subject"),
        ({"colour": LONG}, "colour"),
        ({"id": LONG}, "id"),
        ({"subject": "k" * 513, "type": "iot.alarm.raised", "data": {"text": ""}}, "subject"),
        ({"partitionkey": "", "type": "iot.alarm.raised", "data": {"text": ""}}, "partitionkey"),
        ({"partitionkey": "k" * 513, "type": "iot.alarm.raised", "data": {"text": ""}},
         "partitionkey"),
        ({"time": "yesterday"}, "time"),
        ({"time": "0000-01-01T00:00:00Z"}, "time"),
        ({"time": "2024-02-30T00:00:00Z"}, "time"),
        ({"time": "9999-12-31T23:59:59Z"}, "time"),
        ({"time": "9999-12-31T23:59:59-14:00"}, "time"),
        ({"time": 1_700_000_000}, "time"),
        ({"recipient": "meters"}, "recipient"),
        ({"expires": "2024-01-01T00:00:00Z"}, "expires"),
        ({"replayed": "r"}, "replayed"),
        ({"causationid": "c"}, "causationid"),
        ({"dataref": "file:///etc/passwd"}, "dataref"),
        ({"dataref": "file:///etc/passwd", "data": ...}, "data"),
        ({"data_base64": "e30="}, "data_base64"),
        ({"data": ..., "data_base64": "e30"}, "data_base64"),
        ({"data": ..., "data_base64": "*"}, "data_base64"),
        ({"data": ..., "data_base64": 1}, "data_base64"),
        ({"data": ..., "data_base64": base64.b64encode(b'{"a": NaN}').decode()}, "data.a"),
        ({"data": {"meter": "a\x00", "celsius": 1}}, "data.meter"),
        ({"data": {"meter": "m", "celsius": 1, "more": 2**63}}, "data.more"),
        ({"colour": ["red"]}, "colour"),
        ({"colour": 1.5}, "colour"),
        ({"colour": {"a": 1}}, "colour"),
    ],
)  # fmt: skip
async def test_bad_events_name_the_attribute(
    client: Client, tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    for form in ("structured", "lines"):
        answer = await send(client, reading(**changes), form=form)
        code = "event_not_allowed" if answer.status_code == 403 else "invalid_event"
        (error,) = refused(answer, 403 if code == "event_not_allowed" else 422, code)
        assert (error["index"], error["field"]) == (0, field)
    assert await on_the_broker(tmp_path) == []


@pytest.mark.parametrize(
    ("lines", "status", "field"),
    [
        ("ce-id: \r\n", 422, "id"),
        ("", 422, "id"),
        ("ce-id: 1\r\nce-id: 2\r\n", 422, "id"),
        ("ce-id: a%0d%0ab\r\n", 422, "id"),
        ("ce-id: %ff\r\n", 422, "id"),
        ("ce-id: \xff\r\n", 422, "id"),
        ("ce-id: 1\r\nce-a_b: 1\r\n", 422, "a_b"),
        ("ce-id: 1\r\nce-content-type: application/cloudevents+json\r\n", 422, "content-type"),
        ("ce-id: 1\r\nce-: 1\r\n", 422, ""),
        ("ce-id: 1\r\nce-data: 1\r\n", 422, "data"),
        ("ce-id: 1\r\nce-datacontenttype: text/plain\r\n", 422, "datacontenttype"),
        ("ce-id: 1\r\nce-specversion: 2.0\r\n", 422, "specversion"),
        (f"ce-id: {'x' * 9000}\r\n", 422, "id"),
        (f"ce-id: {LONG}\r\n", 431, None),
    ],
)
async def test_bad_binary_events(
    client: Client, tmp_path: Path, lines: str, status: int, field: str | None
) -> None:
    version = "" if "specversion" in lines else "ce-specversion: 1.0\r\n"
    head = (
        f"POST /events HTTP/1.1\r\nHost: x\r\nX-Api-Key: key of meter-1\r\n{lines}{version}"
        f"ce-source: {SOURCE}\r\nce-type: iot.alarm.raised\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nContent-Length: 13\r\n\r\n"
    )
    answer = await client.raw(head.encode("latin-1") + b'{"text": "a"}')
    top, _, body = answer.partition(b"\r\n\r\n")
    assert int(top.split()[1]) == status
    if field is not None:
        (error,) = json.loads(body)["errors"]
        assert (error["index"], error["field"]) == (0, field)
    assert await on_the_broker(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "body", "status", "code"),
    [
        (None, "{}", 415, "not_an_event"),
        ("application/json", "{}", 415, "not_an_event"),
        ("application/cloudevents+xml", "<a/>", 415, "not_an_event"),
        ("application/cloudevents+json; charset=latin-1", "{}", 415, "bad_charset"),
        ("application/cloudevents+json", "", 400, "bad_json"),
        ("application/cloudevents+json", "{", 400, "bad_json"),
        ("application/cloudevents+json", b'{"id": "\xff"}', 400, "bad_json"),
        ("application/cloudevents+json", "[]", 422, "invalid_event"),
        ("application/cloudevents+json", "[" * 100_000, 422, "invalid_event"),
        ("application/cloudevents+json", '{"id": "1", "id": "2"}', 422, "invalid_event"),
        ("application/cloudevents+json", '{"id": "\\ud800"}', 422, "invalid_event"),
        ("application/cloudevents-batch+json", "{}", 422, "invalid_batch"),
        ("application/cloudevents-batch+json", "[{}", 400, "bad_json"),
        ("application/cloudevents-batch+json", "[" * 100_000, 400, "bad_json"),
        ("application/cloudevents-batch+json", "[1]", 422, "invalid_event"),
        ("application/cloudevents-batch+json", "[[{}]]", 422, "invalid_event"),
        ("application/x-ndjson", "{}\nno\n", 400, "bad_json"),
        ("application/x-ndjson", "\n\n1\n", 422, "invalid_event"),
    ],
)
async def test_bad_bodies(
    client: Client, tmp_path: Path, kind: str | None, body: str | bytes, status: int, code: str
) -> None:
    headers = {} if kind is None else {"content-type": kind}
    refused(await client.post("/events", content=body, headers=headers), status, code)
    assert await on_the_broker(tmp_path) == []


async def test_a_field_that_is_there_twice_is_named(client: Client) -> None:
    text = json.dumps(reading()).replace('"celsius": 20.5', '"celsius": 1, "celsius": 2')
    headers = {"content-type": "application/x-ndjson"}
    (error,) = refused(
        await client.post("/events", content=text, headers=headers), 422, "invalid_event"
    )
    assert error["field"] == "data"
    assert "twice" in error["detail"]


async def test_forms_that_disagree(client: Client, tmp_path: Path) -> None:
    kind = {"content-type": "application/cloudevents+json"}
    body = json.dumps(reading())
    answer = await client.post("/events", content=body, headers={**kind, "ce-id": "other"})
    (error,) = refused(answer, 422, "invalid_event")
    assert error["field"] == "id"
    answer = await client.post("/events", content=body, headers={**kind, "ce-id": "r1"})
    assert answer.status_code == 202
    kind["content-type"] = "application/cloudevents-batch+json"
    answer = await client.post("/events", content=f"[{body}]", headers={**kind, "ce-id": "r1"})
    refused(answer, 400, "two_forms")
    assert len(await on_the_broker(tmp_path)) == 1


async def test_the_type_of_the_body_is_said_once(client: Client, tmp_path: Path) -> None:
    client.headers["x-api-key"] = "key of partner"
    event = reading(source="https://partner.example", type="iot.note", data=b"x")
    event["datacontenttype"] = "text/plain"
    answer = await send(client, {**event, "kind": "image/png"}, form="binary")
    (error,) = refused(answer, 422, "invalid_event")
    assert error["field"] == "datacontenttype"
    assert (await send(client, {**event, "kind": "text/plain"}, form="binary")).status_code == 202
    headers = {f"ce-{n}": v for n, v in event.items() if n not in ("data", "datacontenttype")}
    headers["ce-content-type"] = "application/cloudevents+json"
    answer = await client.post("/events", content=json.dumps(reading()), headers=headers)
    (error,) = refused(answer, 422, "invalid_event")
    assert (error["field"], "no attribute name" in error["detail"]) == ("content-type", True)
    assert len(await on_the_broker(tmp_path, "iot.partners")) == 1


async def test_other_methods_and_encodings(client: Client) -> None:
    answer = await client.get("/events")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    headers = {"content-type": "application/x-ndjson", "content-encoding": "gzip"}
    refused(await client.post("/events", content=b"x", headers=headers), 415, "encoded_body")


@pytest.mark.parametrize("kind", ["application/cloudevents+json", " Application/CloudEvents; a=b"])
async def test_no_event_hides_in_another(client: Client, tmp_path: Path, kind: str) -> None:
    """A reader would take the inner one for it, with attributes that are refused here."""
    client.headers["x-api-key"] = "key of partner"
    outer = reading(source="https://partner.example", type="iot.note")
    inner = json.dumps({**outer, "recipient": "meters", "authid": "key:admin"}).encode()
    hidden = base64.b64encode(inner).decode()
    answers = [
        await send(client, {**outer, "data": inner, "kind": kind.strip()}, form="binary"),
        await client.post(
            "/events",
            content=inner,
            headers={
                **{f"ce-{n}": v for n, v in outer.items() if n != "data"},
                "ce-datacontenttype": kind.strip(),
            },
        ),
    ]
    inside = {**outer, "datacontenttype": kind, "data_base64": hidden}
    del inside["data"]
    answers += [await send(client, inside), await send(client, inside, form="structured")]
    if "+json" in kind:  # by the type of its body it is that event, with all that is in it
        (error,) = refused(answers[0], 422, "invalid_event")
        assert error["field"] == "recipient"
    else:
        refused(answers[0], 415, "not_an_event")
    for answer in answers[1:]:
        (error,) = refused(answer, 422, "invalid_event")
        assert error["field"] == "datacontenttype"
    assert await on_the_broker(tmp_path, "iot.partners") == []


async def test_an_escaped_name_does_not_pass_by_the_strict_reading(client: Client) -> None:
    text = json.dumps(reading(data=...)).removesuffix("}")
    hidden = base64.b64encode(b'{"meter": "m", "celsius": 1, "celsius": 2}').decode()
    text += f', "data\\u005fbase64": "{hidden}"}}'
    answer = await client.post(
        "/events", content=text, headers={"content-type": "application/x-ndjson"}
    )
    (error,) = refused(answer, 422, "invalid_event")
    assert (error["field"], "twice" in error["detail"]) == ("data", True)


async def test_data_at_the_limit_and_one_byte_over(tmp_path: Path) -> None:
    async with taking_in(tmp_path, SENDERS, "body_limit = 2_000_000") as client:
        client.headers["x-api-key"] = "key of partner"
        common = {"source": "https://partner.example", "type": "iot.note"}
        for size, status in [(MAX_DATA, 202), (MAX_DATA + 1, 422)]:
            data = b'"' + b"x" * (size - 2) + b'"'
            answer = await send(client, reading(size, **common, data=data), form="binary")
            assert answer.status_code == status
            text = (
                json.dumps(reading(size, **common, data=...))[:-1] + f', "data": {data.decode()}}}'
            )
            headers = {"content-type": "application/cloudevents+json"}
            answer = await client.post("/events", content=text, headers=headers)
            assert answer.status_code == status
            if status == 422:
                (error,) = refused(answer, 422, "invalid_event")
                assert error["field"] == "data"
        assert [
            len(each.data or b"") for each in await on_the_broker(tmp_path, "iot.partners")
        ] == [
            MAX_DATA,
            MAX_DATA,
        ]
        refused(await client.post("/events", content=b"x" * 2_000_001), 413, "body_too_large")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(sorted({*reading(), "data_base64", "time", "subject", "dataref"}))
BINARY = {"specversion": "1.0", "id": "1", "source": "/iot/a", "type": "i"}


@pytest.fixture(scope="module")
def admission(tmp_path_factory: pytest.TempPathFactory) -> Admission:
    sender = SenderSettings(name="a", principals=("key:*",), types=("i*",), sources=("/iot/*",))
    return Admission(settings(tmp_path_factory.mktemp("iot")), Clock(), [sender])


@given(st.dictionaries(NAMES | st.text(max_size=5), VALUES), st.binary(max_size=30))
@hypothesis_settings(max_examples=300)
def test_whatever_comes_is_an_event_or_names_a_field(
    admission: Admission, event: dict[str, Any], more: bytes
) -> None:
    admitted = admission.of(Principal(kind="api_key", issuer="key", subject="k"))
    assert admitted is not None
    text = json.dumps({**reading(), **event}).encode()
    for body in (text, text + more, text[:-1] + more + b"}", more):
        for arrived in (
            Arrived({"content-type": "application/cloudevents+json"}, body, True),
            Arrived(BINARY, body, False),
        ):
            with contextlib.suppress(InvalidEvent, NotAllowed):
                record = admitted.record(open_arrived(arrived), "00-1-1-01")
                assert open_record(record.headers, record.data).source.startswith("/iot/")


# Quotas


class Watch(Clock):
    """A clock that stands still unless it is put forward."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1_700_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def test_a_quota_is_made_up_for() -> None:
    clock = Watch()
    quota = Quota(SenderSettings(name="a", events_per_second=10), clock)
    assert quota.wait() == 0
    quota.use(256, 0)  # as large a batch as there may be, at once
    assert quota.wait() == pytest.approx(24.7)
    clock.time += 24.5
    assert quota.wait() > 0
    clock.time += 0.3
    assert quota.wait() == 0
    clock.time += 3600  # an hour of silence is worth one second
    quota.use(10, 0)
    assert quota.wait() == pytest.approx(0.1)


def test_a_day_is_that_of_utc() -> None:
    clock = Watch()
    quota = Quota(SenderSettings(name="a", bytes_per_day=100), clock)
    quota.use(1, 99)
    assert quota.wait() == 0
    quota.use(1, 1)
    left = 86_400 - clock.time % 86_400
    assert quota.wait() == pytest.approx(left)
    clock.time += left
    assert quota.wait() == 0


async def test_quotas_are_those_of_each_principal(tmp_path: Path) -> None:
    more = SENDERS.replace('"key:meter-*"]', '"key:meter-*"]\nevents_per_second = 0.001')
    async with taking_in(tmp_path, more) as client:
        assert (await send(client, reading(1), reading(2))).status_code == 202
        answer = await send(client, reading(3))
        refused(answer, 429, "quota_used_up")
        assert 1900 < int(answer.headers["retry-after"]) <= 2000
        client.headers["x-api-key"] = "key of meter-2"
        own = SOURCE.replace("meter-1", "meter-2")
        assert (await send(client, reading(4, source=own))).status_code == 202
    assert len(await on_the_broker(tmp_path)) == 3


# The broker


async def test_nothing_is_promised_while_the_broker_is_out_of_reach(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    async with taking_in(tmp_path, SENDERS, "", f"redis://127.0.0.1:{port}?deadline=0.3") as client:
        answer = await send(client, reading())
        refused(answer, 503, "broker_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert (await client.get("/readyz")).status_code == 200


async def test_who_waits_too_long_is_told(tmp_path: Path) -> None:
    async with taking_in(tmp_path, SENDERS, "timeout = 0.3") as client:
        assert (await send(client, reading(1))).status_code == 202
        lock = os.open(tmp_path / ".oyez" / "events.db.lock", os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a process does that does not come to its end
        try:
            refused(await send(client, reading(2)), 503, "broker_slow")
        finally:
            os.close(lock)
        async with asyncio.timeout(10):
            while (await send(client, reading(3))).status_code != 202:
                pass
    assert {"r1", "r3"} <= {each.headers["id"] for each in await on_the_broker(tmp_path)}


def record(number: int, size: int = 1) -> Record:
    headers = {"id": str(number), "time": format_time(0)}
    return Record(stream="s", key="k", headers=headers, data=b"x" * size)


class Counting(MemoryBroker):
    """The memory broker, with the sizes of what was published at once."""

    def __init__(self) -> None:
        super().__init__(VirtualAmbient(), partitions=1)
        self.sizes: list[int] = []
        self.tried = 0
        self.refuses = ""

    async def publish(self, records: Any) -> None:
        self.tried += 1
        await asyncio.sleep(0)
        if any(each.headers["id"] == self.refuses for each in records):
            raise RecordRefused("of a test")
        await super().publish(records)
        self.sizes.append(len(records))

    @property
    def ids(self) -> list[str]:
        return [each.headers["id"] for log in self.logs["s"] for each in log]


async def test_many_requests_are_published_together() -> None:
    broker = Counting()
    publisher = Publisher(broker, VirtualAmbient(), sender="gateway")
    await asyncio.gather(*(publisher.publish([record(n)]) for n in range(LIMIT + 10)))
    assert broker.sizes == [LIMIT, 10]
    assert broker.ids == [str(n) for n in range(LIMIT + 10)]
    broker.sizes.clear()
    await publisher.publish([record(n, 1024 * 1024) for n in range(10)])
    assert broker.sizes == [4, 4, 2]
    await publisher.close()


async def test_one_request_that_is_refused_takes_no_other_with_it() -> None:
    broker = Counting()
    broker.refuses = "2"
    publisher = Publisher(broker, VirtualAmbient(), sender="gateway")
    sent = [publisher.publish([record(n)]) for n in range(4)]
    answers = await asyncio.gather(*sent, return_exceptions=True)
    assert [type(each) for each in answers] == [type(None), type(None), RecordRefused, type(None)]
    assert broker.ids == ["0", "1", "3"]


async def test_all_that_wait_hear_at_once_that_the_broker_is_gone() -> None:
    broker = Counting()
    publisher = Publisher(broker, VirtualAmbient(), sender="gateway")
    broker.interrupt(True)
    sent = [publisher.publish([record(n)]) for n in range(2 * LIMIT)]
    answers = await asyncio.gather(*sent, return_exceptions=True)
    assert {type(each) for each in answers} == {BrokerUnavailable}
    assert broker.tried == 1
    broker.interrupt(False)
    await publisher.publish([record(7)])
    assert broker.ids == ["7"]


async def test_what_nobody_waits_for_any_more_is_not_published() -> None:
    broker = Counting()
    publisher = Publisher(broker, VirtualAmbient(), sender="gateway")
    tasks = [asyncio.create_task(publisher.publish([record(n)])) for n in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert broker.ids == ["0", "2"]


def test_an_event_that_is_too_large_for_the_broker() -> None:
    broker = Counting()
    broker.capabilities = msgspec.structs.replace(broker.capabilities, max_bytes=1000)
    publisher = Publisher(broker, VirtualAmbient(), sender="gateway")
    publisher.check(record(1, 900))
    with pytest.raises(InvalidEvent, match="at most 1000 are allowed"):
        publisher.check(record(1, 1000))


async def test_publishing_is_a_span_of_the_requests_trace() -> None:
    broker, spans = Counting(), Recorder()
    ambient = VirtualAmbient()
    tracer = spans("gateway", ambient)
    publisher = Publisher(broker, ambient, sender="gateway", tracer=tracer)
    sent = [record(n) for n in range(3)]
    for each in sent:
        each.headers["traceparent"] = SAMPLED
    await publisher.publish(sent)
    broker.interrupt(True)
    with pytest.raises(BrokerUnavailable):
        await publisher.publish(sent)
    done, failed = spans.named("publish s")
    assert {each.context.trace_id for each in (done, failed)} == {int(SAMPLED[3:35], 16)}
    assert len(done.links) == 3
    assert (done.status.is_ok, failed.status.is_ok) == (True, False)
    assert (failed.attributes or {})["error.type"] == "BrokerUnavailable"


async def test_published_events_are_counted(tmp_path: Path) -> None:
    metrics = Metrics("gateway", service="gateway")
    async with taking_in(tmp_path, observer=metrics) as client:
        assert (await send(client, reading(1), reading(2))).status_code == 202
        text = (await httpx.AsyncClient().get(f"http://{client.admin}/metrics")).text
    assert 'oyez_events_published_total{service="gateway",stream="iot.gateway"} 2.0' in text
    assert 'oyez_publish_seconds_count{service="gateway"} 1.0' in text
    assert 'route="/events"' in text


# Settings


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("", "gateway.ingest.senders: expected tables [gateway.ingest.senders.NAME]"),
        ("[gateway.ingest.senders.a]\ntypes = ['x']", "senders.a.principals: expected who may"),
        ("[gateway.ingest.senders.a]\nscopes = ['x']", "senders.a.events: expected what may"),
        ("[gateway.ingest.senders.a]\nprincipals = ['ci']", "a.principals: expected a list of"),
        ("[gateway.ingest.senders.a]\nprincipals = ['*']", "a.principals: expected a list of"),
        ("[gateway.ingest.senders.a]\ntypes = ['*']", "a.types: expected a list of event types"),
        ("[gateway.ingest.senders.a]\nsources = ['/x*']", "a.sources: expected a list of sources"),
        ("[gateway.ingest.senders.a]\nsources = ['{who}']", "a.sources: expected a list of"),
        ("[gateway.ingest.senders.a]\nevents = ['x']", "a.events: expected a list of classes"),
        ("[gateway.ingest.senders.a]\nbytes_per_day = 0", "a.bytes_per_day: expected a whole"),
        ("path = '/readyz'\n" + SENDERS, "ingest.path: expected a path that nothing else uses"),
        ("path = '/'\n" + SENDERS, "ingest.path: expected a path that nothing else uses"),
        (
            SENDERS.replace('"partners"', '"orders"') + "[services.orders]\napp = 'a:b'",
            "senders.partner.stream: expected a stream that no service publishes",
        ),
        (
            SENDERS + "[services.orders]\napp = 'a:b'\nhttp = 'h:1'\n"
            "[[gateway.routes]]\npath = '/events'\nservice = 'orders'",
            "ingest.path: expected a path that nothing else uses",
        ),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, more: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(tmp_path, more)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ("nowhere:Reading", "there is no module nowhere"),
        ("contract:Nothing", "expected module:class"),
        ("contract:Plain", "expected an event class"),
        ("contract:Reset", "which is a command"),
        ('contract:Alarm", "contract:Alarms', "expected each type once"),
    ],
)
def test_classes_that_are_no_events(tmp_path: Path, events: str, problem: str) -> None:
    more = f'[gateway.ingest.senders.a]\nscopes = ["x"]\nevents = ["{events}"]'
    config = settings(tmp_path, more)
    with (tmp_path / "contract.py").open("a") as file:
        file.write("\nAlarms = Alarm\n")
    with fresh_contract(), pytest.raises(ConfigurationError) as caught:
        gateway(config, Clock(), secret=b"x" * 32)
    assert problem in str(caught.value)
    assert "oyez.toml:" in str(caught.value)


def test_a_broker_that_nobody_else_sees_is_no_place_for_events(tmp_path: Path) -> None:
    settings(tmp_path)
    config = load(tmp_path / "oyez.toml", {"OYEZ_BROKER": "memory:"})
    with fresh_contract(), pytest.raises(ConfigurationError, match="that several processes use"):
        gateway(config, Clock(), secret=b"x" * 32)
