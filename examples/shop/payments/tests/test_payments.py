"""Payments alone, against a provider that misbehaves."""

from __future__ import annotations

from oyez.testing import Running, System
from payments.events import (
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    PaymentUnavailable,
    PaymentVoided,
    Refund,
)
from payments.provider import PaymentProvider, ProviderUnavailable
from payments.service import CHARGE, service


class Provider:
    """Captures money, and loses its first ``silent`` answers after doing so."""

    def __init__(self, silent: int = 0, declines: bool = False) -> None:
        self.silent = silent
        self.declines = declines
        self.captured: dict[str, int] = {}
        self.calls: list[str] = []

    async def charge(self, key: str, order_id: str, token: str, cents: int) -> bool:
        self.calls.append(key)
        if not self.declines:
            self.captured[key] = cents
        if len(self.calls) <= self.silent:
            raise ProviderUnavailable("no answer")
        return not self.declines

    async def refund(self, key: str, charge_key: str) -> bool:
        return self.captured.pop(charge_key, None) is not None


PLACED = OrderPlaced(order_id="1", card="tok_ok", total_cents=900)


async def test_an_answer_that_is_lost_is_asked_for_again_under_the_same_key(
    running: Running,
) -> None:
    provider = Provider(silent=2)
    async with running(service, provide={PaymentProvider: provider}) as system:
        await system.publish(PLACED, service="orders")
        await system.settled()
        await system.advance(5.0)
        assert system.announced(PaymentProcessed) == [PaymentProcessed(order_id="1", cents=900)]
        assert len(provider.calls) == 3
        assert len(set(provider.calls)) == 1
        ledger = await system.fetch("payments", "select entry, cents from ledger")
        assert ledger == [{"entry": "captured", "cents": 900}]


async def test_a_declined_card_fails_and_is_never_refunded(running: Running) -> None:
    provider = Provider(declines=True)
    async with running(service, provide={PaymentProvider: provider}) as system:
        await system.publish(PLACED, service="orders")
        await system.settled()
        failed = PaymentFailed(order_id="1", reason="card_declined")
        assert system.announced(PaymentFailed) == [failed]
        assert await _ledger(system) == [("failed", "card_declined")]
        await system.publish(Refund(order_id="1"), service="orders")
        await system.settled()
        assert system.announced(PaymentRefunded) == []
        assert system.announced(PaymentVoided) == [PaymentVoided(order_id="1")]


async def test_an_order_that_was_never_charged_is_voided(running: Running) -> None:
    """A refund always answers: who waits for it would wait for ever."""
    async with running(service, provide={PaymentProvider: Provider()}) as system:
        await system.publish(Refund(order_id="1"), service="orders")
        await system.settled()
        assert system.announced(PaymentVoided) == [PaymentVoided(order_id="1")]
        assert system.announced(PaymentRefunded) == []
        assert await _ledger(system) == []


async def test_a_refund_comes_after_its_charge(running: Running) -> None:
    provider = Provider(silent=1)
    async with running(service, provide={PaymentProvider: provider}) as system:
        await system.publish(PLACED, service="orders")
        await system.publish(Refund(order_id="1"), service="orders")
        await system.settled()
        assert system.announced(PaymentRefunded) == []
        await system.advance(5.0)
        assert system.announced(PaymentProcessed) == [PaymentProcessed(order_id="1", cents=900)]
        assert system.announced(PaymentRefunded) == [PaymentRefunded(order_id="1")]
        assert await _ledger(system) == [("captured", None), ("refunded", None)]
        assert provider.captured == {}


async def test_a_provider_that_stays_silent_is_told_and_what_it_took_is_given_back(
    running: Running,
) -> None:
    provider = Provider(silent=CHARGE.attempts)
    async with running(service, provide={PaymentProvider: provider}) as system:
        await system.publish(PLACED, service="orders")
        await system.settled()
        await system.advance(300.0)
        unavailable = PaymentUnavailable(order_id="1")
        assert system.announced(PaymentUnavailable) == [unavailable]
        assert system.announced(PaymentFailed) == []
        await system.publish(Refund(order_id="1"), service="orders")
        await system.settled()
        assert provider.captured == {}


async def _ledger(system: System) -> list[tuple[str, str | None]]:
    rows = await system.fetch("payments", "select entry, reason from ledger order by entry")
    return [(row["entry"], row["reason"]) for row in rows]
