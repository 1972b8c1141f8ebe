"""Notifications alone: each stage once, also heard of before the order, also after failures."""

from __future__ import annotations

from notifications.events import OrderPlaced, PaymentProcessed, ShipmentReady
from notifications.senders import Mailer, Texter
from notifications.service import service
from oyez.testing import Running

PLACED = OrderPlaced(order_id="1", email="a@example.org", phone="+31612345678", total_cents=900)


class Post:
    """Takes what is sent; fails ``failures`` times after taking it."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.calls = 0
        self.sent: dict[str, tuple[object, ...]] = {}

    async def send(self, key: str, *message: object) -> None:
        self.calls += 1
        self.sent[key] = message
        if self.calls <= self.failures:
            raise ConnectionError("no answer")


async def test_every_stage_is_told_once_by_mail_and_sms(running: Running) -> None:
    mails, texts = Post(), Post()
    async with running(service, provide={Mailer: mails, Texter: texts}) as system:
        await system.publish(PLACED, service="orders")
        await system.publish(PaymentProcessed(order_id="1"), service="payments")
        await system.settled()
        subjects = {message[1] for message in mails.sent.values()}
        assert subjects == {"We have your order", "Your payment has arrived"}
        assert len(texts.sent) == mails.calls == texts.calls == 2
        notices = await system.fetch("notifications", "select stage, channel from notice")
        assert {(notice["stage"], notice["channel"]) for notice in notices} == {
            ("placed", "email"), ("placed", "sms"), ("paid", "email"), ("paid", "sms")
        }  # fmt: skip


async def test_a_stage_heard_of_before_the_order_waits_for_the_address(running: Running) -> None:
    mails, texts = Post(), Post()
    async with running(service, provide={Mailer: mails, Texter: texts}) as system:
        await system.publish(ShipmentReady(order_id="1", tracking="OY1"), service="shipping")
        await system.settled()
        assert mails.sent == {}
        await system.publish(PLACED, service="orders")
        await system.settled()
        await system.advance(1.0)
        assert len(mails.sent) == len(texts.sent) == mails.calls == texts.calls == 2


async def test_a_mail_whose_answer_is_lost_is_sent_again_under_the_same_key(
    running: Running,
) -> None:
    mails, texts = Post(failures=3), Post()
    async with running(service, provide={Mailer: mails, Texter: texts}) as system:
        await system.publish(PLACED, service="orders")
        await system.settled()
        await system.advance(60.0)
        assert (mails.calls, len(mails.sent)) == (4, 1)
        notices = await system.fetch("notifications", "select channel from notice")
        assert sorted(notice["channel"] for notice in notices) == ["email", "sms"]


async def test_who_gave_no_number_gets_no_sms(running: Running) -> None:
    mails, texts = Post(), Post()
    placed = OrderPlaced(order_id="1", email="a@example.org", phone=None, total_cents=900)
    async with running(service, provide={Mailer: mails, Texter: texts}) as system:
        await system.publish(placed, service="orders")
        await system.settled()
        assert (len(mails.sent), texts.calls) == (1, 0)
