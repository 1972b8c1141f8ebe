"""Starts the bank; with ``--events N`` sends so many transfers, and checks the stores.

``make example NAME=payments_fraud`` runs it; exit codes: 0 when the invariant holds, 1 when it does
not, 2 for wrong usage.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import trial

from analytics.service import summarize, write
from check import MOMENT, TABLES, judge, quality
from feed import Item, plan
from fraud.rules import LIMIT
from oyez.project import Project
from oyez.saga import read_progress

LIVE = 5_000
"""The transfers that are played where nobody says how many."""
TOGETHER, OPEN = 100, 500
"""Events in one request; transfers that have not ended, above which no more are sent. Both are
less for a short run, so that two hours of five days are never under way: windows wait no longer."""
_ENDED = "select count(*) as found from oyez_saga where status = 'ended'"
_OPENED = "select count(*) as found from accounts"


class Bank(trial.Example):
    """What a seed has customers, thieves and clerks do."""

    tables, never = TABLES, MOMENT

    def __init__(self, project: Project, events: int, seed: int) -> None:
        self.plan = plan(events, seed, datetime.now(UTC) - timedelta(days=1))
        super().__init__(project, self.plan.transfers, "feed")
        self._sent: dict[str, float] = {}

    async def feed(self, gateway: trial.Gateway) -> None:
        """See `trial.Example.feed`."""
        accounts: list[Item] = [("bank.account.opened", each) for each in self.plan.accounts]
        async for part in gateway.parts(accounts, TOGETHER):
            await self._send(gateway, part)
        # Money comes from one account more, so there is one more when all are open.
        await trial.until(lambda: self._has("accounts", _OPENED, len(accounts) + 1))
        together = max(1, min(self.total // 200, TOGETHER))
        most = max(1, min(self.total // 100, OPEN))
        async for part in gateway.parts(self.plan.items, together):
            before = len(self._sent)
            await self._send(gateway, part)
            gateway.sent(len(self._sent) - before)
            await trial.until(lambda: self._has("transfers", _ENDED, len(self._sent) - most))

    async def judge(self) -> Iterable[str]:
        """See `trial.Example.judge`."""
        for row in self.rows["sagas"]:
            row["end"] = read_progress(row.pop("data")).end
        file = self.project.config.root / "out" / "volume.parquet"
        file.parent.mkdir(exist_ok=True)
        write(self.rows["volume"], file)
        sums = sum(row["cents"] for row in summarize(file))
        ended = {row["key"]: row["ended"] for row in self.rows["sagas"] if row["ended"]}
        self.effects = [(self._sent[name], at) for name, at in ended.items() if name in self._sent]
        return chain(
            judge(self.rows, self.plan),
            trial.differ("cents in the file", {sums}, {sum(self._moved())}),
        )

    def figures(self) -> dict[str, object]:
        """See `trial.Example.figures`."""
        cases, planted = self.rows["cases"], self.plan.culprits
        recall, precision = quality(cases, planted, LIMIT)
        refused, moved = sum(row["refused"] for row in cases), len(self._moved())
        return {
            "transfers": self.total,
            "completed": moved,
            "refused as fraud": refused,
            "refused, not enough money": len(self.effects) - moved - refused,
            "planted, and looked at": sum(row["transfer_id"] in planted for row in cases),
            "recall, precision": f"{recall:.3f}, {precision:.3f}",
            "versions of the model": max((row["model"] for row in cases), default=0),
            "decisions made again": len(cases),
        }

    def draw(self, *axes: Any) -> None:
        """See `trial.Example.draw`."""
        (found,) = axes
        limits = [step / 50 for step in range(5, 61)]
        cases, culprits = self.rows["cases"], self.plan.culprits
        lines = [quality(cases, culprits, limit) for limit in limits]
        found.plot(limits, lines, label=("recall", "precision"))
        found.axvline(LIMIT, color="#777777", linestyle=":", label="refused from here on")
        found.set(title="Planted fraud that is found", xlabel="score", ylim=(0, 1.03))
        found.legend(loc="lower left")

    def _moved(self) -> list[int]:
        names = {row["booking"] for row in self.rows["entries"]}
        sent = (each for _, each in self.plan.items if "cents" in each)
        return [each["cents"] for each in sent if each["transfer_id"] in names]

    async def _send(self, gateway: trial.Gateway, items: Sequence[Item]) -> None:
        for kind, data in items:
            if kind == "bank.transfer.requested":
                self._sent[data["transfer_id"]] = time.time()
        told = [
            (kind, f"{kind}/{data.get('transfer_id') or data['account']}", data)
            for kind, data in items
        ]
        await gateway.post("feed", told)

    async def _has(self, service: str, sql: str, count: int) -> bool:
        (row,) = await trial.fetch(self.project, service, sql)
        return bool(row["found"] >= count)


if __name__ == "__main__":
    sys.exit(trial.run("payments_fraud", Bank, LIVE))
