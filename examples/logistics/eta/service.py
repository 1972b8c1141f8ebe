"""Eta learns the mean of what each route loses in the air, and predicts by it.

The view is what was learned: a pure fold of the flights that have landed, so it can be filled anew
with another idea of what to learn. A prediction reads it, and is kept beside what came.
"""

from __future__ import annotations

from eta.events import EtaPredicted, LegSeen
from oyez import Service, View, applies

service = Service("eta")


@service.view
class RouteDelay(View, table="route_delay", key="route"):
    """What a route loses in the air, in seconds, beside what it lost on the ground."""

    route: str
    flown: int = 0
    lost: int = 0

    @applies
    def landed(self, event: LegSeen) -> None:
        """One flight more, once it has landed."""
        if event.landed:
            self.flown += 1
            self.lost += event.landed - event.lands - event.late


@service.view
class Prediction(View, table="prediction", key="parcel_id"):
    """When a parcel was to land, by us and by the timetable, and when it did; 0 if not known."""

    parcel_id: str
    eta: int = 0
    lands: int = 0
    landed: int = 0

    @applies
    def predicted(self, event: EtaPredicted) -> None:
        """As we said."""
        self.eta = event.eta

    @applies
    def came(self, event: LegSeen) -> None:
        """As it was."""
        self.take(event)


@service.on(LegSeen)
async def predict(event: LegSeen) -> EtaPredicted | None:
    """Say when the parcel will land, by what is known when it leaves."""
    if event.landed:
        return None
    learned = await service.read(RouteDelay, event.route)
    lost = learned.lost / learned.flown if learned and learned.flown else 0.0
    return EtaPredicted(parcel_id=event.parcel_id, eta=round(event.lands + event.late + lost))
