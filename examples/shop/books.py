"""The shop's books: what must be true once every order is settled, checked from outside.

For every accepted order exactly one terminal status; the money captured and kept is the sum of the
shipped orders; free + reserved + shipped stock is the initial stock; each stage was told once. The
check reads the services' stores, the payment provider's ledger and the mailboxes.

An order that was flagged and not approved is held: paid, reserved, and neither shipped nor
cancelled. Where the shop has guests, the points are the captured cents, and every order was looked
at, before it was confirmed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from guests import Ledger, read_ledger
from oyez.project import Project

TERMINAL = ("shipped", "cancelled")
SHOWN = 5
"""Problems of one kind that are spelt out."""


class Books(msgspec.Struct, frozen=True):
    """What was found: the orders by id, and everything that does not balance."""

    orders: dict[str, dict[str, Any]]
    problems: list[str]

    def status(self, order_id: str) -> str:
        """An order's status, as far as the books know it."""
        order = self.orders.get(order_id)
        if order is None:
            return "lost"
        if order["shipped"] and order["cancelled"]:
            return "both shipped and cancelled"
        if order["shipped"]:
            return "shipped"
        if order["cancelled"]:
            return f"cancelled: {order['reason']}"
        return "held" if _is_held(order) else "open"


class Inside(msgspec.Struct, frozen=True, kw_only=True):
    """What the services' stores hold."""

    orders: dict[str, dict[str, Any]]
    """By id, each with its ``history``: the time of each stage."""
    lines: list[dict[str, Any]]
    stock: list[dict[str, Any]]
    unfinished: dict[str, dict[str, int]]
    """Events that are not settled, by service and what they are."""


class Outside(msgspec.Struct, frozen=True, kw_only=True):
    """What the servers outside the shop hold."""

    ledger: dict[str, Any]
    mails: list[dict[str, Any]]
    texts: list[dict[str, Any]]


async def audit(project: Project, accepted: Iterable[str], guests: Path | None = None) -> Books:
    """Look at everything once.

    ``accepted``: the orders that were answered with 202; ``guests``: the folder of the guests'
    stores, if there are any.
    """
    inside = await look_inside(project, project.config.services)
    found = await look_outside(project)
    return balance(inside, found, accepted, read_ledger(guests) if guests else None)


async def look_inside(project: Project, services: Iterable[str]) -> Inside:
    """Read the stores of these services."""
    stores = {name: project.store(name) for name in services}
    for store in stores.values():
        await store.open()
    try:
        found = {row["order_id"]: row for row in await stores["orders"].fetch(_ORDERS, {})}
        history: dict[str, dict[str, str]] = defaultdict(dict)
        for row in await stores["orders"].fetch(_HISTORY, {}):
            history[row["order_id"]][row["stage"]] = row["at"]
        for order_id, order in found.items():
            order["history"] = history[order_id]
        lines = await stores["orders"].fetch("select order_id, sku, quantity from order_line", {})
        stock = await stores["inventory"].fetch("select * from stock", {})
        unfinished = {name: await _unfinished(store) for name, store in stores.items()}
    finally:
        for store in stores.values():
            await store.close()
    return Inside(orders=found, lines=list(lines), stock=list(stock), unfinished=unfinished)


async def look_outside(project: Project) -> Outside:
    """Ask the servers outside the shop."""
    async with httpx.AsyncClient(timeout=30.0) as client:
        provider, mailbox, sms = (outside(project, name) for name in ("provider", "mailbox", "sms"))
        return Outside(
            ledger=(await client.get(f"{provider}/ledger")).json(),
            mails=(await client.get(f"{mailbox}/messages.json")).json(),
            texts=(await client.get(f"{sms}/messages")).json(),
        )


def balance(
    inside: Inside, outside: Outside, accepted: Iterable[str], guests: Ledger | None = None
) -> Books:
    """Return what does not add up."""
    found, ledger = inside.orders, outside.ledger
    return Books(
        found,
        [
            *_check_orders(found, accepted),
            *_check_money(found, ledger),
            *_check_stock(found, inside.lines, inside.stock),
            *_check_notices(found, outside.mails, outside.texts),
            *_check_unfinished(inside.unfinished),
            *(_check_guests(found, ledger, guests) if guests else ()),
        ],
    )


def outside(project: Project, name: str) -> str:
    """Where one of the servers outside the shop listens."""
    run = project.config.companions[name].run
    return f"http://{run[run.index('--listen') + 1]}"


_ORDERS = """select order_id, total_cents, phone, reason,
 paid, reserved, flagged, approved, confirmed, shipped, cancelled from orders"""
_UNTOLD = ("reserved", "released", "voided", "flagged", "approved")
"""Stages of which no customer hears."""
_HISTORY = "select order_id, stage, at from order_history"


def _is_held(order: dict[str, Any]) -> bool:
    waits = order["flagged"] and order["paid"] and order["reserved"]
    return bool(waits and not (order["approved"] or order["confirmed"] or order["cancelled"]))


async def _unfinished(store: Any) -> dict[str, int]:
    sql = """select (select count(*) from oyez_outbox) as announced,
      (select count(*) from oyez_inbox where state > 0) as parked,
      (select count(*) from oyez_dead where state = 'dead') as dead"""
    counts: dict[str, int] = (await store.fetch(sql, {}))[0]
    return counts


def _check_orders(orders: dict[str, dict[str, Any]], accepted: Iterable[str]) -> list[str]:
    lost = [order_id for order_id in accepted if order_id not in orders]
    wrong = [
        order_id
        for order_id, order in orders.items()
        if order["shipped"] + order["cancelled"] + _is_held(order) != 1
    ]
    return [
        *_some("accepted orders are lost", lost),
        *_some("orders that are neither held nor in exactly one terminal status", wrong),
    ]


def _check_money(orders: dict[str, dict[str, Any]], ledger: dict[str, Any]) -> list[str]:
    due = {
        o: order["total_cents"]
        for o, order in orders.items()
        if order["shipped"] or _is_held(order)
    }
    kept: Counter[str] = Counter()
    captures: Counter[str] = Counter()
    for charge in ledger["charges"]:
        if charge["status"] == "captured":
            captures[charge["reference"]] += 1
            if not charge["refunded"]:
                kept[charge["reference"]] += charge["amount_cents"]
    balance = ledger["captured_cents"] - ledger["refunded_cents"]
    problems = [
        *_some("orders charged twice", [o for o, count in captures.items() if count > 1]),
        *_some("shipped or held orders that are not paid", [o for o in due if kept[o] != due[o]]),
        *_some("orders paid but neither shipped nor held", [o for o in kept if o not in due]),
    ]
    if balance != sum(due.values()):
        problems.append(
            f"the provider holds {balance} cents; shipped and held orders are {sum(due.values())}"
        )
    return problems


def _check_stock(
    orders: dict[str, dict[str, Any]], lines: list[Any], stock: list[Any]
) -> list[str]:
    sold: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for line in lines:
        order = orders.get(line["order_id"])
        if order is None:
            continue  # lost, which is a problem of its own
        if order["shipped"]:
            sold[line["sku"]] += line["quantity"]
        elif _is_held(order):
            kept[line["sku"]] += line["quantity"]
    problems = []
    for row in stock:
        sku = row["sku"]
        if row["free"] + row["reserved"] + row["shipped"] != row["initial"]:
            problems.append(f"stock of {sku} does not add up to {row['initial']}: {row}")
        if row["reserved"] != kept[sku]:
            problems.append(f"{row['reserved']} of {sku} are reserved, {kept[sku]} are held")
        if row["shipped"] != sold[sku]:
            problems.append(f"{row['shipped']} of {sku} left, {sold[sku]} were sold")
    return problems


def _check_notices(
    orders: dict[str, dict[str, Any]], mails: list[Any], texts: list[Any]
) -> list[str]:
    mailed: dict[str, list[str]] = defaultdict(list)
    for mail in mails:
        mailed[mail["order"]].append(mail["stage"])
    texted = Counter(text["text"].rpartition(" ")[2] for text in texts)
    wrong_mail, wrong_text = [], []
    for order_id, order in orders.items():
        stages = sorted(stage for stage in order["history"] if stage not in _UNTOLD)
        if sorted(mailed[order_id]) != stages:
            wrong_mail.append(f"{order_id} ({sorted(mailed[order_id])} for {stages})")
        if texted[order_id] != (len(stages) if order["phone"] else 0):
            wrong_text.append(f"{order_id} ({texted[order_id]} for {stages})")
    return [
        *_some("orders whose stages were not mailed once each", wrong_mail),
        *_some("orders whose stages were not texted once each", wrong_text),
    ]


def _check_unfinished(unfinished: dict[str, dict[str, int]]) -> list[str]:
    return [
        f"{name} has {count} events {what}"
        for name, counts in unfinished.items()
        for what, count in counts.items()
        if count
    ]


def _check_guests(
    orders: dict[str, dict[str, Any]], ledger: dict[str, Any], guests: Ledger
) -> list[str]:
    balance, points = ledger["captured_cents"] - ledger["refunded_cents"], guests.points
    paid: Counter[str] = Counter()
    for charge in ledger["charges"]:
        if charge["status"] == "captured" and not charge["refunded"]:
            paid[charge["reference"]] += charge["amount_cents"]
    early, untold = [], []
    for order_id, flagged in guests.flagged.items():
        order = orders.get(order_id)
        if order is None:
            continue  # placed after the orders were read
        if bool(order["flagged"]) != flagged:
            untold.append(order_id)
        history = order["history"]
        approved = history.get("approved", "~")  # "never" sorts after every time
        if flagged and "confirmed" in history and history["confirmed"] < approved:
            early.append(order_id)
    problems = [
        *_some("orders that nobody has looked at", [o for o in orders if o not in guests.flagged]),
        *_some("orders whose flag the shop does not know", untold),
        *_some("flagged orders that went on before a clerk approved them", early),
        *_some(
            "orders whose points are not what was paid",
            [o for o in orders if points.get(o, 0) != paid[o]],
        ),
        *_check_unfinished(guests.unfinished),
    ]
    if sum(points.values()) != balance:
        problems.append(f"there are {sum(points.values())} points; {balance} cents were kept")
    return problems


def _some(what: str, which: list[str]) -> list[str]:
    if not which:
        return []
    more = f" and {len(which) - SHOWN} more" if len(which) > SHOWN else ""
    return [f"{len(which)} {what}: {', '.join(which[:SHOWN])}{more}"]
