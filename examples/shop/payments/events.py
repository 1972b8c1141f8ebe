"""The events that Payments announces, and those of others that it follows."""

from __future__ import annotations

from oyez import Command, Event


class OrderPlaced(Event, type="shop.order.placed", key="order_id"):
    """Money is to be captured."""

    order_id: str
    card: str
    total_cents: int


class Refund(Command, type="shop.payment.refund", key="order_id", to="payments"):
    """What was captured is to go back."""

    order_id: str


class PaymentProcessed(Event, type="shop.payment.processed", key="order_id"):
    """The money was captured."""

    order_id: str
    cents: int


class PaymentFailed(Event, type="shop.payment.failed", key="order_id"):
    """The money was not captured, for a ``reason`` such as ``card_declined``."""

    order_id: str
    reason: str


class PaymentUnavailable(Event, type="shop.payment.unavailable", key="order_id"):
    """The provider did not answer: whether the money was captured is not known."""

    order_id: str


class PaymentRefunded(Event, type="shop.payment.refunded", key="order_id"):
    """Captured money went back."""

    order_id: str


class PaymentVoided(Event, type="shop.payment.voided", key="order_id"):
    """Nothing was captured, and nothing will be: there is nothing to give back."""

    order_id: str
