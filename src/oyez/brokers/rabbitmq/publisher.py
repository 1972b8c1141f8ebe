"""Publishing with confirms: many messages on their way at once, each accounted for.

Each queue has a channel of its own. When the leader of a stream moves, RabbitMQ before 4.0 sends
again what is unconfirmed, but numbers it as the channel does instead of as the queue does: where a
channel publishes to several streams, later messages then count as duplicates, are confirmed and
dropped (rabbitmq-server #12236). With one queue a channel both numbers are the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from pamqp import commands

from oyez.brokers.kit.streams import too_large
from oyez.brokers.rabbitmq.amqp import AmqpError, Channel, Link
from oyez.errors import BrokerRefused

Place = tuple[str, str]
"""An exchange and a routing key."""

WINDOW = 1_024
"""Messages of one call on their way at once."""
WINDOW_BYTES = 4 * 1024 * 1024
"""Bytes of them, at most; one message may exceed it alone."""
SLICE = 64
"""Messages that are handed to the socket at once."""
SLICE_BYTES = 256 * 1024


class Message(msgspec.Struct):
    """One message of a call, until it is confirmed."""

    exchange: str
    key: str
    properties: bytes
    body: bytes
    confirmed: bool = False


class Unconfirmed(Exception):
    """The server did not take some messages of a call.

    ``unroutable`` names the exchanges that led some of them nowhere.
    """

    def __init__(self, unroutable: set[str]) -> None:
        super().__init__("went to no queue" if unroutable else "the server did not take it")
        self.unroutable = unroutable


class _Call:
    """What is on its way for one call of `Publisher.send`."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self.refused = False
        self.ended: AmqpError | None = None
        """Why a channel ended that had some of it on its way."""
        self.unroutable: set[str] = set()
        self.waiting: asyncio.Future[None] | None = None

    def wake(self) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


class _Line:
    """One channel in confirm mode, to one exchange under one key."""

    def __init__(self, channel: Channel, place: Place, lenient: bool) -> None:
        self.channel = channel
        self.usable = True
        self._route = channel.route(*place)
        self._lenient = lenient
        self._tag = 0
        self._returned = 0
        self._sent: dict[int, tuple[_Call, Message]] = {}
        channel.on_confirm = self._confirm
        channel.on_return = self._return
        channel.on_end = self._end

    def add(self, call: _Call, message: Message) -> list[bytes]:
        """Account for a message that is sent; the pieces to be written."""
        self._tag += 1
        self._sent[self._tag] = (call, message)
        return [self._route, *self.channel.content(message.properties, message.body)]

    def carries(self, call: _Call) -> bool:
        """Whether some of a call is on its way here."""
        return any(each is call for each, _ in self._sent.values())

    def give_up(self, why: AmqpError) -> None:
        """End it; pending publishes fail."""
        self.channel.discard()
        self._end(why)

    # -- what the channel calls -------------------------------------------------------------------

    def _confirm(self, tag: int, multiple: bool, well: bool) -> None:
        if not multiple:
            self._settle(tag, well)
        else:
            for each in list(self._sent):
                if each > tag:
                    break
                self._settle(each, well)
        if not self.usable and not self._sent:
            self.channel.discard()

    def _settle(self, tag: int, well: bool) -> None:
        call, message = self._sent.pop(tag)
        call.count -= 1
        call.bytes -= len(message.body) + len(message.properties)
        if not well:
            call.refused = True
        elif tag <= self._returned:
            call.unroutable.add(message.exchange)
        else:
            message.confirmed = True
        call.wake()

    def _return(self, exchange: str, key: str) -> None:
        # A return comes before its confirm but does not say which message it is: all that are on
        # their way count as lost and are sent again. From here on the queue numbers differently
        # than the channel, so it is used no more.
        if not self._lenient:
            self._returned = self._tag
            self.usable = False

    def _end(self, error: AmqpError) -> None:
        self.usable = False
        sent, self._sent = self._sent, {}
        for call, _ in sent.values():
            call.ended = error
            call.wake()


class Publisher:
    """Publishes over one link."""

    def __init__(self, link: Link, lenient: bool) -> None:
        """``lenient``: what goes to no queue counts as taken."""
        self.link = link
        self._lenient = lenient
        self._lines: dict[Place, _Line] = {}
        self._opening = asyncio.Lock()

    async def send(self, messages: Sequence[Message]) -> None:
        """Return when every one is confirmed; those that are already are left out.

        Raises Unconfirmed, and AmqpError when a channel or the connection ends: the messages say
        which of them were confirmed. Cancelled, it gives up the channels that did not confirm.
        """
        call = _Call()
        todo = [message for message in messages if not message.confirmed]
        at = 0
        try:
            while at < len(todo):
                await self.link.writable()
                await self._room(call, WINDOW - SLICE, WINDOW_BYTES - SLICE_BYTES)
                if not await self._opened(todo[at : at + SLICE]):
                    at = self._write(call, todo, at)
            await self._room(call, 0, 0)
        except asyncio.CancelledError:
            for line in [line for line in self._lines.values() if line.carries(call)]:
                line.give_up(AmqpError(0, "the server did not confirm in time"))
            raise
        if call.refused or call.unroutable:
            raise Unconfirmed(call.unroutable)

    async def _opened(self, messages: Sequence[Message]) -> bool:
        """Make sure of a line for each; whether any had to be opened, so much may have changed."""
        missing = {
            place
            for place in ((message.exchange, message.key) for message in messages)
            if (line := self._lines.get(place)) is None or not line.usable
        }
        for place in missing:
            async with self._opening:
                line = self._lines.get(place)
                if line is None or not line.usable:
                    self._lines[place] = await self._line(place)
        return bool(missing)

    async def _line(self, place: Place) -> _Line:
        channel = await self.link.channel()
        try:
            await channel.ask(commands.Confirm.Select())
        except BaseException:
            channel.discard()
            raise
        return _Line(channel, place, self._lenient)

    def _write(self, call: _Call, todo: list[Message], at: int) -> int:
        pieces: list[bytes] = []
        size, stop = 0, min(at + SLICE, len(todo))
        first = at
        while at < stop and (size < SLICE_BYTES or at == first):
            message = todo[at]
            pieces += self._lines[message.exchange, message.key].add(call, message)
            size += len(message.body) + len(message.properties)
            at += 1
        call.count += at - first
        call.bytes += size
        self.link.write(b"".join(pieces))
        return at

    async def _room(self, call: _Call, count: int, size: int) -> None:
        """Wait until no more than that is on its way. Raises AmqpError when a channel has ended."""
        while call.ended is None and (call.count > count or call.bytes > max(size, 0)):
            call.waiting = asyncio.get_running_loop().create_future()
            await call.waiting
        if call.ended is not None:
            raise call.ended


def check_size(stream: str, size: int, properties: int, most: int, frame: int) -> None:
    """Raise BrokerRefused for a record that is too large."""
    if size + properties > most:
        remedy = "raise the option max_bytes, and max_message_size in rabbitmq.conf"
        raise too_large(stream, size + properties, most, remedy)
    if properties + 64 > frame:
        raise BrokerRefused(
            f"a record of {stream} has {properties} bytes of headers; {frame - 64} are allowed: "
            "put them into the data"
        )
