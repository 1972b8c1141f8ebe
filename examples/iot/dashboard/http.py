"""What the page asks for: the fleet, live, and the curves of one site and one sensor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from oyez import Service

BEAT = 15.0
"""Seconds of silence after which a comment keeps the stream open."""
PAUSE = 1.0
"""Seconds between two looks at the whole fleet, at least."""
POINTS = 360
"""The number of windows that a chart shows."""

_SITES = """select site_id, count(*) as sensors,
 cast(sum(readings) as bigint) as readings, cast(sum(hot) as bigint) as hot,
 cast(sum(silent) as bigint) as silent, avg(celsius) as celsius
 from sensors where site_id <> '' group by site_id order by site_id"""
_TROUBLE = """select sensor_id, celsius, measured_at, hot, silent, alerts from sensors
 where hot = 1 or silent = 1 or alerts > 0
 order by hot desc, silent desc, measured_at desc, sensor_id limit 12"""
_CURVES = {
    "sites": """select start, mean, median, p95 from minute where site_id = :key
 order by start desc limit :points""",
    "sensors": """select start, mean, highest from ten where sensor_id = :key
 order by start desc limit :points""",
}


async def follow(request: Request) -> Response:
    """``GET /fleet/events``: all sites and who is in trouble, as server-sent events."""
    service: Service = request.app.state.service

    async def events() -> AsyncIterator[str]:
        shown = b""
        async for _ in service.changes(every=BEAT):
            found = msgspec.json.encode(await fleet(service))
            yield f"event: fleet\ndata: {found.decode()}\n\n" if found != shown else ": here\n\n"
            shown = found
            await asyncio.sleep(PAUSE)

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


async def curve(request: Request) -> Response:
    """``GET /fleet/sites/{key}``, ``GET /fleet/sensors/{key}``: its windows, the oldest first."""
    service: Service = request.app.state.service
    sql = _CURVES.get(request.path_params["kind"])
    if sql is None:
        return JSONResponse({"detail": "expected sites or sensors"}, status_code=404)
    rows = await service.fetch(sql, key=request.path_params["key"], points=POINTS)
    return JSONResponse({"windows": rows[::-1]})


async def fleet(service: Service) -> dict[str, Any]:
    """Return all sites, their sums, and the sensors that are or were too warm, or are silent."""
    sites, trouble = await service.fetch(_SITES), await service.fetch(_TROUBLE)
    totals = {name: sum(each[name] for each in sites) for name in ("sensors", "readings")}
    return {**totals, "sites": sites, "trouble": trouble}


app = Starlette(
    routes=[Route("/fleet/events", follow), Route("/fleet/{kind}/{key}", curve)],
)
