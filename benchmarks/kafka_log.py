"""The Kafka broker beside confluent-kafka used by hand.

By hand: one idempotent producer with ``acks=all`` whose reports are counted on a polling thread,
and one consumer whose messages are taken 256 at a time and opened no further than key, headers and
value. What the broker does besides: partitions, sizes, bounded windows, order across failures,
records, readers of their own for each partition. The server is the one that
``scripts/services up kafka`` started.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from benchmarks import servers
from benchmarks.broker_log import PARTITIONS, compare
from benchmarks.comparison import Report
from benchmarks.machine import Surroundings
from oyez.brokers import connect
from oyez.brokers.kafka.wire import encode
from oyez.brokers.kit.streams import partitions_of
from oyez.ports import Record


async def run(here: Surroundings) -> Report:
    """The broker against its client."""
    url = servers.url("kafka")
    async with AsyncExitStack() as stack:
        broker = connect(url, here.ambient, root=Path(), partitions=PARTITIONS)
        await broker.open()
        stack.push_async_callback(broker.close)
        client = _Client({"bootstrap.servers": url.removeprefix("kafka://")})
        stack.callback(client.close)
        return await compare(here, broker, client, benchmark="kafka_log", large=25_600, backlog=0.7)


class _Client:
    """A producer and the thread that polls it."""

    name = "confluent-kafka by hand"

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings
        own = {"acks": "all", "enable.idempotence": True, "linger.ms": 0}
        self._producer = Producer({**settings, **own})
        self._ended = False
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def close(self) -> None:
        """Stop polling."""
        self._ended = True
        self._thread.join()

    def prepare(self, batch: Sequence[Record]) -> Any:
        counts = {record.stream: PARTITIONS for record in batch}
        return list(map(encode, batch, partitions_of(batch, counts)))

    async def publish(self, batch: Any) -> None:
        loop = asyncio.get_running_loop()
        sent = loop.create_future()
        left = len(batch)

        def report(error: KafkaError | None, _: Message) -> None:
            nonlocal left
            assert error is None, error
            left -= 1
            if not left:
                loop.call_soon_threadsafe(sent.set_result, None)

        for topic, value, key, partition, headers in batch:
            self._producer.produce(topic, value, key, partition, report, None, 0, headers)
        await sent

    async def consume(self, stream: str, lags: Mapping[int, int]) -> None:
        await asyncio.to_thread(self._consume, stream, sum(lags.values()))

    def _consume(self, stream: str, left: int) -> None:
        own = {"group.id": "bench", "enable.auto.commit": False}
        consumer = Consumer({**self._settings, **own})
        try:
            consumer.assign([TopicPartition(stream, p, 0) for p in range(PARTITIONS)])
            while left > 0:
                for message in consumer.consume(256, 0.01):
                    assert message.error() is None
                    message.key(), message.headers(), message.value()
                    left -= 1
        finally:
            consumer.close()

    def _poll(self) -> None:
        while not self._ended:
            self._producer.poll(0.1)
