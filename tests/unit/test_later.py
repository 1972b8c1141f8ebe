"""What a service is to do later, as values."""

from __future__ import annotations

import json

import pytest
from parts import BY

from oyez import Event, Service, State, Tick, Transaction
from oyez.errors import OyezError
from oyez.inspection.schedule import Later, as_value, cancel, list_later
from oyez.runtime.audit import list_acts
from oyez.testing import running
from oyez.testing.clock import START
from oyez.timers import Timer, arm


class Reminder(Event, type="test.reminder", key="order"):
    order: str


class Order(State):
    lapsed: int = 0


async def test_what_is_next_comes_first_and_events_can_be_cancelled() -> None:
    service = Service("orders")

    @service.on(Timer)
    async def lapse(event: Timer, order: Order) -> None: ...

    @service.every("30 8 * * *", tz="Europe/London")
    async def daily(tick: Tick) -> None: ...

    async with running(service) as system:
        await system.settled()
        async with service.transaction() as tx:
            first = tx.publish(Reminder(order="a"), delay=60.0)
            tx.publish(Reminder(order="b"), delay=3600.0, name="4711")
            tx.publish(Reminder(order="c"))
            for sql, sets in arm("Order", "a", "pay", START + 90.5, START):
                for each in sets:
                    tx.execute(sql, **each)
        await system.settled()
        store = system.processes["orders"].store
        found, more = await list_later(store)
        second = found[-1].id
        assert found == [
            Later(
                what="event", due=START + 60, kind="test.reminder", key="a", name=None, id=first
            ),
            Later(what="timer", due=START + 90.5, kind="Order", key="a", name="pay", id=None),
            Later(
                what="schedule", due=START + 1800, kind="30 8 * * * Europe/London", key=None,
                name="daily", id=None,
            ),
            Later(
                what="event", due=START + 3600, kind="test.reminder", key="b",
                name="test.reminder/4711", id=second,
            ),
        ]  # fmt: skip
        assert more is False
        assert await list_later(store, 3) == (found[:3], True)
        value = as_value(found[1])
        assert value["due"] == "2027-01-15T08:01:30.500000Z"
        assert json.loads(json.dumps(value)) == value
        await cancel(store, first, START, by=BY)
        await cancel(store, "test.reminder/4711", START, by=BY)
        for gone in (first, "test.reminder/4711", "daily"):
            with pytest.raises(OyezError, match=f"no event {gone} is scheduled"):
                await cancel(store, gone, START, by=BY)
        assert [act.target for act in await list_acts(store)] == [
            "event test.reminder/4711",
            f"event {first}",
        ]
        assert [each.what for each in (await list_later(store))[0]] == ["timer", "schedule"]
        await system.advance(4000.0)
        assert system.announced(Reminder) == [Reminder(order="c")]


async def test_a_transaction_handler_can_replace_what_it_scheduled() -> None:
    service = Service("orders")

    @service.on(Reminder)
    async def again(event: Reminder, tx: Transaction) -> None:
        tx.publish(Reminder(order=event.order), delay=100.0, name=event.order)

    async with running(service) as system:
        for _ in range(3):
            await system.publish(Reminder(order="a"))
        await system.settled()
        found, _ = await list_later(system.processes["orders"].store)
        assert [(each.name, each.due) for each in found] == [("test.reminder/a", START + 100)]
