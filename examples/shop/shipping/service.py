"""Shipping sends a parcel that is prepared, paid for and in stock, in whatever order it hears so.

The three facts come from three services on three streams, so each may be the first or the last.
"""

from __future__ import annotations

from oyez import Service, State
from shipping.events import (
    OrderCancelled,
    OrderPlaced,
    PaymentProcessed,
    ShipmentReady,
    StockReserved,
)

service = Service("shipping")


class Parcel(State, key="order_id"):
    """What is known of the parcel of an order."""

    prepared: bool = False
    paid: bool = False
    reserved: bool = False
    cancelled: bool = False
    sent: bool = False

    def send(self) -> ShipmentReady | None:
        """Send it, once, if nothing is missing."""
        ready = self.prepared and self.paid and self.reserved
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


@service.on(StockReserved)
async def reserved(event: StockReserved, parcel: Parcel) -> ShipmentReady | None:
    """The goods are there."""
    parcel.reserved = True
    return parcel.send()


@service.on(OrderCancelled)
async def cancel(event: OrderCancelled, parcel: Parcel) -> None:
    """Unpack the parcel."""
    parcel.cancelled = True
