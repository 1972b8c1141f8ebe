"""The Redis broker beside redis-py used by hand.

By hand: a record is one awaited XADD, a batch is one pipeline, a backlog is read by XRANGE, 256 at
a time and opened no further than its fields. The server is the one that ``scripts/services up
redis`` started: every write is on disk before its reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from benchmarks import servers
from benchmarks.broker_log import PARTITIONS, compare
from benchmarks.comparison import Report
from benchmarks.machine import Surroundings
from oyez.brokers import connect
from oyez.partitioning import partition_of
from oyez.ports import Record


async def run(here: Surroundings) -> Report:
    """The broker against its client."""
    url = servers.url("redis")
    async with AsyncExitStack() as stack:
        broker = connect(url, here.ambient, root=Path(), partitions=PARTITIONS)
        await broker.open()
        stack.push_async_callback(broker.close)
        client: Any = Redis.from_url(url, protocol=2)
        stack.push_async_callback(client.aclose)
        return await compare(
            here, broker, _Client(client), benchmark="redis_log", large=10_240, backlog=0.7
        )


class _Client:
    name = "redis-py by hand"

    def __init__(self, client: Any) -> None:
        self._client = client

    def prepare(self, batch: Sequence[Record]) -> Any:
        return [
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

    async def publish(self, batch: Any) -> None:
        if len(batch) == 1:
            await self._client.xadd(*batch[0])
            return
        pipeline = self._client.pipeline(transaction=False)
        for key, fields in batch:
            pipeline.xadd(key, fields)
        await pipeline.execute()

    async def consume(self, stream: str, lags: Mapping[int, int]) -> None:
        async def reader(partition: int, count: int) -> None:
            after = "-"
            while count > 0:
                key = f"{stream}:{partition}"
                entries = await self._client.xrange(key, after, "+", count=256)
                for _, fields in entries:
                    assert fields[b"data"]
                    count -= 1
                after = f"({entries[-1][0].decode()}"

        await asyncio.gather(*(reader(partition, count) for partition, count in lags.items()))
