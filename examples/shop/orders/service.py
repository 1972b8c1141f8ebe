"""Orders follows each order from placed to shipped or cancelled, and says so once.

Payment, stock and shipment are announced by other services on streams of their own, so they arrive
in any order; what they add up to is decided here, from the flags of the order's row.
"""

from __future__ import annotations

from orders.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    PaymentVoided,
    ShipmentReady,
    StockRejected,
    StockReserved,
)
from orders.http import app
from oyez import Context, Service, Transaction

service = Service("orders", http=app, migrations="orders/migrations", publishes=(OrderPlaced,))
app.state.service = service

_HISTORY = """insert into order_history (order_id, stage, at) values (:order_id, :stage, :at)
 on conflict (order_id, stage) do nothing"""


@service.on(PaymentProcessed)
async def paid(event: PaymentProcessed, tx: Transaction, context: Context) -> OrderConfirmed | None:
    """The money is there; with the goods reserved, that confirms the order."""
    tx.execute("update orders set paid = 1 where order_id = :order_id", order_id=event.order_id)
    _remember(tx, event.order_id, "paid", context)
    return await _confirm(tx, event.order_id)


@service.on(StockReserved)
async def reserved(
    event: StockReserved, tx: Transaction, context: Context
) -> OrderConfirmed | None:
    """The goods are there; with the money captured, that confirms the order."""
    tx.execute("update orders set reserved = 1 where order_id = :order_id", order_id=event.order_id)
    _remember(tx, event.order_id, "reserved", context)
    return await _confirm(tx, event.order_id)


@service.on(PaymentFailed)
async def payment_failed(event: PaymentFailed, tx: Transaction) -> OrderCancelled | None:
    """Without money there is no order."""
    return await _cancel(tx, event.order_id, event.reason)


@service.on(StockRejected)
async def stock_rejected(event: StockRejected, tx: Transaction) -> OrderCancelled | None:
    """Without goods there is no order."""
    return await _cancel(tx, event.order_id, "out_of_stock")


@service.on(ShipmentReady)
async def shipped(event: ShipmentReady, tx: Transaction, context: Context) -> None:
    """The parcel has left."""
    tx.execute("update orders set shipped = 1 where order_id = :order_id", order_id=event.order_id)
    _remember(tx, event.order_id, "shipped", context)


@service.on(PaymentRefunded)
async def refunded(event: PaymentRefunded, tx: Transaction, context: Context) -> None:
    """The money went back."""
    _remember(tx, event.order_id, "refunded", context)


@service.on(PaymentVoided)
async def voided(event: PaymentVoided, tx: Transaction, context: Context) -> None:
    """There was no money to give back."""
    _remember(tx, event.order_id, "voided", context)


async def _confirm(tx: Transaction, order_id: str) -> OrderConfirmed | None:
    confirmed = await tx.fetch(
        """update orders set confirmed = 1 where order_id = :order_id
          and paid = 1 and reserved = 1 and confirmed = 0 and cancelled = 0 returning order_id""",
        order_id=order_id,
    )
    if not confirmed:
        return None
    tx.execute(_HISTORY, order_id=order_id, stage="confirmed", at=tx.time)
    return OrderConfirmed(order_id=order_id)


async def _cancel(tx: Transaction, order_id: str, reason: str) -> OrderCancelled | None:
    cancelled = await tx.fetch(
        """update orders set cancelled = 1, reason = :reason where order_id = :order_id
          and cancelled = 0 returning order_id""",
        order_id=order_id,
        reason=reason,
    )
    if not cancelled:
        return None
    tx.execute(_HISTORY, order_id=order_id, stage="cancelled", at=tx.time)
    return OrderCancelled(order_id=order_id, reason=reason)


def _remember(tx: Transaction, order_id: str, stage: str, context: Context) -> None:
    tx.execute(_HISTORY, order_id=order_id, stage=stage, at=context.envelope.time or tx.time)
