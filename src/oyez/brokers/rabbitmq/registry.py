"""Which streams there are: a log of its own, ``oyez.streams``, that every process reads.

AMQP can't list queues or exchanges, nor tell their arguments. So whoever makes a stream first
appends its name and number of partitions here; the first entry of a name counts, which is how two
that make it at once agree. An entry ``group`` says that a consumer group has queues of its own,
which whoever makes a stream makes with it. A log that was deleted is written anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from oyez.ambient import Ambient
from oyez.brokers.kit.streams import Streams
from oyez.brokers.rabbitmq.amqp import NOT_FOUND, AmqpError, Link
from oyez.brokers.rabbitmq.look import GLANCE, PATIENCE, look
from oyez.brokers.rabbitmq.topology import SETTLING, Arguments, declare

QUEUE = "oyez.streams"


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the log; an empty one only shows where the log ends."""

    stream: str = ""
    partitions: int = 0
    queue: str = "stream"
    """The type of its queues."""
    group: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


class Registry:
    """What the log says, as of the last `refresh`."""

    def __init__(
        self,
        connected: Callable[[], Awaitable[Link]],
        append: Callable[[str, bytes], Awaitable[None]],
        arguments: Arguments,
        ambient: Ambient,
    ) -> None:
        """``append`` makes a message durable in a queue, ``arguments`` declare that queue."""
        self._connected = connected
        self._append = append
        self._arguments = arguments
        self._ambient = ambient
        self._last = -1
        self._lock = asyncio.Lock()
        self.streams: Streams[Entry] = Streams()
        self.groups: set[str] = set()
        """The consumer groups that have queues of their own."""

    async def refresh(self) -> None:
        """Read what was appended up to now. Raises AmqpError, BrokerError."""
        async with self._lock:
            link = await self._connected()
            if not await self._read(link):
                await self._begin(link)
                await self._read(link)

    async def add(self, entry: Entry) -> None:
        """Append; once it returns, what counts is known. Raises AmqpError, BrokerError."""
        await self._append(QUEUE, _encode(entry))
        await self.refresh()

    async def wait(self, stream: str) -> int:
        """Wait until the stream exists; how many partitions it has."""
        while stream not in self.streams.known:
            await self.streams.changed.wait()
        return self.streams.known[stream].partitions

    async def _read(self, link: Link) -> bool:
        """Read on; whether there was anything, be it only the last entry known."""
        known = self._last >= 0
        if not known:
            await declare(link, QUEUE, self._arguments)
        place = (QUEUE, max(self._last, 0))
        patience = PATIENCE if known else GLANCE
        try:
            (glimpse,) = await look(link, [place], prefetch=1_000, patience=patience, keep=True)
        except AmqpError as error:
            if error.code != NOT_FOUND or error.starting:
                raise
            self._last = -1
            return False
        if not glimpse.bodies:
            self._last = -1
            return False
        for offset, body in glimpse.bodies:
            if offset > self._last:
                self._last = offset
                self._learn(body)
        return True

    async def _begin(self, link: Link) -> None:
        """Write the log's first entries, again if it was deleted."""
        await declare(link, QUEUE, self._arguments)
        await self._ambient.sleep(SETTLING)
        known = [
            *self.streams.known.values(),
            *(Entry(group=group) for group in sorted(self.groups)),
        ]
        for entry in known or [Entry()]:
            await self._append(QUEUE, _encode(entry))

    def _learn(self, body: bytes) -> None:
        try:
            entry = _decode(body)
        except msgspec.MsgspecError:
            return  # somebody else's message
        if entry.group:
            self.groups.add(entry.group)
        elif entry.stream and entry.partitions > 0 and entry.stream not in self.streams.known:
            self.streams.add(entry.stream, entry)
