"""The RabbitMQ broker beside aiormq, the client below aio-pika, used by hand.

By hand: every record is one awaited publish, those of a batch at once; a backlog is read with a
prefetch of 512, acknowledged 256 at a time, and each message opened no further than aiormq does.
What the broker does besides: partitions, sizes, order across failures, records, bounds in bytes.
The server is the one that ``scripts/services up rabbitmq`` started. Needs ``aiormq``.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import aiormq
from aiormq.abc import AbstractChannel, DeliveredMessage

from benchmarks.comparison import Figures, Report, Way, interleave, percentile
from benchmarks.embedded_append import make_records
from benchmarks.machine import Surroundings
from oyez.brokers import connect
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Broker, Record

PARTITIONS = 8
Numbers = dict[int, int]
"""How many records there are in each partition."""


async def run(here: Surroundings) -> Report:
    """Batches of 1 and 256, 16 publishers of one record each at once, a backlog, and waiting."""
    url, rounds, rows = _url(), here.pick(3, 9), []
    async with AsyncExitStack() as stack:
        broker = connect(url, here.ambient, root=Path(), partitions=PARTITIONS)
        await broker.open()
        stack.push_async_callback(broker.close)
        connection = await aiormq.connect(url)
        stack.push_async_callback(connection.close)
        channel = await connection.channel()
        stream = f"bench.{time.time_ns()}"
        await broker.create(stream, PARTITIONS)
        there: Counter[int] = Counter()
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
                Way("aiormq by hand", partial(_publish_by_hand, channel, batches, publishers)),
            ]
            case = f"batch {batch}" + (f", {publishers} at once" if publishers > 1 else "")
            rows += await interleave(case, ways, rounds)
            for record in records:
                there[partition_of(record.key or "", PARTITIONS)] += 2 * rounds
        ways = [
            Way("oyez", partial(_consume, broker, stream, there)),
            Way("aiormq by hand", partial(_consume_by_hand, connection, stream, there)),
        ]
        rows += await interleave("backlog", ways, rounds)
        waits = await _wait(broker, stream, here.pick(100, 1_000))
        for partition in range(PARTITIONS):
            await channel.queue_delete(f"{stream}.{partition}")
    return Report(
        benchmark="rabbitmq_log",
        about="confirmed appends, and records read, a second; above 1 is faster than by hand",
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


async def _publish_by_hand(
    channel: AbstractChannel, batches: Sequence[list[Record]], publishers: int
) -> Figures:
    waiting = iter(batches)

    async def one(record: Record) -> None:
        named = {f"cloudEvents:{name}": value for name, value in record.headers.items()}
        await channel.basic_publish(
            record.data or b"",
            exchange=record.stream,
            routing_key=str(partition_of(record.key or "", PARTITIONS)),
            properties=aiormq.spec.Basic.Properties(headers=named, delivery_mode=2),
            mandatory=True,
        )

    async def publisher() -> None:
        for batch in waiting:
            await asyncio.gather(*map(one, batch))

    start = time.perf_counter()
    await asyncio.gather(*(publisher() for _ in range(publishers)))
    return {"events/s": sum(map(len, batches)) / (time.perf_counter() - start)}


async def _consume(broker: Broker, stream: str, there: Numbers) -> Figures:
    async def reader(partition: int, count: int) -> None:
        batches = broker.read(stream, partition, BEGINNING)
        while count > 0:
            count -= len((await anext(batches)).records)
        await batches.aclose()  # type: ignore[attr-defined]

    start = time.perf_counter()
    await asyncio.gather(*(reader(partition, count) for partition, count in there.items()))
    return {"events/s": sum(there.values()) / (time.perf_counter() - start)}


async def _consume_by_hand(
    connection: aiormq.abc.AbstractConnection, stream: str, there: Numbers
) -> Figures:
    async def reader(partition: int, count: int) -> None:
        channel = await connection.channel()
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

        arguments = {"x-stream-offset": "first"}
        await channel.basic_consume(f"{stream}.{partition}", take, arguments=arguments)
        await done.wait()
        await channel.close()

    start = time.perf_counter()
    await asyncio.gather(*(reader(partition, count) for partition, count in there.items()))
    return {"events/s": sum(there.values()) / (time.perf_counter() - start)}


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


def _url() -> str:
    services = Path(os.environ.get("OYEZ_SERVICES", ".services")) / "services.json"
    url: str = json.loads(services.read_text())["rabbitmq"]["url"]
    return url
