"""Starts the bank; with ``--events N`` sends so many transfers, and checks the stores.

``make example NAME=payments_fraud`` runs it; exit codes: 0 when the invariant holds, 1 when it does
not, 2 for wrong usage.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import trial
from msgspec import json

from analytics.service import FILE, summarize
from check import MOMENT, TABLES, judge, quality
from feed import plan
from fraud.events import Case
from fraud.rules import LIMIT
from oyez.project import Project
from oyez.saga import read_progress

TOGETHER, OPEN = 100, 500
"""Events in one request; transfers that have not ended, above which no more are sent. Both are
less for a short run, so that two hours of five days are never under way: windows wait no longer."""
_OPENED = "select 1 as yes where (select count(*) from accounts) > :count"
_ENDED = """select 1 as yes
 where (select count(*) from oyez_saga where status = 'ended') >= :count"""


class Bank(trial.Example):
    """What a seed has customers, thieves and clerks do."""

    tables, never = TABLES, {"accounts": MOMENT}

    def __init__(self, project: Project, events: int, seed: int) -> None:
        self.plan = plan(events, seed, datetime.now(UTC) - timedelta(days=1))
        super().__init__(project, len(self.plan.transfers), "feed")
        self._sent: dict[str, float] = {}

    async def feed(self, gateway: trial.Gateway) -> None:
        """See `trial.Example.feed`."""
        await gateway.post("feed", self.plan.accounts)
        # Money comes from one account more, so there is one more when all are open.
        await self.until("accounts", _OPENED, count=len(self.plan.accounts))
        most = max(1, min(self.total // 100, OPEN))
        async for part in gateway.parts(self.plan.items, max(1, min(self.total // 200, TOGETHER))):
            asked = [name for _, name, _ in part if name in self.plan.transfers]
            self._sent |= dict.fromkeys(asked, time.time())
            await gateway.post("feed", part)
            gateway.sent(len(asked))
            await self.until("transfers", _ENDED, count=len(self._sent) - most)

    async def judge(self) -> Iterable[str]:
        """See `trial.Example.judge`."""
        sagas = self.rows["sagas"]
        for row in sagas:
            row["end"] = read_progress(row.pop("data")).end
        self.effects = [(self._sent[row["key"]], row["ended"]) for row in sagas if row["ended"]]
        self.rows["report"] = summarize(FILE)
        self.cases = [json.decode(row["decision"], type=Case) for row in self.rows["cases"]]
        return judge(self.rows, self.cases, self.plan)

    def figures(self) -> dict[str, object]:
        """See `trial.Example.figures`."""
        recall, precision = quality(self.cases, self.plan.culprits, LIMIT)
        return {
            **trial.counts(self.rows["sagas"], "end"),
            "refused as fraud": sum(case.score >= LIMIT for case in self.cases),
            "recall, precision": f"{recall:.3f}, {precision:.3f}",
            "versions of the model": max((case.model for case in self.cases), default=0),
        }

    def draw(self, *axes: Any) -> None:
        """See `trial.Example.draw`."""
        (found,) = axes
        limits = [step / 50 for step in range(5, 61)]
        lines = [quality(self.cases, self.plan.culprits, limit) for limit in limits]
        found.plot(limits, lines, label=("recall", "precision"))
        found.axvline(LIMIT, color="#777777", linestyle=":", label="refused from here on")
        found.set(title="Planted fraud that is found", xlabel="score", ylim=(0, 1.03))
        found.legend(loc="lower left")


if __name__ == "__main__":
    trial.run("payments_fraud", Bank, live=5_000)
