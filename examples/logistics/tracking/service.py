"""Tracking orders the scans of a parcel by their own time, and says where the parcel is.

A scan may come late, before the one that was made before it, or twice. Whatever comes, a stage is
taken once, the newest scan says where the parcel is, and after its delivery nothing moves it.
"""

from __future__ import annotations

from oyez import Service, State
from tracking import events

service = Service("tracking")

LATE = 1800
"""Seconds behind what others know, from which on they are told."""
Fact = events.ParcelMoved | events.ParcelDelivered | events.LegSeen | events.LegDelayed


class Journey(State, key="parcel_id"):
    """What was scanned of a parcel: the time of each stage, and what others know."""

    times: dict[str, int] = {}
    ready: int = 0
    """When it is at the depot, as far as others were told; 0 before."""

    @property
    def stage(self) -> str:
        """The stage of the newest scan by its own time; what is delivered stays so."""
        if "delivered" in self.times:
            return "delivered"
        return max(self.times, key=self.times.__getitem__, default="")

    def take(self, scan: events.ParcelScanned) -> list[Fact]:
        """Take one scan; return what is new."""
        if scan.stage in self.times:
            return []
        before, self.times[scan.stage] = self.stage, scan.at
        parcel = {"parcel_id": self.key, "round_id": scan.round_id}
        facts: list[Fact] = []
        if self.stage != before:
            facts.append(events.ParcelMoved(**parcel, stage=scan.stage, at=scan.at))
        if scan.stage == "delivered":
            return [*facts, events.ParcelDelivered(**parcel)]
        left, landed = self.times.get("departed"), self.times.get("arrived", 0)
        late = 0 if left is None else left - scan.due
        if left is not None:
            facts.append(
                events.LegSeen(parcel_id=self.key, route=scan.route, lands=scan.lands, late=late,
                        landed=landed)
            )  # fmt: skip
        ready = landed or scan.lands + late
        if self.stage != "delivered" and ready - (self.ready or scan.lands) >= LATE:
            self.ready = ready
            facts.append(events.LegDelayed(**parcel, ready=ready))
        return facts


@service.on(events.ParcelScanned)
async def scanned(event: events.ParcelScanned, journey: Journey) -> list[Fact]:
    """Add the scan to the journey."""
    return journey.take(event)
