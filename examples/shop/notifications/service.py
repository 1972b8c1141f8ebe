"""Notifications decides in a transaction what is to be said, and says it outside of one.

A stage may be heard of before the order itself (they come on different streams): the notice then
waits until the customer's address is known. Sending is slow and may fail, so it is a reaction to an
event of our own, retried by itself; its key makes a repeat harmless.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

from notifications.events import (
    NoticeDue,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentProcessed,
    PaymentRefunded,
    ShipmentReady,
)
from notifications.senders import DEADLINE, SMS, HttpTexter, Mailer, SmtpMailer, Texter
from oyez import Context, Retry, Service, Transaction

service = Service("notifications", migrations="notifications/migrations")

SEND = Retry(attempts=100, first=0.5, factor=2.0, longest=60.0)
"""An hour and a half: a mail server may be away that long."""

_SUBJECTS = {
    "placed": "We have your order",
    "paid": "Your payment has arrived",
    "confirmed": "Your order is confirmed",
    "shipped": "Your parcel is on its way",
    "cancelled": "Your order is cancelled",
    "refunded": "Your money is on its way back",
}
_REASONS = {
    "card_declined": "your card was declined",
    "out_of_stock": "something in it is out of stock",
    "payment_unavailable": "we could not reach the payment provider",
}


@service.provides
def mailer() -> Mailer:
    """The SMTP server at ``SHOP_SMTP``."""
    return SmtpMailer()


@service.provides
async def texter() -> AsyncIterator[Texter]:
    """The SMS provider at ``SHOP_SMS``."""
    async with httpx.AsyncClient(base_url=SMS, timeout=DEADLINE) as client:
        yield HttpTexter(client)


@service.on(OrderPlaced)
async def placed(event: OrderPlaced, tx: Transaction) -> list[NoticeDue]:
    """Now the customer can be reached, also for what was heard before."""
    tx.execute(
        "insert into contact values (:order_id, :email, :phone)",
        order_id=event.order_id,
        email=event.email,
        phone=event.phone,
    )
    total = f"{event.total_cents / 100:.2f} EUR"
    return await _notify(tx, event.order_id, "placed", f"Thank you. The total is {total}.")


@service.on(PaymentProcessed)
async def paid(event: PaymentProcessed, tx: Transaction) -> list[NoticeDue]:
    """Tell of the payment."""
    return await _notify(tx, event.order_id, "paid", "Thank you for your payment.")


@service.on(OrderConfirmed)
async def confirmed(event: OrderConfirmed, tx: Transaction) -> list[NoticeDue]:
    """Tell of the confirmation."""
    return await _notify(tx, event.order_id, "confirmed", "It will be shipped soon.")


@service.on(ShipmentReady)
async def shipped(event: ShipmentReady, tx: Transaction) -> list[NoticeDue]:
    """Tell of the parcel."""
    text = f"Follow it with the number {event.tracking}."
    return await _notify(tx, event.order_id, "shipped", text)


@service.on(OrderCancelled)
async def cancelled(event: OrderCancelled, tx: Transaction) -> list[NoticeDue]:
    """Tell of the end, and why."""
    reason = _REASONS.get(event.reason, event.reason.replace("_", " "))
    return await _notify(tx, event.order_id, "cancelled", f"We are sorry: {reason}.")


@service.on(PaymentRefunded)
async def refunded(event: PaymentRefunded, tx: Transaction) -> list[NoticeDue]:
    """Tell of the refund."""
    return await _notify(tx, event.order_id, "refunded", "We have returned your payment.")


@service.on(NoticeDue, retry=SEND)
async def send_email(event: NoticeDue, context: Context, mailer: Mailer) -> None:
    """Send the e-mail."""
    await mailer.send(
        context.idempotency_key,
        event.email,
        _SUBJECTS[event.stage],
        f"{_SUBJECTS[event.stage]}.\n\n{event.text}\n\nOrder {event.order_id}\n",
        {"X-Order": event.order_id, "X-Stage": event.stage},
    )


@service.on(NoticeDue, retry=SEND, order="none")
async def send_sms(event: NoticeDue, context: Context, texter: Texter) -> None:
    """Send the SMS, to those who gave a number, whatever becomes of the e-mail."""
    if event.phone is not None:
        text = f"{_SUBJECTS[event.stage]}. {event.text} Order {event.order_id}"
        await texter.send(context.idempotency_key, event.phone, text)


async def _notify(tx: Transaction, order_id: str, stage: str, text: str) -> list[NoticeDue]:
    tx.execute(
        "insert into notice (order_id, stage, text) values (:order_id, :stage, :text)",
        order_id=order_id,
        stage=stage,
        text=text,
    )
    contact = await tx.fetch_one(
        "select email, phone from contact where order_id = :order_id", order_id=order_id
    )
    if contact is None:
        return []
    waiting = await tx.fetch(
        """update notice set announced = 1 where order_id = :order_id and announced = 0
          returning stage, text""",
        order_id=order_id,
    )
    return [
        NoticeDue(
            order_id=order_id,
            stage=row["stage"],
            email=contact["email"],
            phone=contact["phone"],
            text=row["text"],
        )
        for row in waiting
    ]
