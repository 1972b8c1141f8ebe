"""Writes down every fact of the shop in the transaction that handles it, and takes poison.

Nothing in its table is unique: an event that is handled twice is there twice, and ``number``, the
rows of the source and the key before it, tells the order in which they were handled.
"""

from __future__ import annotations

import asyncio
import os
import resource

from orders.events import (
    CancellationAsked,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    PaymentUnavailable,
    PaymentVoided,
    ShipmentReady,
    StockRejected,
    StockReleased,
    StockReserved,
)
from oyez import Context, Event, Retry, Service, Transaction

service = Service("witness", migrations="witness/migrations")

ROOM = 64 * 1024 * 1024
"""Bytes that an event may take which wants all there are."""

Fact = (
    CancellationAsked
    | OrderCancelled
    | OrderConfirmed
    | OrderPlaced
    | PaymentFailed
    | PaymentProcessed
    | PaymentRefunded
    | PaymentUnavailable
    | PaymentVoided
    | ShipmentReady
    | StockRejected
    | StockReleased
    | StockReserved
)


class Poison(Event, type="torture.poison", key="key"):
    """An event that harms whoever handles it, in the way that ``how`` says."""

    key: str
    how: str


@service.on(*Fact.__args__)
async def write_down(event: Fact, tx: Transaction, context: Context) -> None:
    """One row, whatever is there already."""
    tx.execute(
        """insert into seen select :event_id, :source, :type, :subject,
          (select count(*) from seen where subject = :subject and source = :source)""",
        event_id=context.envelope.id,
        source=context.envelope.source,
        type=context.envelope.type,
        subject=event.order_id,
    )


@service.on(Poison, retry=Retry(attempts=3, first=0.05), timeout=1.0)
async def take(event: Poison) -> None:
    """Suffer."""
    match event.how:
        case "hang":
            await asyncio.sleep(3_600)
        case "exit":
            os._exit(3)
        case "exhaust":
            _exhaust()
    raise RuntimeError(f"poisoned: {event.how}")


def _exhaust() -> None:
    """Take memory until the kernel gives no more, as in a container with a limit."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, limits[1]))
    try:
        taken = []
        while True:
            taken.append(bytearray(ROOM // 8))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
