"""Views in a running service: filled from the beginning, and swapped when a version is complete."""

from typing import Any

import pytest

from oyez import GONE, Event, Gone, Retry, Service, View, applies
from oyez.errors import BrokerRefused, StoreRefused
from oyez.runtime.dead import discard
from oyez.runtime.process import ServiceProcess
from oyez.runtime.views import Versions
from oyez.stores.sqlite import SqliteStore
from oyez.testing import running
from oyez.testing.harness import System


class Placed(Event, type="test.placed", key="order"):
    order: str
    customer: str = "c"
    cents: int = 0


class Shipped(Event, type="test.shipped", key="order"):
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
            await process.views.prepare()
            process.views._rebuilds[0].kind = desk(orders(weight=0)).views.popitem()[0]
            with pytest.raises(StoreRefused, match=r"version 1 has a table of other .*version=2"):
                await process.views.prepare()

    async def test_a_broker_without_history_is_refused(self) -> None:
        async with running(desk()) as system:
            process = system.processes["desk"]
            process.views.check()
            process.broker = None  # type: ignore[assignment]
            process.views._broker = _Queue()  # type: ignore[assignment]
            with pytest.raises(BrokerRefused, match="move orders_seen to a service on one that"):
                process.views.check()
            process.broker = system.broker


class _Queue:
    class capabilities:  # noqa: N801
        history = False


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
                await discard(process.store, letter["id"], "an error of the till")
                await system.advance(2.0)
                assert await rows(system) == [("b", "c", 1, "placed")]
            finally:
                await process.drain()
