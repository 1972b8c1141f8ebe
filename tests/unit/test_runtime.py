"""The runtime on the memory broker under a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from oyez import After, Context, Event, Retry, Service, Transaction
from oyez.envelope import parse_time
from oyez.errors import ConstraintViolated
from oyez.signals import HandlerCalled, Signal
from oyez.testing import System, running


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


class TestAfter:
    """What a handler without a transaction leaves to the commit that settles its event."""

    ONCE = Retry(attempts=3, first=1.0, jitter=0.0)
    WRITE = "insert into payment values (:id, :note)"

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        (tmp_path / "tables").mkdir()
        (tmp_path / "tables" / "001_payments.sql").write_text(
            "create table payment (id text primary key, note text)"
        )
        return tmp_path

    async def payments(self, system: System) -> list[tuple[str, str]]:
        rows = await system.fetch("payments", "select id, note from payment order by id")
        return [(row["id"], row["note"]) for row in rows]

    async def test_every_kind_of_function_may_have_it(self, root: Path) -> None:
        service = Service("payments", migrations="tables")

        @service.on(Placed)
        async def awaits(event: Placed, after: After) -> Paid:
            await asyncio.sleep(0)
            after.execute(self.WRITE, id="awaits", note=event.order)
            after.publish(Paid(order="awaits, published"))
            return Paid(order="awaits, returned")

        @service.on(Placed)
        def blocks(event: Placed, after: After) -> Paid:
            after.execute(self.WRITE, id="blocks", note=event.order)
            after.publish(Paid(order="blocks, published"))
            return Paid(order="blocks, returned")

        @service.on(Placed)
        async def streams(event: Placed, after: After) -> AsyncIterator[Paid]:
            after.execute(self.WRITE, id="streams", note=event.order)
            yield Paid(order="streams")

        @service.on(Placed)
        def yields(event: Placed, after: After) -> Iterator[Paid]:
            after.execute(self.WRITE, id="yields", note=event.order)
            yield Paid(order="yields")

        async with running(service, root=root) as system:
            await system.publish(Placed(order="1"))
            await system.settled()
            assert await self.payments(system) == [
                ("awaits", "1"), ("blocks", "1"), ("streams", "1"), ("yields", "1")
            ]  # fmt: skip
            assert [paid.order for paid in system.announced(Paid)] == [
                "awaits, published", "awaits, returned",
                "blocks, published", "blocks, returned",
                "streams", "yields",
            ]  # fmt: skip
            placed, *others = system.history()
            assert {event.causationid for event in others} == {placed.id}

    async def test_nothing_is_written_or_announced_when_it_raises(self, root: Path) -> None:
        service = Service("payments", migrations="tables")
        keys: list[str] = []

        @service.on(Placed, retry=self.ONCE)
        async def pay(event: Placed, after: After, context: Context) -> None:
            keys.append(context.idempotency_key)
            after.execute(self.WRITE, id=event.order, note=str(context.attempt))
            after.publish(Paid(order=f"attempt {context.attempt}"))
            if context.attempt < 3:
                raise ConnectionError("no answer")

        async with running(service, root=root) as system:
            await system.publish(Placed(order="1"))
            await system.settled()
            await system.advance(1.0)
            assert len(keys) == 2
            assert await self.payments(system) == []
            assert system.announced(Paid) == []
            await system.advance(2.0)
            assert await self.payments(system) == [("1", "3")]
            assert system.announced(Paid) == [Paid(order="attempt 3")]
            assert len(keys) == 3
            assert len(set(keys)) == 1

    async def test_a_write_that_breaks_a_constraint_fails_the_attempt(self, root: Path) -> None:
        service = Service("payments", migrations="tables")

        @service.on(Placed, retry=self.ONCE)
        async def pay(event: Placed, after: After) -> Paid:
            after.execute(self.WRITE, id=event.order, note="first")
            after.execute(self.WRITE, id=event.order, note="second")
            return Paid(order=event.order)

        async with running(service, root=root) as system:
            await system.publish(Placed(order="1"))
            await system.settled()
            await system.advance(10.0)
            assert await self.payments(system) == []
            assert system.announced(Paid) == []
            (dead,) = await system.dead("payments")
            assert dead["reason"].startswith(
                f"failed 3 of 3 attempts: {ConstraintViolated.__name__}"
            )

    async def test_a_call_that_ran_into_its_timeout_leaves_nothing(self, root: Path) -> None:
        service = Service("payments", migrations="tables")

        @service.on(Placed, retry=self.ONCE, timeout=5.0)
        async def pay(event: Placed, after: After, context: Context) -> None:
            after.execute(self.WRITE, id=str(context.attempt), note=event.order)
            if not context.last_attempt:
                await asyncio.Event().wait()

        async with running(service, root=root) as system:
            await system.publish(Placed(order="1"))
            await system.ambient.advance(60.0)
            await system.settled()
            assert await self.payments(system) == [("3", "1")]


async def test_an_event_that_took_long_to_come_about_is_of_the_time_of_its_end() -> None:
    service = Service("payments")
    answer = asyncio.Event()

    @service.on(Placed)
    async def pay(event: Placed, context: Context) -> Paid:
        await answer.wait()
        return Paid(order=event.order)

    async with running(service) as system:
        await system.publish(Placed(order="1"))
        await system.ambient.advance(20.0)
        answer.set()
        await system.settled()
        placed, paid = system.history()
        took = parse_time(paid.time or "") - parse_time(placed.time or "")
        assert took.total_seconds() == 20.0


async def test_each_call_is_told_with_its_span_to_those_who_listen() -> None:
    """What a handler announces names the call's span as its parent; outcomes are told."""
    service = Service("payments")

    @service.on(Placed, retry=Retry(attempts=2, first=1.0, jitter=0.0))
    async def pay(event: Placed, tx: Transaction) -> list[Paid]:
        if event.order == "bad":
            raise ValueError("no")
        return [Paid(order=event.order), Paid(order=f"{event.order}-again")]

    @service.on(Paid)
    def book(event: Paid, tx: Transaction) -> None:
        pass

    calls: list[HandlerCalled] = []

    def hear(signal: Signal) -> None:
        if isinstance(signal, HandlerCalled):
            calls.append(signal)

    async with running(service) as system:
        system.bus.listen(hear, calls=True)
        await system.publish(Placed(order="good"))
        await system.settled()
        (paid,) = [call for call in calls if call.handler == "pay"]
        assert (paid.outcome, paid.attempt, paid.events) == ("done", 1, 1)
        assert paid.type == "test.placed"
        booked = [call for call in calls if call.handler == "book"]
        assert [call.parent_id for call in booked] == [paid.span_id, paid.span_id]
        assert {call.trace_id for call in calls} == {paid.trace_id}
        assert len({call.span_id for call in calls}) == 3
        calls.clear()
        await system.publish(Placed(order="bad"))
        await system.settled()
        await system.advance(2.0)
        assert [(call.outcome, call.attempt) for call in calls] == [("retry", 1), ("dead", 2)]
        assert calls[0].error == "ValueError: no"


async def test_calls_cost_nothing_while_nobody_listens() -> None:
    """No signal of a call is made, though others are heard."""
    service = Service("payments")

    @service.on(Placed)
    async def pay(event: Placed, tx: Transaction) -> None:
        pass

    async with running(service) as system:
        await system.publish(Placed(order="1"))
        await system.settled()
        assert not system.processes["payments"].reports.calls
        assert not any(isinstance(signal, HandlerCalled) for signal in system.signals)
