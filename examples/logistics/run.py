"""Starts the parcels' system; with ``--events N`` a world of about so many events, checked.

``make example NAME=logistics`` runs it; exit codes: 0 when the invariant holds, 1 when it does not,
2 for wrong usage.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from functools import partial
from statistics import fmean
from typing import Any

import trial

from check import TABLES, TOLD, judge, off
from flights import at_airports, at_door, world
from oyez.project import Project
from routing.events import TourPlanned, VanFailed
from warehouse.events import DockGiven

BATCH = 100
"""Events of a request."""
FAILS = 70
"""Of so many vans that leave, one fails."""
NEW_YORK = (-73.9, 40.7)


class Parcels(trial.Example):
    """A world on its way through the system."""

    tables, panels = TABLES, 3

    def __init__(self, project: Project, events: int, seed: int) -> None:
        os.environ["LOGISTICS_HURRY"] = "1"
        self.world = world(events, seed)
        self.events = [*self.world.rounds.items(), *at_airports(self.world, seed)]
        super().__init__(project, len(self.events) + len(self.world.scans), "scanners")
        self.told = trial.History()
        self.left = set(self.world.scans)
        """Parcels that are not yet driven."""

    async def feed(self, gateway: trial.Gateway) -> None:
        """See `trial.Example.feed`."""
        async for part in gateway.parts(self.events, BATCH):
            await gateway.tell("scanners", part)
            gateway.sent(len(part))
        while self.left:
            await trial.until(partial(self._drive, gateway), every=0.2)

    async def judge(self) -> Iterable[str]:
        """See `trial.Example.judge`."""
        if unsettled := await trial.unsettled(self.project):
            return unsettled
        self.told = await trial.told(self.project, *TOLD)
        return judge(self.rows["board"], self.told, self.world)

    def figures(self) -> dict[str, object]:
        """See `trial.Example.figures`."""
        ours, timetable = map(fmean, off(self.rows["board"], self.world))
        return {
            "parcels at their doors, rounds": f"{len(self.world.scans)}, {len(self.world.rounds)}",
            "docks given": len(self.told.of(DockGiven)),
            "plans driven": len(self.told.of(TourPlanned)),
            "mean error of predictions, of the timetable": f"{ours:.1f}, {timetable:.1f} min",
        }

    def draw(self, *axes: Any) -> None:
        """See `trial.Example.draw`; coordinates are longitude and latitude."""
        legs, tours, errors = axes
        for depot, lon, lat in {(at.depot, at.lon, at.lat) for at in self.world.rounds.values()}:
            legs.plot((NEW_YORK[0], lon), (NEW_YORK[1], lat), "C0o-")
            legs.annotate(depot, (lon, lat))
        legs.set(title="flown from New York to each depot", aspect=1.3)
        plan = self.told.of(TourPlanned)[0]
        booked = self.world.rounds[plan.round_id]
        for van, parcels in plan.routes.items():
            stops = [(booked.stops[each].lon, booked.stops[each].lat) for each in parcels]
            line = [(booked.lon, booked.lat), *stops, (booked.lon, booked.lat)]
            tours.plot(*zip(*line, strict=True), "o-", ms=4, label=van)
        tours.set(title=f"the first plan of {booked.round_id}", aspect=1.3)
        tours.legend()
        for minutes, by in zip(
            off(self.rows["board"], self.world), ("we", "timetable"), strict=True
        ):
            errors.ecdf(minutes, label=by)
        errors.set(title="error of the arrival", xlabel="minutes", ylabel="legs", xlim=(0, 120))
        errors.legend()

    async def _drive(self, gateway: trial.Gateway) -> bool:
        """Drive the newest plans, but for vans that fail; False if there is nothing to drive."""
        events: list[tuple[str, object]] = []
        before = len(self.left)
        for tour in (await gateway.ask("GET", "/tours", 200, key="scanners")).json():
            for van, parcels in tour["routes"].items():
                name = f"{tour['round_id']}/{van}"
                if zlib.crc32(name.encode()) % FAILS == 0:
                    events.append((name, VanFailed(round_id=tour["round_id"], van=van)))
                    continue
                for parcel in sorted(self.left.intersection(parcels)):
                    self.left.remove(parcel)
                    gateway.follow(partial(self._delivered, gateway, parcel))
                    events += at_door(self.world, parcel)
        await gateway.tell("scanners", events, size=BATCH)
        gateway.sent(before - len(self.left))
        return len(self.left) < before

    async def _delivered(self, gateway: trial.Gateway, parcel: str) -> bool:
        """Return whether the board has it at its door."""
        answer = await gateway.ask("GET", f"/parcels/{parcel}", 200, key="scanners")
        return bool(answer.json()["stage"] == "delivered")


if __name__ == "__main__":
    trial.run("logistics", Parcels, live=3_000)
