"""Starts the parcels' system; with ``--events N`` a world of about so many events, checked.

``make example NAME=logistics`` runs it; exit codes: 0 when the invariant holds, 1 when it does not,
2 for wrong usage.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import msgspec
import trial

from check import TABLES, errors, judge
from flights import World, disorder, world
from oyez.event import describe
from oyez.project import Project
from routing.events import VanFailed
from tracking.events import ParcelScanned
from warehouse.service import DOCKS

BATCH, AT_ONCE = 50, 4
"""Events of a request, and requests at the same time."""
PATIENCE = 240.0
"""Seconds without a new tour after which no more is driven."""
NEW_YORK = (-73.9, 40.7)

Sent = list[tuple[str, Any]]
"""Events, each with its id."""


class Parcels(trial.Example):
    """A world on its way through the system."""

    tables, panels = TABLES, 3

    def __init__(self, project: Project, events: int, seed: int) -> None:
        os.environ["LOGISTICS_HURRY"] = "1"
        self.world: World = world(events, seed)
        self.events: Sent = [(each.round_id, each) for each in self.world.rounds]
        self.events += disorder(self.world, seed)
        super().__init__(project, len(self.events) + len(self.world.scans), "scanners")
        self._newest: ParcelScanned | None = None
        self._driven = False

    async def feed(self, gateway: trial.Gateway) -> None:
        """See `trial.Example.feed`."""
        looking = asyncio.create_task(self._look(gateway))
        async for part in gateway.parts(self.events, BATCH * AT_ONCE):
            await self._send(gateway, part)
            gateway.sent(len(part))
        await self._drive(gateway)
        self._driven = True
        await looking

    async def judge(self) -> Iterable[str]:
        """See `trial.Example.judge`."""
        return judge(self.rows, self.world)

    def figures(self) -> dict[str, object]:
        """See `trial.Example.figures`."""
        given = sum(row["change"] == 1 for row in self.rows["docks"])
        ours, timetable = errors(self.rows["predictions"])
        return {
            "parcels at their doors": len(self.rows["board"]),
            "tasks, each assigned once": len(self.rows["tasks"]),
            "docks given, of them again": f"{given}, {given - len(self.world.rounds)}",
            f"docks in use at a depot, of {DOCKS}, at most": max(
                (row["used"] for row in self.rows["docks"]), default=0
            ),
            "plans driven, for rounds": f"{len(self.rows['plans'])}, {len(self.world.rounds)}",
            "mean error of predictions, of the timetable": f"{ours:.1f}, {timetable:.1f} min",
        }

    def draw(self, *axes: Any) -> None:
        """See `trial.Example.draw`; coordinates are longitude and latitude."""
        legs, tours, off = axes
        depots = Counter((row["depot"], row["lon"], row["lat"]) for row in self.rows["rounds"])
        for number, ((depot, lon, lat), rounds) in enumerate(sorted(depots.items())):
            width = 5 * rounds / max(depots.values())
            legs.plot((NEW_YORK[0], lon), (NEW_YORK[1], lat), "C0-", lw=width, alpha=0.6)
            legs.annotate(f"{depot} {rounds}", (lon, lat), va=("top", "bottom")[number % 2])
        legs.plot(*NEW_YORK, "k*", ms=12)
        legs.set(title="rounds at each depot, flown in from New York", aspect=1.3)
        row = max(self.rows["rounds"], key=lambda each: (each["version"], each["round_id"]))
        home = (row["lon"], row["lat"])
        places = {
            each["parcel_id"]: (each["lon"], each["lat"]) for each in json.loads(row["stops"])
        }
        plans = [each for each in self.rows["plans"] if each["round_id"] == row["round_id"]]
        for route in json.loads(plans[0]["routes"]) if plans else ():
            line = [home, *(places[parcel] for parcel in route["parcels"]), home]
            tours.plot(*zip(*line, strict=True), "o-", ms=4, label=route["van"])
        tours.set(title=f"{row['round_id']}: the first of {len(plans)} plans", aspect=1.3)
        tours.legend()
        for by, label in (("lands", "timetable"), ("eta", "learned")):
            minutes = [abs(each["landed"] - each[by]) / 60 for each in self.rows["predictions"]]
            off.ecdf(minutes or [0.0], label=label)
        off.set(title="error of the arrival", xlabel="minutes", ylabel="legs", xlim=(0, 120))
        off.legend()

    async def _send(self, gateway: trial.Gateway, events: Sequence[tuple[str, Any]]) -> None:
        told = [
            (describe(type(event)).name, name, msgspec.to_builtins(event)) for name, event in events
        ]
        parts = [told[first : first + BATCH] for first in range(0, len(told), BATCH)]
        await asyncio.gather(*(gateway.post("scanners", part) for part in parts))
        scans = [event for _, event in events if isinstance(event, ParcelScanned)]
        self._newest = scans[-1] if scans else None

    async def _look(self, gateway: trial.Gateway) -> None:
        """Measure the time from a scan to the board, of one scan after the other."""
        while self._newest or not self._driven:
            scan, begun, self._newest = self._newest, time.time(), None
            if scan is not None:
                await trial.until(partial(self._shown, gateway, scan), every=0.02)
                self.effects.append((begun, time.time()))
            await asyncio.sleep(0.02)

    async def _shown(self, gateway: trial.Gateway, scan: ParcelScanned) -> bool:
        row = await _get(gateway, f"/parcels/{scan.parcel_id}")
        return bool(row) and (scan.stage != "delivered" or row["stage"] == "delivered")

    async def _drive(self, gateway: trial.Gateway) -> None:
        """Drive the tours as the newest plan says; on one round of 10 the first van fails."""
        doors: set[str] = set()
        broken: dict[str, int] = {}
        end = time.monotonic() + PATIENCE
        while len(doors) < len(self.world.scans) and time.monotonic() < end:
            events: Sent = []
            before = len(doors)
            for tour in await _get(gateway, "/tours") or ():
                name, routes = tour["round_id"], tour["routes"]
                if tour["version"] <= broken.get(name, 0):
                    continue
                if zlib.crc32(name.encode()) % 10 == 0 and name not in broken:
                    broken[name], van = tour["version"], routes.pop(0)["van"]
                    events.append((f"{name}-{van}", VanFailed(round_id=name, van=van)))
                parcels = {each for route in routes for each in route["parcels"]} - doors
                doors |= parcels
                events += [scan for each in sorted(parcels) for scan in self._delivery(each)]
            end = time.monotonic() + PATIENCE if events else end
            for first in range(0, len(events), BATCH * AT_ONCE):
                await self._send(gateway, events[first : first + BATCH * AT_ONCE])
            gateway.sent(len(doors) - before)
            await asyncio.sleep(0.2)

    def _delivery(self, parcel: str) -> Sent:
        """The scan at the door; one in 100 comes twice, and one in 100 of an empty box later."""
        scans, lot = self.world.scans[parcel], zlib.crc32(parcel.encode()) % 100
        scan = scans["delivered"]
        box = msgspec.structs.replace(scans["arrived"], at=scan.at + 60)
        more = {0: [(f"{parcel}-delivered-again", scan)], 1: [(f"{parcel}-box", box)]}
        return [(f"{parcel}-delivered", scan), *more.get(lot, ())]


async def _get(gateway: trial.Gateway, path: str) -> Any:
    """Return what is there, or None."""
    return (await gateway.ask("GET", path, 200, 404, key="scanners")).json()


if __name__ == "__main__":
    trial.run("logistics", Parcels, live=3_000)
