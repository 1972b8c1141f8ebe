"""From a commit to its event on the broker, when little happens: the relay's tail.

One process announces 20 events a second, each in a transaction of its own; measured is from the end
of ``service.transaction()`` until another reader has the record. By hand: the same rows, written
one after the other on one thread (outbox, log, outbox), and a reader that is called directly.
"""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial

import apsw

from benchmarks.comparison import Figures, Report, Way, interleave, percentile
from benchmarks.latency_probe import Ticked, connect
from benchmarks.machine import Surroundings
from oyez import Service
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.contract import decode
from oyez.event import describe
from oyez.ports import BEGINNING
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.stores.sqlite import SqliteStore

RATE = 20.0
"""Events a second."""


async def run(here: Surroundings) -> Report:
    """Turns of a few seconds."""
    count = here.pick(20, 100)
    folder = here.fresh("tail")
    service = Service("ticks", publishes=(Ticked,))
    process = ServiceProcess(
        service,
        ProcessSettings(system="bench", partitions=1, root=folder),
        broker=EmbeddedBroker(folder / "events.db", here.ambient),
        store=SqliteStore(folder / "ticks.db", here.ambient),
        ambient=here.ambient,
        signals=Signals(),
    )
    await process.start()
    reader = EmbeddedBroker(folder / "events.db", here.ambient)
    await reader.open()
    taken: list[float] = []
    reading = asyncio.create_task(_read(reader, taken))
    try:
        ways = [
            Way("oyez", partial(_announce, service, taken, count)),
            Way("by hand", partial(_by_hand, here, count)),
        ]
        rows = await interleave(f"{RATE:.0f}/s", ways, here.pick(2, 5))
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        await reader.close()
        await process.drain()
    return Report(
        benchmark="idle_tail",
        about="ms from commit to a reader by the relay; below 1 is faster than by hand",
        rows=rows,
        notes=[f"p99 of {count} events a turn"],
    )


async def _read(reader: EmbeddedBroker, taken: list[float]) -> None:
    kind = describe(Ticked)
    async for batch in reader.read("bench.ticks", 0, BEGINNING):
        now = time.monotonic_ns()
        events = (decode(kind, record.data or b"") for record in batch.records)
        taken.extend((now - event.sent) / 1e6 for event in events)


async def _announce(service: Service, taken: list[float], count: int) -> Figures:
    taken.clear()
    committed: list[float] = []
    moments = random.Random(count)
    for number in range(count):
        await asyncio.sleep(moments.expovariate(RATE))
        start = time.monotonic_ns()
        async with service.transaction() as tx:
            tx.publish(Ticked(key="one", number=number, sent=start))
        committed.append((time.monotonic_ns() - start) / 1e6)
    async with asyncio.timeout(30):
        while len(taken) < count:
            await asyncio.sleep(0.01)
    # The event carries when its transaction began; what counts is when that had been committed.
    return _figures([whole - own for whole, own in zip(taken, committed, strict=True)])


async def _by_hand(here: Surroundings, count: int) -> Figures:
    folder = here.fresh("tail")
    store, log = connect(folder / "ticks.db"), connect(folder / "log.db")
    store.execute("create table outbox (seq integer primary key, sent integer not null)")
    log.execute("create table log (position integer primary key, sent integer not null)")
    taken = []
    moments = random.Random(count)
    for _ in range(count):
        await asyncio.sleep(moments.expovariate(RATE))
        store.execute("insert into outbox (sent) values (?)", (time.monotonic_ns(),))
        start = time.monotonic_ns()
        _relay(store, log)
        taken.append((time.monotonic_ns() - start) / 1e6)
        store.execute("delete from outbox")
    store.close()
    log.close()
    return _figures(taken)


def _relay(store: apsw.Connection, log: apsw.Connection) -> None:
    rows = list(store.execute("select sent from outbox order by seq"))
    with log:
        log.executemany("insert into log (sent) values (?)", rows)
    list(log.execute("select sent from log order by position desc limit 1"))


def _figures(millis: list[float]) -> Figures:
    return {"p50 ms": percentile(millis, 0.5), "p99 ms": percentile(millis, 0.99)}
