"""Ledger books each charge: a row for it, and a sum in keyed state that no charge enters twice."""

from __future__ import annotations

import os

from oyez import Event, Service, State, Transaction

BY = os.environ.get("RELEASE", "")


class Charged(Event, type="books.order.charged", key="order_id"):
    order_id: str
    cents: int


class Booked(Event, type="books.order.booked", key="order_id"):
    order_id: str


class Total(State, key="order_id"):
    cents: int = 0
    charges: int = 0


service = Service("ledger", migrations="ledger/migrations")


@service.on(Charged)
def book(event: Charged, total: Total, tx: Transaction) -> Booked:
    """An addition, so that an event handled twice shows."""
    total.cents += event.cents
    total.charges += 1
    tx.execute(
        "insert into entry values (:order_id, :cents, :by)",
        order_id=event.order_id,
        cents=event.cents,
        by=BY,
    )
    return Booked(order_id=event.order_id)
