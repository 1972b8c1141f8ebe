"""The face of SNS and SQS, `oyez.ports.Broker`: topics to publish to and queues to read from."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from oyez.ambient import Ambient
from oyez.brokers.kit.calls import Deadline
from oyez.brokers.kit.streams import Place, check_count, partitions_of
from oyez.brokers.kit.watch import every, stop
from oyez.brokers.sns_sqs.connection import Aws
from oyez.brokers.sns_sqs.inspection import inspect
from oyez.brokers.sns_sqs.options import SnsSqsOptions
from oyez.brokers.sns_sqs.publisher import Call, Topic
from oyez.brokers.sns_sqs.reader import Queue
from oyez.brokers.sns_sqs.topology import Topology
from oyez.brokers.sns_sqs.wire import MAX_BYTES, encode
from oyez.endpoint import Endpoint
from oyez.errors import BrokerError, BrokerRefused
from oyez.ports import Batch, Capabilities, Finding, Position, Record

_ADDRESS = re.compile(r"https?://[A-Za-z0-9._-]+(?::[0-9]{1,5})?/?")


class SnsSqsBroker:
    """Topics and queues in one region; the face is `oyez.ports.Broker`."""

    def __init__(
        self, endpoint: Endpoint, ambient: Ambient, options: SnsSqsOptions, group: str = ""
    ) -> None:
        """``group`` owns the queues that are read; without one it publishes and looks on."""
        if len(endpoint.hosts) > 1 or endpoint.path:
            raise endpoint.error("expected sns+sqs://REGION with nothing but options behind it")
        if options.endpoint is not None and not _ADDRESS.fullmatch(options.endpoint):
            raise endpoint.error("option endpoint: expected http://HOST:PORT or https://HOST:PORT")
        self.options = options
        self.capabilities = Capabilities(
            durability="volatile" if options.emulated else "power-loss",
            history=False,
            processes=True,
            max_bytes=MAX_BYTES,
        )
        self._ambient = ambient
        self._group = group
        self._aws = Aws(endpoint, ambient, options)
        self._topology = Topology(self._aws, ambient, options, group)
        self._topics: dict[Place, Topic] = {}
        self._queues: dict[Place, Queue] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        if not self._tasks:
            ambient, options = self._ambient, self.options
            look = every(ambient, options.poll, self._look)
            extend = every(ambient, options.visibility / 3, self._extend)
            self._tasks = [
                asyncio.create_task(look, name="sns_sqs streams"),
                asyncio.create_task(extend, name="sns_sqs visibility"),
            ]
        where = self._aws.where
        async with Deadline(self.options.deadline, where, self._ambient.timeout) as deadline:
            deadline.trouble = "the group does not subscribe to all streams yet, but goes on"
            await self._topology.look()

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        await stop(*tasks)
        topics, self._topics = self._topics, {}
        queues, self._queues = self._queues, {}
        await asyncio.gather(*(topic.close() for topic in topics.values()))
        await asyncio.gather(*(queue.close() for queue in queues.values()))
        with contextlib.suppress(BrokerError):  # what is left is empty soon, and `inspect` tells
            await self._topology.leave()
        await self._aws.close()

    async def publish(self, records: Sequence[Record]) -> None:
        texts = [encode(record) for record in records]
        counts = {}
        for stream in {record.stream for record in records}:
            counts[stream] = await self._topology.count(stream)
        call = Call()
        topics: set[Topic] = set()
        partitions = partitions_of(records, counts)
        for record, text, partition in zip(records, texts, partitions, strict=True):
            topic = self._topic(record.stream, partition)
            topic.send(call, record.key, record.headers.get("id", ""), text)
            topics.add(topic)
        try:
            if records:
                await call.wait(self.options.deadline, self._aws.where)
        finally:
            if call.unconfirmed:
                for topic in topics:
                    topic.drop(call)

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        """See `Broker.read`. ``after`` is only where positions are counted on from.

        Without a group it looks on: what is published from now on, in queues of its own, which
        `close` deletes.
        """
        queue = self._queues.get((stream, partition))
        if queue is None:
            queue = self._queues[stream, partition] = Queue(
                self._aws,
                self._ambient,
                self.options,
                (stream, partition),
                lambda lost: self._topology.queue(stream, partition, lost=lost),
            )
        reader = queue.read(after)
        try:
            async for batch in reader:
                yield batch
                if not self._group:
                    queue.handled(batch.records[-1].position)
        finally:
            await reader.aclose()

    def handled(self, stream: str, partition: int, position: Position) -> None:
        queue = self._queues.get((stream, partition))
        if queue is not None:
            queue.handled(position)

    async def streams(self) -> Mapping[str, int]:
        await self._topology.look()
        return dict(self._topology.streams.known)

    async def create(self, stream: str, partitions: int) -> None:
        check_count(stream, await self._topology.make(stream, partitions), partitions)

    async def ends(self, stream: str) -> Sequence[Position]:
        """Refuse: each reader of a queue counts positions of its own. Raises BrokerRefused."""
        raise BrokerRefused("SQS keeps no history: a stream there has no positions to look at")

    async def starts(self, stream: str) -> Sequence[Position]:
        """Refuse: each reader of a queue counts positions of its own. Raises BrokerRefused."""
        raise BrokerRefused("SQS keeps no history: a stream there has no positions to look at")

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        """What is in the group's queues, in messages; SQS counts a minute behind at worst."""
        if not self._group:
            raise BrokerRefused("SQS knows how much is left for a service only: ask as one")
        counts = await self._topology.waiting(stream, sorted(positions))
        for partition in counts:
            queue = self._queues.get((stream, partition))
            if queue is not None:
                counts[partition] = max(0, counts[partition] - queue.undeleted)
        return counts

    async def inspect(self) -> Sequence[Finding]:
        await self._topology.look()
        return await inspect(self._aws, self._topology, self.options)

    def on_streams(self, callback: Callable[[], None]) -> None:
        self._topology.streams.listen(callback)

    def _topic(self, stream: str, partition: int) -> Topic:
        topic = self._topics.get((stream, partition))
        if topic is None:
            arn = self._topology.topic_arn(stream, partition)
            topic = Topic(self._aws, self._ambient, arn, lambda: self._topology.mend(stream))
            self._topics[stream, partition] = topic
        return topic

    async def _look(self) -> None:
        # Someone may have asked for the streams meanwhile.
        if self._ambient.monotonic() - self._topology.looked >= self.options.poll:
            await self._topology.look()

    async def _extend(self) -> None:
        await asyncio.gather(*map(_extend, list(self._queues.values())))


async def _extend(queue: Queue) -> None:
    with contextlib.suppress(BrokerError):  # what expires comes again, and the inbox knows it
        await queue.extend()
