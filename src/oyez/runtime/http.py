"""The service's HTTP side: its own ASGI app, with the request's origin around each call.

A request that fails because the store is out of reach is answered with 503: nothing is wrong with
it, and it may be sent again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from oyez.errors import StoreUnavailable
from oyez.transaction import TRACEPARENT, Origin, origin

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Any]

_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


def with_origin(app: App) -> App:
    """The app, such that what a request announces carries the request's trace and correlation.

    The correlation id is the request's ``x-request-id``, which the gateway makes.
    """

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
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
            await _answer(app, scope, receive, send)
        else:
            await app(scope, receive, send)

    return call


async def _answer(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Have the app answer; with 503 if its own answer would be 500 for want of the store."""
    held: list[Any] = []
    begun = False

    async def hold(message: Any) -> None:
        # A framework answers an error with 500 first, and only then lets the error through.
        nonlocal begun
        if held or (message["type"] == "http.response.start" and message["status"] == 500):
            held.append(message)
        else:
            begun = True
            await send(message)

    try:
        await app(scope, receive, hold)
    except StoreUnavailable:
        if begun:
            raise
        held = _UNAVAILABLE
    finally:
        for message in held:
            await send(message)


_UNAVAILABLE = [
    {
        "type": "http.response.start",
        "status": 503,
        "headers": [(b"content-type", b"application/problem+json"), (b"retry-after", b"1")],
    },
    {
        "type": "http.response.body",
        "body": b'{"title":"Service Unavailable","status":503,"code":"store_unavailable",'
        b'"detail":"try again in a moment"}',
    },
]
