"""AMQP 0.9.1, as much of it as streams and queues need: connections and channels.

pamqp knows the methods. What comes with every message (``basic.deliver``, its header and body,
confirms) is taken apart here, since that is where the time goes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import TypeVar, cast

from pamqp import commands, frame
from pamqp.base import Frame

T = TypeVar("T", bound=Frame)

HEARTBEAT = 5
"""Seconds between two signs of life; a connection that is silent for twice as long is dead."""
FRAME_MAX = 131_072
CHANNEL_MAX = 2_047
WRITE_BUFFER = 1024 * 1024
"""Bytes that wait to be sent before a writer waits."""

CONNECTION_FORCED = 320
ACCESS_REFUSED = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406
NOT_ALLOWED = 530
INTERNAL_ERROR = 541

_METHOD, _HEADER, _BODY, _BEAT = 1, 2, 3, 8
_END = 0xCE
_DELIVER, _RETURN, _ACK, _NACK = 0x003C003C, 0x003C0032, 0x003C0050, 0x003C0078
_CONFIRMS = (_ACK, _NACK)
_SIGN_OF_LIFE = b"\x08\x00\x00\x00\x00\x00\x00\xce"

_frame = Struct(">BHI").unpack_from
_id = Struct(">I").unpack_from
_confirm = Struct(">QB").unpack_from
_size = Struct(">Q").unpack_from
_frame_start = Struct(">BHI").pack
_content_start = Struct(">BHIHHQ").pack
_body_start = Struct(">BBHI").pack


class AmqpError(Exception):
    """A connection or a channel has ended. ``code`` is AMQP's reply code, 0 for the network."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    @property
    def starting(self) -> bool:
        """Whether the server has just begun and its queues have not, although it answers."""
        return (
            self.code == INTERNAL_ERROR
            or (self.code == NOT_FOUND and "down or inaccessible" in str(self))
            or (self.code == PRECONDITION_FAILED and "replica on the local node" in str(self))
        )


class Link(asyncio.Protocol):
    """One AMQP connection on one socket; made by `connect`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._channels: dict[int, Channel] = {}
        self._free: list[int] = []
        self._greatest = 0
        self._paused = False
        self._writers: list[asyncio.Future[None]] = []
        self._waiting: asyncio.Future[Frame] | None = None
        self._arrived: deque[Frame] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._due = self._loop.time()
        self._interval = float(HEARTBEAT)
        self._gone = self._loop.create_future()
        self.channel_max = CHANNEL_MAX
        self.frame_max = FRAME_MAX
        self.blocked: str | None = None
        """Why the server takes no messages at the moment (an alarm), if so."""
        self.lost: AmqpError | None = None
        """Why the connection has ended, if so."""
        self.server: dict[str, str] = {}
        """What the server says of itself: product, version, cluster_name."""

    async def channel(self) -> Channel:
        """Open another channel. Raises AmqpError."""
        if self._free:
            number = self._free.pop()
        elif self._greatest < self.channel_max:
            self._greatest = number = self._greatest + 1
        else:
            raise AmqpError(NOT_ALLOWED, f"all {self.channel_max} channels are in use")
        channel = self._channels[number] = Channel(self, number)
        try:
            await channel.ask(commands.Channel.Open())
        except asyncio.CancelledError:
            channel.discard()
            raise
        return channel

    def write(self, data: bytes) -> None:
        """Send. Raises AmqpError when the connection has ended."""
        if self.lost is not None or self._transport is None:
            raise self.lost or AmqpError(0, "not connected")
        self._transport.write(data)

    async def writable(self) -> None:
        """Wait until the server takes messages and little is left to send. Raises AmqpError."""
        while self.lost is None and (self._paused or self.blocked is not None):
            waiting = self._loop.create_future()
            self._writers.append(waiting)
            await waiting
        if self.lost is not None:
            raise self.lost

    async def close(self) -> None:
        """Say goodbye, for a second at most, and let go."""
        if self.lost is None:
            try:
                self.tell(0, commands.Connection.Close(200, "goodbye", 0, 0))
                async with asyncio.timeout(1.0):
                    await self._expect(commands.Connection.CloseOk)
            except (AmqpError, TimeoutError):
                pass
        self.abort(AmqpError(0, "closed"))
        if self._transport is not None:
            await asyncio.wait([self._gone], timeout=1.0)

    def abort(self, error: AmqpError) -> None:
        """Close at once; every waiter gets ``error``."""
        if self.lost is None:
            self.lost = error
            if self._timer is not None:
                self._timer.cancel()
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_exception(error)
            self._wake_writers()
            channels, self._channels = self._channels, {}
            for channel in channels.values():
                channel.end(error)
        if self._transport is not None:
            self._transport.abort()

    def tell(self, number: int, method: Frame) -> None:
        """Send a method on a channel."""
        self.write(frame.marshal(method, number))

    def release(self, number: int) -> None:
        """A channel has been closed on both sides."""
        if self._channels.pop(number, None) is not None:
            self._free.append(number)

    # -- how it begins ----------------------------------------------------------------------------

    async def shake_hands(self, user: str, password: str, vhost: str, name: str) -> None:
        """Log in. Raises AmqpError."""
        self.write(b"AMQP\x00\x00\x09\x01")
        start = await self._expect(commands.Connection.Start)
        properties = start.server_properties or {}
        self.server = {key: value for key, value in properties.items() if isinstance(value, str)}
        can = {
            "authentication_failure_close": True,
            "basic.nack": True,
            "connection.blocked": True,
            "consumer_cancel_notify": True,
            "publisher_confirms": True,
        }
        about = {"product": "Oyez", "connection_name": name, "capabilities": can}
        proof = f"\0{user}\0{password}"
        self.tell(0, commands.Connection.StartOk(cast(dict, about), "PLAIN", proof))  # type: ignore[type-arg]
        tune = await self._expect(commands.Connection.Tune)
        self.channel_max = min(tune.channel_max or CHANNEL_MAX, CHANNEL_MAX)
        self.frame_max = min(tune.frame_max or FRAME_MAX, FRAME_MAX)
        beat = min(tune.heartbeat or HEARTBEAT, HEARTBEAT)
        self.tell(0, commands.Connection.TuneOk(self.channel_max, self.frame_max, beat))
        self.tell(0, commands.Connection.Open(vhost))
        await self._expect(commands.Connection.OpenOk)
        self._interval = float(beat)
        self._heard = self._loop.time()
        self._beat()

    async def _expect(self, kind: type[T]) -> T:
        while True:
            while self._arrived:
                method = self._arrived.popleft()
                if isinstance(method, kind):
                    return method
            if self.lost is not None:
                raise self.lost
            self._waiting = self._loop.create_future()
            self._arrived.append(await self._waiting)

    def _beat(self) -> None:
        now = self._loop.time()
        if now - self._due > self._interval:
            # The loop stood still: what the server sent meanwhile has not been looked at yet.
            self._heard = now
        if now - self._heard > 2 * self._interval:
            self.abort(AmqpError(0, f"the server was silent for {now - self._heard:.0f} s"))
            return
        self.write(_SIGN_OF_LIFE)
        self._due = now + self._interval / 2
        self._timer = self._loop.call_at(self._due, self._beat)

    # -- what asyncio calls -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.abort(AmqpError(0, f"the connection was lost{f': {exc}' if exc else ''}"))
        if not self._gone.done():
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._paused = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._paused = False
        self._wake_writers()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._heard = self._loop.time()
        try:
            self._take(self._rest + data if self._rest else data)
        except (ValueError, LookupError) as error:
            self.abort(AmqpError(0, f"the server does not speak AMQP 0.9.1: {error}"))

    def _take(self, data: bytes) -> None:
        position, end = 0, len(data)
        channels = self._channels
        while position + 7 < end:
            kind, number, size = _frame(data, position)
            start = position + 7
            stop = start + size
            if size > self.frame_max or kind == ord("A"):
                raise ValueError("a frame is too large")
            if stop >= end:
                break
            if data[stop] != _END:
                raise ValueError("a frame has no end")
            if kind == _METHOD:
                (method,) = _id(data, start)
                channel = channels.get(number)
                if method == _DELIVER and channel is not None:
                    channel.delivered(data, start + 4)
                elif method in _CONFIRMS and channel is not None:
                    tag, bits = _confirm(data, start + 4)
                    channel.on_confirm(tag, bits & 1 == 1, method == _ACK)
                else:
                    self._method(number, channel, data[position : stop + 1])
            elif kind != _BEAT:
                channel = channels.get(number)
                if channel is None:
                    pass
                elif kind == _HEADER:
                    channel.headed(data, start, stop)
                else:
                    channel.bodied(data[start:stop])
            position = stop + 1
        self._rest = data[position:]

    def _method(self, number: int, channel: Channel | None, data: bytes) -> None:
        method = cast(Frame, frame.unmarshal(data)[2])
        if channel is not None:
            channel.arrived(method)
        elif number != 0 or self.lost is not None:
            return
        elif isinstance(method, commands.Connection.Close):
            self.tell(0, commands.Connection.CloseOk())
            self.abort(_ended(method))
        elif isinstance(method, commands.Connection.Blocked):
            self.blocked = method.reason or "no reason given"
        elif isinstance(method, commands.Connection.Unblocked):
            self.blocked = None
            self._wake_writers()
        elif self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(method)
        else:
            self._arrived.append(method)

    def _wake_writers(self) -> None:
        writers, self._writers = self._writers, []
        for waiting in writers:
            if not waiting.done():
                waiting.set_result(None)


class Channel:
    """One conversation on a connection; the server ends it at the first mistake.

    The callbacks are called while a frame is taken apart: they must not raise or block.
    """

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.number = number
        self.ended: AmqpError | None = None
        """Why the channel has ended, if so."""
        self._answers: deque[asyncio.Future[Frame]] = deque()
        self._closing = False
        self._returned = False
        self._tag = 0
        self._consumer = b""
        self._properties = b""
        self._left = 0
        self._parts: list[bytes] = []
        self.on_delivery: Callable[[bytes, int, bytes, bytes], None] = _ignore
        """Called with consumer tag, delivery tag, properties and body."""
        self.on_return: Callable[[str, str], None] = _ignore
        """Called with exchange and routing key of a message that went to no queue."""
        self.on_confirm: Callable[[int, bool, bool], None] = _ignore
        """Called with a tag, whether it stands for all before it too, and whether all is well."""
        self.on_end: Callable[[AmqpError], None] = _ignore
        """Called when the channel ends, or the server ends its consumer (code 404)."""

    async def ask(self, method: Frame) -> Frame:
        """Send a method and wait for its answer. Raises AmqpError."""
        return await self.asked(method)

    def asked(self, method: Frame) -> asyncio.Future[Frame]:
        """Send a method; its answer comes later, in the order of asking."""
        self.tell(method)
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        return answer

    def tell(self, method: Frame) -> None:
        """Send a method that has no answer. Raises AmqpError when the channel has ended."""
        if self.ended is not None:
            raise self.ended
        self.link.tell(self.number, method)

    def route(self, exchange: str, key: str) -> bytes:
        """How every message that goes to ``exchange`` under ``key`` begins (mandatory)."""
        names = b"".join(bytes((len(name),)) + name for name in (exchange.encode(), key.encode()))
        method = b"\x00\x3c\x00\x28\x00\x00" + names + b"\x01"
        return _frame_start(_METHOD, self.number, len(method)) + method + b"\xce"

    def content(self, properties: bytes, body: bytes) -> list[bytes]:
        """The rest of a message, in pieces to be joined."""
        number, size = self.number, len(body)
        head = _content_start(_HEADER, number, 12 + len(properties), 60, 0, size)
        room = self.link.frame_max - 8
        if 0 < size <= room:
            return [head, properties, _body_start(_END, _BODY, number, size), body, b"\xce"]
        pieces = [head, properties]
        for start in range(0, size, room):
            part = body[start : start + room]
            pieces += (_body_start(_END, _BODY, number, len(part)), part)
        pieces.append(b"\xce")
        return pieces

    def discard(self) -> None:
        """Close, without waiting: nothing more is heard of it."""
        self._closing = True
        self.on_delivery = self.on_return = self.on_confirm = self.on_end = _ignore
        if self.ended is None and self.link.lost is None:
            self.tell(commands.Channel.Close(200, "done", 0, 0))
            self.ended = AmqpError(0, "the channel was closed")

    def end(self, error: AmqpError) -> None:
        """The connection has ended, or the server closed the channel."""
        if self.ended is None:
            self.ended = error
        answers, self._answers = self._answers, deque()
        for answer in answers:
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # a waiter that gave up needs no warning
        self.on_end(error)

    # -- what the connection calls ----------------------------------------------------------------

    def delivered(self, data: bytes, at: int) -> None:
        """A message begins; ``at`` is where the arguments of ``basic.deliver`` stand."""
        stop = at + 1 + data[at]
        self._consumer = data[at + 1 : stop]
        (self._tag,) = _size(data, stop)
        self._returned = False

    def headed(self, data: bytes, start: int, stop: int) -> None:
        """Its header."""
        (self._left,) = _size(data, start + 4)
        self._properties = data[start + 12 : stop]
        if not self._left:
            self._complete(b"")

    def bodied(self, part: bytes) -> None:
        """A part of its body."""
        self._left -= len(part)
        if self._left > 0:
            self._parts.append(part)
        elif self._parts:
            self._parts.append(part)
            body, self._parts = b"".join(self._parts), []
            self._complete(body)
        else:
            self._complete(part)

    def arrived(self, method: Frame) -> None:
        """Any other method."""
        if isinstance(method, commands.Basic.Return):
            self._returned = True
            self.on_return(method.exchange or "", method.routing_key or "")
        elif isinstance(method, commands.Basic.Cancel):
            self.on_end(AmqpError(NOT_FOUND, "the server ended the consumer"))
        elif isinstance(method, commands.Channel.Close):
            if self.link.lost is None:
                self.link.tell(self.number, commands.Channel.CloseOk())
            if not self._closing:
                self.link.release(self.number)
                self.end(_ended(method))
        elif isinstance(method, commands.Channel.CloseOk):
            self.link.release(self.number)
            self.end(AmqpError(0, "the channel was closed"))
        elif isinstance(method, commands.Channel.Flow):
            self.tell(commands.Channel.FlowOk(method.active))
        elif self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_result(method)

    def _complete(self, body: bytes) -> None:
        if not self._returned:
            self.on_delivery(self._consumer, self._tag, self._properties, body)


async def connect(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None,
    user: str,
    password: str,
    vhost: str,
    name: str,
) -> Link:
    """A connection that is ready. Raises AmqpError; cancelled, it leaves nothing behind."""
    link = Link()
    loop = asyncio.get_running_loop()
    try:
        await loop.create_connection(
            lambda: link, host, port, ssl=tls, server_hostname=host if tls else None
        )
        await link.shake_hands(user, password, vhost, name)
    except (OSError, ValueError) as error:
        link.abort(AmqpError(0, "not connected"))
        raise AmqpError(0, str(error)) from error
    except BaseException:
        link.abort(AmqpError(0, "not connected"))
        raise
    return link


def _ended(method: commands.Connection.Close | commands.Channel.Close) -> AmqpError:
    return AmqpError(method.reply_code or 0, method.reply_text or "no reason given")


def _ignore(*_: object) -> None:
    pass
