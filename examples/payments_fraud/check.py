"""What must be true of the bank, found by looking into the stores, not by asking the services.

At every moment: all entries add up to zero, each booking does, and no account is below its limit.
Once all transfers have ended: each in one declared end, nothing held, refused money moved nowhere,
every decision is made again with the same result, and the planted fraud is found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from analytics.service import summarize, write
from feed import Plan
from fraud.events import TransferCounted
from fraud.model import Model
from fraud.rules import LIMIT, History, judge
from oyez.ports import Store
from oyez.project import Project
from oyez.saga import read_progress

RECALL, PRECISION = 0.9, 0.8

_MOMENT = {
    "the entries do not add up to zero": "select sum(cents) from entry having sum(cents) <> 0",
    "bookings do not add up to zero": """select booking from entry group by booking
      having sum(cents) <> 0 or count(*) <> 2""",
    "accounts are below their limits": """select account from accounts
      where balance - held < least or held < 0""",
    "accounts do not have what was booked": """select accounts.account from accounts
      left join entry on entry.account = accounts.account
      group by accounts.account, balance having balance <> coalesce(sum(cents), 0)""",
}
_UNFINISHED = """select (select count(*) from oyez_outbox) as announced,
 (select count(*) from oyez_inbox where state > 0) as parked,
 (select count(*) from oyez_dead where state = 'dead') as dead"""
LABELS = """select transfer_id, version, fraud from label where version > 0 order by version, id"""
CASES = "select transfer_id, source, number, counted, facts, why, score, model, refused from cases"


class Audit(msgspec.Struct):
    """What was found: everything that is not as it must be, and the figures."""

    problems: list[str]
    figures: dict[str, Any]
    cases: list[dict[str, Any]]
    ended: dict[str, float]
    """When each transfer ended, in seconds since 1970."""


@asynccontextmanager
async def opened(project: Project) -> AsyncIterator[dict[str, Store]]:
    """The stores of all services, open."""
    stores = {name: project.store(name) for name in project.config.services}
    for store in stores.values():
        await store.open()
    try:
        yield stores
    finally:
        for store in stores.values():
            await store.close()


async def moment(stores: dict[str, Store]) -> list[str]:
    """Return what is wrong with the ledger now, whatever is under way."""
    found = {what: await stores["accounts"].fetch(sql, {}) for what, sql in _MOMENT.items()}
    return [f"{what}: {rows[:3]}" for what, rows in found.items() if rows]


async def ended(stores: dict[str, Store]) -> int:
    """Return how many transfers have ended."""
    sql = "select count(*) as ended from oyez_saga where status = 'ended'"
    found: int = (await stores["transfers"].fetch(sql, {}))[0]["ended"]
    return found


async def audit(stores: dict[str, Store], plan: Plan, folder: Path) -> Audit:
    """Look at everything once; the Parquet file is written to ``folder``, and read again."""
    problems = await moment(stores)
    for name, store in stores.items():
        (counts,) = await store.fetch(_UNFINISHED, {})
        problems += [f"{name} has {many} events {what}" for what, many in counts.items() if many]
    sagas = {each["key"]: each for each in await stores["transfers"].fetch(
        "select key, status, ended, data from oyez_saga", {}
    )}  # fmt: skip
    ends = {key: read_progress(each["data"]).end for key, each in sagas.items()}
    sent = {data["transfer_id"]: data for kind, data in plan.items if "source" in data}
    for name in sent.keys() ^ sagas.keys():
        problems.append(f"{name} was not sent, or has not begun")
    known = ("completed", "refused")
    problems += [
        f"{key} is {each['status']} and ended as {ends[key]!r}"
        for key, each in sagas.items()
        if each["status"] != "ended" or ends[key] not in known
    ]
    problems += await _money(stores["accounts"], sent, ends)
    cases = await stores["fraud"].fetch(CASES, {})
    for case in cases:
        case.update({name: msgspec.json.decode(case[name]) for name in ("facts", "why")})
    labels = await stores["fraud"].fetch(LABELS, {})
    problems += replay(cases, labels)
    problems += [
        f"{case['transfer_id']} was decided otherwise than it ended"
        for case in cases
        if (ends.get(case["transfer_id"]) == "refused") != bool(case["refused"])
    ]
    problems += await _volume(stores["analytics"], sent, ends, folder)
    recall, precision = quality(cases, plan.culprits, LIMIT)
    if recall < RECALL or precision < PRECISION:
        problems.append(f"recall {recall:.3f} at precision {precision:.3f}")
    figures = {
        "completed": sum(each == "completed" for each in ends.values()),
        "refused as fraud": sum(case["refused"] for case in cases),
        "refused, not enough money": sum(e == "refused" for e in ends.values())
        - sum(case["refused"] for case in cases),
        "planted, and looked at": sum(case["transfer_id"] in plan.culprits for case in cases),
        "recall": round(recall, 3),
        "precision": round(precision, 3),
        "versions of the model": max((case["model"] for case in cases), default=0),
        "decisions made again": len(cases),
    }
    return Audit(problems, figures, cases, {key: each["ended"] for key, each in sagas.items()})


def replay(cases: list[dict[str, Any]], labels: list[dict[str, Any]]) -> list[str]:
    """Return the decisions that come out otherwise when all is done again.

    The models learn the same labels again, the customers' histories begin empty, and nothing of the
    recorded facts, scores and reasons is used.
    """
    problems = []
    facts = {case["transfer_id"]: case["facts"] for case in cases}
    models = {0: Model()}
    by_version = defaultdict(list)
    for row in labels:
        by_version[row["version"]].append((facts[row["transfer_id"]], bool(row["fraud"])))
    for version, learnt in sorted(by_version.items()):
        model = Model(version - 1, models[version - 1].weights) if version > 1 else Model()
        models[version] = model.learn(learnt)
    histories: dict[str, History] = defaultdict(History)
    for case in sorted(cases, key=lambda case: (case["source"], case["number"])):
        history = histories[case["source"]]
        counted = msgspec.json.decode(case["counted"], type=TransferCounted)
        history.seen += 1
        now = history.facts(counted)
        score, why = judge(now, models[case["model"]].suspicion(now))
        if score < LIMIT:
            history.learn(counted)
        if (history.seen, now, score, why, int(score >= LIMIT)) != (
            case["number"], case["facts"], case["score"], case["why"], case["refused"]
        ):  # fmt: skip
            problems.append(f"{case['transfer_id']} would be decided otherwise: {score} for {why}")
    return problems


def quality(
    cases: Iterable[dict[str, Any]], culprits: dict[str, str], limit: float
) -> tuple[float, float]:
    """Return recall and precision of refusing from this score on, among what was looked at."""
    caught = flagged = planted = 0
    for case in cases:
        guilty = case["transfer_id"] in culprits
        planted += guilty
        flagged += case["score"] >= limit
        caught += guilty and case["score"] >= limit
    return caught / max(planted, 1), caught / max(flagged, 1)


async def _money(
    accounts: Store, sent: dict[str, dict[str, Any]], ends: dict[str, str]
) -> list[str]:
    held = await accounts.fetch("select account from accounts where held <> 0", {})
    problems = [f"{row['account']} has money that is still held" for row in held]
    moved: dict[str, dict[str, int]] = defaultdict(dict)
    for row in await accounts.fetch("select booking, account, cents from entry", {}):
        moved[row["booking"]][row["account"]] = row["cents"]
    for name, data in sent.items():
        due = {data["source"]: -data["cents"], data["target"]: data["cents"]}
        if moved.get(name, {}) != (due if ends.get(name) == "completed" else {}):
            problems.append(f"{name} ended as {ends.get(name)} and moved {moved.get(name, {})}")
    return problems


async def _volume(
    analytics: Store, sent: dict[str, dict[str, Any]], ends: dict[str, str], folder: Path
) -> list[str]:
    rows = await analytics.fetch(
        "select minute, country, completed, refused, cents from volume", {}
    )
    due: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for name, data in sent.items():
        counts = due[data["at"][:16], data["country"]]
        counts[ends.get(name) != "completed"] += 1
        counts[2] += data["cents"] if ends.get(name) == "completed" else 0
    shown = {(r["minute"], r["country"]): [r["completed"], r["refused"], r["cents"]] for r in rows}
    problems = [] if shown == due else ["the view of volume is not what the transfers add up to"]
    file = folder / "volume.parquet"
    write(rows, file)
    if sum(each["cents"] for each in summarize(file)) != sum(each[2] for each in due.values()):
        problems.append("the Parquet file has other sums than the transfers")
    return problems
