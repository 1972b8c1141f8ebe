"""Shipping sends a parcel that is prepared, paid for and in stock, in whatever order it hears so.

The three facts come from three services on three streams, so each may be the first or the last.
"""

from __future__ import annotations

from oyez import Service, Transaction
from shipping.events import (
    OrderCancelled,
    OrderPlaced,
    PaymentProcessed,
    ShipmentReady,
    StockReserved,
)

service = Service("shipping", migrations="shipping/migrations")


@service.on(OrderPlaced)
async def prepare(event: OrderPlaced, tx: Transaction) -> ShipmentReady | None:
    """Pack the parcel."""
    tx.execute(
        """insert into parcel (order_id, prepared) values (:order_id, 1)
          on conflict (order_id) do update set prepared = 1""",
        order_id=event.order_id,
    )
    return await _send(tx, event.order_id)


@service.on(PaymentProcessed)
async def paid(event: PaymentProcessed, tx: Transaction) -> ShipmentReady | None:
    """The parcel is paid for."""
    tx.execute(
        """insert into parcel (order_id, paid) values (:order_id, 1)
          on conflict (order_id) do update set paid = 1""",
        order_id=event.order_id,
    )
    return await _send(tx, event.order_id)


@service.on(StockReserved)
async def reserved(event: StockReserved, tx: Transaction) -> ShipmentReady | None:
    """The goods are there."""
    tx.execute(
        """insert into parcel (order_id, reserved) values (:order_id, 1)
          on conflict (order_id) do update set reserved = 1""",
        order_id=event.order_id,
    )
    return await _send(tx, event.order_id)


@service.on(OrderCancelled)
async def cancel(event: OrderCancelled, tx: Transaction) -> None:
    """Unpack the parcel."""
    tx.execute(
        """insert into parcel (order_id, cancelled) values (:order_id, 1)
          on conflict (order_id) do update set cancelled = 1""",
        order_id=event.order_id,
    )


async def _send(tx: Transaction, order_id: str) -> ShipmentReady | None:
    ready = await tx.fetch(
        """update parcel set sent = 1 where order_id = :order_id and prepared = 1 and paid = 1
          and reserved = 1 and cancelled = 0 and sent = 0 returning order_id""",
        order_id=order_id,
    )
    if not ready:
        return None
    return ShipmentReady(order_id=order_id, tracking=f"OY{order_id[-12:].upper()}")
