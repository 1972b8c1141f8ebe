"""Connections of clients: their requests one after the other, and limits of time and number."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import cast

from oyez.ambient import Ambient
from oyez.config import GatewaySettings
from oyez.gateway.exchange import (
    SLOW_BODY,
    UNDERWAY,
    Budget,
    ClientGone,
    Connection,
    Exchange,
    Refusal,
    loose_answer,
    refusal_of,
)
from oyez.gateway.heads import Heads
from oyez.gateway.http1 import (
    Malformed,
    RequestHead,
    RequestLine,
    Section,
    end_of_head,
    request_head,
    request_line,
)
from oyez.gateway.line import Line

_IDLE_SECONDS = 5.0
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 8 * 1024 * 1024
_MOST_UNREAD = 64 * 1024
_SLOW_HEAD = Refusal(408, "slow_head", "the head of the request did not arrive in time")
_IDLE = Refusal(408, "idle", "no further request arrived")


class Edge:
    """The connections of all clients; ``answer`` is called for each request.

    What it returns is awaited by the connection's task, unless it is `UNDERWAY`.

    A head must arrive within ``timeout`` seconds. Above ``connections``, the one that has been idle
    longest is closed, so idle clients never exclude others.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        ambient: Ambient,
        answer: Callable[[Exchange], Awaitable[None]],
        refused: Callable[[Refusal], None] = lambda refusal: None,
    ) -> None:
        """``refused`` is told of what was refused without becoming a request."""
        self.refused = refused
        self.settings = settings
        self.header_limit: int = settings.header_limit
        self.ambient = ambient
        self.answer = answer
        self.budget = Budget(settings.buffer_limit)
        self.lines: Heads[RequestLine] = Heads()
        self.sections: Heads[Section] = Heads()
        self.draining = False
        self.idle: dict[ClientConnection, None] = {}
        self._connections: set[ClientConnection] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def connected(self) -> int:
        """The number of connections."""
        return len(self._connections)

    def connection(self) -> ClientConnection:
        """Return the protocol of a new connection."""
        return ClientConnection(self)

    def arrived(self, connection: ClientConnection) -> None:
        """Count a connection in, and let the longest idle one go when there are too many."""
        self._connections.add(connection)
        self._empty.clear()
        if len(self._connections) > self.settings.connections and self.idle:
            next(iter(self.idle)).close()

    def left(self, connection: ClientConnection) -> None:
        """Count a connection out."""
        self._connections.discard(connection)
        self.idle.pop(connection, None)
        if not self._connections:
            self._empty.set()

    async def drain(self) -> None:
        """Close idle connections, and others after their request or after ``grace`` seconds."""
        self.draining = True
        for connection in list(self.idle):
            connection.close()
        try:
            async with self.ambient.timeout(self.settings.grace):
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
            await self._empty.wait()
        self.lines.close()
        self.sections.close()


class ClientConnection(Connection):
    """One connection: one request after the other.

    What of a request has to be awaited, the connection's task does, from the first time on.

    One timer bounds whatever is being waited for. Its end is moved with each step, and the timer
    is set anew only when it has run out too early, so a request costs no timer.
    """

    def __init__(self, edge: Edge) -> None:
        super().__init__()
        self._lost = False
        self._edge: Edge = edge
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._paused = False
        self._exchange: Exchange | None = None
        self._asks_again = False
        self._answering: Awaitable[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._lingering = False
        self._may_linger = 0
        self._due: float = math.inf
        self._late: Refusal | ClientGone = _SLOW_HEAD
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due: float = math.inf

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first head."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        if peer:
            self.client = peer[0]
        self._edge.idle[self] = None
        self._edge.arrived(self)
        self.within(self._edge.settings.timeout, _SLOW_HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        """Interrupt the request in progress."""
        if self._timer is not None:
            self._timer.cancel()
        self._edge.left(self)
        self._lost = True
        if self._exchange is not None:
            self._exchange.interrupt(ClientGone())
        elif self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Begin the next request, or keep what belongs to the present one or follows it."""
        if self._lingering:
            self._may_linger -= len(data)
            if self._may_linger < 0:
                self.abort()
            return
        self._received = self._received + data if self._received else data
        if self._exchange is None:
            self._next()
            return
        if len(self._received) > _MOST_UNREAD and not self._paused:
            self._transport.pause_reading()
            self._paused = True
        self._wake()

    def pause_writing(self) -> None:
        """Remember that the client accepts less than it is sent."""
        self.full = True

    def resume_writing(self) -> None:
        """Let the answer go on."""
        self.full = False
        self._wake()

    # What the exchange calls

    @property
    def draining(self) -> bool:
        """See :class:`Connection`."""
        return self._edge.draining

    def take(self) -> bytes:
        """See :class:`Connection`."""
        data, self._received = self._received, b""
        return data

    def put_back(self, data: bytes) -> None:
        """See :class:`Connection`."""
        self._received = data + self._received

    async def more(self) -> bytes:
        """See :class:`Connection`."""
        if not self._received:
            self._resume_reading()
            await self._woken()
        return self.take()

    def write(self, data: bytes) -> None:
        """See :class:`Connection`."""
        self._transport.write(data)

    async def accepted(self) -> None:
        """See :class:`Connection`."""
        endless = self._due == math.inf
        if endless:
            self.within(self._edge.settings.timeout, ClientGone())
        while self.full:
            await self._woken()
        if endless:
            self.within(None, _IDLE)

    def within(self, seconds: float | None, late: Refusal | ClientGone) -> None:
        """See :class:`Connection`."""
        self._late = late
        if seconds is None:
            self._due = math.inf
            return
        self._due = self._edge.ambient.monotonic() + seconds
        if self._due < self._timer_due:
            self._set_timer(seconds)

    def close(self) -> None:
        """Close the connection once what was sent is accepted, or ``timeout`` seconds are over."""
        self._received = b""
        self._edge.idle.pop(self, None)
        self.within(self._edge.settings.timeout, _IDLE)
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def work(self, answering: Awaitable[None]) -> None:
        """See :class:`Connection`."""
        self._answering = answering
        if self._task is None:
            self._task = self._loop.create_task(self._work())
        else:
            self._wake()

    def cancel(self) -> None:
        """See :class:`Connection`."""
        if self._task is not None and self._answering is None:
            self._task.cancel()

    def served(self) -> None:
        """See :class:`Connection`."""
        exchange = self._exchange
        if exchange is not None:
            exchange.release()
            self._exchange = None
            self._end(exchange)

    def hand_over(self, line: Line) -> bytes:
        """See :class:`Connection`."""
        self._resume_reading()
        line.begin(self._transport, self)
        line.full = self.full
        return self.take()

    # One request after the other

    def _next(self) -> None:
        edge, received = self._edge, self._received
        try:
            end = end_of_head(received, edge.header_limit)
            if not end:
                if self._late is not _SLOW_HEAD:
                    self.within(edge.settings.timeout, _SLOW_HEAD)
                return
            head = self._head(received[:end])
        except Malformed as error:
            self._refuse(refusal_of(error))
            return
        self._received = received[end:] if len(received) > end else b""
        edge.idle.pop(self, None)
        self._due = math.inf
        exchange = Exchange(head, self, edge.settings, edge.ambient, edge.budget)
        self._exchange = exchange
        answering = edge.answer(exchange)
        if answering is not UNDERWAY:
            self.work(answering)

    def _head(self, head: bytes) -> RequestHead:
        """Return what a head says: what is known of its first line and its headers, or is read."""
        lines, sections, end = self._edge.lines, self._edge.sections, head.find(b"\r\n")
        first, others = head[:end], head[end:]
        section = sections.known(others)
        if section is None:
            read = request_head(head)
            if self._asks_again:
                lines.remember(first, read.line)
                if not read.section.is_unique:
                    sections.remember(others, read.section)
            self._asks_again = True
            return read
        line = lines.known(first)
        if line is None:
            line = request_line(first)
            lines.remember(first, line)
        return RequestHead(line, section)

    async def _work(self) -> None:
        while True:
            answering, exchange = self._answering, self._exchange
            if answering is None or exchange is None:
                if self._lost:
                    return
                await self._woken()
                continue
            self._answering = None
            try:
                await answering
            except asyncio.CancelledError:
                if exchange.interruption is None:
                    raise
            finally:
                exchange.release()
                self._exchange = None
            if exchange.interruption is not None and self._task is not None:
                self._task.uncancel()
            self._end(exchange)

    def _end(self, exchange: Exchange) -> None:
        if self._transport.is_closing():
            return
        if self._paused:
            self._resume_reading()
        if exchange.unread:
            self._linger(0 if exchange.interruption is SLOW_BODY else _LINGER_SECONDS)
        elif not exchange.complete and self.full:
            self.abort()
        elif exchange.closing or not exchange.complete or self._edge.draining:
            self.close()
        else:
            self._edge.idle[self] = None
            self.within(_IDLE_SECONDS, _IDLE)
            if self._received:
                self._next()

    def _refuse(self, refusal: Refusal) -> None:
        self._edge.refused(refusal)
        self._transport.write(loose_answer(refusal))
        self._linger(_LINGER_SECONDS)

    def _linger(self, seconds: float) -> None:
        """Drop what still arrives: closing a socket with unread bytes resets it, and the client
        may lose the answer.
        """
        if not seconds:
            self.close()
            return
        self._edge.idle.pop(self, None)
        self._received = b""
        self._lingering, self._may_linger = True, _LINGER_BYTES
        self.within(seconds, _IDLE)
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    async def _woken(self) -> None:
        if self._lost:
            raise asyncio.CancelledError  # it was, before this began to wait
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = self._due
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer, self._timer_due = None, math.inf
        left = self._due - self._edge.ambient.monotonic()
        if left == math.inf:
            return
        if left > 0:
            self._set_timer(left)
            return
        self._due = math.inf
        if self._exchange is not None:
            self._exchange.interrupt(self._late)
        elif self._received:
            self._refuse(_SLOW_HEAD)
        else:
            self.abort()
