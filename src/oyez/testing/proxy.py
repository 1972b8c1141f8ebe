"""A TCP proxy that simulates network failures before a broker or a database."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Coroutine
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

LOOPBACK = "127.0.0.1"
CHUNK = 64 * 1024
"""The limit of bytes passed on together."""
IN_FLIGHT = 256
"""The limit of chunks in flight in one direction of a connection."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: reset the connection instead of an orderly end."""


class Proxy:
    """A proxy of TCP connections to one server, which fails on demand.

        async with Proxy("127.0.0.1", 5432) as proxy:
            store = await open_store(proxy.through(url))
            proxy.cut()
            ...
            proxy.restore()

    It listens on loopback, on a free port or the given one, and keeps that port while it is open. A
    server that sends addresses to its clients (Kafka, a cluster of NATS or Redis) lets them bypass
    it, unless the server is configured to send the proxy's port.
    """

    def __init__(self, host: str, port: int, *, listen: int = 0) -> None:
        self.received = 0
        """Bytes from the server that clients have received, of all connections."""
        self._target = (host, port)
        self._delay = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._answering = asyncio.Event()
        self._answering.set()
        self._socket: socket.socket | None = None
        self._port = listen
        self._listening = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[asyncio.StreamWriter] = set()

    @property
    def host(self) -> str:
        """The address it listens at: 127.0.0.1."""
        return LOOPBACK

    @property
    def port(self) -> int:
        """The port it listens at; RuntimeError before `async with`."""
        if self._socket is None:
            raise RuntimeError("the proxy is not open; use it with `async with`")
        return self._port

    @property
    def address(self) -> str:
        """``host:port``, to replace the server's."""
        return f"{self.host}:{self.port}"

    def through(self, url: str) -> str:
        """Return the URL with this proxy as its host and port."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}{self.address}"))

    def cut(self) -> None:
        """Reset every connection and refuse new ones, as when the server's process died."""
        self._drop()
        if self._listening:
            self._reserve()

    def restore(self) -> None:
        """Work again: accept connections, pass on the held bytes, delay nothing."""
        self._delay = 0.0
        self._flowing.set()
        self._answering.set()
        self._listen()

    def mute(self) -> None:
        """Pass on what clients send, and hold every answer, as when one direction is lost.

        The server does what it is asked, and nobody hears of it: after `cut` the answers are gone,
        after `restore` they arrive.
        """
        self._listen()
        self._answering.clear()

    def stall(self) -> None:
        """Accept and keep connections but pass no byte and no end, as when the route is lost.

        Bytes sent meanwhile arrive after `restore`.
        """
        self._listen()
        self._flowing.clear()

    def delay(self, seconds: float) -> None:
        """Delay all bytes from now on, in both directions."""
        if seconds < 0:
            raise ValueError(f"delay: {seconds} is negative; give seconds, 0 or more")
        self._delay = seconds

    async def __aenter__(self) -> Proxy:
        self._listen()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tasks = list(self._tasks)
        self._drop()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        self._socket, self._listening = None, False

    # -- the listening side ----------------------------------------------------------------------

    def _listen(self) -> None:
        if self._listening:
            return
        listener = self._socket or self._reserve()
        listener.listen()
        self._listening = True
        self._run(self._accept(listener))

    def _reserve(self) -> socket.socket:
        """Hold the port without listening: connections are refused, and the port stays ours."""
        if self._socket is not None:
            # A connection may be there already: it is not to be accepted on a closed socket.
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        self._listening = False
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((LOOPBACK, self._port))
        self._port = self._socket.getsockname()[1]
        return self._socket

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            self._run(self._connect(client))

    def _drop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for connection in self._connections:
            _reset(connection)
        self._tasks.clear()
        self._connections.clear()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- one connection --------------------------------------------------------------------------

    async def _connect(self, client: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=client)
        self._connections.add(writer)
        sides = [writer]
        try:
            await self._flowing.wait()
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            self._connections.add(server_writer)
            sides.append(server_writer)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._pass(reader, server_writer))
                directions.create_task(self._pass(server_reader, writer, answers=True))
        except* OSError:
            for side in sides:
                _reset(side)
        finally:
            for side in sides:
                self._connections.discard(side)
                side.close()

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)
        async with asyncio.TaskGroup() as ends:
            ends.create_task(self._take(source, under_way))
            ends.create_task(self._give(under_way, sink, answers))

    async def _take(
        self, source: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        clock = asyncio.get_running_loop().time
        data = b"not yet ended"
        while data:
            data = await source.read(CHUNK)
            await under_way.put((clock() + self._delay, data))

    async def _give(
        self,
        under_way: asyncio.Queue[tuple[float, bytes]],
        sink: asyncio.StreamWriter,
        answers: bool,
    ) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - clock())
            await self._flowing.wait()
            if answers:
                await self._answering.wait()
            if sink.is_closing():  # uvloop refuses to write then, with a RuntimeError
                raise ConnectionResetError("the other side is gone")
            if not data:
                sink.write_eof()
                return
            sink.write(data)
            await sink.drain()
            if answers:
                self.received += len(data)


def _reset(side: asyncio.StreamWriter) -> None:
    connection = side.get_extra_info("socket")
    # uvloop's view of a socket sets no option; another descriptor of the connection does.
    if connection is not None:
        with contextlib.suppress(OSError), connection.dup() as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    side.transport.abort()
