"""What must be true once all is delivered, proved from the board, from history and the world.

Each parcel is in one place, none is lost or delivered twice, and none moves after its delivery;
each task was assigned once; no depot ever used more docks than it has; in each plan each stop is on
one route, no van carries too much, and versions only grow; predictions beat the timetable.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import product
from statistics import fmean

from trial import History, Rows, differ

from flights import World
from routing.events import TourPlanned
from routing.planner import CAPACITY
from tracking.events import ParcelDelivered, ParcelMoved
from warehouse.events import DockFreed, DockGiven, TaskAssigned, TaskDone
from warehouse.service import DOCKS

TABLES = {"map": {"board": "select * from board"}}
TOLD = (ParcelMoved, ParcelDelivered, TaskAssigned, TaskDone, DockGiven, DockFreed, TourPlanned)
"""What of history is needed: all of one key is in its order."""


def judge(board: Rows, told: History, world: World) -> Iterator[str]:
    """Yield what is wrong."""
    here = {(row["parcel_id"], row["stage"]) for row in board}
    yield from differ("parcels on the board", here, {(name, "delivered") for name in world.scans})
    once = dict.fromkeys(world.scans, 1)
    delivered = Counter(each.parcel_id for each in told.of(ParcelDelivered))
    yield from differ("deliveries", delivered, once)
    # Where the last move is one of these, and there was one alone, there is none behind it.
    moved = Counter(each.parcel_id for each in told.of(ParcelMoved) if each.stage == "delivered")
    yield from differ("moves to the door", moved, once)
    wanted = dict.fromkeys(product(world.scans, ("pick", "pack", "load")), 1)
    for what, cls in (("assigned", TaskAssigned), ("done", TaskDone)):
        tasks = Counter((each.parcel_id, each.kind) for each in told.of(cls))
        yield from differ(f"tasks {what}", tasks, wanted)
    yield from _docks(told)
    yield from _plans(told.of(TourPlanned), world)
    ours, timetable = off(board, world)
    if fmean(ours) >= fmean(timetable):
        yield f"predictions are off by {fmean(ours):.1f}, the timetable by {fmean(timetable):.1f}"


def off(board: Rows, world: World) -> tuple[list[float], list[float]]:
    """Return by how many minutes predictions were off, and the timetable of the same parcels."""
    legs = [(row["eta"], world.scans[row["parcel_id"]][1]) for row in board if row["eta"]]
    ours = [abs(came.at - eta) / 60 for eta, came in legs]
    return ours, [abs(came.at - came.lands) / 60 for _, came in legs]


def _docks(told: History) -> Iterator[str]:
    used: dict[str, set[str]] = defaultdict(set)
    over = set()
    for each in told:
        if isinstance(each, DockGiven):
            used[each.depot].add(each.round_id)
            if len(used[each.depot]) > DOCKS:
                over.add(each.depot)
        elif isinstance(each, DockFreed):
            used[each.depot].discard(each.round_id)
    yield from differ("depots that used more docks than they have", over)
    yield from differ("depots with docks in use", {depot for depot in used if used[depot]})


def _plans(plans: list[TourPlanned], world: World) -> Iterator[str]:
    newest = dict.fromkeys(world.rounds, 0)
    wrong = defaultdict(set)
    for plan in plans:
        name = plan.round_id
        booked = world.rounds[name].stops
        routes = plan.routes.values()
        stops = [parcel for route in routes for parcel in route]
        if len({*stops}) != len(stops):
            wrong["a stop on two routes"].add(name)
        if any(sum(booked[each].weight for each in route) > CAPACITY for route in routes):
            wrong["a van that carries too much"].add(name)
        if {*stops, *plan.done} != booked.keys():
            wrong["a stop too few or too many"].add(name)
        if plan.version <= newest[name]:
            wrong["a version that did not grow"].add(name)
        newest[name] = plan.version
    wrong["no plan"] |= {name for name, version in newest.items() if not version}
    for what, names in wrong.items():
        yield from differ(f"rounds with {what}", names)
