"""What must be true once all is delivered, proved from the services' stores.

Each parcel is in one place, none is lost or delivered twice, and none moves after its delivery;
each task was assigned once; no depot ever used more docks than it has; in each plan each stop is on
one route, no van carries too much, and versions only grow; predictions beat the timetable.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from statistics import fmean
from typing import Any

import msgspec

from flights import World
from oyez.project import Project
from routing.planner import CAPACITY
from warehouse.service import DOCKS

SHOWN = 5
"""Problems of one kind that are spelt out."""
_READ = {
    "board": ("map", "select * from board"),
    "rounds": ("map", "select * from round"),
    "tasks": ("warehouse", "select * from task"),
    "docks": ("warehouse", "select * from dock_log order by depot, number"),
    "plans": ("routing", "select * from plan order by round_id, version"),
    "predictions": ("eta", "select * from prediction where eta <> 0 and landed <> 0"),
}
_UNFINISHED = """select (select count(*) from oyez_outbox where due = 0) as announced,
 (select count(*) from oyez_inbox where state > 0) as parked,
 (select count(*) from oyez_dead where state = 'dead') as dead"""


class Findings(msgspec.Struct):
    """The rows that were read, what is wrong with them, and figures that tell of them."""

    rows: dict[str, list[dict[str, Any]]] = {}
    problems: list[str] = []
    figures: dict[str, str] = {}

    def refuse(self, what: str, which: Iterable[str]) -> None:
        """Note what is wrong with these, if there are any."""
        if names := sorted(which):
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            self.problems.append(f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}")


async def audit(project: Project, world: World) -> Findings:
    """Look at everything once."""
    found, stores = Findings(), {name: project.store(name) for name in project.config.services}
    try:
        for store in stores.values():
            await store.open()
        for what, (name, sql) in _READ.items():
            found.rows[what] = await stores[name].fetch(sql, {})
        for name, store in stores.items():
            counts = (await store.fetch(_UNFINISHED, {}))[0]
            found.refuse(f"queues of {name} are not empty", (k for k in counts if counts[k]))
    finally:
        for store in stores.values():
            await store.close()
    _check_parcels(found, world)
    _check_warehouse(found, world)
    _check_plans(found, world)
    _check_predictions(found)
    return found


def _check_parcels(found: Findings, world: World) -> None:
    board = {row["parcel_id"]: row for row in found.rows["board"]}
    found.refuse("parcels are lost, or were never sent", world.scans.keys() ^ board.keys())
    for what, column, right in (
        ("are not at a door", "stage", "delivered"),
        ("were not delivered once", "delivered", 1),
        ("moved after their delivery", "strayed", 0),
    ):
        wrong = (name for name, row in board.items() if row[column] != right)
        found.refuse(f"parcels {what}", wrong)
    found.figures["parcels at their doors"] = str(len(board))


def _check_warehouse(found: Findings, world: World) -> None:
    tasks = {row["task_id"]: (row["assigned"], row["done"]) for row in found.rows["tasks"]}
    wanted = {f"{name}/{kind}" for name in world.scans for kind in ("pick", "pack", "load")}
    wrong = (name for name in wanted | tasks.keys() if tasks.get(name) != (1, 1))
    found.refuse("tasks were not assigned and done once", wrong)
    changes: dict[str, list[int]] = defaultdict(list)
    for row in found.rows["docks"]:
        changes[row["depot"]].append(row["change"])
    used = {depot: [*accumulate(each)] for depot, each in changes.items()}
    found.refuse("depots used more docks than they have", (d for d in used if max(used[d]) > DOCKS))
    found.refuse("depots have docks in use", (depot for depot in used if used[depot][-1]))
    given = sum(each.count(1) for each in changes.values())
    most = max((max(each) for each in used.values()), default=0)
    found.figures["tasks, each assigned once"] = str(len(tasks))
    found.figures["docks given, of them again"] = f"{given}, {given - len(world.rounds)}"
    found.figures["docks in use at a depot, at most"] = f"{most} of {DOCKS}"


def _check_plans(found: Findings, world: World) -> None:
    weights = {stop.parcel_id: stop.weight for each in world.rounds for stop in each.stops}
    missing = {each.round_id: {stop.parcel_id for stop in each.stops} for each in world.rounds}
    lacking = {*missing}
    for row in found.rows["plans"]:
        routes = [route["parcels"] for route in json.loads(row["routes"])]
        stops = [parcel for route in routes for parcel in route]
        if len({*stops}) != len(stops):
            found.refuse("plan has a stop on two routes", [row["plan_id"]])
        if any(sum(weights[parcel] for parcel in route) > CAPACITY for route in routes):
            found.refuse("plan has a van that carries too much", [row["plan_id"]])
        if {*stops, *json.loads(row["done"])} == missing[row["round_id"]]:
            lacking.discard(row["round_id"])
        else:
            found.refuse("plan lacks a stop, or has one too many", [row["plan_id"]])
    found.refuse("rounds have no plan", lacking)
    shrunk = (row["round_id"] for row in found.rows["rounds"] if row["shrunk"])
    found.refuse("rounds whose plan's version did not grow", shrunk)
    found.figures["plans driven, for rounds"] = f"{len(found.rows['plans'])}, {len(world.rounds)}"


def _check_predictions(found: Findings) -> None:
    known = found.rows["predictions"]
    ours, timetable = (
        fmean([abs(row["landed"] - row[by]) / 60 for row in known] or [0.0])
        for by in ("eta", "lands")
    )
    text = f"{ours:.1f} min, the timetable's {timetable:.1f} min"
    found.figures[f"mean error of {len(known)} predictions"] = text
    if not ours < timetable:
        found.problems.append(f"predictions are no better than the timetable: {text}")
