"""What Eta reads of Tracking, and what it announces."""

from __future__ import annotations

from oyez import Event


class LegSeen(Event, type="logistics.leg.seen", key="parcel_id"):
    """A parcel left ``late`` seconds after the timetable's time; ``landed`` is 0 in the air."""

    parcel_id: str
    route: str
    lands: int
    late: int
    landed: int


class EtaPredicted(Event, type="logistics.eta.predicted", key="parcel_id"):
    """It will land at ``eta``."""

    parcel_id: str
    eta: int
