"""Views in a running service: filled from the beginning, and swapped when a version is complete."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import httpx
import pytest
from parts import BY
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from oyez import GONE, Event, Gone, Retry, Service, View, applies, tables
from oyez.envelope import format_time
from oyez.errors import (
    BrokerRefused,
    BrokerUnavailable,
    DeclarationError,
    HistoryMissing,
    InvalidEvent,
    Stale,
    StoreRefused,
)
from oyez.observe.metrics import Metrics
from oyez.ports import Changes, Parked, Record
from oyez.runtime import views
from oyez.runtime.admin import admin
from oyez.runtime.audit import list_acts
from oyez.runtime.dead import discard
from oyez.runtime.health import LOOK, STALL, STUCK
from oyez.runtime.process import ServiceProcess
from oyez.runtime.rebuild import LATELY, LEAST, REST, Pace, Whole
from oyez.runtime.views import Versions, prepare
from oyez.signals import Resumed, Signal, Stalled, Trouble, ViewMeasured
from oyez.stores.sqlite import SqliteStore
from oyez.tables import TIMERS
from oyez.testing import VirtualAmbient, running
from oyez.testing.harness import System

G = TypeVar("G", bound=Signal)


class Placed(Event, type="test.placed", key="order"):
    order: str
    customer: str = "c"
    cents: int = 0


class Shipped(Event, type="test.shipped", key="order"):
    order: str


class Noted(Event, type="test.noted", key="order"):
    order: str


class Erased(Event, type="test.erased", key="order"):
    order: str


def orders(version: int = 1, **fields: Any) -> type[View]:
    """A view of orders; ``fields`` are further ones with their defaults."""

    def placed(self: Any, event: Placed) -> None:
        if event.cents < 0:
            raise ValueError("less than nothing")
        self.take(event)

    def shipped(self: Any, event: Shipped) -> None:
        self.status = "shipped"

    def erased(self: Any, event: Erased) -> Gone:
        return GONE

    body = {
        "__annotations__": {
            "order": str,
            "customer": str,
            "cents": int,
            "status": str,
            **{name: type(value) for name, value in fields.items()},
        },
        "__module__": __name__,
        "customer": "",
        "cents": 0,
        "status": "placed",
        **fields,
    }
    body.update({each.__name__: applies(each) for each in (placed, shipped, erased)})  # type: ignore[attr-defined]
    made: type[View] = type(View)(
        "Orders",
        (View,),
        body,
        table="orders_seen",
        key="order",
        version=version,
        index=("status",),
    )
    return made


def desk(view: type[View] | None = None) -> Service:
    service = Service("desk")
    service.view(view or orders())
    return service


async def rows(system: System, table: str = "orders_seen") -> list[tuple[Any, ...]]:
    found = await system.fetch("desk", f'select * from {table} order by "order"')
    return [tuple(row.values()) for row in found]


class TestLive:
    """One version."""

    async def test_a_view_follows_every_stream(self) -> None:
        service = desk()
        async with running(service) as system:
            for number in range(20):
                await system.publish(Placed(order=f"{number:02}", cents=number))
            for number in range(0, 20, 2):
                await system.publish(Shipped(order=f"{number:02}"), service="depot")
            await system.settled()
            for number in range(1, 20, 2):
                await system.publish(Erased(order=f"{number:02}"), service="depot")
            await system.settled()
            assert await rows(system) == [(f"{n:02}", "c", n, "shipped") for n in range(0, 20, 2)]
            assert await service.fetch(
                "select cents from orders_seen where status = :s and cents > 15 order by cents",
                s="shipped",
            ) == [{"cents": 16}, {"cents": 18}]
            readers = await system.fetch("desk", "select distinct reader from oyez_cursor")
            assert {row["reader"] for row in readers} == {"", "view:orders_seen@1"}

    async def test_it_reads_what_was_there_before_its_service(self) -> None:
        """Also in a service that has long been reading."""
        service = desk()
        seen = []

        @service.on(Placed)
        async def place(event: Placed) -> None:
            seen.append(event.order)

        async with running(Service("other")) as system:
            for number in range(600):
                await system.publish(Placed(order=f"{number:03}"))
            broker = system.broker
        async with running(service) as system:
            for log in broker.logs["test.outside"]:
                await system.broker.publish(log)
            await system.settled()
            assert len(await rows(system)) == 600
            assert len(seen) == 600

    async def test_an_event_counts_once_however_often_it_is_published(self) -> None:
        class Counted(View, table="counted", key="order"):
            order: str
            times: int = 0

            @applies
            def placed(self, event: Placed) -> None:
                self.times += 1

        service = Service("desk")
        service.view(Counted)
        async with running(service) as system:
            await system.publish(Placed(order="a"))
            await system.settled()
            ((record,),) = [log for log in system.broker.logs["test.outside"] if log]
            await system.broker.publish([record, record])
            await system.settled()
            assert await rows(system, "counted") == [("a", 1)]

    async def test_an_event_that_fails_is_a_dead_letter_of_the_view(self) -> None:
        service = desk()

        @service.on(Placed, retry=Retry(attempts=1))
        async def place(event: Placed) -> None: ...

        async with running(service) as system:
            for cents in (1, -1, 2):
                await system.publish(Placed(order="a", cents=cents))
            await system.settled()
            assert await rows(system) == [("a", "c", 2, "placed")]
            (letter,) = await system.dead("desk")
            assert letter["handler"] == "view:orders_seen@1"
            assert "less than nothing" in letter["reason"]

    async def test_changed_columns_need_a_version(self) -> None:
        async with running(desk()) as system:
            process = system.processes["desk"]
            await prepare(process.store, tuple(desk().views), process.ambient)
            changed = tuple(desk(orders(weight=0)).views)
            with pytest.raises(StoreRefused, match=r"version 1 has a table of other .*version=2"):
                await prepare(process.store, changed, process.ambient)

    async def test_without_history_the_first_version_is_the_only_one(self) -> None:
        """The rest is told by tests/conformance/test_views_without_history.py, on real queues."""
        async with running(desk()) as system:
            views = system.processes["desk"].views
            views.live = dict(desk().views)
            views.check()
            views.live = dict(desk(orders(version=2)).views)
            with pytest.raises(BrokerRefused, match="keep version=1, or give it the name of an"):
                views.check()


async def deploy(system: System, service: Service) -> ServiceProcess:
    """Replace the process of a service by one of this code, on the same store."""
    old = system.processes[service.name]
    store = old.store
    assert isinstance(store, SqliteStore)
    await old.drain()
    new = ServiceProcess(
        service,
        old.settings,
        broker=system.broker,
        store=SqliteStore(store._file.path, system.ambient, inline=True, durable=False),
        ambient=system.ambient,
        signals=system.bus,
    )
    await new.start()
    system.processes[service.name] = new
    return new


class TestVersions:
    """One version after the other, on one store."""

    async def test_a_version_is_shown_when_it_has_caught_up(self) -> None:
        async with running(desk()) as system:
            for number in range(300):
                await system.publish(Placed(order=f"{number:03}", cents=number))
            await system.settled()
            process = await deploy(system, desk(orders(2, weight=7)))
            try:
                assert process.views.versions["orders_seen"] == Versions(
                    1, system.ambient.now(), 0, (1, 2)
                )
                assert (await rows(system))[0] == ("000", "c", 0, "placed")
                await system.settled()
                await system.advance(2.0)
                found = process.views.versions["orders_seen"]
                assert (found.active, found.tables) == (2, (1, 2))
                assert (await rows(system))[0] == ("000", "c", 0, "placed", 7)
                assert len(await rows(system)) == 300
                assert (await rows(system, "orders_seen__1"))[0] == ("000", "c", 0, "placed")
            finally:
                await process.drain()

    async def test_a_dead_letter_stops_the_swap(self) -> None:
        service = Service("desk")

        class Simple(View, table="orders_seen", key="order"):
            order: str

            @applies
            def placed(self, event: Placed) -> None: ...

        service.view(Simple)
        async with running(service) as system:
            await system.publish(Placed(order="a", cents=-1))
            await system.publish(Placed(order="b", cents=1))
            await system.settled()
            process = await deploy(system, desk(orders(2)))
            try:
                await system.settled()
                await system.advance(5.0)
                assert process.views.versions["orders_seen"].active == 1
                assert await rows(system) == [("a",), ("b",)]
                (letter,) = await system.dead("desk")
                await discard(process.store, letter["id"], system.ambient, by=BY)
                await system.advance(2.0)
                assert await rows(system) == [("b", "c", 1, "placed")]
            finally:
                await process.drain()

    async def test_going_back_lasts_until_a_newer_version(self) -> None:
        async with running(desk()) as system:
            await system.publish(Placed(order="a"))
            await system.settled()
            process = await deploy(system, desk(orders(2, weight=7)))
            await system.settled()
            await system.advance(2.0)
            assert await rows(system) == [("a", "c", 0, "placed", 7)]
            assert (
                await views.go_back(process.store, "orders_seen", system.ambient.now(), by=BY) == 1
            )
            await system.advance(2.0)
            assert await rows(system) == [("a", "c", 0, "placed")]
            assert process.views.versions["orders_seen"].left == 2
            with pytest.raises(StoreRefused, match="orders_seen has no older version to go back"):
                await views.go_back(process.store, "orders_seen", system.ambient.now(), by=BY)
            (act,) = await list_acts(process.store)  # the service's own swap is not one
            assert (act.act, act.target) == ("view.back", "view orders_seen")
            assert (act.before, act.after) == ({"version": 2}, {"version": 1})
            with pytest.raises(StoreRefused, match="view odd has no older version"):
                await views.go_back(process.store, "odd", system.ambient.now(), by=BY)
            process = await deploy(system, desk(orders(3, width=9)))
            await system.settled()
            await system.advance(2.0)
            assert await rows(system) == [("a", "c", 0, "placed", 9)]
            await process.drain()

    async def test_what_was_replaced_is_dropped_and_can_begin_anew(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(views, "KEPT", 100.0)
        async with running(desk()) as system:
            for number in range(3):
                await system.publish(Placed(order=str(number)))
            await system.settled()
            process = await deploy(system, desk(orders(2, weight=7)))
            await system.settled()
            await system.advance(62.0)
            assert len(await rows(system, "orders_seen__1")) == 3
            await system.advance(62.0)
            assert process.views.versions["orders_seen"].tables == (2,)
            left = [
                await system.fetch("desk", f"select * from {table} where {column} like '%@1%'")
                for table, column in (
                    ("oyez_state", "kind"),
                    ("oyez_inbox", "reader"),
                    ("oyez_cursor", "reader"),
                    ("oyez_migration", "name"),
                    ("sqlite_master", "name"),
                )
            ]
            assert left == [[], [], [], [], []]
            assert len(await rows(system)) == 3
            process = await deploy(system, desk())
            await system.settled()
            assert len(await rows(system, "orders_seen__1")) == 3
            assert process.views.versions["orders_seen"].active == 2
            await process.drain()

    async def test_a_version_that_is_being_dropped_does_not_begin(self) -> None:
        async with running(desk()) as system:
            process = system.processes["desk"]
            mark = {"name": "oyez:view:orders_seen@1", "mark": "dropping", "now": 0.0}
            await process.store.begin().commit(Changes(writes=[(tables.CHANGE_MARK, [mark])]))
            with pytest.raises(StoreRefused, match="version 1 is being dropped"):
                await prepare(process.store, tuple(desk().views), process.ambient)


class TestPace:
    """A view that catches up beside live events."""

    async def test_it_takes_all_where_it_is_alone(self) -> None:
        took = await self.filled(VirtualAmbient(), {}, 3, 100, alone=True)
        assert took == [(0.1, 100)] * 3

    async def test_it_takes_all_while_no_event_is_live(self) -> None:
        took = await self.filled(VirtualAmbient(), lanes_of(2), 3, 100, after=LATELY)
        assert took == [(0.1, 100), (0.2, 100), (0.3, 100)]

    @pytest.mark.parametrize("live", [False, True])
    async def test_else_it_takes_few_and_rests_longer_than_it_works(self, live: bool) -> None:
        ambient, lanes = VirtualAmbient(), lanes_of(2)
        lanes["test.till", 1].idle = not live
        took = await self.filled(ambient, lanes, 2, 100, after=LATELY if live else 0.0)
        assert sum(count for _, count in took) == 200
        assert max(count for _, count in took) == LEAST
        assert took[-1][0] >= 0.001 * 200 * (1 + REST) - 0.001 * LEAST * REST

    async def filled(
        self,
        ambient: VirtualAmbient,
        lanes: dict[Any, Any],
        tasks: int,
        count: int,
        *,
        after: float = 0.0,
        alone: bool = False,
    ) -> list[tuple[float, int]]:
        """When each part was done, in seconds, and how many of that many events it had."""
        pace, done = Pace(ambient, lanes, alone=alone), list[tuple[float, int]]()
        await ambient.advance(after)
        begun = ambient.monotonic()

        async def work(records: Sequence[Record]) -> int:
            await ambient.sleep(0.001 * len(records))
            done.append((round(ambient.monotonic() - begun, 3), len(records)))
            return len(records)

        records: Any = list(range(count))
        runs = [asyncio.create_task(pace.run(records, work)) for _ in range(tasks)]
        while not all(run.done() for run in runs):
            await ambient.advance(0.001)
        assert [run.result() for run in runs] == [count] * tasks
        return done


def lanes_of(count: int) -> dict[Any, Any]:
    """That many idle lanes of a process's handlers, which have moved at 0, and one for timers."""
    lanes: dict[Any, Any] = {(TIMERS, 0): SimpleNamespace(idle=False, moved=1e9)}
    for number in range(count):
        lanes["test.till", number] = SimpleNamespace(idle=True, moved=0.0)
    return lanes


class TestHealth:
    """Partitions of a view that stand still are told of, as those of the handlers are."""

    async def test_a_partition_of_a_view_that_stands_still(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        goes_on, take = asyncio.Event(), Whole.take

        async def wait(self: Whole, batch: Any) -> int:
            await goes_on.wait()
            return await take(self, batch)

        monkeypatch.setattr(Whole, "take", wait)
        async with running(desk()) as system:
            try:
                await system.publish(Placed(order="a"))
                health = system.processes["desk"].health
                await pass_time(system, STALL)
                assert health.readiness() == []
                await pass_time(system, LOOK * 2)
                (stalled,) = heard(system, Stalled)
                place = f"{stalled.stream}[{stalled.partition}]"
                assert stalled.reader == "view:orders_seen@1"
                (reason,) = health.readiness()
                assert reason.startswith(f"view:orders_seen@1 of {place} has made no progress for ")
                assert health.lag() == {}
                assert health.liveness() == []
                await pass_time(system, STUCK)
                assert health.liveness() == [f"view:orders_seen@1 of {place} is stuck"]
                goes_on.set()
                await pass_time(system, LOOK * 2)
                assert (health.readiness(), health.liveness()) == ([], [])
                assert [each.reader for each in heard(system, Resumed)] == ["view:orders_seen@1"]
            finally:
                goes_on.set()

    async def test_a_view_whose_history_is_missing_is_not_restarted_for_it(self) -> None:
        async with running(desk()) as system:
            process, broker = system.processes["desk"], system.broker

            async def starts(stream: str) -> list[int]:
                return [3] * len(broker.logs.get(stream, []))

            broker.starts = starts  # type: ignore[method-assign]
            await system.publish(Placed(order="a"))
            await pass_time(system, STUCK * 2)
            assert process.views.problems() != []
            assert process.health.readiness() == process.health.liveness() == []

    async def test_claims_of_a_view_that_are_not_swept(self) -> None:
        async with running(desk()) as system:
            process = system.processes["desk"]
            process.views.rebuilds[0].claims.kill()
            await pass_time(system, STALL + LOOK)
            assert process.health.readiness() == [
                "claims of view:orders_seen@1 have not been swept for 25 s: see the log"
            ]


async def pass_time(system: System, seconds: float) -> None:
    """Let the clock go on, though something stands still."""
    for _ in range(int(seconds / LOOK)):
        await system.ambient.advance(LOOK)


class TestHistory:
    """What retention has left of a stream."""

    async def test_a_view_is_not_filled_from_the_middle(self) -> None:
        service = desk()
        async with running(service) as system:
            process = system.processes["desk"]
            broker = system.broker

            async def starts(stream: str) -> list[int]:
                return [3] * len(broker.logs.get(stream, []))

            broker.starts = starts  # type: ignore[method-assign]
            await system.publish(Placed(order="a"))
            await system.settled()
            ((stream, partition),) = process.views.rebuilds[0].missing
            assert process.views.problems() == [
                "view orders_seen version 1 can't be filled: retention has deleted the first 3 "
                f"records of {stream}[{partition}]: see `oyez view begin desk orders_seen`"
            ]
            assert await rows(system) == []
            app = admin(process, token="t", metrics=Metrics().render)
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
                answer = await http.get("/readyz")
            assert answer.status_code == 503
            assert "the first 3 records" in answer.text
            assert any("view:orders_seen@1" in t.error for t in heard(system, Trouble))
            del broker.starts
            await system.advance(10.0)
            assert process.views.problems() == []
            assert await rows(system) == [("a", "c", 0, "placed")]

    async def test_how_far_a_view_is_behind_is_measured(self) -> None:
        async with running(desk()) as system:
            await system.publish(Placed(order="a"))
            await system.advance(6.0)
            last = heard(system, ViewMeasured)[-1]
            assert (last.view, last.version, last.seconds) == ("orders_seen", 1, 0.0)
            view = system.processes["desk"].views.rebuilds[0]
            for lane in view.lanes.values():
                lane.position = min(lane.position, 0)
            await system.ambient.advance(20.0)
            assert 15.0 <= await view.staleness() <= 30.0


def heard(system: System, kind: type[G]) -> list[G]:
    """The signals of that kind."""
    return [signal for signal in system.signals if isinstance(signal, kind)]


class TestStaleness:
    """`Service.staleness`: over all partitions, whoever reads them."""

    async def test_it_is_the_age_of_the_oldest_event_that_is_not_applied(self) -> None:
        service = desk()
        cls = orders_of(service)
        async with running(service) as system:
            assert await service.staleness(cls) == 0.0
            await system.publish(Placed(order="a"))
            await system.settled()
            assert await service.staleness(cls) == 0.0
            process = system.processes["desk"]
            await process.views.stop()  # as if another replica had the partitions, and hung
            process.views.rebuilds[0].lanes.clear()
            for order in ("b", "c"):
                await system.ambient.advance(10.0)
                await system.publish(Placed(order=order))
            await system.ambient.advance(5.0)
            assert 15.0 <= await service.staleness(cls) < 16.0

    async def test_events_that_the_view_does_not_apply_do_not_make_it_stale(self) -> None:
        service = desk()
        async with running(service) as system:
            await system.publish(Placed(order="a"))
            await system.settled()
            process = system.processes["desk"]
            await process.views.stop()
            process.views.rebuilds[0].lanes.clear()
            await system.publish(Noted(order="a"))
            await system.ambient.advance(5.0)
            assert await service.staleness(orders_of(service)) == 0.0

    async def test_a_parked_event_counts_from_its_own_time(self) -> None:
        service = desk()
        async with running(service) as system:
            await system.publish(Placed(order="a"))
            await system.settled()
            process = system.processes["desk"]
            await process.views.stop()
            headers = {"time": format_time(system.ambient.now() - 60.0)}
            parked = Parked(
                event_id="e",
                source="s",
                handler="view:orders_seen@1",
                stream="test.outside",
                partition=0,
                position=1,
                chain=None,
                due=system.ambient.now() + 900.0,
                attempt=0,
                history=[],
                key="a",
                headers=headers,
                data=b"{}",
                reader="view:orders_seen@1",
            )
            changes = Changes(parked=[parked], time=system.ambient.now())
            await process.store.begin().commit(changes)
            assert await service.staleness(orders_of(service)) == pytest.approx(60.0, abs=0.1)

    async def test_what_is_not_known_is_not_called_fresh(self) -> None:
        service = desk()
        async with running(service) as system:
            await system.publish(Placed(order="a"))
            await system.settled()
            broker = system.broker

            async def lag(stream: str, positions: object) -> dict[int, int]:
                raise BrokerUnavailable("no answer")

            broker.lag = lag  # type: ignore[method-assign,assignment]
            with pytest.raises(BrokerUnavailable):
                await service.staleness(orders_of(service))
            del broker.lag
            await clear_positions(system)

            async def starts(stream: str) -> list[int]:
                return [3] * len(broker.logs.get(stream, []))

            broker.starts = starts  # type: ignore[method-assign]
            with pytest.raises(HistoryMissing, match="deleted the first 3 records"):
                await service.staleness(orders_of(service))
            with pytest.raises(DeclarationError, match=r"add service\.view\(Orders\)"):
                await service.staleness(orders_of(desk()))


async def clear_positions(system: System) -> None:
    """Let the view begin anew, in a process that reads nothing for it."""
    process = system.processes["desk"]
    await process.views.stop()
    process.views.rebuilds[0].lanes.clear()
    gone = [(tables.DELETE_CURSORS, [{"reader": "view:orders_seen@1"}])]
    await process.store.begin().commit(Changes(writes=gone))


class TestReads:
    """`Service.read` of a view, and the token of an answer."""

    async def test_a_request_reads_what_it_has_written(self) -> None:
        service = desk()

        async def place(request: Request) -> Response:
            async with service.transaction() as tx:
                tx.publish(Placed(order="a", cents=7))
                tx.publish(Noted(order="a"))
                tx.publish(Shipped(order="a"))
                tx.publish(Placed(order="b"), delay=60.0)
            return PlainTextResponse("accepted", status_code=202)

        async def look(request: Request) -> Response:
            after = request.headers["oyez-after"]
            row = await service.read(orders_of(service), "a", after=after)
            assert row is not None
            return PlainTextResponse(row.status)

        service.http = Starlette(
            routes=[Route("/", place, methods=["POST"]), Route("/", look, methods=["GET"])]
        )
        async with running(service) as system, system.http("desk") as http:
            answer = await http.post("/")
            token = answer.headers["oyez-after"]
            assert [entry.split(";")[2] for entry in token.split(", ")] == [
                "test.placed",
                "test.noted",
                "test.shipped",
            ]
            seen = await http.get("/", headers={"oyez-after": token})
            assert (seen.text, "oyez-after" in seen.headers) == ("shipped", False)

    async def test_a_view_that_does_not_catch_up_in_time_is_stale(self) -> None:
        service = desk()
        cls = orders_of(service)
        async with running(service) as system:
            await system.publish(Placed(order="a"))
            await system.settled()
            assert await service.read(cls, "a") == cls(order="a", customer="c")
            assert await service.read(cls, "z") is None
            unknown = f"/test/till;{system.ambient.new_id()}"
            reading = asyncio.create_task(service.read(cls, "a", after=unknown, wait=0.05))
            for _ in range(4):
                await system.ambient.advance(0.025)
            with pytest.raises(Stale, match="view orders_seen has not applied") as caught:
                await reading
            assert caught.value.seconds == 0.05
            assert caught.value.transient
            assert 0.05 <= caught.value.behind <= 0.2

    async def test_an_answer_from_a_view_that_is_behind_says_so(self) -> None:
        service = desk()

        async def look(request: Request) -> Response:
            after = request.headers["oyez-after"]
            row = await service.read(orders_of(service), "a", after=after, wait=0.0, strict=False)
            await service.caught_up(orders_of(service), after="", strict=True)
            assert row is not None
            return PlainTextResponse(row.status)

        service.http = Starlette(routes=[Route("/", look)])
        async with running(service) as system, system.http("desk") as http:
            event_id = await system.publish(Placed(order="a"))
            await system.settled()
            unknown = f"/test/till;{system.ambient.new_id()}"
            await system.ambient.advance(1.75)
            answer = await http.get("/", headers={"oyez-after": unknown})
            assert (answer.text, answer.headers["oyez-stale"]) == ("placed", "1.8")
            known = f"/test/outside;{event_id}"
            answer = await http.get("/", headers={"oyez-after": known})
            assert (answer.text, "oyez-stale" in answer.headers) == ("placed", False)

    async def test_what_the_inbox_can_not_tell_of_counts_as_seen(self) -> None:
        service = desk()
        cls = orders_of(service)
        async with running(service) as system:
            event_id = await system.publish(Placed(order="a"))
            await system.settled()
            (row,) = await system.fetch("desk", "select source from oyez_inbox")
            for token in (
                f"{row['source']};{event_id}",
                f"{row['source']};{event_id};test.placed",
                f"/test/till;{system.ambient.new_id()};test.noted",
                "/test/till;01890000-0000-7000-8000-000000000000",
                "",
            ):
                assert await service.read(cls, "a", after=token, wait=0.0) is not None
            with pytest.raises(DeclarationError, match=r"add service\.view\(Orders\)"):
                await service.read(orders_of(desk()), "a")
            for wrong in ("x", "a;b;c;d", "a; b", ", ".join(["a;b"] * 17)):
                with pytest.raises(InvalidEvent, match="after: expected the header Oyez-After"):
                    await service.read(cls, "a", after=wrong)

    async def test_while_a_version_is_filled_the_active_one_is_read(self) -> None:
        class Simple(View, table="orders_seen", key="order"):
            order: str
            status: str = "as of old"

            @applies
            def placed(self, event: Placed) -> None: ...

        service = Service("desk")
        service.view(Simple)
        async with running(service) as system:
            await system.publish(Placed(order="a", cents=-1))
            await system.settled()
            newer = desk(orders(2))
            cls = orders_of(newer)
            process = await deploy(system, newer)
            try:
                await system.settled()
                await system.advance(2.0)
                assert await newer.read(cls, "a") == cls(order="a", status="as of old")
            finally:
                await process.drain()


def orders_of(service: Service) -> Any:
    """The class of the service's only view."""
    (kind,) = service.views
    return kind.cls
