"""A connection whose protocol has changed (RFC 9110, section 7.8): its bytes as they come."""

from __future__ import annotations

import asyncio


class Line(asyncio.Protocol):
    """Who receives from a connection instead of its HTTP, and is told of its end."""

    def __init__(self) -> None:
        self.full = False
        """Whether the other side has not accepted what it was sent."""
        self.lost = False

    def begin(self, transport: asyncio.Transport, before: asyncio.Protocol) -> None:
        """Take over a connection from ``before``, which is still told of its end."""
        self.transport = transport
        self._before = before
        transport.set_protocol(self)

    def pause_writing(self) -> None:
        """Remember that the other side accepts less than it is sent."""
        self.full = True

    def resume_writing(self) -> None:
        """Remember that it accepts more."""
        self.full = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on that the connection has ended."""
        self.lost = True
        self._before.connection_lost(exc)
