"""Recommend counts what is seen together, and trains a model each night to compare with it.

A visit comes in the order of its person, and companions are kept by item: so a visit is announced
once for each of its items, under that item, and its rows are never fought over.
"""

from __future__ import annotations

import asyncio
import os

from oyez import After, Service, State, Tick, Transaction
from recommend.als import similar
from recommend.events import CompanionsFound, ModelTrained, SeenTogether, VisitEnded, VisitsErased

SPEED = float(os.environ.get("ACTIVITY_SPEED", "1"))
"""How many times faster than a clock the time of this shop is."""
NIGHT = float(os.environ.get("ACTIVITY_NIGHT", "86400"))
"""Seconds from one night to the next."""
HALF = 60 * 86_400 / SPEED
"""Seconds after which a visit counts half."""
STRONGEST = 50

service = Service("recommend", migrations="recommend/migrations")


class Companions(State, key="item"):
    """How often an item was seen, and with which others. The counts are as of ``at``."""

    visits: float = 0.0
    counts: dict[str, float] = {}
    at: float = 0.0
    news: int = 0

    def fold(self, event: SeenTogether) -> CompanionsFound | None:
        """Count a visit; tells the strongest when a tenth of what is counted is new."""
        time = event.at.timestamp()
        at = max(self.at, time)
        aged, weight = 0.5 ** ((at - self.at) / HALF), 0.5 ** ((at - time) / HALF)
        self.at, self.visits = at, self.visits * aged + weight
        self.counts = {other: count * aged for other, count in self.counts.items()}
        for other in event.others:
            self.counts[other] = self.counts.get(other, 0.0) + weight
        self.news += 1
        if self.news < self.visits / 10:
            return None
        self.news = 0
        strongest = sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))[:STRONGEST]
        return CompanionsFound(item=self.key, visits=self.visits, companions=dict(strongest))


@service.on(VisitEnded)
async def ended(event: VisitEnded, tx: Transaction) -> list[SeenTogether]:
    """Keep what the model learns from, and tell each item of the visit."""
    for item in event.items:
        sql = "insert into seen values (:person, :item) on conflict (person, item) do nothing"
        tx.execute(sql, person=event.person, item=item)
    return [
        SeenTogether(item=item, others=[o for o in event.items if o != item], at=event.end)
        for item in event.items
    ]


@service.on(VisitsErased)
async def forget(event: VisitsErased, tx: Transaction) -> None:
    """Forget who it was. What is seen together tells of nobody, and stays."""
    tx.execute("delete from seen where person = :person", person=event.person)


@service.on(SeenTogether)
async def count(event: SeenTogether, companions: Companions) -> CompanionsFound | None:
    """Count it for the item."""
    return companions.fold(event)


@service.every(seconds=NIGHT, timeout=300.0)
async def train(tick: Tick, after: After) -> ModelTrained | None:
    """Train a model, if there is anything new; outside of any transaction, as it takes long."""
    pairs = await service.fetch("select person, item from seen order by person, item")
    last = await service.fetch("select trained_on from model order by version desc limit 1")
    if not pairs or [{"trained_on": len(pairs)}] == last:
        return None
    found = await asyncio.to_thread(similar, [(row["person"], row["item"]) for row in pairs])
    version = f"{tick.scheduled:%Y-%m-%dT%H:%M:%S}"
    after.execute("insert into model values (:name, :pairs)", name=version, pairs=len(pairs))
    return ModelTrained(version=version, similar=found)
