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
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from benchmarks import servers
from benchmarks.comparison import Figures, Report, Way, interleave, percentile
from benchmarks.embedded_append import make_records
from benchmarks.machine import Surroundings
from oyez.brokers import connect
from oyez.brokers.kafka.wire import Outgoing, encode
from oyez.ports import BEGINNING, Broker, Record

PARTITIONS = 8


async def run(here: Surroundings) -> Report:
    """Batches of 1 and 256, 16 publishers of one record each at once, a backlog, and waiting."""
    url, rounds, rows = servers.url("kafka"), here.pick(3, 9), []
    async with AsyncExitStack() as stack:
        broker = connect(url, here.ambient, root=Path(), partitions=PARTITIONS)
        await broker.open()
        stack.push_async_callback(broker.close)
        by_hand = _ByHand(url)
        stack.callback(by_hand.close)
        stream = f"bench.{time.time_ns()}"
        await broker.create(stream, PARTITIONS)
        for batch, publishers, count in (
            (1, 1, here.pick(100, 500)),
            (256, 1, here.pick(5_120, 51_200)),
            (1, 16, here.pick(320, 3_200)),
        ):
            records = [
                Record(stream=stream, key=r.key, headers=r.headers, data=r.data)
                for r in make_records(here, count)
            ]
            batches = [records[i : i + batch] for i in range(0, count, batch)]
            ways = [
                Way("oyez", partial(_publish, broker, batches, publishers)),
                Way("confluent-kafka by hand", partial(by_hand.publish, batches, publishers)),
            ]
            case = f"batch {batch}" + (f", {publishers} at once" if publishers > 1 else "")
            rows += await interleave(case, ways, rounds)
        count = min(here.pick(10_000, 100_000), sum(await broker.ends(stream)))
        ways = [
            Way("oyez", partial(_consume, broker, stream, count)),
            Way("confluent-kafka by hand", partial(_consume_by_hand, url, stream, count)),
        ]
        rows += await interleave("backlog", ways, rounds)
        waits = await _wait(broker, here.pick(100, 1_000))
    return Report(
        benchmark="kafka_log",
        about="durable appends, and records read, a second; above 1 is faster than by hand",
        rows=rows,
        notes=[
            "from the call of publish to the record in the hands of a reader that waits: "
            f"p50 {percentile(waits, 0.5) * 1000:.1f} ms, p99 {percentile(waits, 0.99) * 1000:.1f}"
        ],
    )


async def _publish(broker: Broker, batches: Sequence[list[Record]], publishers: int) -> Figures:
    waiting = iter(batches)

    async def publisher() -> None:
        for batch in waiting:
            await broker.publish(batch)

    start = time.perf_counter()
    await asyncio.gather(*(publisher() for _ in range(publishers)))
    return {"events/s": sum(map(len, batches)) / (time.perf_counter() - start)}


async def _consume(broker: Broker, stream: str, count: int) -> Figures:
    left = count
    done = asyncio.Event()

    async def reader(partition: int) -> None:
        nonlocal left
        async for batch in broker.read(stream, partition, BEGINNING):
            left -= len(batch.records)
            if left <= 0:
                done.set()

    start = time.perf_counter()
    readers = [asyncio.create_task(reader(partition)) for partition in range(PARTITIONS)]
    await done.wait()
    taken = time.perf_counter() - start
    for task in readers:
        task.cancel()
    await asyncio.wait(readers)
    return {"events/s": count / taken}


async def _wait(broker: Broker, count: int) -> list[float]:
    stream = f"bench.{time.time_ns()}"
    await broker.create(stream, 1)
    batches = broker.read(stream, 0, BEGINNING)
    waits = []
    for number in range(count):
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0.002)
        start = time.perf_counter()
        record = Record(stream=stream, key="k", headers={"id": str(number)}, data=b"x")
        await asyncio.gather(broker.publish([record]), waiting)
        waits.append(time.perf_counter() - start)
    return waits[count // 10 :]


class _ByHand:
    """A producer and the thread that polls it."""

    def __init__(self, url: str) -> None:
        settings = {"acks": "all", "enable.idempotence": True, "linger.ms": 0}
        self._producer = Producer({**_settings(url), **settings})
        self._ended = False
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    async def publish(self, batches: Sequence[list[Record]], publishers: int) -> Figures:
        """Each batch is confirmed before its publisher sends the next."""
        loop = asyncio.get_running_loop()
        encoded = [[encode(record, PARTITIONS) for record in batch] for batch in batches]
        waiting = iter(encoded)

        async def publisher() -> None:
            for batch in waiting:
                await self._send(loop, batch)

        start = time.perf_counter()
        await asyncio.gather(*(publisher() for _ in range(publishers)))
        return {"events/s": sum(map(len, batches)) / (time.perf_counter() - start)}

    def close(self) -> None:
        """Stop polling."""
        self._ended = True
        self._thread.join()

    def _send(
        self, loop: asyncio.AbstractEventLoop, batch: Sequence[Outgoing]
    ) -> asyncio.Future[None]:
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
        return sent

    def _poll(self) -> None:
        while not self._ended:
            self._producer.poll(0.1)


async def _consume_by_hand(url: str, stream: str, count: int) -> Figures:
    return await asyncio.to_thread(_consume_now, url, stream, count)


def _consume_now(url: str, stream: str, count: int) -> Figures:
    consumer = Consumer({**_settings(url), "group.id": "bench", "enable.auto.commit": False})
    try:
        start = time.perf_counter()
        consumer.assign([TopicPartition(stream, p, 0) for p in range(PARTITIONS)])
        left = count
        while left > 0:
            for message in consumer.consume(256, 0.01):
                assert message.error() is None
                message.key(), message.headers(), message.value()
                left -= 1
        return {"events/s": count / (time.perf_counter() - start)}
    finally:
        consumer.close()


def _settings(url: str) -> dict[str, str]:
    return {"bootstrap.servers": url.removeprefix("kafka://")}
