"""Flows over real sockets: a request whose work goes on, told by the events on a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket as sockets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gateway import (
    KEY,
    Client,
    Clock,
    Upstream,
    broken,
    listening,
    refused,
    serving,
    settings,
)
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from oyez.ambient import SystemAmbient
from oyez.cli.gateway import _records
from oyez.config import Config, load
from oyez.envelope import format_time
from oyez.errors import BrokerUnavailable, ConfigurationError
from oyez.gateway import server
from oyez.gateway.admin import Observer
from oyez.gateway.exchange import FLOW
from oyez.gateway.flows import flows, index
from oyez.gateway.flows.ident import Begun, Seal, made_at, route_key
from oyez.gateway.flows.index import Index
from oyez.gateway.flows.watch import Told
from oyez.inspection.records import BrokerRecords
from oyez.listening import bind
from oyez.logger import configure
from oyez.observe.metrics import Metrics
from oyez.ports import Record
from oyez.principal import Principal
from oyez.project import Project

STREAM = "shop.orders"
ROUTE = """
[[gateway.routes]]
path = "/work"
service = "orders"
methods = ["GET", "POST"]
until = ["shop.order.shipped", "shop.order.cancelled"]
show = ["reason"]
within = 600
[[gateway.routes]]
path = "/work/open"
service = "orders"
methods = ["POST"]
access = "public"
until = ["shop.order.shipped"]
"""
ONCE = """
[[gateway.routes]]
path = "/work/once"
service = "orders"
methods = ["POST"]
idempotency = "optional"
until = ["shop.order.shipped"]
"""
IDS = SystemAmbient()


class Work:
    """A service that answers as its path asks, and announces on the system's broker."""

    def __init__(self, project: Project) -> None:
        self.seen: list[dict[bytes, bytes]] = []
        self._opened = project.opened_broker(create=True)

    async def __aenter__(self) -> Work:
        self.broker = await self._opened.__aenter__()
        await self.broker.create(STREAM, 2)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._opened.__aexit__(*error)

    @property
    def correlation(self) -> str:
        """The correlation id that the last request brought."""
        return self.seen[-1][b"x-request-id"].decode()

    async def announce(
        self, kind: str, correlation: str = "", subject: str = "order-1", **data: Any
    ) -> str:
        identity = IDS.new_id()
        headers = {
            "specversion": "1.0",
            "id": identity,
            "source": "/shop/orders",
            "type": f"shop.order.{kind}",
            "subject": subject,
            "time": format_time(IDS.now()),
            "datacontenttype": "application/json",
            "correlationid": correlation or self.correlation,
        }
        body = json.dumps({"email": "ann@example.org", **data}).encode()
        await self.broker.publish([Record(stream=STREAM, key=kind, headers=headers, data=body)])
        return identity

    async def __call__(self, scope, receive, send) -> None:
        await receive()
        self.seen.append(dict(scope["headers"]))
        kind = scope["path"].rpartition("/")[2]
        status, headers, body = ANSWERS.get(kind, (200, [], b'{"order":1}'))
        if kind == "ends":
            await self.announce("shipped")
            headers = [(b"oyez-after", b"/shop/orders;id-1;shop.order.placed")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


ANSWERS: dict[str, tuple[int, list[tuple[bytes, bytes]], bytes]] = {
    "created": (201, [(b"location", b"/orders/1")], b"{}"),
    "bare": (201, [], b"{}"),
    "accepted": (202, [(b"location", b"/orders/1")], b"{}"),
    "empty": (204, [], b""),
    "wrong": (422, [], b"no"),
    "large": (200, [], b"x" * 100_000),
}


def config(folder: Path, port: int, more: str = "") -> Config:
    settings(folder, port, more)
    toml = folder / "oyez.toml"
    toml.write_text(toml.read_text() + ROUTE + ONCE)
    return load(toml, {})


@contextlib.asynccontextmanager
async def working(
    folder: Path,
    more: str = "",
    ambient: SystemAmbient | None = None,
    observer: Observer | None = None,
) -> AsyncIterator[tuple[Work, Client]]:
    """A service with its gateway in front; the client has a session."""
    work = Work(Project(config(folder, 1)))
    async with work, listening(work) as port:
        settled = config(folder, port, more)
        records = BrokerRecords(Project(settled))
        async with serving(settled, ambient, observer, records) as client:
            await client.post("/session")
            yield work, client


@pytest.fixture
async def work_and_client(tmp_path: Path) -> AsyncIterator[tuple[Work, Client]]:
    async with working(tmp_path) as both:
        yield both


Both = tuple[Work, Client]


def status_url(response: httpx.Response) -> str:
    match = re.fullmatch(r'<(/flows/[^>]+)>; rel="status"', response.headers["link"])
    assert match
    return match[1]


async def told(client: Client, url: str, state: str) -> dict[str, Any]:
    """The status once it is as wanted."""
    async with asyncio.timeout(20):
        while (found := (await client.get(url)).json())["state"] != state:
            await asyncio.sleep(0.01)  # between two looks at a condition with a deadline
    return found


# What a request is answered


@pytest.mark.parametrize(
    ("path", "status", "location"),
    [
        ("/work/plain", 202, None),
        ("/work/created", 201, "/orders/1"),
        ("/work/bare", 201, ""),
        ("/work/accepted", 202, "/orders/1"),
        ("/work/empty", 202, None),
        ("/work/large", 202, None),
    ],
)
async def test_an_answer_says_where_to_follow_the_work(
    work_and_client: Both, path: str, status: int, location: str | None
) -> None:
    work, client = work_and_client
    response = await client.post(path)
    url = status_url(response)
    assert response.status_code == status
    assert response.headers.get("location", "") == (url if location is None else location)
    assert response.content == ANSWERS.get(path[6:], (0, [], b'{"order":1}'))[2]
    assert work.correlation == response.headers["x-request-id"]
    assert work.correlation == FLOW + url.removeprefix("/flows/").partition(".")[0]


async def test_what_begins_no_work_is_left_alone(work_and_client: Both) -> None:
    _, client = work_and_client
    headers = {"x-request-id": "client-chosen-1", "prefer": "wait=5"}
    for response in (
        await client.get("/work/plain", headers=headers),
        await client.post("/orders", headers=headers),
    ):
        assert response.status_code == 200
        assert response.headers["x-request-id"] == "client-chosen-1"
        assert "link" not in response.headers
    refusal = await client.post("/work/wrong", headers=headers)
    assert (refusal.status_code, refusal.text, "link" in refusal.headers) == (422, "no", False)
    assert refusal.headers["x-request-id"].startswith(FLOW)


async def test_no_client_joins_the_flow_of_another(work_and_client: Both) -> None:
    """Neither on a route with flows nor on any other, whatever id it sends."""
    work, client = work_and_client
    await client.post("/work")
    taken = work.correlation
    for path in ("/work", "/orders"):
        response = await client.post(path, headers={"x-request-id": taken})
        assert response.headers["x-request-id"] != taken
        assert work.correlation != taken


# The status resource


async def test_a_flow_is_told_until_its_end(work_and_client: Both) -> None:
    work, client = work_and_client
    url = status_url(await client.post("/work"))
    begun = await client.get(url)
    assert begun.headers["retry-after"] == "1"
    assert begun.headers["cache-control"] == "no-store"
    assert begun.headers["content-location"] == url
    assert "oyez-after" not in begun.headers
    await work.announce("placed", "flow-of-somebody-else")
    first = await work.announce("placed")
    running = await told(client, url, "running")
    async with asyncio.timeout(20):
        while not running["events"]:
            await asyncio.sleep(0.01)
            running = await told(client, url, "running")
    (placed,) = running["events"]
    assert placed == {
        "type": "shop.order.placed",
        "time": placed["time"],
        "service": "orders",
        "subject": "order-1",
        "id": first,
    }
    last = await work.announce("cancelled", reason="declined", secret={"a": 1})
    done = await told(client, url, "done")
    assert [each["type"] for each in done["events"]] == [
        "shop.order.placed",
        "shop.order.cancelled",
    ]
    assert done["end"] == done["events"][1]
    assert done["end"]["data"] == {"reason": "declined"}
    assert "ann@example.org" not in json.dumps(done)
    after = f"/shop/orders;{last};shop.order.cancelled"
    assert done["after"] == after
    response = await client.get(url)
    assert response.headers["oyez-after"] == after
    assert "retry-after" not in response.headers
    await client.get("/orders/1")
    assert work.seen[-1][b"oyez-after"].decode() == after
    assert (await client.head(url)).status_code == 200
    refused(await client.post(url), 405, "method_not_allowed")


async def test_a_route_that_shows_nothing_tells_no_data(work_and_client: Both) -> None:
    work, client = work_and_client
    url = status_url(await client.post("/work/open"))
    await work.announce("cancelled", reason="x")  # ends other flows, not this one
    await work.announce("shipped", reason="x")
    done = await told(client, url, "done")
    assert done["end"]["type"] == "shop.order.shipped"
    assert all("data" not in each for each in (*done["events"], done["end"]))


async def test_only_who_began_a_flow_reads_it(work_and_client: Both) -> None:
    _, client = work_and_client
    url = status_url(await client.post("/work"))
    assert (await client.get(url)).status_code == 200
    cookie = client.cookies["oyez_session"]
    client.cookies.clear()
    refused(await client.get(url), 404, "not_found")
    key = {"x-api-key": KEY}
    refused(await client.get(url, headers=key), 404, "not_found")
    await client.post("/session")
    refused(await client.get(url), 404, "not_found")
    by_key = status_url(await client.post("/work", headers=key))
    refused(await client.get(by_key), 404, "not_found")
    assert (await client.get(by_key, headers=key)).status_code == 200
    owned = status_url(await client.post("/work/open"))
    client.cookies.clear()
    mine = {"cookie": f"oyez_session={cookie}"}
    assert (await client.get(url, headers=mine)).status_code == 200
    nobodys = status_url(await client.post("/work/open"))
    assert (await client.get(nobodys)).status_code == 200
    refused(await client.get(owned), 404, "not_found")


async def test_ids_that_were_not_made_here_lead_nowhere(work_and_client: Both) -> None:
    _, client = work_and_client
    url = status_url(await client.post("/work"))
    uuid, route, seal = url.removeprefix("/flows/").split(".")
    other = route_key("POST", "/work/open")
    for wrong in (
        "",
        "/",
        f"/{uuid}",
        f"/{uuid}.{route}",
        f"/{uuid}.{route}.{'0' * 32}",
        f"/{uuid}.{other}.{seal}",
        f"/{uuid[:-1]}{int(uuid[-1] != '1')}.{route}.{seal}",
        f"/{uuid.upper()}.{route}.{seal}",
        f"/{uuid}.{route}.{seal}/",
        f"/{uuid}.{route}.{seal}%0a",
        f"/x/{uuid}.{route}.{seal}",
    ):
        response = await client.get(f"/flows{wrong}")
        assert response.status_code in (400, 404), wrong


@given(st.text(max_size=120))
def test_no_other_text_is_an_id(text: str) -> None:
    assert Seal(b"s" * 32).open(text, None) is None
    assert made_at(text) is None


@given(
    st.integers(0, 35 + 13 + 33),
    st.sampled_from("0123456789abcdef.-xZ\n\0é"),
    st.one_of(st.none(), st.sampled_from(["", "ann", "bob"])),
)
def test_no_letter_of_an_id_can_be_changed(at: int, letter: str, who: str | None) -> None:
    def principal(name: str | None) -> Principal | None:
        return None if name is None else Principal(kind="user", subject=name, issuer="i")

    seal = Seal(b"s" * 32)
    begun = seal.close(IDS.new_id(), route_key("POST", "/work"), principal(who))
    assert seal.open(begun.id, principal(who)) == begun
    assert abs(begun.made - IDS.now()) < 60
    changed = begun.id[:at] + letter + begun.id[at + 1 :]
    if changed != begun.id:
        assert seal.open(changed, principal(who)) is None
    assert Seal(b"t" * 32).open(begun.id, principal(who)) is None
    if who is not None:
        assert seal.open(begun.id, principal("eve")) is None
        assert seal.open(begun.id, None) is None


async def test_a_flow_that_takes_too_long_has_expired(tmp_path: Path) -> None:
    clock = Clock()
    async with working(tmp_path, ambient=clock) as (work, client):
        url = status_url(await client.post("/work"))
        await told(client, url, "running")
        clock.ahead = 601
        await told(client, url, "expired")
        await work.announce("shipped")
        await told(client, url, "done")


async def test_a_gateway_knows_what_was_begun_before_it_started(tmp_path: Path) -> None:
    async with working(tmp_path) as (work, client):
        cookies = client.cookies
        url = status_url(await client.post("/work"))
        correlation = work.correlation
        await work.announce("placed", correlation)
    async with working(tmp_path) as (work, client):
        client.cookies = cookies
        found = await told(client, url, "running")
        assert [each["type"] for each in found["events"]] == ["shop.order.placed"]
        await work.announce("shipped", correlation)
        assert len((await told(client, url, "done"))["events"]) == 2


async def test_where_the_broker_is_not_there_yet_nothing_is_known(tmp_path: Path) -> None:
    work = Work(Project(config(tmp_path, 1)))
    async with listening(work) as port:
        settled = config(tmp_path, port)
        async with serving(settled, records=BrokerRecords(Project(settled))) as client:
            await client.post("/session")
            url = status_url(await client.post("/work"))
            assert (await client.get(url)).json()["state"] == "unknown"
            async with work:
                await work.announce("shipped")
                await told(client, url, "done")


# Waiting for the end


async def test_a_client_may_wait_for_the_end(work_and_client: Both) -> None:
    work, client = work_and_client
    response = await client.post("/work/ends", headers={"prefer": "respond-async, wait=100"})
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=30"
    document = response.json()
    assert (document["state"], document["end"]["type"]) == ("done", "shop.order.shipped")
    assert response.headers["content-location"] == document["url"] == status_url(response)
    placed = "/shop/orders;id-1;shop.order.placed"
    assert response.headers["oyez-after"] == f"{placed}, {document['after']}"
    (cookie,) = (c for c in response.headers.get_list("set-cookie") if "oyez_after" in c)
    assert cookie
    await client.get("/orders/1")
    assert work.seen[-1][b"oyez-after"].decode() == f"{placed}, {document['after']}"


async def test_who_waits_in_vain_is_told_where_to_go_on(work_and_client: Both) -> None:
    work, client = work_and_client
    response = await client.post("/work", headers={"prefer": "wait=1"})
    assert (response.status_code, response.content) == (202, b'{"order":1}')
    assert response.headers["preference-applied"] == "wait=1"
    waiting = asyncio.create_task(client.get(status_url(response), headers={"prefer": "wait=30"}))
    await work.announce("shipped")
    answer = await waiting
    assert (answer.json()["state"], answer.headers["preference-applied"]) == ("done", "wait=30")


async def test_what_is_no_success_or_too_large_is_not_waited_for(work_and_client: Both) -> None:
    _, client = work_and_client
    for path, status in (("/work/wrong", 422), ("/work/large", 202)):
        response = await client.post(path, headers={"prefer": "wait=30"})
        assert (response.status_code, "preference-applied" in response.headers) == (status, False)
        assert response.content == ANSWERS[path[6:]][2]


async def test_a_repeated_request_is_told_of_the_first_ones_flow(work_and_client: Both) -> None:
    work, client = work_and_client
    once = {"idempotency-key": "k-1"}
    first = await client.post("/work/once", headers=once)
    assert first.status_code == 202
    again = await client.post("/work/once", headers=once)
    assert (again.status_code, status_url(again)) == (202, status_url(first))
    assert again.headers["location"] == first.headers["location"] == status_url(first)
    await work.announce("shipped")
    await told(client, status_url(again), "done")
    ends = {"idempotency-key": "k-2", "prefer": "wait=30"}
    done = await client.post("/work/once/ends", headers=ends)
    assert (done.status_code, done.json()["state"]) == (200, "done")
    assert (await client.post("/work/once/ends", headers=ends)).json() == done.json()
    assert len(work.seen) == 2


@pytest.mark.parametrize("prefer", ["", "wait=30"])
async def test_an_answer_that_breaks_off_begins_nothing(tmp_path: Path, prefer: str) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        writer.close()

    async with broken(handle) as port:
        settled = config(tmp_path, port)
        async with serving(settled, records=BrokerRecords(Project(settled))) as client:
            asked = client.post("/work/open", headers={"prefer": prefer})
            if prefer:
                refused(await asked, 502, "service_broken")
                return
            with pytest.raises(httpx.RemoteProtocolError):
                await asked


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=5", 5),
        ("WAIT = 5", 5),
        ('wait="5"', 5),
        ("wait=5; foo=bar", 5),
        ("wait=5, wait=9", 5),
        ('respond-async, foo="a, wait=9", wait=5', 5),
        ("wait=100", 30),
        ("wait=0", 0),
        ("wait", 0),
        ("wait=-1", 0),
        ("wait=1.5", 0),
        ("wait=5s", 0),
        ("wait=1e3", 0),
        ("wait=99999999999999999999", 0),
        ("await=5", 0),
        ('foo="wait=5"', 0),
        ('"wait=5', 0),
        ("wait=5" + " " * 600, 5),
        (", " * 300 + "wait=5", 0),
        ("", 0),
    ],
)
async def test_a_wrong_preference_is_ignored(
    prefer: str, seconds: int, exchange_of: Callable[[str], Any]
) -> None:
    from oyez.gateway.flows.prefer import preferred_wait

    assert preferred_wait(exchange_of(prefer), 30.0) == seconds


@pytest.fixture
def exchange_of() -> Callable[[str], Any]:
    from oyez.gateway.http1 import request_head

    class Only:
        def __init__(self, prefer: str) -> None:
            head = f"GET / HTTP/1.1\r\nhost: x\r\nprefer: {prefer}\r\n\r\n".encode()
            self.fields = request_head(head).fields

        def values(self, name: bytes) -> list[str]:
            return [each.decode() for each in self.fields[name]]

    return Only


# Following


class Events:
    """Server-sent events as they come."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.comments = 0

    async def next(self) -> tuple[str, str, dict[str, Any]]:
        found: dict[str, str] = {}
        async with asyncio.timeout(20):
            async for line in self._lines:
                if line.startswith(":"):
                    self.comments += 1
                elif line:
                    name, _, value = line.partition(": ")
                    found[name] = value
                elif "data" in found:
                    return found["event"], found["id"], json.loads(found["data"])
        raise EOFError

    async def rest(self) -> list[str]:
        async with asyncio.timeout(20):
            return [line async for line in self._lines if line]


STREAMED = {"accept": "text/event-stream"}


async def test_a_flow_is_followed_by_server_sent_events(work_and_client: Both) -> None:
    work, client = work_and_client
    url = status_url(await client.post("/work"))
    await work.announce("placed")
    async with client.stream("GET", url, headers=STREAMED) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-accel-buffering"] == "no"
        events = Events(response)
        name, first, data = await events.next()
        assert (name, data["type"]) == ("progress", "shop.order.placed")
        assert "data" not in data
        await work.announce("shipped")
        assert (await events.next())[2]["type"] == "shop.order.shipped"
        name, last, data = await events.next()
        assert (name, data["state"], len(data["events"])) == ("end", "done", 2)
        assert await events.rest() == []
    async with client.stream("GET", url, headers={**STREAMED, "last-event-id": first}) as again:
        events = Events(again)
        assert (await events.next())[2]["type"] == "shop.order.shipped"
        assert (await events.next())[0] == "end"
    over = await client.get(url, headers={**STREAMED, "last-event-id": last})
    assert over.status_code == 204
    for wrong in ("x", "A" * 5_000, first[:-1]):
        async with client.stream("GET", url, headers={**STREAMED, "last-event-id": wrong}) as new:
            assert (await Events(new).next())[2]["type"] == "shop.order.placed"


async def test_a_silent_stream_is_kept_open(
    work_and_client: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "BEAT", 0.02)
    _, client = work_and_client
    url = status_url(await client.post("/work"))
    async with client.stream("GET", url, headers=STREAMED) as response:
        async with asyncio.timeout(20):
            async for line in response.aiter_lines():
                if line == ": still here":
                    break


async def test_watchers_are_bounded(tmp_path: Path) -> None:
    async with working(tmp_path, "watchers = 1") as (work, client):
        url = status_url(await client.post("/work"))
        async with client.stream("GET", url, headers=STREAMED) as response:
            events = Events(response)
            await work.announce("placed")
            await events.next()
            refusal = await client.get(url, headers=STREAMED)
            assert refused(refusal, 503, "busy").headers["retry-after"] == "5"
            assert (await client.get(url)).status_code == 200
            unwaited = await client.post("/work", headers={"prefer": "wait=30"})
            assert (unwaited.status_code, "preference-applied" in unwaited.headers) == (202, False)
        await work.announce("shipped", FLOW + url[7:43])
        async with asyncio.timeout(20):
            while (await client.get(url, headers=STREAMED)).status_code == 503:
                await asyncio.sleep(0.01)  # until the gateway has seen that it was closed


@pytest.mark.parametrize(
    "asks",
    [
        "accept: text/event-stream\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    ],
)
async def test_who_does_not_read_what_is_told_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    def narrow(*given: Any) -> sockets.socket:
        listener = bind(*given)
        listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, 4_096)
        return listener

    monkeypatch.setattr(server, "bind", narrow)
    metrics = Metrics("gateway", service="gateway")
    async with working(tmp_path, "timeout = 0.5", observer=metrics) as (work, client):
        url = status_url(await client.post("/work"))
        for _ in range(index.MOST_OF_ONE):
            await work.announce("placed", subject="s" * 1_900)

        async def watchers() -> float:
            shown = (await client.get(f"http://{client.admin}/metrics")).text
            (line,) = (each for each in shown.splitlines() if "_watchers{" in each)
            return float(line.split()[-1])

        with sockets.socket() as slow:
            slow.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4_096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, (client.address.host, client.address.port))
            cookie = f"oyez_session={client.cookies['oyez_session']}"
            head = f"GET {url} HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\n"
            await loop.sock_sendall(slow, f"{head}{asks}\r\n".encode())
            async with asyncio.timeout(20):
                while not await watchers():
                    await asyncio.sleep(0.01)
                while await watchers():
                    await asyncio.sleep(0.01)


async def test_the_end_of_a_gateway_ends_waiting(tmp_path: Path) -> None:
    """So that clients go on at another; who waits for an answer gets one."""
    async with working(tmp_path) as (work, client):
        url = status_url(await client.post("/work"))
        waiting = asyncio.create_task(client.get(url, headers={"prefer": "wait=30"}))
        async with client.stream("GET", url, headers=STREAMED) as response:
            events = Events(response)
            await work.announce("placed")
            await events.next()
            async with socket(client, url) as connection:
                assert json.loads(await connection.recv())["event"] == "progress"
                client.serving.cancel()
                assert await events.rest() == []
                with pytest.raises(ConnectionClosed) as closed:
                    await connection.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1001
        assert (await waiting).json()["state"] == "running"


# By WebSocket


def socket(client: Client, url: str, **headers: str) -> connect:
    cookie = f"oyez_session={client.cookies['oyez_session']}"
    return connect(
        f"ws://{client.address}{url}", additional_headers={"cookie": cookie, **headers}, proxy=None
    )


async def test_a_flow_is_followed_by_websocket(work_and_client: Both) -> None:
    work, client = work_and_client
    url = status_url(await client.post("/work"))
    async with asyncio.timeout(20), socket(client, url) as connection:
        await work.announce("placed")
        message = json.loads(await connection.recv())
        assert (message["event"], message["data"]["type"]) == ("progress", "shop.order.placed")
        await (await connection.ping())
        await work.announce("cancelled", reason="x")
        assert json.loads(await connection.recv())["data"]["data"] == {"reason": "x"}
        end = json.loads(await connection.recv())
        assert (end["event"], end["data"]["state"]) == ("end", "done")
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


async def test_a_websocket_is_asked_whether_it_is_there(
    work_and_client: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "BEAT", 0.2)  # who is silent for three of them is cut off
    work, client = work_and_client
    url = status_url(await client.post("/work"))
    pings = []
    async with asyncio.timeout(20), socket(client, url) as connection:
        process = connection.process_event

        def count(event: Any) -> None:
            pings.append(event)
            process(event)

        monkeypatch.setattr(connection, "process_event", count)
        while len(pings) < 3:
            await asyncio.sleep(0.01)
        await work.announce("shipped")
        assert json.loads(await connection.recv())["event"] == "progress"


async def test_who_sends_over_the_websocket_of_a_flow_is_cut_off(work_and_client: Both) -> None:
    _, client = work_and_client
    url = status_url(await client.post("/work"))
    for message, code in (("hello", 1003), (b"x" * 2_000, 1009)):
        async with asyncio.timeout(20), socket(client, url) as connection:
            await connection.send(message)
            with pytest.raises(ConnectionClosed) as closed:
                await connection.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == code


async def test_requests_for_a_websocket_are_checked(work_and_client: Both) -> None:
    _, client = work_and_client
    url = status_url(await client.post("/work"))
    with pytest.raises(InvalidStatus) as wrong:
        await socket(client, url, origin="https://evil.example")
    assert wrong.value.response.status_code == 403
    async with socket(client, url, origin=f"http://{client.address}"):
        pass
    client.cookies.clear()
    client.cookies.set("oyez_session", "x")
    with pytest.raises(InvalidStatus) as wrong:
        await socket(client, url)
    assert wrong.value.response.status_code == 404
    client.cookies.clear()
    await client.post("/session")
    url = status_url(await client.post("/work"))
    good = {
        "connection": "keep-alive, Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    old = refused(
        await client.get(url, headers={**good, "sec-websocket-version": "8"}),
        426,
        "websocket_version",
    )
    assert old.headers["sec-websocket-version"] == "13"
    for key in ("", "x", "dGhl"):
        wrong_key = await client.get(url, headers={**good, "sec-websocket-key": key})
        refused(wrong_key, 400, "bad_handshake")


# What a gateway keeps in memory


class Script:
    """Records that a test passes on."""

    def __init__(self) -> None:
        self.history: list[Record] = []
        self.looks: list[float] = []
        self.reaches = 0.0
        self.away = False

    async def follow(self, begun: Callable[[], None], take: Callable[[Record], None]) -> None:
        self.begun, self.take = begun, take
        begun()

    async def look_back(
        self, take: Callable[[Record], None], since: float, seconds: float
    ) -> float:
        self.looks.append(since)
        await asyncio.sleep(0)
        if self.away:
            raise BrokerUnavailable("away")
        for record in self.history:
            take(record)
        return max(since, self.reaches)


def event(begun: Begun, number: int) -> Record:
    headers = {"id": f"{number}", "source": "/s/a", "type": "t", "correlationid": begun.correlation}
    return Record(stream="s.a", key=None, headers=headers, data=b"{}", time=float(number))


def begin(clock: SystemAmbient) -> Begun:
    return Seal(b"s" * 32).close(clock.new_id(), route_key("POST", "/"), None)


class Ids(SystemAmbient):
    """A clock that a test sets, for ids as well."""

    at = 1_000_000.0
    passed = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.passed

    def new_id(self) -> str:
        return self._ids.next(self.at)


async def reading() -> tuple[Ids, Script, Index]:
    clock, script = Ids(), Script()
    kept = Index(clock, script, show=frozenset(), watchers=2)
    await kept.read()
    return clock, script, kept


async def test_a_flow_that_is_begun_while_a_gateway_reads_is_never_looked_up() -> None:
    clock, script, kept = await reading()
    clock.at += 60
    begun = begin(clock)
    assert (await kept.find(begun)).whole
    for number in (2, 1, 1):
        script.take(event(begun, number))
    assert [each.id for each in (await kept.find(begun)).ordered()] == ["1", "2"]
    assert script.looks == []


async def test_older_flows_are_looked_up_once_and_together() -> None:
    clock, script, kept = await reading()
    older, old = begin(clock), begin(clock)
    clock.at += 60
    script.history = [event(older, 1), event(old, 2), event(old, 3)]
    found = await asyncio.gather(*(kept.find(each) for each in (older, old, old, older)))
    assert [len(flow.events) for flow in found] == [1, 2, 2, 1]
    assert all(flow.whole for flow in found)
    script.take(event(old, 4))
    assert len((await kept.find(old)).events) == 3
    assert len(script.looks) == 2  # the first, and those who asked meanwhile


async def test_what_the_brokers_do_not_tell_is_not_known() -> None:
    clock, script, kept = await reading()
    begun = begin(clock)
    script.away = True
    assert not (await kept.find(begun)).whole
    assert not (await kept.find(begun)).whole
    assert len(script.looks) == 1  # not again at once
    script.away = False
    clock.passed += index.AGAIN
    script.reaches = clock.at + 1  # what is older has been deleted
    assert not (await kept.find(begun)).whole
    clock.passed += index.AGAIN
    script.reaches = 0.0
    assert (await kept.find(begun)).whole
    script.begun()  # some may have been missed
    await kept.find(begun)
    assert len(script.looks) == 4


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MOST", 20)
    monkeypatch.setattr(index, "MOST_OF_ONE", 3)
    clock, script, kept = await reading()
    clock.at += 60
    watched = begin(clock)
    clock.at += 1
    later = []
    with kept.watching(watched) as changed:
        script.take(event(watched, 1))
        assert changed.is_set()
        for number in range(50):
            clock.at += 1
            later.append(begin(clock))
            script.take(event(later[-1], number))
        assert (await kept.find(watched)).events
        assert (await kept.find(later[-1])).whole
        assert script.looks == []
        script.history = [event(later[0], 0)]
        assert len((await kept.find(later[0])).events) == 1
        assert len(script.looks) == 1
        with kept.watching(watched), pytest.raises(Exception, match="too many"):
            kept.watching(watched).__enter__()
    assert kept.watchers == 0
    for number in range(5):
        script.take(event(later[-1], 100 + number))
    flow = await kept.find(later[-1])
    assert (len(flow.events), flow.cut) == (3, True)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"id": "", "source": "s", "type": "t"},
        {"id": "1", "source": "s" * 5_000, "type": "t"},
        {"datacontenttype": "application/cloudevents+json"},
    ],
)
async def test_what_is_no_event_is_left_out(headers: dict[str, str]) -> None:
    clock, script, kept = await reading()
    clock.at += 60
    begun = begin(clock)
    for correlation in (begun.correlation, "flow-", "flow-x", "other"):
        record = Record(
            stream="s", key=None, headers={**headers, "correlationid": correlation}, data=None
        )
        script.take(record)
    script.take(Record(stream="s", key=None, headers=headers, data=b"{"))
    assert not (await kept.find(begun)).events


async def test_an_event_in_structured_form_counts(tmp_path: Path) -> None:
    clock, script, kept = await reading()
    clock.at += 60
    begun = begin(clock)
    data = {
        "specversion": "1.0",
        "id": "1",
        "source": "/s/a",
        "type": "t",
        "correlationid": begun.correlation,
        "data": {},
    }
    headers = {"content-type": "application/cloudevents+json"}
    script.take(Record(stream="s", key=None, headers=headers, data=json.dumps(data).encode()))
    assert [each.id for each in (await kept.find(begun)).ordered()] == ["1"]


@given(st.text(max_size=40), st.binary(max_size=40))
def test_any_last_event_id_is_read(text: str, more: bytes) -> None:
    Told(text)
    Told(more.decode("latin-1"))


# What can't be configured


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        ('until = ["a"]', "until: expected a route with a method that changes something"),
        ('methods = ["POST"]\nuntil = ["a b"]', "until: expected a list of event types"),
        ('methods = ["POST"]\nshow = ["a"]', "show: expected a route with until"),
        ('methods = ["POST"]\nuntil = ["a"]\nshow = ["a.b"]', "show: expected a list of fields"),
        ('methods = ["POST"]\nuntil = ["a"]\nwithin = 0', "within: expected a number of seconds"),
        ('methods = ["POST"]\nwebsocket = true', "websocket: expected a route with the method GET"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, route: str, problem: str) -> None:
    settings(tmp_path, 1)
    toml = tmp_path / "oyez.toml"
    toml.write_text(f'{toml.read_text()}\n[[gateway.routes]]\npath="/x"\nservice="orders"\n{route}')
    with pytest.raises(ConfigurationError) as caught:
        load(toml, {})
    assert problem in str(caught.value)
    assert "gateway.routes[4]" in str(caught.value)


def test_no_route_takes_the_place_of_the_status_resources(tmp_path: Path) -> None:
    settings(tmp_path, 1)
    toml = tmp_path / "oyez.toml"
    taken = '[[gateway.routes]]\npath = "/flows/mine"\nservice = "orders"\n'
    toml.write_text(toml.read_text() + taken)
    assert load(toml, {}).gateway
    toml.write_text(toml.read_text() + ROUTE)
    with pytest.raises(ConfigurationError, match="a path that the gateway doesn't use: a route"):
        load(toml, {})


def test_a_broker_without_history_has_no_records(tmp_path: Path) -> None:
    for url in ("sns+sqs://eu-west-1", "amqp://localhost:1?queue=quorum", "memory:"):
        config(tmp_path, 1)
        settled = load(tmp_path / "oyez.toml", {"OYEZ_BROKER": url})
        with pytest.raises(ConfigurationError, match="keeps history, as a route has until"):
            BrokerRecords(Project(settled))


def test_the_gateway_says_where_until_can_not_be_held(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config(tmp_path, 1)
    for url, held in (("embedded:.oyez/e.db", True), ("amqp://localhost:1?queue=quorum", False)):
        settled = load(tmp_path / "oyez.toml", {"OYEZ_BROKER": url})
        configure("json")
        assert (_records(Project(settled)) is not None) is held
        assert ("until is not held" in capfd.readouterr().err) is not held


async def test_without_records_a_route_answers_as_its_service_does(tmp_path: Path) -> None:
    async with listening(Upstream()) as port, serving(config(tmp_path, port)) as client:
        answer = await client.post("/work/open", headers={"prefer": "wait=5"})
        assert (answer.status_code, answer.text) == (200, "hello ")
        assert "link" not in answer.headers
        assert (await client.get("/flows/x")).status_code == 404
