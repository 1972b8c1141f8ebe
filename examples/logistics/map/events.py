"""What Map reads; it announces nothing."""

from __future__ import annotations

from oyez import Event


class OfRound(Event, key="round_id"):
    """The base of what is of a round."""

    round_id: str


class RoundBooked(OfRound, type="logistics.round.booked"):
    """The parcels that leave one depot together."""

    depot: str
    lat: float
    lon: float
    stops: dict[str, dict[str, float]]


class TourPlanned(OfRound, type="logistics.tour.planned"):
    """This is what is driven from now on."""

    version: int
    routes: dict[str, list[str]]


class RoundLoaded(OfRound, type="logistics.round.loaded"):
    """The vans may leave."""


class ParcelMoved(OfRound, type="logistics.parcel.moved", key="parcel_id"):
    """A parcel is somewhere else."""

    parcel_id: str
    stage: str
    at: int


class EtaPredicted(OfRound, type="logistics.eta.predicted", key="parcel_id"):
    """A parcel in the air will land at ``eta``."""

    parcel_id: str
    eta: int
