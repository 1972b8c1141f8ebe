"""One address that tells how many replicas each service needs, also of those that do not run.

It is what autoscalers ask: of KEDA, a trigger ``metrics-api`` with ``valueLocation: wanted``.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from oyez.errors import OyezError
from oyez.inspection.scale import Outside, Scale
from oyez.project import Project

FRESH = 5.0
"""Seconds for which a look answers everybody who asks: rates of less time tell little."""


def scaler(project: Project, tokens: Sequence[str]) -> Starlette:
    """Return the app: ``GET /SERVICE`` behind one of the tokens, and ``/livez``.

    What is not known is answered by 503, never by a number: whoever asks then keeps what there is.
    """
    code, _ = project.services()
    services = {
        name: _Fresh(Outside(project, name, code.get(name))) for name in project.config.services
    }

    async def scale(request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not any(hmac.compare_digest(given, token.encode()) for token in tokens):
            return _problem(401, "Unauthorized", "a token is needed: OYEZ_SCALE_TOKEN")
        service = services.get(request.path_params["service"])
        if service is None:
            return _problem(404, "Not Found", f"there are: {', '.join(services)}")
        try:
            found = await service.look()
        except OyezError as error:
            return _problem(503, "Not known", str(error))
        return Response(msgspec.json.encode(found), media_type="application/json")

    async def livez(_: Request) -> Response:
        return JSONResponse({"ok": True})

    return Starlette(routes=[Route("/livez", livez), Route("/{service}", scale)])


class _Fresh:
    """Looks at a service that everybody who asks within `FRESH` shares."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self._newest: tuple[float, asyncio.Task[Scale]] | None = None

    async def look(self) -> Scale:
        now = asyncio.get_running_loop().time()
        if self._newest is None or now - self._newest[0] > FRESH:
            self._newest = now, asyncio.create_task(self._outside.look(), name="look")
        return await asyncio.shield(self._newest[1])


def _problem(status: int, title: str, detail: str) -> Response:
    return JSONResponse(
        {"title": title, "status": status, "detail": detail},
        status_code=status,
        headers={"WWW-Authenticate": "Bearer"} if status == 401 else None,
        media_type="application/problem+json",
    )
