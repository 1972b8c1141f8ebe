"""The service's HTTP side: its own ASGI app, with the request's origin around each call.

An answer names the last events that its request published in the header ``Oyez-After``, and how
old it may be, where a view had not caught up with its reader, in ``Oyez-Stale``; see
`oyez.freshness`.

A request that fails because the store is out of reach, or a view has not caught up, is answered
with 503: it is valid, and may be sent again. One that claims an identity without proof is answered
with 401; see `oyez.runtime.identity`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from oyez.errors import Stale, StoreUnavailable
from oyez.freshness import stale_header, stale_here, token_of
from oyez.ports import Announcement
from oyez.runtime.identity import Identities, identified
from oyez.runtime.retry import failure_of
from oyez.spans import Failure, Span, here
from oyez.transaction import TRACEPARENT, Announcer, Origin, committed_here, origin

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Any]

MAX_STATE = 512
"""A longer tracestate (characters) is dropped: what W3C Trace Context asks to be kept at least."""

_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


class Request:
    """A request that is answered here: its trace, and its span if that is recorded."""

    def __init__(self, scope: Scope, announcer: Announcer | None) -> None:
        """Without an ``announcer`` a request that is in no trace begins none."""
        headers = dict(scope["headers"])
        given = headers.get(b"traceparent", b"").decode("latin-1")
        parent = given if TRACEPARENT.fullmatch(given) else None
        state = _state(scope["headers"]) if parent is not None else None
        request = headers.get(b"x-request-id", b"").decode("latin-1")
        self.recorded: Span | None = None
        self.failure: Failure | None = None
        self.status = 0
        self._scope = scope
        self._announcer = announcer
        self.traceparent = parent or ""
        if announcer is not None:
            tracer, now = announcer.tracer, announcer.ambient.now()
            if tracer is not None:
                scheme = scope.get("scheme", "http")
                self.recorded = tracer.serve(scope["method"], scheme, parent, state, now)
            if self.recorded is not None:
                self.traceparent = self.recorded.traceparent
            elif parent is None:
                self.traceparent = announcer.span(None)
        self.origin = Origin(
            correlationid=request if _ID.fullmatch(request) else None,
            traceparent=self.traceparent or None,
            tracestate=state,
        )

    def end(self) -> None:
        """End the span, if there is one."""
        if self.recorded is None or self._announcer is None:
            return
        found: dict[str, str | int] = {}
        if self.status:
            found["http.response.status_code"] = self.status
        route = getattr(self._scope.get("route"), "path", "")
        if route:
            found["http.route"] = f"{self._scope.get('root_path', '')}{route}"
        failure = self.failure
        if failure is None and self.status >= 500:
            failure = Failure(str(self.status))
        self.recorded.end(self._announcer.ambient.now(), failure, found)


def with_origin(
    app: App, announcer: Announcer | None = None, identities: Identities | None = None
) -> App:
    """Wrap the app so that events of a request carry the request's trace and correlation.

    The correlation id is the request's ``x-request-id``, which the gateway sets. ``announcer`` is
    the service's, which begins a trace for a request that is in none. ``identities`` verifies who
    sends a request, which its events name too; without them nobody is known.
    """
    app = identified(app, identities)

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope, announcer)
            origin.set(request.origin)
            outside = here.set(request if request.traceparent else None)
            published: list[Announcement] = []
            committed_here.set(published)
            ages: list[float] = []
            stale_here.set(ages)

            async def stamp(message: Any) -> None:
                if message["type"] == "http.response.start":
                    request.status = message["status"]
                    ours = []
                    if token := token_of(published):
                        ours.append((b"oyez-after", token.encode()))
                    if ages:
                        ours.append((b"oyez-stale", stale_header(ages).encode()))
                    if ours:
                        message = {**message, "headers": [*message.get("headers", ()), *ours]}
                await send(message)

            try:
                await _answer(app, scope, receive, stamp)
            except Exception as error:
                request.failure = failure_of(error)
                raise
            finally:
                request.end()
                here.reset(outside)
        else:
            await app(scope, receive, send)

    return call


def _state(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the request's tracestate: several headers are one list (section 3.3.1)."""
    found = ",".join(value.decode("latin-1") for name, value in headers if name == b"tracestate")
    return (
        found if 0 < len(found) <= MAX_STATE and found.isascii() and found.isprintable() else None
    )


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
