"""Starts the shop's clicks; with ``--events N`` sends so many, forgets some people, and checks.

``make example NAME=activity`` runs it; exit codes: 0 when the invariant holds, 1 when it does not,
2 for wrong usage. ``ACTIVITY_DATA=made`` has clicks made up instead of MovieLens'.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("ACTIVITY_SPEED", "60")
os.environ.setdefault("ACTIVITY_NIGHT", "20")

import httpx
import msgspec
import trial

import check
import data
from oyez.project import Project

HERE = Path(__file__).resolve().parent
SPEED = float(os.environ["ACTIVITY_SPEED"])
LIVE = 99_000
"""The clicks that are played where nobody says how many."""
AT_ONCE = 100
"""Clicks in one request."""
PROBED = 2
"""Of so many requests, one is followed until its last click is on the page of its person."""
AGAIN = 7
"""Of so many requests, one is sent twice, as by a shop that missed the answer."""
SCOPES = ("clicks:send", "people:read", "people:erase")


class Clicks:
    """A `trial.Example`: what people click, and who wants to be forgotten."""

    def __init__(self, project: Project, events: int, seed: int) -> None:
        os.environ["ACTIVITY_KEYS"] = f"http://{project.config.services['clicks'].http}"
        self.project, self.panels = project, 1
        folder = project.config.root / ".oyez"
        folder.mkdir(exist_ok=True)
        source = os.environ.get("ACTIVITY_DATA", "ml-100k")
        self.clicks, held, self.source = data.load(events, seed, folder, source)
        self.total = len(self.clicks)
        names = sorted({click.name for click in self.clicks})
        erased = random.Random(seed).sample(names, max(1, len(names) // 20))
        self.fed = check.Fed(speed=SPEED, erased=erased, held=held)
        self._key = trial.write_keys(HERE, ["shop"], SCOPES)["shop"]
        self.shown = f"#key={self._key}&name={self.clicks[0].name}"
        self._delays: list[float] = []
        self._rates: dict[str, float] = {}
        self._last = 0.0

    async def feed(self, gateway: str, sent: Callable[[int], object], rate: float) -> None:
        """See `trial.Example.feed`; what is played slowly is clicked when it is sent."""
        begin = datetime.now(UTC) - timedelta(seconds=self.clicks[-1].at / SPEED + 1)
        probes = []

        def told(click: data.Sent) -> dict[str, Any]:
            at = datetime.now(UTC) if rate else begin + timedelta(seconds=click.at / SPEED)
            return {**msgspec.structs.asdict(click), "at": at.isoformat()}

        headers = {"x-api-key": self._key}
        async with httpx.AsyncClient(base_url=gateway, headers=headers, timeout=30.0) as client:
            for first in range(0, self.total, AT_ONCE):
                batch = [told(click) for click in self.clicks[first : first + AT_ONCE]]
                now, number = time.monotonic(), first // AT_ONCE
                answer = await trial.ask(client, "POST", "/clicks", 202, json=batch)
                if number % PROBED == 0:
                    token = answer.headers.get("oyez-after", "")
                    seen = self._seen(client, batch[-1]["name"], token, now)
                    probes.append(asyncio.create_task(seen))
                if number % AGAIN == 0:
                    await trial.ask(client, "POST", "/clicks", 202, json=batch[:1])
                sent(first + len(batch))
                await asyncio.sleep(AT_ONCE / rate if rate else 0)
            await asyncio.gather(*probes)
            end = time.monotonic() + trial.PATIENCE
            while (await self._waiting())[0] and time.monotonic() < end:
                await asyncio.sleep(0.5)
            self._last = time.time()
            for name in [] if rate else self.fed.erased:
                await trial.ask(client, "DELETE", f"/people/{name}", 202, 404)

    async def audit(self) -> trial.Findings:
        """See `trial.Example.audit`."""
        clicks, others = await self._waiting()
        settled, figures = self.total - clicks, {"clicks": self.source}
        if clicks or others:
            problems = [f"{clicks} clicks are on their way, and {others} of what follows"]
        else:
            _, problems = await trial.read(self.project, {})
            books = await check.read(self.project, self.fed)
            problems += check.judge(books)
            self._rates, people = check.hit_rates(books)
            counts = {name: str(len(each)) for name, each in sorted(books.events.items())}
            figures |= {**counts, "events in history": str(books.total)}
            figures[f"hit rate at 10, for {people} people"] = ", ".join(
                f"{rate:.3f} {by}" for by, rate in self._rates.items()
            )
        return trial.Findings(problems, settled, figures, self._delays, self._last)

    def draw(self, *axes: Any) -> None:
        """See `trial.Example.draw`."""
        (rates,) = axes
        bars = rates.bar(list(self._rates), list(self._rates.values()), color=["C7", "C2", "C0"])
        rates.bar_label(bars, fmt="%.3f")
        rates.margins(y=0.15)
        rates.set(title="The last click is among ten that are shown", ylabel="hit rate at 10")

    async def _seen(self, client: httpx.AsyncClient, name: str, token: str, since: float) -> None:
        headers = {"oyez-after": token}
        await trial.ask(client, "GET", f"/people/{name}", 200, headers=headers)
        self._delays.append(time.monotonic() - since)

    async def _waiting(self) -> tuple[int, int]:
        """Return how many clicks are on their way, and how much else: events, windows, a model."""
        clicks, rest = await trial.under_way(self.project, "clicks")
        (row,) = await trial.fetch(self.project, "recommend", check.LEARNED)
        return clicks, rest + (row["pairs"] != (row["learned"] or 0))


if __name__ == "__main__":
    sys.exit(trial.run("activity", HERE, Clicks, LIVE))
