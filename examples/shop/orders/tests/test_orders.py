"""Orders alone: in whatever order the news of others arrive, it ends once and says so once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import permutations
from typing import Any

import pytest

from orders.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    ShipmentReady,
    StockRejected,
    StockReserved,
)
from orders.service import service
from oyez.testing import Running, System

ORDER = {
    "lines": [{"sku": "bell", "quantity": 2}],
    "email": "a@example.org",
    "phone": "+31612345678",
    "card": "tok_ok",
}


async def place(system: System) -> str:
    async with system.http("orders") as client:
        answer = await client.post("/orders", json=ORDER)
    assert answer.status_code == 202
    order_id: str = answer.json()["order_id"]
    assert answer.headers["location"] == f"/orders/{order_id}"
    return order_id


async def status(system: System, order_id: str) -> str:
    async with system.http("orders") as client:
        found: str = (await client.get(f"/orders/{order_id}")).json()["status"]
    return found


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


async def test_two_reasons_to_cancel_cancel_it_once(running: Running) -> None:
    async with running(service) as system:
        order_id = await place(system)
        failed = PaymentFailed(order_id=order_id, reason="card_declined")
        await system.publish(failed, service="payments")
        await system.settled()
        await system.publish(StockRejected(order_id=order_id), service="inventory")
        await system.settled()
        assert system.announced(OrderCancelled) == [
            OrderCancelled(order_id=order_id, reason="card_declined")
        ]
        assert await status(system, order_id) == "cancelled"


@asynccontextmanager
async def followed(system: System, order_id: str) -> AsyncIterator[list[str]]:
    """The statuses that the order's live page has been sent, once its stream has ended."""
    sent: list[str] = []
    async with system.http("orders") as client:
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
        assert statuses == ["placed", "paid", "confirmed", "shipped"]


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
