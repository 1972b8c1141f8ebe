"""Starts the shop's clicks; with ``--events N`` sends so many, forgets some people, and checks.

``make example NAME=activity`` runs it; exit codes: 0 when the invariant holds, 1 when it does not,
2 for wrong usage. ``ACTIVITY_DATA=made`` has clicks made up instead of MovieLens'.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

os.environ.setdefault("ACTIVITY_SPEED", "60")
os.environ.setdefault("ACTIVITY_NIGHT", "20")

import msgspec
import trial

import check
import data
from oyez.project import Project

SPEED = float(os.environ["ACTIVITY_SPEED"])
AT_ONCE = 100
"""Clicks in one request."""
PROBED = 2
"""Of so many requests, one is followed until its last click is on the page of its person."""
AGAIN = 7
"""Of so many requests, one is sent twice, as by a shop that missed the answer."""
SCOPES = ("clicks:send", "people:read", "people:erase")


class Clicks(trial.Example):
    """What people click, and who wants to be forgotten."""

    def __init__(self, project: Project, events: int, seed: int) -> None:
        os.environ["ACTIVITY_KEYS"] = f"http://{project.config.services['clicks'].http}"
        folder = project.config.root / ".oyez"
        folder.mkdir(exist_ok=True)
        source = os.environ.get("ACTIVITY_DATA", "ml-100k")
        self.clicks, held, self.source = data.load(events, seed, folder, source)
        super().__init__(project, len(self.clicks), "shop", scopes=SCOPES)
        names = sorted({click.name for click in self.clicks})
        erased = random.Random(seed).sample(names, max(1, len(names) // 20))
        self.fed = check.Fed(speed=SPEED, erased=erased, held=held)
        self.shown = f"#key={self.keys['shop']}&name={self.clicks[0].name}"
        self._figures: dict[str, object] = {}
        self._rates: dict[str, float] = {}

    async def feed(self, gateway: trial.Gateway) -> None:
        """See `trial.Example.feed`; what is played slowly is clicked when it is sent."""
        begin = datetime.now(UTC) - timedelta(seconds=self.clicks[-1].at / SPEED + 1)
        probes = []
        number = count = 0

        def told(click: data.Sent) -> dict[str, Any]:
            at = datetime.now(UTC) if gateway.rate else begin + timedelta(seconds=click.at / SPEED)
            return {**msgspec.structs.asdict(click), "at": at.isoformat()}

        async for part in gateway.parts(self.clicks, AT_ONCE):
            batch, now = [told(click) for click in part], time.time()
            answer = await gateway.ask("POST", "/clicks", 202, key="shop", json=batch)
            count += len(batch)
            if number % PROBED == 0 or count == self.total:
                token = answer.headers.get("oyez-after", "")
                seen = self._seen(gateway, batch[-1]["name"], token, now)
                probes.append(asyncio.create_task(seen))
            if number % AGAIN == 0:
                await gateway.ask("POST", "/clicks", 202, key="shop", json=batch[:1])
            gateway.sent(len(batch))
            number += 1
        await asyncio.gather(*probes)
        await trial.until(self._all_taken, every=0.5)
        for name in [] if gateway.rate else self.fed.erased:
            await gateway.ask("DELETE", f"/people/{name}", 202, 404, key="shop")

    async def judge(self) -> Iterable[str]:
        """See `trial.Example.judge`."""
        clicks, others = await self._waiting()
        if clicks or others:
            return [f"{clicks} clicks are on their way, and {others} of what follows"]
        books = await check.read(self.project, self.fed)
        self._rates, people = check.hit_rates(books)
        self._figures = {name: len(each) for name, each in sorted(books.events.items())}
        self._figures["events in history"] = books.total
        self._figures[f"hit rate at 10, for {people} people"] = ", ".join(
            f"{rate:.3f} {by}" for by, rate in self._rates.items()
        )
        return check.judge(books)

    def figures(self) -> dict[str, object]:
        """See `trial.Example.figures`."""
        return {"clicks": self.source, **self._figures}

    def draw(self, *axes: Any) -> None:
        """See `trial.Example.draw`."""
        (rates,) = axes
        bars = rates.bar(list(self._rates), list(self._rates.values()), color=["C7", "C2", "C0"])
        rates.bar_label(bars, fmt="%.3f")
        rates.margins(y=0.15)
        rates.set(title="The last click is among ten that are shown", ylabel="hit rate at 10")

    async def _seen(self, gateway: trial.Gateway, name: str, token: str, since: float) -> None:
        headers = {"oyez-after": token}
        await gateway.ask("GET", f"/people/{name}", 200, key="shop", headers=headers)
        self.effects.append((since, time.time()))

    async def _all_taken(self) -> bool:
        clicks, _ = await self._waiting()
        return clicks == 0

    async def _waiting(self) -> tuple[int, int]:
        """Return how many clicks are on their way, and how much else: events, windows, a model."""
        clicks, rest = await trial.under_way(self.project, "clicks")
        (row,) = await trial.fetch(self.project, "recommend", check.LEARNED)
        return clicks, rest + (row["pairs"] != (row["learned"] or 0))


if __name__ == "__main__":
    trial.run("activity", Clicks, live=99_000)
