"""A WebSocket that the gateway itself speaks (RFC 6455); the frames are a library's, without I/O.

It only tells: a client has nothing to send but what keeps the connection or ends it.
"""

from __future__ import annotations

import asyncio
import contextlib

from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from oyez.ambient import Ambient
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.http1 import Headers
from oyez.gateway.line import Line

GOING_AWAY = 1001
"""The gateway stops: the client may connect to another."""
NORMAL = 1000
_UNASKED = 1003
_HANDSHAKE = (b"connection", b"upgrade", b"sec-websocket-key", b"sec-websocket-version")
_LARGEST = 1_024
"""Bytes of a message that a client may send: it has nothing to say."""


class WebSocket(Line):
    """One client's WebSocket."""

    def __init__(self, ambient: Ambient, changed: asyncio.Event) -> None:
        """``changed`` is set when the client has closed it."""
        super().__init__()
        self.closed = False
        """Whether either side has begun to close it."""
        self.heard = ambient.monotonic()
        """When something of the client last arrived, on the monotonic clock."""
        self._ambient = ambient
        self._changed = changed
        self._protocol = ServerProtocol(max_size=_LARGEST)
        self._accepted: asyncio.Future[None] | None = None
        self._over = asyncio.Event()

    def open(self, exchange: Exchange) -> None:
        """Answer a request for a WebSocket; raises :class:`Refusal` (400, 426) for a wrong one."""
        if exchange.value(b"sec-websocket-version") != "13":
            raise _another_version()
        given = [
            b"%b: %b\r\n" % (name, value)
            for name in _HANDSHAKE
            for value in exchange.fields.get(name, ())
        ]
        # The library reads the request as well: what it needs of it, which is checked already.
        self._protocol.receive_data(b"GET / HTTP/1.1\r\n%b\r\n" % b"".join(given))
        request = next(iter(self._protocol.events_received()), None)
        if not isinstance(request, Request):
            raise _malformed()
        response = self._protocol.accept(request)
        if response.status_code != 101:
            raise _malformed()
        self._protocol.send_response(response)
        self._protocol.data_to_send()  # the head, which is written by the exchange
        headers: Headers = [
            (name.lower().encode(), value.encode())
            for name, value in response.headers.raw_items()
            if name.lower() != "date"
        ]
        early = exchange.switch(headers, self)
        if early:
            self.data_received(early)

    async def send(self, text: bytes, seconds: float) -> None:
        """Send a text; a client that does not accept it within so many seconds is cut off."""
        if self.closed:
            return
        self._protocol.send_text(text)
        self._flush()
        if self.full:
            self._accepted = asyncio.get_running_loop().create_future()
            try:
                async with self._ambient.timeout(seconds):
                    await self._accepted
            except TimeoutError:
                self.abort()
            finally:
                self._accepted = None

    def ping(self) -> None:
        """Ask the client whether it is there."""
        if not self.closed:
            self._protocol.send_ping(b"")
            self._flush()

    def close(self, code: int) -> None:
        """Close it for a reason."""
        if not self.closed:
            self.closed = True
            self._protocol.send_close(code)
            self._flush()

    def abort(self) -> None:
        """Close the connection at once."""
        self.closed = True
        self.transport.abort()

    async def goodbye(self, seconds: float) -> None:
        """Wait until the client has closed it too, at most so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with self._ambient.timeout(seconds):
                await self._over.wait()

    def data_received(self, data: bytes) -> None:
        """Read what the client sends: pongs, pings and its close."""
        self.heard = self._ambient.monotonic()
        try:
            self._protocol.receive_data(data)
        except (InvalidState, EOFError):  # behind its close
            return
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.CLOSE:
                self._end()
            elif isinstance(event, Frame) and event.opcode in _MESSAGES:
                self.close(_UNASKED)
                self._changed.set()
        if self._protocol.parser_exc is not None:
            self._end()
        self._flush()

    def resume_writing(self) -> None:
        """Go on sending."""
        super().resume_writing()
        if self._accepted is not None and not self._accepted.done():
            self._accepted.set_result(None)

    def _end(self) -> None:
        self.closed = True
        self._over.set()
        self._changed.set()

    def _flush(self) -> None:
        # Not writelines: asyncio's own of 3.12 fails on nothing, and tells nobody to pause.
        data = b"".join(self._protocol.data_to_send())
        if data and not self.lost:
            self.transport.write(data)


_MESSAGES = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


def _another_version() -> Refusal:
    return Refusal(
        426,
        "websocket_version",
        "only version 13 of the WebSocket protocol is spoken",
        [(b"sec-websocket-version", b"13"), (b"upgrade", b"websocket")],
    )


def _malformed() -> Refusal:
    return Refusal(400, "bad_handshake", "the request for a WebSocket is malformed")
