"""Dashboard keeps the last word of each sensor as a view, and the windows for its charts."""

from __future__ import annotations

from msgspec.structs import asdict

from dashboard import events
from dashboard.http import app
from oyez import Service, Transaction, View, applies

service = Service("dashboard", http=app, migrations="dashboard/migrations")
app.state.service = service

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
