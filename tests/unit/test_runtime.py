"""The runtime on the memory broker under a virtual clock."""

from __future__ import annotations

from oyez import Context, Event, Retry, Service, Transaction
from oyez.testing import running


class Placed(Event, type="test.placed", key="order"):
    order: str
    number: int = 0


class Paid(Event, type="test.paid", key="order"):
    order: str


async def test_an_event_is_handled_and_its_effects_announced() -> None:
    service = Service("payments")

    @service.on(Placed)
    async def pay(event: Placed, tx: Transaction) -> Paid:
        tx.execute("create table if not exists payment (id text)")
        tx.execute("insert into payment values (:id)", id=event.order)
        return Paid(order=event.order)

    async with running(service) as system:
        await system.publish(Placed(order="1"))
        await system.settled()
        assert system.announced(Paid) == [Paid(order="1")]
        assert await system.fetch("payments", "select id from payment") == [{"id": "1"}]


async def test_a_concurrent_handler_runs_beside_the_lane() -> None:
    service = Service("payments")

    @service.on(Placed)
    async def pay(event: Placed, context: Context) -> Paid:
        return Paid(order=event.order)

    async with running(service) as system:
        for n in range(100):
            await system.publish(Placed(order=str(n)))
        await system.settled()
        assert len(system.announced(Paid)) == 100


async def test_failure_is_retried_then_dead() -> None:
    service = Service("payments")
    calls: list[tuple[str, int]] = []

    @service.on(Placed, retry=Retry(attempts=3, first=1.0, jitter=0.0))
    async def pay(event: Placed, tx: Transaction, context: Context) -> Paid:
        calls.append((event.order, context.attempt))
        if event.order == "bad":
            raise ValueError("no")
        return Paid(order=event.order)

    async with running(service) as system:
        await system.publish(Placed(order="bad"))
        await system.publish(Placed(order="good"))
        await system.settled()
        assert system.announced(Paid) == [Paid(order="good")]
        await system.advance(1.0)
        await system.advance(2.0)
        assert [attempt for order, attempt in calls if order == "bad"][-2:] == [2, 3]
        (dead,) = await system.dead("payments")
        assert dead["reason"] == "failed 3 of 3 attempts: ValueError: no"
