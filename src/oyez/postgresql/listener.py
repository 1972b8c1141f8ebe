"""Hears what the server notifies its clients of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from oyez.ambient import backoff
from oyez.background import lasting
from oyez.postgresql.connection import Connection
from oyez.postgresql.failures import DRIVER
from oyez.postgresql.server import PostgresServer

KEEPALIVE = 5.0
"""Seconds between two questions to a server that is listened to; it has as many to answer."""


class Listener:
    """Hears one channel on a connection of its own, which is made again when it is lost."""

    def __init__(
        self,
        server: PostgresServer,
        channel: str,
        heard: Callable[[str], None],
        joined: Callable[[], None],
    ) -> None:
        """Nothing is connected yet. Both functions are called on the event loop.

        ``heard`` gets each payload; ``joined`` is called at first and after each gap, in which
        anything may have been missed.
        """
        self._server = server
        self._channel = channel
        self._heard = heard
        self._joined = joined
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen, in the background; where that can't be done, nothing is heard."""
        if self._task is None:
            work = f"listen {self._channel}"
            listening = lasting(work, self._run, self._server.ambient)
            self._task = asyncio.create_task(listening, name=work)

    async def stop(self) -> None:
        """Listen no more. Safe when never started and when called twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        failures = 0
        ambient = self._server.ambient
        while True:
            began = ambient.monotonic()
            try:
                async with asyncio.timeout(self._server.options.deadline):
                    connection = await self._server.connect(listening=True)
                if not self._server.can_listen():
                    connection.terminate()
                    return
                await self._listen(connection)
            except DRIVER:
                pass
            failures = 1 if ambient.monotonic() - began > KEEPALIVE else failures + 1
            await ambient.sleep(backoff(failures, ambient.chance(), most=2.0))

    async def _listen(self, connection: Connection) -> None:
        """Return when the connection is lost."""
        lost = asyncio.Event()
        connection.add_termination_listener(lambda *_: lost.set())
        try:
            async with asyncio.timeout(self._server.options.deadline):
                await connection.add_listener(self._channel, self._hear)
            self._joined()
            while not connection.is_closed():
                # A connection that died without a word stays silent for ever: ask it.
                with suppress(TimeoutError):
                    async with asyncio.timeout(KEEPALIVE):
                        await lost.wait()
                        return
                await connection.fetchval("select 1", timeout=KEEPALIVE)
        finally:
            connection.terminate()

    def _hear(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        self._heard(str(payload))
