"""What the relay does with events that the broker refuses for good."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from oyez import Event, Service, tables
from oyez.brokers.memory import MemoryBroker
from oyez.errors import BrokerRefused, NotRedriven, RecordRefused
from oyez.ports import Record
from oyez.runtime.dead import discard, list_dead, redrive, show_dead
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import EventDead, Signal, Signals
from oyez.stores.sqlite import SqliteStore
from oyez.testing import VirtualAmbient

PASS = 30.0
"""Seconds in which the relay and health have looked, on the virtual clock."""


class Placed(Event, type="shop.placed", key="order"):
    order: str
    number: int


class Picky(MemoryBroker):
    """A broker that refuses the events of some (order, number), alone and in company."""

    def refuse(self, *orders: tuple[str, int], kind: type[BrokerRefused] = BrokerRefused) -> None:
        self._refused = {*orders}
        self._kind = kind

    async def publish(self, records: Sequence[Record]) -> None:
        if any(_order(record) in self._refused for record in records):
            raise self._kind("a header is too long: shorten it")
        await super().publish(records)


class Till:
    """A service that announces what the broker refuses."""

    def __init__(self, root: Path) -> None:
        self.ambient = VirtualAmbient()
        self.broker = Picky(self.ambient, partitions=1)
        self.broker.refuse()
        self.store = SqliteStore(root / "till.db", self.ambient, inline=True, durable=False)
        self.service = Service("till", publishes=(Placed,))
        self.dead: list[EventDead] = []
        signals = Signals()
        signals.listen(self._hear)
        self.process = ServiceProcess(
            self.service,
            # One partition shows the order in which everything was published.
            ProcessSettings(system="shop", broker="memory", partitions=1),
            broker=self.broker,
            store=self.store,
            ambient=self.ambient,
            signals=signals,
        )

    def _hear(self, signal: Signal) -> None:
        if isinstance(signal, EventDead):
            self.dead.append(signal)

    async def place(self, *orders: tuple[str, int]) -> None:
        async with self.service.transaction() as tx:
            for order, number in orders:
                tx.publish(Placed(order=order, number=number))

    async def published(self) -> list[tuple[str, int]]:
        await self.ambient.advance(PASS)
        return [_order(record) for log in self.broker.logs["shop.till"] for record in log]

    async def letters(self) -> list[int]:
        return [row["id"] for row in await list_dead(self.store)]


@asynccontextmanager
async def till(root: Path) -> AsyncIterator[Till]:
    system = Till(root)
    await system.process.start()
    try:
        yield system
    finally:
        await system.process.drain()


async def test_a_refused_event_is_dead_and_holds_its_key_alone(tmp_path: Path) -> None:
    """Later events of its key wait; the others go on; readiness and a signal say so (G3, G4)."""
    async with till(tmp_path) as system:
        system.broker.refuse(("a", 2))
        await system.place(("a", 1), ("a", 2), ("b", 1), ("a", 3))
        await system.place(("a", 4), ("b", 2))
        assert await system.published() == [("a", 1), ("b", 1), ("b", 2)]
        (letter,) = await list_dead(system.store)
        assert letter["handler"] == tables.OUTBOX
        assert (letter["stream"], letter["key"]) == ("shop.till", "a")
        assert letter["reason"] == "refused by the broker: a header is too long: shorten it"
        (signal,) = system.dead
        assert (signal.handler, signal.event_id) == (tables.OUTBOX, letter["event_id"])
        assert system.process.health.readiness() == []
        (warning,) = system.process.health.warnings()
        assert "refused: 1" in warning
        assert "oyez dead list till" in warning


async def test_a_redriven_event_is_published_before_what_waited_behind_it(tmp_path: Path) -> None:
    async with till(tmp_path) as system:
        system.broker.refuse(("a", 2))
        await system.place(("a", 1), ("a", 2), ("a", 3), ("b", 1))
        await system.published()
        await system.place(("a", 4))
        await system.published()
        (letter,) = await system.letters()
        system.broker.refuse()
        await redrive(system.store, letter, system.ambient)
        published = await system.published()
        assert [order for order in published if order[0] == "a"] == [("a", n) for n in (1, 2, 3, 4)]
        assert await system.letters() == []
        assert system.process.health.warnings() == []
        with pytest.raises(NotRedriven, match="was redriven already"):
            await redrive(system.store, letter, system.ambient)


async def test_a_redriven_event_that_is_refused_again_is_dead_again(tmp_path: Path) -> None:
    async with till(tmp_path) as system:
        system.broker.refuse(("a", 1), kind=RecordRefused)
        await system.place(("a", 1), ("a", 2))
        assert await system.published() == []
        (letter,) = await system.letters()
        await redrive(system.store, letter, system.ambient)
        assert await system.published() == []
        (again,) = await system.letters()
        assert again != letter
        row = await show_dead(system.store, again)
        assert row is not None
        data = msgspec.json.encode({"order": "a", "number": 7})
        await redrive(system.store, again, system.ambient, data=data)
        assert await system.published() == [("a", 7), ("a", 2)]


async def test_what_waited_behind_a_discarded_event_is_published(tmp_path: Path) -> None:
    async with till(tmp_path) as system:
        system.broker.refuse(("a", 1))
        await system.place(("a", 1), ("a", 2), ("b", 1))
        assert await system.published() == [("b", 1)]
        (letter,) = await system.letters()
        with pytest.raises(NotRedriven, match="leave out --handler"):
            await redrive(system.store, letter, system.ambient, handler="other")
        await discard(system.store, letter, "placed twice")
        assert await system.published() == [("b", 1), ("a", 2)]


async def test_a_stream_that_is_refused_whole_loses_nothing_to_dead_letters(tmp_path: Path) -> None:
    """A right that is missing is no fault of the events: they wait, and readiness says so."""
    async with till(tmp_path) as system:
        orders = [("a", 1), ("b", 1), ("c", 1)]
        system.broker.refuse(*orders)
        await system.place(*orders)
        assert await system.published() == []
        assert await system.letters() == []
        assert any("outbox not published" in why for why in system.process.health.readiness())
        system.broker.refuse()
        await system.ambient.advance(PASS)
        assert await system.published() == orders


async def test_another_relay_keeps_the_key_held(tmp_path: Path) -> None:
    """The hold is in the store, not in the process that made it."""
    async with till(tmp_path) as system:
        system.broker.refuse(("a", 1))
        await system.place(("a", 1), ("b", 1))
        await system.published()
    async with till(tmp_path) as system:
        await system.place(("a", 2), ("b", 2))
        assert await system.published() == [("b", 2)]
        (letter,) = await system.letters()
        await redrive(system.store, letter, system.ambient)
        assert await system.published() == [("b", 2), ("a", 1), ("a", 2)]


def _order(record: Record) -> tuple[str, int]:
    assert record.data is not None
    fields = msgspec.json.decode(record.data)
    return fields["order"], fields["number"]
