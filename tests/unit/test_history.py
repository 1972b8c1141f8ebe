"""Reading history to its end: what retention has deleted, and what is only slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from oyez.brokers.memory.broker import MemoryBroker
from oyez.inspection.history import TURNS, Place, ends, read
from oyez.ports import Batch, Position, Record
from oyez.testing import VirtualAmbient

STREAM = "shop.orders"
COUNT = 40
QUIET = 0.02


class Slow(MemoryBroker):
    """A broker whose records take some turns of the event loop, or wait to be let go."""

    def __init__(self, partitions: int = 1) -> None:
        super().__init__(VirtualAmbient(), partitions=partitions)
        self.free = asyncio.Event()
        self.free.set()
        self.deleted = False
        """Whether retention has deleted everything."""
        self.asked = 0
        """How often it was asked where its streams start."""
        self.patience = 0
        """The question upon which it returns what it held; 0 for none."""

    async def fill(self) -> None:
        """Publish some events."""
        keys = [f"k{number}" for number in range(COUNT)]
        await self.publish(
            [Record(stream=STREAM, key=key, headers={"id": key}, data=b"{}") for key in keys]
        )

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        async for batch in super().read(stream, partition, after):
            for record in batch.records:
                await self.free.wait()
                for _ in range(3):
                    await asyncio.sleep(0)
                yield Batch([record])

    async def starts(self, stream: str) -> Sequence[Position]:
        self.asked += 1
        if self.asked == self.patience:
            self.free.set()
        return await self.ends(stream) if self.deleted else await super().starts(stream)


async def taken(broker: Slow, busy: float = 0.0) -> tuple[int, list[Place]]:
    """Read all partitions at once; the number of records, and the partitions that ended early.

    ``busy``: how long each record keeps the event loop from anything else, in seconds.
    """
    short: list[Place] = []
    count = 0

    async def one(place: Place, end: Position) -> None:
        nonlocal count
        async for batch in read(broker, place, end, short=short, quiet=QUIET):
            count += len(batch.records)
            time.sleep(busy)  # what a process on a busy machine is like

    async with asyncio.timeout(20.0), asyncio.TaskGroup() as readers:
        for place, end in (await ends(broker, [STREAM])).items():
            readers.create_task(one(place, end))
    return count, short


async def test_a_process_that_is_slow_takes_nothing_for_deleted() -> None:
    broker = Slow(partitions=4)
    await broker.fill()
    assert await taken(broker, busy=QUIET * 1.5) == (COUNT, [])


@pytest.mark.parametrize("turns", range(1, TURNS))
async def test_a_broker_that_says_it_has_the_rest_is_waited_for(turns: int) -> None:
    broker = Slow()
    await broker.fill()
    broker.free.clear()
    broker.patience = 1 + turns
    assert await taken(broker) == (COUNT, [])


async def test_what_retention_deletes_meanwhile_is_not_waited_for() -> None:
    broker = Slow()
    await broker.fill()
    broker.free.clear()
    reading = asyncio.ensure_future(taken(broker))
    while not broker.asked:
        await asyncio.sleep(0)
    broker.deleted = True
    assert await reading == (0, [(STREAM, 0)])
    assert broker.asked == 2


async def test_records_that_never_come_end_it() -> None:
    """A broker may have deleted single records, which its starts don't tell."""
    broker = Slow()
    await broker.fill()
    broker.free.clear()
    assert await taken(broker) == (0, [(STREAM, 0)])
    assert broker.asked == 1 + TURNS
