"""The store of buckets that replicas share, asked for many at a time, and what if it is away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from oyez.adapters import driver
from oyez.ambient import Ambient, backoff
from oyez.background import lasting
from oyez.config import Config
from oyez.endpoint import redact
from oyez.errors import OyezError
from oyez.gateway.limits.store import Ask, Grant, Store
from oyez.logger import Logger
from oyez.signals import LimitsShared, Listener

_DEADLINE = 1.0
"""Seconds after which the store is away: requests wait for its answer."""
_PATIENCE = 2.0
"""Seconds that opening the store may take."""
_SWEEP_SECONDS = 60.0
_LONGEST_PAUSE = 5.0


class Asking(Protocol):
    """What takes tokens of a bucket in the store."""

    def ask(self) -> Ask:
        """Return what is wanted now."""
        ...

    def granted(self, ask: Ask, grant: Grant) -> None:
        """Take what was granted."""
        ...


class _Trip:
    """What is asked for together, and whether it was answered."""

    def __init__(self) -> None:
        self.asking: dict[Asking, None] = {}
        self.over = asyncio.Event()


class Ledger:
    """The store as the limits use it: what is wanted during a round trip goes with the next one.

    So the number of round trips is bounded, however many requests there are. While the store is
    away, ``shared`` is false, and each replica counts alone; it is then tried again and again.
    """

    def __init__(self, store: Store, url: str, ambient: Ambient, tell: Listener | None) -> None:
        """``url`` is that of the store, for the log; ``tell`` hears whether it is there."""
        self.shared = False
        self._store = store
        self._ambient = ambient
        self._tell = tell
        self._failures = 0
        self._log = Logger(store=redact(url))
        self._lost = asyncio.Event()
        self._next = _Trip()
        self._travelling: asyncio.Task[None] | None = None
        self._tending: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the store. Without an answer the replica begins alone."""
        await self._try()
        tending = lasting("the store of limits", self._tend, self._ambient)
        self._tending = asyncio.create_task(tending)

    async def close(self) -> None:
        """Close the store."""
        self.shared = False
        for task in (self._tending, self._travelling):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._next.over.set()
        await self._store.close()

    async def asked(self, asking: Sequence[Asking]) -> None:
        """Return when the store has answered for all of them, or is away."""
        trip = self._next
        trip.asking.update(dict.fromkeys(asking))
        if self._travelling is None:
            self._travelling = asyncio.create_task(self._travel())
        await trip.over.wait()

    async def _travel(self) -> None:
        try:
            while self._next.asking and self.shared:
                await self._go()
        finally:
            self._travelling = None
            self._next.over.set()
            self._next = _Trip()

    async def _go(self) -> None:
        # Whom the last trip was for takes its tokens, and who asks in this turn of the loop joins.
        await asyncio.sleep(0)
        trip, self._next = self._next, _Trip()
        asks = [each.ask() for each in trip.asking]
        try:
            async with self._ambient.timeout(_DEADLINE):
                grants = await self._store.take(asks)
        except (OyezError, TimeoutError) as error:
            self._gone(error)
        else:
            for asking, ask, grant in zip(trip.asking, asks, grants, strict=True):
                asking.granted(ask, grant)
        finally:
            trip.over.set()

    async def _tend(self) -> None:
        """Look for a store that is away, and sweep one that is there."""
        while True:
            if not self.shared:
                pause = backoff(self._failures, self._ambient.chance(), most=_LONGEST_PAUSE)
                await self._ambient.sleep(pause)
                await self._try()
                continue
            try:
                async with self._ambient.timeout(_SWEEP_SECONDS):
                    await self._lost.wait()
            except TimeoutError:
                await self._sweep()

    async def _sweep(self) -> None:
        try:
            await self._store.sweep()
        except OyezError as error:
            self._log.warning("sweep failed", error=f"{error}")

    async def _try(self) -> None:
        try:
            async with self._ambient.timeout(_PATIENCE):
                await self._store.open()
        except (OyezError, TimeoutError) as error:
            self._gone(error)
            return
        if self._failures:
            self._log.info("limits are shared again")
        self.shared, self._failures = True, 0
        self._lost.clear()
        self._told()

    def _gone(self, error: Exception) -> None:
        if not self._failures:
            reason = f"{error}" or "no answer in time"
            self._log.warning("limits are counted by each replica alone", error=reason)
        self.shared = False
        self._lost.set()
        self._failures += 1
        self._told()

    def _told(self) -> None:
        if self._tell is not None:
            self._tell(LimitsShared(service="gateway", shared=self.shared))


def ledger(config: Config, ambient: Ambient, tell: Listener | None) -> Ledger | None:
    """Return what the replicas of a gateway count by; None where each has its own SQLite file.

    Raises :class:`ConfigurationError` for unknown options of the store, or without its driver.
    """
    assert config.gateway is not None
    url = config.gateway.store
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        return None
    store: Store
    if scheme == "postgresql":
        with driver("oyez[postgresql]"):
            from oyez.gateway.limits.postgresql import PostgresStore
        store = PostgresStore(url, ambient)
    else:
        with driver("oyez[redis]"):
            from oyez.gateway.limits.redis import RedisStore
        store = RedisStore(url)
    return Ledger(store, url, ambient, tell)
