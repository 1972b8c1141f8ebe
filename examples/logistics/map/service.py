"""Map keeps what others told as two views, and shows it: to people live, to drivers on request.

Each column of a row is told by one service alone, in the order of the row's key, so filling a view
anew gives the same rows.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from map import events
from oyez import Service, View, applies

service = Service("map")


@service.view
class Board(View, table="board", key="parcel_id", index=("round_id", "stage")):
    """Where each parcel is, since when, and when it was to land; 0 if nobody has said."""

    parcel_id: str
    round_id: str = ""
    stage: str = ""
    at: int = 0
    eta: int = 0

    @applies
    def moved(self, event: events.ParcelMoved) -> None:
        """It is in one place, that of the last event."""
        self.take(event)

    @applies
    def predicted(self, event: events.EtaPredicted) -> None:
        """It is in the air."""
        self.take(event)


@service.view
class Rounds(View, table="round", key="round_id"):
    """The stops and the tours of each round."""

    round_id: str
    depot: str = ""
    lat: float = 0.0
    lon: float = 0.0
    stops: dict[str, dict[str, float]] = {}
    loaded: int = 0
    version: int = 0
    routes: dict[str, list[str]] = {}

    @applies
    def booked(self, event: events.RoundBooked) -> None:
        """It begins."""
        self.take(event)

    @applies
    def packed(self, event: events.RoundLoaded) -> None:
        """The vans may leave."""
        self.loaded = 1

    @applies
    def planned(self, event: events.TourPlanned) -> None:
        """A newer plan takes the place of the older one."""
        self.take(event)


_STAGES = "select stage, count(*) as parcels from board where stage <> '' group by stage"
_DEPOTS = """select r.depot, min(r.lat) as lat, min(r.lon) as lon, count(b.parcel_id) as parcels,
 count(case when b.stage = 'delivered' then 1 end) as delivered
 from round r left join board b on b.round_id = r.round_id
 where r.depot <> '' group by r.depot order by r.depot"""
_OPEN = """select r.round_id, r.version, r.routes from round r where r.loaded > 0 and r.version > 0
 and exists (select 1 from board b where b.round_id = r.round_id and b.stage <> 'delivered')
 order by r.round_id"""
_NEWEST = """select r.round_id, r.lat, r.lon, r.version, r.stops, r.routes from round r
 join (select round_id, max(at) as newest from board group by round_id) b on b.round_id = r.round_id
 where r.version > 0 order by b.newest desc, r.round_id limit 6"""


@service.live("/board")
async def board() -> dict[str, Any]:
    """The whole picture, as it is now: parcels by stage, depots, and the newest tours."""
    rows = await service.fetch(_NEWEST)
    tours = [row | {each: Raw(row[each]) for each in ("stops", "routes")} for row in rows]
    stages = {row["stage"]: row["parcels"] for row in await service.fetch(_STAGES)}
    return {"stages": stages, "depots": await service.fetch(_DEPOTS), "tours": tours}


@service.get("/tours")
async def tours() -> list[dict[str, Any]]:
    """What is loaded and not all delivered, for drivers."""
    return [row | {"routes": Raw(row["routes"])} for row in await service.fetch(_OPEN)]


@service.get("/parcels/{parcel_id}")
async def parcel(parcel_id: str) -> Board | None:
    """Where a parcel is and when it was to land."""
    return await service.read(Board, parcel_id)
