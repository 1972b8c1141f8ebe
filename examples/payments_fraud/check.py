"""What must be true of the bank, proved from the stores and the plan alone.

At every moment (`MOMENT`): all entries add up to zero, each booking does, and no account is below
its limit. Once all transfers have ended (`judge`): each in one declared end, nothing held, refused
money moved nowhere, every decision is made again with the same result, every window is what all of
its transfers at once make of it, and the planted fraud is found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from copy import deepcopy
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any

from trial import Rows, counts, differ

from analytics.service import ROWS
from feed import Plan
from fraud.events import Case
from fraud.model import Model
from fraud.rules import LIMIT, History

RECALL, PRECISION = 0.9, 0.8
PAUSE = timedelta(minutes=10)

MOMENT = {
    "the entries do not add up to zero": "select sum(cents) from entry having sum(cents) <> 0",
    "bookings do not add up to zero": """select booking from entry group by booking
      having sum(cents) <> 0 or count(*) <> 2""",
    "accounts are below their limits": """select account from accounts
      where balance - held < least or held < 0""",
    "accounts do not have what was booked": """select accounts.account from accounts
      left join entry on entry.account = accounts.account
      group by accounts.account, balance having balance <> coalesce(sum(cents), 0)""",
}
TABLES = {
    "accounts": {
        "held": "select account from accounts where held <> 0",
        "entries": "select booking, account, cents from entry where booking not like 'opened %'",
    },
    "transfers": {"sagas": "select key, status, ended, data from oyez_saga"},
    "fraud": {
        "cases": "select decision from cases",
        "labels": """select version, decision, fraud from label
          join cases using (transfer_id) where version > 0 order by version, id""",
    },
    "analytics": {"volume": ROWS},
}


def judge(rows: Mapping[str, Rows], cases: list[Case], plan: Plan) -> Iterator[str]:
    """Yield what is wrong."""
    sent, sagas = plan.transfers, rows["sagas"]
    ends = {row["key"]: row["end"] for row in sagas}
    yield from differ("transfers", set(ends), set(sent))
    yield from differ("ends", counts(sagas, "end").keys() - {"completed", "refused"})
    yield from differ("where transfers stay", counts(sagas, "status").keys() - {"ended"})
    yield from differ("accounts with money held", {row["account"] for row in rows["held"]})
    booked = {(row["booking"], row["account"], row["cents"]) for row in rows["entries"]}
    moved = {name: each for name, each in sent.items() if ends.get(name) == "completed"}
    due = {(name, each["source"], -each["cents"]) for name, each in moved.items()}
    due |= {(name, each["target"], each["cents"]) for name, each in moved.items()}
    yield from differ("bookings", booked, due)

    refused = {case.transfer_id for case in cases if case.score >= LIMIT}
    other = {case.transfer_id for case in cases if ends.get(case.transfer_id) == "refused"}
    yield from differ("decisions that ended otherwise", refused, other)
    again = {str(each) for each in decisions(cases, rows["labels"])}
    yield from differ("decisions made again", {str(each) for each in cases}, again)
    yield from differ("windows of devices", *bursts(cases))
    volume: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])
    for name, each in sent.items():
        counted = volume[each["at"][:16], each["country"]]
        counted[name not in moved] += 1
        counted[2] += each["cents"] * (name in moved)
    told = {tuple(row.values()) for row in rows["volume"]}
    yield from differ("minutes of the view", told, {(*key, *each) for key, each in volume.items()})
    cents = {sum(each["cents"] for each in moved.values())}
    yield from differ("cents in the file", {sum(row["cents"] for row in rows["report"])}, cents)
    recall, precision = quality(cases, plan.culprits, LIMIT)
    if recall < RECALL or precision < PRECISION:
        yield f"recall {recall:.3f} at precision {precision:.3f}"


def decisions(cases: list[Case], labels: Rows) -> Iterator[Case]:
    """Yield all decisions as they come out when all is done again.

    The models learn the same labels again, the customers' histories begin empty, and nothing of the
    recorded facts, scores and reasons is used, but for the facts that a model learns.
    """
    models = {0: Model()}
    for version, learnt in groupby(labels, itemgetter("version")):
        models[version] = deepcopy(models[version - 1])
        models[version].learn(learnt)
    histories: dict[str, History] = defaultdict(History)
    for case in sorted(cases, key=attrgetter("source", "number")):
        yield histories[case.source].decide(case, models[case.model])


def bursts(cases: list[Case]) -> tuple[Counter[Any], Counter[Any]]:
    """Return the sessions of each device as they were told, and as all transfers at once make them.

    What is told while a session lasts grows with it: its last word is its size.
    """
    told, wanted = Counter[Any](), Counter[Any]()
    sessions: dict[str, tuple[datetime, datetime]] = {}
    for case in sorted(cases, key=attrgetter("at")):
        start, newest = sessions.get(case.device, (case.at, case.at))
        start = case.at if case.at - newest >= PAUSE else start
        sessions[case.device] = start, case.at
        told[case.device, start] = max(told[case.device, start], case.burst)
        wanted[case.device, start] += 1
    return told, wanted


def quality(cases: list[Case], culprits: Set[str], limit: float) -> tuple[float, float]:
    """Return recall and precision of refusing from this score on, among what was looked at."""
    planted = {case.transfer_id for case in cases} & culprits
    flagged = {case.transfer_id for case in cases if case.score >= limit}
    caught = len(planted & flagged)
    return caught / max(len(planted), 1), caught / max(len(flagged), 1)
