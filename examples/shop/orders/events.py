"""The events that Orders announces, and those of others that it follows: its own view of them."""

from __future__ import annotations

import msgspec

from oyez import Command, Event


class Line(msgspec.Struct, frozen=True):
    """So many pieces of one article."""

    sku: str
    quantity: int


class OrderPlaced(Event, type="shop.order.placed", key="order_id"):
    """A customer has placed an order; nothing is charged or reserved yet."""

    order_id: str
    customer: str
    email: str
    phone: str | None
    card: str
    total_cents: int
    lines: list[Line]


class CancellationAsked(Event, type="shop.order.cancellation-asked", key="order_id"):
    """Somebody of the shop wants the order undone; who that is, its envelope says."""

    order_id: str


class OrderFlagged(Event, type="shop.order.flagged", key="order_id"):
    """A fraud check wants a person to look at the order; ``reason`` is a word."""

    order_id: str
    reason: str


class OrderCleared(Event, type="shop.order.cleared", key="order_id"):
    """A fraud check has nothing against the order."""

    order_id: str


class OrderApproved(Event, type="shop.order.approved", key="order_id"):
    """A person has looked at a flagged order, and it may be shipped."""

    order_id: str


class OrderConfirmed(Event, type="shop.order.confirmed", key="order_id"):
    """The order is paid and its goods are reserved."""

    order_id: str


class OrderCancelled(Event, type="shop.order.cancelled", key="order_id"):
    """The order will not be shipped; ``reason`` is a word such as ``card_declined``."""

    order_id: str
    reason: str


class Release(Command, type="shop.stock.release", key="order_id", to="inventory"):
    """Let go of what is reserved for the order."""

    order_id: str


class Refund(Command, type="shop.payment.refund", key="order_id", to="payments"):
    """Give back what was captured for the order."""

    order_id: str


class PaymentProcessed(Event, type="shop.payment.processed", key="order_id"):
    """The money was captured."""

    order_id: str


class PaymentFailed(Event, type="shop.payment.failed", key="order_id"):
    """The money could not be captured."""

    order_id: str
    reason: str


class PaymentUnavailable(Event, type="shop.payment.unavailable", key="order_id"):
    """The provider did not answer: whether the money was captured is not known."""

    order_id: str


class PaymentRefunded(Event, type="shop.payment.refunded", key="order_id"):
    """Captured money went back."""

    order_id: str


class PaymentVoided(Event, type="shop.payment.voided", key="order_id"):
    """Nothing was captured, and nothing will be."""

    order_id: str


class StockReserved(Event, type="shop.stock.reserved", key="order_id"):
    """Every line of the order is reserved."""

    order_id: str


class StockReleased(Event, type="shop.stock.released", key="order_id"):
    """Nothing is reserved for the order, and nothing will be."""

    order_id: str


class StockRejected(Event, type="shop.stock.rejected", key="order_id"):
    """At least one line of the order is not in stock."""

    order_id: str


class ShipmentReady(Event, type="shop.shipment.ready", key="order_id"):
    """The parcel has left."""

    order_id: str
