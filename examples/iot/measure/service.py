"""Measure makes two kinds of windows: ten seconds of each sensor, and a minute of each site.

Every key has a clock of its own. A reading that is three minutes late misses the minute of its
site, where others went on, and not the ten seconds of its sensor, which said nothing meanwhile.

A thermometer has few values. A window holds how often it read each tenth of a degree, so means and
percentiles are exact, in whatever order the readings came and however many there are.
"""

from __future__ import annotations

from math import ceil

from msgspec import field

from measure.events import MinuteMeasured, ReadingAccepted, ReadingLate, TenMeasured
from oyez import Service, Window

service = Service("measure")


class Ten(Window, key="sensor_id", size=10, late=10):
    """Ten seconds of a sensor."""

    tenths: dict[int, int] = field(default_factory=dict)

    def add(self, event: ReadingAccepted) -> None:
        """Count it."""
        count(self.tenths, event)

    def close(self) -> TenMeasured:
        """Tell the mean and the highest."""
        readings, mean = averaged(self.tenths)
        start, highest = self.start.timestamp(), max(self.tenths) / 10
        return TenMeasured(
            sensor_id=self.key, start=start, readings=readings, mean=mean, highest=highest
        )

    def late(self, event: ReadingAccepted) -> ReadingLate:
        """Tell which one came too late."""
        return ReadingLate(sensor_id=event.sensor_id, number=event.number, size=10)


class Minute(Window, key="site_id", size=60, late=10):
    """A minute of a site, and how often each sensor spoke."""

    tenths: dict[int, int] = field(default_factory=dict)
    heard: dict[str, int] = field(default_factory=dict)

    def add(self, event: ReadingAccepted) -> None:
        """Count it."""
        count(self.tenths, event)
        self.heard[event.sensor_id] = self.heard.get(event.sensor_id, 0) + 1

    def close(self) -> MinuteMeasured:
        """Tell the mean, the percentiles, and who spoke."""
        readings, mean = averaged(self.tenths)
        median, p95 = percentile(self.tenths, 0.5), percentile(self.tenths, 0.95)
        return MinuteMeasured(
            site_id=self.key, start=self.start.timestamp(), heard=sorted(self.heard),
            readings=readings, mean=mean, median=median, p95=p95,
        )  # fmt: skip

    def late(self, event: ReadingAccepted) -> ReadingLate:
        """Tell which one came too late."""
        return ReadingLate(sensor_id=event.sensor_id, number=event.number, size=60)


def count(tenths: dict[int, int], event: ReadingAccepted) -> None:
    """Count a reading under its tenths of a degree."""
    tenth = round(event.celsius * 10)
    tenths[tenth] = tenths.get(tenth, 0) + 1


def averaged(tenths: dict[int, int]) -> tuple[int, float]:
    """Return how many readings there are, and their mean."""
    readings = sum(tenths.values())
    return readings, sum(tenth * count for tenth, count in tenths.items()) / 10 / readings


def percentile(tenths: dict[int, int], share: float) -> float:
    """Return the lowest temperature that this share of the readings does not exceed."""
    left = ceil(share * sum(tenths.values()))
    for tenth in sorted(tenths)[:-1]:
        left -= tenths[tenth]
        if left <= 0:
            return tenth / 10
    return max(tenths) / 10


service.window(Ten, ReadingAccepted, time="measured_at")
service.window(Minute, ReadingAccepted, time="measured_at")
