"""A service process's admin port: liveness, readiness, metrics and, behind a token, details."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from oyez.runtime.dead import list_dead
from oyez.runtime.process import ServiceProcess

SCALE = "/oyez/scale"
"""The path that tells how many replicas the service needs."""
Metrics = Callable[[str], Awaitable[tuple[bytes, str]]]
"""Returns the metrics in a format that an ``Accept`` header names, and its media type."""


def admin(
    process: ServiceProcess,
    *,
    token: str,
    metrics: Metrics,
    details: Callable[[], ASGIApp] | None = None,
    scale_token: str | None = None,
) -> Starlette:
    """Return the ASGI app.

    ``details`` makes the app of everything else under ``/oyez``, behind the token too. It is made
    at the first request for it. ``scale_token`` opens `SCALE` and nothing else.
    """
    detailed: list[ASGIApp] = []

    def allowed(request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        scaling = scale_token is not None and request.url.path == SCALE
        return hmac.compare_digest(given, token.encode()) or (
            scaling and hmac.compare_digest(given, (scale_token or "").encode())
        )

    def guarded(handler: Callable[[Request], object]) -> Callable[[Request], object]:
        async def check(request: Request) -> Response:
            if not allowed(request):
                return _unauthorized()
            answer = await handler(request)  # type: ignore[misc]
            return JSONResponse(answer)

        return check

    async def rest(scope: Scope, receive: Receive, send: Send) -> None:
        if not allowed(Request(scope)):
            await _unauthorized()(scope, receive, send)
            return
        if not detailed and details is not None:
            detailed.append(details())
        await detailed[0](scope, receive, send)

    async def livez(_: Request) -> Response:
        return _verdict(process.health.liveness())

    async def readyz(_: Request) -> Response:
        return _verdict(process.readiness(), process.health.warnings())

    async def show_metrics(request: Request) -> Response:
        content, kind = await metrics(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": kind})

    async def status(_: Request) -> object:
        return {
            "service": process.service.name,
            "owner": process.owner,
            **process.health.report(),
        }

    async def dead(_: Request) -> object:
        return await list_dead(process.store)

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", show_metrics),
            Route("/oyez/status", guarded(status)),
            Route("/oyez/dead", guarded(dead)),
            *([Mount("/oyez", rest)] if details is not None else []),
        ]
    )


def _unauthorized() -> Response:
    return JSONResponse(
        {"title": "Unauthorized", "status": 401, "code": "token_required"},
        status_code=401,
        headers={"WWW-Authenticate": "Bearer"},
        media_type="application/problem+json",
    )


def _verdict(reasons: list[str], warnings: Sequence[str] = ()) -> Response:
    return JSONResponse(
        {"ok": not reasons, "reasons": reasons, "warnings": list(warnings)},
        status_code=503 if reasons else 200,
    )
