"""The checker finds each thing that can be wrong, and nothing where all is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import check
from check import Findings
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
        "docks": [{"depot": "ORD", "change": change} for change in (1, 1, -1, -1)],
        "plans": [{"plan_id": "r/1", "round_id": "r", "routes": routes, "done": "[]"}],
        "rounds": [{"round_id": "r", "shrunk": 0}],
        "predictions": [{"eta": 1000, "lands": 400, "landed": 1060}],
    }


def found(rows: Rows) -> list[str]:
    findings = Findings(rows=rows)
    check._check_parcels(findings, WORLD)
    check._check_warehouse(findings, WORLD)
    check._check_plans(findings, WORLD)
    check._check_predictions(findings)
    return findings.problems


def test_what_is_right_is_right() -> None:
    assert found(right()) == []


WRONG: dict[str, Callable[[Rows], object]] = {
    "1 parcels are lost, or were never sent: b": lambda rows: rows["board"].pop(1),
    "1 parcels are not at a door: a": lambda rows: rows["board"][0].update(stage="arrived"),
    "1 parcels were not delivered once: a": lambda rows: rows["board"][0].update(delivered=2),
    "1 parcels moved after their delivery: a": lambda rows: rows["board"][0].update(strayed=1),
    "1 tasks were not assigned and done once: a/pick": lambda rows: rows["tasks"][0].update(
        assigned=2
    ),
    "1 tasks were not assigned and done once: c/load": lambda rows: rows["tasks"].pop(),
    "1 depots used more docks than they have: ORD": lambda rows: (
        rows["docks"].sort(key=lambda row: -row["change"])
        or rows["docks"].insert(0, {"depot": "ORD", "change": 1})
        or rows["docks"].append({"depot": "ORD", "change": -1})
    ),
    "1 depots have docks in use: ORD": lambda rows: rows["docks"].pop(),
    "1 plan has a stop on two routes: r/1": lambda rows: rows["plans"][0].update(
        routes='[{"parcels":["a","b"]},{"parcels":["c","a"]}]'
    ),
    "1 plan has a van that carries too much: r/1": lambda rows: rows["plans"][0].update(
        routes='[{"parcels":["a","b","c"]}]'
    ),
    "1 plan lacks a stop, or has one too many: r/1": lambda rows: rows["plans"].append(
        rows["plans"][0] | {"routes": '[{"parcels":["a"]}]', "done": '["b"]'}
    ),
    "1 rounds have no plan: r": lambda rows: rows["plans"].clear(),
    "1 rounds whose plan's version did not grow: r": lambda rows: rows["rounds"][0].update(
        shrunk=1
    ),
    "predictions are no better than the timetable: 11.0 min, the timetable's 11.0 min": (
        lambda rows: rows["predictions"][0].update(eta=400)
    ),
}


@pytest.mark.parametrize("problem", WRONG)
def test_what_is_wrong_is_found(problem: str) -> None:
    rows = right()
    WRONG[problem](rows)
    assert found(rows) == [problem]
