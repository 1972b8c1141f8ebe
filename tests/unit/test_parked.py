"""Parked events of a partition whose last owner died: which of them may have killed it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from oyez import Context, Event, Retry, Service, Transaction
from oyez.brokers.memory import MemoryBroker
from oyez.ports import Changes, Parked, Record
from oyez.runtime.dead import list_dead
from oyez.runtime.execution import DIED
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.stores.sqlite import SqliteStore
from oyez.testing import VirtualAmbient

TOGETHER: dict[str, Any] = {"attempt": 1, "at": 0.0, "error": DIED, "alone": False}
ALONE: dict[str, Any] = {**TOGETHER, "alone": True}
_DIED = """insert into oyez_cursor (stream, partition, position, owner, epoch)
 values ('shop.till', 0, 9, 'a process that died', 1)"""


class Placed(Event, type="shop.placed", key="order"):
    order: str


class Desk:
    """A service whose partition was left by a process that died."""

    def __init__(self, root: Path) -> None:
        self.ambient = VirtualAmbient()
        self.store = SqliteStore(root / "desk.db", self.ambient, inline=True, durable=False)
        self.broker = MemoryBroker(self.ambient, partitions=1)
        self.handled: list[str] = []
        self.service = Service("desk")
        self.service.on(Placed)(self._take())

    def _take(self) -> Any:
        async def take(event: Placed, tx: Transaction) -> None:
            if event.order == "bad":
                raise ValueError("no")
            self.handled.append(event.order)

        return take

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ServiceProcess]:
        """Run until the block ends."""
        await self.broker.create("shop.till", 1)
        process = ServiceProcess(
            self.service,
            ProcessSettings(system="shop", broker="memory"),
            broker=self.broker,
            store=self.store,
            ambient=self.ambient,
            signals=Signals(),
        )
        await process.start()
        try:
            yield process
        finally:
            await process.drain()

    async def run(self, **parked: list[dict[str, Any]]) -> None:
        """Run for a minute with these events parked, each with what became of it so far."""
        await self.store.open()
        events = [_parked(order, history) for order, history in parked.items()]
        await self.store.begin().commit(Changes(writes=[(_DIED, [{}])], parked=events))
        async with self.running():
            await self.ambient.advance(60.0)
            self.letters = await list_dead(self.store)


async def test_an_event_that_died_with_others_is_not_guilty(tmp_path: Path) -> None:
    """A death counts against an event only if it ran without other suspects (G4)."""
    desk = Desk(tmp_path)
    await desk.run(a=[TOGETHER] * 9, b=[TOGETHER, ALONE, ALONE], c=[])
    assert sorted(desk.handled) == ["a", "b", "c"]
    assert desk.letters == []


async def test_an_event_that_died_alone_three_times_is_dead(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.run(a=[TOGETHER, ALONE, ALONE, ALONE], b=[])
    assert desk.handled == ["b"]
    (letter,) = desk.letters
    assert letter["event_id"] == "a"
    assert letter["reason"].startswith(f"{DIED}, 3 times")
    assert letter["attempts"] == 4


async def test_deaths_do_not_use_up_the_attempts_of_an_event_that_fails(tmp_path: Path) -> None:
    """Its attempts are those that ended; the history shows the others too."""
    desk = Desk(tmp_path)
    await desk.run(bad=[TOGETHER, ALONE])
    (letter,) = desk.letters
    assert letter["reason"] == "failed 5 of 5 attempts: ValueError: no"
    assert letter["attempts"] == 7


async def test_a_clock_that_is_set_back_holds_up_no_parked_event(tmp_path: Path) -> None:
    """What is parked for now runs now, and a retry waits no longer than its policy says (G5)."""
    desk = Desk(tmp_path)
    calls: list[tuple[str, int]] = []

    @desk.service.on(Placed, name="send", retry=Retry(attempts=3, first=10.0, longest=30.0))
    async def send(event: Placed, context: Context) -> None:
        calls.append((event.order, context.attempt))
        if event.order == "late" and context.attempt == 1:
            raise ValueError("not yet")

    async with desk.running() as process:
        await desk.broker.publish([_record("late")])
        await desk.ambient.advance(1.0)
        assert calls == [("late", 1)]
        desk.ambient.set_back(7_200.0)
        await desk.broker.publish([_record("now")])
        await desk.ambient.advance(1.0)
        assert ("now", 1) in calls
        await desk.ambient.advance(40.0)
        assert calls.count(("late", 2)) == 1
        assert process.health.readiness() == []


def _record(order: str) -> Record:
    parked = _parked(order, [])
    return Record(stream="shop.till", key=order, headers=parked.headers, data=parked.data)


def _parked(order: str, history: list[dict[str, Any]]) -> Parked:
    headers = {
        "specversion": "1.0",
        "id": order,
        "source": "/shop/till",
        "type": "shop.placed",
        "subject": order,
    }
    return Parked(
        event_id=order,
        source="/shop/till",
        handler="take",
        stream="shop.till",
        partition=0,
        position=9,
        chain=order,
        due=0.0,
        attempt=0,
        history=list(history),
        key=order,
        headers=headers,
        data=b'{"order":"%s"}' % order.encode(),
    )
