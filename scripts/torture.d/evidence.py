"""Everything that a run has left behind: its journal, every store, the broker, the world outside.

It is read from the run's folder and the stores themselves when nothing runs any more.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import journal
import msgspec

from books import Inside, Outside, look_inside
from oyez import tables
from oyez.envelope import open_record
from oyez.errors import InvalidEvent
from oyez.inspection import history
from oyez.ports import Record
from oyez.project import Project

SHOP = ("orders", "inventory", "payments", "shipping", "notifications")
WITNESS = "witness"
JOURNAL = "journal.jsonl"
POISON = "torture.poison"
WITNESSED = frozenset(
    "shop." + name
    for name in (
        *("order.placed", "order.cancellation-asked", "order.confirmed", "order.cancelled"),
        *("payment.processed", "payment.failed", "payment.unavailable", "payment.refunded"),
        *("payment.voided", "stock.reserved", "stock.released", "stock.rejected"),
        "shipment.ready",
    )
)
"""The types of the facts that the witness writes down."""


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """An event: as a record of the broker, or as a row of the witness."""

    event_id: str
    source: str
    type: str
    key: str
    number: int = 0
    """Of a row: how many of its source and key the witness had handled before."""


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter that nobody has dealt with."""

    service: str
    event_id: str
    handler: str
    reason: str


class Evidence(msgspec.Struct, kw_only=True):
    """What the checker judges."""

    lines: list[journal.Line]
    inside: Inside
    outside: Outside
    placements: dict[str, list[str]]
    """The orders that the shop has under each idempotency key."""
    charge_keys: list[tuple[str, str]]
    """Each charge at the provider: the order, and the idempotency key."""
    mail_keys: list[tuple[str, str, str]]
    """Each e-mail: the order, the stage, and the Message-ID."""
    text_keys: list[tuple[str, str]]
    """Each SMS: its text, and the idempotency key."""
    effects_repeated: int
    """Requests that the world outside has had before, and did not act on."""
    records: list[Fact] | None
    """What the broker has, in the order of each partition; None if it keeps no history."""
    witnessed: list[Fact]
    letters: list[Letter]
    unfinished: dict[str, dict[str, int]]
    """What is in the outboxes and parked, by service, the witness included."""
    stuck_sagas: list[str]

    def of(self, kind: str) -> list[journal.Line]:
        """Return the journal's lines of a kind."""
        return [line for line in self.lines if line["kind"] == kind]

    @property
    def accepted(self) -> dict[str, list[str]]:
        """The orders that a 202 named, by idempotency key."""
        found: dict[str, list[str]] = {}
        for line in self.of("answer"):
            if line["status"] == 202:
                found.setdefault(line["key"], []).append(line["order"])
        return found

    @property
    def duplicates(self) -> int:
        """Records of the broker that it had before: events that were delivered again."""
        found = [(each.source, each.event_id) for each in self.records or ()]
        return len(found) - len(set(found))


async def at_rest(project: Project) -> bool:
    """Whether every order has ended, and nothing waits anywhere, however much there was.

    It asks each store and the broker for their counts, and so costs the same after a long run.
    Raises what a store or broker raises that can't be read.
    """
    reads: dict[str, dict[str, dict[int, int]]] = {}
    for name in (*SHOP, WITNESS):
        async with project.opened_store(name) as store:
            unfinished = (await store.fetch(_UNFINISHED, {}))[0]
            if unfinished["announced"] or unfinished["parked"]:
                return False
            if name == "orders" and (await store.fetch(_OPEN_ORDERS, {}))[0]["orders"]:
                return False
            positions = reads[name] = defaultdict(dict)
            for row in await store.fetch(tables.CURSORS, {"reader": ""}):
                if row["stream"] not in (tables.OUTBOX, tables.TIMERS):
                    positions[row["stream"]][row["partition"]] = row["position"]
    for name, positions in reads.items():
        # As the service: a broker with a queue for each knows of no other lag.
        async with project.opened_broker(name) as broker:
            for stream, read in positions.items():
                if any((await broker.lag(stream, read)).values()):
                    return False
    return True


async def backlog(project: Project) -> int:
    """Return how much the shop is behind: orders that are open, and notices that are due."""
    async with project.opened_store("orders") as store:
        (row,) = await store.fetch(_BACKLOG, {})
    data = project.config.root / ".oyez" / "outside"
    (mails,) = _rows(data / "mailbox.db", "select count(*) as mails from mail")
    return int(row["orders"] + row["notices"] - mails["mails"])


async def gather(folder: Path, project: Project) -> Evidence:
    """Read everything. Raises what a store raises that can't be read."""
    data = project.config.root / ".oyez" / "outside"
    placements: dict[str, list[str]] = {}
    letters: list[Letter] = []
    unfinished: dict[str, dict[str, int]] = {}
    for name in (*SHOP, WITNESS):
        async with project.opened_store(name) as store:
            found = await store.fetch(_LETTERS, {})
            letters.extend(Letter(service=name, **row) for row in found)
            unfinished[name] = (await store.fetch(_UNFINISHED, {}))[0]
            if name == "orders":
                for row in await store.fetch("select key, order_id from placement", {}):
                    placements.setdefault(row["key"], []).append(row["order_id"])
                stuck = await store.fetch("select key from oyez_saga where status = 'stuck'", {})
            elif name == WITNESS:
                seen = [Fact(**row) for row in await store.fetch(_SEEN, {})]
    charges = _rows(data / "provider.db", "select * from charge order by rowid")
    mails = _rows(data / "mailbox.db", "select * from mail order by number")
    texts = _rows(data / "sms.db", "select * from message order by rowid")
    return Evidence(
        lines=journal.read(folder / JOURNAL),
        inside=await look_inside(project, SHOP),
        outside=Outside(ledger=_ledger(charges), mails=[_mail(m) for m in mails], texts=texts),
        placements=placements,
        charge_keys=[(charge["reference"], charge["key"]) for charge in charges],
        mail_keys=[(mail["shop_order"], mail["stage"], mail["message_id"]) for mail in mails],
        text_keys=[(text["text"], text["key"]) for text in texts],
        effects_repeated=sum(row["repeats"] for row in (*mails, *texts)),
        records=await _records(project),
        witnessed=seen,
        letters=letters,
        unfinished=unfinished,
        stuck_sagas=[row["key"] for row in stuck],
    )


_LETTERS = "select event_id, handler, reason from oyez_dead where state = 'dead'"
_UNFINISHED = """select (select count(*) from oyez_outbox) as announced,
 (select count(*) from oyez_inbox where state > 0) as parked"""
_OPEN_ORDERS = "select count(*) as orders from orders where shipped = 0 and cancelled = 0"
_BACKLOG = """select
 (select count(*) from orders where shipped = 0 and cancelled = 0) as orders,
 (select count(*) from order_history where stage not in ('reserved', 'released', 'voided'))
 as notices"""
_SEEN = "select event_id, source, type, subject as key, number from seen"


async def _records(project: Project) -> list[Fact] | None:
    found: list[Fact] = []

    def look(record: Record) -> None:
        try:
            event = open_record(record.headers, record.data)
        except InvalidEvent:
            return
        found.append(
            Fact(event_id=event.id, source=event.source, type=event.type, key=event.key or "")
        )

    async with project.opened_broker() as broker:
        if not broker.capabilities.history:
            return None
        places = await history.ends(broker, await history.streams(broker))
        prefix = f"{project.config.system.name}."
        own = {place: end for place, end in places.items() if place[0].startswith(prefix)}
        await history.scan(broker, own, look)
    return found


def _rows(path: Path, query: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(query)]


def _ledger(charges: Sequence[dict[str, Any]]) -> dict[str, Any]:
    captured = [charge for charge in charges if charge["status"] == "captured"]
    return {
        "captured_cents": sum(charge["amount_cents"] for charge in captured),
        "refunded_cents": sum(c["amount_cents"] for c in captured if c["refunded"]),
        "charges": [charge | {"refunded": bool(charge["refunded"])} for charge in charges],
    }


def _mail(row: dict[str, Any]) -> dict[str, Any]:
    received = datetime.fromtimestamp(row["received_at"], UTC).isoformat()
    return {
        "message_id": row["message_id"],
        "to": json.loads(row["recipients"]),
        "order": row["shop_order"],
        "stage": row["stage"],
        "received_at": received,
    }
