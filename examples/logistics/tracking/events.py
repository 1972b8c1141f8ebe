"""What Tracking reads of the scanners, and what it announces; times are seconds since 1970."""

from __future__ import annotations

from typing import Literal

from oyez import Event

Stage = Literal["departed", "arrived", "delivered"]


class ParcelScanned(Event, type="logistics.parcel.scanned", key="parcel_id"):
    """A scanner saw a parcel ``at`` a time; its label has the flight's ``due`` and ``lands``."""

    parcel_id: str
    round_id: str
    stage: Stage
    at: int
    route: str
    due: int
    lands: int


class ParcelMoved(Event, type="logistics.parcel.moved", key="parcel_id"):
    """The parcel is somewhere else: only Tracking says where one is."""

    parcel_id: str
    round_id: str
    stage: str
    at: int


class ParcelDelivered(Event, type="logistics.parcel.delivered", key="parcel_id"):
    """It is at its door, for good."""

    parcel_id: str
    round_id: str


class LegSeen(Event, type="logistics.leg.seen", key="parcel_id"):
    """It left ``late`` seconds after the timetable's time; ``landed`` is 0 in the air."""

    parcel_id: str
    route: str
    lands: int
    late: int
    landed: int


class LegDelayed(Event, type="logistics.leg.delayed", key="parcel_id"):
    """It is at the depot at ``ready``: half an hour or more after what was said before."""

    parcel_id: str
    round_id: str
    ready: int
