"""A TCP proxy between a client and a server, for tests that cut, stall or slow the connection."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

_PIECE = 65_536


class Proxy:
    """Passes bytes both ways until told otherwise; an asynchronous context manager."""

    def __init__(self, host: str, port: int, *, listen: int = 0) -> None:
        """Before the server at ``host:port``; ``listen`` is a port of 127.0.0.1, 0 a free one."""
        self.received = 0
        """Bytes that came from the server and were passed on."""
        self._target = (host, port)
        self._listen = listen
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._delay = 0.0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that a client connects to."""
        return "127.0.0.1", self._listen

    async def __aenter__(self) -> Proxy:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._listen)
        self._listen = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop every connection and stop listening."""
        self.cut()
        if self._server is not None:
            self._server.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """Drop every connection, and refuse new ones, until `restore`."""
        self._refusing = True
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()

    def stall(self) -> None:
        """Keep and accept connections but pass no byte, until `restore`.

        Restoring drops the connections that were stalled, as a network that lost their state does.
        """
        self._flowing.clear()

    def delay(self, seconds: float) -> None:
        """Pass every piece that comes so many seconds later."""
        self._delay = seconds

    def restore(self) -> None:
        """Pass everything at once again."""
        if not self._flowing.is_set():
            self.cut()
        self._refusing = False
        self._delay = 0.0
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._connect(reader, writer)
        self._writers.discard(writer)
        writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        self._writers.add(server_writer)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, server_writer, counted=False))
                group.create_task(self._pass(server_reader, writer, counted=True))
        except* OSError:
            pass
        finally:
            self._writers.discard(server_writer)
            server_writer.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool
    ) -> None:
        while piece := await reader.read(_PIECE):
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._flowing.wait()
            writer.write(piece)
            await writer.drain()
            if counted:
                self.received += len(piece)
        raise ConnectionResetError  # one side has closed: end the other
