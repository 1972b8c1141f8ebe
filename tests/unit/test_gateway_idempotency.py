"""Idempotency keys: each state on each store, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import apsw
import asyncpg
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gateway import Client, broken, listening, refused, serving

from oyez.ambient import SystemAmbient
from oyez.config import Config, Route, load
from oyez.gateway import app as gateway_app
from oyez.gateway.exchange import Exchange
from oyez.gateway.http1 import Headers
from oyez.gateway.idempotency import entries, idempotency, step
from oyez.gateway.idempotency.entry import Answered, Entries, Entry, Owned, State, encoded
from oyez.gateway.idempotency.key import LONGEST, parse
from oyez.gateway.idempotency.sqlite import SqliteEntries
from oyez.gateway.reply import Reply
from oyez.gateway.step import Answer, walk
from oyez.gateway.store import reach
from servers import server

STORES = ("sqlite", "postgresql", "redis")
LIMIT = 1000
"""Bytes of an answer that is kept."""
OURS, THEIRS = {"x-api-key": "ours"}, {"x-api-key": "theirs"}


class Service:
    """It answers by the last segment of the path, each time with another number."""

    def __init__(self) -> None:
        self.seen: list[dict[bytes, bytes]] = []
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.well = False
        """Whether it has got over what made it fail."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        self.seen.append(dict(scope["headers"]))
        self.arrived.set()
        number, wish = len(self.seen), scope["path"].rpartition("/")[2]
        if "gated" in wish:
            await self.gate.wait()
        status = int(wish) if wish.isdigit() and not self.well else 201
        headers = [(b"x-own", b"1"), (b"set-cookie", b"own=1"), (b"location", b"/orders/1")]
        body = b"number %d" % number
        if "large" in wish or wish == "most":
            body = body.ljust(LIMIT + ("large" in wish), b".")
        if wish == "events":
            headers.append((b"content-type", b"text/event-stream"))
        if wish == "told":
            headers.append((b"oyez-after", b"/shop/orders;id-1;a"))
        if wish == "sized":
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if status in (204, 304):
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        if wish == "events":
            await self.gate.wait()
        await send({"type": "http.response.body", "body": body[3:]})


def settings(
    folder: Path, port: int, *, store: str = "", more: str = "", name: str = "", timeout: float = 20
) -> Config:
    """Two routes with keys; ``more`` are lines of ``[gateway.idempotency]``."""
    digests = {each: hashlib.sha256(each.encode()).hexdigest() for each in ("ours", "theirs")}
    keys = folder / "keys.toml"
    keys.write_text("".join(f'[keys.{k}]\nsha256 = "{v}"\n' for k, v in digests.items()))
    keys.chmod(0o600)
    (folder / "oyez.toml").write_text(
        f"""
        [system]
        name = "{name or "shop"}"
        [services.orders]
        app = "a:b"
        http = "127.0.0.1:{port}"
        [gateway]
        listen = "127.0.0.1:0"
        keys = "keys.toml"
        timeout = {timeout}
        {f'store = "{store}"' if store else ""}
        [gateway.idempotency]
        answer_limit = {LIMIT}
        {more}
        [[gateway.routes]]
        path = "/orders"
        service = "orders"
        methods = ["GET", "POST", "PATCH", "DELETE"]
        idempotency = "optional"
        [[gateway.routes]]
        path = "/payments"
        service = "orders"
        methods = ["POST"]
        idempotency = "required"
        [[gateway.routes]]
        path = "/open"
        service = "orders"
        methods = ["POST"]
        """
    )
    return load(folder / "oyez.toml", {})


@contextlib.asynccontextmanager
async def stored(kind: str) -> AsyncIterator[str]:
    """The URL of a store of that kind that nothing else uses; empty for the default."""
    if kind == "postgresql":
        schema, base = f"gateway_{uuid4().hex[:12]}", server(kind).url
        try:
            yield f"{base}?schema={schema}"
        finally:
            connection = await asyncpg.connect(base)
            await connection.execute(f"drop schema if exists {schema} cascade")
            await connection.close()
    else:
        yield server(kind).url if kind == "redis" else ""


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    async with stored(request.param) as url:
        yield url


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    yield service
    service.gate.set()


@pytest.fixture
async def client(tmp_path: Path, service: Service) -> AsyncIterator[Client]:
    async with listening(service) as port, serving(settings(tmp_path, port)) as client:
        client.headers.update(OURS)
        yield client


def keyed(key: str, **more: str) -> dict[str, str]:
    return {"idempotency-key": key, **more}


async def leave(client: Client, service: Service, wish: str = "gated") -> None:
    """Disconnect while the service works."""
    asked = asyncio.create_task(client.post(f"/orders/{wish}", headers=keyed("k", **OURS)))
    await service.arrived.wait()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.005)


# The states, over HTTP


async def test_the_first_answer_is_given_again(
    tmp_path: Path, service: Service, store: str
) -> None:
    config = partial(settings, tmp_path, store=store, name=f"t{uuid4().hex[:12]}")
    async with listening(service) as port, serving(config(port)) as client:
        client.headers.update(OURS)
        first = await client.post("/orders/new?a=1", content=b"x", headers=keyed("k-1"))
        assert (first.status_code, first.text) == (201, "number 1")
        assert "idempotency-replayed" not in first.headers
        assert first.headers["set-cookie"] == "own=1"
        again = await client.post("/orders/new?a=1", content=b"x", headers=keyed('"k-1"'))
        assert (again.status_code, again.text) == (201, "number 1")
        assert again.headers["idempotency-replayed"] == "true"
        assert (again.headers["x-own"], again.headers["location"]) == ("1", "/orders/1")
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
        assert "set-cookie" not in again.headers
        other = await client.post("/orders/new?a=1", content=b"y", headers=keyed("k-1"))
        refused(other, 422, "idempotency_key_reused")
        assert len(service.seen) == 1
        assert service.seen[0][b"idempotency-key"] == b"k-1"

        gated = asyncio.create_task(client.post("/orders/gated", headers=keyed("k-2")))
        await until(lambda: asyncio.sleep(0, len(service.seen) == 2))
        early = await client.post("/orders/gated", headers=keyed("k-2"))
        refused(early, 409, "idempotency_key_in_progress")
        assert early.headers["retry-after"] == "1"
        service.gate.set()
        assert (await gated).text == "number 2"
        again = await client.post("/orders/gated", headers=keyed("k-2"))
        assert (again.text, len(service.seen)) == ("number 2", 2)


async def test_an_entry_is_of_one_principal_route_and_method(
    client: Client, service: Service
) -> None:
    answers = [
        await client.post("/orders/1x", headers=keyed("same")),
        await client.post("/orders/1x", headers=keyed("same", **THEIRS)),
        await client.patch("/orders/1x", headers=keyed("same")),
        await client.post("/payments/1x", headers=keyed("same")),
        await client.post("/orders/1x", headers=keyed("Same")),
    ]
    assert [answer.text for answer in answers] == [f"number {n}" for n in range(1, 6)]
    theirs = await client.post("/orders/1x", headers=keyed("same", **THEIRS))
    assert (theirs.text, len(service.seen)) == ("number 2", 5)


async def test_the_payload_is_target_type_and_body(client: Client, service: Service) -> None:
    json = keyed("k", **{"content-type": "application/json"})
    assert (await client.post("/orders/a?q=1", content=b"1", headers=json)).status_code == 201
    for target, body, kind in (
        ("/orders/b?q=1", b"1", "application/json"),
        ("/orders/a?q=2", b"1", "application/json"),
        ("/orders/a?q=1", b"2", "application/json"),
        ("/orders/a?q=1", b"1", "text/plain"),
    ):
        headers = keyed("k", **{"content-type": kind})
        answer = await client.post(target, content=body, headers=headers)
        refused(answer, 422, "idempotency_key_reused")
        assert step._REUSED.__traceback__ is None  # nothing of the request is kept by it
    assert len(service.seen) == 1


async def test_of_fifty_at_once_one_reaches_the_service(
    tmp_path: Path, service: Service, store: str
) -> None:
    """Through two gateways that share a store."""
    config = partial(settings, tmp_path, store=store, name=f"t{uuid4().hex[:12]}")
    async with (
        listening(service) as port,
        serving(config(port)) as one,
        serving(config(port)) as two,
    ):

        async def ask(number: int) -> httpx.Response:
            client = (one, two)[number % 2]
            return await client.post("/orders/gated", headers=keyed("k", **OURS))

        asked = [asyncio.create_task(ask(number)) for number in range(50)]

        async def refused_but_one() -> bool:
            return sum(each.done() for each in asked) == 49

        await until(refused_but_one)
        service.gate.set()
        answers = await asyncio.gather(*asked)
        assert sorted(answer.status_code for answer in answers) == [201] + [409] * 49
        for client in (one, two):
            again = await client.post("/orders/gated", headers=keyed("k", **OURS))
            assert (again.text, again.headers["idempotency-replayed"]) == ("number 1", "true")
        assert len(service.seen) == 1


async def test_who_leaves_and_repeats_is_given_the_answer(client: Client, service: Service) -> None:
    await leave(client, service)
    refused(
        await client.post("/orders/gated", headers=keyed("k")), 409, "idempotency_key_in_progress"
    )
    service.gate.set()
    answers: list[httpx.Response] = []

    async def answered() -> bool:
        answers.append(await client.post("/orders/gated", headers=keyed("k")))
        return answers[-1].status_code == 201

    await until(answered)
    assert (answers[-1].text, answers[-1].headers["idempotency-replayed"]) == ("number 1", "true")
    assert len(service.seen) == 1


async def test_a_drain_waits_for_the_work_of_who_has_left(tmp_path: Path, service: Service) -> None:
    async with listening(service) as port:
        async with serving(settings(tmp_path, port)) as client:
            await leave(client, service)
            client.serving.cancel()
            service.gate.set()
            await asyncio.gather(client.serving, return_exceptions=True)
        async with serving(settings(tmp_path, port)) as client:
            again = await client.post("/orders/gated", headers=keyed("k", **OURS))
            assert (again.text, len(service.seen)) == ("number 1", 1)


async def test_an_answer_is_stored_before_it_is_sent(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    storing, stored = asyncio.Event(), asyncio.Event()
    end = SqliteEntries.end

    async def slow(self: SqliteEntries, owned: Owned, answer: bytes | None) -> None:
        storing.set()
        await stored.wait()
        await end(self, owned, answer)

    monkeypatch.setattr(SqliteEntries, "end", slow)
    asked = asyncio.create_task(client.post("/orders/new", headers=keyed("k")))
    await storing.wait()
    assert (await client.get("/livez")).status_code == 200  # by now it would have arrived
    assert not asked.done()
    stored.set()
    assert (await asked).status_code == 201


class Rounds(SystemAmbient):
    """The gateway's care goes round when it is told to, on a clock that can be put forward."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0
        self._asleep = asyncio.Event()
        self._awake = asyncio.Event()

    def now(self) -> float:
        return super().now() + self.ahead

    async def sleep(self, seconds: float) -> None:
        self._asleep.set()
        await self._awake.wait()
        self._awake.clear()

    async def round(self, ahead: float) -> None:
        self.ahead = ahead
        await self._asleep.wait()
        self._asleep.clear()
        self._awake.set()
        await self._asleep.wait()


async def test_a_request_that_lasts_keeps_its_lease(tmp_path: Path, service: Service) -> None:
    ambient = Rounds()
    async with listening(service) as port:
        config = settings(tmp_path, port, more="lease = 100\nlifetime = 1000")
        async with serving(config, ambient) as client:
            client.headers.update(OURS)
            asked = asyncio.create_task(client.post("/orders/gated", headers=keyed("k")))
            await service.arrived.wait()
            for ahead in (0, 90):
                await ambient.round(ahead)
            ambient.ahead = 150
            again = await client.post("/orders/gated", headers=keyed("k"))
            refused(again, 409, "idempotency_key_in_progress")
            service.gate.set()
            assert (await asked).text == "number 1"
            database = apsw.Connection(str(tmp_path / ".oyez" / "gateway.db"))
            count = "select count(*) from oyez_gateway_idempotency"
            assert next(database.execute(count)) == (1,)
            await ambient.round(1151)
            assert next(database.execute(count)) == (0,)
            database.close()


# Which answers are kept


@pytest.mark.parametrize("status", [408, 429, 503, 504])
async def test_what_may_not_have_been_done_is_asked_again(
    client: Client, service: Service, status: int
) -> None:
    first = await client.post(f"/orders/{status}", headers=keyed("k"))
    assert (first.status_code, first.text) == (status, "number 1")
    refused(
        await client.post(f"/orders/{status}", content=b"x", headers=keyed("k")),
        422,
        "idempotency_key_reused",
    )
    service.well = True
    for _ in range(2):
        again = await client.post(f"/orders/{status}", headers=keyed("k"))
        assert (again.status_code, again.text) == (201, "number 2")


@pytest.mark.parametrize("status", [204, 304, 400, 404, 409, 422, 500])
async def test_every_other_answer_is_final(client: Client, service: Service, status: int) -> None:
    first = await client.post(f"/orders/{status}", headers=keyed("k"))
    service.well = True
    again = await client.post(f"/orders/{status}", headers=keyed("k"))
    assert (first.status_code, again.status_code) == (status, status)
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    assert ("content-length" in again.headers) == (status not in (204, 304))
    assert (await client.post("/orders/new")).text == "number 2"


@pytest.mark.parametrize("wish", ["most", "sized"])
async def test_an_answer_of_the_limit_is_kept(client: Client, service: Service, wish: str) -> None:
    for _ in range(2):
        answer = await client.post(f"/orders/{wish}", headers=keyed("k"))
        assert answer.text.startswith("number 1")
        assert int(answer.headers["content-length"]) == len(answer.content)


async def test_a_larger_one_passes_and_its_repeat_reaches_the_service(
    client: Client, service: Service
) -> None:
    for number in (1, 2):
        answer = await client.post("/orders/large", headers=keyed("k"))
        assert answer.text.startswith(f"number {number}")
        assert (answer.status_code, len(answer.content)) == (201, LIMIT + 1)
        assert "idempotency-replayed" not in answer.headers


async def test_a_larger_one_whose_client_has_left_is_asked_for_again(
    client: Client, service: Service
) -> None:
    await leave(client, service, "gated-large")
    service.gate.set()
    answers: list[httpx.Response] = []

    async def answered() -> bool:
        answers.append(await client.post("/orders/gated-large", headers=keyed("k")))
        return answers[-1].status_code == 201

    await until(answered)
    assert answers[-1].text.startswith("number 2")


async def test_answers_too_are_bounded_together(tmp_path: Path, service: Service) -> None:
    """What does not fit into memory passes; and all of it is free again."""
    config = settings(tmp_path, 1)
    text = config.path.read_text().replace("timeout =", "buffer_limit = 999\ntimeout =")
    async with listening(service) as port:
        config.path.write_text(text.replace("127.0.0.1:1", f"127.0.0.1:{port}"))
        async with serving(load(config.path, {})) as client:
            client.headers.update(OURS)
            for number in range(1, 5):
                answer = await client.post("/orders/most", content=b"x" * 600, headers=keyed("k"))
                assert (answer.status_code, len(answer.content)) == (201, LIMIT)
                assert answer.text.startswith(f"number {number}")
            for key in "abc":
                headers = keyed(key)
                answer = await client.post("/orders/new", content=b"x" * 900, headers=headers)
                assert answer.status_code == 201


async def test_events_pass_as_they_come(client: Client, service: Service) -> None:
    async with client.stream("POST", "/orders/events", headers=keyed("k")) as answer:
        parts = answer.aiter_raw()
        assert await anext(parts) == b"num"
        service.gate.set()
        assert await anext(parts) == b"ber 1"
    assert (await client.post("/orders/events", headers=keyed("k"))).text == "number 2"


async def test_who_leaves_events_ends_them(client: Client, service: Service) -> None:
    async with client.stream("POST", "/orders/events", headers=keyed("k")) as answer:
        assert await anext(answer.aiter_raw()) == b"num"

    async def again() -> bool:
        async with client.stream("POST", "/orders/events", headers=keyed("k")) as answer:
            return answer.status_code == 201 and await anext(answer.aiter_raw()) == b"num"

    await until(again)
    service.gate.set()
    assert len(service.seen) == 2


async def test_a_gateway_that_gave_up_asks_again(tmp_path: Path) -> None:
    """What the service said too late, or not at all, is not known."""
    reached = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal reached
        reached += 1
        await reader.readuntil(b"\r\n\r\n")
        if reached == 1:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        elif reached == 2:
            await reader.read()
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole")
        writer.close()

    async with (
        broken(handle) as port,
        serving(settings(tmp_path, port, timeout=0.5)) as client,
    ):
        client.headers.update(OURS)
        answer = await client.post("/orders/x", headers=keyed("k"))
        refused(answer, 502, "service_broken")
        answer = await client.post("/orders/x", headers=keyed("k"))
        refused(answer, 504, "service_timeout")
        for _ in range(2):
            assert (await client.post("/orders/x", headers=keyed("k"))).text == "whole"
    assert reached == 3


async def test_a_repeat_too_lets_a_client_read_its_own_writes(client: Client) -> None:
    first = await client.post("/orders/told", headers=keyed("k"))
    again = await client.post("/orders/told", headers=keyed("k"))
    for answer in (first, again):
        assert answer.headers["oyez-after"] == "/shop/orders;id-1;a"
        assert "oyez_after" in answer.cookies


class Marks:
    """A step that marks what passes through it."""

    def __init__(self, mark: bytes) -> None:
        self.mark = mark

    def before(self, route: Route, onward: Answer) -> Answer:
        async def marked(exchange: Exchange) -> None:
            exchange.through(self)
            await onward(exchange)

        return marked

    def head(self, status: int, headers: Headers) -> Headers:
        return [each for each in headers if each[0] != b"content-length"]

    def part(self, content: bytes) -> bytes:
        return content

    def last(self, content: bytes) -> bytes:
        return content + self.mark


async def test_filters_change_an_answer_on_their_side_of_the_step(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inner ones change what is kept, the outer ones what each client is given."""

    def marked(steps: Any, route: Route, last: Answer) -> Answer:
        return walk([Marks(b"<outer"), *steps, Marks(b"<inner")], route, last)

    monkeypatch.setattr(gateway_app, "walk", marked)
    async with listening(service) as port, serving(settings(tmp_path, port)) as client:
        client.headers.update(OURS)
        for _ in range(2):
            answer = await client.post("/orders/new", headers=keyed("k"))
            assert answer.text == "number 1<inner<outer"
        large = await client.post("/orders/large", headers=keyed("l"))
        assert large.text.endswith(".<inner<outer")


# The header


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("k", "k"),
        ('"k"', "k"),
        ('"a \\"b\\" \\\\"', 'a "b" \\'),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("a+/=:@", "a+/=:@"),
        ("k" * LONGEST, "k" * LONGEST),
        (f'"{"k" * LONGEST}"', "k" * LONGEST),
        ("k" * (LONGEST + 1), None),
        (f'"{"k" * (LONGEST + 1)}"', None),
        ("", None),
        ('""', None),
        ("a b", None),
        ("a,b", None),
        ('"a", "b"', None),
        ('"a";b', None),
        ('"a', None),
        ('a"', None),
        ('"a\\b"', None),
        ("\xe9", None),
        ("a\tb", None),
    ],
)
def test_a_header_is_a_key_or_none(value: str, key: str | None) -> None:
    assert parse(value) == key


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=LONGEST))
def test_every_printable_key_can_be_sent_in_quotes(key: str) -> None:
    assert parse('"' + re.sub(r'(["\\])', r"\\\1", key) + '"') == key


@given(st.text(st.characters(max_codepoint=0xFF)))
def test_any_header_is_read(value: str) -> None:
    key = parse(value)
    assert key is None or (1 <= len(key) <= LONGEST and key.isascii() and key.isprintable())


async def test_a_header_that_is_no_key_is_refused(client: Client, service: Service) -> None:
    for path in ("/orders/x", "/payments/x"):
        refused(await client.post(path, headers=keyed("a b")), 400, "bad_idempotency_key")
        twice = httpx.Headers([("idempotency-key", "a"), ("idempotency-key", "a")])
        refused(await client.post(path, headers=twice), 400, "bad_idempotency_key")
    missing = refused(await client.post("/payments/x"), 400, "idempotency_key_missing")
    assert step._MISSING.__traceback__ is None  # else it keeps every request that it refused
    assert re.match(r'<https://.*idempotency-key.*>; rel="describedby"', missing.headers["link"])
    assert not service.seen


async def test_what_needs_no_key_is_forwarded_as_ever(client: Client, service: Service) -> None:
    """A GET, an unsafe request without one where it is optional, and a route without keys."""
    for _ in range(2):
        await client.get("/orders/x", headers=keyed("k"))
        await client.post("/orders/x")
        await client.post("/open/x", headers=keyed("not a key"))
    assert len(service.seen) == 6


# The store


async def test_a_gateway_without_keys_opens_no_store(tmp_path: Path) -> None:
    config = settings(tmp_path, 1)
    text = re.sub(r'idempotency = ".*"', "", (tmp_path / "oyez.toml").read_text())
    (tmp_path / "oyez.toml").write_text(text)
    without = load(config.path, {})
    assert without.gateway is not None

    async def onward(exchange: Exchange) -> None:
        raise AssertionError

    for route in without.gateway.routes:
        assert idempotency(without, SystemAmbient()).before(route, onward) is onward
    async with serving(without):
        assert not (tmp_path / ".oyez" / "gateway.db").exists()
    async with serving(config):
        assert (tmp_path / ".oyez" / "gateway.db").exists()


async def test_without_its_store_it_refuses_keys_alone(tmp_path: Path, service: Service) -> None:
    config = partial(settings, tmp_path, store="redis://:secret@127.0.0.1:1?deadline=0.2")
    async with listening(service) as port, serving(config(port)) as client:
        client.headers.update(OURS)
        answer = await client.post("/orders/x", headers=keyed("k"))
        refused(answer, 503, "idempotency_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert not service.seen
        assert (await client.post("/orders/x")).status_code == 201


async def test_what_is_reached_is_told_without_secrets(tmp_path: Path, store: str) -> None:
    config = settings(tmp_path, 1, store=store)
    told = await reach(config, SystemAmbient())
    if store:
        assert str(server(store.partition(":")[0]).port) in told
        password = re.search(r":([0-9a-f]{32})@", store)
        assert password is not None
        assert password[1] not in told
    else:
        assert told == f"{tmp_path.resolve()}/.oyez/gateway.db, not created yet"
        assert not (tmp_path / ".oyez").exists()


# What every store promises


class Kept:
    """Entries in a store, through as many objects as there are gateways."""

    def __init__(self, folder: Path, url: str) -> None:
        self.name = f"t{uuid4().hex[:12]}"
        self.folder = folder
        self.url = url
        self.opened: list[Entries] = []

    async def open(self, **more: float) -> Entries:
        lines = "\n".join(f"{name} = {value}" for name, value in more.items())
        config = settings(self.folder, 1, store=self.url, more=lines, name=self.name)
        found = entries(config, SystemAmbient())
        self.opened.append(found)
        await found.open()
        return found

    def entry(self, key: str = "k", holder: str = "h", payload: str = "p") -> Entry:
        def digest(text: str) -> bytes:
            return hashlib.sha256(f"{self.name} {text}".encode()).digest()

        return Entry(digest(holder + key), digest(holder), digest(payload))

    async def rows(self) -> int:
        """The number of entries that are there, expired or not."""
        if self.url.startswith("postgresql:"):
            base, _, schema = self.url.partition("?schema=")
            connection = await asyncpg.connect(base)
            sql = f"select count(*) from {schema}.oyez_gateway_idempotency"
            count: int = await connection.fetchval(sql)
            await connection.close()
            return count
        if self.url.startswith("redis:"):
            from redis.asyncio import Redis

            async with Redis.from_url(self.url) as redis:
                holder = self.entry().holder.hex()
                return len(await redis.keys(f"oyez:gateway:idempotency:{{{holder}}}:*"))
        connection = apsw.Connection(str(self.folder / ".oyez" / "gateway.db"))
        return next(connection.execute("select count(*) from oyez_gateway_idempotency"))[0]


@pytest.fixture
async def kept(tmp_path: Path, store: str) -> AsyncIterator[Kept]:
    kept = Kept(tmp_path, store)
    yield kept
    for each in kept.opened:
        await each.close()
        await each.close()


def reply(text: str) -> Reply:
    return Reply(201, [(b"x-own", b"1"), (b"x-own", b"2")], text.encode() + b"\x00\xff")


ONE, TWO = b"1" * 16, b"2" * 16


async def test_an_entry_goes_from_state_to_state(kept: Kept) -> None:
    held, other = await kept.open(), await kept.open()
    entry, changed = kept.entry(), kept.entry(payload="changed")
    assert await held.begin(entry, ONE) is State.BEGUN
    for each in (held, other):
        assert await each.begin(entry, TWO) is State.RUNNING
        assert await each.begin(changed, TWO) is State.REUSED
        assert await each.begin(kept.entry(holder="x"), TWO) in (State.BEGUN, State.RUNNING)
    await held.end(Owned(entry, ONE), None)
    assert await other.begin(changed, TWO) is State.REUSED
    assert await other.begin(entry, TWO) is State.BEGUN
    await held.end(Owned(entry, ONE), encoded(reply("late")))
    assert await held.begin(entry, ONE) is State.RUNNING
    await other.end(Owned(entry, TWO), encoded(reply("done")))
    for each in (held, other):
        assert await each.begin(entry, ONE) == Answered(reply("done"))
        assert await each.begin(changed, ONE) is State.REUSED
    await held.end(Owned(entry, TWO), None)
    assert await held.begin(entry, ONE) == Answered(reply("done"))


async def test_of_many_at_once_one_begins(kept: Kept) -> None:
    gateways = [await kept.open() for _ in range(3)]
    found = await asyncio.gather(
        *(gateways[n % 3].begin(kept.entry(), bytes([n]) * 16) for n in range(60))
    )
    assert sorted(each.value for each in found if isinstance(each, State)) == (
        ["begun"] + ["running"] * 59
    )


async def test_what_a_killed_gateway_left_is_taken_over(kept: Kept) -> None:
    held = await kept.open(lease=0.3)
    entry = kept.entry()
    assert await held.begin(entry, ONE) is State.BEGUN

    async def taken() -> bool:
        return await held.begin(entry, TWO) is State.BEGUN

    await until(taken)
    await held.end(Owned(entry, ONE), encoded(reply("late")))
    await held.end(Owned(entry, TWO), encoded(reply("done")))
    assert await held.begin(entry, ONE) == Answered(reply("done"))


async def test_a_renewed_lease_lasts(kept: Kept) -> None:
    held = await kept.open(lease=2.0)
    entry, left = kept.entry(), kept.entry("left")
    assert await held.begin(left, ONE) is State.BEGUN
    assert await held.begin(entry, ONE) is State.BEGUN

    async def taken() -> bool:
        await held.renew([Owned(entry, ONE), Owned(left, TWO)])
        assert await held.begin(entry, TWO) is State.RUNNING
        return await held.begin(left, TWO) is State.BEGUN

    await until(taken)


async def test_a_key_is_forgotten_after_its_lifetime(kept: Kept) -> None:
    held = await kept.open(lifetime=0.3, lease=0.1)
    for number in range(3):
        entry = kept.entry(f"{number}")
        assert await held.begin(entry, ONE) is State.BEGUN
        await held.end(Owned(entry, ONE), encoded(reply("done")))

    async def forgotten() -> bool:
        return await held.begin(kept.entry("0", payload="changed"), TWO) is State.BEGUN

    await until(forgotten)

    async def swept() -> bool:
        assert await held.sweep() is False
        return await kept.rows() == 0

    await until(swept)


async def test_of_one_principal_so_many_answers_are_kept(kept: Kept) -> None:
    held = await kept.open(answers=2)

    async def answer(entry: Entry) -> None:
        assert await held.begin(entry, ONE) is State.BEGUN
        await held.end(Owned(entry, ONE), encoded(reply("done")))
        began = time.time()
        await until(lambda: asyncio.sleep(0, time.time() > began + 0.002))

    running, again = kept.entry("running"), kept.entry("again")
    assert await held.begin(running, ONE) is State.BEGUN
    assert await held.begin(again, ONE) is State.BEGUN
    await held.end(Owned(again, ONE), None)
    assert await held.begin(again, TWO) is State.BEGUN
    await answer(kept.entry(holder="another"))
    for key in "abc":
        await answer(kept.entry(key))
    assert await held.begin(running, TWO) is State.RUNNING
    assert await held.begin(again, ONE) is State.RUNNING
    assert await held.begin(kept.entry(holder="another"), TWO) == Answered(reply("done"))
    for key in "bc":
        assert await held.begin(kept.entry(key), TWO) == Answered(reply("done"))
    assert await held.begin(kept.entry("a"), TWO) is State.BEGUN


async def test_many_of_one_principal_are_answered_at_once(kept: Kept) -> None:
    """They all find the same ones to be the oldest."""
    gateways = [await kept.open(answers=2) for _ in range(3)]

    async def answer(number: int) -> None:
        held, entry = gateways[number % 3], kept.entry(f"{number}")
        assert await held.begin(entry, ONE) is State.BEGUN
        await held.end(Owned(entry, ONE), encoded(reply("done")))

    await asyncio.gather(*(answer(number) for number in range(200)))
    await answer(200)
    assert await kept.rows() == 2
