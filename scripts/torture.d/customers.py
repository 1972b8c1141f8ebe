"""The shop's customers: each request and each answer is in the journal before the next."""

from __future__ import annotations

import asyncio
import random
import time

import httpx
from journal import Journal

import demo

AT_ONCE = 32
"""Requests under way at the same time."""
PATIENCE = 90.0
"""Seconds after which a customer gives up an order that is not answered."""
AGAIN = 0.2
"""Seconds before a request is repeated."""


class Customers:
    """Place orders through the gateway at ``url``; ``name`` begins every idempotency key."""

    def __init__(self, url: str, journal: Journal, chance: random.Random, name: str) -> None:
        self.answered = 0
        """Orders that got their 202."""
        self._journal = journal
        self._chance = chance
        self._name = name
        self._placed = 0
        self.welcome = asyncio.Event()
        """Clear while nobody new orders: those who did are not served yet."""
        self.welcome.set()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._entry = asyncio.Lock()
        self._client = httpx.AsyncClient(base_url=url, timeout=10.0)

    async def trade(self, pace: float, over: asyncio.Event) -> None:
        """Place ``pace`` orders a second, while they are welcome, until ``over``.

        Returns when each has its answer.
        """
        async with asyncio.TaskGroup() as orders:
            while not over.is_set():
                await self._room.acquire()
                await self.welcome.wait()
                orders.create_task(self._order_in_turn())
                try:
                    async with asyncio.timeout(self._chance.expovariate(pace)):
                        await over.wait()
                except TimeoutError:
                    continue

    async def rush(self, count: int) -> None:
        """Place so many orders at once."""
        async with asyncio.TaskGroup() as orders:
            for _ in range(count):
                orders.create_task(self.order())

    async def order(self) -> str | None:
        """Place one, repeated until it is answered; its id, None if it never was."""
        number = self._placed
        self._placed += 1
        key = f"{self._name}-{number}"
        wish = demo.make_order(self._chance, number)
        self._journal.write("request", key=key)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                answer = await self._post(wish, key)
            except httpx.HTTPError as error:
                self._journal.write("silence", key=key, error=type(error).__name__)
            else:
                if answer.status_code == 202:
                    order_id: str = answer.json()["order_id"]
                    self._journal.write("answer", key=key, status=202, order=order_id)
                    self.answered += 1
                    return order_id
                self._journal.write("answer", key=key, status=answer.status_code)
                if answer.status_code == 401:
                    # The session is over. For whoever comes next the key would be another order's.
                    self._client.cookies.clear()
                    break
            await asyncio.sleep(AGAIN)
        self._journal.write("gave up", key=key)
        return None

    async def close(self) -> None:
        """Close their connections."""
        await self._client.aclose()

    async def _order_in_turn(self) -> None:
        try:
            await self.order()
        finally:
            self._room.release()

    async def _post(self, wish: dict[str, object], key: str) -> httpx.Response:
        async with self._entry:  # under two sessions, one key would be two orders
            if not self._client.cookies:
                (await self._client.post("/session")).raise_for_status()
        return await self._client.post("/orders", json=wish, headers={"Idempotency-Key": key})
