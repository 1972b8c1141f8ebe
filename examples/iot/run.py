"""Starts the system of the sensors; with ``--events N`` sends so many readings, and checks.

``make example NAME=iot`` runs it; exit codes: 0 when the invariant holds, 1 when it does not, 2 for
wrong usage.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import trial

from check import TABLES, judge
from feed import make_plan, send
from mqtt import speaking
from oyez.project import Project

HERE = Path(__file__).resolve().parent
LIVE = 20_000
"""The readings that are played where nobody says how many."""


class Sensors:
    """A `trial.Example`: what a seed has all sensors send."""

    def __init__(self, project: Project, events: int, seed: int) -> None:
        self.plan = make_plan(events, seed, time.time())
        self.total = len(self.plan.readings)
        self.keys = trial.write_keys(HERE, [*self.plan.sites, "mqtt"])
        self.rows: dict[str, trial.Rows] = {}
        self.project, self.shown, self.panels = project, "", 2
        self._until_the_end = ExitStack()
        atexit.register(self._until_the_end.close)

    async def feed(self, gateway: str, sent: Callable[[int], object], rate: float) -> None:
        """See `trial.Example.feed`."""
        # Until the end: what the MQTT broker has taken is not yet with the gateway.
        bridge = speaking(HERE / ".oyez", gateway, self.keys["mqtt"])
        publish = self._until_the_end.enter_context(bridge)
        await send(self.plan, gateway, self.keys, publish, sent, rate)

    async def audit(self) -> trial.Findings:
        """See `trial.Example.audit`."""
        self.rows, problems = await trial.read(self.project, TABLES)
        problems += judge(self.rows, self.plan)
        readings = self.rows["readings"]
        late = Counter(row["size"] for row in self.rows["late"])
        return trial.Findings(
            problems=problems,
            settled=sum(row["readings"] for row in self.rows["tens"]) + late[10],
            figures={
                "sensors": self.plan.sensors,
                "readings sent": self.total,
                "accepted, each once": len(readings),
                "windows of ten seconds, of a minute": f"{len(self.rows['tens'])}, "
                f"{len(self.rows['minutes'])}",
                "readings late for them": f"{late[10]}, {late[60]}",
                "alerts raised and cleared": len(self.rows["alerts"]),
                "silent sensors": len(self.rows["silences"]),
            },
            delays=[_seconds(row["accepted_at"]) - _seconds(row["sent_at"]) for row in readings],
            last=max((_seconds(row["accepted_at"]) for row in readings), default=0.0),
        )

    def draw(self, *axes: Any) -> None:
        """See `trial.Example.draw`."""
        rate, warm = axes
        seconds = Counter(int(_seconds(row["accepted_at"])) for row in self.rows["readings"])
        begin, end = min(seconds, default=0), max(seconds, default=0)
        rate.plot([seconds[each] for each in range(begin, end + 1)])
        rate.set(title="Readings accepted", xlabel="second of the run", ylabel="in a second")
        name = next((row["sensor_id"] for row in self.rows["alerts"]), "")
        tens = [
            (row["start"], row["mean"]) for row in self.rows["tens"] if row["sensor_id"] == name
        ]
        warm.plot([at - tens[0][0] for at, _ in tens], [mean for _, mean in tens], ".-")
        warm.axhline(30, color="C3", linestyle="--")
        warm.axhline(28, color="C2", linestyle="--")
        warm.set(title=f"{name}: raised above 30, cleared below 28", xlabel="s", ylabel="°C")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    sys.exit(trial.run("iot", HERE, Sensors, LIVE))
