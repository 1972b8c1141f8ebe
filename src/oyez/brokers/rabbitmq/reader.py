"""Reading one partition for as long as it is wanted, whatever happens to the server."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from zlib import crc32

from oyez.ambient import Ambient
from oyez.brokers.kit.calls import Pauses
from oyez.brokers.rabbitmq.amqp import NOT_FOUND, AmqpError, Link
from oyez.brokers.rabbitmq.connection import Connection
from oyez.brokers.rabbitmq.look import GLANCE, ends
from oyez.brokers.rabbitmq.tail import Delivery, Tail, follow
from oyez.brokers.rabbitmq.topology import message_counts
from oyez.brokers.rabbitmq.wire import decode
from oyez.errors import BrokerRefused, BrokerUnavailable
from oyez.ports import Batch, Position, Record

FIRST = 16
"""Messages on their way at once until their size is known."""
SILENCE = 10.0
"""Seconds of silence after which the server is asked whether it forgot this consumer.

It does: a single active consumer can be left without messages for good after a restart of the
server or an expired ``consumer_timeout`` (rabbitmq-server #17317, #14141); attaching anew heals it.
"""
EARLY = 1.0
"""The same at first on a new connection, since a restart is when it happens; it then doubles."""
GRACE = 1.0
"""Seconds for what came just then to arrive."""

Queue = Callable[[str, int], Awaitable[str]]
"""Waits until a partition exists, makes sure of its queue and tells its name."""


class _Forgotten(AmqpError):
    """The server sends nothing of what it has for this consumer."""


class Bounds:
    """How much a reader takes at once and holds, and how long it waits for an answer."""

    def __init__(self, batch: int, batch_bytes: int, deadline: float) -> None:
        self.batch = batch
        self.bytes = batch_bytes
        self.deadline = deadline
        self.prefetch = min(2 * batch, 65_535)

    def fitting(self, size: float) -> int:
        """How many messages of such a size may be on their way."""
        return max(1, min(self.prefetch, int(self.bytes / max(size, 1.0))))


class _Reader(ABC):
    """What readers of streams and of queues have in common: going on after a failure."""

    def __init__(
        self,
        connection: Connection,
        queue: Queue,
        forget: Callable[[str], None],
        ambient: Ambient,
        bounds: Bounds,
        stream: str,
        partition: int,
        after: Position,
    ) -> None:
        self.position = after
        self._connection = connection
        self._queue = queue
        self._forget = forget
        self._ambient = ambient
        self._bounds = bounds
        self._stream = stream
        self._partition = partition
        self._prefetch = min(FIRST, bounds.prefetch)
        self._tail: Tail | None = None
        self._name = ""
        self._silence = EARLY

    async def next(self) -> Batch:
        """The next batch; waits for it. Raises BrokerRefused, and BrokerUnavailable once closed."""
        pauses = Pauses(self._ambient)
        while True:
            try:
                tail = self._tail or await self._attach()
                if await self._arrived(tail):
                    batch = self._open(tail, tail.take(self._bounds.batch, self._bounds.bytes))
                    if batch is not None:
                        return batch
                    pauses.failures = 0
                else:
                    self._make_room(tail)
            except (AmqpError, BrokerUnavailable) as error:
                self.stop()
                if not isinstance(error, _Forgotten):
                    self._silence = EARLY
                if self._connection.closed:
                    raise BrokerUnavailable(f"{self._stream}: the broker was closed") from error
                if isinstance(error, AmqpError) and error.code == NOT_FOUND:
                    self._forget(self._stream)
                await pauses.wait()

    def stop(self) -> None:
        """Let go at once; safe at any time."""
        tail, self._tail = self._tail, None
        if tail is not None:
            tail.stop()

    async def _attach(self) -> Tail:
        self._name = await self._queue(self._stream, self._partition)
        try:
            async with asyncio.timeout(self._bounds.deadline):
                self._tail = await self._follow(await self._connection.link())
        except TimeoutError:
            raise AmqpError(0, f"queue {self._name} gave no answer") from None
        return self._tail

    async def _arrived(self, tail: Tail) -> bool:
        """As `Tail.arrival`, and it raises AmqpError when the server sends nothing but should."""
        if tail.holds:
            return True
        forgotten = False
        while True:
            try:
                async with asyncio.timeout(GRACE if forgotten else self._silence):
                    return await tail.arrival()
            except TimeoutError:
                self._silence = min(2 * self._silence, SILENCE)
                if forgotten:
                    text = f"queue {self._name} sends nothing of what it has"
                    raise _Forgotten(0, text) from None
            try:
                async with asyncio.timeout(self._bounds.deadline):
                    forgotten = await self._forgotten(tail)
            except TimeoutError:
                forgotten = True

    @abstractmethod
    async def _follow(self, link: Link) -> Tail:
        """Begin to read the queue ``_name``."""

    @abstractmethod
    async def _forgotten(self, tail: Tail) -> bool:
        """Whether the queue has something for this reader that it could send."""

    def _make_room(self, tail: Tail) -> None:
        """The tail was cut and is empty: follow anew, with fewer on their way."""
        self._prefetch = self._bounds.fitting(tail.size)
        self.stop()

    @abstractmethod
    def _open(self, tail: Tail, taken: list[Delivery]) -> Batch | None:
        """What was taken, as a batch if there is any."""


class StreamReader(_Reader):
    """Reads a stream queue by offset: ``position`` is the offset of what comes next."""

    _restarted = False
    _fresh = True
    _mark: int | None = None

    async def _follow(self, link: Link) -> Tail:
        # The last record that was read comes again: it proves that this is still the same stream.
        offset = max(self.position - 1, 0)
        tail = await follow(
            link,
            self._name,
            prefetch=self._prefetch,
            room=self._bounds.bytes,
            arguments={"x-stream-offset": offset},
        )
        self._fresh = True
        return tail

    async def _arrived(self, tail: Tail) -> bool:
        if self._fresh and self.position > 0:
            try:
                async with asyncio.timeout(GLANCE):
                    return await tail.arrival()
            except TimeoutError:
                if await self._end(tail) < self.position:
                    self._restart()
                    return True
        return await super()._arrived(tail)

    async def _forgotten(self, tail: Tail) -> bool:
        return await self._end(tail) > self.position

    async def _end(self, tail: Tail) -> Position:
        return (await ends(tail.channel.link, [(self._name, self.position)]))[0]

    def _open(self, tail: Tail, taken: list[Delivery]) -> Batch | None:
        records: list[Record] = []
        missed = 0
        now = self._ambient.now()
        for _, properties, body in taken:
            record = decode(self._stream, self._partition, properties, body, 0, now)
            offset = record.position - 1
            if offset < self.position:
                if offset < 0:
                    raise BrokerRefused(
                        f"queue {self._name} is no stream: its messages have no offset; "
                        f"delete it: rabbitmqctl delete_queue '{self._name}'"
                    )
                if offset == self.position - 1 and self._mark not in (None, crc32(properties)):
                    self._restart()
                    return None
                self._fresh = False
                continue
            if not records:
                missed = offset - self.position if self._fresh else 0
                self._fresh = False
            records.append(record)
        if not taken or self._tail is None:
            return None
        tail.acknowledge(taken[-1][0])
        self._widen(tail, taken)
        if not records:
            return None
        self._mark = crc32(taken[-1][1])
        self.position = records[-1].position
        restarted, self._restarted = self._restarted, False
        return Batch(records, missed=missed, restarted=restarted)

    def _restart(self) -> None:
        """The stream is another one than that which was read: begin at its beginning."""
        self.stop()
        self.position, self._mark, self._restarted = 0, None, True

    def _widen(self, tail: Tail, taken: list[Delivery]) -> None:
        """Have more on their way once records are small; what is held of few comes again."""
        if self._prefetch < self._bounds.prefetch and not tail.cut:
            size = sum(len(p) + len(b) for _, p, b in taken) / len(taken)
            if self._bounds.fitting(size) >= 4 * self._prefetch:
                self._prefetch = self._bounds.fitting(size)
                self.stop()


class QueueReader(_Reader):
    """Reads a group's own queue; positions count on from the one asked for.

    What was read and not handled when the channel ends comes again under new positions.
    """

    def __init__(self, *about: object) -> None:
        super().__init__(*about)  # type: ignore[arg-type]
        self._open_tags: deque[tuple[Position, int]] = deque()

    def handled(self, position: Position) -> None:
        """Delete everything up to a position."""
        tag = 0
        while self._open_tags and self._open_tags[0][0] <= position:
            tag = self._open_tags.popleft()[1]
        if tag and self._tail is not None:
            self._tail.acknowledge(tag)

    @property
    def unhandled(self) -> int:
        """How many messages this reader has that were not handled yet."""
        held = self._tail.holds if self._tail is not None else 0
        return len(self._open_tags) + held

    def stop(self) -> None:
        """See `_Reader.stop`."""
        super().stop()
        self._open_tags.clear()  # delivery tags belong to their channel

    async def _follow(self, link: Link) -> Tail:
        return await follow(
            link,
            self._name,
            prefetch=self._prefetch,
            room=self._bounds.bytes,
            arguments={},
            requeue=True,
        )

    async def _forgotten(self, tail: Tail) -> bool:
        if len(self._open_tags) >= self._prefetch:
            return False  # it has all it may have until some of that is handled
        (ready,) = await message_counts(tail.channel.link, [self._name])
        return ready > 0

    def _make_room(self, tail: Tail) -> None:
        self._prefetch = self._bounds.fitting(tail.size)
        tail.follow_again(self._prefetch)

    def _open(self, tail: Tail, taken: list[Delivery]) -> Batch | None:
        now = self._ambient.now()
        records = []
        size = 0
        for tag, properties, body in taken:
            self.position += 1
            size += len(properties) + len(body)
            self._open_tags.append((self.position, tag))
            records.append(
                decode(self._stream, self._partition, properties, body, self.position, now)
            )
        wanted = self._bounds.fitting(size / len(taken))
        if wanted >= 4 * self._prefetch and not tail.cut:
            self._prefetch = wanted
            tail.follow_again(wanted)
        return Batch(records)
