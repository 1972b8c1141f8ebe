"""Orders alone: in whatever order the news of others arrive, it ends once and says so once."""

from __future__ import annotations

import asyncio
import json
import runpy
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import orders
from orders.events import (
    CancellationAsked,
    OrderApproved,
    OrderCancelled,
    OrderCleared,
    OrderConfirmed,
    OrderFlagged,
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    PaymentUnavailable,
    PaymentVoided,
    Refund,
    Release,
    ShipmentReady,
    StockRejected,
    StockReleased,
    StockReserved,
)
from orders.http import app
from orders.service import Fulfilment, service
from oyez import Principal, Saga
from oyez.testing import Running, System
from oyez.testing.sagas import given

ORDER = {
    "lines": [{"sku": "bell", "quantity": 2}],
    "email": "a@example.org",
    "phone": "+31612345678",
    "card": "tok_ok",
}


ANN = Principal(kind="session", issuer="session", subject="ann")
BOB = Principal(kind="user", issuer="login", subject="bob")
CLERK = Principal(kind="user", issuer="login", subject="carol", roles=frozenset({"clerk"}))


async def place(system: System, principal: Principal = ANN) -> str:
    async with system.http("orders", principal) as client:
        answer = await client.post("/orders", json=ORDER)
    assert answer.status_code == 202
    order_id: str = answer.json()["order_id"]
    assert answer.headers["location"] == f"/orders/{order_id}"
    return order_id


def placed(order_id: str) -> OrderPlaced:
    return OrderPlaced(
        order_id=order_id,
        customer=ANN.name,
        email="a@example.org",
        phone=None,
        card="tok_ok",
        total_cents=1,
        lines=[],
    )


async def status(system: System, order_id: str) -> str:
    async with system.http("orders", ANN) as client:
        found: str = (await client.get(f"/orders/{order_id}")).json()["status"]
    return found


async def test_a_customer_sees_the_own_orders(running: Running) -> None:
    """Also the one that was placed a moment ago, and nobody else's."""
    async with running(service) as system, system.http("orders", ANN) as client:
        order_id = await place(system)
        others = await place(system, BOB)
        assert (await client.get(f"/orders/{others}")).status_code == 404
        again = await client.post("/orders", json=ORDER)
        headers = {"oyez-after": again.headers["oyez-after"]}
        listed = (await client.get("/orders", headers=headers)).json()
        newest = again.json()["order_id"]
        assert [each["order_id"] for each in listed["orders"]] == [newest, order_id]
        assert listed["complete"]
        for cls in (PaymentProcessed, StockReserved, ShipmentReady):
            await system.publish(cls(order_id=order_id))
        await system.settled()
        rows = (await client.get("/orders", headers=headers)).json()["orders"]
        assert [(each["status"], each["total_cents"]) for each in rows] == [
            ("placed", 10_800),
            ("shipped", 10_800),
        ]
        assert (await client.get("/orders", headers={"oyez-after": "?"})).status_code == 422


async def test_nobody_in_particular_has_no_orders(running: Running) -> None:
    async with running(service) as system, system.http("orders") as client:
        assert (await client.post("/orders", json=ORDER)).status_code == 401
        assert (await client.get("/orders")).status_code == 401
        await system.settled()
        assert system.history() == []


async def test_a_placed_order_is_announced_with_its_total(running: Running) -> None:
    async with running(service) as system:
        order_id = await place(system)
        await system.settled()
        (placed,) = system.announced(OrderPlaced)
        assert (placed.order_id, placed.total_cents) == (order_id, 10_800)
        assert await status(system, order_id) == "placed"


@pytest.mark.parametrize("order", list(permutations([PaymentProcessed, StockReserved])))
async def test_payment_and_stock_confirm_it_once(
    running: Running, order: tuple[type, type]
) -> None:
    async with running(service) as system:
        order_id = await place(system)
        for number, cls in enumerate((*order, *order)):
            await system.publish(cls(order_id=order_id), service=f"other-{number}")
            await system.settled()
        assert system.announced(OrderConfirmed) == [OrderConfirmed(order_id=order_id)]
        await system.publish(ShipmentReady(order_id=order_id), service="shipping")
        await system.settled()
        assert await status(system, order_id) == "shipped"


@pytest.mark.parametrize("reserved", [True, False])
async def test_a_declined_card_frees_the_goods_and_cancels_it_once(
    running: Running, reserved: bool
) -> None:
    """Also where Inventory has not answered yet, and where it rejects the order later."""
    async with running(service) as system:
        order_id = await place(system)
        await system.settled()
        if reserved:
            await system.publish(StockReserved(order_id=order_id), service="inventory")
            await system.settled()
        failed = PaymentFailed(order_id=order_id, reason="card_declined")
        await system.publish(failed, service="payments")
        await system.settled()
        assert system.announced(Release) == [Release(order_id=order_id)]
        assert system.announced(OrderCancelled) == system.announced(Refund) == []
        if not reserved:
            await system.publish(StockRejected(order_id=order_id), service="inventory")
        await system.publish(StockReleased(order_id=order_id), service="inventory")
        await system.settled()
        assert system.announced(OrderCancelled) == [
            OrderCancelled(order_id=order_id, reason="card_declined")
        ]
        assert await status(system, order_id) == "cancelled"


@pytest.mark.parametrize("answer", [PaymentRefunded, PaymentVoided])
async def test_goods_that_are_out_of_stock_cost_nothing(
    running: Running, answer: type[PaymentRefunded | PaymentVoided]
) -> None:
    async with running(service) as system:
        order_id = await place(system)
        await system.settled()
        await system.publish(StockRejected(order_id=order_id), service="inventory")
        await system.settled()
        assert system.announced(Refund) == [Refund(order_id=order_id)]
        assert system.announced(Release) == []
        await system.publish(answer(order_id=order_id), service="payments")
        await system.settled()
        assert system.announced(OrderCancelled) == [
            OrderCancelled(order_id=order_id, reason="out_of_stock")
        ]


def test_a_rejection_that_comes_before_the_order_costs_nothing_either() -> None:
    """Payments is at work all the same, though Orders has not counted on it yet."""
    order = given(Fulfilment).when(StockRejected(order_id="1"), placed("1"))
    order.then(asks=[Refund], says=[], status="undoing")
    order.when(PaymentProcessed(order_id="1"), PaymentRefunded(order_id="1"))
    order.then(says=[OrderCancelled], ends="cancelled")


async def test_no_answer_within_a_quarter_of_an_hour_undoes_it(running: Running) -> None:
    """Both outcomes are unknown, so both are undone, the last one first."""
    async with running(service) as system:
        order_id = await place(system)
        await system.settled()
        await system.advance(16 * 60.0)
        assert system.announced(Release) == [Release(order_id=order_id)]
        assert system.announced(Refund) == []
        # Its timers are still those of who placed it.
        own = [each for each in system.history() if each.source == "/shop/orders"]
        assert {(each.authtype, each.authid) for each in own} == {("unauthenticated", ANN.name)}
        await system.publish(StockReleased(order_id=order_id), service="inventory")
        await system.settled()
        assert system.announced(Refund) == [Refund(order_id=order_id)]
        await system.publish(PaymentVoided(order_id=order_id), service="payments")
        await system.settled()
        assert await status(system, order_id) == "cancelled"


async def test_a_provider_out_of_reach_undoes_it(running: Running) -> None:
    async with running(service) as system:
        order_id = await place(system)
        await system.settled()
        for event, by in (
            (StockReserved(order_id=order_id), "inventory"),
            (PaymentUnavailable(order_id=order_id), "payments"),
            (StockReleased(order_id=order_id), "inventory"),
            (PaymentRefunded(order_id=order_id), "payments"),
        ):
            await system.publish(event, service=by)
            await system.settled()
        assert system.announced(OrderCancelled) == [
            OrderCancelled(order_id=order_id, reason="payment_unavailable")
        ]


async def ask_to_cancel(system: System, order_id: str) -> int:
    async with system.http("orders", CLERK) as client:
        answer = await client.post(f"/clerk/orders/{order_id}/cancel")
    return answer.status_code


async def test_a_clerk_has_an_order_undone(running: Running) -> None:
    """The goods first, then the money, then it is told; asking again changes nothing."""
    async with running(service) as system:
        order_id = await place(system)
        await system.settled()
        await system.publish(PaymentProcessed(order_id=order_id), service="payments")
        await system.settled()
        assert await ask_to_cancel(system, order_id) == 202
        assert await ask_to_cancel(system, order_id) == 202
        await system.settled()
        asked = CancellationAsked(order_id=order_id)
        assert system.announced(CancellationAsked) == [asked, asked]
        told = [each for each in system.history() if each.type == "shop.order.cancellation-asked"]
        assert {each.authid for each in told} == {CLERK.name}
        assert system.announced(Release) == [Release(order_id=order_id)]
        assert system.announced(Refund) == system.announced(OrderCancelled) == []
        await system.publish(StockReleased(order_id=order_id), service="inventory")
        await system.settled()
        assert system.announced(Refund) == [Refund(order_id=order_id)]
        await system.publish(PaymentRefunded(order_id=order_id), service="payments")
        await system.settled()
        assert system.announced(OrderCancelled) == [
            OrderCancelled(order_id=order_id, reason="withdrawn")
        ]
        assert await status(system, order_id) == "cancelled"
        assert await ask_to_cancel(system, order_id) == 409
        assert system.announced(OrderConfirmed) == []


async def test_a_confirmed_order_is_kept(running: Running) -> None:
    """Also where the clerk was faster than the news of it, and it is confirmed all the same."""
    async with running(service) as system:
        order_id = await place(system)
        for cls in (PaymentProcessed, StockReserved):
            await system.publish(cls(order_id=order_id), service="others")
        await system.settled()
        assert await ask_to_cancel(system, order_id) == 409
        await system.publish(ShipmentReady(order_id=order_id), service="shipping")
        await system.settled()
        assert await status(system, order_id) == "shipped"
        assert await ask_to_cancel(system, "none") == 404
    late = given(Fulfilment).when(placed("1"), PaymentProcessed(order_id="1"))
    late.when(StockReserved(order_id="1"), CancellationAsked(order_id="1"))
    late.when(ShipmentReady(order_id="1"))
    late.then(ends="shipped")


async def test_nobody_else_does_what_clerks_do(running: Running) -> None:
    """The gateway asks for the role, and so does the service."""
    async with running(service) as system:
        order_id = await place(system, BOB)
        for sender in (None, ANN, BOB):
            async with system.http("orders", sender) as client:
                assert (await client.get("/clerk/orders")).status_code == 403
                asked = await client.post(f"/clerk/orders/{order_id}/cancel")
                assert asked.status_code == 403
        await system.settled()
        assert system.announced(CancellationAsked) == []


async def test_a_clerk_sees_the_orders_of_all(running: Running) -> None:
    async with running(service) as system:
        first, second = await place(system, ANN), await place(system, BOB)
        await system.settled()
        failed = PaymentFailed(order_id=first, reason="card_declined")
        for event, by in ((failed, "payments"), (StockReleased(order_id=first), "inventory")):
            await system.publish(event, service=by)
            await system.settled()
        async with system.http("orders", CLERK) as client:
            orders = (await client.get("/clerk/orders")).json()["orders"]
        shown = [(each["order_id"], each["status"], each["can_be_cancelled"]) for each in orders]
        assert shown == [(second, "placed", True), (first, "cancelled", False)]


@pytest.fixture
def reviewed(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Saga]]:
    """The saga of a shop with a fraud check."""
    monkeypatch.setenv("SHOP_REVIEW", "1")
    file = Path(orders.__file__).parent / "service.py"
    try:
        yield runpy.run_path(str(file), run_name="orders.service")["Fulfilment"]
    finally:
        app.state.service = service  # which the module has set


def test_an_order_is_confirmed_once_it_is_cleared_or_approved(reviewed: type[Saga]) -> None:
    paid_and_reserved = (placed("1"), PaymentProcessed(order_id="1"), StockReserved(order_id="1"))
    for verdict in (OrderCleared(order_id="1"), OrderApproved(order_id="1")):
        held = given(reviewed).when(*paid_and_reserved).then(asks=[], status="running")
        held.when(verdict).then(asks=[OrderConfirmed])
        early = given(reviewed).when(verdict, *paid_and_reserved)
        early.then(asks=[OrderConfirmed])
    withdrawn = given(reviewed).when(*paid_and_reserved, CancellationAsked(order_id="1"))
    withdrawn.then(asks=[Release], status="undoing")
    given(reviewed).when(*paid_and_reserved).after(2 * 86_400.0).then(asks=[Release])


def test_without_a_fraud_check_nothing_waits() -> None:
    order = given(Fulfilment).when(placed("1"), PaymentProcessed(order_id="1"))
    order.when(StockReserved(order_id="1")).then(asks=[OrderConfirmed])


async def test_a_flagged_order_is_held_until_a_clerk_approves_it(running: Running) -> None:
    async with running(service) as system:
        order_id = await place(system)
        approve = f"/clerk/orders/{order_id}/approve"
        await system.publish(PaymentProcessed(order_id=order_id), service="payments")
        await system.settled()
        async with system.http("orders", ANN) as customer:
            assert (await customer.post(approve)).status_code == 403
        async with system.http("orders", CLERK) as clerk:
            assert (await clerk.post(approve)).status_code == 409  # it is not held
            flagged = OrderFlagged(order_id=order_id, reason="over_the_limit")
            await system.publish(flagged, service="fraud-check")
            await system.settled()
            await place(system, BOB)
            first = (await clerk.get("/clerk/orders")).json()["orders"][0]
            assert (first["order_id"], first["status"]) == (order_id, "held")
            assert first["can_be_approved"]
            assert first["can_be_cancelled"]
            assert (await clerk.post(approve)).status_code == 202
            await system.settled()
            assert system.announced(OrderApproved) == [OrderApproved(order_id=order_id)]
            assert await status(system, order_id) == "paid"
            assert (await clerk.post(approve)).status_code == 409


@asynccontextmanager
async def followed(system: System, order_id: str) -> AsyncIterator[list[str]]:
    """The statuses that the order's live page has been sent, once its stream has ended."""
    sent: list[str] = []
    async with system.http("orders", ANN) as client:
        # The answer comes as a whole, when the stream ends.
        asked = asyncio.create_task(client.get(f"/orders/{order_id}/events"))
        await system.advance(1.0)
        yield sent
        async with asyncio.timeout(30):
            answer = await asked
    lines = answer.text.splitlines()
    sent += [json.loads(line[6:])["status"] for line in lines if line.startswith("data: ")]


async def test_its_page_follows_it_to_the_end(running: Running) -> None:
    async with running(service) as system:
        order_id = await place(system)
        async with followed(system, order_id) as statuses:
            for cls in (PaymentProcessed, StockReserved, ShipmentReady):
                await system.publish(cls(order_id=order_id))
                await system.settled()
                await system.advance(1.0)
        # The stock is reserved, too, before Orders has confirmed it.
        assert statuses == ["placed", "paid", "paid", "confirmed", "shipped"]


async def test_its_page_asks_for_nothing_while_nothing_happens(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries: list[str] = []
    fetch = service.fetch

    async def counted(sql: str, /, **parameters: Any) -> list[dict[str, Any]]:
        queries.append(sql)
        return await fetch(sql, **parameters)

    async with running(service) as system:
        order_id = await place(system)
        await system.settled()
        monkeypatch.setattr(service, "fetch", counted)
        async with followed(system, order_id):
            before = len(queries)
            await system.advance(10.0)
            assert len(queries) == before > 0
            system.processes["orders"].stop_soon()


async def test_its_page_ends_with_the_process(running: Running) -> None:
    async with running(service) as system:
        order_id = await place(system)
        async with followed(system, order_id) as statuses:
            system.processes["orders"].stop_soon()
        assert statuses == ["placed"]
