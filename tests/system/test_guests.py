"""Services in Go and TypeScript at the shop, killed under trade: the books balance all the same.

``OYEZ_TEST_ORDERS`` is the number of orders.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from shop import copy_shop, running_shop

import demo
import guests
from oyez.config import load
from oyez.project import Project
from servers import server

ORDERS = 40
SEED = 35
"""Of its first 40 orders five are over the limit, and four of these in stock and paid for."""
KILLS = 2
"""Of each guest."""


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """The guests, on a machine that can build them."""
    if guests.missing():
        pytest.skip(f"{guests.missing()} not installed: the guests of the shop can't be built")
    guests.build()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("broker", ["nats", "kafka"])
async def test_flagged_orders_are_held_and_points_are_cents(tmp_path: Path, broker: str) -> None:
    orders = int(os.environ.get("OYEZ_TEST_ORDERS", ORDERS))
    name, data = f"shop-{uuid4().hex[:8]}", tmp_path / "guests"
    environment = {"OYEZ_NAME": name, "OYEZ_BROKER": server(broker).url, "SHOP_REVIEW": "1"}
    with (
        guests.running_guests(server(broker).url, name, data) as running,
        running_shop(tmp_path, environment=environment) as shop,
    ):
        project = Project(load(shop.root, shop.environment))
        trading = asyncio.create_task(demo.place_orders(project, orders, SEED, lambda: None))
        for kill in range(KILLS):
            for guest, known in (("fraud-check", "flagged"), ("loyalty", "points")):
                wanted = orders // 2 * kill // KILLS

                async def reached(known: str = known, wanted: int = wanted) -> bool:
                    return len(getattr(guests.read_ledger(data), known)) > wanted

                await until(reached)
                running.kill(guest)
        accepted = await trading
        books = await demo.settle(project, accepted, lambda _: None, data)
        assert books.problems == []
        flagged = {o for o, each in guests.read_ledger(data).flagged.items() if each}
        held = sorted(o for o in flagged if books.status(o) == "held")
        assert len(held) >= 4
        assert {o for o in accepted if books.status(o) == "held"} == set(held)
        async with httpx.AsyncClient(base_url=shop.url, timeout=30) as clerk:
            await demo.log_in(clerk, "carol")
            for order_id, decision in zip(held, ("approve", "cancel"), strict=False):
                answer = await clerk.post(f"/clerk/orders/{order_id}/{decision}")
                assert answer.status_code == 202

            async def decided() -> bool:
                nonlocal books
                books = await demo.audit(project, accepted, data)
                return not books.problems and "held" not in map(books.status, held[:2])

            await until(decided)
        assert [books.status(o) for o in held[:2]] == ["shipped", "cancelled: withdrawn"]
        assert {books.status(o) for o in held[2:]} == {"held"}
    assert running.stop() == {"fraud-check": 0, "loyalty": 0}


def test_files_are_for_oyez_alone(tmp_path: Path) -> None:
    """The embedded broker is no place for a guest, and the demo says so before anything starts."""
    shop = copy_shop(tmp_path)
    done = subprocess.run(
        [sys.executable, "demo.py", "--guests", "--orders", "1"],
        cwd=shop.root,
        env=shop.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "BROKER=nats or BROKER=kafka" in done.stderr


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(120):
        while not await condition():
            await asyncio.sleep(0.05)
