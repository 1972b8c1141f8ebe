"""Starts the bank; with ``--events N`` sends so many transfers, and checks the stores.

``make example NAME=payments_fraud`` runs it; exit codes: 0 when the invariant holds, 1 when it does
not, 2 for wrong usage.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import trial

from analytics.service import summarize, write
from check import MOMENT, TABLES, judge, quality
from feed import Item, plan
from fraud.rules import LIMIT
from oyez.project import Project
from oyez.saga import read_progress

HERE = Path(__file__).resolve().parent
LIVE = 5_000
"""The transfers that are played where nobody says how many."""
TOGETHER, OPEN = 100, 500
"""Events in one request; transfers that have not ended, above which no more are sent. Both are
less for a short run, so that two hours of five days are never under way: windows wait no longer."""
LOOK = 1.0
"""Seconds between two looks at the whole ledger."""
_ENDED = "select count(*) as ended from oyez_saga where status = 'ended'"


class Bank:
    """A `trial.Example`: what a seed has customers, thieves and clerks do."""

    def __init__(self, project: Project, events: int, seed: int) -> None:
        self.project, self.shown, self.panels = project, "", 1
        self.plan = plan(events, seed, datetime.now(UTC) - timedelta(days=1))
        self.total = self.plan.transfers
        self.rows: dict[str, trial.Rows] = {}
        self._key = trial.write_keys(HERE, ["feed"])["feed"]
        self._source = f"/{project.config.system.name}/gateway/key:feed"
        self._sent: dict[str, float] = {}
        self._wrong, self._looks, self._looked = set[str](), 0, 0.0
        self._delays: list[float] = []

    async def feed(self, gateway: str, sent: Callable[[int], object], rate: float) -> None:
        """See `trial.Example.feed`."""
        async with httpx.AsyncClient(base_url=gateway, timeout=20.0) as client:
            items = [("bank.account.opened", each) for each in self.plan.accounts]
            await self._send(client, items)
            # Money comes from one account more, so there is one more when all are open.
            while await self._count("accounts", "select count(*) from accounts") <= len(items):
                await asyncio.sleep(0.1)
            together = max(1, min(self.total // 200, TOGETHER // 10 if rate else TOGETHER))
            most = max(1, min(self.total // 100, OPEN))
            for first in range(0, len(self.plan.items), together):
                await self._send(client, self.plan.items[first : first + together])
                sent(len(self._sent))
                while len(self._sent) - await self._count("transfers", _ENDED) > most:
                    await self._look()
                    await asyncio.sleep(0.1)
                await asyncio.sleep(together / rate if rate else 0)

    async def audit(self) -> trial.Findings:
        """See `trial.Example.audit`."""
        await self._look()
        self.rows, problems = await trial.read(self.project, TABLES)
        for row in self.rows["sagas"]:
            row["end"] = read_progress(row.pop("data")).end
        problems += [*judge(self.rows, self.plan), *sorted(self._wrong)]
        file = self.project.config.root / "out" / "volume.parquet"
        file.parent.mkdir(exist_ok=True)
        write(self.rows["volume"], file)
        sums = sum(row["cents"] for row in summarize(file))
        problems += trial.differ("cents in the file", {sums}, {sum(self._moved())})
        ended = {row["key"]: row["ended"] for row in self.rows["sagas"] if row["ended"]}
        self._delays = [at - self._sent[name] for name, at in ended.items() if name in self._sent]
        cases = self.rows["cases"]
        recall, precision = quality(cases, self.plan.culprits, LIMIT)
        refused, planted = sum(row["refused"] for row in cases), self.plan.culprits
        figures = {
            "transfers": self.total,
            "completed": len(self._moved()),
            "refused as fraud": refused,
            "refused, not enough money": len(ended) - len(self._moved()) - refused,
            "planted, and looked at": sum(row["transfer_id"] in planted for row in cases),
            "recall, precision": f"{recall:.3f}, {precision:.3f}",
            "versions of the model": max((row["model"] for row in cases), default=0),
            "decisions made again": len(cases),
            "looks at the ledger meanwhile": self._looks,
        }
        last = max(ended.values(), default=0.0)
        return trial.Findings(problems, len(ended), figures, self._delays, last)

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

    async def _send(self, client: httpx.AsyncClient, items: list[Item]) -> None:
        for first in range(0, len(items), TOGETHER):
            part = items[first : first + TOGETHER]
            for kind, data in part:
                if kind == "bank.transfer.requested":
                    self._sent[data["transfer_id"]] = time.time()
            told = (
                (kind, f"{kind}/{data.get('transfer_id') or data['account']}", data)
                for kind, data in part
            )
            await trial.post(client, self._key, trial.events(self._source, told))

    async def _count(self, service: str, sql: str) -> int:
        ((_, count),) = (await trial.fetch(self.project, service, sql))[0].items()
        return int(count)

    async def _look(self) -> None:
        """Look at the ledger as it is at this moment."""
        if time.monotonic() - self._looked > LOOK:
            self._looked, self._looks = time.monotonic(), self._looks + 1
            for what, sql in MOMENT.items():
                if rows := await trial.fetch(self.project, "accounts", sql):
                    self._wrong.add(f"{what}: {rows[:3]}")


if __name__ == "__main__":
    sys.exit(trial.run("payments_fraud", HERE, Bank, LIVE))
