"""Payments charges through a provider, outside any transaction: the call may take seconds.

The charge's idempotency key is the order's, so a call that is repeated after a time-out, a crash or
a redelivery moves no money twice, and a refund can name a charge whose answer never came.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

from oyez import Context, Retry, Service, Transaction
from payments.events import (
    OrderCancelled,
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
)
from payments.provider import (
    DEADLINE,
    URL,
    HttpPaymentProvider,
    PaymentProvider,
    ProviderUnavailable,
)

service = Service("payments", migrations="payments/migrations")

CHARGE = Retry(attempts=10, first=0.25, factor=2.0, longest=30.0)
"""Nine waits of together more than a minute and a half: a provider may be down that long."""
REFUND = Retry(attempts=200, first=0.5, factor=2.0, longest=60.0)
"""More than three hours: customers get their money back."""


@service.provides
async def payment_provider() -> AsyncIterator[PaymentProvider]:
    """The provider at ``SHOP_PROVIDER``."""
    async with httpx.AsyncClient(base_url=URL, timeout=DEADLINE) as client:
        yield HttpPaymentProvider(client)


@service.on(OrderPlaced, retry=CHARGE)
async def charge(
    event: OrderPlaced, context: Context, provider: PaymentProvider
) -> PaymentProcessed | PaymentFailed:
    """Capture the order's total; give up, with an answer, when the provider stays away."""
    try:
        captured = await provider.charge(
            _charge_key(event.order_id), event.order_id, event.card, event.total_cents
        )
    except ProviderUnavailable:
        if not context.last_attempt:
            raise
        # It may have captured all the same; the refund that follows the cancelled order settles
        # that, also for a charge that the provider only makes later.
        return PaymentFailed(order_id=event.order_id, reason="payment_unavailable")
    if not captured:
        return PaymentFailed(order_id=event.order_id, reason="card_declined")
    return PaymentProcessed(order_id=event.order_id, cents=event.total_cents)


@service.on(OrderCancelled, retry=REFUND)
async def refund(
    event: OrderCancelled, context: Context, provider: PaymentProvider
) -> PaymentRefunded | None:
    """Give back what was captured, if anything was."""
    if event.reason == "card_declined":
        return None
    refunded = await provider.refund(context.idempotency_key, _charge_key(event.order_id))
    return PaymentRefunded(order_id=event.order_id) if refunded else None


@service.on(PaymentProcessed)
def record_payment(event: PaymentProcessed, tx: Transaction) -> None:
    """Keep the ledger."""
    tx.execute(
        "insert into ledger (order_id, entry, cents) values (:order_id, 'captured', :cents)",
        order_id=event.order_id,
        cents=event.cents,
    )


@service.on(PaymentFailed)
def record_failure(event: PaymentFailed, tx: Transaction) -> None:
    """Keep the ledger."""
    tx.execute(
        "insert into ledger (order_id, entry, reason) values (:order_id, 'failed', :reason)",
        order_id=event.order_id,
        reason=event.reason,
    )


@service.on(PaymentRefunded)
def record_refund(event: PaymentRefunded, tx: Transaction) -> None:
    """Keep the ledger."""
    tx.execute(
        "insert into ledger (order_id, entry) values (:order_id, 'refunded')",
        order_id=event.order_id,
    )


def _charge_key(order_id: str) -> str:
    return f"charge-{order_id}"
