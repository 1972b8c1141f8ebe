"""A clerk cancels orders of the shop under trade: each is undone whole, or kept whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from shop import Shop, running_shop

import demo
from oyez.config import load
from oyez.project import Project

ORDERS = 60


async def cancel_all(clerk: httpx.AsyncClient, asked: set[str]) -> None:
    """Ask for the cancellation of whatever can be cancelled at this moment."""
    listed = await clerk.get("/clerk/orders")
    assert listed.status_code == 200, listed.text
    for order in listed.json()["orders"]:
        if order["can_be_cancelled"] and order["order_id"] not in asked:
            answer = await clerk.post(f"/clerk/orders/{order['order_id']}/cancel")
            assert answer.status_code in (202, 409), answer.text
            if answer.status_code == 202:
                asked.add(order["order_id"])


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with running_shop(tmp_path) as shop:
        yield shop


async def test_the_books_balance_whatever_a_clerk_cancels(shop: Shop) -> None:
    project = Project(load(shop.root, shop.environment))
    asked: set[str] = set()
    async with httpx.AsyncClient(base_url=shop.url, timeout=30) as clerk:
        await demo.log_in(clerk, "carol")
        # Else an order may be paid and confirmed before anybody has seen it.
        weather = f"http://127.0.0.1:{shop.ports['8090']}/weather"
        (await clerk.post(weather, json={"mode": "slow"})).raise_for_status()
        trading = asyncio.create_task(demo.place_orders(project, ORDERS, 7, lambda: None))
        while not trading.done():
            await cancel_all(clerk, asked)
        accepted = await trading
        await cancel_all(clerk, asked)
        (await clerk.post(weather, json={"mode": "fair"})).raise_for_status()
    books = await demo.settle(project, accepted, lambda _: None)
    assert books.problems == []
    withdrawn = {order_id for order_id in accepted if books.status(order_id).endswith("withdrawn")}
    assert withdrawn
    assert withdrawn <= asked


async def test_only_clerks_do_so(shop: Shop) -> None:
    async with httpx.AsyncClient(base_url=shop.url, timeout=30) as client:

        async def tried() -> set[int]:
            listed = await client.get("/clerk/orders")
            asked = await client.post("/clerk/orders/x/cancel")
            return {listed.status_code, asked.status_code}

        assert await tried() == {401}
        await client.post("/session")
        assert await tried() == {401}
        await demo.log_in(client, "alice")
        assert await tried() == {403}
        await demo.log_in(client, "carol")
        assert await tried() == {200, 404}  # there is no order x
        elsewhere = {"origin": "https://evil.example"}
        refused = await client.post("/clerk/orders/x/cancel", headers=elsewhere)
        assert refused.status_code == 403
