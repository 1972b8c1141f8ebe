"""Events for a later time: replaced by name, cancelled, and never both cancelled and published."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest

from oyez import After, Event, InvalidEvent, Service, Transaction
from oyez.testing import System, running
from oyez.testing.clock import START
from oyez.transaction import MAX_DELAY


class Reminder(Event, type="test.reminder", key="order"):
    order: str
    text: str = ""


class Placed(Event, type="test.placed", key="order"):
    order: str


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(START + seconds, UTC)


def texts(system: System) -> list[str]:
    return [event.text for event in system.announced(Reminder)]


async def test_an_event_goes_out_at_its_time() -> None:
    service = Service("desk")
    async with running(service) as system:
        async with service.transaction() as tx:
            tx.publish(Reminder(order="a", text="20"), at=at(20.0))
            zone = timezone(timedelta(hours=5))
            tx.publish(Reminder(order="a", text="10"), at=at(10.0).astimezone(zone))
            tx.publish(Reminder(order="a", text="past"), at=at(-1.0))
        await system.settled()
        assert texts(system) == ["past"]
        await system.advance(10.0)
        assert sorted(texts(system)) == ["10", "past"]
        await system.advance(10.0)
        assert sorted(texts(system)) == ["10", "20", "past"]
        async with service.transaction() as tx:
            tx.publish(Reminder(order="a", text="now"), at=at(20.0))
        await system.settled()
        assert "now" in texts(system)


async def test_a_wrong_time_or_name_is_told() -> None:
    service = Service("desk")
    async with running(service), service.transaction() as tx:
        event = Reminder(order="a")
        naive = datetime(2028, 1, 1)
        for field, asked in (
            ("at", {"at": naive}),
            ("at", {"at": at(1.0), "delay": 1.0}),
            ("at", {"at": at(MAX_DELAY + 1.0)}),
            ("delay", {"delay": -1.0}),
            ("name", {"name": "a"}),
            ("name", {"name": "", "delay": 1.0}),
            ("name", {"name": "x" * 513, "delay": 1.0}),
        ):
            with pytest.raises(InvalidEvent) as caught:
                tx.publish(event, **asked)  # type: ignore[arg-type]
            assert caught.value.field == field
        with pytest.raises(InvalidEvent, match="a class and a name"):
            await tx.cancel(Reminder)


async def test_of_one_name_the_last_goes_out() -> None:
    """In one transaction, in several, and of other types not at all."""
    service = Service("desk")
    async with running(service) as system:
        async with service.transaction() as tx:
            tx.publish(Reminder(order="a", text="1"), delay=10.0, name="4711")
            tx.publish(Reminder(order="a", text="2"), delay=20.0, name="4711")
            tx.publish(Reminder(order="a", text="other"), delay=20.0, name="4712")
            tx.publish(Placed(order="a"), delay=20.0, name="4711")
        async with service.transaction() as tx:
            tx.publish(Reminder(order="b", text="3"), delay=30.0, name="4711")
        await system.advance(25.0)
        assert texts(system) == ["other"]
        await system.advance(10.0)
        assert texts(system) == ["other", "3"]
        async with service.transaction() as tx:
            tx.publish(Reminder(order="b", text="4"), delay=30.0, name="4711")
        async with service.transaction() as tx:
            tx.publish(Reminder(order="b", text="5"), delay=0.0, name="4711")
        await system.advance(60.0)
        assert texts(system) == ["other", "3", "5"]
        assert system.announced(Placed) == [Placed(order="a")]


async def test_what_a_handler_without_a_transaction_schedules() -> None:
    service = Service("desk")

    @service.on(Placed)
    async def placed(event: Placed, after: After) -> None:
        after.publish(Reminder(order=event.order, text="1"), at=at(10.0), name="a")
        after.publish(Reminder(order=event.order, text="2"), at=at(20.0), name="a")

    async with running(service) as system:
        await system.publish(Placed(order="a"))
        await system.settled()
        await system.advance(30.0)
        assert texts(system) == ["2"]


async def test_what_is_cancelled_never_goes_out() -> None:
    service = Service("desk")

    async def roll_back(event_id: str) -> None:
        with contextlib.suppress(RuntimeError):
            async with service.transaction() as tx:
                assert await tx.cancel(event_id) is True
                raise RuntimeError

    async with running(service) as system:
        async with service.transaction() as tx:
            first = tx.publish(Reminder(order="a", text="1"), delay=10.0)
            tx.publish(Reminder(order="a", text="2"), delay=10.0, name="two")
            third = tx.publish(Reminder(order="a", text="3"), delay=10.0)
            fourth = tx.publish(Reminder(order="a", text="4"), delay=10.0)
            assert await tx.cancel(fourth) is True
            assert await tx.cancel(fourth) is False
        async with service.transaction() as tx:
            assert await tx.cancel(first) is True
            assert await tx.cancel(first) is False
            assert await tx.cancel(Reminder, name="two") is True
            assert await tx.cancel(Placed, name="two") is False
        await roll_back(third)
        await system.advance(20.0)
        assert texts(system) == ["3"]
        async with service.transaction() as tx:
            assert await tx.cancel(third) is False


async def test_a_savepoint_brings_back_what_was_replaced_or_cancelled_after_it() -> None:
    service = Service("desk")

    @service.on(Placed)
    async def placed(event: Placed, tx: Transaction) -> None:
        tx.publish(Reminder(order="a", text="1"), delay=10.0, name="a")
        await tx.unit.savepoint("s")
        tx.publish(Reminder(order="a", text="2"), delay=10.0, name="a")
        await tx.cancel(Reminder, name="a")
        await tx.unit.rollback_to("s")

    async with running(service) as system:
        await system.publish(Placed(order="a"))
        await system.settled()
        await system.advance(10.0)
        assert texts(system) == ["1"]


async def test_a_clock_that_is_set_back_publishes_nothing_twice() -> None:
    service = Service("desk")
    async with running(service) as system:
        async with service.transaction() as tx:
            tx.publish(Reminder(order="a", text="1"), delay=10.0)
        await system.advance(10.0)
        system.ambient.set_back(100.0)
        await system.advance(300.0)
        assert texts(system) == ["1"]


async def test_ten_thousand_cancels_against_a_relay() -> None:
    """Each either finds its event or comes too late for it; none is told wrong."""
    service = Service("desk")
    count, ids = 10_000, list[str]()
    async with running(service) as system:
        async with service.transaction() as tx:
            for number in range(count):
                event = Reminder(order=str(number), text=str(number))
                ids.append(tx.publish(event, delay=1.0 + number / 100))

        async def cancel(number: int) -> bool:
            async with service.transaction() as tx:
                return await tx.cancel(ids[number])

        cancelled: list[bool] = []
        for start in range(0, count, 100):
            numbers = range(start, start + 100)
            _, *told = await asyncio.gather(
                system.ambient.advance(1.0 + (start % 7) / 7 - 0.4),
                *(cancel(number) for number in numbers),
            )
            cancelled += told
        await system.advance(60.0)
        published = [int(text) for text in texts(system)]
        assert len(published) == len(set(published))
        assert sorted(published) == [n for n, gone in enumerate(cancelled) if not gone]
        assert 500 < sum(cancelled) < count - 500
