"""The system as it is now: one look for all viewers, and only while somebody looks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import msgspec

from oyez.ambient import Ambient
from oyez.console.answers import Replica, Trouble
from oyez.console.rates import Rates
from oyez.console.system import Answer, System
from oyez.inspection.lag import ServiceLag

EVERY = 2.0
"""Seconds between two looks."""
STREAMS = 64
"""The most pages that are kept up to date at once."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What every process answered at one time."""

    at: float
    """In seconds since 1970."""
    replicas: list[Answer[Replica]]
    lags: list[Answer[ServiceLag]]
    troubles: list[Answer[Trouble]]


class Live:
    """The newest snapshot of a system."""

    def __init__(self, system: System, ambient: Ambient) -> None:
        self.rates = Rates()
        self.viewers = 0
        """The number of pages that are kept up to date."""
        self.closed = False
        """Whether the console is being stopped: streams end."""
        self._system = system
        self._ambient = ambient
        self._looking: asyncio.Task[Snapshot] | None = None
        self._looked = float("-inf")

    async def look(self) -> Snapshot:
        """Return a snapshot that is not older than `EVERY`; all who ask meanwhile share it."""
        now = self._ambient.monotonic()
        if self._looking is None or (self._looking.done() and now - self._looked >= EVERY):
            self._looking = asyncio.create_task(self._look(), name="look")
            self._looked = now
        return await asyncio.shield(self._looking)

    async def snapshots(self) -> AsyncGenerator[Snapshot]:
        """Return a snapshot each time there is a new one, until the viewer leaves."""
        self.viewers += 1
        try:
            while True:
                due = self._looked + EVERY - self._ambient.monotonic()
                await self._ambient.sleep(max(0.05, due))
                yield await self.look()
        finally:
            self.viewers -= 1

    async def close(self) -> None:
        """End a look that is under way, and all streams."""
        self.closed = True
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._looking])

    async def _look(self) -> Snapshot:
        system = self._system
        replicas, lags, troubles = await asyncio.gather(
            system.replicas(), system.lags(), system.troubles()
        )
        answered = [answer.value for answer in replicas if answer.value is not None]
        self.rates.note(self._ambient.monotonic(), answered)
        return Snapshot(at=self._ambient.now(), replicas=replicas, lags=lags, troubles=troubles)
