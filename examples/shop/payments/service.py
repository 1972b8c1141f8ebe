"""Payments charges through a provider, outside any transaction: the call may take seconds.

The charge's idempotency key is the order's, so a call that is repeated after a time-out, a crash or
a redelivery moves no money twice, and a refund can name a charge whose answer never came. The
ledger's entry and the answer are of the commit that settles the event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from oyez import After, Context, Retry, Service
from oyez.http_client import Client
from payments.events import (
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    PaymentUnavailable,
    PaymentVoided,
    Refund,
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
    async with Client(base_url=URL, timeout=DEADLINE) as client:
        yield HttpPaymentProvider(client)


@service.on(OrderPlaced, retry=CHARGE)
async def charge(
    event: OrderPlaced, context: Context, provider: PaymentProvider, after: After
) -> PaymentProcessed | PaymentFailed | PaymentUnavailable:
    """Capture the order's total; give up, with an answer, when the provider stays away."""
    try:
        captured = await provider.charge(
            _charge_key(event.order_id), event.order_id, event.card, event.total_cents
        )
    except ProviderUnavailable:
        if not context.last_attempt:
            raise
        # It may have captured all the same; the refund that Orders asks for settles that, also for
        # a charge that the provider only makes later.
        _enter(after, event.order_id, "failed", reason="payment_unavailable")
        return PaymentUnavailable(order_id=event.order_id)
    if not captured:
        _enter(after, event.order_id, "failed", reason="card_declined")
        return PaymentFailed(order_id=event.order_id, reason="card_declined")
    _enter(after, event.order_id, "captured", cents=event.total_cents)
    return PaymentProcessed(order_id=event.order_id, cents=event.total_cents)


@service.on(Refund, retry=REFUND)
async def refund(
    event: Refund, context: Context, provider: PaymentProvider, after: After
) -> PaymentRefunded | PaymentVoided:
    """Give back what was captured; say so in any case, as others wait for it."""
    if not await provider.refund(context.idempotency_key, _charge_key(event.order_id)):
        return PaymentVoided(order_id=event.order_id)
    _enter(after, event.order_id, "refunded")
    return PaymentRefunded(order_id=event.order_id)


def _enter(
    after: After, order_id: str, entry: str, *, cents: int | None = None, reason: str | None = None
) -> None:
    after.execute(
        """insert into ledger (order_id, entry, cents, reason)
          values (:order_id, :entry, :cents, :reason)""",
        order_id=order_id,
        entry=entry,
        cents=cents,
        reason=reason,
    )


def _charge_key(order_id: str) -> str:
    return f"charge-{order_id}"
