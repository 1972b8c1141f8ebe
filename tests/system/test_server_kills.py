"""G1, G2, G5: the broker's server, and the stores', are killed again and again under the shop.

With ``OYEZ_TEST_KILLS=10`` each is killed as often as the figures in the documentation say.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
from shop import Shop, running_shop

import demo
from oyez.config import load
from oyez.project import Project
from servers import Server, server_apart

KILLS = int(os.environ.get("OYEZ_TEST_KILLS", "2"))
AT_ONCE = 40
"""Orders placed before each kill and while the server is down."""
TELLS = 30.0
"""Seconds after a kill within which a service says that it is not ready."""
RESUMES = 30.0
"""Seconds after the server's return within which all say that they are, and orders are settled."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("broker", ["kafka", "nats", "rabbitmq", "redis", "postgresql"])
async def test_the_brokers_server(tmp_path: Path, broker: str) -> None:
    with server_apart(broker, tmp_path) as running:
        await kill_under_load(tmp_path, running, {"OYEZ_BROKER": running.url})


@pytest.mark.timeout(900)
async def test_the_stores_server(tmp_path: Path) -> None:
    with server_apart("postgresql", tmp_path) as running:
        store = f"{running.url}?schema=shop_{{service}}"
        await kill_under_load(tmp_path, running, {"OYEZ_STORE": store})


async def kill_under_load(tmp_path: Path, running: Server, environment: dict[str, str]) -> None:
    with running_shop(tmp_path, environment=environment) as shop:
        project = Project(load(shop.root, shop.environment))
        accepted: list[str] = []
        for number in range(KILLS):
            placing = asyncio.create_task(place(project, 2 * number))
            await asyncio.sleep(0)
            await asyncio.to_thread(running.kill)
            try:
                await within(TELLS, lambda: ready(shop, False))
                more = asyncio.create_task(place(project, 2 * number + 1))
            finally:
                await asyncio.to_thread(running.start)
            back = time.monotonic()
            await within(RESUMES, lambda: ready(shop, True))
            accepted += await placing + await more
            left = RESUMES - (time.monotonic() - back) + 1.0
            await within(left, partial(settled, project, accepted))
        books = await demo.settle(project, accepted, lambda _: None)
        assert len(set(accepted)) == KILLS * 2 * AT_ONCE
        assert books.problems == []


async def place(project: Project, seed: int) -> list[str]:
    return await demo.place_orders(project, AT_ONCE, seed, lambda: None)


async def ready(shop: Shop, wanted: bool) -> bool:
    """Whether every service says that it is ready; or, not ``wanted``, one says that it is not."""
    answers = []
    async with httpx.AsyncClient(timeout=5.0) as client:
        for address in shop.admins().values():
            try:
                answers.append((await client.get(f"http://{address}/readyz")).status_code == 200)
            except httpx.TransportError:
                answers.append(False)
    return all(answers) if wanted else not all(answers)


async def settled(project: Project, accepted: list[str]) -> bool:
    books = await demo.audit(project, accepted)
    return all(books.status(order).startswith(("shipped", "cancelled")) for order in accepted)


async def within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        await asyncio.sleep(0.1)
