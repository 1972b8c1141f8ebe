"""The gateway's admin port: liveness, readiness and metrics, apart from the address of clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from oyez.gateway.app import Gateway
from oyez.gateway.edge import Edge
from oyez.gateway.exchange import Exchange, Refusal, refusal_of
from oyez.gateway.http1 import Malformed
from oyez.gateway.routing import not_allowed
from oyez.logger import Logger
from oyez.signals import Signal

_JSON = [(b"content-type", b"application/json")]


class Observer(Protocol):
    """What counts a gateway's signals and shows the numbers."""

    def count(self, signal: Signal) -> None:
        """Count a signal."""
        ...

    def read(self, name: str, value: Callable[[], float]) -> None:
        """Have a gauge read whenever the numbers are shown."""
        ...

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Return all numbers in a format that an ``Accept`` header names, and its media type."""
        ...


class Admin:
    """It answers on the admin port."""

    def __init__(self, gateway: Gateway, edge: Edge, observer: Observer) -> None:
        """``edge`` holds the connections of the clients."""
        self._gateway = gateway
        self._observer = observer
        observer.read("oyez_ready", lambda: float(not gateway.draining))
        observer.read("oyez_gateway_in_flight_requests", lambda: float(gateway.in_flight))
        observer.read("oyez_gateway_connections", lambda: float(edge.connected))
        observer.read("oyez_gateway_watchers", lambda: float(gateway.watchers))
        observer.read("oyez_gateway_tunnels", lambda: float(gateway.tunnels))

    async def __call__(self, exchange: Exchange) -> None:
        """Respond to one request."""
        try:
            await self._answer(exchange)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except Malformed as error:
            await exchange.refuse(refusal_of(error))
        except Exception:  # noqa: BLE001  a bug: its stack is logged, and not sent to the client
            Logger().exception("admin port failed", request_id=exchange.request_id)
            if exchange.status == 0:
                await exchange.refuse(Refusal(500, "internal", "the admin port failed"))

    async def _answer(self, exchange: Exchange) -> None:
        exchange.check_head()
        path = exchange.path.decode("latin-1")
        if path not in ("/livez", "/readyz", "/metrics"):
            raise Refusal(404, "not_found", "here are /livez, /readyz and /metrics")
        if exchange.method not in ("GET", "HEAD"):
            raise not_allowed("GET", "HEAD")
        await exchange.body()
        if path == "/metrics":
            accept = ",".join(exchange.values(b"accept"))
            content, kind = await self._observer.render(accept)
            await exchange.plain(200, [(b"content-type", kind.encode())], content)
            return
        if path == "/readyz" and self._gateway.draining:
            raise Refusal(503, "draining", "the gateway is about to stop")
        await exchange.plain(200, _JSON, b'{"status":"ok"}')
