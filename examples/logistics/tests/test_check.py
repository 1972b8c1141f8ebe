"""The checker finds each thing that can be wrong, and nothing where all is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from check import judge
from flights import World
from routing.events import RoundBooked, Stop
from tracking.events import ParcelScanned

Rows = dict[str, list[dict[str, Any]]]
SCAN = ParcelScanned(parcel_id="", round_id="r", stage="delivered", at=0, route="", due=0, lands=0)
STOPS = [Stop(name, 0.0, 0.0, 10, 0) for name in ("a", "b", "c")]
WORLD = World(
    [RoundBooked(round_id="r", depot="ORD", lat=0.0, lon=0.0, vans=[], stops=STOPS)],
    {stop.parcel_id: {"delivered": SCAN} for stop in STOPS},
)


def right() -> Rows:
    names = [stop.parcel_id for stop in STOPS]
    routes = '[{"van":"1","parcels":["a","b"]},{"van":"2","parcels":["c"]}]'
    return {
        "board": [
            {"parcel_id": name, "stage": "delivered", "delivered": 1, "strayed": 0}
            for name in names
        ],
        "tasks": [
            {"task_id": f"{name}/{kind}", "assigned": 1, "done": 1}
            for name in names
            for kind in ("pick", "pack", "load")
        ],
        "docks": [{"depot": "ORD", "change": n, "used": 2, "left_over": 0} for n in (1, 1, -1, -1)],
        "plans": [{"plan_id": "r/1", "round_id": "r", "routes": routes, "done": "[]"}],
        "rounds": [{"round_id": "r", "shrunk": 0}],
        "predictions": [{"eta": 1000, "lands": 400, "landed": 1060}],
    }


def test_what_is_right_is_right() -> None:
    assert list(judge(right(), WORLD)) == []


def change(table: str, number: int, **values: Any) -> Callable[[Rows], object]:
    return lambda rows: rows[table][number].update(values)


HALF = {"routes": '[{"parcels":["a"]}]', "done": '["b"]'}
TWICE = '[{"parcels":["a","b"]},{"parcels":["c","a"]}]'
WRONG: dict[str, Callable[[Rows], object]] = {
    "parcels: 1 missing: b": lambda rows: rows["board"].pop(1),
    "parcels that are not at a door: 1 unexpected: a": change("board", 0, stage="arrived"),
    "parcels that were not delivered once: 1 unexpected: a": change("board", 0, delivered=2),
    "parcels that moved after their delivery: 1 unexpected: a": change("board", 0, strayed=1),
    "tasks, assigned and done: 1 unexpected: ('a/pick', 2, 1)": change("tasks", 0, assigned=2),
    "tasks, assigned and done: 1 missing: ('c/load', 1, 1)": lambda rows: rows["tasks"].pop(),
    "depots that used more docks than they have: 1 unexpected: ORD": change("docks", 1, used=3),
    "depots with docks in use: 1 unexpected: ORD": change("docks", 3, left_over=1),
    "plans with a stop on two routes: 1 unexpected: r/1": change("plans", 0, routes=TWICE),
    "plans with a van that carries too much: 1 unexpected: r/1": change(
        "plans", 0, routes='[{"parcels":["a","b","c"]}]'
    ),
    "plans with a stop too few or too many: 1 unexpected: r/1": lambda rows: rows["plans"].append(
        rows["plans"][0] | HALF
    ),
    "rounds with a plan: 1 missing: r": lambda rows: rows["plans"].clear(),
    "rounds whose plan's version did not grow: 1 unexpected: r": change("rounds", 0, shrunk=1),
    "predictions are off by 11.0 min, the timetable by 11.0 min": change("predictions", 0, eta=400),
}


@pytest.mark.parametrize("problem", WRONG)
def test_what_is_wrong_is_found(problem: str) -> None:
    rows = right()
    WRONG[problem](rows)
    assert problem in list(judge(rows, WORLD))
