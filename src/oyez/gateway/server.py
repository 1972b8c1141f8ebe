"""The process of the gateway: its socket, and draining at the end."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from functools import partial

from oyez.ambient import Ambient
from oyez.config import Config, Listen
from oyez.gateway.access import read_secret
from oyez.gateway.app import gateway
from oyez.gateway.edge import Edge
from oyez.listening import BACKLOG, bind, stop_signals
from oyez.spans import Tracer

_OTHER_FILES = 64


async def serve(
    config: Config,
    ambient: Ambient,
    *,
    ready: Callable[[Listen], None] | None = None,
    tracer: Tracer | None = None,
) -> None:
    """Run the gateway until SIGTERM or SIGINT, or until cancelled; then drain.

    Draining: no new connections, requests in flight finish within ``gateway.grace`` seconds.
    ``ready`` is called with the address once connections are accepted; ``tracer`` records spans.
    Raises
    :class:`ConfigurationError` if the gateway can't start as configured.
    """
    settings = config.gateway
    app = gateway(config, ambient, secret=read_secret(config), tracer=tracer)
    assert settings is not None
    refuse = partial(config.error, "gateway.listen")
    listener = bind(settings.listen.host, settings.listen.port, refuse)
    _allow_files(2 * settings.connections + _OTHER_FILES)
    edge = Edge(settings, ambient, app)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(edge.connection, sock=listener, backlog=BACKLOG)
    stopped = asyncio.Event()
    try:
        with stop_signals(stopped.set):
            if ready is not None:
                host, port = listener.getsockname()[:2]
                ready(Listen(host, port))
            await stopped.wait()
    finally:
        app.drain()
        server.close()
        await edge.drain()
        app.close()


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
