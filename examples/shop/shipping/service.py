"""Shipping sends a parcel that is packed, paid for and confirmed, in whatever order it hears so.

The facts come from several services on streams of their own, so each may be the first or the last.
Until an order is confirmed it may still be undone, even if it is paid for.
"""

from __future__ import annotations

from oyez import Service, State
from shipping.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentProcessed,
    ShipmentReady,
)

service = Service("shipping")


class Parcel(State, key="order_id"):
    """What is known of the parcel of an order."""

    prepared: bool = False
    paid: bool = False
    confirmed: bool = False
    cancelled: bool = False
    sent: bool = False

    def send(self) -> ShipmentReady | None:
        """Send it, once, if nothing is missing."""
        ready = self.prepared and self.paid and self.confirmed
        if self.sent or self.cancelled or not ready:
            return None
        self.sent = True
        return ShipmentReady(order_id=self.key, tracking=f"OY{self.key[-12:].upper()}")


@service.on(OrderPlaced)
async def prepare(event: OrderPlaced, parcel: Parcel) -> ShipmentReady | None:
    """Pack the parcel."""
    parcel.prepared = True
    return parcel.send()


@service.on(PaymentProcessed)
async def paid(event: PaymentProcessed, parcel: Parcel) -> ShipmentReady | None:
    """The parcel is paid for."""
    parcel.paid = True
    return parcel.send()


@service.on(OrderConfirmed, allow={"E11": "the last of the three facts sends it"})
async def confirmed(event: OrderConfirmed, parcel: Parcel) -> ShipmentReady | None:
    """The goods are there, and the order will be kept."""
    parcel.confirmed = True
    return parcel.send()


@service.on(OrderCancelled)
async def cancel(event: OrderCancelled, parcel: Parcel) -> None:
    """Unpack the parcel."""
    parcel.cancelled = True
