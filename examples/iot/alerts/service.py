"""Alerts says when a sensor is too warm, and when one has fallen silent.

Silence is no event, so nobody can announce it: it shows in what others say. A sensor is silent when
its site has gone on without it. A site that is cut off as a whole has no minutes, and so raises no
hundred alarms at once; and however late a minute is counted, the finding is the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import field
from msgspec.structs import asdict

from alerts import events
from oyez import Service, State, Transaction

service = Service("alerts", migrations="alerts/migrations")

ABOVE, BELOW = 30.0, 28.0
"""An alert is raised above one and cleared below the other: in between, nothing changes."""
IN_A_ROW = 2
"""So many windows in a row have to be above."""
SILENT = 1500.0
"""Sensors speak every 600 seconds: two readings may be lost."""

_KEEP = {
    events.AlertRaised: "insert into alert values (:sensor_id, :number, :at, null)",
    events.AlertCleared: """update alert set cleared_at = :at
 where sensor_id = :sensor_id and number = :number and cleared_at is null""",
    events.SensorSilent: "insert into silence values (:sensor_id, :at, null)",
    events.SensorHeard: """update silence set ended_at = :at
 where sensor_id = :sensor_id and ended_at is null""",
}


class Watch(State, key="sensor_id"):
    """Whether a sensor is too warm, and how often it was."""

    above: int = 0
    raised: bool = False
    number: int = 0

    def judge(self, at: float, mean: float) -> events.AlertRaised | events.AlertCleared | None:
        """Take the next window into account."""
        self.above = self.above + 1 if mean > ABOVE else 0
        if self.raised and mean < BELOW:
            self.raised = False
            return events.AlertCleared(sensor_id=self.key, number=self.number, at=at)
        if self.raised or self.above < IN_A_ROW:
            return None
        self.raised, self.number = True, self.number + 1
        return events.AlertRaised(sensor_id=self.key, number=self.number, at=at)


class Site(State, key="site_id"):
    """When each sensor of a site was heard last, and which are silent."""

    last: dict[str, float] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)

    def judge(
        self, at: float, heard: list[str]
    ) -> Iterator[events.SensorSilent | events.SensorHeard]:
        """Take the next minute into account."""
        for sensor in heard:
            self.last[sensor] = at
            if sensor in self.silent:
                self.silent.remove(sensor)
                yield events.SensorHeard(sensor_id=sensor, at=at)
        for sensor, last in self.last.items():
            if at - last > SILENT and sensor not in self.silent:
                self.silent.append(sensor)
                yield events.SensorSilent(sensor_id=sensor, at=last)


@service.on(events.TenMeasured)
async def warm(
    event: events.TenMeasured, watch: Watch, tx: Transaction
) -> events.AlertRaised | events.AlertCleared | None:
    """Raise an alert, or clear it."""
    alert = watch.judge(event.start, event.mean)
    if alert is not None:
        tx.execute(_KEEP[type(alert)], **asdict(alert))
    return alert


@service.on(events.MinuteMeasured)
async def silent(
    event: events.MinuteMeasured, site: Site, tx: Transaction
) -> list[events.SensorSilent | events.SensorHeard]:
    """Tell who has fallen silent, and who speaks again."""
    found = list(site.judge(event.start, event.heard))
    for each in found:
        tx.execute(_KEEP[type(each)], **asdict(each))
    return found
