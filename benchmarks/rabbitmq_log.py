"""The RabbitMQ broker beside aiormq, the client below aio-pika, used by hand.

By hand: every record is one awaited publish, those of a batch at once; a backlog is read with a
prefetch of 512, acknowledged 256 at a time, and each message opened no further than aiormq does.
What the broker does besides: partitions, sizes, order across failures, records, bounds in bytes.
The server is the one that ``scripts/services up rabbitmq`` started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage

from benchmarks import servers
from benchmarks.broker_log import PARTITIONS, compare
from benchmarks.comparison import Report
from benchmarks.machine import Surroundings
from oyez.brokers import connect
from oyez.partitioning import partition_of
from oyez.ports import Record


async def run(here: Surroundings) -> Report:
    """The broker against the usual client."""
    url = servers.url("rabbitmq")
    async with AsyncExitStack() as stack:
        broker = connect(url, here.ambient, root=Path(), partitions=PARTITIONS)
        await broker.open()
        stack.push_async_callback(broker.close)
        connection = await aiormq.connect(url)
        stack.push_async_callback(connection.close)
        client = _Client(connection, await connection.channel())
        return await compare(here, broker, client, benchmark="rabbitmq_log", large=10_240)


class _Client:
    name = "aiormq by hand"

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self._connection = connection
        self._channel = channel

    def prepare(self, batch: Sequence[Record]) -> Any:
        return batch

    async def publish(self, batch: Any) -> None:
        await asyncio.gather(*map(self._publish, batch))

    async def _publish(self, record: Record) -> None:
        named: Any = {f"cloudEvents:{name}": value for name, value in record.headers.items()}
        await self._channel.basic_publish(
            record.data or b"",
            exchange=record.stream,
            routing_key=str(partition_of(record.key or "", PARTITIONS)),
            properties=aiormq.spec.Basic.Properties(headers=named, delivery_mode=2),
            mandatory=True,
        )

    async def consume(self, stream: str, lags: Mapping[int, int]) -> None:
        await asyncio.gather(
            *(self._read(f"{stream}.{partition}", count) for partition, count in lags.items())
        )

    async def _read(self, queue: str, count: int) -> None:
        channel = await self._connection.channel()
        await channel.basic_qos(prefetch_count=512)
        done = asyncio.Event()
        seen = 0

        async def take(message: DeliveredMessage) -> None:
            nonlocal seen
            seen += 1
            assert message.header.properties.headers
            if seen % 256 == 0 and seen < count:
                await channel.basic_ack(message.delivery_tag or 0, multiple=True)
            if seen >= count:
                done.set()

        await channel.basic_consume(queue, take, arguments={"x-stream-offset": "first"})
        await done.wait()
        await channel.close()
