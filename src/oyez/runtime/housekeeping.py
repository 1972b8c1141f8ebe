"""Deletes what a service's store need not hold any more."""

from __future__ import annotations

from oyez import tables
from oyez.ambient import Ambient
from oyez.ports import Changes, Store
from oyez.runtime.dead import INBOX_RETENTION
from oyez.runtime.loop import Loop
from oyez.runtime.reports import Reports

DEAD_RETENTION = 90 * 86_400.0
"""Seconds for which dead letters that were redriven or discarded are kept."""
ROUND = 60.0
"""Seconds between two rounds."""


class Housekeeping:
    """Deletes old rows of the inbox, and old dead letters that are settled."""

    def __init__(self, store: Store, ambient: Ambient, reports: Reports) -> None:
        self._store = store
        self._ambient = ambient
        self._loop = Loop("housekeeping", self._step, ambient, reports.trouble, after=ROUND)

    def start(self) -> None:
        """Begin, a round from now."""
        self._loop.start()

    def stop(self) -> None:
        """Begin no further round. Safe when never started and when called twice."""
        self._loop.kill()

    async def keep(self) -> None:
        """Delete what is old by now."""
        now = self._ambient.now()
        for sql, age in (
            (tables.DELETE_HANDLED, INBOX_RETENTION),
            (tables.DELETE_SETTLED_LETTERS, DEAD_RETENTION),
        ):
            while await self._delete(sql, now - age):
                await self._ambient.sleep(0)  # let others write between two rounds

    async def _step(self) -> float:
        await self.keep()
        return ROUND

    async def _delete(self, sql: str, then: float) -> bool:
        """Delete a bounded number of rows; return whether there were any."""
        begun = self._store.begin()
        try:
            deleted = await begun.fetch(sql, {"then": then}, [])
            await begun.commit(Changes(time=self._ambient.now()))
        finally:
            await begun.rollback()
        return bool(deleted)
