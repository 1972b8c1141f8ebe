"""Connections to endpoints, kept open for the next request to the same one.

They are httpcore's own. Its pool looks for each request at each connection, and from there at each
other one: with 32 requests at once, that takes more time than all the rest of a request.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpcore

from oyez.reset import was_reset

KEPT = 64
"""The limit of connections that are kept open without a request."""
IDLE = 30.0
"""Seconds for which one is kept."""


class Connections:
    """As many connections as there are requests at once, and those that are kept."""

    def __init__(
        self,
        backend: httpcore.AsyncNetworkBackend,
        *,
        tls: ssl.SSLContext | None,
        socket: str | None,
    ) -> None:
        """With a ``socket``, all of them go to that Unix socket."""
        self._backend = backend
        self._tls = tls
        self._socket = socket
        self._used: set[httpcore.AsyncHTTPConnection] = set()
        self._kept: list[tuple[httpcore.Origin, httpcore.AsyncHTTPConnection]] = []

    @asynccontextmanager
    async def sent(self, request: httpcore.Request) -> AsyncIterator[httpcore.Response]:
        """Send a request; its answer may be read until the block ends. Raises httpcore's errors."""
        origin = request.url.origin
        connection = await self._taken(origin)
        self._used.add(connection)
        try:
            try:
                response = await connection.handle_async_request(request)
            except AttributeError as error:
                if not was_reset(error):
                    raise
                raise httpcore.ConnectError("the connection was reset") from error
            try:
                yield response
            finally:
                await response.aclose()
        finally:
            self._used.discard(connection)
            if connection.is_idle() and not connection.is_closed():
                self._kept.append((origin, connection))
            else:
                await connection.aclose()
        await self._tidy()

    async def aclose(self) -> None:
        """Close them all, those in use as well."""
        every = [*self._used, *(connection for _, connection in self._kept)]
        self._used.clear()
        self._kept.clear()
        for connection in every:
            await connection.aclose()

    async def _taken(self, origin: httpcore.Origin) -> httpcore.AsyncHTTPConnection:
        """The newest one kept that the endpoint has not closed, or a new one."""
        for index in reversed(range(len(self._kept))):
            if self._kept[index][0] == origin:
                _, found = self._kept.pop(index)
                if not found.has_expired():
                    return found
                await found.aclose()
                return await self._taken(origin)
        return httpcore.AsyncHTTPConnection(
            origin,
            ssl_context=self._tls,
            keepalive_expiry=IDLE,
            uds=self._socket,
            network_backend=self._backend,
        )

    async def _tidy(self) -> None:
        while self._kept and (len(self._kept) > KEPT or self._kept[0][1].has_expired()):
            await self._kept.pop(0)[1].aclose()
