"""The NATS broker beside nats-py used by hand.

By hand: a record is one awaited publish; a batch goes out by ``publish_async`` and all its
acknowledgements are awaited, which does not keep a key's order when one of them fails; a backlog is
fetched 256 at a time and opened no further than its headers. What the broker does besides:
partitions, sizes, order across failures, records, a reader of its own for each partition. The
server is the one that ``scripts/services up nats`` started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import nats
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from benchmarks import servers
from benchmarks.comparison import Figures, Report, Way, interleave, percentile
from benchmarks.embedded_append import make_records
from benchmarks.machine import Surroundings
from oyez.brokers import connect
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Broker, Record

PARTITIONS = 8


async def run(here: Surroundings) -> Report:
    """Batches of 1 and 256, 16 publishers of one record each at once, a backlog, and waiting."""
    url, rounds, rows = servers.url("nats"), here.pick(3, 9), []
    async with AsyncExitStack() as stack:
        broker = connect(url, here.ambient, root=Path(), partitions=PARTITIONS)
        await broker.open()
        stack.push_async_callback(broker.close)
        client = await nats.connect(url)
        stack.push_async_callback(client.close)
        by_hand = client.jetstream(publish_async_max_pending=4_000)
        stream = f"bench.{time.time_ns()}"
        await broker.create(stream, PARTITIONS)
        stack.push_async_callback(by_hand.delete_stream, stream.replace(".", "_"))
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
                Way("nats-py by hand", partial(_publish_by_hand, by_hand, batches, publishers)),
            ]
            case = f"batch {batch}" + (f", {publishers} at once" if publishers > 1 else "")
            rows += await interleave(case, ways, rounds)
        lags = await broker.lag(stream, dict.fromkeys(range(PARTITIONS), BEGINNING))
        ways = [
            Way("oyez", partial(_consume, broker, stream, lags)),
            Way("nats-py by hand", partial(_consume_by_hand, by_hand, stream, lags)),
        ]
        rows += await interleave("backlog", ways, rounds)
        waits = await _wait(broker, stream, here.pick(100, 1_000))
    return Report(
        benchmark="nats_log",
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


async def _publish_by_hand(
    jetstream: JetStreamContext, batches: Sequence[list[Record]], publishers: int
) -> Figures:
    waiting = iter(
        [
            [
                (
                    f"{record.stream}.{partition_of(record.key or '', PARTITIONS)}",
                    record.data or b"",
                    {f"ce-{name}": value for name, value in record.headers.items()},
                )
                for record in batch
            ]
            for batch in batches
        ]
    )

    async def publisher() -> None:
        for batch in waiting:
            if len(batch) == 1:
                ((subject, data, headers),) = batch
                await jetstream.publish(subject, data, headers=headers)
                continue
            sent = [
                await jetstream.publish_async(subject, data, headers=headers)
                for subject, data, headers in batch
            ]
            await asyncio.gather(*sent)

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


async def _consume_by_hand(
    jetstream: JetStreamContext, stream: str, lags: Mapping[int, int]
) -> Figures:
    config = ConsumerConfig(ack_policy=AckPolicy.NONE)
    name = stream.replace(".", "_")

    async def reader(partition: int, count: int) -> None:
        subject = f"{stream}.{partition}"
        consumer = await jetstream.pull_subscribe(subject, stream=name, config=config)
        while count > 0:
            for message in await consumer.fetch(256):
                assert message.headers
                count -= 1
        await consumer.unsubscribe()

    start = time.perf_counter()
    await asyncio.gather(*(reader(partition, count) for partition, count in lags.items() if count))
    return {"events/s": sum(lags.values()) / (time.perf_counter() - start)}


async def _wait(broker: Broker, stream: str, count: int) -> list[float]:
    (end,) = [
        end for p, end in enumerate(await broker.ends(stream)) if p == partition_of("k", PARTITIONS)
    ]
    batches = broker.read(stream, partition_of("k", PARTITIONS), end)
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
