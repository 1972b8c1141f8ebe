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
from fraud import rules
from fraud.events import Screen, TransferCounted

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
PLACES = ((52.0, "phone"), (52.0, "phone"), (52.0, "phone"), (-33.0, "another"))
"""The latitude and the device of each transfer."""

Spoil = Callable[[dict[str, Rows]], object]


def case(number: int, history: rules.History, transfer: Screen) -> dict[str, Any]:
    """The decision on a transfer, as it is kept."""
    far = transfer.latitude < 0
    counted = TransferCounted(
        source="ada", transfer=transfer, burst=1 if far else number + 1, sharing=3 if far else 1
    )
    history.seen += 1
    facts = history.facts(counted)
    score, why = rules.judge(facts, 0.0)
    if score < rules.LIMIT:
        history.learn(counted)
    return {
        "transfer_id": f"T{number}", "source": "ada", "number": number + 1, "score": score,
        "model": 0, "refused": int(score >= rules.LIMIT), "why": msgspec.json.encode(why).decode(),
        "counted": msgspec.json.encode(counted).decode(),
        "facts": msgspec.json.encode(facts).decode(),
    }  # fmt: skip


def settled() -> tuple[dict[str, Rows], Plan]:
    """What is left of three usual transfers of ada, and one from afar that was refused."""
    made, cases, history = Plan([], [], {"T3": "card 0"}), [], rules.History.keyed("ada")
    for number, (latitude, device) in enumerate(PLACES):
        at = NOON + timedelta(seconds=10 * number)
        sent: dict[str, Any] = {
            "transfer_id": f"T{number}", "source": "ada", "cents": 100, "device": device,
            "country": "NL", "latitude": latitude, "longitude": 4.0,
        }  # fmt: skip
        asked = {**sent, "target": "bob", "at": at.isoformat()}
        made.items.append(("bank.transfer.requested", asked))
        cases.append(case(number, history, Screen(**sent, at=at)))
    assert [each["refused"] for each in cases] == [0, 0, 0, 1]
    ends = ("completed", "completed", "completed", "refused")
    rows: dict[str, Rows] = {
        "held": [],
        "entries": [
            {"booking": f"T{number}", "account": account, "cents": cents}
            for number in range(3)
            for account, cents in (("ada", -100), ("bob", 100))
        ],
        "sagas": [{"key": f"T{n}", "status": "ended", "end": end} for n, end in enumerate(ends)],
        "cases": cases,
        "labels": [],
        "volume": [
            {"minute": "2026-11-01T12:00", "country": "NL", "completed": 3, "refused": 1,
             "cents": 300},
        ],
    }  # fmt: skip
    return rows, made


def test_nothing_is_wrong_with_what_is_right() -> None:
    assert list(judge(*settled())) == []


def change(table: str, index: int, **values: Any) -> Spoil:
    return lambda rows: rows[table][index].update(values)


def tell(number: int, burst: int) -> Spoil:
    def told(rows: dict[str, Rows]) -> None:
        row = rows["cases"][number]
        counted = {**msgspec.json.decode(row["counted"]), "burst": burst}
        row["counted"] = msgspec.json.encode(counted).decode()

    return told


FAULTS: dict[str, list[Spoil]] = {
    "transfers": [lambda rows: rows["sagas"].pop()],
    "transfers that have not ended": [change("sagas", 0, status="running")],
    "ends": [change("sagas", 0, end="elsewhere")],
    "accounts with money held": [lambda rows: rows["held"].append({"account": "ada"})],
    "bookings": [change("entries", 0, cents=-99), lambda rows: rows["entries"].pop()],
    "decisions that ended otherwise": [change("sagas", 3, end="completed")],
    "decisions made again": [
        change("cases", 1, score=0.3),
        change("cases", 3, why="[]"),
        change("cases", 0, facts="{}"),
        change("cases", 1, number=7),
    ],
    "windows of devices": [tell(2, burst=2), tell(2, burst=4)],
    "minutes of the view": [change("volume", 0, cents=299), change("volume", 0, refused=0)],
    "recall 0.000 at precision 0.000": [change("cases", 3, score=0.1)],
}


@pytest.mark.parametrize(
    ("what", "spoil"), [(what, each) for what, found in FAULTS.items() for each in found]
)
def test_each_fault_is_found(what: str, spoil: Spoil) -> None:
    rows, made = settled()
    spoil(rows)
    assert what in {problem.partition(":")[0] for problem in judge(rows, made)}


def test_a_plan_is_the_same_for_a_seed_and_knows_its_culprits() -> None:
    made = plan(2_000, 7, NOON)
    assert made == plan(2_000, 7, NOON)
    assert made != plan(2_000, 8, NOON)
    assert made.transfers == 2_000
    assert len(made.culprits) == 30 + 2 * 10
    times = [data["at"] for kind, data in made.items if kind == "bank.transfer.requested"]
    assert times == sorted(times)
    assert times[-1] <= NOON.isoformat()


def test_recall_and_precision() -> None:
    cases = [{"transfer_id": str(n), "score": n / 10} for n in range(10)]
    assert quality(cases, {"9": "x", "8": "x", "1": "x", "elsewhere": "x"}, 0.7) == (2 / 3, 2 / 3)
