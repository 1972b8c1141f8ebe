"""What Routing reads, what it asks its planner, and what it announces."""

from __future__ import annotations

import msgspec

from oyez import Event


class Stop(msgspec.Struct, frozen=True):
    """A door to which one parcel goes, which is at the depot at ``ready``."""

    parcel_id: str
    lat: float
    lon: float
    weight: int
    ready: int


class Route(msgspec.Struct, frozen=True):
    """What one van visits, in this order."""

    van: str
    parcels: list[str]


class RoundBooked(Event, type="logistics.round.booked", key="round_id"):
    """The parcels that leave one depot together, and the vans for them."""

    round_id: str
    depot: str
    lat: float
    lon: float
    vans: list[str]
    stops: list[Stop]


class LegDelayed(Event, type="logistics.leg.delayed", key="parcel_id"):
    """A parcel is at the depot later than was said."""

    parcel_id: str
    round_id: str
    ready: int


class VanFailed(Event, type="logistics.van.failed", key="round_id"):
    """A van drives no more on this round."""

    round_id: str
    van: str


class ParcelDelivered(Event, type="logistics.parcel.delivered", key="parcel_id"):
    """A parcel is at its door."""

    parcel_id: str
    round_id: str


class PlanWanted(Event, type="logistics.plan.wanted", key="round_id"):
    """The tours of these stops are to be computed."""

    round_id: str
    version: int
    lat: float
    lon: float
    vans: list[str]
    stops: list[Stop]


class PlanMade(Event, type="logistics.plan.made", key="round_id"):
    """They are computed; by now they may be stale."""

    round_id: str
    version: int
    routes: list[Route]


class TourPlanned(Event, type="logistics.tour.planned", key="round_id"):
    """This is what is driven from now on, by the version: what is ``done`` is in no route."""

    plan_id: str
    round_id: str
    version: int
    routes: list[Route]
    done: list[str]
