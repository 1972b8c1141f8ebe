"""Starts the system of the sensors; with ``--events N`` sends so many readings, and checks.

``make example NAME=iot`` runs it; exit codes: 0 when the invariant holds, 1 when it does not, 2 for
wrong usage.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import trial

from check import TABLES, judge
from feed import make_plan, send
from mqtt import speaking
from oyez.project import Project

LIVE = 20_000
"""The readings that are played where nobody says how many."""


class Sensors(trial.Example):
    """What a seed has all sensors send."""

    tables, panels = TABLES, 2

    def __init__(self, project: Project, events: int, seed: int) -> None:
        self.plan = make_plan(events, seed, time.time())
        super().__init__(project, len(self.plan.readings), *self.plan.sites, "mqtt")
        self._until_the_end = ExitStack()
        atexit.register(self._until_the_end.close)

    async def feed(self, gateway: trial.Gateway) -> None:
        """See `trial.Example.feed`."""
        # Until the end: what the MQTT broker has taken is not yet with the gateway.
        folder = self.project.config.root / ".oyez"
        bridge = speaking(folder, str(gateway.client.base_url), self.keys["mqtt"])
        publish = self._until_the_end.enter_context(bridge)
        await send(self.plan, gateway, publish)

    async def judge(self) -> Iterable[str]:
        """See `trial.Example.judge`."""
        self.effects = [
            (_seconds(row["sent_at"]), _seconds(row["accepted_at"]))
            for row in self.rows["readings"]
        ]
        return judge(self.rows, self.plan)

    def figures(self) -> dict[str, object]:
        """See `trial.Example.figures`."""
        late = Counter(row["size"] for row in self.rows["late"])
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
    sys.exit(trial.run("iot", Sensors, LIVE))
