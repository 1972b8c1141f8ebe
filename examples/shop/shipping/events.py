"""The events that Shipping announces, and those of others that it follows."""

from __future__ import annotations

from oyez import Event


class OrderPlaced(Event, type="shop.order.placed", key="order_id"):
    """A parcel can be prepared."""

    order_id: str


class PaymentProcessed(Event, type="shop.payment.processed", key="order_id"):
    """The parcel is paid for."""

    order_id: str


class OrderConfirmed(Event, type="shop.order.confirmed", key="order_id"):
    """The order will be kept."""

    order_id: str


class OrderCancelled(Event, type="shop.order.cancelled", key="order_id"):
    """The parcel will not be sent."""

    order_id: str


class ShipmentReady(Event, type="shop.shipment.ready", key="order_id"):
    """The parcel has left."""

    order_id: str
    tracking: str
