"""Dashboard keeps the last word of each sensor as a view, and windows; it shows the fleet live."""

from __future__ import annotations

from typing import Any

from msgspec.structs import asdict

from dashboard import events
from oyez import Service, Transaction, View, applies

service = Service("dashboard", migrations="dashboard/migrations")

_SITES = """select site_id, count(*) as sensors,
 cast(sum(readings) as bigint) as readings, cast(sum(hot) as bigint) as hot,
 cast(sum(silent) as bigint) as silent, avg(celsius) as celsius
 from sensors where site_id <> '' group by site_id order by site_id"""
_TROUBLE = """select sensor_id, celsius, measured_at, hot, silent, alerts from sensors
 where hot = 1 or silent = 1 or alerts > 0
 order by hot desc, silent desc, measured_at desc, sensor_id limit 12"""
_CURVES = {
    "sites": """select start, mean, median, p95 from minute where site_id = :key
 order by start desc limit 360""",
    "sensors": """select start, mean, highest from ten where sensor_id = :key
 order by start desc limit 360""",
}
_KEEP = {
    events.TenMeasured: "insert into ten values (:sensor_id, :start, :readings, :mean, :highest)",
    events.MinuteMeasured: """insert into minute
 values (:site_id, :start, :readings, :mean, :median, :p95)""",
    events.ReadingLate: "insert into late values (:size, :sensor_id, :number)",
}


class Sensors(View, table="sensors", key="sensor_id", index=("site_id",)):
    """A sensor as it is now."""

    sensor_id: str
    site_id: str = ""
    celsius: float = 0.0
    measured_at: float = 0.0
    readings: int = 0
    hot: int = 0
    alerts: int = 0
    silent: int = 0

    @applies
    def read(self, event: events.ReadingAccepted) -> None:
        """Keep the newest, which is not always the last that came."""
        self.readings += 1
        if event.measured_at > self.measured_at:
            self.take(event)

    @applies
    def raised(self, event: events.AlertRaised) -> None:
        """It is too warm."""
        self.hot, self.alerts = 1, event.number

    @applies
    def cleared(self, event: events.AlertCleared) -> None:
        """It has cooled down."""
        self.hot = 0

    @applies
    def fell_silent(self, event: events.SensorSilent) -> None:
        """Nothing is heard of it."""
        self.silent = 1

    @applies
    def heard(self, event: events.SensorHeard) -> None:
        """It speaks again."""
        self.silent = 0


service.view(Sensors)


@service.on(*_KEEP)
async def keep(
    event: events.TenMeasured | events.MinuteMeasured | events.ReadingLate, tx: Transaction
) -> None:
    """Keep a window, or which reading is in none."""
    tx.execute(_KEEP[type(event)], **asdict(event))


@service.live("/fleet/events", pause=1.0)
async def fleet() -> dict[str, Any]:
    """Show all sites, their sums, and the sensors that are or were too warm, or are silent."""
    sites, trouble = await service.fetch(_SITES), await service.fetch(_TROUBLE)
    totals = {name: sum(each[name] for each in sites) for name in ("sensors", "readings")}
    return {**totals, "sites": sites, "trouble": trouble}


@service.get("/fleet/{kind}/{key}")
async def curve(kind: str, key: str) -> dict[str, Any] | None:
    """Show the windows of one of the sites or of the sensors, the oldest first."""
    sql = _CURVES.get(kind)
    return {"windows": (await service.fetch(sql, key=key))[::-1]} if sql else None
