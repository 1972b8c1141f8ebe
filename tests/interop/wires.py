"""One stream on a real broker, with Oyez at one end and a plain driver at the other.

A `Message` is what the protocol carries: headers by their names on the wire, a body, a key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, unquote
from uuid import uuid4

import aio_pika
import nats
from confluent_kafka import Consumer, Producer, TopicPartition

from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Broker, Record
from servers import Server, server

PARTITIONS = 4
DEADLINE = 30.0
WIRES = ("kafka", "rabbitmq", "nats")
HTTP_SAFE = "".join(char for char in map(chr, range(0x21, 0x7F)) if char not in '"%')
"""What the HTTP binding, and with it that of NATS, leaves as it is in a header's value."""

Node = Callable[..., Awaitable[Any]]
"""What the fixture `node` is: run a script with a job, give its answer."""


class Message(NamedTuple):
    """A message of any of the protocols; ``kind`` is its content type where that is no header."""

    headers: dict[str, Any]
    body: bytes
    key: str | None = None
    kind: str | None = None


class Wire(Protocol):
    """A plain driver's end."""

    async def write(self, messages: Sequence[Message]) -> None:
        """Send, each to the partition of its key."""
        ...

    async def read(self, count: int) -> list[Message]:
        """The first messages of all partitions."""
        ...


class Line:
    """A stream with both ends."""

    def __init__(
        self, running: Server, broker: Broker, wire: Wire, stream: str, partitions: int
    ) -> None:
        self.partitions = partitions
        self.server = running
        self.broker = broker
        self.wire = wire
        self.stream = stream

    async def records(self, count: int) -> list[Record]:
        """The first records of all partitions, as Oyez reads them."""
        found: list[Record] = []

        async def drain(number: int) -> None:
            async for batch in self.broker.read(self.stream, number, BEGINNING):
                found.extend(batch.records)
                if len(found) >= count:
                    whole.set()

        whole = asyncio.Event()
        readers = [asyncio.create_task(drain(number)) for number in range(self.partitions)]
        try:
            async with asyncio.timeout(DEADLINE):
                await whole.wait()
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
        return found


@asynccontextmanager
async def line(name: str, root: Path, partitions: int = PARTITIONS) -> AsyncIterator[Line]:
    """A new stream on the server of this name; skips the test where it does not run."""
    running = server(name)
    broker = connect(running.url, SystemAmbient(), root=root, group="interop.reader")
    stream = f"interop-{uuid4().hex[:8]}.events"
    await broker.open()
    try:
        await broker.create(stream, partitions)
        yield Line(running, broker, _KINDS[name](running, stream), stream, partitions)
    finally:
        await broker.close()


class KafkaWire:
    """confluent-kafka, with the partitioner that Java has."""

    def __init__(self, running: Server, stream: str) -> None:
        self._servers = {"bootstrap.servers": f"{running.host}:{running.port}"}
        self._stream = stream

    async def write(self, messages: Sequence[Message]) -> None:
        """See `Wire.write`."""
        await asyncio.to_thread(self._write, messages)

    async def read(self, count: int) -> list[Message]:
        """See `Wire.read`."""
        return await asyncio.to_thread(self._read, count)

    def _write(self, messages: Sequence[Message]) -> None:
        producer = Producer({**self._servers, "partitioner": "murmur2_random"})
        for message in messages:
            headers = list(message.headers.items())
            producer.produce(self._stream, message.body, message.key, headers=headers)
        assert producer.flush(DEADLINE) == 0

    def _read(self, count: int) -> list[Message]:
        consumer = Consumer({**self._servers, "group.id": self._stream})
        found = []
        try:
            consumer.assign([TopicPartition(self._stream, p, 0) for p in range(PARTITIONS)])
            while len(found) < count:
                message = consumer.poll(DEADLINE)
                assert message is not None, f"{len(found)} of {count} messages came"
                assert message.error() is None, message.error()
                key = message.key()
                found.append(
                    Message(
                        dict(message.headers() or ()),
                        message.value() or b"",
                        None if key is None else key.decode(),
                    )
                )
        finally:
            consumer.close()
        return found


class RabbitWire:
    """aio-pika. The partition is the routing key, its queue is read from the first offset on."""

    def __init__(self, running: Server, stream: str) -> None:
        self._url = running.url
        self._stream = stream

    async def write(self, messages: Sequence[Message]) -> None:
        """See `Wire.write`."""
        async with await aio_pika.connect(self._url) as connection:
            exchange = await (await connection.channel()).get_exchange(self._stream, ensure=False)
            for message in messages:
                sent = aio_pika.Message(
                    message.body,
                    headers=message.headers,
                    content_type=message.kind,
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                )
                await exchange.publish(sent, routing_key=str(partition(message)))

    async def read(self, count: int) -> list[Message]:
        """See `Wire.read`."""
        found: asyncio.Queue[Message] = asyncio.Queue()

        async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            found.put_nowait(
                Message(dict(message.headers), message.body, kind=message.content_type)
            )
            await message.ack()

        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel()
            await channel.set_qos(100)
            for number in range(PARTITIONS):
                queue = await channel.get_queue(f"{self._stream}.{number}", ensure=False)
                await queue.consume(take, arguments={"x-stream-offset": "first"})
            async with asyncio.timeout(DEADLINE):
                return [await found.get() for _ in range(count)]


class NatsWire:
    """nats-py. The partition is the last part of the subject."""

    def __init__(self, running: Server, stream: str) -> None:
        self._url = running.url
        self._stream = stream

    async def write(self, messages: Sequence[Message]) -> None:
        """See `Wire.write`."""
        client = await nats.connect(self._url)
        try:
            jetstream = client.jetstream()
            for message in messages:
                subject = f"{self._stream}.{partition(message)}"
                await jetstream.publish(subject, message.body, headers=message.headers)
        finally:
            await client.close()

    async def read(self, count: int) -> list[Message]:
        """See `Wire.read`."""
        client = await nats.connect(self._url)
        try:
            jetstream = client.jetstream()
            coming = await jetstream.subscribe(f"{self._stream}.*", ordered_consumer=True)
            found = [await coming.next_msg(DEADLINE) for _ in range(count)]
            return [Message(dict(each.headers or {}), each.data) for each in found]
        finally:
            await client.close()


_KINDS = {"kafka": KafkaWire, "rabbitmq": RabbitWire, "nats": NatsWire}


def partition(message: Message) -> int:
    """Where a message belongs; without a key anywhere."""
    return 0 if message.key is None else partition_of(message.key, PARTITIONS)


def http_headers(headers: dict[str, str]) -> dict[str, str]:
    """Attributes by plain name as the HTTP binding writes them."""
    written = {f"ce-{name}": quote(value, safe=HTTP_SAFE) for name, value in headers.items()}
    if kind := headers.get("datacontenttype"):
        del written["ce-datacontenttype"]
        written["content-type"] = kind
    return written


def plain_headers(headers: dict[str, str]) -> dict[str, str]:
    """Attributes by plain name from the headers of an HTTP request."""
    plain = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower.startswith("ce-"):
            plain[lower[3:]] = unquote(value)
        elif lower == "content-type":
            plain["datacontenttype"] = value
    return plain
