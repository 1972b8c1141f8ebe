"""FastStream's side of `benchmarks.plain_consume`: its subscribers, each of a durable group.

On Kafka it reads the very topic that Oyez reads, of 8 partitions; elsewhere one stream or queue of
its own, with the same headers and data, since it names and frames them in its own way. An event is
acknowledged when its handler has returned, and a batch as a whole. *Unsafe* is FastStream's default
on Kafka: positions are committed every 5 s, whether or not their events were handled. Its client of
Kafka is aiokafka unless said otherwise. RabbitMQ's queue is filled again for each turn, since what
is acknowledged is gone, and 256 events of it are on their way at once.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from faststream import AckPolicy
from pydantic import BaseModel

from benchmarks.plain_consume import BATCH, Tally
from oyez.ports import Record

_AT_ONCE = 64

Consume = Callable[[Tally], Awaitable[None]]


class Payment(BaseModel):
    """The event."""

    account: str
    order: str
    cents: int


@asynccontextmanager
async def peers(
    broker: str, url: str, records: Sequence[Record]
) -> AsyncIterator[dict[str, Consume]]:
    """The ways of a broker to consume these records, by name; they can until the block ends."""
    async with _BROKERS[broker](url, records) as found:
        yield dict(found)


@asynccontextmanager
async def _kafka(url: str, records: Sequence[Record]) -> AsyncIterator[Mapping[str, Consume]]:
    from faststream import confluent, kafka

    servers, topic = url.removeprefix("kafka://"), records[0].stream

    async def aiokafka(tally: Tally, *, batch: bool, ack: AckPolicy = AckPolicy.ACK) -> None:
        broker = kafka.KafkaBroker(servers, logger=None)
        source = broker.subscriber(
            topic,
            batch=batch,
            group_id=str(uuid.uuid4()),
            auto_offset_reset="earliest",
            ack_policy=ack,
            max_records=BATCH if batch else None,
        )
        await _consume(broker, source, tally, batch=batch)

    async def librdkafka(tally: Tally) -> None:
        broker = confluent.KafkaBroker(servers, logger=None)
        source = broker.subscriber(
            topic,
            batch=True,
            group_id=str(uuid.uuid4()),
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.ACK,
            max_records=BATCH,
        )
        await _consume(broker, source, tally, batch=True)

    yield {
        "one by one": partial(aiokafka, batch=False),
        "one by one, unsafe": partial(aiokafka, batch=False, ack=AckPolicy.ACK_FIRST),
        "batches": partial(aiokafka, batch=True),
        "batches by confluent-kafka": librdkafka,
    }


@asynccontextmanager
async def _nats(url: str, records: Sequence[Record]) -> AsyncIterator[Mapping[str, Consume]]:
    from faststream.nats import JStream, NatsBroker, PullSub

    name = f"bench-{uuid.uuid4()}"
    async with NatsBroker(url, logger=None) as broker:
        context = broker.config.connection_state.stream
        await context.add_stream(name=name, subjects=[name])
        await _publish(records, partial(broker.publish, subject=name, stream=name, timeout=10))

        async def consume(tally: Tally, *, batch: bool) -> None:
            reading = NatsBroker(url, logger=None)
            source = reading.subscriber(
                name,
                stream=JStream(name, subjects=[name], declare=False),
                durable=str(uuid.uuid4()),
                pull_sub=PullSub(batch_size=BATCH, batch=batch, timeout=0.1),
                ack_policy=AckPolicy.ACK,
            )
            await _consume(reading, source, tally, batch=batch)

        yield {"one by one": partial(consume, batch=False), "batches": partial(consume, batch=True)}
        await context.delete_stream(name)


@asynccontextmanager
async def _redis(url: str, records: Sequence[Record]) -> AsyncIterator[Mapping[str, Consume]]:
    from faststream.redis import RedisBroker, StreamSub
    from redis.asyncio import Redis

    name = f"bench-{uuid.uuid4()}"
    client: Any = Redis.from_url(url)
    async with RedisBroker(url, logger=None) as broker:
        await _publish(records, partial(broker.publish, stream=name))

    async def consume(tally: Tally, *, batch: bool) -> None:
        group = str(uuid.uuid4())
        await client.xgroup_create(name, group, id="0")
        broker = RedisBroker(url, logger=None)
        source = broker.subscriber(
            stream=StreamSub(
                name,
                group=group,
                consumer="one",
                max_records=BATCH,
                batch=batch,
                polling_interval=10,
            ),
            ack_policy=AckPolicy.ACK,
        )
        await _consume(broker, source, tally, batch=batch)

    yield {"one by one": partial(consume, batch=False), "batches": partial(consume, batch=True)}
    await client.delete(name)
    await client.aclose()


@asynccontextmanager
async def _rabbitmq(url: str, records: Sequence[Record]) -> AsyncIterator[Mapping[str, Consume]]:
    from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

    async def consume(tally: Tally) -> None:
        queue = RabbitQueue(f"bench-{uuid.uuid4()}", durable=True)
        async with RabbitBroker(url, logger=None) as filling:
            declared = await filling.declare_queue(queue)
            await _publish(records, partial(filling.publish, queue=queue, persist=True))
            broker = RabbitBroker(url, logger=None, default_channel=Channel(prefetch_count=BATCH))
            source = broker.subscriber(queue, ack_policy=AckPolicy.ACK)
            await _consume(broker, source, tally, batch=False)
            await declared.delete(if_unused=False, if_empty=False)

    yield {"one by one": consume}


async def _publish(records: Sequence[Record], publish: Callable[..., Awaitable[Any]]) -> None:
    """Publish all, some at once: each takes a connection to Redis while it waits."""
    for start in range(0, len(records), _AT_ONCE):
        await asyncio.gather(
            *(
                publish(each.data, headers=each.headers)
                for each in records[start : start + _AT_ONCE]
            )
        )


async def _consume(broker: Any, source: Any, tally: Tally, *, batch: bool) -> None:
    """Count what the subscriber gets until that is all."""
    if batch:

        @source
        async def count_all(events: list[Payment]) -> None:
            for event in events:
                tally.add(event.cents)
    else:

        @source
        async def count(event: Payment) -> None:
            tally.add(event.cents)

    await broker.start()
    try:
        await tally.complete.wait()
    finally:
        await broker.stop()


_BROKERS: dict[str, Any] = {"kafka": _kafka, "nats": _nats, "redis": _redis, "rabbitmq": _rabbitmq}
