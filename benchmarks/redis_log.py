"""The Redis broker beside redis-py used by hand.

By hand: a record is one awaited XADD, a batch is one pipeline, a backlog is read by XRANGE, 256 at
a time and opened no further than its fields. The server is the one that ``scripts/services up
redis`` started: every write is on disk before its reply.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from benchmarks.comparison import Figures, Report, Way, interleave
from benchmarks.embedded_append import make_records
from benchmarks.machine import Surroundings
from benchmarks.servers import url
from oyez.brokers import connect
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Broker, Record

PARTITIONS = 8


async def run(here: Surroundings) -> Report:
    """Batches of 1 and 256, 16 publishers of one record each at once, and a backlog."""
    rounds, rows = here.pick(3, 9), []
    async with AsyncExitStack() as stack:
        broker = connect(url("redis"), here.ambient, root=Path(), partitions=PARTITIONS)
        await broker.open()
        stack.push_async_callback(broker.close)
        by_hand: Any = Redis.from_url(url("redis"), protocol=2)
        stack.push_async_callback(by_hand.aclose)
        stream = f"bench.{time.time_ns()}"
        await broker.create(stream, PARTITIONS)
        keys = [f"{stream}:{partition}" for partition in range(PARTITIONS)]
        stack.push_async_callback(by_hand.hdel, "oyez:streams", stream)
        stack.push_async_callback(by_hand.delete, *keys)
        for batch, publishers, count in (
            (1, 1, here.pick(100, 500)),
            (256, 1, here.pick(2_560, 10_240)),
            (1, 16, here.pick(320, 1_600)),
        ):
            records = [
                Record(stream=stream, key=r.key, headers=r.headers, data=r.data)
                for r in make_records(here, count)
            ]
            batches = [records[i : i + batch] for i in range(0, count, batch)]
            ways = [
                Way("oyez", partial(_publish, broker, batches, publishers)),
                Way("redis-py by hand", partial(_publish_by_hand, by_hand, batches, publishers)),
            ]
            case = f"batch {batch}" + (f", {publishers} at once" if publishers > 1 else "")
            rows += await interleave(case, ways, rounds)
        lags = await broker.lag(stream, dict.fromkeys(range(PARTITIONS), BEGINNING))
        ways = [
            Way("oyez", partial(_consume, broker, stream, lags)),
            Way("redis-py by hand", partial(_consume_by_hand, by_hand, stream, lags)),
        ]
        rows += await interleave("backlog", ways, rounds)
    return Report(
        benchmark="redis_log",
        about="durable appends, and records read, a second; above 1 is faster than by hand",
        rows=rows,
        notes=[],
    )


async def _publish(broker: Broker, batches: Sequence[list[Record]], publishers: int) -> Figures:
    waiting = iter(batches)

    async def publisher() -> None:
        for batch in waiting:
            await broker.publish(batch)

    start = time.perf_counter()
    await asyncio.gather(*(publisher() for _ in range(publishers)))
    return {"events/s": sum(map(len, batches)) / (time.perf_counter() - start)}


async def _publish_by_hand(
    client: Any, batches: Sequence[list[Record]], publishers: int
) -> Figures:
    waiting = iter(
        [
            [
                (
                    f"{record.stream}:{partition_of(record.key or '', PARTITIONS)}",
                    {
                        "key": record.key,
                        **{f"ce_{name}": value for name, value in record.headers.items()},
                        "data": record.data,
                    },
                )
                for record in batch
            ]
            for batch in batches
        ]
    )

    async def publisher() -> None:
        for batch in waiting:
            if len(batch) == 1:
                ((key, fields),) = batch
                await client.xadd(key, fields)
                continue
            pipeline = client.pipeline(transaction=False)
            for key, fields in batch:
                pipeline.xadd(key, fields)
            await pipeline.execute()

    start = time.perf_counter()
    await asyncio.gather(*(publisher() for _ in range(publishers)))
    return {"events/s": sum(map(len, batches)) / (time.perf_counter() - start)}


async def _consume(broker: Broker, stream: str, lags: Mapping[int, int]) -> Figures:
    async def reader(partition: int, count: int) -> None:
        batches = broker.read(stream, partition, BEGINNING)
        while count > 0:
            count -= len((await anext(batches)).records)
        await batches.aclose()  # type: ignore[attr-defined]

    start = time.perf_counter()
    await asyncio.gather(*(reader(partition, count) for partition, count in lags.items()))
    return {"events/s": sum(lags.values()) / (time.perf_counter() - start)}


async def _consume_by_hand(client: Any, stream: str, lags: Mapping[int, int]) -> Figures:
    async def reader(partition: int, count: int) -> None:
        after = "-"
        while count > 0:
            entries = await client.xrange(f"{stream}:{partition}", after, "+", count=256)
            for _, fields in entries:
                assert fields[b"data"]
                count -= 1
            after = f"({entries[-1][0].decode()}"

    start = time.perf_counter()
    await asyncio.gather(*(reader(partition, count) for partition, count in lags.items()))
    return {"events/s": sum(lags.values()) / (time.perf_counter() - start)}
