"""The service of `benchmarks.view_fill`: that of `benchmarks.latency_probe`, and a view."""

from __future__ import annotations

from benchmarks.latency_probe import Ticked, note
from oyez import Event, Service, View, applies


class Went(Event, type="bench.went", key="van"):
    """A van has gone so far."""

    van: str
    metres: int


class Trips(View, table="trips", key="van"):
    """How far each van has gone."""

    van: str
    metres: int = 0
    times: int = 0

    @applies
    def went(self, event: Went) -> None:
        """Add a trip."""
        self.metres += event.metres
        self.times += 1


service = Service("probe", migrations="migrations")
service.on(Ticked)(note)
service.view(Trips)
