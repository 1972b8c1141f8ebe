"""The start of a service process: broker and store at once, and all of it or nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from oyez import Event, Service, Transaction
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import BrokerRefused, StoreRefused
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.stores.sqlite import SqliteStore
from oyez.testing import VirtualAmbient


class Placed(Event, type="shop.placed", key="order"):
    order: str


class Broker(MemoryBroker):
    """Opens when it is told to, or raises."""

    def __init__(self) -> None:
        super().__init__(VirtualAmbient(), partitions=8)
        self.go = asyncio.Event()
        self.asked = asyncio.Event()
        self.refuse = False
        self.gave_up = self.closed = False

    async def open(self) -> None:
        self.asked.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.gave_up = True
            raise
        if self.refuse:
            raise BrokerRefused("of a test")
        await super().open()

    async def close(self) -> None:
        self.closed = True
        await super().close()


class Store(SqliteStore):
    """Opens when it is told to, or raises."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "desk.db", VirtualAmbient(), inline=True, durable=False)
        self.go = asyncio.Event()
        self.asked = asyncio.Event()
        self.refuse = False
        self.closed = False

    async def open(self, *, create: bool = True) -> None:
        self.asked.set()
        await self.go.wait()
        if self.refuse:
            raise StoreRefused("of a test")
        await super().open(create=create)

    async def close(self) -> None:
        self.closed = True
        await super().close()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def process(broker: Broker, store: Store) -> ServiceProcess:
    service = Service("desk")

    @service.on(Placed)
    async def take(event: Placed, tx: Transaction) -> None: ...

    return ServiceProcess(
        service,
        ProcessSettings(system="shop", broker="memory"),
        broker=broker,
        store=store,
        ambient=VirtualAmbient(),
        signals=Signals(),
    )


async def test_broker_and_store_open_at_once(
    process: ServiceProcess, broker: Broker, store: Store
) -> None:
    async with asyncio.timeout(10):
        starting = asyncio.create_task(process.start())
        await broker.asked.wait()
        await store.asked.wait()
        assert not starting.done()
        store.go.set()
        broker.go.set()
        await starting
    assert process.health.readiness() == []
    await process.drain()


async def test_a_store_that_refuses_ends_the_opening_of_the_broker(
    process: ServiceProcess, broker: Broker, store: Store
) -> None:
    store.refuse = True
    async with asyncio.timeout(10):
        starting = asyncio.create_task(process.start())
        await broker.asked.wait()
        store.go.set()
        with pytest.raises(StoreRefused):
            await starting
    assert (broker.gave_up, broker.closed, store.closed) == (True, True, True)


async def test_a_broker_that_refuses_closes_the_store(
    process: ServiceProcess, broker: Broker, store: Store
) -> None:
    broker.refuse = True
    broker.go.set()
    store.go.set()
    async with asyncio.timeout(10):
        with pytest.raises(BrokerRefused):
            await process.start()
    assert (broker.closed, store.closed) == (True, True)
