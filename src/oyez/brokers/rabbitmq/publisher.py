"""Publishing with confirms: many messages on their way at once, each accounted for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from pamqp import commands

from oyez.brokers.rabbitmq.amqp import Channel, Connection
from oyez.errors import BrokerRefused

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
        self.unroutable: set[str] = set()
        self.waiting: asyncio.Future[None] | None = None

    def wake(self) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


class Publisher:
    """One channel in confirm mode; made by `publisher`."""

    def __init__(self, channel: Channel, lenient: bool) -> None:
        """``lenient``: what goes to no queue counts as taken."""
        self.channel = channel
        self._lenient = lenient
        self._tag = 0
        self._sent: dict[int, tuple[_Call, Message]] = {}
        self._routes: dict[tuple[str, str], bytes] = {}
        self._returned: dict[tuple[str, str], int] = {}
        channel.on_confirm = self._confirm
        channel.on_return = self._return
        channel.on_end = lambda _: self._end()

    async def send(self, messages: Sequence[Message]) -> None:
        """Return when every one is confirmed; those that are already are left out.

        Raises Unconfirmed, and AmqpError when the channel or the connection ends: the messages say
        which of them were confirmed.
        """
        call = _Call()
        todo = [message for message in messages if not message.confirmed]
        at = 0
        while at < len(todo):
            await self.channel.connection.writable()
            await self._room(call, WINDOW - SLICE, WINDOW_BYTES - SLICE_BYTES)
            at = self._write(call, todo, at)
        await self._room(call, 0, 0)
        if call.refused or call.unroutable:
            raise Unconfirmed(call.unroutable)

    def _write(self, call: _Call, todo: list[Message], at: int) -> int:
        pieces: list[bytes] = []
        size, stop = 0, min(at + SLICE, len(todo))
        first = at
        while at < stop and (size < SLICE_BYTES or at == first):
            message = todo[at]
            route = self._routes.get((message.exchange, message.key))
            if route is None:
                route = self.channel.route(message.exchange, message.key)
                self._routes[message.exchange, message.key] = route
            pieces.append(route)
            pieces += self.channel.content(message.properties, message.body)
            size += len(message.body) + len(message.properties)
            at += 1
        self.channel.connection.write(b"".join(pieces))
        for message in todo[first:at]:
            self._tag += 1
            self._sent[self._tag] = (call, message)
        call.count += at - first
        call.bytes += size
        return at

    async def _room(self, call: _Call, count: int, size: int) -> None:
        """Wait until no more than that is on its way."""
        while call.count > count or call.bytes > max(size, 0):
            if self.channel.ended is not None:
                raise self.channel.ended
            call.waiting = asyncio.get_running_loop().create_future()
            await call.waiting

    # -- what the channel calls -------------------------------------------------------------------

    def _confirm(self, tag: int, multiple: bool, well: bool) -> None:
        if not multiple:
            self._settle(tag, well)
            return
        for each in list(self._sent):
            if each > tag:
                break
            self._settle(each, well)

    def _settle(self, tag: int, well: bool) -> None:
        call, message = self._sent.pop(tag)
        call.count -= 1
        call.bytes -= len(message.body) + len(message.properties)
        if not well:
            call.refused = True
        elif tag <= self._returned.get((message.exchange, message.key), 0):
            call.unroutable.add(message.exchange)
        else:
            message.confirmed = True
        call.wake()

    def _return(self, exchange: str, key: str) -> None:
        # A return comes before its confirm but does not say which message it is: all that are on
        # their way there count as lost and are sent again.
        if not self._lenient:
            self._returned[exchange, key] = self._tag

    def _end(self) -> None:
        sent, self._sent = self._sent, {}
        for call, _ in sent.values():
            call.wake()


async def publisher(connection: Connection, lenient: bool) -> Publisher:
    """Open a channel for publishing. Raises AmqpError."""
    channel = await connection.channel()
    made = Publisher(channel, lenient)
    try:
        await channel.ask(commands.Confirm.Select())
    except BaseException:
        channel.discard()
        raise
    return made


def check_size(what: str, size: int, properties: int, most: int, frame: int) -> None:
    """Raise BrokerRefused for a record that is too large."""
    if size + properties > most:
        raise BrokerRefused(
            f"{what} has {size + properties} bytes; {most} are allowed "
            "(option max_bytes, and max_message_size in rabbitmq.conf): set system.claim_check, "
            "so that large data is kept outside the broker"
        )
    if properties + 64 > frame:
        raise BrokerRefused(
            f"{what} has {properties} bytes of headers; {frame - 64} are allowed: put them into "
            "the data"
        )
