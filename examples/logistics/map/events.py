"""What Map reads; it announces nothing."""

from __future__ import annotations

from typing import Any

from oyez import Event


class RoundBooked(Event, type="logistics.round.booked", key="round_id"):
    """The parcels that leave one depot together."""

    round_id: str
    depot: str
    lat: float
    lon: float
    stops: list[dict[str, Any]]


class TourPlanned(Event, type="logistics.tour.planned", key="round_id"):
    """This is what is driven from now on."""

    round_id: str
    version: int
    routes: list[dict[str, Any]]


class RoundLoaded(Event, type="logistics.round.loaded", key="round_id"):
    """The vans may leave."""

    round_id: str


class ParcelMoved(Event, type="logistics.parcel.moved", key="parcel_id"):
    """A parcel is somewhere else."""

    parcel_id: str
    round_id: str
    stage: str
    at: int


class ParcelDelivered(Event, type="logistics.parcel.delivered", key="parcel_id"):
    """A parcel is at its door."""

    parcel_id: str
