"""A handler that does nothing but count, on each broker that FastStream has too.

Oyez: a service as it is deployed, on SQLite with ``synchronous=FULL``. Its handler takes the
transaction and writes nothing, yet every batch is committed with its entries in the inbox and its
position, which the broker's own tools are shown as well. FastStream: one subscriber of a consumer
group that acknowledges what it has handled (`benchmarks.faststream_consume`), one event at a time
and, where it can, in batches.

Both run in one process on one loop, decode the event to a typed object and count the cents. The
clock and the CPU time of the process begin at the first event and end at the last: Oyez's has been
committed by then, FastStream's is acknowledged afterwards. So neither's start is counted, nor the
fetching of the first batch. The servers are those that ``scripts/services up`` started.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from benchmarks import servers
from benchmarks.comparison import Aim, Figures, Report, Row, Way, interleave
from benchmarks.embedded_append import Paid, make_records
from benchmarks.machine import Surroundings
from oyez import Service, Transaction
from oyez.brokers import connect
from oyez.ports import Record
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import BatchHandled, Signal, Signals
from oyez.stores.sqlite import SqliteStore

AIMS = {"nats": 5.0, "redis": 20.0, "rabbitmq": 3.0, "kafka": 5.0}
"""How many times FastStream's events a second are aimed at, one event at a time, by broker."""
BATCH = 256
"""Events of a batch on either side, at most, and how many are published at once."""

_PEER = "FastStream, one by one"
_NOTES = [
    "CPU µs an event is of the process alone; below 1 is less than FastStream's",
    "Oyez writes every event's id to the inbox on disk here; FastStream writes nothing, and its "
    "batches are for handlers that were written to take a list",
    "unsafe: positions are committed every 5 s, of events that may not have been handled",
]
_LACKS = {
    "FastStream": "drop duplicates by id, keep positions with a service's own data, keep a key's "
    "order across replicas, retry one event while others go on, dead letters, traces"
}


class Tally:
    """Counts events, and measures from the first one to `end`."""

    def __init__(self, count: int) -> None:
        """Create it for so many events, whose cents are 0, 1, 2 and so on."""
        self.complete = asyncio.Event()
        """Set when all were counted."""
        self._wanted = count
        self._count = self._cents = 0
        self._begin = self._end = (0.0, 0.0)

    def add(self, cents: int) -> None:
        """Count an event."""
        if not self._count:
            self._begin = _clocks()
        self._count += 1
        self._cents += cents
        if self._count == self._wanted:
            self.end()
            self.complete.set()

    def end(self) -> None:
        """End the measurement, now and not at the last event."""
        self._end = _clocks()

    def figures(self) -> Figures:
        """Return what was measured. Raises AssertionError unless each came once."""
        count = self._wanted
        if (self._count, self._cents) != (count, count * (count - 1) // 2):
            raise AssertionError(f"{self._count} events of {self._cents} cents, not {count}")
        seconds, cpu = (end - begin for begin, end in zip(self._begin, self._end, strict=True))
        return {"events/s": count / seconds, "CPU µs an event": cpu / count * 1e6}


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


async def run(here: Surroundings) -> Report:
    """Each broker that runs, one after the other."""
    count = here.pick(8 * BATCH, 20 * BATCH)
    rows, notes = list[Row](), [f"a backlog of {count:,} events of 1,000 keys", *_NOTES]
    for broker in AIMS:
        try:
            url = servers.url(broker)
        except servers.NotRunning as error:
            notes.append(f"left out: {error}")
            continue
        rows += await _compare(here, broker, url, count, notes)
    if not rows:
        raise servers.NotRunning("no broker is running: scripts/services up")
    return Report(
        benchmark="plain_consume",
        about="a handler that only counts; more events/s and less CPU is better",
        rows=rows,
        notes=notes,
        aims=[
            Aim(
                what=f"plain consume on {broker}, to FastStream one by one",
                case=broker,
                figure="events/s",
                way=_PEER,
                at_least=times,
            )
            for broker, times in AIMS.items()
        ],
        lacks=_LACKS,
    )


async def _compare(
    here: Surroundings, broker: str, url: str, count: int, notes: list[str]
) -> list[Row]:
    system = f"bench{time.time_ns()}"
    records = [
        Record(stream=f"{system}.accounts", key=each.key, headers=each.headers, data=each.data)
        for each in make_records(here, count)
    ]
    await _publish(here, url, records)
    async with AsyncExitStack() as stack:
        ways = [Way("oyez", partial(_by_oyez, here, url, system, count))]
        try:
            from benchmarks import faststream_consume
        except ImportError as error:
            notes.append(f"{broker} without FastStream: {error}")
        else:
            peers = await stack.enter_async_context(faststream_consume.peers(broker, url, records))
            for name, consume in peers.items():
                ways.append(Way(f"FastStream, {name}", partial(_by_faststream, consume, count)))
        return await interleave(broker, ways, here.pick(2, 3))


async def _publish(here: Surroundings, url: str, records: list[Record]) -> None:
    broker = connect(url, here.ambient, root=Path())
    await broker.open()
    for start in range(0, len(records), BATCH):
        await broker.publish(records[start : start + BATCH])
    await broker.close()


async def _by_oyez(here: Surroundings, url: str, system: str, count: int) -> Figures:
    tally, committed, done = Tally(count), 0, asyncio.Event()
    service = Service("counter")

    @service.on(Paid)
    async def counts(event: Paid, _: Transaction) -> None:
        tally.add(event.cents)

    def hear(signal: Signal) -> None:
        nonlocal committed
        if isinstance(signal, BatchHandled):
            committed += signal.events
            if committed >= count:
                tally.end()
                done.set()

    signals = Signals()
    signals.listen(hear)
    process = ServiceProcess(
        service,
        ProcessSettings(system=system, root=here.folder),
        broker=connect(url, here.ambient, root=here.folder, group=f"{system}.counter"),
        store=SqliteStore(here.fresh("plain") / "counter.db", here.ambient),
        ambient=here.ambient,
        signals=signals,
    )
    gc.collect()
    await process.start()
    await done.wait()
    (inbox,) = await process.store.fetch("select count(*) as events from oyez_inbox", {})
    await process.drain()
    if inbox["events"] != count:
        raise AssertionError(f"{inbox['events']} events in the inbox, not {count}")
    return tally.figures()


async def _by_faststream(consume: Callable[[Tally], Awaitable[None]], count: int) -> Figures:
    tally = Tally(count)
    gc.collect()
    await consume(tally)
    return tally.figures()
