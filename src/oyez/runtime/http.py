"""The service's HTTP side: its own ASGI app, with the request's origin around each call."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from oyez.transaction import TRACEPARENT, Origin, origin

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Any]

_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


def with_origin(app: App) -> App:
    """The app, such that what a request announces carries the request's trace and correlation.

    The correlation id is the request's ``x-request-id``, which the gateway makes.
    """

    async def call(
        scope: Scope,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            trace = headers.get(b"traceparent", b"").decode("latin-1")
            request = headers.get(b"x-request-id", b"").decode("latin-1")
            origin.set(
                Origin(
                    correlationid=request if _ID.fullmatch(request) else None,
                    traceparent=trace if TRACEPARENT.fullmatch(trace) else None,
                )
            )
        await app(scope, receive, send)

    return call
