"""Customers of the shop while its pods come and go, and what became of their orders."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
import threading
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from measures import Handovers, Place
from world import Failed

LOOK = 0.05
"""Seconds between two looks at who owns which partition."""
SETTLE = 180.0
"""Seconds that the shop gets to settle everything."""
_CURSORS = "select stream, partition, owner, epoch from {}.oyez_cursor where reader = ''"


class Customers:
    """Place orders at a steady pace, each again under its key until it is accepted."""

    def __init__(self, folder: Path, gateway: str, pace: float) -> None:
        sys.path.insert(0, str(folder))
        from demo import make_order  # of this copy of the shop

        self._make_order = make_order
        self._gateway = gateway
        self._pace = pace
        self._done = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._trade()), daemon=True)
        self.accepted: list[str] = []
        self.waited: list[float] = []
        """The seconds to each answer 202."""
        self._errors: list[tuple[float, str]] = []

    @property
    def errors(self) -> list[str]:
        """Every answer that was not the one a customer wants, and every broken connection."""
        return self.errors_since(0.0)

    def errors_since(self, begun: float) -> list[str]:
        """Return the errors of requests that were begun after that, by the monotonic clock."""
        return [error for at, error in list(self._errors) if at >= begun]

    def __enter__(self) -> Customers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop placing orders; every order that was begun is accepted, or an error."""
        self._done.set()
        self._thread.join(60)

    async def _trade(self) -> None:
        chance = random.Random(4711)
        async with httpx.AsyncClient(base_url=self._gateway, timeout=20.0) as client:
            await self._begin(client)
            begun = time.monotonic()
            placing: set[asyncio.Task[None]] = set()
            for number in itertools.count():
                await asyncio.sleep(max(0.0, begun + number / self._pace - time.monotonic()))
                if self._done.is_set():
                    break
                order = self._make_order(chance, number)
                task = asyncio.create_task(
                    self._place(client, order, f"deploy-test-{number}-{begun}")
                )
                placing.add(task)
                task.add_done_callback(placing.discard)
            await asyncio.gather(*placing)

    async def _begin(self, client: httpx.AsyncClient) -> None:
        end = time.monotonic() + 30
        while True:
            try:
                (await client.post("/session")).raise_for_status()
                return
            except httpx.HTTPError:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)

    async def _place(self, client: httpx.AsyncClient, order: Mapping[str, Any], key: str) -> None:
        begun = time.monotonic()
        while (sent := time.monotonic()) < begun + 30:
            try:
                answer = await client.post("/orders", json=order, headers={"Idempotency-Key": key})
            except httpx.TransportError as error:
                self._errors.append((sent, f"{type(error).__name__}: {error}"))
            else:
                if answer.status_code == 202:
                    self.accepted.append(answer.json()["order_id"])
                    self.waited.append(time.monotonic() - begun)
                    return
                self._errors.append((sent, f"{answer.status_code} {answer.text[:150]}"))
            await asyncio.sleep(0.2)
        self._errors.append((sent, f"{key}: not accepted within 30 s"))


class Owners:
    """Looks at who owns which partition, as the services' stores say, until it is closed."""

    def __init__(self, url: str, services: list[str]) -> None:
        self._url = url
        self._services = services
        self._done = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.handovers = Handovers()

    def __enter__(self) -> Owners:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(10)
        if self._failure is not None:
            raise Failed(f"the owners of partitions: {self._failure}")

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except Exception as failure:  # noqa: BLE001 - raised by who closes it
            self._failure = failure

    async def _watch(self) -> None:
        connection = await asyncpg.connect(self._url.partition("?")[0])
        query = " union all ".join(
            f"select '{name}' as service, * from ({_CURSORS.format(name)}) as {name}"
            for name in self._services
        )
        statement = await connection.prepare(query)
        while not self._done.is_set():
            rows = await statement.fetch()
            owners: dict[Place, str | None] = {
                (row["service"], row["stream"], row["partition"]): row["owner"] for row in rows
            }
            self.handovers.see(time.monotonic(), owners)
            await asyncio.sleep(LOOK)
        await connection.close()


class Logs:
    """Everything that containers say, also of those whose logs the kubelet removes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[tuple[int, int], Any] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Logs:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(5)

    def count(self, *words: str) -> int:
        """Return how many lines have one of the words."""
        found = 0
        for file in self._open.values():
            file.seek(0)
            found += sum(any(word in line for word in words) for line in file)
        return found

    def _follow(self) -> None:
        while not self._done.wait(0.2):
            self._look()

    def _look(self) -> None:
        for path in self._folder.glob("*/*/*.log"):
            try:
                file = path.open(errors="replace")
            except OSError:
                continue
            status = os.fstat(file.fileno())
            if self._open.setdefault((status.st_dev, status.st_ino), file) is not file:
                file.close()


def settled(folder: Path, environment: Mapping[str, str], accepted: list[str]) -> tuple[int, float]:
    """Wait until the books balance; the orders in them, and the seconds that took.

    Raises Failed with what does not balance.
    """
    sys.path.insert(0, str(folder))
    from books import audit
    from oyez.config import load
    from oyez.project import Project

    project = Project(load(folder, environment))
    begun = time.monotonic()

    async def wait() -> tuple[int, float]:
        while True:
            books = await audit(project, accepted)
            if not books.problems:
                return len(books.orders), time.monotonic() - begun
            if time.monotonic() > begun + SETTLE:
                raise Failed("the books do not balance:\n" + "\n".join(books.problems))
            await asyncio.sleep(1.0)

    return asyncio.run(wait())


def companions(folder: Path) -> dict[str, list[str]]:
    """Return the commands of what is outside of the shop, by name."""
    settings = tomllib.loads((folder / "oyez.toml").read_text())
    found = {}
    for name, companion in settings["companions"].items():
        command = companion["run"].split()
        found[name] = [sys.executable, *command[1:]] if command[0] == "python" else command
    return found


def shown(errors: list[str]) -> str:
    """Return a few errors, each once with its number."""
    counts = {error: errors.count(error) for error in dict.fromkeys(errors)}
    return json.dumps(dict(itertools.islice(counts.items(), 4))) if counts else "0"
