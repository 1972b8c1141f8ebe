"""What Dashboard shows; it announces nothing. Times are seconds since 1970."""

from __future__ import annotations

from oyez import Event


class ReadingAccepted(Event, type="iot.reading.accepted", key="site_id"):
    """A temperature."""

    site_id: str
    sensor_id: str
    measured_at: float
    celsius: float


class ReadingLate(Event, type="iot.reading.late", key="sensor_id"):
    """A reading missed its window."""

    sensor_id: str
    number: int
    size: int


class TenMeasured(Event, type="iot.ten.measured", key="sensor_id"):
    """Ten seconds of a sensor."""

    sensor_id: str
    start: float
    readings: int
    mean: float
    highest: float


class MinuteMeasured(Event, type="iot.minute.measured", key="site_id"):
    """A minute of a site."""

    site_id: str
    start: float
    readings: int
    mean: float
    median: float
    p95: float


class AlertRaised(Event, type="iot.alert.raised", key="sensor_id"):
    """A sensor is too warm."""

    sensor_id: str
    number: int


class AlertCleared(Event, type="iot.alert.cleared", key="sensor_id"):
    """It has cooled down."""

    sensor_id: str


class SensorSilent(Event, type="iot.sensor.silent", key="sensor_id"):
    """Nothing is heard of a sensor."""

    sensor_id: str


class SensorHeard(Event, type="iot.sensor.heard", key="sensor_id"):
    """It speaks again."""

    sensor_id: str
