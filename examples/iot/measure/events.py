"""The readings that Measure counts, and what it announces. Times are seconds since 1970."""

from __future__ import annotations

from oyez import Event


class ReadingAccepted(Event, type="iot.reading.accepted", key="site_id"):
    """A temperature to count."""

    site_id: str
    sensor_id: str
    number: int
    measured_at: float
    celsius: float


class TenMeasured(Event, type="iot.ten.measured", key="sensor_id"):
    """Ten seconds of a sensor are over."""

    sensor_id: str
    start: float
    readings: int
    mean: float
    highest: float


class MinuteMeasured(Event, type="iot.minute.measured", key="site_id"):
    """A minute of a site is over; ``heard`` are the sensors that spoke."""

    site_id: str
    start: float
    readings: int
    mean: float
    median: float
    p95: float
    heard: list[str]


class ReadingLate(Event, type="iot.reading.late", key="sensor_id"):
    """A reading came when its window of ``size`` seconds had closed."""

    sensor_id: str
    number: int
    size: int
