"""The face of RabbitMQ: `oyez.ports.Broker` over two connections, one to publish and one to read.

A server that is short of memory or disk stops reading from a connection that publishes, so whatever
else there is to say goes over the other one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from oyez.ambient import Ambient
from oyez.brokers.kit.calls import Deadline, Pauses
from oyez.brokers.kit.streams import Place, behind, check_count, partitions_of
from oyez.brokers.kit.watch import Rounds, every, stop
from oyez.brokers.rabbitmq.amqp import FRAME_MAX, NOT_FOUND, AmqpError
from oyez.brokers.rabbitmq.connection import Connection
from oyez.brokers.rabbitmq.inspection import inspect_queues, inspect_server
from oyez.brokers.rabbitmq.look import ends, starts
from oyez.brokers.rabbitmq.options import RabbitMqOptions
from oyez.brokers.rabbitmq.publisher import Message, Publisher, Unconfirmed, check_size
from oyez.brokers.rabbitmq.reader import Bounds, QueueReader, StreamReader
from oyez.brokers.rabbitmq.registry import QUEUE, Entry, Registry
from oyez.brokers.rabbitmq.topology import (
    SETTLING,
    Arguments,
    check_name,
    count,
    make,
    message_counts,
    queue_name,
)
from oyez.brokers.rabbitmq.wire import encode
from oyez.endpoint import Endpoint
from oyez.errors import BrokerRefused, BrokerUnavailable
from oyez.ports import Batch, Capabilities, Finding, Position, Record

T = TypeVar("T")

UNLIMITED = 2**31 - 1
"""Deliveries after which a quorum queue would drop a message: the lanes count them, not it."""


class RabbitMqBroker:
    """Streams on RabbitMQ; the face is `oyez.ports.Broker`."""

    def __init__(
        self, endpoint: Endpoint, ambient: Ambient, options: RabbitMqOptions, group: str = ""
    ) -> None:
        """``group`` owns the queues that it reads from; streams need none."""
        self.options = options
        stream = options.queue == "stream"
        self.capabilities = Capabilities(
            durability="process-crash",
            history=stream,
            processes=True,
            max_bytes=options.max_bytes,
        )
        self._endpoint = endpoint
        self._ambient = ambient
        self._group = group
        tls = options.context() if endpoint.scheme == "amqps" else None
        self._writing, self._reading = (
            Connection(
                endpoint, ambient, tls=tls, deadline=options.deadline, name=f"oyez {group} {what}"
            )
            for what in ("publishes", "reads")
        )
        self._registry = Registry(self._reading.link, self._append, self._base("stream"), ambient)
        self._made: set[str] = set()
        self._making = asyncio.Lock()
        self._publisher: Publisher | None = None
        self._known: dict[Place, Position] = {}
        self._asked_ends = Rounds(lambda stream: self._call(lambda: self._ends(stream)))
        self._asked_starts = Rounds(lambda stream: self._call(lambda: self._starts(stream)))
        self._readers: dict[Place, QueueReader] = {}
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        if self._watching is None:
            self._writing.reopen()
            self._reading.reopen()
            self._watching = asyncio.create_task(
                every(self._ambient, self.options.poll, self._look), name="rabbitmq streams"
            )
        await self._call(self._enrol)

    async def close(self) -> None:
        task, self._watching = self._watching, None
        await stop(task)
        await self._asked_ends.stop()
        await self._asked_starts.stop()
        await self._writing.close()
        await self._reading.close()

    async def publish(self, records: Sequence[Record]) -> None:
        now = self._ambient.now()
        sealed = []
        for record in records:
            properties = encode(record, now)
            size = len(record.data or b"")
            check_size(record.stream, size, len(properties), self.options.max_bytes, FRAME_MAX)
            sealed.append(properties)
        if not sealed:
            return
        pauses = Pauses(self._ambient)
        messages: list[Message] = []
        try:
            async with Deadline(self.options.deadline, self._writing.place) as deadline:
                while trouble := await self._send(records, sealed, messages):
                    deadline.trouble = trouble
                    await pauses.wait()
        except BrokerUnavailable as error:
            raise self._blocked() or error from error.__cause__

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        kind = StreamReader if self.capabilities.history else QueueReader
        options = self.options
        bounds = Bounds(options.batch, options.batch_bytes, options.deadline)
        reader = kind(
            self._reading,
            self._queue,
            self._made.discard,
            self._ambient,
            bounds,
            stream,
            partition,
            after,
        )
        if isinstance(reader, QueueReader):
            self._readers[stream, partition] = reader
        try:
            while True:
                batch = await reader.next()
                self._known[stream, partition] = reader.position
                yield batch
        finally:
            reader.stop()
            if self._readers.get((stream, partition)) is reader:
                del self._readers[stream, partition]

    def handled(self, stream: str, partition: int, position: Position) -> None:
        reader = self._readers.get((stream, partition))
        if reader is not None:
            reader.handled(position)

    async def streams(self) -> Mapping[str, int]:
        await self._call(self._registry.refresh)
        kind = self.options.queue
        known = self._registry.streams.known.values()
        return {entry.stream: entry.partitions for entry in known if entry.queue == kind}

    async def create(self, stream: str, partitions: int) -> None:
        found = await self._call(lambda: self._ensure(stream, partitions))
        check_count(stream, found, partitions)

    async def ends(self, stream: str) -> Sequence[Position]:
        """See `Broker.ends`. A quorum queue has none: it raises BrokerRefused."""
        self._needs_history("ends")
        async with Deadline(self.options.deadline + 0.5, self._reading.place):
            return await self._asked_ends.ask(stream)

    async def starts(self, stream: str) -> Sequence[Position]:
        """See `Broker.starts`. A quorum queue has none: it raises BrokerRefused."""
        self._needs_history("starts")
        async with Deadline(self.options.deadline + 0.5, self._reading.place):
            return await self._asked_starts.ask(stream)

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        """See `Broker.lag`. Of a quorum queue: what waits in it and what this process has of it."""
        if self.capabilities.history:
            return behind(await self.ends(stream), positions)
        return await self._call(lambda: self._waiting(stream, positions))

    async def inspect(self) -> Sequence[Finding]:
        return await self._call(self._inspect)

    def on_streams(self, callback: Callable[[], None]) -> None:
        self._registry.streams.listen(callback)

    # -- publishing -------------------------------------------------------------------------------

    async def _send(
        self, records: Sequence[Record], sealed: Sequence[bytes], messages: list[Message]
    ) -> Exception | None:
        """Send what is not confirmed yet; why some of it has to be sent again."""
        streams = {record.stream for record in records}
        try:
            counts = {stream: await self._ensure(stream, 0) for stream in streams}
            if not messages:
                messages += [
                    Message(record.stream, str(partition), properties, record.data or b"")
                    for record, partition, properties in zip(
                        records, partitions_of(records, counts), sealed, strict=True
                    )
                ]
            await (await self._publishing()).send(messages)
        except Unconfirmed as error:
            self._made -= error.unroutable
            return error
        except AmqpError as error:
            if error.code == NOT_FOUND:
                self._made -= streams
            refused = self._writing.error(error)
            if isinstance(refused, BrokerRefused):
                raise refused from error
            return error
        except BrokerUnavailable as error:
            return error
        return None

    async def _publishing(self) -> Publisher:
        link = await self._writing.link()
        if self._publisher is None or self._publisher.link is not link:
            self._publisher = Publisher(link, lenient=not self.capabilities.history)
        return self._publisher

    async def _append(self, queue: str, body: bytes) -> None:
        message = Message(
            "", queue, encode(Record(stream="", key=None, headers={}, data=b""), 0), body
        )
        try:
            await (await self._publishing()).send([message])
        except Unconfirmed as error:
            raise AmqpError(0, f"{queue}: {error}") from error

    def _blocked(self) -> BrokerUnavailable | None:
        """Why the server takes no messages at the moment, if so."""
        link = self._writing.current
        if link is None or link.blocked is None:
            return None
        return BrokerUnavailable(
            f"{self._writing.place} takes no messages ({link.blocked}): an alarm is set: "
            "rabbitmq-diagnostics alarms; free memory or disk"
        )

    # -- streams ----------------------------------------------------------------------------------

    async def _ensure(self, stream: str, partitions: int) -> int:
        """Make sure that the stream's exchange and queues are there; how many partitions it has."""
        if stream not in self._made:
            check_name(stream)
            async with self._making:
                if stream not in self._made:
                    await self._make(stream, partitions)
                    await self._settle([stream])
        return self._registry.streams.known[stream].partitions

    async def _make(self, stream: str, partitions: int) -> None:
        await self._registry.refresh()
        link = await self._reading.link()
        entry = self._registry.streams.known.get(stream)
        kind = self.options.queue
        if entry is None:
            found = await count(link, stream) or partitions or self.options.partitions
            await self._registry.add(Entry(stream, found, kind))
            entry = self._registry.streams.known[stream]
        if entry.queue != kind:
            raise BrokerRefused(
                f"stream {stream} was made with queue={entry.queue}, not {kind}: the type is fixed "
                f"when a stream is made; put queue={entry.queue} into the broker's URL or use a "
                "new stream"
            )
        await make(link, stream, self._queues(entry), self._arguments())

    async def _settle(self, streams: Sequence[str]) -> None:
        """The queues of these streams were made: wait until they outlive a crash of the server."""
        if streams and not self.capabilities.history:
            await self._ambient.sleep(SETTLING)
        self._made.update(streams)

    async def _enrol(self) -> None:
        """Learn what streams there are, and have this group's queues made in all of them."""
        await self._registry.refresh()
        group = self._own_group
        if group and group not in self._registry.groups:
            await self._make_all()
            # From here on every process that creates a stream creates this group's queues too.
            await self._registry.add(Entry(group=group))
            await self._make_all()

    async def _make_all(self) -> None:
        async with self._making:
            kind = self.options.queue
            known = self._registry.streams.known.values()
            streams = [e.stream for e in known if e.queue == kind and e.stream not in self._made]
            for stream in streams:
                await self._make(stream, 0)
            await self._settle(streams)

    @property
    def _own_group(self) -> str:
        """Whose queues this process reads; empty where everybody reads the same."""
        return "" if self.capabilities.history else self._group

    async def _queue(self, stream: str, partition: int) -> str:
        """See `oyez.brokers.rabbitmq.reader.Queue`."""
        if not self.capabilities.history and not self._group:
            raise BrokerRefused(
                "a quorum queue keeps no history: only a consumer group can read; use queue=stream"
            )
        partitions = await self._registry.wait(stream)
        if partition >= partitions:
            raise BrokerRefused(f"stream {stream} has {partitions} partitions, no {partition}")
        await self._call(self._enrol_once)
        await self._call(partial(self._ensure, stream, 0))
        return queue_name(stream, partition, self._own_group)

    async def _enrol_once(self) -> None:
        if self._own_group and self._own_group not in self._registry.groups:
            await self._enrol()

    def _queues(self, entry: Entry) -> list[tuple[int, str]]:
        if self.capabilities.history:
            groups = [""]
        else:
            groups = sorted(self._registry.groups | ({self._own_group} - {""}))
        partitions = range(entry.partitions)
        return [(p, queue_name(entry.stream, p, group)) for group in groups for p in partitions]

    def _base(self, kind: str) -> Arguments:
        arguments: Arguments = {"x-queue-type": kind}
        if self.options.replicas:
            name = "x-initial-cluster-size" if kind == "stream" else "x-quorum-initial-group-size"
            arguments[name] = self.options.replicas
        return arguments

    def _arguments(self) -> Arguments:
        options = self.options
        if options.queue == "stream":
            return self._base("stream") | {
                "x-max-age": f"{max(1, int(options.retention))}s",
                "x-stream-max-segment-size-bytes": options.segment_bytes,
            }
        return self._base("quorum") | {
            "x-delivery-limit": UNLIMITED,
            "x-message-ttl": max(1, int(options.retention * 1000)),
            "x-single-active-consumer": True,
        }

    def _expected(self) -> dict[str, Arguments]:
        """Every queue that there should be, with its arguments."""
        expected = {QUEUE: self._base("stream")}
        for entry in self._registry.streams.known.values():
            if entry.queue == self.options.queue:
                expected |= {queue: self._arguments() for _, queue in self._queues(entry)}
        return expected

    async def _inspect(self) -> list[Finding]:
        await self._registry.refresh()
        expected = self._expected()
        findings = list(await inspect_queues(await self._reading.link(), expected, self._endpoint))
        publishing = self._writing.current
        if publishing is not None and publishing.blocked is not None:
            findings.append(
                Finding(
                    grave=False,
                    what=f"the server takes no messages: {publishing.blocked}",
                    remedy="free memory or disk there; rabbitmq-diagnostics alarms tells which",
                )
            )
        if self.options.management is not None:
            findings += await inspect_server(
                self.options.management, self._endpoint, expected, self.options.replicas
            )
        return findings

    async def _look(self) -> None:
        await self._call(self._enrol)

    # -- where streams begin and end --------------------------------------------------------------

    async def _ends(self, stream: str) -> list[Position]:
        if stream not in self._registry.streams.known:
            await self._registry.refresh()
            if stream not in self._registry.streams.known:
                return []
        partitions = await self._ensure(stream, 0)
        known = [
            (queue_name(stream, p), self._known.get((stream, p), 0)) for p in range(partitions)
        ]
        try:
            found = await ends(await self._reading.link(), known)
        except AmqpError as error:
            if error.code == NOT_FOUND:
                self._made.discard(stream)
            raise
        self._known |= {(stream, p): end for p, end in enumerate(found)}
        return found

    async def _starts(self, stream: str) -> list[Position]:
        last = await self._ends(stream)
        queues = [queue_name(stream, p) for p in range(len(last))]
        return await starts(await self._reading.link(), queues, last)

    async def _waiting(self, stream: str, positions: Mapping[int, Position]) -> dict[int, int]:
        if stream not in self._registry.streams.known:
            await self._registry.refresh()
        entry = self._registry.streams.known.get(stream)
        if entry is None or self._group not in self._registry.groups:
            return {}
        partitions = entry.partitions
        asked = [p for p in positions if p < partitions]
        queues = [queue_name(stream, p, self._group) for p in asked]
        counts = await message_counts(await self._reading.link(), queues)
        lag = dict(zip(asked, counts, strict=True))
        for partition in asked:
            reader = self._readers.get((stream, partition))
            lag[partition] += reader.unhandled if reader is not None else 0
        return lag

    def _needs_history(self, what: str) -> None:
        if not self.capabilities.history:
            raise BrokerRefused(
                f"a quorum queue keeps no history, so it has no {what}: use queue=stream"
            )

    async def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do what needs the server, once more if the connection is lost meanwhile.

        A server that has just begun answers before its queues do: they are waited for.
        """
        pauses = Pauses(self._ambient)
        async with Deadline(self.options.deadline, self._reading.place) as deadline:
            while True:
                try:
                    return await work()
                except AmqpError as error:
                    found = self._reading.error(error)
                    again = pauses.failures == 0 or error.starting
                    if not (again and isinstance(found, BrokerUnavailable)):
                        raise found from error
                    deadline.trouble = error
                await pauses.wait()
