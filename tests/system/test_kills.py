"""G1, G2, G5: services are killed again and again under load; nothing is lost, nothing doubled."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest
from shop import SERVICES, Shop, running_shop

import demo
from oyez.config import load
from oyez.project import Project

ORDERS = int(os.environ.get("OYEZ_TEST_ORDERS", "600"))
KILLS = 20


@pytest.mark.timeout(600)
async def test_killing_every_service_in_turn_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with running_shop(tmp_path) as shop:
        project = Project(load(shop.root))
        placed = 0

        def count() -> None:
            nonlocal placed
            placed += 1

        trading = asyncio.create_task(demo.place_orders(project, ORDERS, 1, count))
        kills = 0
        for round_ in range(KILLS // len(SERVICES)):
            for service in SERVICES:
                # Spread over the whole trade; the first of each round hits a relay with work.
                wanted = ORDERS * kills // (KILLS + 2)
                await until(lambda: placed >= wanted, trading)  # noqa: B023 - used at once
                if service == SERVICES[round_ % len(SERVICES)]:
                    await until(lambda: outbox_of(shop, service) > 0, trading)  # noqa: B023
                await asyncio.to_thread(shop.kill, service)
                kills += 1
        accepted = await trading
        books = await demo.settle(project, accepted, lambda _: None)
        assert kills >= KILLS
        assert shop.spawned >= KILLS + len(SERVICES)
        assert len(set(accepted)) == ORDERS
        assert books.problems == []


async def until(condition: object, trading: asyncio.Task[list[str]]) -> None:
    """Return when the condition holds, or when the trade is over."""
    assert callable(condition)
    async with asyncio.timeout(120):
        while not condition() and not trading.done():
            await asyncio.sleep(0.001)


def outbox_of(shop: Shop, service: str) -> int:
    path = shop.root / ".oyez" / f"{service}.db"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        count: int = connection.execute("select count(*) from oyez_outbox").fetchone()[0]
    connection.close()
    return count
