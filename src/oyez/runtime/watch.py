"""Wakes live pages after commits of the service."""

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
"""The least seconds between two wake-ups of a follower: a busy service commits more often."""
REPLICAS = 1.0
"""Seconds after which followers wake anyway while other replicas are alive: a replica notifies
others of events alone, not of rows."""


class Watch:
    """The followers of a process's commits. It costs nothing without followers."""

    def __init__(self, store: Store, ambient: Ambient, owner: str) -> None:
        self.ambient = ambient
        self.closed = asyncio.Event()
        self._store = store
        self._owner = owner
        # The response to a browser that has left may be dropped unfinished: it must not stay here.
        self._followers: WeakSet[Follower] = WeakSet()
        self._waiters: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None

    def ring(self) -> None:
        """Wake every follower after a commit."""
        for follower in self._followers:
            follower.event.set()
        for waiter in self._waiters:
            waiter.set()

    async def wait(self, seconds: float) -> None:
        """Wait for a commit of this process, at most that many seconds."""
        waiter = asyncio.Event()
        self._waiters.add(waiter)
        try:
            async with self.ambient.timeout(seconds):
                await waiter.wait()
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)

    def join(self, follower: Follower) -> None:
        """Add a follower until it is garbage collected. Safe to call twice."""
        self._followers.add(follower)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_at_replicas(), name="watch")

    def close(self) -> None:
        """End every follower, also future ones. Safe to call twice."""
        self.closed.set()
        self.ring()
        if self._task is not None:
            self._task.cancel()

    async def _look_at_replicas(self) -> None:
        while self._followers:
            await self.ambient.sleep(REPLICAS)
            with contextlib.suppress(StoreError):  # the follower gets the error at its next query
                rows = await self._store.fetch(tables.LIVING, {"now": self.ambient.now()})
                if any(row["owner"] != self._owner for row in rows):
                    self.ring()


class Follower(AsyncIterator[None]):
    """An iterator that yields once at first, and then after commits since it last yielded."""

    def __init__(self, watch: Watch, every: float | None) -> None:
        """``every``: the seconds without a commit after which it yields anyway; None for never."""
        self.event = asyncio.Event()
        self.event.set()
        self._watch = watch
        self._every = every
        self._rested = 0.0
        """The earliest time of the next wake-up, on the monotonic clock."""

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
        """Wait for the event, at most that many seconds."""
        if event.is_set() or (seconds is not None and seconds <= 0):
            return
        with contextlib.suppress(TimeoutError):
            async with self._watch.ambient.timeout(seconds):
                await event.wait()
