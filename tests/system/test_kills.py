"""G1, G2, G5: services and the gateway are killed again and again under load.

Nothing is lost, nothing doubled: customers repeat what was not answered, with its idempotency key.

``OYEZ_TEST_ORDERS`` is the number of orders, on the embedded broker and, if set, on each other one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from shop import SERVICES, Shop, running_shop

import demo
from oyez.config import load
from oyez.ports import Store
from oyez.project import Project
from servers import server

ORDERS = {"embedded": 600, "kafka": 200, "nats": 200}
KILLS = 24
KILLED = (*SERVICES, "gateway")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("broker", ["embedded", "kafka", "nats"])
async def test_killing_every_process_in_turn_loses_and_doubles_nothing(
    tmp_path: Path, broker: str
) -> None:
    """With the embedded broker the stores are SQLite's, with the others PostgreSQL's."""
    environment = {"OYEZ_GATEWAY_IDEMPOTENCY_LEASE": "1"}
    if broker != "embedded":
        run = uuid4().hex[:8]
        store = f"{server('postgresql').url}?schema=shop_{run}_{{service}}"
        environment |= {
            "OYEZ_NAME": f"shop-{run}",
            "OYEZ_BROKER": server(broker).url,
            "OYEZ_STORE": store,
        }
    orders = int(os.environ.get("OYEZ_TEST_ORDERS", ORDERS[broker]))
    with running_shop(tmp_path, environment=environment) as shop:
        project = Project(load(shop.root, shop.environment))
        stores = {name: project.store(name) for name in SERVICES}
        for store_ in stores.values():
            await store_.open(create=False)
        try:
            await kill_under_trade(shop, project, stores, orders)
        finally:
            for store_ in stores.values():
                await store_.close()


async def kill_under_trade(
    shop: Shop, project: Project, stores: dict[str, Store], orders: int
) -> None:
    """Place orders, kill every process in turn meanwhile, and look at the books."""
    placed = kills = 0

    def count() -> None:
        nonlocal placed
        placed += 1

    trading = asyncio.create_task(demo.place_orders(project, orders, 1, count))
    for round_ in range(KILLS // len(KILLED)):
        for process in KILLED:
            # Spread over the whole trade; the first of each round hits a relay with work.
            wanted = orders * kills // (KILLS + 2)

            async def reached(wanted: int = wanted) -> bool:
                return placed >= wanted

            await until(reached, trading)
            if process == SERVICES[round_ % len(SERVICES)]:
                await until(partial(announcing, stores[process]), trading)
            await asyncio.to_thread(shop.kill, process)
            kills += 1
    accepted = await trading
    books = await demo.settle(project, accepted, lambda _: None)
    assert kills >= KILLS
    assert shop.spawned >= KILLS + len(KILLED)
    assert len(set(accepted)) == orders
    kept = await stores["orders"].fetch("select count(*) as n from orders", {})
    assert kept[0]["n"] == orders  # no order twice, whatever was repeated
    assert books.problems == []
    assert (
        await stores["orders"].fetch("select key from oyez_saga where status = 'stuck'", {}) == []
    )


async def announcing(store: Store) -> bool:
    """Whether the service has events that are not on the broker yet."""
    rows = await store.fetch("select count(*) as n from oyez_outbox", {})
    return bool(rows[0]["n"])


async def until(condition: Callable[[], Awaitable[bool]], trading: asyncio.Task[list[str]]) -> None:
    """Return when the condition holds, or when the trade is over."""
    async with asyncio.timeout(120):
        while not await condition() and not trading.done():
            await asyncio.sleep(0.001)
