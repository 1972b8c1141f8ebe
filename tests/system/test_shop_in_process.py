"""The shop's five services in one process, on the memory broker, under a virtual clock."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import demo
import inventory.service
import notifications.service
import orders.service
import payments.service
import shipping.service
from notifications.senders import Mailer, Texter
from oyez import Principal
from oyez.envelope import Envelope
from oyez.testing import System, running
from payments.provider import PaymentProvider, ProviderUnavailable

SHOP = Path(demo.__file__).parent
SERVICES = tuple(
    module.service
    for module in (
        orders.service,
        inventory.service,
        payments.service,
        shipping.service,
        notifications.service,
    )
)


CUSTOMER = Principal(kind="user", issuer="login", subject="ann")


class Provider:
    """A payment provider in memory that fails now and then, the same way for the same seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.captured: dict[str, int] = {}
        self.declined: set[str] = set()
        self.refunded: set[str] = set()
        self.down = False

    async def charge(self, key: str, order_id: str, token: str, cents: int) -> bool:
        if self.down or self._chance.random() < 0.2:
            raise ProviderUnavailable("the provider is having a moment")
        if token == "tok_declined" or key in self.declined:
            return False
        self.captured[key] = cents
        return True

    async def refund(self, key: str, charge_key: str) -> bool:
        if self.down:
            raise ProviderUnavailable("down")
        self.declined.add(charge_key)
        if charge_key not in self.captured:
            return False
        self.refunded.add(charge_key)
        return True


class Post:
    """Takes e-mails and SMS; each key once."""

    def __init__(self) -> None:
        self.sent: dict[str, tuple[object, ...]] = {}

    async def send(self, key: str, *message: object) -> None:
        self.sent[key] = message


def surroundings(provider: Provider, post: Post) -> dict[type, object]:
    return {PaymentProvider: provider, Mailer: post, Texter: post}


async def buy(system: System, count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    accepted = []
    async with system.http("orders", CUSTOMER) as client:
        for number in range(count):
            answer = await client.post("/orders", json=demo.make_order(chance, number))
            assert answer.status_code == 202, answer.text
            accepted.append(answer.json()["order_id"])
    return accepted


async def trade(seed: int) -> list[Envelope]:
    provider, post = Provider(seed), Post()
    given = surroundings(provider, post)
    async with running(*SERVICES, system="shop", root=SHOP, provide=given, seed=seed) as system:
        await buy(system, 40, seed)
        await system.settled()
        await system.advance(120.0)
        rows = await system.fetch("orders", "select shipped + cancelled as ended from orders")
        assert [row["ended"] for row in rows] == [1] * 40
        return system.history()


async def test_one_seed_gives_one_history() -> None:
    first, second, other = await trade(7), await trade(7), await trade(8)
    assert len(first) >= 40 * 4  # placed, stock, payment, end
    assert first == second
    assert first != other


@pytest.mark.parametrize("card", ["tok_ok", "tok_declined"])
async def test_a_provider_that_is_down_for_a_minute_delays_but_settles(card: str) -> None:
    provider, post = Provider(0), Post()
    given = surroundings(provider, post)
    order = {"lines": [{"sku": "bell", "quantity": 1}], "email": "a@example.org", "card": card}
    async with running(*SERVICES, system="shop", root=SHOP, provide=given) as system:
        provider.down = True
        async with system.http("orders", CUSTOMER) as client:
            order_id = (await client.post("/orders", json=order)).json()["order_id"]
            await system.settled()
            await system.advance(60.0)
            assert (await client.get(f"/orders/{order_id}")).json()["status"] == "reserved"
            provider.down = False
            await system.advance(60.0)
            ended = (await client.get(f"/orders/{order_id}")).json()
        # Whoever announces it, and after however many attempts: it all began with one person.
        history = system.history()
        last = "shop.shipment.ready" if card == "tok_ok" else "shop.payment.failed"
        assert last in [each.type for each in history]
        assert {(each.authtype, each.authid) for each in history} == {("app_user", "login:ann")}
    assert ended["status"] == ("shipped" if card == "tok_ok" else "cancelled")


async def test_a_provider_that_stays_away_cancels_the_order_and_frees_the_stock() -> None:
    provider, post = Provider(0), Post()
    given = surroundings(provider, post)
    order = {"lines": [{"sku": "cloak", "quantity": 5}], "email": "a@example.org", "card": "tok_ok"}
    async with running(*SERVICES, system="shop", root=SHOP, provide=given) as system:
        provider.down = True
        async with system.http("orders", CUSTOMER) as client:
            order_id = (await client.post("/orders", json=order)).json()["order_id"]
            await system.settled()
            await system.advance(600.0)
            stock = await system.fetch("inventory", "select free from stock where sku = 'cloak'")
            assert stock == [{"free": 25}]
            (saga,) = await system.fetch("orders", "select status, step from oyez_saga")
            assert saga == {"status": "undoing", "step": "charge"}
            provider.down = False
            await system.advance(600.0)
            ended = (await client.get(f"/orders/{order_id}")).json()
        assert (ended["status"], ended["reason"]) == ("cancelled", "payment_unavailable")
        assert await system.dead("payments") == []
        stages = sorted(message[3]["X-Stage"] for message in post.sent.values() if len(message) > 2)
        assert stages == ["cancelled", "placed"]
