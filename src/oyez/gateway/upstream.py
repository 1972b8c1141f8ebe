"""Connections to services, kept open for the next request.

To take one costs the same however many there are: the loop tells which were closed.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import cast

from oyez.ambient import Ambient
from oyez.config import GatewaySettings, Listen
from oyez.gateway.heads import Heads
from oyez.gateway.http1 import AnswerHead, Body, Malformed, answer_head, end_of_head, switched
from oyez.gateway.line import Line

_KEPT_OPEN = 256
# Shorter than the time after which services close an idle connection.
_KEPT_OPEN_SECONDS = 2.0
_RECONNECT_SECONDS = 1.0
_FIRST_PAUSE = 0.025
_MOST_HEAD = 64 * 1024
_MOST_UNREAD = 64 * 1024


class Unreachable(Exception):
    """No connection to the service can be made."""


class Broken(Exception):
    """The service disconnected, or violated the protocol."""


class Disconnected(Broken):
    """The service disconnected before its answer was whole."""


class Upstream:
    """The connections to one service."""

    def __init__(self, address: Listen, settings: GatewaySettings, ambient: Ambient) -> None:
        self._address = address
        self._settings = settings
        self._ambient = ambient
        self._idle: dict[ServiceConnection, float] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        self.answers: Heads[AnswerHead] = Heads()

    def kept(self) -> ServiceConnection | None:
        """Return the connection that was last given back, if any is kept."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.usable():
                return connection
            connection.close()
        return None

    async def connect(self) -> ServiceConnection:
        """Return a new connection.

        A service that restarts is tried for a second, as the request has not been sent; then raises
        :class:`Unreachable`.
        """
        loop, host, port = asyncio.get_running_loop(), self._address.host, self._address.port
        patience = min(_RECONNECT_SECONDS, self._settings.timeout / 2)
        give_up = self._ambient.monotonic() + patience
        pause = _FIRST_PAUSE
        while True:
            try:
                async with self._ambient.timeout(self._settings.connect_timeout):
                    made = await loop.create_connection(lambda: ServiceConnection(self), host, port)
                return made[1]
            except (OSError, TimeoutError):
                left = give_up - self._ambient.monotonic()
                if left <= 0:
                    raise Unreachable from None
                await self._ambient.sleep(min(pause * (0.5 + self._ambient.chance()), left))
                pause *= 2

    def keep(self, connection: ServiceConnection) -> None:
        """Keep a connection for the next request."""
        if self._closed or len(self._idle) >= _KEPT_OPEN:
            connection.close()
            return
        self._idle[connection] = self._ambient.monotonic()
        if self._sweep is None:
            self._sweep = self._later(_KEPT_OPEN_SECONDS)

    def forget(self, connection: ServiceConnection) -> None:
        """Don't hand out a connection that was lost."""
        self._idle.pop(connection, None)

    def close(self) -> None:
        """Close the idle connections, and others when they are given back."""
        self._closed = True
        self.answers.close()
        if self._sweep is not None:
            self._sweep.cancel()
        while self._idle:
            self._idle.popitem()[0].close()

    def _close_old(self) -> None:
        self._sweep = None
        old = self._ambient.monotonic() - _KEPT_OPEN_SECONDS
        # The first are those that were given back first.
        while self._idle:
            connection, since = next(iter(self._idle.items()))
            if since > old:
                self._sweep = self._later(since - old)
                return
            del self._idle[connection]
            connection.close()

    def _later(self, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self._close_old)


class ServiceConnection(asyncio.Protocol):
    """One connection: it carries a request and its answer at a time.

    ``answer`` is the head of the present answer, None until it has arrived. ``complete`` is whether
    all of it has, and ``failed`` whether it was broken off. ``heard`` is called whenever one of
    them may have changed, until the answer is waited for.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.complete = False
        self.answer: AnswerHead | None = None
        self.heard: Callable[[], None] | None = None
        self._upstream: Upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._body: Body | None = None
        self._asked_again = False
        self._to_head = self._switches = False
        self._lost = False
        self._failure: Broken | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to watch for the end of the connection."""
        self._transport = cast(asyncio.Transport, transport)
        self._readable = select.poll()
        self._readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the answer, unless it is one that ends with its connection."""
        self._lost = True
        self._upstream.forget(self)
        if self.answer is not None and self.answer.endless and exc is None:
            self.complete = True
        elif not self.complete and self._failure is None:
            self._failure = Disconnected("disconnected")
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Read the answer."""
        try:
            self._read(data)
        except Malformed as error:
            self._failure = Broken(str(error))
            self._transport.abort()
        self._wake()

    # What the forwarder calls

    def usable(self) -> bool:
        """Whether the service has neither closed the connection nor sent what nobody asked for.

        The loop may not have seen yet that it has, and a request must not be sent twice.
        """
        return not self._lost and not self._readable.poll(0)

    @property
    def failed(self) -> bool:
        """Whether `answered` or `more` raises :class:`Broken` next."""
        return self._failure is not None

    async def ask(self, request: bytes, *, to_head: bool, switches: bool = False) -> AnswerHead:
        """Send a request, ``to_head`` of method HEAD, and return its answer's head.

        ``switches``: the request asks for another protocol, so the answer may be 101. Raises
        :class:`Broken`.
        """
        self.send(request, to_head=to_head, switches=switches)
        return await self.answered()

    def send(
        self,
        request: bytes,
        *,
        to_head: bool,
        switches: bool = False,
        heard: Callable[[], None] | None = None,
    ) -> None:
        """Send a request as `ask` does, without waiting for its answer."""
        self.answer, self.complete, self._body = None, False, None
        self._to_head = to_head
        self._switches, self.heard = switches, heard
        self._transport.write(request)

    async def answered(self) -> AnswerHead:
        """Wait for the head of the answer to what was sent. Raises :class:`Broken`."""
        self.heard = None
        answer = self._head()
        while answer is None:
            await self._arrived()
            answer = self._head()
        return answer

    def take(self) -> bytes:
        """Return the part of the answer's body that has arrived and was not taken yet."""
        data, self._received = self._received, b""
        return data

    async def more(self) -> None:
        """Wait until more of the answer's body has arrived, or it is complete.

        Raises :class:`Broken`.
        """
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        while not self._received and not self.complete:
            await self._arrived()

    def hand_over(self, line: Line) -> bytes:
        """Give the connection to a line after 101; return what came behind that."""
        self._upstream.forget(self)
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        line.begin(self._transport, self)
        return self.take()

    def release(self) -> None:
        """Give the connection back, for the next request if that is possible."""
        answer, body, self.heard = self.answer, self._body, None
        self._asked_again = True
        spent = self._lost or self._paused or self._received or not self.complete
        if spent or answer is None or not answer.reusable or body is None or body.rest:
            self.close()
        elif self._transport.get_write_buffer_size():
            self.close()  # it answered before it had read the request
        else:
            self._upstream.keep(self)

    def close(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def _read(self, data: bytes) -> None:
        if self.complete:
            raise Malformed("an answer that nobody asked for")
        while self.answer is None:
            if self._received:
                data = self.take() + data
            end = end_of_head(data, _MOST_HEAD)
            if not end:
                self._received = data
                return
            answer = self._answer_head(data[:end])
            data = data[end:]
            if answer.status == 101:
                if not self._switches:
                    raise Malformed("a change of protocol that nobody asked for")
                self.answer = switched(answer)
            elif answer.status >= 200:  # others announce the answer
                self.answer = answer
        body = self._body
        if body is None:
            body = self._body = self.answer.body()
        content = body.feed(data)
        self._received = self._received + content if self._received else content
        self.complete = body.done
        if len(self._received) > _MOST_UNREAD and not self.complete and not self._paused:
            self._transport.pause_reading()
            self._paused = True

    def _answer_head(self, head: bytes) -> AnswerHead:
        """Read a head, unless it is known. One to HEAD says of its body what is not so."""
        if self._to_head:
            return answer_head(head, to_head=True)
        answers = self._upstream.answers
        answer = answers.known(head)
        if answer is None:
            answer = answer_head(head, to_head=False)
            if self._asked_again and answer.sized and b"set-cookie" not in answer.fields:
                answers.remember(head, answer)
        return answer

    def _head(self) -> AnswerHead | None:
        return self.answer  # a call, as it changes while one waits

    async def _arrived(self) -> None:
        if self._failure is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        if self.heard is not None:
            self.heard()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
