"""The start and the end of a service process: all of it or nothing, and claims let go of first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from oyez import Event, Service, Transaction
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import BrokerRefused, StoreRefused
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signal, Signals, Unfinished
from oyez.stores.sqlite import SqliteStore
from oyez.testing import VirtualAmbient


class Placed(Event, type="shop.placed", key="order"):
    order: str


class Printer: ...


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
        self.left = self.closed = False

    async def open(self, *, create: bool = True) -> None:
        self.asked.set()
        await self.go.wait()
        if self.refuse:
            raise StoreRefused("of a test")
        await super().open(create=create)

    async def leave(self, owner: str) -> None:
        await super().leave(owner)
        self.left = True

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
def desk() -> Service:
    service = Service("desk")

    @service.on(Placed)
    async def take(event: Placed, tx: Transaction) -> None: ...

    return service


@pytest.fixture
def clock() -> VirtualAmbient:
    return VirtualAmbient()


@pytest.fixture
def process(desk: Service, broker: Broker, store: Store, clock: VirtualAmbient) -> ServiceProcess:
    return ServiceProcess(
        desk,
        ProcessSettings(system="shop", broker="memory"),
        broker=broker,
        store=store,
        ambient=clock,
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


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_cleanup_that_fails_keeps_no_claim_and_leaves_nothing_open(
    desk: Service,
    process: ServiceProcess,
    broker: Broker,
    store: Store,
    clock: VirtualAmbient,
    hangs: bool,
) -> None:
    left: list[bool] = []
    heard: list[Unfinished] = []

    @desk.provides
    async def printer() -> AsyncIterator[Printer]:
        yield Printer()
        left.append(store.left)
        if hangs:
            await asyncio.Event().wait()
        raise OSError("out of paper")

    def hear(signal: Signal) -> None:
        if isinstance(signal, Unfinished):
            heard.append(signal)

    process.reports.listen(hear)
    broker.go.set()
    store.go.set()
    await process.start()
    async with asyncio.timeout(10):
        draining = asyncio.create_task(process.drain(5.0))
        while not draining.done():
            await clock.advance(1.0)
    assert left == [True]
    assert (store.left, broker.closed, store.closed) == (True, True, True)
    (told,) = heard
    assert told.part == "cleanup"
    assert ("not done within 7 s" if hangs else "out of paper") in told.error
