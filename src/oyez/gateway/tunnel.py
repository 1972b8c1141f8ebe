"""WebSockets between clients and services: what one side sends, the other gets, byte for byte.

Neither side is sent more than it accepts, so no message is ever in memory whole, however large.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from oyez.ambient import Ambient
from oyez.config import GatewaySettings
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.http1 import AnswerHead, Fields, Headers
from oyez.gateway.line import Line
from oyez.gateway.upstream import ServiceConnection

CHANGES: Headers = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
"""The headers of a request, and of an answer, that change to WebSocket."""


def asks_for_websocket(fields: Fields) -> bool:
    """Return whether a request, or an answer, is to change the protocol to WebSocket."""
    if b"upgrade" not in fields or b"connection" not in fields:
        return False
    options = b",".join(fields[b"connection"]).lower().split(b",")
    named = b",".join(fields[b"upgrade"]).lower().split(b",")
    return any(each.strip() == b"upgrade" for each in options) and any(
        each.strip() == b"websocket" for each in named
    )


def switches(answer: AnswerHead) -> bool:
    """Return whether a service's answer changes the protocol to WebSocket."""
    return answer.status == 101 and asks_for_websocket(answer.fields)


class Tunnels:
    """The WebSockets that are open between clients and services."""

    def __init__(self, settings: GatewaySettings, ambient: Ambient) -> None:
        self.open = 0
        """How many there are."""
        self._settings = settings
        self._ambient = ambient
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Close them, so that their clients connect to another gateway."""
        self._draining.set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one more in; raises :class:`Refusal` (503) where there are too many."""
        if self.open >= self._settings.tunnels:
            raise Refusal(503, "busy", "too many WebSockets", [(b"retry-after", b"5")])
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    async def carry(
        self, exchange: Exchange, connection: ServiceConnection, headers: Headers
    ) -> None:
        """Carry bytes both ways until a side closes, or both are silent for too long."""
        over = asyncio.Event()
        client, service = _End(self._ambient, over), _End(self._ambient, over)
        client.other, service.other = service, client
        asked = exchange.switch(headers, client)
        answered = connection.hand_over(service)
        try:
            for end, early in ((service, asked), (client, answered)):
                if early:
                    end.transport.write(early)
            await self._silence((client, service), over)
        finally:
            exchange.complete = True
            service.close(self._settings.timeout)

    async def _silence(self, ends: tuple[_End, _End], over: asyncio.Event) -> None:
        draining = asyncio.ensure_future(self._draining.wait())
        ended = asyncio.ensure_future(over.wait())
        try:
            while not (draining.done() or ended.done()):
                moved = max(end.moved for end in ends)
                left = moved + self._settings.tunnel_timeout - self._ambient.monotonic()
                if left <= 0:
                    return
                await asyncio.wait(
                    {draining, ended}, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            draining.cancel()
            ended.cancel()


class _End(Line):
    """One end of a tunnel."""

    other: _End

    def __init__(self, ambient: Ambient, over: asyncio.Event) -> None:
        super().__init__()
        self._ambient = ambient
        self._over = over
        self.moved = ambient.monotonic()

    def data_received(self, data: bytes) -> None:
        """Send what arrives to the other end."""
        self.moved = self._ambient.monotonic()
        if not self.other.lost:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        """Read no more of the other end until this one accepts more."""
        super().pause_writing()
        if not self.other.lost:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read on."""
        super().resume_writing()
        if not self.other.lost:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the tunnel."""
        super().connection_lost(exc)
        self._over.set()

    def close(self, seconds: float) -> None:
        """Close this end once what was sent is accepted, or so many seconds are over."""
        if not self.lost:
            self.transport.close()
            asyncio.get_running_loop().call_later(seconds, self.transport.abort)
