"""A broker beside its client used by hand: what the benchmarks of all brokers have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from benchmarks.comparison import Aim, Figures, Report, Row, Way, interleave, percentile
from benchmarks.embedded_append import make_records
from benchmarks.machine import Surroundings
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Broker, Record

PARTITIONS = 8


class ByHand(Protocol):
    """The client, as one would use it who writes the same by hand."""

    name: str

    def prepare(self, batch: Sequence[Record]) -> Any:
        """The batch in the client's own terms; not measured."""
        ...

    async def publish(self, batch: Any) -> None:
        """Return when all of it is confirmed."""
        ...

    async def consume(self, stream: str, lags: Mapping[int, int]) -> None:
        """Read so many records of each partition, from its beginning."""
        ...


async def compare(
    here: Surroundings,
    broker: Broker,
    client: ByHand,
    *,
    benchmark: str,
    large: int,
    backlog: float | None = None,
) -> Report:
    """Batches of 1 and 256, 16 publishers of one record each at once, a backlog, and waiting.

    ``large`` is how many records go in batches of 256 in a full turn, ``backlog`` the share of the
    client's events a second that is aimed at for reading one.
    """
    rounds, rows = here.pick(3, 9), list[Row]()
    stream = f"bench.{time.time_ns()}"
    await broker.create(stream, PARTITIONS)
    for batch, publishers, count in (
        (1, 1, here.pick(100, 500)),
        (256, 1, here.pick(2_560, large)),
        (1, 16, here.pick(320, 1_600)),
    ):
        records = [
            Record(stream=stream, key=each.key, headers=each.headers, data=each.data)
            for each in make_records(here, count)
        ]
        batches = [records[start : start + batch] for start in range(0, count, batch)]
        prepared = [client.prepare(each) for each in batches]
        ways = [
            Way("oyez", partial(_publish, broker.publish, batches, publishers, count)),
            Way(client.name, partial(_publish, client.publish, prepared, publishers, count)),
        ]
        case = f"batch {batch}" + (f", {publishers} at once" if publishers > 1 else "")
        rows += await interleave(case, ways, rounds)
    there = await broker.lag(stream, dict.fromkeys(range(PARTITIONS), BEGINNING))
    lags = {partition: count for partition, count in there.items() if count}
    ways = [
        Way("oyez", partial(_consume, partial(_read, broker), stream, lags)),
        Way(client.name, partial(_consume, client.consume, stream, lags)),
    ]
    rows += await interleave("backlog", ways, rounds)
    waits = await _wait(broker, stream, here.pick(100, 1_000))
    return Report(
        benchmark=benchmark,
        about="confirmed appends, and records read, a second; above 1 is faster than by hand",
        rows=rows,
        notes=[
            "from the call of publish to the record in the hands of a reader that waits: "
            f"p50 {percentile(waits, 0.5) * 1000:.1f} ms, p99 {percentile(waits, 0.99) * 1000:.1f}"
        ],
        aims=[
            Aim(
                what=f"reading a backlog, to {client.name}",
                case="backlog",
                figure="events/s",
                way=client.name,
                at_least=backlog,
            )
        ]
        if backlog is not None
        else [],
    )


async def _publish(
    publish: Callable[[Any], Awaitable[None]],
    batches: Sequence[Any],
    publishers: int,
    count: int,
) -> Figures:
    waiting = iter(batches)

    async def publisher() -> None:
        for batch in waiting:
            await publish(batch)

    start = time.perf_counter()
    await asyncio.gather(*(publisher() for _ in range(publishers)))
    return {"events/s": count / (time.perf_counter() - start)}


async def _consume(
    consume: Callable[[str, Mapping[int, int]], Awaitable[None]],
    stream: str,
    lags: Mapping[int, int],
) -> Figures:
    start = time.perf_counter()
    await consume(stream, lags)
    return {"events/s": sum(lags.values()) / (time.perf_counter() - start)}


async def _read(broker: Broker, stream: str, lags: Mapping[int, int]) -> None:
    async def reader(partition: int, count: int) -> None:
        batches = broker.read(stream, partition, BEGINNING)
        while count > 0:
            count -= len((await anext(batches)).records)
        await batches.aclose()  # type: ignore[attr-defined]

    await asyncio.gather(*(reader(partition, count) for partition, count in lags.items()))


async def _wait(broker: Broker, stream: str, count: int) -> list[float]:
    partition = partition_of("k", PARTITIONS)
    batches = broker.read(stream, partition, (await broker.ends(stream))[partition])
    waits = []
    for number in range(count):
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0.002)
        start = time.perf_counter()
        record = Record(stream=stream, key="k", headers={"id": str(number)}, data=b"x")
        await asyncio.gather(broker.publish([record]), waiting)
        waits.append(time.perf_counter() - start)
    await batches.aclose()  # type: ignore[attr-defined]
    return waits[count // 10 :]
