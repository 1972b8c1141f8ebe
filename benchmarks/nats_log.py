"""The NATS broker beside nats-py used by hand.

By hand: a record is one awaited publish; a batch goes out by ``publish_async`` and all its
acknowledgements are awaited, which does not keep a key's order when one of them fails; a backlog is
fetched 256 at a time and opened no further than its headers. What the broker does besides:
partitions, sizes, order across failures, records, a reader of its own for each partition. The
server is the one that ``scripts/services up nats`` started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import nats
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from benchmarks import servers
from benchmarks.broker_log import PARTITIONS, compare
from benchmarks.comparison import Report
from benchmarks.machine import Surroundings
from oyez.brokers import connect
from oyez.partitioning import partition_of
from oyez.ports import Record


async def run(here: Surroundings) -> Report:
    """The broker against the usual client."""
    url = servers.url("nats")
    async with AsyncExitStack() as stack:
        broker = connect(url, here.ambient, root=Path(), partitions=PARTITIONS)
        await broker.open()
        stack.push_async_callback(broker.close)
        client = await nats.connect(url)
        stack.push_async_callback(client.close)
        by_hand = _Client(client.jetstream(publish_async_max_pending=4_000))
        return await compare(here, broker, by_hand, benchmark="nats_log", large=10_240)


class _Client:
    name = "nats-py by hand"

    def __init__(self, jetstream: JetStreamContext) -> None:
        self._jetstream = jetstream

    def prepare(self, batch: Sequence[Record]) -> Any:
        return [
            (
                f"{record.stream}.{partition_of(record.key or '', PARTITIONS)}",
                record.data or b"",
                {f"ce-{name}": value for name, value in record.headers.items()},
            )
            for record in batch
        ]

    async def publish(self, batch: Any) -> None:
        if len(batch) == 1:
            ((subject, data, headers),) = batch
            await self._jetstream.publish(subject, data, headers=headers)
            return
        sent = [
            await self._jetstream.publish_async(subject, data, headers=headers)
            for subject, data, headers in batch
        ]
        await asyncio.gather(*sent)

    async def consume(self, stream: str, lags: Mapping[int, int]) -> None:
        config = ConsumerConfig(ack_policy=AckPolicy.NONE)
        name = stream.replace(".", "_")

        async def reader(partition: int, count: int) -> None:
            consumer = await self._jetstream.pull_subscribe(
                f"{stream}.{partition}", stream=name, config=config
            )
            while count > 0:
                for message in await consumer.fetch(256):
                    assert message.headers
                    count -= 1
            await consumer.unsubscribe()

        await asyncio.gather(*(reader(partition, count) for partition, count in lags.items()))
