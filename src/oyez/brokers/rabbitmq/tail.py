"""Reading one queue from an offset on, never holding more than so many bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

from pamqp import commands

from oyez.brokers.rabbitmq.amqp import AmqpError, Channel, Link

Delivery = tuple[int, bytes, bytes]
"""Delivery tag, properties and body."""


class Tail:
    """One consumer on a channel of its own; made by `follow`.

    A server may send a whole chunk of a stream, however large, for the credit of one message. So
    when there is no room the consumer is ended, what is too much is dropped, and ``cut`` is set:
    whoever reads takes what is here and follows anew.
    """

    def __init__(self, channel: Channel, room: int, requeue: bool) -> None:
        """``requeue``: what is too much goes back to its queue."""
        self.channel = channel
        self.cut = False
        self.size = 0.0
        """Bytes of a message on the average, once cut."""
        self._room = room
        self._requeue = requeue
        self._held = 0
        self._consumers = 0
        self._items: deque[Delivery] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._ended: AmqpError | None = None
        self._queue = ""
        channel.on_delivery = self._deliver
        channel.on_end = self._end

    @property
    def holds(self) -> int:
        """How many messages are here and not taken."""
        return len(self._items)

    async def arrival(self) -> bool:
        """Wait until there is something to take; False once cut and empty. Raises AmqpError."""
        while not self._items:
            if self._ended is not None:
                raise self._ended
            if self.cut:
                return False
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return True

    def take(self, count: int, size: int) -> list[Delivery]:
        """What is there, up to so many messages and bytes, but one at least if any."""
        items = self._items
        taken: list[Delivery] = []
        while items and len(taken) < count and size > 0:
            item = items.popleft()
            taken.append(item)
            used = len(item[1]) + len(item[2])
            size -= used
            self._held -= used
        return taken

    def acknowledge(self, tag: int) -> None:
        """Give the server credit for everything up to a delivery tag."""
        if self._ended is None and self.channel.ended is None:
            self.channel.tell(commands.Basic.Ack(tag, multiple=True))

    def stop(self) -> None:
        """Let go at once; what was not acknowledged goes back to its queue."""
        self.channel.discard()

    def follow_again(self, prefetch: int) -> None:
        """Go on with another number on their way, on the same channel. Raises AmqpError."""
        if not self.cut:
            self._cancel()
        self.cut = False
        self.consume(prefetch, "", {})

    def consume(self, prefetch: int, queue: str, arguments: Mapping[str, Any]) -> list[Any]:
        """Ask for messages; what is returned has to be awaited to know that they come."""
        self._consumers += 1
        self._queue = queue or self._queue
        return [
            self.channel.asked(commands.Basic.Qos(prefetch_count=prefetch)),
            self.channel.asked(
                commands.Basic.Consume(
                    queue=self._queue,
                    consumer_tag=str(self._consumers),
                    arguments=dict(arguments),
                )
            ),
        ]

    def _cancel(self) -> None:
        self.channel.tell(commands.Basic.Cancel(str(self._consumers), nowait=True))

    def _deliver(self, consumer: bytes, tag: int, properties: bytes, body: bytes) -> None:
        size = len(properties) + len(body)
        if not self.cut and self._items and self._held + size > self._room:
            self.cut = True
            self.size = (self._held + size) / (len(self._items) + 1)
            self._cancel()
        if self.cut:
            if self._requeue:
                self.channel.tell(commands.Basic.Nack(tag, requeue=True))
            return
        self._items.append((tag, properties, body))
        self._held += size
        self._wake()

    def _end(self, error: AmqpError) -> None:
        self._ended = error
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


async def follow(
    link: Link,
    queue: str,
    *,
    prefetch: int,
    room: int,
    arguments: Mapping[str, Any],
    requeue: bool = False,
) -> Tail:
    """Begin to read a queue, holding ``room`` bytes at most. Raises AmqpError."""
    channel = await link.channel()
    tail = Tail(channel, room, requeue)
    try:
        for answer in tail.consume(prefetch, queue, arguments):
            await answer
    except BaseException:
        channel.discard()
        raise
    return tail
