"""What Tracking reads of the scanners, and what it announces; times are seconds since 1970."""

from __future__ import annotations

from typing import Literal

from oyez import Event

Stage = Literal["departed", "arrived", "delivered"]


class OfParcel(Event, key="parcel_id"):
    """The base of what is of a parcel."""

    parcel_id: str
    round_id: str


class ParcelScanned(OfParcel, type="logistics.parcel.scanned"):
    """A scanner saw a parcel ``at`` a time; its label has the flight's ``due`` and ``lands``."""

    stage: Stage
    at: int
    route: str
    due: int
    lands: int


class ParcelMoved(OfParcel, type="logistics.parcel.moved"):
    """The parcel is somewhere else: only Tracking says where one is."""

    stage: str
    at: int


class ParcelDelivered(OfParcel, type="logistics.parcel.delivered"):
    """It is at its door, for good."""


class EtaPredicted(OfParcel, type="logistics.eta.predicted"):
    """It has left, and will land at ``eta``."""

    eta: int


class LegDelayed(OfParcel, type="logistics.leg.delayed"):
    """It is at the depot at ``ready``: half an hour or more after what was said before."""

    ready: int
