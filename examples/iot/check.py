"""What must be true when all is settled, proved from the stores and the plan alone.

Windows, percentiles and crossings are computed once more, all at once and in another way, from the
readings that Ingest accepted. Nothing is imported from the services.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any

from trial import Rows, counts, differ

from feed import Plan

TABLES = {
    "ingest": {"readings": "select * from reading", "refused": "select why from refused"},
    "alerts": {
        "alerts": "select * from alert",
        "silences": "select sensor_id from silence where ended_at is null",
    },
    "dashboard": {
        "tens": "select * from ten order by start",
        "minutes": "select * from minute",
        "late": "select * from late",
        "sensors": "select sensor_id, readings, alerts, hot, silent from sensors",
    },
}


def judge(rows: Mapping[str, Rows], plan: Plan) -> Iterator[str]:
    """Yield what is wrong."""
    readings = {_id(row): row for row in rows["readings"]}
    late = {size: {_id(row) for row in rows["late"] if row["size"] == size} for size in (10, 60)}
    yield from differ("accepted readings", set(readings), plan.good)
    refused = {"repeated": plan.repeated, "can't be measured": plan.broken}
    yield from differ("refused", counts(rows["refused"], "why"), refused)
    missed = (late[10] | late[60]) - readings.keys()
    yield from differ("late readings that were not accepted", missed)
    yield from differ("delayed readings that were not late", plan.delayed - late[60])

    tens, minutes = defaultdict(list), defaultdict(list)
    for key, row in readings.items():
        if key not in late[10]:
            tens[row["sensor_id"], row["measured_at"] // 10 * 10].append(row["celsius"])
        if key not in late[60]:
            minutes[row["site_id"], row["measured_at"] // 60 * 60].append(row["celsius"])
    wanted: set[Any] = {(*key, len(each), _mean(each), max(each)) for key, each in tens.items()}
    yield from differ("windows of ten seconds", _tuples(rows["tens"]), wanted)
    wanted = {
        (*key, len(each), _mean(each), _share(each, 0.5), _share(each, 0.95))
        for key, each in minutes.items()
    }
    yield from differ("windows of a minute", _tuples(rows["minutes"]), wanted)

    means = defaultdict(list)
    for row in rows["tens"]:  # in the order of their starts
        means[row["sensor_id"]].append((row["start"], row["mean"]))
    crossed = {(name, *each) for name, found in means.items() for each in crossings(found)}
    yield from differ("alerts", _tuples(rows["alerts"]), crossed)
    yield from differ("alerts that are open", {each for each in crossed if each[3] is None})
    waves = counts(rows["alerts"], "sensor_id")
    yield from differ("heat waves", waves, plan.waves)
    silent = counts(rows["silences"], "sensor_id")
    yield from differ("silent sensors", silent, dict.fromkeys(plan.silent, 1))
    sent = Counter(name for name, _ in readings)
    wanted = {(name, n, waves[name], 0, silent[name]) for name, n in sent.items()}
    yield from differ("rows of the view", _tuples(rows["sensors"]), wanted)


def crossings(means: Sequence[tuple[float, float]]) -> list[tuple[int, float, float | None]]:
    """Return the number, the begin and the end of each time above 30, until below 28."""
    found: list[tuple[int, float, float | None]] = []
    before = 0.0
    for start, mean in means:
        if found and found[-1][2] is None:
            if mean < 28:
                found[-1] = (*found[-1][:2], start)
        elif mean > 30 and before > 30:
            found.append((len(found) + 1, start, None))
        before = mean
    return found


def _id(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["sensor_id"], row["number"]


def _tuples(rows: Rows) -> set[Any]:
    return {tuple(row.values()) for row in rows}


def _mean(found: list[float]) -> float:
    return sum(round(each * 10) for each in found) / 10 / len(found)


def _share(found: list[float], share: float) -> float:
    return sorted(found)[ceil(share * len(found)) - 1]
