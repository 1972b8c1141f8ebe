"""Starts the system of the sensors; with ``--events N`` sends so many readings, and checks.

``make example NAME=iot`` runs it; exit codes: 0 when the invariant holds, 1 when it does not, 2 for
wrong usage.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import trial

from check import TABLES, judge
from feed import make_plan, send
from mqtt import speak
from oyez.project import Project


class Sensors(trial.Example):
    """What a seed has all sensors send."""

    tables, panels = TABLES, 2

    def __init__(self, project: Project, events: int, seed: int) -> None:
        self.plan = make_plan(events, seed, time.time())
        super().__init__(project, len(self.plan.readings), *self.plan.sites, "mqtt")

    async def feed(self, gateway: trial.Gateway) -> None:
        """See `trial.Example.feed`."""
        await send(self.plan, gateway, speak(self, str(gateway.client.base_url)))

    async def judge(self) -> Iterable[str]:
        """See `trial.Example.judge`."""
        self.effects = [
            (_seconds(row["sent_at"]), _seconds(row["accepted_at"]))
            for row in self.rows["readings"]
        ]
        return judge(self.rows, self.plan)

    def figures(self) -> dict[str, object]:
        """See `trial.Example.figures`."""
        late = trial.counts(self.rows["late"], "size")
        tens, minutes = len(self.rows["tens"]), len(self.rows["minutes"])
        return {
            "sensors": self.plan.sensors,
            "readings sent": self.total,
            "accepted, each once": len(self.rows["readings"]),
            "windows of ten seconds, of a minute": f"{tens}, {minutes}",
            "readings late for them": f"{late[10]}, {late[60]}",
            "alerts raised and cleared": len(self.rows["alerts"]),
            "silent sensors": len(self.rows["silences"]),
        }

    def draw(self, *axes: Any) -> None:
        """See `trial.Example.draw`."""
        rate, warm = axes
        rate.hist([at - self.effects[0][1] for _, at in self.effects], bins=60)
        rate.set(title="Readings accepted", xlabel="second of the run", ylabel="readings")
        name = next((row["sensor_id"] for row in self.rows["alerts"]), "")
        tens = [row for row in self.rows["tens"] if row["sensor_id"] == name]
        warm.plot([row["start"] - tens[0]["start"] for row in tens], [row["mean"] for row in tens])
        warm.axhline(30, color="C3", linestyle="--")
        warm.axhline(28, color="C2", linestyle="--")
        warm.set(title=f"{name}: raised above 30, cleared below 28", xlabel="s", ylabel="°C")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    trial.run("iot", Sensors, live=20_000)
