"""Sockets, signals, and the HTTP server of services and of admin ports."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from oyez.errors import ConfigurationError

BACKLOG = 1024
LOCAL = "oyez.local"
"""In the scope of an ASGI request: it came over a Unix socket, that this user alone can write."""


Refuse = Callable[[str, str], ConfigurationError]
"""Returns the error for a setting: (what is allowed, what was found)."""


def bind(host: str, port: int, refuse: Refuse, *, shared: bool = False) -> socket.socket:
    """Return a listening socket; port 0 stands for any free one.

    ``refuse`` makes the error that is raised when the address can't be bound. ``shared`` lets the
    replicas of a service listen at one address; the kernel distributes connections among them.
    """
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    listener: socket.socket | None = None
    try:
        resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = resolved[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        if listener is not None:
            listener.close()
        used = error.errno == errno.EADDRINUSE
        found = f"{place} {'in use' if used else f'({error.strerror or error})'}"
        raise refuse("a free port that may be used", found) from None
    return listener


def local(app: Any) -> Any:
    """Return the app for a Unix socket: the scope of its requests has ``LOCAL``."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, LOCAL: True}, receive, send)

    return call


def bind_unix(path: Path, refuse: Refuse) -> socket.socket:
    """Return a listening Unix socket at a path, for processes of this user alone.

    One that a dead process has left there is replaced. ``refuse`` is as for `bind`.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                if other.connect_ex(str(path)) == 0:
                    raise OSError(errno.EADDRINUSE, "in use")
            path.unlink()
        outside = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(outside)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        found = f"{path} ({error.strerror or error})"
        raise refuse("a file that can be made a socket", found) from None
    return listener


def websocket(*arguments: Any, **options: Any) -> asyncio.Protocol:
    """Return what speaks WebSocket on a connection, as the option ``ws`` of `HttpServer`.

    It is loaded by the first request for one: most services have none.
    """
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    return WebSocketsSansIOProtocol(*arguments, **options)


class HttpServer:
    """An HTTP server for an ASGI app on one socket; its owner starts and stops it."""

    def __init__(self, app: Any, listener: socket.socket, *, grace: float, **options: Any) -> None:
        """``grace``: seconds that requests in flight have to end when it is stopped."""
        settings: dict[str, Any] = {
            "http": "httptools",
            "ws": "none",
            "lifespan": "auto",
            "log_config": None,
            "access_log": False,
            "proxy_headers": False,
            "server_header": False,
            "timeout_graceful_shutdown": max(1, round(grace)),
            **options,
        }
        self._server = _Server(uvicorn.Config(app, **settings))
        self._listener = listener
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """The address that it listens at: ``host:port``, or ``unix:FILE``."""
        name = self._listener.getsockname()
        if isinstance(name, str):
            return f"unix:{name}"
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Accept connections. Raises ConfigurationError when the app's own startup fails."""
        self._task = asyncio.create_task(
            self._server.serve(sockets=[self._listener]), name="http server"
        )
        started = asyncio.create_task(self._server.is_started.wait())
        await asyncio.wait([started, self._task], return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if self._task.done():
            self._task.result()
            raise ConfigurationError("the HTTP app failed to start: see the log above")

    async def stop(self) -> None:
        """Accept no new connection and let requests finish.

        Safe when never started and when called twice.
        """
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.wait([self._task])
        self._listener.close()


class _Server(uvicorn.Server):
    """A server without signal handlers: uvicorn's would make the exit code of a drain non-zero."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_started = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.is_started.set()


@contextlib.contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` on SIGTERM and SIGINT while the block runs (in the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
