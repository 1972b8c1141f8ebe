"""A bounded number of connections, none of which is used after it failed."""

from __future__ import annotations

import asyncio

from oyez.ambient import Ambient
from oyez.postgresql.connection import Address, Connection


class Pool:
    """The connections of one process to one server."""

    def __init__(self, address: Address, ambient: Ambient, *, most: int, session: str) -> None:
        """Nothing is connected yet; ``session`` is SQL that each connection begins with."""
        self.pooled: bool | None = None
        """Whether a pooler stands before the server; None before the first connection."""
        self._address = address
        self._ambient = ambient
        self._session = session
        self._slots = asyncio.Semaphore(most)
        self._idle: list[tuple[float, Connection]] = []
        self._used: set[Connection] = set()

    async def acquire(self) -> Connection:
        """Take a connection until `release`, waiting for one. Raises what the driver does."""
        await self._slots.acquire()
        try:
            connection = self._take() or await self.connect()
        except BaseException:
            self._slots.release()
            raise
        self._used.add(connection)
        return connection

    def release(self, connection: Connection, *, sound: bool) -> None:
        """Give it back; one that is not ``sound``, or has a transaction open, is not used again."""
        self._used.discard(connection)
        if sound and not connection.is_closed() and not connection.is_in_transaction():
            self._idle.append((self._ambient.monotonic(), connection))
        else:
            connection.terminate()
        self._slots.release()

    async def connect(self, *, listening: bool = False) -> Connection:
        """Open a connection that the caller terminates. Raises what the driver does."""
        if self.pooled is None:
            probe = await self._address.connect(cache=0)
            try:
                pid = await probe.fetchval("select pg_backend_pid()")
                self.pooled = pid != probe.get_server_pid()
            finally:
                probe.terminate()
        cache = 0 if self.pooled and not listening else 100
        connection = await self._address.connect(cache=cache, past_pooler=listening)
        if not self.pooled:
            try:
                await connection.execute(
                    "select set_config('synchronous_commit', 'on', false)"
                    f" where current_setting('synchronous_commit') = 'off'; {self._session}"
                )
            except BaseException:
                connection.terminate()
                raise
        return connection

    def drop_idle(self, began: float) -> None:
        """Close those that have not answered since ``began``, when work began that failed.

        Where one connection has died the others may have too, and only look alive.
        """
        idle, self._idle = self._idle, []
        for answered, connection in idle:
            if answered >= began:
                self._idle.append((answered, connection))
            else:
                connection.terminate()

    async def close(self) -> None:
        """Let go of every connection; what still runs on one fails."""
        idle, self._idle = self._idle, []
        for connection in tuple(self._used):
            connection.terminate()
        closing = [connection.close(timeout=1.0) for _, connection in idle]
        await asyncio.gather(*closing, return_exceptions=True)

    def _take(self) -> Connection | None:
        while self._idle:
            _, connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            connection.terminate()
        return None
