"""Wakes what shows a service's data live, when the service has committed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakSet

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import StoreError
from oyez.ports import Store

PAUSE = 0.1
"""Seconds between two wake-ups of one follower, at least: a busy service commits far more often."""
REPLICAS = 1.0
"""Seconds after which followers wake anyway while other replicas are alive: a replica lets others
know at once of events alone, not of rows."""


class Watch:
    """The followers of one process's service. It costs nothing while there are none."""

    def __init__(self, store: Store, ambient: Ambient, owner: str) -> None:
        self.ambient = ambient
        self.closed = asyncio.Event()
        self._store = store
        self._owner = owner
        # A page that its browser has left may be dropped unfinished: then it is no follower.
        self._followers: WeakSet[Follower] = WeakSet()
        self._task: asyncio.Task[None] | None = None

    def ring(self) -> None:
        """Wake every follower: the service may have committed."""
        for follower in self._followers:
            follower.event.set()

    def join(self, follower: Follower) -> None:
        """Wake the follower from now on, until it is dropped. Safe to call twice."""
        self._followers.add(follower)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_at_replicas(), name="watch")

    def close(self) -> None:
        """End every follower, now and in future. Safe to call twice."""
        self.closed.set()
        self.ring()
        if self._task is not None:
            self._task.cancel()

    async def _look_at_replicas(self) -> None:
        while self._followers:
            await self.ambient.sleep(REPLICAS)
            with contextlib.suppress(StoreError):  # who follows meets it at the next query
                rows = await self._store.fetch(tables.LIVING, {"now": self.ambient.now()})
                if any(row["owner"] != self._owner for row in rows):
                    self.ring()


class Follower(AsyncIterator[None]):
    """Wakes once at first, and then when anything was committed since it woke last."""

    def __init__(self, watch: Watch, every: float | None) -> None:
        """``every`` is after how many seconds of silence it wakes anyway; None for never."""
        self.event = asyncio.Event()
        self.event.set()
        self._watch = watch
        self._every = every
        self._rested = 0.0
        """On the monotonic clock, when it may wake again."""

    async def __anext__(self) -> None:
        watch = self._watch
        ambient = watch.ambient
        if not watch.closed.is_set():
            watch.join(self)
        await self._wait(watch.closed, self._rested - ambient.monotonic())
        await self._wait(self.event, self._every)
        if watch.closed.is_set():
            raise StopAsyncIteration
        self.event.clear()
        self._rested = ambient.monotonic() + PAUSE

    async def _wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """Return when the event is set, or after so many seconds."""
        if event.is_set() or (seconds is not None and seconds <= 0):
            return
        with contextlib.suppress(TimeoutError):
            async with self._watch.ambient.timeout(seconds):
                await event.wait()
