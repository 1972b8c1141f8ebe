"""What must be true once all is delivered, proved from the stores and the world alone.

Each parcel is in one place, none is lost or delivered twice, and none moves after its delivery;
each task was assigned once; no depot ever used more docks than it has; in each plan each stop is on
one route, no van carries too much, and versions only grow; predictions beat the timetable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from statistics import fmean

from trial import Rows, differ

from flights import World
from routing.planner import CAPACITY
from warehouse.service import DOCKS

TABLES = {
    "map": {"board": "select * from board", "rounds": "select * from round"},
    "warehouse": {
        "tasks": "select * from task",
        "docks": """select depot, change,
          cast(sum(change) over (partition by depot order by number) as integer) as used,
          cast(sum(change) over (partition by depot) as integer) as left_over from dock_log""",
    },
    "routing": {"plans": "select * from plan order by round_id, version"},
    "eta": {"predictions": "select * from prediction where eta <> 0 and landed <> 0"},
}


def judge(rows: Mapping[str, Rows], world: World) -> Iterator[str]:
    """Yield what is wrong."""
    board = {row["parcel_id"]: row for row in rows["board"]}
    yield from differ("parcels", set(board), set(world.scans))
    for what, column, right in (
        ("that are not at a door", "stage", "delivered"),
        ("that were not delivered once", "delivered", 1),
        ("that moved after their delivery", "strayed", 0),
    ):
        wrong = {name for name, row in board.items() if row[column] != right}
        yield from differ(f"parcels {what}", wrong, set())

    tasks = {(row["task_id"], row["assigned"], row["done"]) for row in rows["tasks"]}
    wanted = {f"{name}/{kind}" for name in world.scans for kind in ("pick", "pack", "load")}
    yield from differ("tasks, assigned and done", tasks, {(name, 1, 1) for name in wanted})
    over = {row["depot"] for row in rows["docks"] if row["used"] > DOCKS}
    yield from differ("depots that used more docks than they have", over, set())
    used = {row["depot"] for row in rows["docks"] if row["left_over"]}
    yield from differ("depots with docks in use", used, set())

    yield from _plans(rows["plans"], world)
    shrunk = {row["round_id"] for row in rows["rounds"] if row["shrunk"]}
    yield from differ("rounds whose plan's version did not grow", shrunk, set())
    ours, timetable = errors(rows["predictions"])
    if not ours < timetable:
        yield f"predictions are off by {ours:.1f} min, the timetable by {timetable:.1f} min"


def _plans(plans: Rows, world: World) -> Iterator[str]:
    weights = {stop.parcel_id: stop.weight for each in world.rounds for stop in each.stops}
    booked = {each.round_id: {stop.parcel_id for stop in each.stops} for each in world.rounds}
    twice, heavy, other = set(), set(), set()
    for row in plans:
        routes = [route["parcels"] for route in json.loads(row["routes"])]
        stops = [parcel for route in routes for parcel in route]
        if len({*stops}) != len(stops):
            twice.add(row["plan_id"])
        if any(sum(weights[parcel] for parcel in route) > CAPACITY for route in routes):
            heavy.add(row["plan_id"])
        if {*stops, *json.loads(row["done"])} != booked[row["round_id"]]:
            other.add(row["plan_id"])
    yield from differ("plans with a stop on two routes", twice, set())
    yield from differ("plans with a van that carries too much", heavy, set())
    yield from differ("plans with a stop too few or too many", other, set())
    yield from differ("rounds with a plan", {row["round_id"] for row in plans}, set(booked))


def errors(predictions: Rows) -> tuple[float, float]:
    """Return by how many minutes we were off in the mean, and the timetable."""
    ours, timetable = (
        fmean([abs(row["landed"] - row[by]) / 60 for row in predictions] or [0.0])
        for by in ("eta", "lands")
    )
    return ours, timetable
