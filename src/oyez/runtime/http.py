"""The service's HTTP side: its own ASGI app, with the request's origin around each call.

An answer names the last events that its request published in the header ``Oyez-After``, and how
old it may be, where a view had not caught up with its reader, in ``Oyez-Stale``; see
`oyez.freshness`.

A request that fails because the store is out of reach, or a view has not caught up, is answered
with 503: it is valid, and may be sent again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from oyez.errors import Stale, StoreUnavailable
from oyez.freshness import stale_header, stale_here, token_of
from oyez.ports import Announcement
from oyez.transaction import TRACEPARENT, Origin, committed_here, origin

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Any]

_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


def with_origin(app: App) -> App:
    """Wrap the app so that events of a request carry the request's trace and correlation.

    The correlation id is the request's ``x-request-id``, which the gateway sets.
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
            published: list[Announcement] = []
            committed_here.set(published)
            ages: list[float] = []
            stale_here.set(ages)

            async def stamp(message: Any) -> None:
                if message["type"] == "http.response.start":
                    ours = []
                    if token := token_of(published):
                        ours.append((b"oyez-after", token.encode()))
                    if ages:
                        ours.append((b"oyez-stale", stale_header(ages).encode()))
                    if ours:
                        message = {**message, "headers": [*message.get("headers", ()), *ours]}
                await send(message)

            await _answer(app, scope, receive, stamp)
        else:
            await app(scope, receive, send)

    return call


async def _answer(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Let the app respond; replace a 500 by 503 where the same request may succeed soon."""
    held: list[Any] = []
    begun = False

    async def hold(message: Any) -> None:
        # A framework first responds with 500, and only then re-raises the error.
        nonlocal begun
        if held or (message["type"] == "http.response.start" and message["status"] == 500):
            held.append(message)
        else:
            begun = True
            await send(message)

    try:
        await app(scope, receive, hold)
    except (StoreUnavailable, Stale) as error:
        if begun:
            raise
        held = _STALE if isinstance(error, Stale) else _UNAVAILABLE
    finally:
        for message in held:
            await send(message)


def _try_again(code: bytes) -> list[Any]:
    return [
        {
            "type": "http.response.start",
            "status": 503,
            "headers": [(b"content-type", b"application/problem+json"), (b"retry-after", b"1")],
        },
        {
            "type": "http.response.body",
            "body": b'{"title":"Service Unavailable","status":503,"code":"%s",'
            b'"detail":"try again in a moment"}' % code,
        },
    ]


_UNAVAILABLE = _try_again(b"store_unavailable")
_STALE = _try_again(b"stale")
