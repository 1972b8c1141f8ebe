"""Map keeps what others told as two views, and shows it: to people live, to drivers on request.

Each column of a row is told by one service alone, in the order of the row's key, so filling a view
anew gives the same rows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from map import events
from oyez import Service, View, applies

BEAT, PAUSE = 15.0, 0.5
"""Seconds between two pictures of the board: at most, and at least."""


class Board(View, table="board", key="parcel_id", index=("round_id", "stage")):
    """Where each parcel is; ``strayed`` counts its moves after its delivery, which are none."""

    parcel_id: str
    round_id: str = ""
    stage: str = ""
    at: int = 0
    delivered: int = 0
    strayed: int = 0

    @applies
    def moved(self, event: events.ParcelMoved) -> None:
        """It is in one place, that of the last event."""
        self.strayed += self.stage == "delivered"
        self.take(event)

    @applies
    def arrived(self, event: events.ParcelDelivered) -> None:
        """Once."""
        self.delivered += 1


class Rounds(View, table="round", key="round_id"):
    """The stops and the tours of each round; ``shrunk`` counts versions that did not grow."""

    round_id: str
    depot: str = ""
    lat: float = 0.0
    lon: float = 0.0
    stops: list[dict[str, Any]] = []
    loaded: int = 0
    version: int = 0
    shrunk: int = 0
    routes: list[dict[str, Any]] = []

    @applies
    def booked(self, event: events.RoundBooked) -> None:
        """It begins."""
        self.take(event)

    @applies
    def packed(self, event: events.RoundLoaded) -> None:
        """The vans may leave."""
        self.loaded += 1

    @applies
    def planned(self, event: events.TourPlanned) -> None:
        """A newer plan takes the place of the older one."""
        self.shrunk += event.version <= self.version
        self.take(event)


_STAGES = "select stage, count(*) as parcels from board group by stage"
_DEPOTS = """select r.depot, min(r.lat) as lat, min(r.lon) as lon, count(b.parcel_id) as parcels,
 count(case when b.delivered > 0 then 1 end) as delivered
 from round r left join board b on b.round_id = r.round_id
 where r.depot <> '' group by r.depot order by r.depot"""
_OPEN = """select r.round_id, r.version, r.routes from round r where r.loaded > 0 and r.version > 0
 and exists (select 1 from board b where b.round_id = r.round_id and b.delivered = 0)
 order by r.round_id"""
_NEWEST = """select r.round_id, r.lat, r.lon, r.version, r.stops, r.routes from round r
 join (select round_id, max(at) as newest from board group by round_id) b on b.round_id = r.round_id
 where r.version > 0 order by b.newest desc, r.round_id limit 6"""


async def board() -> dict[str, Any]:
    """The whole picture, as it is now: parcels by stage, depots, and the newest tours."""
    rows = await service.fetch(_NEWEST)
    tours = [row | {each: json.loads(row[each]) for each in ("stops", "routes")} for row in rows]
    stages = {row["stage"]: row["parcels"] for row in await service.fetch(_STAGES)}
    return {"stages": stages, "depots": await service.fetch(_DEPOTS), "tours": tours}


async def live(request: Request) -> Response:
    """``GET /board``: the picture, whenever it has changed, as server-sent events."""

    async def pictures() -> AsyncIterator[str]:
        async for _ in service.changes(every=BEAT):
            yield f"event: board\ndata: {json.dumps(await board())}\n\n"
            await asyncio.sleep(PAUSE)

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(pictures(), media_type="text/event-stream", headers=headers)


async def tours(request: Request) -> Response:
    """``GET /tours``: for drivers, what is loaded and not all delivered."""
    rows = await service.fetch(_OPEN)
    return JSONResponse([row | {"routes": json.loads(row["routes"])} for row in rows])


async def parcel(request: Request) -> Response:
    """``GET /parcels/{id}``: where one parcel is; 404 as long as nobody has scanned it."""
    sql = "select parcel_id, stage, at from board where parcel_id = :id"
    rows = await service.fetch(sql, id=request.path_params["id"])
    return JSONResponse(rows[0] if rows else None, status_code=200 if rows else 404)


paths = [Route("/board", live), Route("/tours", tours), Route("/parcels/{id}", parcel)]
service = Service("map", http=Starlette(routes=paths))
service.view(Board)
service.view(Rounds)
