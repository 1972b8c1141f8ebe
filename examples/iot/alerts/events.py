"""The windows that Alerts judges, and what it announces. Times are seconds since 1970."""

from __future__ import annotations

from oyez import Event


class TenMeasured(Event, type="iot.ten.measured", key="sensor_id"):
    """Ten seconds of a sensor."""

    sensor_id: str
    start: float
    mean: float


class MinuteMeasured(Event, type="iot.minute.measured", key="site_id"):
    """A minute of a site, and who spoke in it."""

    site_id: str
    start: float
    heard: list[str]


class AlertRaised(Event, type="iot.alert.raised", key="sensor_id"):
    """A sensor is too warm, for the ``number``-th time."""

    sensor_id: str
    number: int
    at: float


class AlertCleared(Event, type="iot.alert.cleared", key="sensor_id"):
    """It has cooled down."""

    sensor_id: str
    number: int
    at: float


class SensorSilent(Event, type="iot.sensor.silent", key="sensor_id"):
    """Nothing was heard of a sensor since a time, while its site went on."""

    sensor_id: str
    at: float


class SensorHeard(Event, type="iot.sensor.heard", key="sensor_id"):
    """A silent sensor speaks again."""

    sensor_id: str
    at: float
