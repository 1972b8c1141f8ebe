"""Tracking orders the scans of a parcel by their own time, and says where it is and when it lands.

A scan may come late, before the one that was made before it, or twice. Whatever comes, a stage is
taken once, the newest scan says where the parcel is, and after its delivery nothing moves it.
Each flight that has landed teaches what its route loses in the air: the next one is predicted by
the mean of that.
"""

from __future__ import annotations

from collections.abc import Iterator

from oyez import Service, State
from tracking import events

service = Service("tracking")

LATE = 1800
"""Seconds behind what others know, from which on they are told."""
Fact = events.ParcelMoved | events.ParcelDelivered | events.EtaPredicted | events.LegDelayed


class Route(State, key="route"):
    """What the flights of a route have lost in the air, in seconds."""

    flown: int = 0
    lost: int = 0


class Journey(State, key="parcel_id"):
    """What was scanned of a parcel: the time of each stage, and what others know."""

    times: dict[str, int] = {}
    ready: int = 0
    """When it is at the depot, as far as others were told; 0 before."""

    def take(self, scan: events.ParcelScanned, route: Route) -> Iterator[Fact]:
        """Take one scan; yield what is new. After its delivery there is nothing new of a parcel."""
        if scan.stage in self.times or "delivered" in self.times:
            return
        parcel = {"parcel_id": self.key, "round_id": scan.round_id}
        if scan.stage == "delivered" or scan.at > max(self.times.values(), default=0):
            yield events.ParcelMoved(**parcel, stage=scan.stage, at=scan.at)
        self.times[scan.stage] = scan.at
        if scan.stage == "delivered":
            yield events.ParcelDelivered(**parcel)
            return
        left, landed = self.times.get("departed", 0), self.times.get("arrived", 0)
        late = left - scan.due if left else 0
        if left and landed:
            route.flown += 1
            route.lost += landed - scan.lands - late
        elif left:
            mean = round(route.lost / max(1, route.flown))
            yield events.EtaPredicted(**parcel, eta=scan.lands + late + mean)
        ready = landed or scan.lands + late
        if ready - (self.ready or scan.lands) >= LATE:
            self.ready = ready
            yield events.LegDelayed(**parcel, ready=ready)


@service.on(events.ParcelScanned)
async def scanned(event: events.ParcelScanned, journey: Journey, route: Route) -> list[Fact]:
    """Add the scan to the journey."""
    return list(journey.take(event, route))
