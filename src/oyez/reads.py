"""The HTTP side of a service that shows what it has: as JSON, once or live.

::

    @service.get("/orders/{order_id}")
    async def order(order_id: str) -> CustomerOrders | None:
        return await service.read(CustomerOrders, order_id)

    @service.live("/orders-so-far")
    async def so_far() -> list[Row]:
        return await service.fetch("select count(*) as orders from customer_orders")

What is read is never cached: it is as of the answer. A live page is a stream of server-sent events,
each with the JSON of what the function returns, whenever that has changed by a commit.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from oyez.errors import DeclarationError

BEAT = 15.0
"""Seconds of silence after which a comment keeps a live page's connection open."""

Read = Callable[..., Awaitable[Any]]
"""A function of the texts that its path names."""

_HEADERS = {"Cache-Control": "no-store"}
_LIVE = _HEADERS | {"X-Accel-Buffering": "no"}
_PROBLEM = "application/problem+json"
_NOT_FOUND = b'{"title":"Not found","status":404}'


class Reads:
    """An ASGI app with a path for each function that was added."""

    def __init__(self, service: str, changes: Callable[[float], AsyncIterator[None]]) -> None:
        """``changes`` returns an iterator that yields after commits, and every so many seconds."""
        self._service = service
        self._changes = changes
        self._app = Starlette()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        await self._app(scope, receive, send)

    def get(self, path: str, function: Read) -> None:
        """Answer ``GET path`` with the JSON of what the function returns; with 404 for None.

        Raises DeclarationError.
        """

        async def answer(request: Request) -> Response:
            found = await function(**request.path_params)
            if found is None:
                return Response(_NOT_FOUND, 404, _HEADERS, _PROBLEM)
            return Response(msgspec.json.encode(found), 200, _HEADERS, "application/json")

        self._add(path, function, answer)

    def live(self, path: str, function: Read, pause: float) -> None:
        """Answer ``GET path`` with a stream, looking at most once in ``pause`` seconds.

        Raises DeclarationError.
        """

        async def answer(request: Request) -> Response:
            events = self._events(function, request.path_params, pause)
            return StreamingResponse(events, 200, _LIVE, "text/event-stream")

        self._add(path, function, answer)

    async def _events(
        self, function: Read, asked: dict[str, Any], pause: float
    ) -> AsyncIterator[bytes]:
        shown = None
        async for _ in self._changes(BEAT):
            found = msgspec.json.encode(await function(**asked))
            yield b": still here\n\n" if found == shown else b"data: %b\n\n" % found
            shown = found
            await asyncio.sleep(pause)

    def _add(
        self, path: str, function: Read, answer: Callable[[Request], Awaitable[Response]]
    ) -> None:
        place = f"{function.__module__}.{function.__qualname__}"
        if not inspect.iscoroutinefunction(function):
            raise DeclarationError(f"{place}: what is shown at {path} is read by an async def")
        if not path.startswith("/"):
            raise DeclarationError(f"{place}: the path {path!r}: expected one that begins with /")
        if any(path == route.path for route in self._app.routes if isinstance(route, Route)):
            raise DeclarationError(f"service {self._service} shows two things at {path}")
        try:
            route = Route(path, answer)
        except (AssertionError, ValueError) as error:
            raise DeclarationError(f"{place}: the path {path!r}: {error}") from error
        named, taken = [*route.param_convertors], [*inspect.signature(function).parameters]
        if sorted(named) != sorted(taken):
            raise DeclarationError(
                f"{place}: the path {path!r} names ({', '.join(named)}), the function takes "
                f"({', '.join(taken)}): give both the same names"
            )
        self._app.router.routes.append(route)
