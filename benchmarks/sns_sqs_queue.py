"""The SNS and SQS broker beside aiobotocore used by hand.

By hand: batches of ten messages, one for each event, to each partition's topic at once; a backlog
is received and deleted ten at a time from each queue, opened no further than its JSON. What the
broker does besides: partitions, sizes, order across failures, events of one key in one message,
records, visibility. The server is the emulator that ``scripts/services up sns_sqs`` started, which
is slower than AWS by itself and nearer by its network: CPU seconds are those of the client alone.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import aiobotocore.session
import msgspec

from benchmarks.comparison import Figures, Report, Way, interleave
from benchmarks.embedded_append import make_records
from benchmarks.machine import Surroundings
from benchmarks.servers import url
from oyez.brokers import connect
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Broker, Record

PARTITIONS = 8
KEY = SECRET = "testing"
MARKED = {"content-type": {"DataType": "String", "StringValue": "application/cloudevents+json"}}


async def run(here: Surroundings) -> Report:
    """Batches of 1 and 256, 256 of one key, and a backlog."""
    url, rounds, rows = _url(), here.pick(2, 5), []
    async with AsyncExitStack() as stack:
        system = f"b{time.time_ns() % 10**9}"
        group, queued, unread = f"{system}.reader", f"{system}.events", f"{system}x.events"
        broker = connect(
            f"{url}&wait=1", here.ambient, root=Path(), group=group, partitions=PARTITIONS
        )
        await broker.open()
        stack.push_async_callback(broker.close)
        for stream in (queued, unread):
            await broker.create(stream, PARTITIONS)
        by_hand = _ByHand(group)
        await by_hand.open(url, stack)
        for name, batch, count, one_key in (
            ("batch 1", 1, here.pick(30, 100), False),
            ("batch 256", 256, here.pick(256, 1_024), False),
            ("batch 256, one key", 256, here.pick(256, 512), True),
        ):
            records = [
                Record(
                    stream=unread, key="one" if one_key else r.key, headers=r.headers, data=r.data
                )
                for r in make_records(here, count)
            ]
            batches = [records[i : i + batch] for i in range(0, count, batch)]
            ways = [
                Way("oyez", partial(_publish, broker, batches)),
                Way("aiobotocore by hand", partial(by_hand.publish, batches)),
            ]
            rows += await interleave(f"publish {name}", ways, rounds)
        backlog = [
            msgspec.structs.replace(r, stream=queued)
            for r in make_records(here, here.pick(256, 1_024))
        ]
        ways = [
            Way("oyez", partial(_consume, broker, by_hand, backlog)),
            Way("aiobotocore by hand", partial(by_hand.consume, backlog)),
        ]
        rows += await interleave("consume a backlog", ways, rounds)
    return Report(
        benchmark="sns_sqs_queue",
        about="events a second, and for each second of the client's CPU; above 1 is faster",
        rows=rows,
        notes=["the emulator takes most of the time: the figures for CPU carry over to AWS"],
    )


def _url() -> str:
    return url("sns_sqs").replace("testing:testing@", f"{KEY}:{SECRET}@", 1)


class _Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def figures(self, count: int) -> Figures:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"events/s": count / wall, "events/CPU s": count / cpu}


async def _publish(broker: Broker, batches: Sequence[list[Record]]) -> Figures:
    clock = _Clock()
    for batch in batches:
        await broker.publish(batch)
    return clock.figures(sum(map(len, batches)))


async def _consume(broker: Broker, by_hand: _ByHand, backlog: list[Record]) -> Figures:
    await by_hand.publish([backlog])
    clock = _Clock()
    left = len(backlog)
    done = asyncio.Event()

    async def reader(partition: int) -> None:
        nonlocal left
        async for batch in broker.read(backlog[0].stream, partition, BEGINNING):
            left -= len(batch.records)
            broker.handled(backlog[0].stream, partition, batch.records[-1].position)
            if left <= 0:
                done.set()

    readers = [asyncio.create_task(reader(partition)) for partition in range(PARTITIONS)]
    await done.wait()
    figures = clock.figures(len(backlog))
    for task in readers:
        task.cancel()
    await asyncio.wait(readers)
    while any((await broker.lag(backlog[0].stream, dict.fromkeys(range(PARTITIONS), 0))).values()):
        await asyncio.sleep(0.05)
    return figures


class _ByHand:
    def __init__(self, group: str) -> None:
        self._group = group
        self._sns: Any = None
        self._sqs: Any = None

    async def open(self, url: str, stack: AsyncExitStack) -> None:
        session = aiobotocore.session.get_session()
        settings = {
            "region_name": "us-east-1",
            "endpoint_url": url.partition("endpoint=")[2],
            "aws_access_key_id": KEY,
            "aws_secret_access_key": SECRET,
        }
        self._sns = await stack.enter_async_context(session.create_client("sns", **settings))
        self._sqs = await stack.enter_async_context(session.create_client("sqs", **settings))

    async def publish(self, batches: Sequence[list[Record]]) -> Figures:
        clock = _Clock()
        for batch in batches:
            parts: list[list[Record]] = [[] for _ in range(PARTITIONS)]
            for record in batch:
                parts[partition_of(record.key or "", PARTITIONS)].append(record)
            names = _names(batch[0].stream)
            await asyncio.gather(*map(self._send, names, parts))
        return clock.figures(sum(map(len, batches)))

    async def _send(self, name: str, records: list[Record]) -> None:
        topic = f"arn:aws:sns:us-east-1:123456789012:{name}"
        for start in range(0, len(records), 10):
            entries = [
                {
                    "Id": str(number),
                    "Message": msgspec.json.encode(
                        {**record.headers, "data": msgspec.Raw(record.data or b"null")}
                    ).decode(),
                    "MessageGroupId": record.key,
                    "MessageDeduplicationId": uuid.uuid4().hex,
                    "MessageAttributes": MARKED,
                }
                for number, record in enumerate(records[start : start + 10])
            ]
            answer = await self._sns.publish_batch(
                TopicArn=topic, PublishBatchRequestEntries=entries
            )
            assert not answer.get("Failed")

    async def consume(self, backlog: list[Record]) -> Figures:
        await self.publish([backlog])
        clock = _Clock()
        taken = sum(await asyncio.gather(*map(self._drain, _names(backlog[0].stream))))
        assert taken == len(backlog)
        return clock.figures(taken)

    async def _drain(self, name: str) -> int:
        found = await self._sqs.get_queue_url(QueueName=f"{self._group.replace('.', '_')}__{name}")
        queue, taken = found["QueueUrl"], 0
        while True:
            answer = await self._sqs.receive_message(
                QueueUrl=queue, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
            )
            messages = answer.get("Messages", [])
            if not messages:
                return taken
            for message in messages:
                msgspec.json.decode(message["Body"])
            await self._sqs.delete_message_batch(
                QueueUrl=queue,
                Entries=[
                    {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                    for number, message in enumerate(messages)
                ],
            )
            taken += len(messages)


def _names(stream: str) -> list[str]:
    return [f"{stream.replace('.', '_')}__{partition}.fifo" for partition in range(PARTITIONS)]
