"""The HTTP bridge: what is posted, what the answers mean, and what may be published."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from oyez import Event
from oyez.cloudevents import binary, open_arrived, read_forms
from oyez.config import Config, load
from oyez.contracts.model import contract_of, encode
from oyez.envelope import Envelope
from oyez.errors import ConfigurationError, InvalidEvent, NotEvents, RetryLater, Undeliverable
from oyez.event import MAX_DATA, describe
from oyez.http_bridge import bridged, publish
from oyez.http_bridge.announced import MOST, Publishing
from oyez.http_bridge.offer import TIDY
from oyez.http_bridge.sink import Failed, Sink, place_of
from oyez.inspection.installation import effective
from oyez.opaque import opaque
from oyez.parameters import Context
from oyez.project import Project
from oyez.service import Service
from oyez.testing import running

SYSTEM = '[system]\nname = "shop"\n[services.loyalty]\n'
BRIDGED = """
url = "{url}"
handles = ["shop.payment.processed"]
publishes = ["shop.points.earned", "shop.level.reached@2"]
"""
TOKEN = "a-token-of-the-program"
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
EARNED = {
    "specversion": "1.0",
    "id": "1",
    "source": "/loyalty",
    "type": "shop.points.earned",
    "subject": "o-1",
    "data": {"order_id": "o-1", "points": 12},
}
ENVELOPE = Envelope(
    id="e-1",
    source="/shop/payments",
    type="shop.payment.processed",
    subject="o-1",
    partitionkey="o-1",
    data=b'{"order_id":"o-1","cents":1250}',
    dataschema="urn:oyez:shop.payment.processed:1",
    traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
)


class PaymentProcessed(Event, type="shop.payment.processed", key="order_id"):
    order_id: str
    cents: int


class Paid(Event, type="shop.payment.processed", key="order_id"):
    order_id: str


class PointsEarned(Event, type="shop.points.earned", key="order_id"):
    order_id: str
    points: int


def configured(folder: Path, text: str, url: str = "http://127.0.0.1:9100/events") -> Config:
    (folder / "oyez.toml").write_text(SYSTEM + text.format(url=url))
    return load(folder, {})


def context(envelope: Envelope = ENVELOPE, attempt: int = 1) -> Context:
    return Context(envelope, "loyalty", "post", attempt, 20)


class Program:
    """A server that answers as it is told, and keeps what it got."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.connections = 0
        self.answer: Callable[[dict[str, str], bytes], bytes] = lambda headers, body: NO_CONTENT
        self.wait = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")[1:-2]
                headers = {n.lower(): v.strip() for n, _, v in (x.partition(":") for x in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append((headers, body))
                await asyncio.sleep(self.wait)
                answer = self.answer(headers, body)
                if not answer:
                    break
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def answer(status: str, kind: str = "", body: bytes = b"", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *more]
    if kind:
        lines.append(f"content-type: {kind}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


NO_CONTENT = answer("204 No Content")
CE = "application/cloudevents+json"


@pytest.fixture
async def program() -> AsyncIterator[Program]:
    made = Program()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/events?from=shop"
    yield made
    server.close()


@asynccontextmanager
async def sink(folder: Path, program: Program, more: str = "") -> AsyncIterator[Sink]:
    config = configured(folder, BRIDGED + more, program.url)
    settings = config.services["loyalty"]
    kinds = [opaque("shop.points.earned"), opaque("shop.level.reached", version=2)]
    publishing = Publishing(map(describe, kinds))
    async with Sink(settings, place_of(settings, folder), publishing) as made:
        yield made


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", 'services.loyalty.app: expected "module:attribute", or the url'),
        ('app = "a:b"\nhandles = ["x"]', "services.loyalty.handles: expected a service with a url"),
        ('app = "a:b"\nbridge.timeout = 3', "services.loyalty.bridge: expected a service with"),
        ('app = "a:b"\nurl = "http://127.0.0.1:1/"', "services.loyalty.url: expected either"),
        ('url = "http://127.0.0.1:1/"', "services.loyalty.handles: expected the types"),
        ('url = "ftp://127.0.0.1/"\nhandles = ["x"]', "services.loyalty.url: expected a URL"),
        ('url = "http://a:b@127.0.0.1/"\nhandles = ["x"]', "services.loyalty.url: expected a URL"),
        ('url = "http://127.0.0.1:99999/"\nhandles = ["x"]', "services.loyalty.url: expected a"),
        ('url = "http://127.0.0.1/#x"\nhandles = ["x"]', "services.loyalty.url: expected a URL"),
        ('url = "unix:events"\nhandles = ["x"]', "services.loyalty.url: expected a URL"),
        ('url = "http://127.0.0.1:1/"\nhandles = ["x@0"]', "services.loyalty.handles: expected a"),
        ('url = "http://127.0.0.1:1/"\nhandles = ["x", "x@2"]', 'once, found "x" again'),
        ('url = "https://sink.example/"\nhandles = ["x"]', "services.loyalty.bridge.secret: exp"),
        (
            f'url = "http://sink.example/"\nhandles = ["x"]\nbridge.secret = "{SECRET}"',
            "services.loyalty.url: expected https, or http within the networks",
        ),
        (
            'url = "http://127.0.0.1:1/"\npublishes = ["x"]\nhttp = "127.0.0.1:0"',
            "services.loyalty.bridge.token: expected a token",
        ),
        (
            'url = "http://127.0.0.1:1/"\nhandles = ["x"]\nbridge.socket = "s"',
            "services.loyalty.publishes: expected the types that may be published there",
        ),
        (
            'url = "http://127.0.0.1:1/"\npublishes = ["x"]\nbridge.socket = "s"\nreplicas = 2',
            "services.loyalty.bridge.socket: expected an address",
        ),
        (
            'url = "http://127.0.0.1:1/"\nhandles = ["x"]\nbridge.token = "short"',
            "services.loyalty.bridge.token: expected a token of 16 to 500",
        ),
        (
            'url = "http://127.0.0.1:1/"\nhandles = ["x"]\nbridge.secret = "whsec_c2hvcnQ="',
            'services.loyalty.bridge.secret: expected a secret "whsec_"',
        ),
        (
            'url = "http://127.0.0.1:1/"\nhandles = ["x"]\nbridge.form = "json"',
            "services.loyalty.bridge.form: expected one of",
        ),
    ],
)
def test_wrong_settings_are_one_line_with_their_key(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "oyez.toml").write_text(SYSTEM + text + "\n")
    with pytest.raises(ConfigurationError) as raised:
        load(tmp_path, {})
    assert error in str(raised.value)
    assert "short" not in str(raised.value)
    assert "c2hvcnQ" not in str(raised.value)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    config = configured(tmp_path, BRIDGED + f'bridge.token = "{TOKEN}"\nbridge.secret = "{SECRET}"')
    assert TOKEN not in repr(config)
    assert SECRET not in repr(config)


def test_the_settings_in_effect_are_listed_one_by_one(tmp_path: Path) -> None:
    config = configured(tmp_path, BRIDGED + f'bridge.token = "{TOKEN}"\nbridge.timeout = 3')
    found = {each.name: each.value for each in effective(config, "services.loyalty")}
    assert found["services.loyalty.handles"] == "shop.payment.processed"
    assert found["services.loyalty.bridge.timeout"] == "3.0"
    assert found["services.loyalty.bridge.token"] == "***"
    assert "services.loyalty.bridge" not in found


def test_the_address_of_another_machine_must_be_public(tmp_path: Path) -> None:
    text = BRIDGED + f'bridge.secret = "{SECRET}"\n'
    config = configured(tmp_path, text, "https://10.1.2.3/events")
    with pytest.raises(ConfigurationError, match=r"services\.loyalty\.url: .*is not public"):
        bridged(config, config.services["loyalty"])
    config = configured(tmp_path, text + 'bridge.allow = ["10.1.0.0/16"]', "http://10.1.2.3/events")
    bridged(config, config.services["loyalty"])
    config = configured(tmp_path, text + 'bridge.allow = ["10.1.0.0/16"]', "http://8.8.8.8/events")
    with pytest.raises(ConfigurationError, match="is not public"):
        bridged(config, config.services["loyalty"])


# -- what is posted --------------------------------------------------------------------------------

TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@given(subject=TEXT, extension=TEXT)
@hypothesis_settings(max_examples=200)
def test_a_reader_of_the_binary_form_gets_the_same_event(subject: str, extension: str) -> None:
    event = Envelope(
        id="1", source="/s", type="t", subject=subject, data=b"{}", extensions={"more": extension}
    )
    fields = {name.encode(): [value.encode("ascii")] for name, value in binary(event).items()}
    (arrived,) = read_forms(fields, event.data)
    assert open_arrived(arrived).headers() == event.headers()


async def test_an_event_is_posted_in_binary_form(tmp_path: Path, program: Program) -> None:
    async with sink(tmp_path, program, f'bridge.token = "{TOKEN}"') as made:
        for attempt in (1, 2):
            assert await made.post(context(attempt=attempt)) == []
    (headers, body), (again, _) = program.requests
    assert body == ENVELOPE.data
    assert headers["ce-id"] == "e-1"
    assert headers["ce-type"] == "shop.payment.processed"
    assert headers["ce-subject"] == "o-1"
    assert headers["content-type"] == "application/json"
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["traceparent"] == ENVELOPE.traceparent
    assert (headers["oyez-attempt"], again["oyez-attempt"]) == ("1", "2")
    assert headers["idempotency-key"] == again["idempotency-key"] == context().idempotency_key
    assert "webhook-signature" not in headers
    assert program.connections == 1


async def test_a_secret_signs_the_whole_event(tmp_path: Path, program: Program) -> None:
    async with sink(tmp_path, program, f'bridge.secret = "{SECRET}"') as made:
        await made.post(context())
    ((headers, body),) = program.requests
    assert json.loads(body)["subject"] == "o-1"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(b"k" * 32, signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert headers["webhook-id"] == context().idempotency_key


async def test_events_go_to_a_unix_socket(tmp_path: Path) -> None:
    program = Program()
    server = await asyncio.start_unix_server(program.serve, tmp_path / "program.sock")
    program.url = "unix:program.sock:/events"
    async with sink(tmp_path, program) as made:
        await made.post(context())
    server.close()
    assert len(program.requests) == 1


async def test_what_is_not_json_is_not_posted(tmp_path: Path, program: Program) -> None:
    async with sink(tmp_path, program) as made:
        for data in (b"", b"{", b'"\xff"', b"[" * 100_000):
            with pytest.raises(InvalidEvent, match="data: is not JSON"):
                await made.post(context(Envelope(id="1", source="/s", type="t", data=data)))
        strange = Envelope(id="1", source="/s", type="t", data=b"{}", datacontenttype="text/é")
        with pytest.raises(InvalidEvent, match="datacontenttype: holds"):
            await made.post(context(strange))
        plain = Envelope(id="1", source="/s", type="t", data=b"\xff", datacontenttype="text/plain")
        await made.post(context(plain))
    assert [body for _, body in program.requests] == [b"\xff"]


# -- what the answers mean -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "good",
    [
        NO_CONTENT,
        answer("200 OK"),
        answer("202 Accepted", "text/plain", b"ok"),
        answer("200 OK", "application/json", b"{}"),
    ],
)
async def test_handled(tmp_path: Path, program: Program, good: bytes) -> None:
    program.answer = lambda headers, body: good
    async with sink(tmp_path, program) as made:
        assert await made.post(context()) == []


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (answer("400 Bad", "text/plain", b"no such order"), Undeliverable, "400: no such order"),
        (answer("404 Not Found", "text/html", b"\x1b[31m\n<b>"), Undeliverable, "404: [31m <b>"),
        (answer("410 Gone"), Undeliverable, "answered 410"),
        (answer("408 Timeout"), Failed, "answered 408"),
        (answer("425 Early"), Failed, "answered 425"),
        (answer("429 Busy"), Failed, "answered 429"),
        (answer("500 Error"), Failed, "answered 500"),
        (answer("503 Later"), Failed, "answered 503"),
        (answer("302 Found", "", b"", "location: http://127.0.0.1:1/"), Failed, "redirects"),
        (b"", Failed, "the connection broke"),
        (b"\x00\x01 garbage\r\n\r\n", Failed, "the connection broke"),
        (answer("200 OK", CE, b"{"), Failed, "is not JSON"),
        (answer("200 OK", CE, b"{}"), Failed, "id: is missing"),
        (answer("200 OK", CE, json.dumps({**EARNED, "type": "x"}).encode()), Failed, "publishes"),
        (answer("200 OK", f"{CE}; charset=latin-1", b"{}"), Failed, "UTF-8"),
        (answer("200 OK", "application/cloudevents+xml", b"<e/>"), Failed, "send an event"),
        (answer("200 OK", CE, b" " * (5 * 1_048_576)), Failed, "is more than"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: 99\r\n\r\n{" % CE.encode(),
         Failed, "broke off"),
    ],
)  # fmt: skip
async def test_not_handled(
    tmp_path: Path, program: Program, bad: bytes, error: type[Exception], text: str
) -> None:
    program.answer = lambda headers, body: bad
    async with sink(tmp_path, program, "bridge.timeout = 1") as made:
        with pytest.raises(error) as raised:
            await made.post(context())
    assert text in str(raised.value)
    assert type(raised.value) is error


@pytest.mark.parametrize("status", ["429 Busy", "503 Later"])
async def test_tried_again_when_the_program_says(
    tmp_path: Path, program: Program, status: str
) -> None:
    program.answer = lambda headers, body: answer(status, "", b"", "retry-after: 7")
    async with sink(tmp_path, program) as made:
        with pytest.raises(RetryLater) as raised:
            await made.post(context())
    assert raised.value.seconds == 7
    assert raised.value.counts


async def test_slow_and_absent_programs(tmp_path: Path, program: Program) -> None:
    program.wait = 30
    async with sink(tmp_path, program, "bridge.timeout = 0.2") as made:
        with pytest.raises(Failed, match="no answer in time"):
            await made.post(context())
    program.url = "http://127.0.0.1:1/"
    async with sink(tmp_path, program) as made:
        with pytest.raises(Failed, match="no connection"):
            await made.post(context())


# -- batches ---------------------------------------------------------------------------------------


def several(count: int) -> list[Context]:
    return [
        context(
            Envelope(id=f"e-{n}", source="/s", type="t", subject=f"k-{n}", data=b'{"n":%d}' % n)
        )
        for n in range(count)
    ]


BATCHES = 'bridge.form = "batch"\nbridge.concurrency = 1'


async def test_what_has_arrived_goes_in_one_post(tmp_path: Path, program: Program) -> None:
    def earned(headers: dict[str, str], body: bytes) -> bytes:
        found = [
            {**EARNED, "id": each["id"], "causationid": each["id"], "subject": each["subject"]}
            for each in json.loads(body)
        ]
        return answer("200 OK", "application/cloudevents-batch+json", json.dumps(found).encode())

    program.answer = earned
    async with sink(tmp_path, program, BATCHES) as made:
        found = await asyncio.gather(*map(made.post, several(250)))
    assert [len(json.loads(body)) for _, body in program.requests] == [100, 100, 50]
    assert [each[0].key for each in found] == [f"k-{n}" for n in range(250)]
    keys = [each["idempotencykey"] for _, body in program.requests for each in json.loads(body)]
    assert keys == [each.idempotency_key for each in several(250)]


async def test_of_a_refused_batch_each_event_is_asked_for_alone(
    tmp_path: Path, program: Program
) -> None:
    def refuse(headers: dict[str, str], body: bytes) -> bytes:
        return answer("422 No") if b'"n":3}' in body else NO_CONTENT

    program.answer = refuse
    async with sink(tmp_path, program, BATCHES) as made:
        found = await asyncio.gather(*map(made.post, several(5)), return_exceptions=True)
    assert [type(each) for each in found] == [list, list, list, Undeliverable, list]


async def test_a_batch_that_fails_is_tried_again_one_by_one(
    tmp_path: Path, program: Program
) -> None:
    program.answer = lambda headers, body: answer("500 Error")
    async with sink(tmp_path, program, BATCHES) as made:
        found = await asyncio.gather(*map(made.post, several(5)), return_exceptions=True)
        assert [type(each) for each in found] == [Failed] * 5
        again = [context(each.envelope, 2) for each in several(5)]
        await asyncio.gather(*map(made.post, again), return_exceptions=True)
    assert [body.count(b'"idempotencykey"') for _, body in program.requests] == [5, 1, 1, 1, 1, 1]


async def test_what_a_batch_announces_names_its_cause(tmp_path: Path, program: Program) -> None:
    body = json.dumps({**EARNED, "causationid": "stranger"}).encode()
    program.answer = lambda headers, _: answer("200 OK", CE, body)
    async with sink(tmp_path, program, BATCHES) as made:
        found = await asyncio.gather(*map(made.post, several(2)), return_exceptions=True)
        assert all("causationid" in str(each) for each in found)
        (alone,) = await asyncio.gather(*map(made.post, several(1)))
    assert alone[0].key == "o-1"


# -- what may be published -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"type": "shop.order.placed"}, "type: 'shop.order.placed' may not be published"),
        ({"type": ""}, "type: is empty"),
        ({"id": None}, "id: is missing"),
        ({"specversion": "0.3"}, "specversion: expected"),
        ({"data": None, "datacontenttype": "text/plain"}, "datacontenttype: expected"),
        ({"dataschema": "urn:oyez:shop.points.earned:2"}, "dataschema: expected urn:oyez:"),
        ({"subject": ""}, "subject: is the key: expected 1 to 512"),
        ({"subject": "x" * 513}, "subject: is the key: expected 1 to 512"),
        ({"partitionkey": "o-2"}, "partitionkey: differs from subject"),
        ({"recipient": "payments"}, "recipient: is set within the system alone"),
        ({"expires": "2030-01-01T00:00:00Z"}, "expires: is set within"),
        ({"authid": "key:ci", "authtype": "api_key"}, "authid: is set within"),
        ({"dataref": "folder:x"}, "dataref: is set within"),
        ({"more": "x"}, "more: is an extension, which is not carried"),
        ({"Upper": "x"}, "Upper: is not an attribute name"),
        ({"time": "yesterday"}, "time: expected RFC 3339"),
        ({"data": {"n": 2**63}}, "data.n: 9223372036854775808 does not fit in 64 bits"),
        ({"data": "x" * MAX_DATA}, "data: is 1048578 bytes; at most 1048576 are allowed"),
    ],
)
def test_what_may_not_be_published_names_its_field(change: dict[str, Any], error: str) -> None:
    publishing = Publishing([describe(opaque("shop.points.earned"))])
    fields = {b"content-type": [CE.encode()]}
    event = {name: value for name, value in {**EARNED, **change}.items() if value is not None}
    with pytest.raises(InvalidEvent) as raised:
        publishing.read(fields, json.dumps(event).encode())
    assert str(raised.value).startswith(error)
    fields = {b"content-type": [b"application/cloudevents-batch+json"]}
    with pytest.raises(InvalidEvent) as raised:
        publishing.read(fields, json.dumps([EARNED, event]).encode())
    assert str(raised.value).startswith(f"[1].{error}")


def test_there_must_be_events_and_not_too_many() -> None:
    publishing = Publishing([describe(opaque("shop.points.earned"))])
    fields = {b"content-type": [b"application/cloudevents-batch+json"]}
    with pytest.raises(NotEvents, match="no event"):
        publishing.read(fields, b"[]")
    with pytest.raises(NotEvents, match="at most"):
        publishing.read(fields, json.dumps([EARNED] * (MOST + 1)).encode())


# -- contracts -------------------------------------------------------------------------------------


def test_a_contract_tells_keys_and_schemas(tmp_path: Path) -> None:
    code = Service("loyalty", publishes=(PointsEarned,))

    @code.on(Paid, name="post")
    async def post(event: Paid) -> None: ...

    (tmp_path / "loyalty.json").write_bytes(encode(contract_of(code, "shop")))
    text = BRIDGED.replace(', "shop.level.reached@2"', "") + 'bridge.contract = "loyalty.json"\n'
    config = configured(tmp_path, text)
    service = Project(config).service("loyalty")
    assert contract_of(service, "shop") == contract_of(code, "shop")
    publishing = Publishing(service.publishes)
    fields = {b"content-type": [CE.encode()]}
    keyless = {name: value for name, value in EARNED.items() if name != "subject"}
    (found,) = publishing.read(fields, json.dumps(keyless).encode())
    assert found.key == "o-1"
    with pytest.raises(InvalidEvent, match=r"subject: differs from the key, data\.order_id"):
        publishing.read(fields, json.dumps({**EARNED, "subject": "o-2"}).encode())
    with pytest.raises(InvalidEvent, match=r"data\.order_id: is the key"):
        publishing.read(fields, json.dumps({**EARNED, "data": {}}).encode())
    config = configured(tmp_path, text.replace('processed"', 'processed@2"'))
    with pytest.raises(ConfigurationError, match=r"services\.loyalty\.handles: expected"):
        Project(config).service("loyalty")
    config = configured(tmp_path, text.replace("points.earned", "points.lost"))
    with pytest.raises(ConfigurationError, match=r"services\.loyalty\.publishes: expected types"):
        Project(config).service("loyalty")


def test_nothing_is_said_of_what_is_not_known(tmp_path: Path) -> None:
    service = Project(configured(tmp_path, BRIDGED)).service("loyalty")
    contract = contract_of(service, "shop")
    assert all(each.opaque and each.schema is None for each in contract.reads)
    assert contract.publishes["shop.level.reached"].version == 2


# -- as a service ----------------------------------------------------------------------------------


@pytest.fixture
def loyalty(tmp_path: Path, program: Program) -> Service:
    more = f'http = "127.0.0.1:0"\nbridge.token = "{TOKEN}"\n'
    return Project(configured(tmp_path, BRIDGED + more, program.url)).service("loyalty")


async def test_an_answer_is_published_with_its_event(program: Program, loyalty: Service) -> None:
    body = json.dumps([EARNED, {**EARNED, "id": "2"}]).encode()
    program.answer = lambda headers, _: answer("200 OK", "application/cloudevents-batch+json", body)
    async with running(loyalty, system="shop") as system:
        await system.publish(PaymentProcessed(order_id="o-1", cents=1250))
        await system.settled()
        assert system.announced(PointsEarned) == [PointsEarned(order_id="o-1", points=12)] * 2
        payment, *earned = system.history()
        for each in earned:
            assert each.source == "/shop/loyalty"
            assert each.causationid == payment.id
            assert each.correlationid == payment.correlationid
            assert each.key == "o-1"
        assert len({each.id for each in earned}) == 2


async def test_a_newer_version_is_not_posted(program: Program, loyalty: Service) -> None:
    class Newer(Event, type="shop.payment.processed", key="order_id", version=2):
        order_id: str

    async with running(loyalty, system="shop") as system:
        await system.publish(Newer(order_id="o-1"))
        await system.settled()
        assert "UnknownVersion" in (await system.dead("loyalty"))[0]["reason"]
    assert not program.requests


async def test_later_events_of_the_key_wait_for_one_that_fails(
    program: Program, loyalty: Service
) -> None:
    broken = True

    def fail(headers: dict[str, str], body: bytes) -> bytes:
        if broken and json.loads(body) == {"order_id": "a", "cents": 1}:
            return answer("500 Error")
        return NO_CONTENT

    program.answer = fail
    async with running(loyalty, system="shop") as system:
        for cents in (1, 2):
            for order in ("a", "b"):
                await system.publish(PaymentProcessed(order_id=order, cents=cents))
        await system.settled()
        done = [json.loads(body) for _, body in program.requests]
        assert [each["cents"] for each in done if each["order_id"] == "b"] == [1, 2]
        assert [each["cents"] for each in done if each["order_id"] == "a"] == [1]
        broken = False
        await system.advance(1.0)
        done = [json.loads(body) for _, body in program.requests]
        assert [each["cents"] for each in done if each["order_id"] == "a"] == [1, 1, 2]
        assert await system.dead("loyalty") == []


async def test_what_can_not_be_published_becomes_a_dead_letter_in_the_end(
    tmp_path: Path, program: Program
) -> None:
    program.answer = lambda headers, body: answer("200 OK", CE, b'{"specversion": "1.0"}')
    config = configured(tmp_path, BRIDGED + "bridge.attempts = 2", program.url)
    async with running(Project(config).service("loyalty"), system="shop") as system:
        await system.publish(PaymentProcessed(order_id="o-1", cents=1250))
        await system.settled()
        await system.advance(2.0)
        (letter,) = await system.dead("loyalty")
        assert "it answered with what can't be published: id: is missing" in letter["reason"]
        assert system.announced(PointsEarned) == []


async def test_publish_answers_once_it_is_in_the_outbox(loyalty: Service) -> None:
    async with running(loyalty, system="shop") as system, system.http("loyalty") as client:

        async def publish(event: Any = EARNED, key: str = "k-1", **more: str) -> httpx.Response:
            headers = {"authorization": f"Bearer {TOKEN}", "idempotency-key": key}
            headers |= {"content-type": CE, **more}
            return await client.post("/publish", headers=headers, content=json.dumps(event))

        first = await publish()
        assert first.status_code == 202, first.text
        assert first.json() == (await publish()).json() == (await publish(key='"k-1"')).json()
        await system.settled()
        (told,) = system.history()
        assert first.json() == {"accepted": 1, "ids": [told.id]}
        assert told.source == "/shop/loyalty"
        changed = await publish({**EARNED, "data": {}})
        assert changed.status_code == 422
        assert changed.json()["code"] == "idempotency_key_reused"
        both = await publish([EARNED, EARNED], "k-2", **{"content-type": f"{CE[:-5]}-batch+json"})
        assert both.json()["accepted"] == 2
        broken = await publish([EARNED, {}], "k-3", **{"content-type": f"{CE[:-5]}-batch+json"})
        assert broken.status_code == 422
        assert broken.json()["errors"][0]["field"] == "[1].id"
        bare = await client.post("/publish", json={})
        assert bare.status_code == 401
        await system.settled()
        assert len(system.history()) == 3
        async with loyalty.transaction() as tx:
            tx.execute("update bridge_published set created = created - :age", age=8 * 86_400.0)
        await system.advance(TIDY)
        rows = await system.fetch("loyalty", "select * from bridge_published")
        assert rows == []


async def arriving(*chunks: bytes, then: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """A body in chunks; before the last of them it waits for what is to happen then."""
    for chunk in chunks[:-1]:
        yield chunk
    if then is not None:
        await then.wait()
    yield chunks[-1]


async def posted(client: httpx.AsyncClient, body: Any, key: str, **more: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {TOKEN}", "idempotency-key": key, "content-type": CE}
    return await client.post("/publish", headers={**headers, **more}, content=body)


async def test_a_body_is_refused_as_soon_as_it_is_too_large(
    loyalty: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "MAX_BODY", 1_000)
    monkeypatch.setattr(publish, "SECONDS", 0.5)
    never = asyncio.Event()
    async with running(loyalty, system="shop") as system, system.http("loyalty") as client:
        more = await posted(client, arriving(b" " * 600, b" " * 600, b"", then=never), "a")
        assert more.status_code == 413
        told = {"content-length": "1001"}
        assert (await posted(client, arriving(b"", then=never), "b", **told)).status_code == 413
        slow = await posted(client, arriving(b"{", b"}", then=never), "c")
        assert slow.status_code == 408


@pytest.mark.parametrize(("limit", "value"), [("REQUESTS", 1), ("BYTES", 200)])
async def test_what_is_under_way_at_once_is_bounded(
    loyalty: Service, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(publish, limit, value)
    body = json.dumps(EARNED).encode()
    assert 100 < len(body) < 200
    counted, go_on = asyncio.Event(), asyncio.Event()

    async def held() -> AsyncIterator[bytes]:
        yield body[:-1]
        counted.set()
        await go_on.wait()
        yield body[-1:]

    async with running(loyalty, system="shop") as system, system.http("loyalty") as client:
        first = asyncio.create_task(posted(client, held(), "first"))
        await counted.wait()
        second = await posted(client, body, "second")
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        go_on.set()
        assert (await first).status_code == 202
        for again in range(3):  # what is over counts no longer
            assert (await posted(client, body, f"again-{again}")).status_code == 202


def test_this_user_alone_may_write_to_the_socket(tmp_path: Path) -> None:
    from oyez.listening import bind_unix

    def refuse(expected: str, found: str) -> ConfigurationError:
        return ConfigurationError(f"{expected}: {found}")

    path = tmp_path / "run" / "loyalty.sock"
    first = bind_unix(path, refuse)
    assert os.stat(path).st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match="in use"):
        bind_unix(path, refuse)
    first.close()
    bind_unix(path, refuse).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError):
        bind_unix(tmp_path / "file", refuse)
