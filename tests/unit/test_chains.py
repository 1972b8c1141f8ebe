"""Later events of a key wait for those that the store holds, whatever their process was told.

A commit takes effect and its answer is lost; another process parks an event.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from parts import BY

from oyez import Event, Retry, Service, Tick, Transaction
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import StoreUnavailable
from oyez.ports import Changes, Record
from oyez.runtime.dead import list_dead, redrive
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import ClaimLost, Signal, Signals
from oyez.stores.sqlite import SqliteStore, SqliteTransaction
from oyez.testing import VirtualAmbient


class Placed(Event, type="shop.placed", key="order"):
    order: str
    number: int


class _Unheard(SqliteTransaction):
    def __init__(self, store: Unheard) -> None:
        super().__init__(store._file)
        self._store = store

    async def commit(self, changes: Changes) -> None:
        await super().commit(changes)
        if self._store.left and self._store.loses(changes):
            self._store.left -= 1
            raise StoreUnavailable("the connection was lost")


class Unheard(SqliteStore):
    """A store that does not say of some commits that they took effect."""

    left = 0
    """How often."""
    loses: Callable[[Changes], bool]
    """Of which."""

    def begin(self, *, claims: bool = False) -> SqliteTransaction:
        return _Unheard(self)


class Desk:
    """A process that handles orders, and the calls of its handlers.

    ``bad`` ones fail, ``hopeless`` ones for ever. The store does not say of one commit that
    ``loses`` picks that it took effect.
    """

    def __init__(self, folder: Path, loses: Callable[[Changes], bool]) -> None:
        self.service = Service("desk")
        self.called: list[Any] = []
        self.bad: set[int] = set()
        self.hopeless: set[int] = set()
        self.heard: list[Signal] = []
        self.ambient = VirtualAmbient()
        self.broker = MemoryBroker(self.ambient, partitions=1)
        self.store = Unheard(folder / "desk.db", self.ambient, inline=True, durable=False)
        self.store.left, self.store.loses = 1, loses

        @self.service.on(Placed, retry=Retry(first=30.0, jitter=0.0, on=(ValueError,)))
        async def take(event: Placed, tx: Transaction) -> None:
            if event.number in self.hopeless:
                raise LookupError(event.number)
            if event.number in self.bad:
                raise ValueError(event.number)
            self.called.append(event.number)

        @self.service.every(seconds=600)
        async def sweep(tick: Tick, tx: Transaction) -> None:
            self.called.append("tick")

    async def start(self) -> None:
        signals = Signals()
        signals.listen(self.heard.append)
        await self.broker.create("shop.till", 1)
        self.process = ServiceProcess(
            self.service,
            ProcessSettings(system="shop", broker="memory"),
            broker=self.broker,
            store=self.store,
            ambient=self.ambient,
            signals=signals,
        )
        await self.process.start()

    async def order(self, *numbers: int) -> None:
        """Publish events of one key, and wait a moment."""
        for number in numbers:
            headers = {"specversion": "1.0", "id": f"e{number}", "source": "/shop/till"}
            headers |= {"type": "shop.placed", "subject": "k"}
            data = b'{"order":"k","number":%d}' % number
            record = Record(stream="shop.till", key="k", headers=headers, data=data)
            await self.broker.publish([record])
        await self.ambient.advance(5.0)

    @property
    def parked(self) -> int:
        """How many parked events it counts."""
        return sum(lane.chains.total for lane in self.process.lanes.values())


async def test_later_events_of_a_key_wait_for_one_that_was_parked_unheard(tmp_path: Path) -> None:
    desk = Desk(tmp_path, lambda changes: bool(changes.parked))
    await desk.start()
    desk.bad = {1}
    await desk.order(1)
    assert desk.store.left == 0
    desk.bad.clear()
    await desk.order(2, 3)
    assert (desk.called, desk.parked) == ([], 3)
    await desk.ambient.advance(60.0)
    assert (desk.called, desk.parked) == ([1, 2, 3], 0)
    assert not any(isinstance(signal, ClaimLost) for signal in desk.heard)
    await desk.process.drain()


async def test_an_event_that_was_settled_unheard_is_waited_for_no_more(tmp_path: Path) -> None:
    desk = Desk(tmp_path, lambda changes: bool(changes.settled))
    await desk.start()
    desk.bad = {1}
    await desk.order(1)
    assert (desk.called, desk.parked) == ([], 1)
    desk.bad.clear()
    await desk.ambient.advance(60.0)
    assert desk.store.left == 0
    assert (desk.called, desk.parked) == ([1], 0)
    await desk.process.drain()


async def test_a_tick_that_fired_unheard_is_counted(tmp_path: Path) -> None:
    desk = Desk(tmp_path, lambda changes: any(each.handler == "sweep" for each in changes.parked))
    await desk.start()
    await desk.ambient.advance(1200.0)
    assert desk.store.left == 0
    assert (desk.called, desk.parked) == (["tick", "tick"], 0)
    await desk.process.drain()


async def test_a_redriven_event_is_not_taken_for_one_that_others_wait_for(tmp_path: Path) -> None:
    desk = Desk(tmp_path, lambda changes: False)
    await desk.start()
    desk.hopeless = {1}
    await desk.order(1)
    (letter,) = await list_dead(desk.store)
    desk.hopeless.clear()
    await redrive(desk.store, letter["id"], desk.ambient, by=BY)
    await desk.ambient.advance(5.0)
    assert (desk.called, desk.parked) == ([1], 0)
    desk.bad = {2}
    await desk.order(2)
    await desk.order(3)
    assert (desk.called, desk.parked) == ([1], 2)
    desk.bad.clear()
    await desk.ambient.advance(60.0)
    assert (desk.called, desk.parked) == ([1, 2, 3], 0)
    await desk.process.drain()
