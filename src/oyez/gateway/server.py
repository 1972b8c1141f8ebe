"""The process of the gateway: its socket, and draining at the end."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable
from functools import partial

from oyez.ambient import Ambient
from oyez.config import Config, Listen
from oyez.gateway.admin import Admin, Observer
from oyez.gateway.app import gateway
from oyez.gateway.edge import Edge
from oyez.gateway.flows import Records
from oyez.gateway.secret import read_secret
from oyez.listening import BACKLOG, bind, stop_signals
from oyez.spans import Tracer

NOTE = "gateway.admin"
"""The file in the data folder with the address of the admin port, while the gateway runs."""
_OTHER_FILES = 64


async def serve(
    config: Config,
    ambient: Ambient,
    *,
    ready: Callable[[Listen, Listen], None] | None = None,
    observer: Observer | None = None,
    tracer: Tracer | None = None,
    records: Records | None = None,
) -> None:
    """Run the gateway until SIGTERM or SIGINT, or until cancelled; then drain.

    Draining: no new connections, requests in flight finish within ``gateway.grace`` seconds. For
    ``gateway.drain_delay`` seconds before that it is not ready, and takes requests still.
    ``ready`` is called with both addresses, the admin port's second, once connections are accepted.
    Without an ``observer`` there is no admin port, and the second is that of clients again.
    ``tracer`` records spans, ``records`` are those of the brokers. Raises
    :class:`ConfigurationError` if the gateway can't start as configured.
    """
    settings = config.gateway
    tell = None if observer is None else observer.count
    secret = read_secret(config)
    app = gateway(config, ambient, secret=secret, tell=tell, tracer=tracer, records=records)
    assert settings is not None
    listeners = [_bind(config, "gateway.listen", settings.listen)]
    edges = [Edge(settings, ambient, app, app.refused)]
    if observer is not None:
        listeners.append(_bind(config, "gateway.admin", settings.admin))
        edges.append(Edge(settings, ambient, Admin(app, edges[0], observer)))
    _allow_files(2 * settings.connections + _OTHER_FILES)
    loop = asyncio.get_running_loop()
    servers: list[asyncio.Server] = []
    stopped = asyncio.Event()
    note = config.file(config.system.data) / NOTE
    try:
        await app.open()
        servers += [
            await loop.create_server(edge.connection, sock=listener, backlog=BACKLOG)
            for edge, listener in zip(edges, listeners, strict=True)
        ]
        with stop_signals(stopped.set):
            if observer is not None:
                note.write_text(f"{_address(listeners[-1])}\n")
            if ready is not None:
                ready(_address(listeners[0]), _address(listeners[-1]))
            await stopped.wait()
            app.draining = True
            if settings.drain_delay:
                await asyncio.sleep(settings.drain_delay)
    finally:
        note.unlink(missing_ok=True)
        app.drain()
        for server, edge in zip(servers, edges, strict=False):  # none, if the start failed
            server.close()
            await edge.drain()
        await app.close()


def _bind(config: Config, key: str, address: Listen) -> socket.socket:
    return bind(address.host, address.port, partial(config.error, key))


def _address(listener: socket.socket) -> Listen:
    host, port = listener.getsockname()[:2]
    return Listen(host, port)


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
