"""Notifications tells the customer of every stage of an order, outside of any transaction.

Sending is slow and may fail; its key makes a repeat harmless. That a notice was sent is recorded by
the commit that settles its event. A stage may be heard of before the order itself, as they come on
different streams: sending then fails, and is tried again, until the customer's address is known.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from notifications.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentProcessed,
    PaymentRefunded,
    ShipmentReady,
)
from notifications.senders import DEADLINE, SMS, HttpTexter, Mailer, SmtpMailer, Texter
from oyez import After, Context, Retry, Service, State
from oyez.http_client import Client

service = Service("notifications", migrations="notifications/migrations")

SEND = Retry(attempts=100, first=0.5, factor=2.0, longest=60.0)
"""An hour and a half: a mail server may be away that long."""

_REASONS = {
    "card_declined": "your card was declined",
    "out_of_stock": "something in it is out of stock",
    "payment_unavailable": "we could not reach the payment provider",
    "withdrawn": "the shop had to cancel it",
}


STAGES = (
    OrderPlaced,
    PaymentProcessed,
    OrderConfirmed,
    ShipmentReady,
    OrderCancelled,
    PaymentRefunded,
)
Stage = (
    OrderPlaced
    | PaymentProcessed
    | OrderConfirmed
    | ShipmentReady
    | OrderCancelled
    | PaymentRefunded
)


class AddressUnknown(Exception):
    """Nothing has been heard of the order itself yet."""


class Contact(State, key="order_id"):
    """How to reach the customer of an order."""

    email: str = ""
    phone: str | None = None


class Notice(msgspec.Struct, frozen=True):
    """What is said of a stage."""

    stage: str
    subject: str
    text: str


@service.provides
def mailer() -> Mailer:
    """The SMTP server at ``SHOP_SMTP``."""
    return SmtpMailer()


@service.provides
async def texter() -> AsyncIterator[Texter]:
    """The SMS provider at ``SHOP_SMS``."""
    async with Client(base_url=SMS, timeout=DEADLINE) as client:
        yield HttpTexter(client)


@service.on(OrderPlaced)
async def remember(event: OrderPlaced, contact: Contact) -> None:
    """Keep how to reach the customer, for the stages to come."""
    contact.email, contact.phone = event.email, event.phone


@service.on(*STAGES, retry=SEND)
async def send_email(event: Stage, context: Context, mailer: Mailer, after: After) -> None:
    """Send the e-mail."""
    contact, notice = await _contact(event), _notice(event)
    await mailer.send(
        context.idempotency_key,
        contact.email,
        notice.subject,
        f"{notice.subject}.\n\n{notice.text}\n\nOrder {event.order_id}\n",
        {"X-Order": event.order_id, "X-Stage": notice.stage},
    )
    _record(after, event.order_id, notice.stage, "email")


@service.on(*STAGES, retry=SEND, order="none")
async def send_sms(event: Stage, context: Context, texter: Texter, after: After) -> None:
    """Send the SMS, to those who gave a number, whatever becomes of the e-mail."""
    contact, notice = await _contact(event), _notice(event)
    if contact.phone is not None:
        text = f"{notice.subject}. {notice.text} Order {event.order_id}"
        await texter.send(context.idempotency_key, contact.phone, text)
        _record(after, event.order_id, notice.stage, "sms")


async def _contact(event: Stage) -> Contact:
    if isinstance(event, OrderPlaced):
        return Contact(email=event.email, phone=event.phone)
    contact = await service.read(Contact, event.order_id)
    if contact is None:
        raise AddressUnknown(event.order_id)
    return contact


def _notice(event: Stage) -> Notice:
    match event:
        case OrderPlaced():
            total = f"{event.total_cents / 100:.2f} EUR"
            return Notice("placed", "We have your order", f"Thank you. The total is {total}.")
        case PaymentProcessed():
            return Notice("paid", "Your payment has arrived", "Thank you for your payment.")
        case OrderConfirmed():
            return Notice("confirmed", "Your order is confirmed", "It will be shipped soon.")
        case ShipmentReady():
            text = f"Follow it with the number {event.tracking}."
            return Notice("shipped", "Your parcel is on its way", text)
        case OrderCancelled():
            reason = _REASONS.get(event.reason, event.reason.replace("_", " "))
            return Notice("cancelled", "Your order is cancelled", f"We are sorry: {reason}.")
        case PaymentRefunded():
            text = "We have returned your payment."
            return Notice("refunded", "Your money is on its way back", text)


def _record(after: After, order_id: str, stage: str, channel: str) -> None:
    after.execute(
        "insert into notice values (:order_id, :stage, :channel, :sent_at)",
        order_id=order_id,
        stage=stage,
        channel=channel,
        sent_at=after.time,
    )
