"""What must be true of the bank, proved from the stores and the plan alone.

At every moment (`MOMENT`): all entries add up to zero, each booking does, and no account is below
its limit. Once all transfers have ended (`judge`): each in one declared end, nothing held, refused
money moved nowhere, every decision is made again with the same result, every window is what all of
its transfers at once make of it, and the planted fraud is found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import msgspec
from trial import Rows, differ

from feed import Plan
from fraud import rules
from fraud.events import TransferCounted
from fraud.model import Model
from fraud.rules import LIMIT, History

RECALL, PRECISION = 0.9, 0.8
PAUSE = timedelta(minutes=10)

MOMENT = {
    "accounts": {
        "the entries do not add up to zero": "select sum(cents) from entry having sum(cents) <> 0",
        "bookings do not add up to zero": """select booking from entry group by booking
          having sum(cents) <> 0 or count(*) <> 2""",
        "accounts are below their limits": """select account from accounts
          where balance - held < least or held < 0""",
        "accounts do not have what was booked": """select accounts.account from accounts
          left join entry on entry.account = accounts.account
          group by accounts.account, balance having balance <> coalesce(sum(cents), 0)""",
    }
}
TABLES = {
    "accounts": {
        "held": "select account from accounts where held <> 0",
        "entries": "select booking, account, cents from entry where booking not like 'opened %'",
    },
    "transfers": {"sagas": "select key, status, ended, data from oyez_saga"},
    "fraud": {
        "cases": "select * from cases",
        "labels": """select transfer_id, version, fraud from label where version > 0
          order by version, id""",
    },
    "analytics": {"volume": "select minute, country, completed, refused, cents from volume"},
}


def judge(rows: Mapping[str, Rows], plan: Plan) -> Iterator[str]:
    """Yield what is wrong."""
    sent = {each["transfer_id"]: each for _, each in plan.items if "source" in each}
    ends = {row["key"]: row["end"] for row in rows["sagas"]}
    yield from differ("transfers", set(ends), set(sent))
    open_ = {row["key"] for row in rows["sagas"] if row["status"] != "ended"}
    yield from differ("transfers that have not ended", open_, set())
    yield from differ("ends", {*ends.values()} - {"completed", "refused"}, set())
    yield from differ("accounts with money held", {row["account"] for row in rows["held"]}, set())
    booked = {(row["booking"], row["account"], row["cents"]) for row in rows["entries"]}
    due = {
        (name, account, cents)
        for name, each in sent.items()
        if ends.get(name) == "completed"
        for account, cents in ((each["source"], -each["cents"]), (each["target"], each["cents"]))
    }
    yield from differ("bookings", booked, due)
    cases = [
        {**row, **{name: msgspec.json.decode(row[name]) for name in ("facts", "why")}}
        for row in rows["cases"]
    ]
    refused = {row["transfer_id"] for row in cases if row["refused"]}
    other = {row["transfer_id"] for row in cases if (ends.get(row["transfer_id"]) == "refused")}
    yield from differ("decisions that ended otherwise", refused, other)
    yield from differ("decisions made again", *decisions(cases, rows["labels"]))
    yield from differ("windows of devices", *bursts(cases))
    volume: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])
    for name, each in sent.items():
        counts, moved = volume[each["at"][:16], each["country"]], ends.get(name) == "completed"
        counts[not moved] += 1
        counts[2] += each["cents"] * moved
    told = {tuple(row.values()) for row in rows["volume"]}
    yield from differ("minutes of the view", told, {(*key, *each) for key, each in volume.items()})
    recall, precision = quality(cases, plan.culprits, LIMIT)
    if recall < RECALL or precision < PRECISION:
        yield f"recall {recall:.3f} at precision {precision:.3f}"


def decisions(cases: Rows, labels: Rows) -> tuple[set[Any], set[Any]]:
    """Return all decisions as they are kept, and as they come out when all is done again.

    The models learn the same labels again, the customers' histories begin empty, and nothing of the
    recorded facts, scores and reasons is used.
    """
    facts = {case["transfer_id"]: case["facts"] for case in cases}
    by_version = defaultdict(list)
    for row in labels:
        by_version[row["version"]].append((facts[row["transfer_id"]], bool(row["fraud"])))
    models = {0: Model()}
    for version, learnt in sorted(by_version.items()):
        models[version] = Model(version - 1, models[version - 1].weights).learn(learnt)
    histories: dict[str, History] = defaultdict(History)
    kept, again = set(), set()
    for case in sorted(cases, key=lambda case: (case["source"], case["number"])):
        counted, history = _counted(case), histories[case["source"]]
        history.seen += 1
        now = history.facts(counted)
        score, why = rules.judge(now, models[case["model"]].suspicion(now))
        if score < LIMIT:
            history.learn(counted)
        name = case["transfer_id"]
        kept.add((name, case["number"], str(case["facts"]), case["score"], str(case["why"])))
        again.add((name, history.seen, str(now), score, str(why)))
    return kept, again


def bursts(cases: Rows) -> tuple[set[Any], set[Any]]:
    """Return the sessions of each device as they were told, and as all transfers at once make them.

    What is told while a session lasts grows with it: its last word is its size.
    """
    devices: dict[str, list[TransferCounted]] = defaultdict(list)
    for case in cases:
        devices[_counted(case).transfer.device].append(_counted(case))
    told, wanted = set(), set()
    for device, found in devices.items():
        found.sort(key=lambda each: each.transfer.at)
        session: list[TransferCounted] = []
        for each, after in zip(found, [*found[1:], None], strict=True):
            session.append(each)
            if after is None or after.transfer.at - each.transfer.at >= PAUSE:
                start = session[0].transfer.at
                told.add((device, start, max(each.burst for each in session)))
                wanted.add((device, start, len(session)))
                session = []
    return told, wanted


def quality(
    cases: Iterable[Mapping[str, Any]], culprits: Mapping[str, str], limit: float
) -> tuple[float, float]:
    """Return recall and precision of refusing from this score on, among what was looked at."""
    planted = {case["transfer_id"] for case in cases} & culprits.keys()
    flagged = {case["transfer_id"] for case in cases if case["score"] >= limit}
    caught = len(planted & flagged)
    return caught / max(len(planted), 1), caught / max(len(flagged), 1)


def _counted(case: Mapping[str, Any]) -> TransferCounted:
    return msgspec.json.decode(case["counted"], type=TransferCounted)
