"""The server as a broker and a store use it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from oyez.ambient import Ambient
from oyez.endpoint import Endpoint
from oyez.errors import StoreError, StoreUnavailable
from oyez.ports import Finding
from oyez.postgresql.connection import Address, Connection, ServerOptions
from oyez.postgresql.failures import DRIVER, explain
from oyez.postgresql.inspection import durability, inspect
from oyez.postgresql.pool import Pool


class PostgresServer:
    """One server, for calls that end within a deadline."""

    def __init__(
        self, endpoint: Endpoint, ambient: Ambient, options: ServerOptions, *, session: str = ""
    ) -> None:
        """Nothing is connected yet; ``session`` is SQL that each connection begins with.

        Through a pooler it is left out: there, nothing lasts longer than a transaction. Raises
        ConfigurationError.
        """
        address = Address(endpoint, options)
        self.options = options
        self.ambient = ambient
        self.name = address.name
        """The server for people."""
        self._pool = Pool(address, ambient, most=options.connections, session=session)

    @property
    def pooled(self) -> bool | None:
        """Whether a pooler stands before it; None before the first connection."""
        return self._pool.pooled

    @pooled.setter
    def pooled(self, known: bool | None) -> None:
        self._pool.pooled = known

    async def close(self) -> None:
        """Let go of every connection; what still runs on one fails."""
        await self._pool.close()

    @asynccontextmanager
    async def connection(self, deadline: float | None = None) -> AsyncIterator[Connection]:
        """Lend a connection for one short piece of work that ends within the deadline (seconds).

        To connect, or to wait until one is free, may take the options' deadline besides.

        What the driver raises inside becomes StoreUnavailable, ConstraintViolated or StoreRefused.
        After a cancellation, or when the server failed, the connection is not used again.
        """
        connection: Connection | None = None
        sound = False
        try:
            async with self.within():
                connection = await self.acquire()
            async with self.within(deadline):
                yield connection
                sound = True
        except StoreError as error:
            sound = not isinstance(error, StoreUnavailable)
            raise
        finally:
            if connection is not None:
                self.release(connection, sound=sound)

    @asynccontextmanager
    async def within(self, deadline: float | None = None) -> AsyncIterator[None]:
        """End what is inside within the deadline (seconds), and raise StoreErrors for the driver's.

        The driver's own error would show values in a traceback, so it is not kept as the cause.
        """
        seconds = self.options.deadline if deadline is None else deadline
        began = self.ambient.monotonic()
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            self._pool.drop_idle(began)
            raise StoreUnavailable(f"{self.name} did not answer within {seconds:g} s") from None
        except DRIVER as error:
            explained = explain(self.name, error)
            if isinstance(explained, StoreUnavailable):
                self._pool.drop_idle(began)
            raise explained from None

    async def acquire(self) -> Connection:
        """Take a connection until `release`, waiting for one. Raises what the driver does."""
        return await self._pool.acquire()

    def release(self, connection: Connection, *, sound: bool) -> None:
        """Give it back; one that is not ``sound``, or has a transaction open, is not used again."""
        self._pool.release(connection, sound=sound)

    async def connect(self, *, listening: bool = False) -> Connection:
        """Open a connection that the caller terminates. Raises what the driver does."""
        return await self._pool.connect(listening=listening)

    def can_listen(self) -> bool:
        """Return whether notifications can be heard; asked after the first connection."""
        return self.options.listen != "poll" and (bool(self.options.listen) or not self.pooled)

    async def durability(self) -> str:
        """Return what our commits survive: ``power-loss`` or ``process-crash``."""
        async with self.connection() as connection:
            return await durability(connection)

    async def inspect(self) -> list[Finding]:
        """Return what of the server's setup loses commits, or makes it slow or hard to run."""
        async with self.connection() as connection:
            return await inspect(connection, self.options.schema, self.ambient.now)

    def explain(self, error: Exception) -> StoreError:
        """Return the StoreError that the driver's error means, without values of parameters."""
        return explain(self.name, error)
