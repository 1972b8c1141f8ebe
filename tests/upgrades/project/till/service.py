"""Till charges; while there is a file ``provider-down``, every fifth order waits for its retry."""

from __future__ import annotations

import os
from pathlib import Path

from oyez import Command, Event, Retry, Service, Transaction

DOWN = Path(__file__).parents[1] / "provider-down"
BY = os.environ.get("RELEASE", "")


class Charge(Command, type="books.order.charge", key="order_id", to="till"):
    order_id: str
    cents: int


class Charged(Event, type="books.order.charged", key="order_id"):
    order_id: str
    cents: int


class ProviderDown(Exception):
    """The provider takes no charges now."""


service = Service("till", migrations="till/migrations")


@service.on(Charge, retry=Retry(attempts=10_000, first=0.2, longest=1.0))
def charge(event: Charge, tx: Transaction) -> Charged:
    """A second charge of an order would fail, and be a dead letter in the end."""
    if int(event.order_id) % 5 == 0 and DOWN.exists():
        raise ProviderDown
    tx.execute(
        "insert into charge values (:order_id, :cents, :by)",
        order_id=event.order_id,
        cents=event.cents,
        by=BY,
    )
    return Charged(order_id=event.order_id, cents=event.cents)
