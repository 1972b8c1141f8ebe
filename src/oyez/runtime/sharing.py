"""One commit for many parked events: those that end while it is made share the next one.

No time is spent on waiting for others (group commit, as of DeWitt et al., "Implementation
Techniques for Main Memory Database Systems", 1984). When a shared commit fails, each half of it is
tried alone, and so on, until only what fails by itself has failed: no event's effects depend on
another event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from oyez.errors import Fenced, StoreUnavailable
from oyez.ports import Changes
from oyez.transaction import UnitOfWork

LIMIT = 256
"""The number of events that share a commit, at most: as many as a lane's batch."""
TURNS = 4
"""The limit of turns of the event loop before a commit: each may hold calls that take long."""

Entry = tuple[Changes, "asyncio.Future[None]"]
"""Changes, and who waits for their commit."""


class SharedCommits:
    """The commits of the parked events of one lane."""

    def __init__(self, unit: Callable[[], UnitOfWork]) -> None:
        """``unit`` returns a new unit of work with the lane's claim."""
        self._unit = unit
        self._waiting: list[Entry] = []
        self._task: asyncio.Task[None] | None = None

    def commit(self, changes: Changes) -> asyncio.Future[None]:
        """Commit them, together with others; the future raises what these alone would."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((changes, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(), name="shared commits")
        return done

    async def end(self) -> None:
        """Wait until nothing is being committed."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        taken: list[Entry] = []
        try:
            while self._waiting:
                await self._gather()
                taken, self._waiting = self._waiting[:LIMIT], self._waiting[LIMIT:]
                # Whoever was cancelled before its commit began leaves its event as it was.
                await self._commit([entry for entry in taken if not entry[1].done()])
        except asyncio.CancelledError:
            for _, done in (*taken, *self._waiting):
                done.cancel()
            self._waiting = []
            raise

    async def _gather(self) -> None:
        """Let the event loop turn a few times, as long as each turn brings more."""
        known = turns = 0
        while known < len(self._waiting) < LIMIT and turns < TURNS:
            known = len(self._waiting)
            turns += 1
            await asyncio.sleep(0)

    async def _commit(self, entries: list[Entry]) -> None:
        if not entries:
            return
        unit = self._unit()
        for changes, _ in entries:
            unit.absorb(changes)
        failed: Exception | None = None
        try:
            await unit.commit()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that of its event
            failed = error
        finally:
            await unit.rollback()
        if failed is None or len(entries) == 1 or isinstance(failed, Fenced | StoreUnavailable):
            for _, done in entries:
                if done.done():
                    continue
                if failed is None:
                    done.set_result(None)
                else:
                    done.set_exception(failed)
            return
        middle = len(entries) // 2
        await self._commit(entries[:middle])
        await self._commit(entries[middle:])
