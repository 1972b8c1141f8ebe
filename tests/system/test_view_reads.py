"""Who reads a view through the token of what he wrote never sees an older state.

Clients write to one service, and read from three replicas of another, each client from any of them,
while the broker is cut off from all. ``OYEZ_TEST_READS`` is the number of reads.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from oyez import Event, Service, View, applies, brokers, stores
from oyez.ambient import SystemAmbient
from oyez.errors import Stale
from oyez.event import describe
from oyez.freshness import merged
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.testing.proxy import Proxy
from oyez.testing.ticks import until
from servers import server

READS = int(os.environ.get("OYEZ_TEST_READS", "3000"))
CLIENTS = 24
REPLICAS = 3
PARTITIONS = 6
SEED = 20261129


class Counted(Event, type="reads.counted", key="client"):
    """A client has counted on."""

    client: str
    number: int


class Counts(View, table="counts", key="client"):
    """How far each client is."""

    client: str
    number: int = 0
    events: int = 0

    @applies
    def counted(self, event: Counted) -> None:
        self.take(event)
        self.events += 1


@asynccontextmanager
async def running(
    service: Service, system: str, broker: str, store_url: str, folder: Path
) -> AsyncIterator[ServiceProcess]:
    """A process of the service."""
    ambient = SystemAmbient()
    process = ServiceProcess(
        service,
        ProcessSettings(system=system, partitions=PARTITIONS, lease=2.0, root=folder),
        broker=brokers.connect(
            broker, ambient, root=folder, group=service.name, partitions=PARTITIONS
        ),
        store=stores.connect(store_url, ambient, root=folder),
        ambient=ambient,
        signals=Signals(),
    )
    await process.start()
    try:
        yield process
    finally:
        await process.drain()


class Clients:
    """Clients that each write a number, then read at least that number."""

    def __init__(self, source: str, till: Service, desks: list[Service]) -> None:
        """``source`` is that of the events of ``till``."""
        self.reads = 0
        self.by_replica: Counter[int] = Counter()
        self.stale = 0
        """Reads that waited in vain: not answered, instead of answered with an older state."""
        self._source = source
        self._till = till
        self._desks = desks

    async def run(self, name: str) -> int:
        """Write and read in turn until there were enough reads; return the last number."""
        choice = random.Random(f"{SEED} {name}")
        number, token = 0, ""
        while self.reads < READS:
            number += 1
            async with self._till.transaction() as tx:
                event_id = tx.publish(Counted(client=name, number=number))
            token = merged(token, f"{self._source};{event_id};{describe(Counted).name}")
            for _ in range(choice.randint(1, 3)):
                await self._read(name, number, token, choice.randrange(REPLICAS))
        return number

    async def _read(self, name: str, number: int, token: str, replica: int) -> None:
        self.reads += 1
        try:
            row = await self._desks[replica].read(Counts, name, after=token, wait=1.0)
        except Stale:
            self.stale += 1
            return
        assert row is not None, f"{name} has written {number} and reads nothing"
        assert row.number == number, f"{name} has written {number} and reads {row.number}"
        assert row.events == number, f"{name} is applied {row.events} times of {number}"
        self.by_replica[replica] += 1


async def cut_now_and_then(proxy: Proxy) -> int:
    """Cut the broker off for a while, again and again; return how often."""
    times = 0
    try:
        while True:
            await asyncio.sleep(1.5)
            proxy.cut()
            times += 1
            await asyncio.sleep(0.7)
            proxy.restore()
    except asyncio.CancelledError:
        proxy.restore()
        return times


async def applied(desk: Service, name: str, number: int) -> bool:
    """Whether the view has applied each of the client's events once."""
    row = await desk.read(Counts, name)
    return row is not None and (row.number, row.events) == (number, number)


@pytest.mark.timeout(900)
async def test_a_read_through_the_token_is_never_older(tmp_path: Path, store_url: str) -> None:
    nats, system = server("nats"), f"reads{uuid4().hex[:8]}"
    till = Service("till", publishes=(Counted,))
    desks = [Service("desk") for _ in range(REPLICAS)]
    for each in desks:
        each.view(Counts)
    async with nats.proxy() as proxy, AsyncExitStack() as stack:
        broker = f"{proxy.through(nats.url)}?deadline=3"
        for service, at in [(till, "sqlite:till.db"), *((each, store_url) for each in desks)]:
            await stack.enter_async_context(running(service, system, broker, at, tmp_path))
        clients = Clients(f"/{system}/till", till, desks)
        cuts = asyncio.create_task(cut_now_and_then(proxy))
        async with asyncio.TaskGroup() as group:
            runs = {
                name: group.create_task(clients.run(name))
                for name in (f"c{number:02}" for number in range(CLIENTS))
            }
        cuts.cancel()
        assert await cuts, "the broker was never cut off"
        for name, run in runs.items():
            await until(partial(applied, desks[0], name, run.result()), 60)
        assert sum(clients.by_replica.values()) + clients.stale == clients.reads >= READS
        assert clients.stale < clients.reads / 2
        assert set(clients.by_replica) == set(range(REPLICAS))
