"""The events that Payments announces, and those of others that it follows."""

from __future__ import annotations

from oyez import Event


class OrderPlaced(Event, type="shop.order.placed", key="order_id"):
    """Money is to be captured."""

    order_id: str
    card: str
    total_cents: int


class OrderCancelled(Event, type="shop.order.cancelled", key="order_id"):
    """What was captured is to go back."""

    order_id: str
    reason: str


class PaymentProcessed(Event, type="shop.payment.processed", key="order_id"):
    """The money was captured."""

    order_id: str
    cents: int


class PaymentFailed(Event, type="shop.payment.failed", key="order_id"):
    """The money could not be captured: ``card_declined`` or ``payment_unavailable``."""

    order_id: str
    reason: str


class PaymentRefunded(Event, type="shop.payment.refunded", key="order_id"):
    """Captured money went back."""

    order_id: str


class PaymentVoided(Event, type="shop.payment.voided", key="order_id"):
    """Nothing was captured, and nothing will be: there is nothing to give back."""

    order_id: str
