"""Starts the shop's clicks; with ``--events N`` sends so many, forgets some people, and checks.

``make example NAME=activity`` runs it; exit codes: 0 when the invariant holds, 1 when it does not,
2 for wrong usage.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any

os.environ.setdefault("ACTIVITY_SPEED", "60")
os.environ.setdefault("ACTIVITY_NIGHT", "20")

import trial
from msgspec.structs import asdict

import check
import data
from oyez.project import Project

SPEED = float(os.environ["ACTIVITY_SPEED"])
AT_ONCE = 100
"""Clicks in one request."""
SCOPES = ("clicks:send", "people:read", "people:erase")


class Clicks(trial.Example):
    """What people click, and who wants to be forgotten."""

    tables = check.TABLES

    def __init__(self, project: Project, events: int, seed: int) -> None:
        os.environ["ACTIVITY_KEYS"] = f"http://{project.config.services['clicks'].http}"
        self.clicks, self.held = data.load(events, seed, project.config.root)
        super().__init__(project, len(self.clicks), "shop", scopes=SCOPES)
        names = sorted({click.name for click in self.clicks})
        self.erased = random.Random(seed).sample(names, max(1, len(names) // 20))
        self.shown = f"#key={self.keys['shop']}&name={self.clicks[0].name}"

    async def feed(self, gateway: trial.Gateway) -> None:
        """See `trial.Example.feed`; what is played slowly is clicked when it is sent."""
        end, last, clicked = datetime.now(UTC), self.clicks[-1].at, Counter[str]()
        async for part in gateway.parts(self.clicks, AT_ONCE):
            batch, name = [], part[-1].name
            for click in part:
                at = datetime.now(UTC) if gateway.rate else end - (last - click.at) / SPEED
                batch.append({**asdict(click), "at": at.isoformat()})
                clicked[click.name] += 1
            gateway.follow(partial(self._shown, gateway, name, clicked[name]))
            for again in (batch, batch[:1]):  # as by a shop that missed an answer
                await gateway.ask("POST", "/clicks", 202, key="shop", json=again)
            gateway.sent(len(batch))
        await gateway.followed()
        for name in [] if gateway.rate else self.erased:
            await gateway.ask("DELETE", f"/people/{name}", 202, 404, key="shop")

    async def judge(self) -> Iterable[str]:
        """See `trial.Example.judge`."""
        (row,) = self.rows["learned"]
        unsettled = await trial.unsettled(self.project)
        if unsettled or row["pairs"] != row["trained_on"]:
            return [*unsettled, f"a model has learned {row['trained_on']} of {row['pairs']} pairs"]
        self.books = await check.read(self.project, SPEED, self.erased, self.held)
        return check.judge(self.books)

    def figures(self) -> dict[str, object]:
        """See `trial.Example.figures`."""
        rates, people = check.hit_rates(self.books)
        told = ", ".join(f"{rate:.3f} {by}" for by, rate in rates.items())
        return {"events": len(self.books.events), f"hit rate at 10, for {people} people": told}

    def draw(self, *axes: Any) -> None:
        """See `trial.Example.draw`."""
        (bars,) = axes
        rates, _ = check.hit_rates(self.books)
        bars.bar_label(bars.bar(list(rates), list(rates.values())), fmt="%.3f")
        bars.set(title="The last click is among ten that are shown", ylabel="hit rate at 10")

    async def _shown(self, gateway: trial.Gateway, name: str, clicks: int) -> bool:
        """Return whether the page of a person has so many clicks."""
        answer = await gateway.ask("GET", f"/people/{name}", 200, 404, key="shop")
        return bool(answer.json().get("clicks", 0) >= clicks)


if __name__ == "__main__":
    trial.run("activity", Clicks, live=99_000)
