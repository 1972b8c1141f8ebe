"""Forwards requests to services: headers are rewritten, the response is streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import httpx

from oyez.ambient import Ambient
from oyez.config import GatewaySettings
from oyez.gateway import after
from oyez.gateway.access import COOKIE, cookies
from oyez.gateway.exchange import ClientGone, Exchange, Headers, Refusal
from oyez.gateway.routing import Target

# They belong to one connection, not to the request (RFC 9110, section 7.6.1).
_HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
# The gateway sets them itself, or they are for the gateway alone.
_REPLACED = {
    b"authorization",
    b"content-length",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"proxy",
    b"traceparent",
    b"via",
    b"x-api-key",
    b"x-real-ip",
    b"x-request-id",
}
_ANSWER_REPLACED = {b"server", b"date", b"x-request-id"}
_OURS = (b"x-oyez-", b"x-forwarded-")
_OUR_COOKIES = tuple(name.encode() + b"=" for name in (COOKIE, after.COOKIE))

_KEPT_OPEN = 100
# Shorter than the time after which services close an idle connection.
_KEPT_OPEN_SECONDS = 2.0
_RECONNECT_SECONDS = 1.0
_FIRST_PAUSE = 0.025


# The client's socket layer raises AttributeError (a peer name asked of no socket) for a connection
# that is reset between being made and first being used, as when the service is killed just then.
_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, AttributeError)


class Forwarder:
    """A client of the services with one bounded pool of connections.

    It follows no redirect, keeps no cookie and uses no proxy: all addresses are from the
    configuration.
    """

    def __init__(self, settings: GatewaySettings, ambient: Ambient) -> None:
        self._settings = settings
        self._ambient = ambient
        self._draining = asyncio.Event()
        # A client's connection uses at most one to a service, so the pool is never exhausted.
        self._pool = httpx.AsyncHTTPTransport(
            trust_env=False,
            limits=httpx.Limits(
                max_connections=settings.connections,
                max_keepalive_connections=_KEPT_OPEN,
                keepalive_expiry=_KEPT_OPEN_SECONDS,
            ),
        )

    def drain(self) -> None:
        """End endless responses, so that their clients connect to another gateway."""
        self._draining.set()

    async def aclose(self) -> None:
        """Close the connections to the services."""
        await self._pool.aclose()

    async def send(
        self, exchange: Exchange, target: Target, principal: str | None, body: bytes
    ) -> None:
        """Respond with the service's response; raises :class:`Refusal` (502, 503, 504).

        If the service disconnects halfway, the response remains incomplete and the client's
        connection is closed. If the client disconnects, so does the gateway.
        """
        request = self._request(exchange, target, principal, body)
        work = self._relay(exchange, request, stream=target.route.stream)
        if await self._while_wanted(exchange, work, until_drain=target.route.stream):
            return
        if exchange.status == 0:
            raise _unavailable("the gateway is about to stop")
        await exchange.send({"type": "http.response.body", "body": b""})

    async def _while_wanted(
        self, exchange: Exchange, work: Coroutine[Any, Any, None], *, until_drain: bool
    ) -> bool:
        """Do the work; return False if draining ended it. Raises :class:`ClientGone`."""
        task = asyncio.create_task(work)
        gone = asyncio.create_task(exchange.gone())
        waiting: set[asyncio.Task[Any]] = {task, gone}
        if until_drain:
            waiting.add(asyncio.create_task(self._draining.wait()))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if exchange.complete:  # the rest returns the connection to the pool
                await asyncio.wait({task})
            finished, hung_up = task.done(), gone.done()
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        if finished:
            task.result()
        elif hung_up:
            raise ClientGone
        return finished

    async def _relay(self, exchange: Exchange, request: httpx.Request, *, stream: bool) -> None:
        seconds = self._settings.timeout
        try:
            async with self._ambient.timeout(None if stream else seconds):
                async with self._ambient.timeout(seconds):
                    response = await self._answer(request)
                try:
                    await self._pass_back(exchange, response)
                finally:
                    await response.aclose()
        except TimeoutError:
            if not exchange.status:
                detail = "the service did not answer in time"
                raise Refusal(504, "service_timeout", detail, _RETRY) from None
        except httpx.TransportError:
            if not exchange.status:
                detail = "the service disconnected or violated the protocol"
                raise Refusal(502, "service_broken", detail, _RETRY) from None

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        """Return the head of the response. A service that restarts is retried for a second.

        Only a connection that failed is retried: then the service can't have seen the request.
        """
        patience = min(_RECONNECT_SECONDS, self._settings.timeout / 2)
        give_up = self._ambient.monotonic() + patience
        pause = _FIRST_PAUSE
        while True:
            try:
                response = await self._pool.handle_async_request(request)
            except _NOT_CONNECTED:
                left = give_up - self._ambient.monotonic()
                if left <= 0:
                    raise _unavailable("the service can't be reached") from None
                await self._ambient.sleep(min(pause * (0.5 + self._ambient.chance()), left))
                pause *= 2
            else:
                response.request = request
                return response

    async def _pass_back(self, exchange: Exchange, response: httpx.Response) -> None:
        headers = _passing(response.headers.raw, _ANSWER_REPLACED)
        own_address = f"http://{response.request.headers['host']}".encode()
        kept: Headers = []
        for name, value in headers:
            if name == b"set-cookie" and value.lstrip().startswith(_OUR_COOKIES):
                continue
            if name == b"location" and value.startswith(own_address + b"/"):
                value = value.removeprefix(own_address)
            kept.append((name, value))
        kept += after.cookie_for(exchange, kept)
        status = response.status_code
        await exchange.send({"type": "http.response.start", "status": status, "headers": kept})
        async for chunk in response.aiter_raw():
            await exchange.send({"type": "http.response.body", "body": chunk, "more_body": True})
        await exchange.send({"type": "http.response.body", "body": b""})

    def _request(
        self, exchange: Exchange, target: Target, principal: str | None, body: bytes
    ) -> httpx.Request:
        address = f"{target.address}"
        headers = _passing(exchange.headers, _REPLACED)
        if not exchange.continues_trace:
            headers = [each for each in headers if each[0] != b"tracestate"]
        ours_alone = (COOKIE, after.COOKIE)
        jar = [f"{n}={v}" for n, v in cookies(exchange.values(b"cookie")) if n not in ours_alone]
        client = (exchange.scope.get("client") or ("unknown",))[0]
        host = exchange.host
        shown = f'"[{client}]"' if ":" in client else f'"{client}"'
        ours = {
            "host": address,
            "x-request-id": exchange.request_id,
            "traceparent": exchange.traceparent,
            "forwarded": f'for={shown};host="{host}";proto={exchange.scheme}',
            "x-forwarded-for": client,
            "x-forwarded-host": host,
            "x-forwarded-proto": exchange.scheme,
        }
        if jar:
            ours["cookie"] = "; ".join(jar)
        token = "" if exchange.value(after.HEADER) else after.token_in(exchange)
        if token:
            ours["oyez-after"] = token
        if principal:
            ours["x-oyez-principal"] = principal
        headers += [(name.encode(), value.encode("latin-1")) for name, value in ours.items()]
        query = exchange.scope["query_string"]
        raw = exchange.scope["raw_path"] + (b"?" + query if query else b"")
        connect = self._settings.connect_timeout
        timeout = {"connect": connect, "pool": connect, "read": None, "write": None}
        return httpx.Request(
            exchange.method,
            f"http://{address}",
            headers=headers,
            content=body or None,
            # The target is sent byte for byte as it was checked, not as a URL library rewrites it.
            extensions={"timeout": timeout, "target": raw},
        )


_RETRY: Headers = [(b"retry-after", b"1")]


def _unavailable(detail: str) -> Refusal:
    return Refusal(503, "service_unavailable", detail, _RETRY)


def _passing(headers: Headers, replaced: set[bytes]) -> Headers:
    """Return the headers to forward; ``_`` counts as ``-``, as some servers read it."""
    headers = [(name.lower(), value) for name, value in headers]
    named = b",".join(value for name, value in headers if name == b"connection").lower()
    dropped = {name.strip() for name in named.split(b",")} | _HOP_BY_HOP | replaced
    kept = []
    for name, value in headers:
        plain = name.replace(b"_", b"-")
        if name not in dropped and plain not in dropped and not plain.startswith(_OURS):
            kept.append((name, value))
    return kept
