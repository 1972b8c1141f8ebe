"""The process of the gateway: its socket, strict HTTP/1.1 at the edge, draining at the end.

The edge uses h11 although httptools is several times faster: h11 is a state machine of the standard
that refuses everything else, and its events allow to refuse its few liberties too. So every service
reads an admitted request in the same way.
"""

from __future__ import annotations

import asyncio
import http
import re
import resource
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from oyez.ambient import Ambient
from oyez.config import Config, GatewaySettings, Listen
from oyez.gateway.access import read_secret
from oyez.gateway.app import gateway
from oyez.gateway.exchange import LINGER_SECONDS, SECURITY, problem
from oyez.listening import HttpServer, bind, stop_signals

_IDLE_SECONDS = 5
_OTHER_FILES = 64

_BLANK_LINE = re.compile(rb"\n\r?\n")
# A line that ends with half of CRLF, and a line that continues the previous one: servers read these
# differently.
_LOOSE = re.compile(rb"\r(?!\n|\Z)|(?<!\r)\n|\n[ \t]")
# h11 merges equal lengths; a service might not read them as equal.
_LENGTHS = re.compile(rb"\ncontent-length:([^\r\n]*)", re.IGNORECASE)


async def serve(
    config: Config, ambient: Ambient, *, ready: Callable[[Listen], None] | None = None
) -> None:
    """Run the gateway until SIGTERM or SIGINT, or until cancelled; then drain.

    Draining: no new connections, requests in flight finish within ``gateway.grace`` seconds.
    ``ready`` is called with the address once connections are accepted. Raises
    :class:`ConfigurationError` if the gateway can't start as configured.
    """
    settings = config.gateway
    app = gateway(config, ambient, secret=read_secret(config))
    assert settings is not None
    refuse = partial(config.error, "gateway.listen")
    listener = bind(settings.listen.host, settings.listen.port, refuse)
    _allow_files(2 * settings.connections + _OTHER_FILES)
    server = HttpServer(
        app,
        listener,
        grace=settings.grace,
        http=_protocol(settings),
        lifespan="off",
        log_level="error",
        h11_max_incomplete_event_size=settings.header_limit,
        timeout_keep_alive=_IDLE_SECONDS,
    )
    stopped = asyncio.Event()
    try:
        with stop_signals(stopped.set):
            await server.start()
            if ready is not None:
                host, port = listener.getsockname()[:2]
                ready(Listen(host, port))
            await stopped.wait()
    finally:
        app.drain()
        await server.stop()
        await app.aclose()


class StrictConnection(h11.Connection):
    """A stricter h11: no folded lines, no bare CR or LF, at most one length."""

    def next_event(self) -> Any:
        """Return h11's next event. Raises ``RemoteProtocolError`` for a loosely written head."""
        if self.their_state is h11.IDLE:
            data = self.trailing_data[0]
            end = _BLANK_LINE.search(data)
            head = data[: end.end()] if end else data
            if _LOOSE.search(head):
                raise h11.RemoteProtocolError("a head with loose line endings")
            lengths = _LENGTHS.findall(head)
            if len(lengths) > 1 or b"," in b"".join(lengths):
                raise h11.RemoteProtocolError("several lengths")
        return super().next_event()


class EdgeProtocol(H11Protocol):
    """A client's connection, with limits on the time of a head and the number of connections.

    A head must arrive within ``head_seconds``. Above ``most`` connections, the one that has been
    idle longest is closed, so idle clients never exclude others.
    """

    head_seconds: ClassVar[float]
    most: ClassVar[int]
    waiting: ClassVar[dict[EdgeProtocol, None]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = StrictConnection(h11.SERVER, self.config.h11_max_incomplete_event_size or 0)
        self._head_timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head; close the longest idle connection when there are too many."""
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > self.most:
            next(iter(self.waiting)).transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of the head."""
        self._head_begun()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, and start or stop the timer of the head."""
        if self._refused:
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_begun()
        elif self._head_timer is None and not self.transport.is_closing():
            self._await_head()

    def on_response_complete(self) -> None:
        """Count the connection as idle until the next head."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.waiting[self] = None
            if self.conn.trailing_data[0]:
                self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed request with 400 or 431, by the error of h11 being handled."""
        error = sys.exception()
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._refuse(431, "headers_too_large", "the head of the request is too large")
        else:
            self._refuse(400, "malformed", "the request is not well-formed HTTP/1.1")

    def _await_head(self) -> None:
        self._head_begun()
        self.waiting[self] = None
        self._head_timer = self.loop.call_later(self.head_seconds, self._head_late)

    def _head_begun(self) -> None:
        self.waiting.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(408, "slow_head", "the head of the request did not arrive in time")
        else:
            self.transport.close()

    def _refuse(self, status: int, code: str, detail: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._head_begun()
        self._refused = True
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        headers, body = problem(status, code, detail)
        length = (b"content-length", str(len(body)).encode())
        headers += [*SECURITY, length, (b"connection", b"close")]
        reason = http.HTTPStatus(status).phrase
        for event in (
            h11.Response(status_code=status, headers=headers, reason=reason),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        # Closing a socket with unread bytes resets it, and the client may lose the response.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)


def _protocol(settings: GatewaySettings) -> type[EdgeProtocol]:
    class Protocol(EdgeProtocol):
        head_seconds = settings.timeout
        most = settings.connections
        waiting: ClassVar[dict[EdgeProtocol, None]] = {}

    return Protocol


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
