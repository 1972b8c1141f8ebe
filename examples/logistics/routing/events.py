"""What Routing reads, what it asks its planner, and what it announces."""

from __future__ import annotations

import msgspec

from oyez import Event


class Stop(msgspec.Struct, frozen=True):
    """A door to which one parcel goes, which is at the depot at ``ready``."""

    lat: float
    lon: float
    weight: int
    ready: int


class OfRound(Event, key="round_id"):
    """The base of what is of a round."""

    round_id: str


class OfParcel(OfRound, key="parcel_id"):
    """The base of what is of a parcel of a round."""

    parcel_id: str


class ToPlan(OfRound):
    """The base of what is planned: parcels with their stops, and the vans for them, at a depot."""

    lat: float
    lon: float
    vans: list[str]
    stops: dict[str, Stop]


class RoundBooked(ToPlan, type="logistics.round.booked"):
    """They leave one depot together."""

    depot: str


class LegDelayed(OfParcel, type="logistics.leg.delayed"):
    """A parcel is at the depot later than was said."""

    ready: int


class VanFailed(OfRound, type="logistics.van.failed"):
    """A van drives no more on this round."""

    van: str


class ParcelDelivered(OfParcel, type="logistics.parcel.delivered"):
    """A parcel is at its door."""


class PlanWanted(ToPlan, type="logistics.plan.wanted"):
    """The tours of these stops are to be computed."""

    version: int


class OfPlan(OfRound):
    """The base of what is of a plan: the parcels of each van, in their order."""

    version: int
    routes: dict[str, list[str]]


class PlanMade(OfPlan, type="logistics.plan.made"):
    """It is computed; by now it may be stale."""


class TourPlanned(OfPlan, type="logistics.tour.planned"):
    """This is what is driven from now on, by the version: what is ``done`` is in no route."""

    done: list[str]
