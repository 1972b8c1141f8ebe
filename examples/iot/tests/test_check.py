"""The check alone: it finds nothing wrong with what is right, and each single fault."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from check import crossings, judge
from feed import Plan

Rows = dict[str, list[dict[str, Any]]]
MEANS = (20.0, 31.0, 33.0, 29.0, 31.0, 20.0)
"""Of six windows of ten seconds of one sensor, with one reading in each; another one is silent."""


def settled() -> tuple[Rows, Plan]:
    """What a run leaves that is right: a seventh reading was late for its minute."""
    readings = [("s.1", n, 60.0 + 10 * n, each) for n, each in enumerate((*MEANS, 20.0))]
    readings.append(("s.2", 0, 65.0, 18.0))
    columns = ("sensor_id", "number", "measured_at", "celsius")
    rows: Rows = {"readings": [dict(zip(columns, each, strict=True)) for each in readings]}
    for row in rows["readings"]:
        row["site_id"] = "s"
    rows["tens"] = [
        {"sensor_id": name, "start": at // 10 * 10, "readings": 1, "mean": each, "highest": each}
        for name, _, at, each in readings
    ]
    mean = (sum(MEANS) + 18.0) / 7
    window = {"start": 60.0, "readings": 7, "mean": mean, "median": 29.0, "p95": 33.0}
    rows["minutes"] = [{"site_id": "s", **window}]
    rows["late"] = [{"size": 60, "sensor_id": "s.1", "number": 6}]
    rows["alerts"] = [{"sensor_id": "s.1", "number": 1, "raised_at": 80.0, "cleared_at": 110.0}]
    rows["silences"] = [{"sensor_id": "s.2"}]
    rows["refused"] = [{"why": "repeated"}]
    columns = ("sensor_id", "readings", "alerts", "hot", "silent")
    shown = (("s.1", 7, 1, 0, 0), ("s.2", 1, 0, 0, 1))
    rows["sensors"] = [dict(zip(columns, each, strict=True)) for each in shown]
    plan = Plan(sites=["s"], sensors=2, waves={"s.1": 1}, silent={"s.2"}, repeated=1)
    plan.good = {(name, number) for name, number, _, _ in readings}
    plan.delayed = {("s.1", 6)}
    return rows, plan


def test_nothing_is_wrong_with_what_is_right() -> None:
    assert list(judge(*settled())) == []


FAULTS: dict[str, Callable[[Rows], object]] = {
    "accepted readings": lambda rows: rows["readings"].pop(),
    "refused": lambda rows: rows["refused"].append({"why": "repeated"}),
    "late readings that were not accepted": lambda rows: rows["late"].append(
        {"size": 10, "sensor_id": "s.9", "number": 1}
    ),
    "delayed readings that were not late": lambda rows: rows["late"].clear(),
    "windows of ten seconds": lambda rows: rows["tens"][0].update(readings=2),
    "windows of a minute": lambda rows: rows["minutes"][0].update(p95=31.0),
    "alerts": lambda rows: rows["alerts"].append(
        {"sensor_id": "s.1", "number": 2, "raised_at": 100.0, "cleared_at": 110.0}
    ),
    "alerts that are open": lambda rows: rows["tens"].pop(5) and rows["tens"].pop(5),
    "heat waves": lambda rows: rows["alerts"].clear(),
    "silent sensors": lambda rows: rows["silences"].clear(),
    "rows of the view": lambda rows: rows["sensors"][0].update(hot=1),
}


@pytest.mark.parametrize("what", FAULTS)
def test_each_fault_is_found(what: str) -> None:
    rows, plan = settled()
    rows = deepcopy(rows)
    FAULTS[what](rows)
    assert what in {problem.partition(":")[0] for problem in judge(rows, plan)}


def test_a_crossing_ends_below_the_lower_bound_alone() -> None:
    means = [(float(at), mean) for at, mean in enumerate((31, 31, 29, 31, 28, 27, 31, 20, 31, 31))]
    assert crossings(means) == [(1, 1.0, 5.0), (2, 9.0, None)]
