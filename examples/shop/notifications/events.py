"""The events of others that Notifications follows; it announces none."""

from __future__ import annotations

from oyez import Event


class OrderPlaced(Event, type="shop.order.placed", key="order_id"):
    """Says how to reach the customer."""

    order_id: str
    email: str
    phone: str | None
    total_cents: int


class PaymentProcessed(Event, type="shop.payment.processed", key="order_id"):
    """The money was captured."""

    order_id: str


class PaymentRefunded(Event, type="shop.payment.refunded", key="order_id"):
    """Captured money went back."""

    order_id: str


class OrderConfirmed(Event, type="shop.order.confirmed", key="order_id"):
    """The order is paid and its goods are reserved."""

    order_id: str


class OrderCancelled(Event, type="shop.order.cancelled", key="order_id"):
    """The order will not be shipped."""

    order_id: str
    reason: str


class ShipmentReady(Event, type="shop.shipment.ready", key="order_id"):
    """The parcel has left."""

    order_id: str
    tracking: str
