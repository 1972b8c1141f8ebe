"""What a team writes against: handlers of every kind, providers, and HTTP sides of every make."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from litestar import Litestar, post
from litestar.params import JSONBody
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from oyez import Context, Event, InvalidEvent, Retry, Service, Transaction, event
from oyez.errors import DeclarationError
from oyez.ports import Changes, Parked, Record
from oyez.testing import running


class Placed(Event, type="test.placed", key="order"):
    order: str


class Paid(Event, type="test.paid", key="order"):
    order: str


@event(type="test.noted", key="order")
@dataclass(frozen=True)
class Noted:
    order: str


async def test_returned_and_yielded_events_of_every_kind_of_handler() -> None:
    service = Service("kinds")

    @service.on(Placed, name="returns")
    async def returns(event: Placed, tx: Transaction) -> Paid:
        return Paid(order=f"{event.order}-returned")

    @service.on(Placed, name="lists")
    def lists(event: Placed, tx: Transaction) -> list[Paid | Noted]:
        return [Paid(order=f"{event.order}-listed"), Noted(order=event.order)]

    @service.on(Placed, name="yields")
    def yields(event: Placed) -> Iterator[Paid]:
        yield Paid(order=f"{event.order}-yielded")

    @service.on(Placed, name="yields_async")
    async def yields_async(event: Placed) -> AsyncIterator[Paid]:
        yield Paid(order=f"{event.order}-yielded-async")

    async with running(service) as system:
        await system.publish(Placed(order="1"))
        await system.settled()
        assert sorted(paid.order for paid in system.announced(Paid)) == [
            "1-listed",
            "1-returned",
            "1-yielded",
            "1-yielded-async",
        ]
        assert system.announced(Noted) == [Noted(order="1")]
        assert {event.causationid for event in system.history() if event.causationid} == {
            event.id for event in system.history() if event.type == "test.placed"
        }


async def test_a_batch_handler_gets_what_has_arrived() -> None:
    service = Service("batches")
    sizes: list[int] = []

    @service.on(Placed, batch=True)
    async def count(events: list[Placed], tx: Transaction) -> list[Paid]:
        sizes.append(len(events))
        return [Paid(order=event.order) for event in events]

    async with running(service, partitions=1) as system:
        for number in range(300):
            await system.broker.publish([])
            await system.publish(Placed(order=str(number)))
        await system.settled()
        assert sum(sizes) == 300
        assert [paid.order for paid in system.announced(Paid)] == [str(n) for n in range(300)]


async def test_one_bad_event_of_a_batch_fails_alone() -> None:
    service = Service("batches")

    @service.on(Placed, batch=True, retry=Retry(attempts=1))
    async def count(events: list[Placed], tx: Transaction) -> list[Paid]:
        if any(event.order == "3" for event in events):
            raise ValueError("not 3")
        return [Paid(order=event.order) for event in events]

    async with running(service, partitions=1) as system:
        for number in range(5):
            await system.publish(Placed(order=str(number)))
        await system.settled()
        assert [paid.order for paid in system.announced(Paid)] == ["0", "1", "2", "4"]
        assert [letter["key"] for letter in await system.dead("batches")] == ["3"]


async def test_later_events_of_a_failing_key_wait_behind_it_and_others_flow() -> None:
    service = Service("order")
    handled: list[str] = []
    failing = {"a1"}

    @service.on(Placed, retry=Retry(attempts=5, first=10.0, jitter=0.0))
    async def handle(event: Placed, tx: Transaction) -> None:
        if event.order in failing:
            raise ValueError("not yet")
        handled.append(event.order)

    async with running(service, partitions=1) as system:
        for order, key in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")):
            await system.publish(Placed(order=order), key=key)
        await system.settled()
        assert [name for name in handled if name[0] == "b"][-2:] == ["b1", "b2"]
        assert not [name for name in handled if name[0] == "a"]
        await system.publish(Placed(order="a3"), key="a")
        failing.clear()
        await system.advance(10.0)
        assert [name for name in handled if name[0] == "a"] == ["a1", "a2", "a3"]


async def test_without_order_later_events_overtake_a_failing_one() -> None:
    service = Service("order")
    handled: list[str] = []
    failing = {"1"}

    @service.on(Placed, order="none", retry=Retry(first=10.0, jitter=0.0))
    async def handle(event: Placed, tx: Transaction) -> None:
        if event.order in failing:
            raise ValueError("not yet")
        handled.append(event.order)

    async with running(service, partitions=1) as system:
        for order in ("1", "2", "3"):
            await system.publish(Placed(order=order), key="k")
        await system.settled()
        assert handled[-2:] == ["2", "3"]
        failing.clear()
        await system.advance(10.0)
        assert handled[-1] == "1"


async def test_a_handler_that_hangs_times_out_and_is_retried() -> None:
    service = Service("slow")
    attempts: list[int] = []

    @service.on(Placed, timeout=5.0, retry=Retry(attempts=2, first=1.0, jitter=0.0))
    async def hang(event: Placed, context: Context) -> None:
        attempts.append(context.attempt)
        await system.ambient.sleep(3600.0)

    async with running(service) as system:
        await system.publish(Placed(order="1"))
        await system.ambient.advance(20.0)
        await system.settled()
        assert attempts == [1, 2]
        (letter,) = await system.dead("slow")
        assert "HandlerTimeout" in letter["reason"]


async def test_a_delayed_event_comes_when_it_is_due() -> None:
    service = Service("delays")

    @service.on(Placed)
    async def later(event: Placed, tx: Transaction) -> None:
        tx.publish(Paid(order=event.order), delay=3600.0)

    async with running(service) as system:
        await system.publish(Placed(order="1"))
        await system.settled()
        await system.advance(3599.0)
        assert system.announced(Paid) == []
        await system.advance(1.0)
        assert system.announced(Paid) == [Paid(order="1")]


async def test_a_broker_that_is_down_delays_and_loses_nothing() -> None:
    service = Service("patient")

    @service.on(Placed)
    async def pay(event: Placed, tx: Transaction) -> Paid:
        return Paid(order=event.order)

    async with running(service) as system:
        process = system.processes["patient"]
        system.broker.interrupt(True)
        async with service.transaction() as tx:
            tx.publish(Placed(order="1"))
        await system.ambient.advance(40.0)
        await process.health.look()
        assert any("broker" in reason for reason in process.health.readiness())
        assert process.health.liveness() == []
        system.broker.interrupt(False)
        await system.advance(30.0)
        assert system.announced(Paid) == [Paid(order="1")]
        await process.health.look()
        assert process.health.readiness() == []


async def test_a_stalled_partition_fails_readiness_within_30_seconds() -> None:
    service = Service("stalled")

    @service.on(Placed, timeout=None)
    async def hang(event: Placed, tx: Transaction) -> None:
        await system.ambient.sleep(100.0)

    async with running(service) as system:
        await system.publish(Placed(order="1"))
        await system.ambient.advance(30.0)
        process = system.processes["stalled"]
        assert any("no progress" in reason for reason in process.health.readiness())
        await system.ambient.advance(100.0)
        await system.settled()
        await process.health.look()
        assert process.health.readiness() == []


async def test_an_outbox_that_stands_still_fails_readiness_within_30_seconds() -> None:
    """Although no relay is there to say so (G5)."""
    service = Service("mute")

    async with running(service) as system:
        process = system.processes["mute"]
        await system.ambient.advance(1.0)
        assert process.claims.relay is not None
        process.claims.relay.kill()
        async with service.transaction() as tx:
            tx.publish(Placed(order="1"))
        await system.ambient.advance(30.0)
        assert any("outbox has made no progress" in r for r in process.health.readiness())
        await process.kill()


class Clock:
    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False


async def test_providers_are_made_once_handed_over_by_type_and_closed() -> None:
    service = Service("provided")
    clock = Clock("real")

    @service.provides
    async def a_clock() -> AsyncIterator[Clock]:
        yield clock
        clock.closed = True

    @service.on(Placed)
    async def tell(clock: Clock, event: Placed, tx: Transaction, context: Context) -> Paid:
        return Paid(order=f"{clock.name}-{context.attempt}")

    async with running(service) as system:
        await system.publish(Placed(order="1"))
        await system.settled()
        assert system.announced(Paid) == [Paid(order="real-1")]
    assert clock.closed
    async with running(service, provide={Clock: Clock("fake")}) as system:
        await system.publish(Placed(order="1"))
        await system.settled()
        assert system.announced(Paid) == [Paid(order="fake-1")]


async def test_a_class_provides_itself() -> None:
    service = Service("provided")
    made: list[object] = []

    @service.provides
    class Counter:
        def __init__(self) -> None:
            made.append(self)

    async def tell(event: Placed, counter: Counter) -> Paid:
        return Paid(order=str(made.index(counter)))

    tell.__annotations__ = {"event": Placed, "counter": Counter, "return": Paid}
    service.on(Placed)(tell)
    async with running(service) as system:
        for order in ("1", "2"):
            await system.publish(Placed(order=order))
        await system.settled()
        assert system.announced(Paid) == [Paid(order="0"), Paid(order="0")]
    assert len(made) == 1


async def test_a_handler_whose_parameter_nobody_provides_is_told_at_the_start() -> None:
    service = Service("provided")

    @service.on(Placed)
    async def tell(event: Placed, clock: Clock) -> None: ...

    with pytest.raises(DeclarationError, match=r"provided\.tell asks for Clock"):
        async with running(service):
            pass


def starlette_app(service: Service) -> Any:
    async def place(request: Request) -> JSONResponse:
        async with service.transaction() as tx:
            tx.publish(Placed(order=(await request.json())["order"]))
        return JSONResponse({}, status_code=202)

    return Starlette(routes=[Route("/orders", place, methods=["POST"])])


def fastapi_app(service: Service) -> Any:
    app = FastAPI()

    @app.post("/orders", status_code=202)
    async def place(body: dict[str, str]) -> dict[str, str]:
        async with service.transaction() as tx:
            tx.publish(Placed(order=body["order"]))
        return {}

    return app


def litestar_app(service: Service) -> Any:
    @post("/orders", status_code=202)
    async def place(data: JSONBody[dict[str, str]]) -> dict[str, str]:
        async with service.transaction() as tx:
            tx.publish(Placed(order=data["order"]))
        return {}

    return Litestar([place])


@pytest.mark.parametrize("make", [starlette_app, fastapi_app, litestar_app])
async def test_any_asgi_app_announces_with_its_transaction(make: Any) -> None:
    service = Service("orders", publishes=(Placed,))
    service.http = make(service)
    async with running(service) as system:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        async with system.http("orders") as client:
            answer = await client.post(
                "/orders",
                json={"order": "1"},
                headers={"traceparent": trace, "x-request-id": "request-4711"},
            )
        assert answer.status_code == 202
        await system.settled()
        (placed,) = system.history()
        assert placed.type == "test.placed"
        assert placed.source == "/test/orders"
        assert placed.correlationid == "request-4711"
        assert placed.traceparent is not None
        assert placed.traceparent.split("-")[1] == trace.split("-")[1]


async def test_an_http_transaction_that_raises_leaves_nothing() -> None:
    service = Service("orders", publishes=(Placed,))
    async with running(service) as system:

        async def change_my_mind() -> None:
            async with service.transaction() as tx:
                tx.execute("create table t (x)")
                tx.publish(Placed(order="1"))
                await tx.fetch("select 1 as one")
                raise RuntimeError("changed my mind")

        with pytest.raises(RuntimeError):
            await change_my_mind()
        await system.settled()
        assert system.history() == []
        tables = await service.fetch("select name from sqlite_master where name = 't'")
        assert tables == []


class Elsewhere(Event, type="test.placed", key="order", stream="test.shop"):
    order: str


async def test_a_class_may_name_the_one_stream_it_is_found_on() -> None:
    service = Service("choosy")
    handled: list[str] = []

    @service.on(Elsewhere)
    async def handle(event: Elsewhere, tx: Transaction) -> None:
        handled.append(event.order)

    async with running(service) as system:
        await system.publish(Placed(order="1"), service="shop")
        await system.publish(Placed(order="2"), service="other")
        await system.settled()
        assert handled == ["1"]
        assert {stream for stream, _ in system.processes["choosy"].lanes} == {"test.shop"}


async def test_another_system_s_event_is_only_for_the_handler_that_names_its_stream() -> None:
    service = Service("neighbour")
    handled: list[tuple[str, str]] = []

    @service.on(Placed, stream="bank.shop")
    async def foreign(event: Placed, tx: Transaction) -> None:
        handled.append(("foreign", event.order))

    @service.on(Placed)
    async def own(event: Placed, tx: Transaction) -> None:
        handled.append(("own", event.order))

    async with running(service) as system:
        await system.publish(Placed(order="1"), service="shop")
        await system.settled()
        assert handled == [("own", "1")]
        headers = {"id": "2", "source": "/bank/shop", "type": "test.placed", "specversion": "1.0"}
        record = Record(stream="bank.shop", key="2", headers=headers, data=b'{"order": "2"}')
        await system.broker.publish([record])
        await system.settled()
        assert handled == [("own", "1"), ("foreign", "2")]


async def test_a_parked_event_whose_handler_is_gone_is_a_dead_letter_and_blocks_no_key() -> None:
    service = Service("changed")
    handled: list[str] = []

    @service.on(Placed)
    async def handle(event: Placed, tx: Transaction) -> None:
        handled.append(event.order)

    async with running(service, partitions=1) as system:
        await system.publish(Placed(order="1"), key="k")
        await system.settled()
        store = system.processes["changed"].store
        left = Parked(
            event_id="left", source="/test/outside", handler="gone", stream="test.outside",
            partition=0, position=1, chain="k", due=0.0, attempt=1, history=[], key="k",
            headers={"type": "test.placed"}, data=b"{}",
        )  # fmt: skip
        await store.begin().commit(Changes(parked=[left], time=system.ambient.now()))
        await system.ambient.advance(2.0)
        await system.settled()
        (letter,) = await system.dead("changed")
        assert "has no handler gone" in letter["reason"]
        await system.publish(Placed(order="2"), key="k")
        await system.settled()
        assert handled == ["1", "2"]


@pytest.mark.parametrize("key", ["", "k" * 513, "a\nb"])
async def test_a_key_that_no_broker_could_carry_is_refused_at_the_publisher(key: str) -> None:
    service = Service("orders", publishes=(Placed,))
    async with running(service) as system:
        async with service.transaction() as tx:
            with pytest.raises(InvalidEvent, match="is the key"):
                tx.publish(Placed(order="1"), key=key)
        await system.settled()
        assert system.history() == []


async def test_what_the_inbox_need_not_remember_any_more_is_deleted() -> None:
    service = Service("forgets")

    @service.on(Placed)
    async def handle(event: Placed, tx: Transaction) -> None: ...

    async with running(service) as system:
        for number in range(2_500):
            await system.publish(Placed(order=str(number)))
        await system.settled()
        process = system.processes["forgets"]
        await process.commits.save(Changes(writes=[("update oyez_inbox set seen = 0", [{}])]))
        await process.housekeeping.keep()
        rows = await system.fetch("forgets", "select count(*) as n from oyez_inbox")
        assert rows == [{"n": 0}]


async def test_a_process_that_ends_leaves_its_service_to_another() -> None:
    service = Service("kinds")
    async with running(service) as one:
        async with running(service) as other:
            await one.processes["kinds"].drain()
            async with service.transaction() as tx:
                tx.publish(Paid(order="1"))
            await other.settled()
            assert other.announced(Paid) == [Paid(order="1")]
        with pytest.raises(DeclarationError, match="is not running"):
            async with service.transaction():
                pass
