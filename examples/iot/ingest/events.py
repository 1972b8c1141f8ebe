"""What the sensors send, and what Ingest announces of it. Times are seconds since 1970."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from oyez import Event


class ReadingSent(Event, type="iot.reading.sent", key="site_id"):
    """A temperature as it came; ``number`` counts the readings of its sensor."""

    site_id: str
    sensor_id: str
    number: Annotated[int, Meta(ge=1, le=2**53)]
    measured_at: Annotated[float, Meta(ge=0, le=2**33)]
    celsius: float


class ReadingAccepted(Event, type="iot.reading.accepted", key="site_id"):
    """A temperature to believe, announced once."""

    site_id: str
    sensor_id: str
    number: int
    measured_at: float
    celsius: float
