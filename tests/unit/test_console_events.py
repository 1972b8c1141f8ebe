"""The console's events and contracts: what services tell of them, and what is shown."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from test_console import TOKEN, project, served

from oyez import Event, Personal, Service, testing
from oyez.console.access import Access
from oyez.console.answers import Explore, Place, Streams
from oyez.console.api import api
from oyez.console.app import console
from oyez.console.pages import contracts as contracts_page
from oyez.console.pages import events as events_page
from oyez.console.pages.events import Wish, Wrong, wish
from oyez.console.safe import glance
from oyez.console.system import System, Unanswered
from oyez.inspection.lint import check
from oyez.inspection.lint.contracts import Between, Contracts, contracts_of
from oyez.inspection.lint.system import System as Linted
from oyez.ports import Capabilities
from oyez.runtime.admin import admin
from oyez.testing import running

STREAM = "test.orders"
SITE = {"Sec-Fetch-Site": "same-origin", "Origin": "https://console"}
EVENTS = {"Accept": "text/event-stream"}
HOSTILE = "<script>alert(1)</script>javascript:alert(1)\u202e\u200b\u2066\x1b[2J\x00\u3164"


class Line(msgspec.Struct):
    sku: str
    count: int


class Placed(Event, type="shop.order.placed", key="order"):
    order: str
    cents: int
    name: Annotated[str, Personal] = ""
    lines: tuple[Line, ...] = ()


class PlacedHere(Event, type="shop.order.placed", key="order"):
    order: str
    cents: str
    """Published as a number."""


class Cancelled(Event, type="shop.order.cancelled"):
    order: str


class Unsaid(Event, type="shop.order.plased", key="order"):
    order: str


def orders() -> Service:
    return Service("orders", publishes=(Placed, Cancelled))


def desk() -> Service:
    service = Service("desk")

    @service.on(PlacedHere)
    async def take(event: PlacedHere) -> None: ...

    @service.on(Unsaid, allow={"E02": "it will be published soon"})
    async def wait(event: Unsaid) -> None: ...

    return service


class World:
    """Two services with their admin ports on sockets, and their console with somebody in it."""

    def __init__(self, client: httpx.AsyncClient, system: testing.System, app: Starlette) -> None:
        self.client = client
        self.system = system
        self.app = app
        self.asks: System = app.state.desk.system

    async def raw(self, number: int, data: bytes | None = b"{}", **headers: str) -> None:
        plain = {"specversion": "1.0", "id": f"e{number}", "source": "/s", "type": "shop.x"}
        await self.system.publish_raw({**plain, **headers}, data, service="orders", key="k")

    async def page(self, path: str, **query: object) -> httpx.Response:
        return await self.client.get(f"{path}?{urlencode(query)}" if query else path)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)
    async with running(orders(), desk()) as system:
        ports = {
            name: admin(process, token=TOKEN, metrics=str, details=lambda p=process: api(p))
            for name, process in system.processes.items()
        }
        async with served(ports["orders"]) as first, served(ports["desk"]) as second:
            found = project(tmp_path, orders=first, desk=second)
            access = Access(found.ambient, name="test", token=TOKEN)
            app = console(System(found), access, found.ambient)
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app), base_url="https://console"
            ) as client:
                form = {"token": TOKEN, "next": "/"}
                await client.post("/sign-in", data=form, headers=SITE)
                yield World(client, system, app)
            await app.state.desk.system.close()


def in_stream(**more: object) -> dict[str, object]:
    return {"stream": f"embedded {STREAM}", **more}


# -- events ----------------------------------------------------------------------------------------


async def test_streams_are_listed_and_events_found(world: World) -> None:
    for number in range(60):
        await world.system.publish(
            Placed(order=f"o{number}", cents=number, name="Zoé"), service="orders"
        )
    listed = await world.page("/events")
    assert f'href="/events?stream=embedded%20{STREAM}"' in listed.text
    first = await world.page("/events", **in_stream())
    assert first.text.count("<tr>\n<td") == 50
    assert 'data-tail="/live/events?stream=embedded+test.orders"' in first.text
    onward = re.search(r'<a rel="next" href="([^"]+)"', first.text)
    assert onward
    rest = await world.client.get(onward[1].replace("&amp;", "&"))
    assert rest.text.count("<tr>\n<td") == 10
    assert "That is all." in rest.text
    for query in ({"key": "o7"}, {"text": '"cents":7,'}, {"type": "shop.order.*", "key": "o7"}):
        page = await world.page("/events", **in_stream(**query))
        assert page.text.count("<tr>\n<td") == 1
        assert "o7" in page.text
    none = await world.page("/events", **in_stream(type="shop.none"))
    assert "There is none." in none.text
    late = await world.page("/events", **in_stream(since="2999-01-01T00:00"))
    assert "There is none." in late.text
    old = await world.page("/events", **in_stream(order="oldest", until="2999-01-01T00:00"))
    assert "data-tail" not in old.text


async def test_one_event_and_its_payload(world: World) -> None:
    data = b'{"order": "o1", "lines": [1, 2]}'
    await world.raw(1, data, correlationid="c1")
    page = await world.page("/events", **in_stream())
    href = re.search(r'<a href="(/events/one[^"]+)"', page.text)
    assert href
    path = href[1].replace("&amp;", "&")
    one = await world.client.get(path)
    assert '<a href="/find?q=e1">' in one.text
    assert "&#34;lines&#34;: [\n    1," in one.text
    assert "c1" in one.text
    content = await world.client.get(path.replace("/one", "/data"))
    assert content.content == data
    assert content.headers["content-type"] == "application/octet-stream"
    assert content.headers["content-disposition"].startswith("attachment")
    earlier = re.search(r'<a href="(/events[^"]+)">Earlier', one.text)
    assert earlier
    around = await world.client.get(earlier[1].replace("&amp;", "&"))
    assert around.text.count("<tr>\n<td") == 1
    for wrong in ("partition=0&position=99", "partition=99&position=1", "partition=x&position=1",
                  "partition=-1&position=1", "", f"partition=0&position={'9' * 40}"):  # fmt: skip
        gone = await world.client.get(f"/events/one?stream=embedded+{STREAM}&{wrong}")
        assert gone.status_code in (404, 409)
        gone = await world.client.get(f"/events/data?stream=embedded+{STREAM}&{wrong}")
        assert gone.status_code in (404, 409)


RECORDS = [
    (HOSTILE.encode(), {"type": HOSTILE, "id": HOSTILE, HOSTILE: HOSTILE}),
    (b"\xff\xfe\x00", {}),
    (b"{", {"datacontenttype": "application/cloudevents+json"}),
    (None, {}),
    (b"", {"dataref": "javascript:alert(1)"}),
    (b'"' + HOSTILE.encode() + b'"', {"id": "javascript:alert(1)", "specversion": "9"}),
    (b'{"a": "' + b"x" * 10_000_000 + b'"}', {"type": "large"}),
]


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
async def test_anything_is_shown_safely(
    world: World, record: tuple[bytes | None, dict[str, str]]
) -> None:
    data, headers = record
    await world.raw(1, data, **headers)
    page = await world.page("/events", **in_stream())
    assert len(page.content) < 60_000
    href = re.search(r'<a href="(/events/one[^"]+)"', page.text)
    assert href
    path = href[1].replace("&amp;", "&")
    one = await world.client.get(path)
    assert one.status_code == 200
    assert len(one.content) < 600_000
    for shown in (page.text, one.text):
        assert "<script>alert" not in shown
        assert not re.search(r"<style|style=|<script(?! src=)|\son\w+=|href=\"(?!/|#|\?)", shown)
        assert not {"\u202e", "\u200b", "\u2066", "\x1b", "\x00", "\u3164"} & set(shown)
    if not headers.get("dataref"):
        content = await world.client.get(path.replace("/one", "/data"))
        assert content.content == (data or b"")


@given(st.binary(max_size=500))
def test_any_payload_has_a_glance(data: bytes) -> None:
    shown = str(glance(data, 100))
    plain = re.sub(r'<span class="unseen">[^<>]*</span>', "", shown)
    plain = plain.removeprefix("<bdi>").removesuffix("</bdi>")
    assert not set(plain) & set("<>\"'\n\t")
    assert all(char.isprintable() for char in plain)


def test_glances() -> None:
    assert glance(b'{"a":\n 1}') == "<bdi>{&#34;a&#34;: 1}</bdi>"
    assert glance("é".encode()[:1] + b"\x00") == "<bdi>c3 00</bdi>"
    assert glance(("x" * 10 + "é").encode()[:-1]) == f"<bdi>{'x' * 10}</bdi>"
    assert str(glance(b"x" * 300, 5)) == "<bdi>xxxxx…</bdi>"


@given(st.dictionaries(st.sampled_from([*events_page._FILTERS, "at", "stream"]), st.text()))
def test_any_query_is_a_wish_or_says_what_is_wrong(query: dict[str, str]) -> None:
    found = wish({"stream": "embedded s", **query}, {"embedded": None})
    assert found is None or isinstance(found, Wish | Wrong)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"partition": "-1"}, ""),
        ({"partition": "x"}, "partition"),
        ({"partition": "9" * 5_000}, "partition"),
        ({"since": "yesterday"}, "since"),
        ({"until": "9" * 30}, "until"),
        ({"at": "1"}, "at"),
        ({"text": "x" * 300}, ""),
    ],
)
async def test_a_field_that_can_not_be_read_is_named(
    world: World, query: dict[str, str], field: str
) -> None:
    page = await world.page("/events", **in_stream(**query))
    assert page.status_code == 422
    assert 'role="alert"' in page.text
    assert not field or f"<strong><bdi>{field}</bdi></strong>" in page.text


async def test_a_broker_without_history_says_so_and_is_never_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.raw(1)
    queue = Capabilities(durability="volatile", history=False, processes=True)
    monkeypatch.setattr(world.system.broker, "capabilities", queue)

    def read(*_: object) -> None:
        raise AssertionError("who reads a queue takes from its service")

    monkeypatch.setattr(world.system.broker, "read", read)
    page = await world.page("/events")
    assert "keeps no history" in page.text
    for path in ("/events", "/events/one"):
        refused = await world.page(path, **in_stream(partition=0, position=1))
        assert refused.status_code == 409
        assert "keeps no history" in refused.text


async def test_any_service_on_the_broker_answers_and_none_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)
    async with running(orders()) as system:
        process = system.processes["orders"]
        await system.publish(Placed(order="o1", cents=1), service="orders")
        app = admin(process, token=TOKEN, metrics=str, details=lambda: api(process))
        async with served(app) as at:
            asks = System(project(tmp_path, gone="127.0.0.1:1", orders=at))
            assert asks.brokers == {"embedded": ["gone", "orders"]}
            found = (await asks.streams())["embedded"]
            assert found.value == Streams(history=True, partitions=found.value.partitions)  # type: ignore[union-attr]
            page = await asks.events("embedded", Explore(stream=STREAM))
            assert [each.key for each in page.events] == ["o1"]
            with pytest.raises(Unanswered) as refused:
                await asks.events("embedded", Explore(stream="test.none"))
            assert (refused.value.status, "no stream" in str(refused.value)) == (409, True)
            await asks.close()
    asks = System(project(tmp_path, gone="127.0.0.1:1"))
    (silent,) = (await asks.streams()).values()
    assert silent.value is None
    assert "no connection" in str(silent.gap)
    with pytest.raises(Unanswered):
        await asks.data("embedded", Place(stream=STREAM, partition=0, position=1))
    await asks.close()


async def test_what_arrives_is_followed_dropped_with_a_count_and_goes_on(world: World) -> None:
    cookie = "; ".join(f"{name}={value}" for name, value in world.client.cookies.items())
    live = world.app.state.desk.live
    path = f"/live/events?{urlencode(in_stream())}"
    async with served(world.app) as at, httpx.AsyncClient(base_url=f"http://{at}") as client:
        assert (await client.get(path, headers=EVENTS)).status_code == 401
        headers = {**EVENTS, "Cookie": cookie}
        unknown = await client.get("/live/events?stream=other+x", headers=headers)
        assert unknown.status_code == 404
        async with client.stream("GET", path, headers=headers) as answer, asyncio.timeout(30):
            lines = answer.aiter_lines()
            begun = (await anext(lines)).removeprefix("id: ")
            assert live.viewers == 1
            await world.raw(1, b'{"hello": "<b>"}')
            async for line in lines:
                if "hello" in line:
                    assert "&lt;b&gt;" in line
                    break
            for number in range(5_000):
                await world.raw(number)
            dropped = 0
            async for line in lines:
                if line == "event: dropped":
                    assert (await anext(lines)).startswith("id: ")
                    dropped += int((await anext(lines)).removeprefix("data: "))
                    break
            assert dropped > 1_000
        async with asyncio.timeout(20):
            while live.viewers:
                await asyncio.sleep(0.01)
        again = {**headers, "Last-Event-ID": begun}
        async with client.stream("GET", path, headers=again) as answer, asyncio.timeout(20):
            lines = answer.aiter_lines()
            assert await anext(lines) == "event: dropped"


async def test_a_service_answers_for_what_is_asked_wrongly(world: World) -> None:
    process = world.system.processes["orders"]
    app = admin(process, token=TOKEN, metrics=str, details=lambda: api(process))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://orders"
    ) as client:
        for path in ("/streams", "/events", "/events/one", "/events/data", "/contracts"):
            assert (await client.get(f"/oyez{path}")).status_code == 401
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        for path, status in (
            ("/events", 422),
            ("/events?stream=x&limit=1000", 422),
            ("/events?stream=x&at=nonsense", 422),
            ("/events?stream=x&since=nan", 404),
            ("/events?stream=x", 404),
            ("/events/one?stream=x&partition=0&position=-1", 422),
            ("/events/arrivals?stream=x", 404),
            ("/events/data?stream=x&partition=0&position=1", 404),
        ):
            answer = await client.get(f"/oyez{path}")
            assert (path, answer.status_code) == (path, status)
            assert answer.json()["detail"]


# -- contracts -------------------------------------------------------------------------------------


async def test_contracts_are_shown_with_their_fields_and_faults(world: World) -> None:
    page = await world.page("/contracts")
    assert "shop.order.placed" in page.text
    assert "E18" in page.text
    assert "TYPE_NARROWED: cents: it is integer, and string is expected" in page.text
    assert "E01 <bdi>nobody handles shop.order.cancelled, which orders publishes" in page.text
    assert "E02" not in page.text  # its handler permits it
    one = await world.page("/contracts/one", type="shop.order.placed")
    assert "<code><bdi>lines[].sku</bdi></code>" in one.text
    row = one.text[one.text.index("<code><bdi>name</bdi></code>") :].partition("</tr>")[0]
    assert "personal" in row
    assert "<td><bdi>string</bdi></td><td><span" in row  # orders publishes it, desk reads it not
    assert "/events?stream=embedded+till.orders&amp;type=shop.order.placed" in one.text
    assert (await world.page("/contracts/one", type="none")).status_code == 404


async def test_a_silent_service_takes_back_that_nobody_handles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [contracts_of(orders())]
    between = Between(told, name="shop", external=())
    assert [each.code for each in contracts_page.open_faults(between, whole=True)] == ["E01", "E01"]
    assert contracts_page.open_faults(between, whole=False) == []


def test_contracts_that_were_told_have_the_faults_that_the_lint_finds() -> None:
    services = [orders(), desk(), Service("other", publishes=(Placed,))]
    wire = [
        msgspec.json.decode(msgspec.json.encode(contracts_of(each)), type=Contracts)
        for each in services
    ]
    between = Between(wire, name="shop", external=["shop.order.cancelled"])
    linted = check(
        Linted(
            {each.name: each for each in services}, name="shop", external=["shop.order.cancelled"]
        )
    )
    assert {each.code for each in linted} == {"E04", "E18"}
    assert sorted(
        (each.code, each.level, each.text, each.remedy)
        for each in contracts_page.open_faults(between, whole=True)
    ) == sorted((each.code, each.level, each.text, each.remedy) for each in linted)
