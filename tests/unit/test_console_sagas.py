"""The console's sagas: what services tell of them, and what the pages make of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from xml.dom import minidom

import httpx
import msgspec
import pytest
from test_console import SAME_SITE, TOKEN, World, project, served

from oyez import Command, Event, Saga, Service, testing
from oyez.console.access import Access
from oyez.console.answers import ActPage, InstancePage, InstanceShown, Standings
from oyez.console.api import api
from oyez.console.app import console
from oyez.console.pages import sagas as pages
from oyez.console.system import System
from oyez.inspection.plan import Plan, PlannedStep, plan_of
from oyez.inspection.sagas import Place
from oyez.inspection.standing import MOST
from oyez.runtime.admin import admin
from oyez.saga import Status, end, saga_kind, starts, step
from oyez.testing import running

HOSTILE = "<script>alert(1)</script>\u202e\x1b[2J"
ODD = "../..?#&é <script>alert(1)</script>"
"""A key that is no part of a path, and no markup."""


class Wished(Event, type="trip.wished", key="trip"):
    trip: str
    guest: str = "ada"


class Pay(Command, type="trip.pay", key="trip", to="bank"):
    trip: str


class Paid(Event, type="trip.paid", key="trip"):
    trip: str


class Seat(Command, type="trip.seat", key="trip", to="train"):
    trip: str


class Seated(Event, type="trip.seated", key="trip"):
    trip: str


class Full(Event, type="trip.full", key="trip"):
    trip: str
    reason: str = HOSTILE


class Leave(Command, type="trip.leave", key="trip", to="train"):
    trip: str


class Left(Event, type="trip.left", key="trip"):
    trip: str


class Trip(Saga, key="trip", ends=("taken", "dropped")):
    trip: str = ""
    guest: str = ""

    @starts
    def wished(self, event: Wished) -> None:
        self.take(event)

    @step(done=Seated, failed=Full, within=60, after=())
    def seat(self) -> Seat:
        return self.make(Seat)

    @seat.undo(done=Left, within=60)
    def leave(self) -> Leave:
        return self.make(Leave)

    @step(done=Paid, within=600, after=(), pivot=True)
    def pay(self) -> Pay:
        return self.make(Pay)

    @end("taken")
    def taken(self) -> None: ...

    @end("dropped")
    def dropped(self) -> None: ...


class Walk(Saga, key="trip", ends=("over", "stopped")):
    guest: str = ""

    @starts
    def wished(self, event: Wished) -> None: ...

    @step(done=Seated, failed=Full, within=60)
    def go(self) -> Seat:
        return self.make(Seat)

    @go.undo(done=Left, within=60)
    def back(self) -> Leave:
        return self.make(Leave)


def travel() -> Service:
    service = Service("travel", publishes=(Wished, Paid, Seated, Full, Left))
    service.saga(Trip)
    service.saga(Walk)
    return service


async def travelled(system: testing.System) -> None:
    """Let four trips stand at different places: of each saga, the keys are those of the trips."""
    for event in (
        Wished(trip="runs"),
        Wished(trip="ends"), Seated(trip="ends"), Paid(trip="ends"),
        Wished(trip=ODD), Paid(trip=ODD), Full(trip=ODD),
        Seated(trip="waits"),
    ):  # fmt: skip
        await system.publish(event)
    await system.settled()


@asynccontextmanager
async def asked() -> AsyncIterator[httpx.AsyncClient]:
    async with running(travel()) as system:
        process = system.processes["travel"]
        app = admin(process, token=TOKEN, metrics=str, details=lambda: api(process))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://travel",
            headers={"Authorization": f"Bearer {TOKEN}"},
        ) as client:
            await travelled(system)
            yield client


# -- the services' side ----------------------------------------------------------------------------


async def test_a_process_tells_where_the_instances_of_its_sagas_stand() -> None:
    async with asked() as client:
        told = msgspec.json.decode((await client.get("/oyez/sagas")).content, type=Standings)
        trip, walk = told.sagas
        assert (trip.service, trip.saga, walk.saga) == ("travel", "Trip", "Walk")
        assert trip.counts == {"stuck": 1, "undoing": 0, "running": 1, "waiting": 1, "ended": 1}
        assert trip.asked == {"seat": 1, "pay": 1}
        assert trip.ends == {"taken": 1}
        (stuck,) = trip.stuck
        assert (stuck.step, stuck.undoing, stuck.instances, stuck.key) == ("seat", False, 1, ODD)
        assert HOSTILE in stuck.reason
        assert trip.plan == plan_of(saga_kind(Trip))
        assert walk.counts["ended"] == 2
        assert walk.ends == {"over": 1, "stopped": 1}
        one = msgspec.json.decode(
            (await client.get("/oyez/sagas?saga=Walk")).content, type=Standings
        )
        assert [each.saga for each in one.sagas] == ["Walk"]


async def test_instances_are_listed_stuck_ones_first_page_by_page() -> None:
    async with asked() as client:
        found: list[str] = []
        after: Place | None = None
        while True:
            query = {"limit": "1"}
            if after is not None:
                query |= {
                    "at": after.status.value,
                    "changed": repr(after.changed),
                    "key": after.key,
                }
            answer = await client.get("/oyez/sagas/Trip/instances", params=query)
            page = msgspec.json.decode(answer.content, type=InstancePage)
            assert len(page.instances) <= 1
            found += [each.key for each in page.instances]
            after = page.more
            if after is None:
                break
        assert found == [ODD, "runs", "waits"]
        ended = await client.get("/oyez/sagas/Walk/instances?status=ended&limit=1")
        page = msgspec.json.decode(ended.content, type=InstancePage)
        assert page.more is not None
        rest = await client.get(
            "/oyez/sagas/Walk/instances",
            params={
                "status": "ended",
                "at": "ended",
                "changed": repr(page.more.changed),
                "key": page.more.key,
            },
        )
        last = msgspec.json.decode(rest.content, type=InstancePage)
        assert last.more is None
        assert {page.instances[0].key, last.instances[0].key} == {"ends", ODD}
        none = await client.get("/oyez/sagas/None/instances")
        assert none.json() == {"instances": [], "more": None}


async def test_an_instance_is_told_with_its_fields_and_its_last_transitions() -> None:
    async with asked() as client:
        answer = await client.get("/oyez/sagas/Trip/instance", params={"key": ODD})
        shown = msgspec.json.decode(answer.content, type=InstanceShown)
        assert shown.whole is not None
        assert shown.whole.instance.status == "stuck"
        assert [each.type for each in shown.whole.log] == ["trip.wished", "trip.paid", "trip.full"]
        assert msgspec.json.decode(shown.whole.fields or b"")["guest"] == "ada"
        assert shown.size == len(shown.whole.fields or b"")
        answer = await client.get("/oyez/sagas/Trip/instance", params={"key": ODD, "before": "3"})
        shown = msgspec.json.decode(answer.content, type=InstanceShown)
        assert shown.whole is not None
        assert [each.number for each in shown.whole.log] == [1, 2]
        early = await client.get("/oyez/sagas/Trip/instance?key=waits")
        shown = msgspec.json.decode(early.content, type=InstanceShown)
        assert shown.whole is not None
        assert [each.headers["type"] for each in shown.whole.progress.early] == ["trip.seated"]
        assert [each.data for each in shown.whole.progress.early] == [b""]
        nobody = await client.get("/oyez/sagas/Trip/instance?key=nobody")
        assert nobody.json()["whole"] is None


@pytest.mark.parametrize(
    "path",
    [
        "/sagas/Trip/instances?status=none",
        "/sagas/Trip/instances?at=none",
        "/sagas/Trip/instances?at=stuck&changed=nan",
        "/sagas/Trip/instances?at=stuck&changed=x",
        "/sagas/Trip/instances?limit=-1",
        "/sagas/Trip/instances?at=stuck&changed=1&key=%00",
        "/sagas/Trip/instance?key=%00",
        "/sagas/Trip/instance?key=1&before=x",
    ],
)
async def test_what_is_asked_wrongly_is_refused(path: str) -> None:
    async with asked() as client:
        assert (await client.get(f"/oyez{path}")).status_code == 422


async def test_instances_are_retried_aborted_and_resolved_by_who_is_named() -> None:
    async with asked() as client:

        async def act(path: str, who: str = "ada l", **body: object) -> httpx.Response:
            asked = msgspec.json.encode({"who": who, **body})
            return await client.post(f"/oyez/sagas/{path}", content=asked)

        assert (await act("Trip/retry", key=ODD, why="try once more")).status_code == 200
        assert (await act("Trip/abort", key="runs", why="late")).status_code == 409  # its pivot
        resolved = await act("Trip/resolve", key="runs", step="pay", done=True, why="seen")
        assert resolved.status_code == 200
        assert (await act("Walk/abort", key="runs", why="late", who="")).status_code == 422
        assert (await act("Walk/abort", key="runs", why="late", who="bob")).status_code == 200
        again = await act("Walk/abort", key="runs", why="late")
        assert (again.status_code, "is being undone already" in again.json()["detail"]) == (
            409,
            True,
        )
        assert (await act("Walk/abort", key="runs", why=" ")).status_code == 422
        assert (await act("Walk/abort", key="nobody", why="late")).status_code == 409
        assert (await act("None/abort", key="runs", why="late")).status_code == 409
        assert (await act("Trip/retry")).status_code == 422
        page = msgspec.json.decode((await client.get("/oyez/audit?limit=2")).content, type=ActPage)
        assert [(each.act, each.target, each.who) for each in page.acts] == [
            ("saga.abort", "saga Walk runs", "bob"),
            ("saga.resolve", "saga Trip runs", "ada l"),
        ]
        assert page.more
        rest = await client.get(f"/oyez/audit?before={page.acts[-1].id}")
        (first,) = msgspec.json.decode(rest.content, type=ActPage).acts
        assert (first.reason, first.via, first.target) == (
            "try once more",
            "console",
            f"saga Trip {ODD}",
        )
        one = await client.get("/oyez/audit", params={"target": "saga Walk runs"})
        assert [each.act for each in msgspec.json.decode(one.content, type=ActPage).acts] == [
            "saga.abort"
        ]


# -- the pages -------------------------------------------------------------------------------------


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)
    async with running(travel()) as system:
        process = system.processes["travel"]
        app = admin(process, token=TOKEN, metrics=str, details=lambda: api(process))
        async with served(app) as at:
            await travelled(system)
            found = project(tmp_path, travel=at, silent="127.0.0.1:1")
            access = Access(found.ambient, name="till", token=TOKEN, read_token="read-this")
            asks = System(found)
            page = console(asks, access, found.ambient)
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app=page), base_url="https://console"
            ) as client:
                SAME_SITE["Origin"] = "https://console"
                made = World(client, system, access, page)
                await made.sign_in()
                yield made
            await asks.close()


async def test_sagas_and_what_is_stuck_are_shown_and_what_is_silent_is_a_gap(world: World) -> None:
    page = (await world.client.get("/sagas")).text
    assert "1 Trip stuck on <bdi>seat</bdi>" in page
    assert "silent at 127.0.0.1:1" in page
    assert 'href="/sagas/travel/Trip?status=ended"' in page
    assert "<script>alert" not in page
    link = re.search(r'class="alert bad" href="([^"]+)"', page)
    assert link
    shown = await world.client.get(link[1].replace("&amp;", "&"))
    assert shown.status_code == 200
    assert "Stuck on <bdi>seat</bdi>" in shown.text
    only = (await world.client.get("/sagas?service=silent")).text
    assert "No service declares a saga" not in only


async def test_one_saga_is_drawn_with_its_instances(world: World) -> None:
    page = (await world.client.get("/sagas/travel/Trip")).text
    picture = page[page.index("<svg") : page.index("</svg>") + 6]
    words = [
        "".join(each.data for part in node.childNodes for each in _texts(part))
        for node in minidom.parseString(picture).getElementsByTagName("text")
    ]
    assert "seat 1 · 1 stuck" in words
    assert "pay 1" in words
    assert "taken 1" in words
    assert "start 1 wait for it" in words
    assert picture.count('class="box trouble"') == 1
    assert page.index("alert(1)") < page.index(">runs</bdi>")
    assert "<script>alert" not in page
    assert not {"\u202e", "\x1b"} & set(page)
    ended = (await world.client.get("/sagas/travel/Trip?status=ended")).text
    assert ">ends</bdi>" in ended
    assert ">runs</bdi>" not in ended
    for missing in ("/sagas/nobody/Trip", "/sagas/travel/None", "/sagas/travel/Trip?status=odd"):
        assert (await world.client.get(missing)).status_code == 404
    assert (await world.client.get("/sagas/silent/Trip")).status_code == 503


def _texts(node: minidom.Node) -> list[minidom.Text]:
    if isinstance(node, minidom.Text):
        return [node]
    return [text for part in node.childNodes for text in _texts(part)]


async def test_pages_of_instances_follow_one_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "SHOWN", 1)
    at, seen = "/sagas/travel/Trip", []
    for _ in range(3):
        page = (await world.client.get(at)).text
        seen += re.findall(r'<th scope="row"><a href="[^"]+"><bdi>(\w+|\.\.)', page)
        following = re.search(r'rel="next" href="([^"]+)"', page)
        at = following[1].replace("&amp;", "&") if following else ""
    assert at == ""
    assert seen == ["..", "runs", "waits"]


async def test_an_instance_shows_its_history_its_data_and_its_next_time(world: World) -> None:
    page = await world.client.get("/sagas/travel/Trip/instance?key=runs")
    assert page.status_code == 200
    for text in (
        "trip.wished",
        "asks trip.seat",
        "&#34;guest&#34;: &#34;ada&#34;",
        "seat is taken for unanswered",
        "How you know",
    ):
        assert text in page.text
    odd = await world.client.get("/sagas/travel/Trip/instance", params={"key": ODD})
    assert "<script>alert" not in odd.text
    assert not {"\u202e", "\x1b"} & set(odd.text)
    early = (await world.client.get("/sagas/travel/Trip/instance?key=waits")).text
    assert "Came before its start" in early
    assert "it is given up unless it has started" in early
    assert (await world.client.get("/sagas/travel/Trip/instance?key=no")).status_code == 404
    await world.sign_in("read-this")
    read = (await world.client.get("/sagas/travel/Trip/instance?key=runs")).text
    assert "Signed in to read" in read
    assert "How you know" not in read


async def test_an_operator_retries_aborts_and_resolves(world: World) -> None:
    client = world.client
    csrf = re.search(r'name="csrf" value="([^"]+)"', (await client.get("/sagas")).text)
    assert csrf

    async def act(path: str, key: str, **fields: str) -> httpx.Response:
        data = {"csrf": csrf[1], "key": key, **fields}
        return await client.post(f"/sagas/travel/{path}", data=data, headers=SAME_SITE)

    done = await act("Trip/retry", ODD)
    assert done.status_code == 303
    page = (await client.get(done.headers["location"])).text
    assert "It was asked again" in page
    assert "by a person" in page
    assert (await act("Walk/abort", "runs", why=" ")).status_code == 422
    done = await act("Walk/abort", "runs", why=f"late {HOSTILE}")
    page = (await client.get(done.headers["location"])).text
    assert "It is being undone" in page
    assert "It was told to be undone: <bdi>late &lt;script&gt;" in page
    assert "Undo what was done" not in page
    assert (await act("Walk/abort", "runs", why="late")).status_code == 409
    assert (await act("Walk/resolve", "runs", step="go", outcome="undone")).status_code == 422
    done = await act("Walk/resolve", "runs", step="go", outcome="undone", why="seen it")
    page = (await client.get(done.headers["location"])).text
    assert "ends as stopped" in page
    pivot = (await client.get("/sagas/travel/Trip/instance?key=runs")).text
    assert "<bdi>pay</bdi> was asked, which is its pivot" in pivot


async def test_a_reader_may_not_act(world: World) -> None:
    await world.sign_in("read-this")
    page = (await world.client.get("/sagas")).text
    csrf = re.search(r'name="csrf" value="([^"]+)"', page)
    assert csrf
    for act in ("retry", "abort", "resolve"):
        data = {"csrf": csrf[1], "key": "runs", "why": "x"}
        answer = await world.client.post(f"/sagas/travel/Walk/{act}", data=data, headers=SAME_SITE)
        assert answer.status_code == 403


# -- shaping ---------------------------------------------------------------------------------------


def test_a_plan_in_no_possible_order_is_refused() -> None:
    def plan(**behind: tuple[str, ...]) -> Plan:
        steps = tuple(
            PlannedStep(name=name, behind=before, within=1, pivot=False)
            for name, before in behind.items()
        )
        return Plan(name="Odd", steps=steps, ends=("a",), complete="a", undone="")

    assert plan(b=("a",), a=(), c=("b",)).depths() == {"a": 1, "b": 2, "c": 3}
    for odd in ({"a": ("b",), "b": ("a",)}, {"a": ("none",)}):
        with pytest.raises(ValueError, match=r"cycle|not there"):
            plan(**odd)
    good = msgspec.json.encode(plan(a=()))
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(good.replace(b'"complete":"a"', b'"complete":"z"'), type=Plan)


def test_a_count_says_when_there_are_more() -> None:
    assert pages.counted(4_999) == "4\u202f999"
    assert pages.counted(MOST) == "5\u202f000+"


def test_a_place_is_read_from_an_address() -> None:
    place = Place(status=Status.STUCK, changed=1.5, key="a")
    assert pages.place({"at": "stuck", "changed": "1.5", "after": "a"}) == place
    for odd in ({}, {"at": "odd", "changed": "1", "after": "a"}, {"at": "stuck", "changed": "x"}):
        assert pages.place(odd) is None
