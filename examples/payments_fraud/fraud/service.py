"""Screening. A window counts what a device does, State knows the customer, a model has learnt."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fraud import events
from fraud.model import Model, Models
from fraud.rules import LIMIT, History, judge
from oyez import Service, Tick, Transaction, View, Window, applies

ENOUGH = 20
"""New labels that are worth a new version of the model."""
MOST = 2_000
"""Labels that one version learns: they are learnt while the store waits."""

_UNLEARNT = """select transfer_id, facts, fraud from label join cases using (transfer_id)
 where version = 0 order by id limit :most"""
_LABEL = """insert into label (transfer_id, id, fraud) values (:transfer_id, :id, :fraud)
 on conflict (transfer_id) do nothing"""
_NEWEST = "select version, weights from model order by version desc limit 1"
_COUNTS = """select count(*) as looked_at, cast(coalesce(sum(refused), 0) as bigint) as refused,
 coalesce(max(model), 0) as model from cases"""
_REFUSED = """select transfer_id, source, country, cents, at, why, score, model from cases
 where refused = 1 order by at desc limit 40"""


class Burst(Window, key="device", gap=600, late=7_200):
    """Transfers in a row from one device: as many sessions as there were pauses of ten minutes."""

    count: int = 0
    sources: list[str] = msgspec.field(default_factory=list)
    last: events.Screen | None = None

    def add(self, event: events.Screen) -> None:
        """Count it, and its account."""
        self.count += 1
        if event.source not in self.sources and len(self.sources) < 10:
            self.sources.append(event.source)
        self.last = event

    def join(self, other: Burst) -> None:
        """Take over a later session that an event has connected with this one."""
        self.count += other.count
        self.sources = sorted({*self.sources, *other.sources})[:10]

    def early(self) -> events.TransferCounted:
        """Tell at once what the newest transfer is part of: its money waits for it."""
        assert self.last is not None
        last, sharing = self.last, len(self.sources)
        return events.TransferCounted(
            source=last.source, transfer=last, burst=self.count, sharing=sharing
        )

    def late(self, event: events.Screen) -> events.TransferCounted:
        """Answer for one whose session is over, too: it stands alone."""
        return events.TransferCounted(source=event.source, transfer=event, burst=1, sharing=1)

    def close(self) -> None:
        """Nothing more to tell."""


class Cases(View, table="cases", key="transfer_id", index=("at",)):
    """Every decision, with all that led to it."""

    transfer_id: str
    source: str = ""
    country: str = ""
    cents: int = 0
    at: str = ""
    number: int = 0
    counted: events.TransferCounted | None = None
    facts: dict[str, float] = msgspec.field(default_factory=dict)
    why: list[str] = msgspec.field(default_factory=list)
    score: float = 0.0
    model: int = 0
    refused: int = 0

    @applies
    def cleared(self, event: events.TransferCleared) -> None:
        """It went on."""
        self._decided(event)

    @applies
    def flagged(self, event: events.TransferFlagged) -> None:
        """It did not."""
        self._decided(event)
        self.refused = 1

    def _decided(self, event: events.TransferCleared | events.TransferFlagged) -> None:
        self.take(event)
        transfer = event.counted.transfer
        self.source, self.country, self.cents = transfer.source, transfer.country, transfer.cents
        self.at = transfer.at.isoformat(timespec="seconds")


async def cases(request: Request) -> Response:
    """``GET /cases``: the newest refused transfers, each with why, and counts."""
    (counts,) = await service.fetch(_COUNTS)
    refused = await service.fetch(_REFUSED)
    for case in refused:
        case["why"] = msgspec.json.decode(case["why"])
    return JSONResponse({**counts, "cases": refused})


service = Service(
    "fraud", http=Starlette(routes=[Route("/cases", cases)]), migrations="fraud/migrations"
)
service.window(Burst, events.Screen, time="at")
service.view(Cases)


@service.provides
def models() -> Models:
    """Return the models in this service's store."""
    return Models(service)


@service.on(events.TransferCounted)
async def decide(
    event: events.TransferCounted, history: History, models: Models
) -> events.TransferCleared | events.TransferFlagged:
    """Clear the transfer, or flag it; what led to it goes with the decision."""
    model = await models.newest(time.monotonic())
    facts = history.facts(event)
    score, why = judge(facts, model.suspicion(facts))
    history.seen += 1
    case: dict[str, Any] = {"transfer_id": event.transfer.transfer_id, "counted": event}
    case |= {"number": history.seen, "facts": facts, "why": why, "score": score}
    if score >= LIMIT:
        reason = f"it looks like fraud: {', '.join(why)}"
        return events.TransferFlagged(**case, model=model.version, reason=reason)
    history.learn(event)
    return events.TransferCleared(**case, model=model.version)


@service.on(events.TransferReviewed)
async def label(event: events.TransferReviewed, tx: Transaction) -> None:
    """Keep what the customer said, for the model to learn."""
    tx.execute(_LABEL, transfer_id=event.transfer_id, id=tx.new_id(), fraud=int(event.fraud))


@service.every(seconds=2)
async def train(tick: Tick, tx: Transaction) -> None:
    """Make a new version of the model, if there are enough new labels."""
    rows = await tx.fetch(_UNLEARNT, most=MOST)
    if len(rows) < ENOUGH:
        return
    newest = await tx.fetch_one(_NEWEST)
    model = (Model(**newest) if newest else Model()).learn(
        (msgspec.json.decode(row["facts"]), bool(row["fraud"])) for row in rows
    )
    sql = "update label set version = :version where transfer_id = :name"
    for row in rows:
        tx.execute(sql, version=model.version, name=row["transfer_id"])
    sql = "insert into model values (:version, :weights)"
    tx.execute(sql, version=model.version, weights=model.weights)
