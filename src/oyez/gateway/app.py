"""The gateway as an ASGI application: the steps of one request, in order."""

from __future__ import annotations

from typing import Any

from starlette.types import Receive, Scope, Send

from oyez.ambient import Ambient
from oyez.config import Config
from oyez.gateway.access import Access
from oyez.gateway.exchange import Budget, ClientGone, Exchange, Refusal
from oyez.gateway.forward import Forwarder
from oyez.gateway.routing import Routes, not_allowed, safe_path
from oyez.gateway.static import Files, not_found
from oyez.logger import Logger

_log = Logger()


def gateway(config: Config, ambient: Ambient, *, secret: bytes) -> Gateway:
    """Return the gateway of a configuration; ``secret`` signs its sessions.

    Raises :class:`ConfigurationError` if there is no ``[gateway]``, or if the files it names are
    missing or readable for others.
    """
    return Gateway(config, ambient, secret)


class Gateway:
    """An ASGI application. See :func:`gateway`."""

    def __init__(self, config: Config, ambient: Ambient, secret: bytes) -> None:
        if config.gateway is None:
            raise config.error("gateway", "a table [gateway]", "nothing")
        self._settings = config.gateway
        self._ambient = ambient
        self._budget = Budget(config.gateway.buffer_limit)
        self._routes = Routes(config)
        self._access = Access(config, ambient, secret)
        self._forwarder = Forwarder(config.gateway, ambient)
        self._files = _files(config)
        self._draining = False

    def drain(self) -> None:
        """Become unready, and end endless responses."""
        self._draining = True
        self._forwarder.drain()

    async def aclose(self) -> None:
        """Close the connections to the services. Safe to call twice."""
        await self._forwarder.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = self._ambient.monotonic()
        exchange = Exchange(scope, receive, send, self._settings, self._ambient, self._budget)
        ending: dict[str, Any] = {}
        try:
            await self._answer(exchange)
        except ClientGone:
            ending = {"ended": "client gone"}
        else:
            ending = {} if exchange.complete else {"ended": "cut off"}
        finally:
            exchange.release()
            _log.info(
                "request",
                method=exchange.method,
                route=exchange.label,
                status=exchange.status,
                ms=round((self._ambient.monotonic() - began) * 1000, 1),
                request_id=exchange.request_id,
                **ending,
            )

    async def _answer(self, exchange: Exchange) -> None:
        try:
            exchange.check_head()
            path = safe_path(exchange)
            if await self._own(exchange, path):
                return
            target = self._routes.match(path, exchange.method)
            if target is None:
                await self._storefront(exchange, path)
                return
            exchange.label = target.route.path
            principal = self._access.admit(exchange, target.route)
            body = await exchange.body()
            await self._forwarder.send(exchange, target, principal, body)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except ClientGone:
            raise
        except Exception:  # noqa: BLE001  a bug: its stack is logged, and not sent to the client
            _log.exception("gateway failed", request_id=exchange.request_id)
            if exchange.status == 0:
                await exchange.refuse(Refusal(500, "internal", "the gateway failed"))

    async def _own(self, exchange: Exchange, path: str) -> bool:
        """Respond to the gateway's own paths; return False for all others."""
        if path not in ("/livez", "/readyz", "/session"):
            return False
        exchange.label = path
        if path == "/session":
            if exchange.method != "POST":
                raise not_allowed("POST")
            cookie = self._access.session(exchange)
            await exchange.body()
            await exchange.plain(204, [(b"set-cookie", cookie.encode())])
            return True
        if exchange.method not in ("GET", "HEAD"):
            raise not_allowed("GET", "HEAD")
        if path == "/readyz" and self._draining:
            raise Refusal(503, "draining", "the gateway is about to stop")
        await exchange.plain(200, [(b"content-type", b"application/json")], b'{"status":"ok"}')
        return True

    async def _storefront(self, exchange: Exchange, path: str) -> None:
        if self._files is None or exchange.method not in ("GET", "HEAD"):
            raise not_found()
        exchange.label = "static"
        await self._files.serve(exchange, path)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return


def _files(config: Config) -> Files | None:
    name = config.gateway.static if config.gateway else None
    if name is None:
        return None
    folder = config.file(name)
    if not folder.is_dir():
        raise config.error("gateway.static", "a folder", f"none at {folder}")
    return Files(folder)
