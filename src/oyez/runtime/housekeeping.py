"""Deletes expired rows of a service's store, and completes those of a former version."""

from __future__ import annotations

from collections.abc import Sequence

from oyez import tables
from oyez.ambient import Ambient
from oyez.causes import causes_of
from oyez.ports import Changes, Store, Writes
from oyez.runtime.loop import Loop
from oyez.runtime.reports import Reports
from oyez.tables import INBOX_RETENTION

DEAD_RETENTION = 90 * 86_400.0
"""Seconds for which redriven and discarded dead letters are kept."""
SAGA_RETENTION = 7 * 86_400.0
"""Seconds for which sagas that have ended are kept, with their logs."""
AUDIT_RETENTION = 366 * 86_400.0
"""Seconds for which acts are kept in the audit."""
ROUND = 60.0
"""Seconds between two rounds."""


class Housekeeping:
    """The retention of inbox rows, settled dead letters, sagas that have ended and the audit."""

    def __init__(self, store: Store, ambient: Ambient, reports: Reports) -> None:
        self._store = store
        self._ambient = ambient
        self._loop = Loop("housekeeping", self._step, ambient, reports.trouble, after=ROUND)

    def start(self) -> None:
        """Start, with the first round after the usual pause."""
        self._loop.start()

    def stop(self) -> None:
        """Start no further round. Safe when never started and when called twice."""
        self._loop.kill()

    async def keep(self) -> None:
        """Delete the rows that have expired; give dead letters without a cause theirs."""
        now = self._ambient.now()
        for age, statements in (
            (INBOX_RETENTION, [tables.DELETE_HANDLED]),
            (DEAD_RETENTION, [tables.DELETE_SETTLED_LETTERS]),
            (SAGA_RETENTION, [tables.DELETE_ENDED_LOG, tables.DELETE_ENDED]),
            (AUDIT_RETENTION, [tables.DELETE_AUDIT]),
        ):
            while await self._delete(statements, now - age):
                await self._ambient.sleep(0)  # other transactions may write between two rounds
        while rows := await self._store.fetch(tables.WITHOUT_CAUSE, {}):
            writes: Writes = [(tables.SET_CAUSE, causes_of(rows))]
            await self._store.begin().commit(Changes(writes=writes, time=now))

    async def _step(self) -> float:
        await self.keep()
        return self._ambient.poll(ROUND)

    async def _delete(self, statements: Sequence[str], then: float) -> bool:
        """Delete a bounded number of rows; return whether the last statement found any."""
        *before, last = statements
        begun = self._store.begin()
        try:
            writes: Writes = [(sql, [{"then": then}]) for sql in before]
            deleted = await begun.fetch(last, {"then": then}, writes)
            await begun.commit(Changes(time=self._ambient.now()))
        finally:
            await begun.rollback()
        return bool(deleted)
