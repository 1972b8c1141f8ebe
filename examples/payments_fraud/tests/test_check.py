"""The check finds each single fault, and nothing where all is right; a plan knows its culprits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from trial import Rows

from check import judge, quality
from feed import Plan, plan
from fraud.events import Case, TransferCounted
from fraud.model import Model
from fraud.rules import LIMIT, History

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
PLACES = ((52.0, "phone"), (52.0, "phone"), (52.0, "phone"), (-33.0, "another"))
"""The latitude and the device of each transfer."""

Spoil = Callable[[dict[str, Rows], list[Case]], object]


def settled() -> tuple[dict[str, Any], list[Case], Plan]:
    """What is left of three usual transfers of ada, and one from afar that was refused."""
    made, cases, history = Plan(culprits={"T3"}), [], History.keyed("ada")
    for number, (latitude, device) in enumerate(PLACES):
        name, far = f"T{number}", latitude < 0
        sent: dict[str, Any] = {
            "transfer_id": name, "source": "ada", "cents": 100, "device": device, "country": "NL",
            "place": (latitude, 4.0),
        }  # fmt: skip
        at = NOON + timedelta(seconds=10 * number)
        made.transfers[name] = {**sent, "target": "bob", "at": at.isoformat()}
        device_did = {"burst": 1 if far else number + 1, "sharing": 3 if far else 1}
        cases.append(history.decide(TransferCounted(**sent, at=at, **device_did), Model()))
    assert [case.score >= LIMIT for case in cases] == [False, False, False, True]
    ends = ("completed", "completed", "completed", "refused")
    rows = {
        "held": [],
        "entries": [
            {"booking": f"T{number}", "account": account, "cents": cents}
            for number in range(3)
            for account, cents in (("ada", -100), ("bob", 100))
        ],
        "sagas": [{"key": f"T{n}", "status": "ended", "end": end} for n, end in enumerate(ends)],
        "labels": [],
        "volume": [
            {"minute": "2026-11-01T12:00", "country": "NL", "completed": 3, "refused": 1,
             "cents": 300},
        ],
        "report": [{"country": "NL", "cents": 300}],
    }  # fmt: skip
    return rows, cases, made


def test_nothing_is_wrong_with_what_is_right() -> None:
    assert list(judge(*settled())) == []


def change(table: str, index: int, **values: Any) -> Spoil:
    return lambda rows, _: rows[table][index].update(values)


def decided(index: int, **values: Any) -> Spoil:
    def told(_: dict[str, Rows], cases: list[Case]) -> None:
        cases[index] = msgspec.structs.replace(cases[index], **values)

    return told


FAULTS: dict[str, list[Spoil]] = {
    "transfers": [lambda rows, _: rows["sagas"].pop()],
    "where transfers stay": [change("sagas", 0, status="running")],
    "ends": [change("sagas", 0, end="elsewhere")],
    "accounts with money held": [lambda rows, _: rows["held"].append({"account": "ada"})],
    "bookings": [change("entries", 0, cents=-99), lambda rows, _: rows["entries"].pop()],
    "decisions that ended otherwise": [change("sagas", 3, end="completed")],
    "decisions made again": [
        decided(1, score=0.3),
        decided(3, reason=""),
        decided(0, facts={}),
        decided(1, number=7),
    ],
    "windows of devices": [decided(2, burst=2), decided(2, burst=4)],
    "minutes of the view": [change("volume", 0, cents=299), change("volume", 0, refused=0)],
    "cents in the file": [change("report", 0, cents=299)],
    "recall 0.000 at precision 0.000": [decided(3, score=0.1)],
}


@pytest.mark.parametrize(
    ("what", "spoil"), [(what, each) for what, found in FAULTS.items() for each in found]
)
def test_each_fault_is_found(what: str, spoil: Spoil) -> None:
    rows, cases, made = settled()
    spoil(rows, cases)
    assert what in {problem.partition(":")[0] for problem in judge(rows, cases, made)}


def test_a_plan_is_the_same_for_a_seed_and_knows_its_culprits() -> None:
    made = plan(2_000, 7, NOON)
    assert made == plan(2_000, 7, NOON)
    assert made != plan(2_000, 8, NOON)
    assert len(made.transfers) == 2_000
    assert len(made.culprits) == 30 + 2 * 10
    times = [data["at"] for kind, _, data in made.items if kind == "bank.transfer.requested"]
    assert times == sorted(times)
    assert times[-1] <= NOON.isoformat()


def test_recall_and_precision() -> None:
    _, (case, *_), _ = settled()
    cases = [msgspec.structs.replace(case, transfer_id=str(n), score=n / 10) for n in range(10)]
    assert quality(cases, {"9", "8", "1", "elsewhere"}, 0.7) == (2 / 3, 2 / 3)
