"""The shop under `oyez simulate`: some orders, whatever goes wrong, and the books at rest."""

from __future__ import annotations

from collections import Counter

import httpx

import demo
from notifications.senders import Mailer, Texter
from oyez import Principal
from oyez.simulation import Sim, outside
from payments.provider import PaymentProvider, ProviderUnavailable

CUSTOMER = Principal(kind="user", issuer="login", subject="ann")
UNTOLD = ("reserved", "released", "voided")
"""Stages of which no customer hears."""


class FakeProvider:
    """A payment provider that moves no money twice for one key."""

    def __init__(self) -> None:
        self.captured: dict[str, int] = {}
        self.refused: set[str] = set()
        self.refunded: set[str] = set()

    async def charge(self, key: str, order_id: str, token: str, cents: int) -> bool:
        """See `PaymentProvider.charge`."""
        if token == "tok_declined" or key in self.refused:  # noqa: S105 - no secret
            return False
        self.captured[key] = cents
        return True

    async def refund(self, key: str, charge_key: str) -> bool:
        """See `PaymentProvider.refund`."""
        self.refused.add(charge_key)
        if charge_key not in self.captured:
            return False
        self.refunded.add(charge_key)
        return True

    @property
    def balance(self) -> int:
        """The cents that were captured and not given back."""
        return sum(cents for key, cents in self.captured.items() if key not in self.refunded)


class FakePost:
    """Delivers each key once."""

    def __init__(self) -> None:
        self.sent: dict[str, tuple[object, ...]] = {}

    async def send(self, key: str, *message: object) -> None:
        """See `Mailer.send` and `Texter.send`."""
        self.sent.setdefault(key, message)


provide = {
    PaymentProvider: outside(FakeProvider, raises=ProviderUnavailable),
    Mailer: outside(FakePost),
    Texter: outside(FakePost),
}


async def scenario(sim: Sim) -> None:
    """Place three orders and perhaps withdraw one; then everything has to balance."""
    accepted: list[str] = []

    @sim.at_rest
    async def books() -> None:
        orders = await sim.fetch("orders", "select * from orders")
        found = {row["order_id"] for row in orders}
        assert set(accepted) <= found, "an accepted order is lost"
        for row in orders:
            assert row["shipped"] + row["cancelled"] == 1, f"order without an end: {row}"
        sold = sum(row["total_cents"] for row in orders if row["shipped"])
        balance = sim.outside(PaymentProvider).balance
        assert balance == sold, f"the provider holds {balance}, and {sold} were sold"

    @sim.at_rest
    async def stock() -> None:
        for row in await sim.fetch("inventory", "select * from stock"):
            assert row["free"] + row["reserved"] + row["shipped"] == row["initial"], row
            assert row["reserved"] == 0, row

    @sim.at_rest
    async def notices() -> None:
        told = Counter(
            (message[-1]["X-Order"], message[-1]["X-Stage"])
            for message in sim.outside(Mailer).sent.values()
        )
        rows = await sim.fetch("orders", "select order_id, stage from order_history")
        due = Counter((row["order_id"], row["stage"]) for row in rows if row["stage"] not in UNTOLD)
        assert told == due, f"told {told - due} too much, {due - told} too little"

    @sim.sometimes("an order is shipped")
    async def shipped() -> bool:
        return bool(await sim.fetch("orders", "select 1 from orders where shipped"))

    @sim.sometimes("an order is cancelled")
    async def cancelled() -> bool:
        return bool(await sim.fetch("orders", "select 1 from orders where cancelled"))

    @sim.sometimes("money is given back")
    async def refunded() -> bool:
        return bool(sim.outside(PaymentProvider).refunded)

    clerk = Principal(kind="user", issuer="login", subject="bob", roles=frozenset({"clerk"}))
    async with sim.http("orders", CUSTOMER) as client, sim.http("orders", clerk) as desk:
        for number in range(3):
            order = demo.make_order(sim.random, number)
            try:
                answer = await client.post("/orders", json=order)
            except httpx.TransportError:
                continue  # nobody knows whether it was placed
            if answer.status_code == 202:
                accepted.append(answer.json()["order_id"])
            await sim.sleep(sim.random.random() * 5)
            if accepted and sim.random.random() < 0.2:
                try:
                    await desk.post(f"/clerk/orders/{accepted[-1]}/cancel")
                except httpx.TransportError:
                    continue
