"""Screening. A window counts what a device does, State knows the customer, a model has learnt."""

from __future__ import annotations

import time
from typing import Any

from msgspec import json
from msgspec.structs import asdict

from fraud import events
from fraud.model import Model
from fraud.rules import LIMIT, History
from oyez import Service, Tick, Transaction, View, Window, applies

ENOUGH = 20
"""New labels that are worth a new version of the model."""
LOOK = 1.0
"""Seconds between two looks of a process for new labels."""

_LABELS = """select version, decision, fraud from label join cases using (transfer_id)
 where version = :version order by id"""
_NEW = "select 1 as one from label join cases using (transfer_id) where version = 0"
_NEXT = """update label set version = (select max(version) + 1 from label)
 where version = 0 and transfer_id in (select transfer_id from cases)"""
_LABEL = """insert into label (transfer_id, id, fraud) values (:transfer_id, :id, :fraud)
 on conflict (transfer_id) do nothing"""
_COUNTS = """select count(*) as looked_at, cast(coalesce(sum(refused), 0) as bigint) as refused,
 (select coalesce(max(version), 0) from label) as model from cases"""
_REFUSED = "select decision from cases where refused = 1 order by at desc limit 40"

service = Service("fraud", migrations="fraud/migrations")


class Burst(Window, key="device", gap=600, late=7_200):
    """Transfers in a row from one device: as many sessions as there were pauses of ten minutes."""

    count: int = 0
    sources: list[str] = []
    newest: events.TransferCounted | None = None

    def add(self, event: events.Screen) -> None:
        """Count it, and its account."""
        self.count += 1
        if event.source not in self.sources and len(self.sources) < 10:
            self.sources.append(event.source)
        sharing = len(self.sources)
        self.newest = events.TransferCounted(**asdict(event), burst=self.count, sharing=sharing)

    def join(self, other: Burst) -> None:
        """Take over a later session that an event has connected with this one."""
        self.count += other.count
        self.sources = sorted({*self.sources, *other.sources})[:10]

    def early(self) -> events.TransferCounted | None:
        """Tell at once what the newest transfer is part of: its money waits for it."""
        return self.newest

    def late(self, event: events.Screen) -> events.TransferCounted:
        """Answer for one whose session is over, too: it stands alone."""
        return events.TransferCounted(**asdict(event), burst=1, sharing=1)

    def close(self) -> None:
        """Nothing more to tell."""


class Cases(View, table="cases", key="transfer_id", index=("at",)):
    """Every decision, with all that led to it."""

    transfer_id: str
    at: float = 0.0
    refused: int = 0
    decision: events.Case | None = None

    @applies
    def cleared(self, event: events.TransferCleared) -> None:
        """It went on."""
        self.at, self.decision = event.at.timestamp(), events.Case(**asdict(event))

    @applies
    def flagged(self, event: events.TransferFlagged) -> None:
        """It did not."""
        self.at, self.decision = event.at.timestamp(), events.Case(**asdict(event))
        self.refused = 1


service.window(Burst, events.Screen, time="at")
service.view(Cases)


@service.provides
class Models:
    """The model of this process, which looks for new labels now and then."""

    def __init__(self) -> None:
        import river.linear_model  # takes seconds, so now, and not while a transfer waits
        import river.optim  # noqa: F401

        self._model, self._looked = Model(), 0.0

    async def newest(self) -> Model:
        """Return the newest version that was there at the last look, or later."""
        if time.monotonic() - self._looked >= LOOK:
            self._looked = time.monotonic()
            # One version after the other: a process that starts has all labels to learn.
            while labels := await service.fetch(_LABELS, version=self._model.version + 1):
                self._model.learn(labels)
        return self._model


@service.get("/cases")
async def cases() -> dict[str, Any]:
    """Show the newest refused transfers, each with why, and counts."""
    (counts,), refused = await service.fetch(_COUNTS), await service.fetch(_REFUSED)
    return {**counts, "cases": [json.decode(row["decision"]) for row in refused]}


@service.on(events.TransferCounted)
async def decide(
    event: events.TransferCounted, history: History, models: Models
) -> events.TransferCleared | events.TransferFlagged:
    """Clear the transfer, or flag it; what led to it goes with the decision."""
    case = history.decide(event, await models.newest())
    if case.score < LIMIT:
        return events.TransferCleared(**asdict(case))
    return events.TransferFlagged(**asdict(case))


@service.on(events.TransferReviewed)
async def label(event: events.TransferReviewed, tx: Transaction) -> None:
    """Keep what the customer said, for the model to learn."""
    tx.execute(_LABEL, transfer_id=event.transfer_id, id=tx.new_id(), fraud=int(event.fraud))


@service.every(seconds=2)
async def train(tick: Tick, tx: Transaction) -> None:
    """Make a new version of the model, if there are enough new labels."""
    if len(await tx.fetch(_NEW)) >= ENOUGH:
        tx.execute(_NEXT)
