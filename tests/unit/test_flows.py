"""Flows: what an identity is, what a journey waits for, and what is not known of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from parts import Placed
from test_console import EVENTS, HOSTILE, TOKEN, project, served

from oyez import Context, Event, Retry, Service, Transaction, testing
from oyez.console.access import Access
from oyez.console.answers import Hear, TakePart
from oyez.console.api import api
from oyez.console.app import console
from oyez.console.flows import Flows, Found
from oyez.console.pages.flow import cure_link, only
from oyez.console.system import System
from oyez.console.timeline import SHOWN, timeline
from oyez.errors import BrokerUnavailable
from oyez.inspection import history, witness
from oyez.inspection.holder import Cure, holder, walk
from oyez.inspection.journey import Journey, JourneyEvent, Location
from oyez.inspection.letters import Letter
from oyez.inspection.reactions import Reaction
from oyez.inspection.sagas import Instance, InstanceSeen
from oyez.inspection.witness import Heard, Known, Part, Recalled
from oyez.ports import Record
from oyez.runtime.admin import admin
from oyez.testing import running


class Taken(Event, type="shop.taken", key="order"):
    order: str


class Reminder(Event, type="shop.reminder", key="order"):
    order: str


def desk() -> Service:
    """Takes an order at once, at its second attempt ("slow…"), later ("late…"), or never."""
    service = Service("desk", publishes=[Taken, Reminder])

    @service.on(Placed, retry=Retry(attempts=2, first=60.0, jitter=0.0))
    async def take(event: Placed, tx: Transaction, context: Context) -> None:
        if event.order.startswith("bad") or (
            event.order.startswith("slow") and context.attempt == 1
        ):
            raise ValueError(f"no {event.order} {HOSTILE}")
        tx.publish(Taken(order=event.order))
        if event.order.startswith("late"):
            tx.publish(Reminder(order=event.order), delay=3600.0)

    return service


def till() -> Service:
    service = Service("till")

    @service.on(Taken)
    def count(event: Taken) -> None: ...

    return service


class World:
    """Services with their admin ports, a console of them, and one that never answers."""

    def __init__(self, system: testing.System, asks: System) -> None:
        self.system = system
        self.asks = asks
        self.flows = Flows(asks, system.ambient)

    async def place(self, order: str) -> str:
        identity = await self.system.publish(Placed(order=order))
        await self.system.settled()
        return identity


@asynccontextmanager
async def world(folder: Path, **silent: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        system = await stack.enter_async_context(running(desk(), till()))
        at = {
            name: await stack.enter_async_context(
                served(admin(each, token=TOKEN, metrics=str, details=_details(each)))
            )
            for name, each in system.processes.items()
        }
        asks = System(project(folder, **silent, **at))
        stack.push_async_callback(asks.close)
        yield World(system, asks)


def _details(process: Any) -> Any:
    return lambda: api(process)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)


# -- whole journeys --------------------------------------------------------------------------------


async def test_a_journey_is_put_together_from_what_each_service_tells(tmp_path: Path) -> None:
    async with world(tmp_path) as there:
        root = await there.place("good")
        await there.place("another")
        assert not (await there.flows.look(root)).over  # its last effects may be on their way
        await there.system.advance(3.0)
        found = await there.flows.find("good")
        assert [correlation for correlation, _ in found.flows] == [root]
        assert (found.gaps, found.limits, found.since) == ((), (), None)
        assert [each for each, _ in (await there.flows.find(root[-8:])).flows] == [root]
        flow = await there.flows.look(root)
        assert flow.journey is not None
        (placed,) = flow.journey.events
        (taken,) = placed.events
        assert [(each.type, each.key) for each in (placed, taken)] == [
            ("shop.placed", "good"), ("shop.taken", "good"),
        ]  # fmt: skip
        told = [(each.service, each.handler, each.state) for each in placed.reactions]
        assert told == [("desk", "take", "handled")]
        assert [(each.service, each.outward) for each in taken.reactions] == [("till", True)]
        assert [place.broker for place in taken.places] == ["embedded"]
        assert flow.holder is not None
        assert (flow.holder.level, flow.over) == ("good", True)
        assert flow.holder.what.startswith("Nobody: all 2 events are settled")
        assert (await there.flows.look("nothing")).journey is None


async def test_who_holds_it_up_changes_with_time_and_each_look_reads_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    hear = witness.hear

    async def counted(*args: Any, **options: Any) -> Heard:
        found = await hear(*args, **options)
        heard.append(len(found.events))
        return found

    monkeypatch.setattr(witness, "hear", counted)
    async with world(tmp_path) as there:
        root = await there.place("slow1")
        flow = await there.flows.look(root)
        assert flow.holder is not None
        assert flow.holder.level == "warn"
        assert flow.holder.what.startswith("desk.take has failed once on shop.placed and tries")
        assert "in 60 s" in flow.holder.what
        assert flow.holder.why == f"ValueError: no slow1 {HOSTILE}"
        assert flow.holder.cure == Cure(kind="service", service="desk")
        assert await there.flows.look(root) is flow  # within two seconds, nobody is asked again
        await there.system.advance(61.0)
        flow = await there.flows.look(root)
        assert flow.journey is not None
        assert [each.type for each in walk(flow.journey.events)] == ["shop.placed", "shop.taken"]
        assert heard == [1, 1]


async def test_a_dead_letter_is_the_first_to_be_named_and_the_next_event_waits(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as there:
        root = await there.place("bad1")
        behind = await there.place("bad1")
        waiting = await there.flows.look(behind)
        assert waiting.holder is not None
        assert waiting.holder.what == (
            "desk.take keeps shop.placed parked behind an earlier event of its key"
        )
        assert waiting.holder.cure == Cure(kind="key", key="bad1")
        await there.system.advance(61.0)
        flow = await there.flows.look(root)
        assert flow.holder is not None
        assert flow.holder.level == "bad"
        assert flow.holder.what == "desk.take gave up on shop.placed after 2 attempts"
        assert flow.holder.cure == Cure(kind="letter", service="desk", letter=1)
        found = await there.flows.find("bad1")
        assert {correlation for correlation, _ in found.flows} == {root, behind}
        assert [letter.id for letter in found.letters] == [1]
        number = await there.flows.find("1")
        assert (number.flows, [letter.id for letter in number.letters]) == ((), [1])


async def test_what_is_announced_for_later_is_told_of(tmp_path: Path) -> None:
    async with world(tmp_path) as there:
        root = await there.place("late1")
        flow = await there.flows.look(root)
        assert flow.holder is not None
        assert (flow.holder.level, flow.over) == ("good", False)
        assert flow.holder.what == "desk announced shop.reminder for later: it is due in 60 min"


# -- what is not known -----------------------------------------------------------------------------


async def test_a_silent_service_is_a_gap_and_another_one_reads_the_history(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, first="127.0.0.1:1") as there:
        root = await there.place("good")
        found = await there.flows.find("good")
        assert [correlation for correlation, _ in found.flows] == [root]
        assert [gap.name for gap in found.gaps] == ["first"]
        flow = await there.flows.look(root)
        assert flow.journey is not None
        assert len(list(walk(flow.journey.events))) == 2
        assert {gap.name for gap in flow.gaps} == {"first"}
        assert flow.holder is not None
        assert (flow.holder.level, flow.over) == ("warn", False)
        assert "first does not" in flow.holder.what


async def test_where_nobody_reads_the_history_the_stores_still_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as there:
        root = await there.place("bad1")
        await there.place("good")
        await there.system.advance(61.0)

        async def hear(*_: object, **__: object) -> Heard:
            return Heard(keeps=False)

        monkeypatch.setattr(witness, "hear", hear)
        assert [each for each, _ in (await there.flows.find("bad1")).flows] == [root]
        flow = await there.flows.look(root)
        assert flow.journey is not None
        assert [each.id for each in flow.journey.events] == [root]
        assert flow.holder is not None
        assert "gave up" in flow.holder.what
        assert "embedded keeps no history" in flow.limits[0]

        async def fail(*_: object, **__: object) -> Heard:
            raise BrokerUnavailable("the broker is away")

        monkeypatch.setattr(witness, "hear", fail)
        assert (await there.flows.find("good")).flows == ()
        flow = await there.flows.look(root)
        await there.system.advance(3.0)
        flow = await there.flows.look(root)
        assert [(gap.part, gap.name) for gap in flow.gaps] == [("broker", "embedded")]
        assert "the broker is away" in flow.gaps[0].reason


# -- one process as a witness ----------------------------------------------------------------------


@asynccontextmanager
async def client() -> AsyncIterator[tuple[httpx.AsyncClient, testing.System]]:
    async with running(desk()) as system:
        process = system.processes["desk"]
        app = admin(process, token=TOKEN, metrics=str, details=lambda: api(process))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://desk/oyez",
            headers={"Authorization": f"Bearer {TOKEN}"},
        ) as made:
            yield made, system


async def test_a_process_tells_of_its_own_broker_and_store() -> None:
    async with client() as (asked, system):
        root = await system.publish(Placed(order="bad1"))
        await system.settled()
        known = msgspec.json.decode((await asked.get("/find?id=bad1")).content, type=Known)
        assert (list(known.correlations), known.letters, known.cut) == ([root], (), False)
        body = msgspec.json.encode(Hear(correlation=root))
        told = msgspec.json.decode((await asked.post("/history", content=body)).content, type=Heard)
        (node,) = told.events
        assert (node.id, node.state, node.places[witness.HERE].position) == (root, "published", 1)
        again = msgspec.json.encode(Hear(correlation=root, after=told.ends))
        more = msgspec.json.decode(
            (await asked.post("/history", content=again)).content, type=Heard
        )
        assert (more.events, more.ends) == ((), told.ends)
        kept = msgspec.json.decode((await asked.get(f"/journey?id={root}")).content, type=Recalled)
        assert [each.id for each in kept.events] == [root]
        body = msgspec.json.encode(TakePart(events=told.events, awaited={}))
        part = msgspec.json.decode((await asked.post("/journey", content=body)).content, type=Part)
        ((identity, _, (reaction,)),) = part.reactions
        assert (identity, reaction.state, reaction.attempts) == (root, "retrying", 1)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/find", None),
        ("GET", f"/find?id={'x' * 513}", None),
        ("GET", "/journey?id=", None),
        ("POST", "/history", b"nonsense"),
        ("POST", "/history", b'{"after": [["s", 0]]}'),
        ("POST", "/journey", b"{}"),
        ("POST", "/journey", b'{"events": [{}], "awaited": {}}'),
    ],
)
async def test_what_is_asked_wrongly_is_refused(method: str, path: str, body: bytes | None) -> None:
    async with client() as (asked, _):
        answer = await asked.request(method, path, content=body)
        assert answer.status_code == 422


async def _records(system: testing.System, count: int) -> None:
    for number in range(count):
        await system.publish_raw(
            {"id": str(number), "type": "shop.other", "source": "/x"}, b"{}", key="k"
        )
        await system.ambient.advance(1.0)


async def test_history_is_read_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "STRETCH", 2)
    async with running(partitions=1) as system:
        await _records(system, 30)
        now = system.ambient.now()

        async def seen(floor: float = 0.0, **options: Any) -> list[int]:
            found: list[Record] = []
            seen = await history.look_back(
                system.broker, found.append, now=now, seconds=5.0, floor=lambda: floor, **options
            )
            assert seen.since is None
            assert seen.ends == {("test.outside", 0): 30}
            return [each.position for each in found]

        assert await seen() == [29, 30, *range(21, 29), *range(1, 21)]
        assert await seen(now - 5.0) == [29, 30, *range(21, 29)]
        assert await seen(after={("test.outside", 0): 27}) == [29, 30, 28]
        await system.publish_raw({"id": "x", "type": "t", "source": "/x"}, b"", service="other")
        found: list[Record] = []
        one = await history.look_back(
            system.broker, found.append, now=now, seconds=5.0, prefix="test.outside", streams=1
        )
        assert (len(found), one.unread) == (30, 1)


@pytest.mark.parametrize("slow", ["hangs", "trickles"])
async def test_a_history_that_takes_too_long_is_cut_and_says_since_when(
    monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    monkeypatch.setattr(history, "STRETCH", 2)
    async with running(partitions=1) as system:
        await _records(system, 30)
        now, found = system.ambient.now(), []
        read = system.broker.read

        async def slowly(stream: str, partition: int, after: int) -> AsyncIterator[Any]:
            if after < 20 and slow == "hangs":
                await asyncio.Event().wait()
            async for batch in read(stream, partition, after):
                for record in batch.records if after < 20 else ():
                    await asyncio.sleep(0.05)
                    yield msgspec.structs.replace(batch, records=[record])
                if after >= 20:
                    yield batch

        monkeypatch.setattr(system.broker, "read", slowly)
        seen = await history.look_back(system.broker, found.append, now=now, seconds=0.5)
        assert 10 <= len(found) < 30
        assert seen.since == found[2].time
        assert [each.position for each in found[:3]] == [29, 30, 21]


# -- who holds it up -------------------------------------------------------------------------------


def event(
    kind: str = "placed",
    *reactions: Reaction,
    state: str = "published",
    due: float | None = None,
    time: float = 100.0,
    caused: tuple[JourneyEvent, ...] = (),
) -> JourneyEvent:
    place = Location(broker="embedded", url="embedded:x", partition=0, position=1, time=time + 1)
    return JourneyEvent(
        id=kind, source="/shop/desk", type=kind, key="4711", time=time, causation=None,
        stream="shop.desk", places=(place,) if state == "published" else (), state=state, due=due,
        reactions=reactions, events=caused,
    )  # fmt: skip


def reaction(state: str, **values: Any) -> Reaction:
    return Reaction(service="pack", handler="box", state=state, **values)


def saga(**values: Any) -> InstanceSeen:
    instance = Instance(
        service="desk", saga="Checkout", key="4711", status="running", step="pay", started=90.0,
        ended=None, changed=95.0, correlationid="c",
    )  # fmt: skip
    return InstanceSeen(
        instance=msgspec.structs.replace(instance, **values.pop("of", {})),
        stuck=values.get("stuck", ""),
        stuck_on=values.get("stuck_on", ""),
    )


DEAD = reaction("dead", letter=7, attempts=1, error="ValueError: no", seen=105.0)
RETRYING = reaction("retrying", attempts=3, due=130.0, error="no answer")
ENDED = {"ended": 99.0, "status": "ended"}


@pytest.mark.parametrize(
    ("found", "sagas", "level", "what", "cure"),
    [
        (event("placed", RETRYING, DEAD), (), "bad", "pack.box gave up on placed after 1 attempt",
         Cure(kind="letter", service="pack", letter=7)),
        (event("placed", RETRYING), (saga(stuck="no answer", stuck_on="pay"),), "bad",
         "The saga Checkout 4711 of desk is stuck on pay",
         Cure(kind="saga", service="desk", saga="Checkout", key="4711")),
        (event("placed", reaction("pending"), RETRYING), (saga(),), "warn",
         "pack.box has failed 3 times on placed and tries again in 10 s",
         Cure(kind="service", service="pack")),
        (event("placed", reaction("due")), (), "warn", "pack.box is about to handle placed",
         Cure(kind="service", service="pack")),
        (event("placed", reaction("waiting")), (), "warn",
         "pack.box keeps placed parked behind an earlier event of its key",
         Cure(kind="key", key="4711")),
        (event("placed", reaction("pending", bridge="east")), (), "warn",
         "Bridge east has not copied placed yet, published 19 s ago",
         Cure(kind="service", service="east")),
        (event("placed", reaction("pending")), (saga(),), "warn",
         "pack.box has not read placed yet, published 19 s ago",
         Cure(kind="service", service="pack")),
        (event("placed", state="outbox"), (), "warn",
         "desk has not published placed yet, which it announced 20 s ago",
         Cure(kind="service", service="desk")),
        (event("placed", state="refused"), (), "bad", "The broker refused placed of desk",
         Cure(kind="service", service="desk")),
        (event("placed", Reaction(service="desk", handler="oyez:outbox", state="dead", letter=3,
                                  error="too large"), state="refused"), (), "bad",
         "The broker refused placed of desk", Cure(kind="letter", service="desk", letter=3)),
        (event("placed", state="held"), (), "bad",
         "desk keeps placed back: the broker refused an earlier event of its key",
         Cure(kind="key", key="4711")),
        (event("placed", state="delayed", due=180.0), (saga(),), "good",
         "desk announced placed for later: it is due in 60 s",
         Cure(kind="service", service="desk")),
        (event("placed", reaction("handled", seen=104.0)), (saga(),), "warn",
         "The saga Checkout 4711 of desk waits for pay, last changed 25 s ago",
         Cure(kind="saga", service="desk", saga="Checkout", key="4711")),
        (event("placed", reaction("handled", seen=104.0)), (saga(of=ENDED),), "good",
         "Nobody: its only event is settled, 4.0 s after it began", None),
        (event("placed", caused=(event("packed", DEAD, time=110.0),)), (), "bad",
         "pack.box gave up on packed after 1 attempt",
         Cure(kind="letter", service="pack", letter=7)),
    ],
)  # fmt: skip
def test_whoever_needs_a_person_is_named_first(
    found: JourneyEvent, sagas: tuple[InstanceSeen, ...], level: str, what: str, cure: Cure | None
) -> None:
    held = holder(Journey(correlation="c", events=(found,)), sagas, 120.0)
    assert (held.level, held.what, held.cure) == (level, what, cure)
    assert held.over == (cure is None)


def test_nobody_is_not_said_where_somebody_was_not_asked() -> None:
    journey = Journey(correlation="c", events=(event("placed", reaction("handled", seen=101.0)),))
    held = holder(journey, (), 120.0, silent=["pack", "till"])
    assert (held.over, "pack, till do not" in held.what) == (False, True)
    held = holder(journey, (), 120.0, blind=["sqs"])
    assert (held.over, "sqs keeps no history" in held.what) == (False, True)
    dead = Journey(correlation="c", events=(event("placed", DEAD),))
    assert holder(dead, (), 120.0, silent=["till"]).level == "bad"


def test_a_cure_is_linked_where_a_screen_has_it() -> None:
    service, one = Cure(kind="service", service="pack"), frozenset({"/services", "/sagas"})
    for paths, wanted in ((frozenset[str](), "/#service-pack"), (one, "/services/pack")):
        link = cure_link(service, paths)
        assert link is not None
        assert link.href == wanted
    instance = Cure(kind="saga", service="desk", saga="A/b", key="../?&")
    assert cure_link(instance, frozenset()) is None
    link = cure_link(instance, one)
    assert link is not None
    assert link.href == "/sagas/desk/A%2Fb/instance?key=..%2F%3F%26"


# -- the time line ---------------------------------------------------------------------------------


def test_the_time_line_has_waits_attempts_and_ends() -> None:
    failed = ({"attempt": 1, "at": 102.0, "error": "x"}, {"attempt": 2, "at": "?"})
    retrying = reaction("retrying", attempts=1, due=140.0, history=failed)
    found = timeline(Journey(correlation="c", events=(event("placed", retrying),)), 120.0)
    assert (found.seconds, found.events, found.key) == (40.0, 1, "4711")
    first, second = found.rows
    assert [(bar.kind, bar.x, bar.width) for bar in first.bars] == [("wait", 0.0, 25.0)]
    assert [(bar.kind, bar.x, bar.width) for bar in second.bars] == [
        ("wait", 25.0, 25.0), ("parked", 50.0, 450.0), ("later", 500.0, 500.0),
    ]  # fmt: skip
    assert [(mark.kind, mark.x) for mark in second.marks] == [("failed", 50.0)]
    unread = Journey(correlation="c", events=(event("placed", reaction("pending")),))
    assert timeline(unread, 160.0).seconds == 60.0
    over = timeline(Journey(correlation="c", events=(event("placed", DEAD),)), 9000.0)
    assert (over.seconds, over.rows[1].marks[-1].kind) == (5.0, "dead")


def test_a_long_journey_is_drawn_in_part_and_odd_clocks_do_no_harm() -> None:
    many = tuple(event(str(number), time=100.0 - number) for number in range(SHOWN + 5))
    deep = event("root", reaction("handled", seen=1.0))
    for _ in range(50):
        deep = event("above", caused=(deep,))
    found = timeline(Journey(correlation="c", events=(*many, deep)), 0.0)
    assert (found.events, found.left_out) == (SHOWN + 56, 56)
    found = timeline(Journey(correlation="c", events=(deep,)), 0.0)
    assert max(row.depth for row in found.rows) == 8
    for row in found.rows:
        assert all(0 <= bar.x <= 1000 and 0 <= bar.width <= 1000 for bar in row.bars)
        assert all(0 <= mark.x <= 1000 for mark in row.marks)


# -- what it is ------------------------------------------------------------------------------------


def letter(number: int, key: str = "4711") -> Letter:
    return Letter(
        service="desk", id=number, time=1.0, type="placed", key=key, handler="take", event_id="e",
        stream="s", partition=0, position=1, attempts=1, reason="no", state="dead", note="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("identity", "flows", "letters", "sagas", "there"),
    [
        ("4711", ["c"], [], [], "/flow?id=c"),
        ("4711", ["a/../?b=&é"], [], [], "/flow?id=a%2F..%2F%3Fb%3D%26%C3%A9"),
        ("4711", ["c"], [letter(7), letter(8)], [saga().instance], "/flow?id=c"),
        ("4711", ["c", "d"], [], [], None),
        ("4711", ["d"], [], [saga().instance], None),
        ("7", [], [letter(7)], [], "/dead/desk/7"),
        ("7", ["c"], [letter(7)], [], None),
        ("7", [], [letter(7), letter(7)], [], None),
        ("4711", [], [], [saga().instance], "/sagas/desk/Checkout/instance?key=4711"),
        ("4711", [], [], [], None),
    ],
)
def test_what_is_one_thing_is_gone_to_at_once(
    identity: str,
    flows: list[str],
    letters: list[Letter],
    sagas: list[Instance],
    there: str | None,
) -> None:
    found = Found(
        flows=tuple((each, 1.0) for each in flows), letters=tuple(letters), sagas=tuple(sagas),
        gaps=(), limits=(), since=None,
    )  # fmt: skip
    assert only(found, identity, frozenset({"/sagas"})) == there


# -- the pages -------------------------------------------------------------------------------------


@asynccontextmanager
async def pages(there: World) -> AsyncIterator[httpx.AsyncClient]:
    project = there.asks.project
    access = Access(project.ambient, name="till", token=TOKEN)
    app = console(there.asks, access, project.ambient)
    app.state.desk.flows = there.flows
    async with served(app) as at, httpx.AsyncClient(base_url=f"http://{at}") as browser:
        headers = {"Sec-Fetch-Site": "same-origin"}
        await browser.post("/sign-in", data={"token": TOKEN}, headers=headers)
        yield browser


async def test_the_pages_of_find_and_flow(tmp_path: Path) -> None:
    async with world(tmp_path) as there, pages(there) as browser:
        root = await there.place("bad1")
        await there.system.advance(61.0)
        box = await browser.get("/find")
        assert box.text.count('type="search" name="q"') == 1
        assert 'type="search" name="q"' in (await browser.get("/dead")).text
        went = await browser.get("/find", params={"q": " bad1 "})
        assert (went.status_code, went.headers["location"]) == (303, f"/flow?id={root}")
        page = await browser.get(went.headers["location"])
        assert "desk.take gave up on shop.placed after 2 attempts" in page.text
        assert 'id="cure" href="/dead/desk/1">' in page.text
        assert f'data-live="/live/flow?id={root}"' in page.text
        assert "&lt;script&gt;alert(1)" in page.text
        assert not {"\u202e", "\u200b", "\x1b"} & set(page.text)
        assert not httpx_unsafe(page.text)
        for odd in ("nothing", "<script>alert(1)</script>", "\u202ex", "9" * 600, "'\"&"):
            for path, name in (("/find", "q"), ("/flow", "id")):
                answer = await browser.get(path, params={name: odd})
                assert "is known" in answer.text
                assert not httpx_unsafe(answer.text)
        assert (await browser.get("/flow")).headers["location"] == "/find"
        await there.place("bad1")
        several = await browser.get("/find", params={"q": "bad1"})
        assert several.status_code == 200
        assert several.text.count('<a href="/flow?id=') == 2
        assert '<a href="/dead/desk/1">' in several.text


async def test_the_page_of_a_flow_names_who_began_it(tmp_path: Path) -> None:
    headers = {
        "specversion": "1.0", "id": "who", "source": "/test/outside", "type": "shop.placed",
        "subject": "good", "authid": "login:<script>ann", "authtype": "app_user",
    }  # fmt: skip
    async with world(tmp_path) as there, pages(there) as browser:
        await there.system.publish_raw(headers, b'{"order": "good"}', key="good")
        await there.system.settled()
        page = await browser.get("/flow?id=who")
        (head,) = re.findall(r"<h2 id=.journey.>(.*?)</h2>", page.text)
        assert re.sub("<[^>]*>", "", head).endswith(" by login:&lt;script&gt;ann"), head
        assert not httpx_unsafe(page.text)


def httpx_unsafe(text: str) -> bool:
    return "<script>" in text or " style=" in text or "<style" in text


async def test_a_flow_is_kept_up_to_date_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as there, pages(there) as browser:
        root = await there.place("slow1")
        async with browser.stream("GET", f"/live/flow?id={root}", headers=EVENTS) as answer:
            lines = answer.aiter_lines()
            text = ""
            async with asyncio.timeout(20):
                while "has failed once" not in text:
                    text = await anext(lines)
                await there.system.advance(61.0)
                while "Nobody: all 2 events are settled" not in text:
                    text = await anext(lines)
                await there.system.advance(3.0)
                rest = [line async for line in lines]  # it ends by itself
        assert "event: over" in rest
        page = await browser.get(f"/flow?id={root}")
        assert "data-live" not in page.text
