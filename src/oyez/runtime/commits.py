"""The two kinds of commits to a service's store: units of work, and Oyez's own changes."""

from __future__ import annotations

from collections.abc import Callable

from oyez.ambient import Ambient
from oyez.ports import Changes, Claim, Store
from oyez.transaction import Announcer, UnitOfWork


class Commits:
    """The transactions of one service's store."""

    def __init__(
        self,
        store: Store,
        announcer: Announcer,
        ambient: Ambient,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        """``committed`` is called after each commit of a unit of work."""
        self.store = store
        self._committed = committed
        self._announcer = announcer
        self._ambient = ambient

    def unit(self, claim: Claim | None) -> UnitOfWork:
        """Return a unit of work that commits only while ``claim`` is valid."""
        unit = UnitOfWork(self.store, self._announcer, self._committed)
        unit.changes.claim = claim
        return unit

    async def save(self, changes: Changes) -> None:
        """Commit changes of Oyez's own. Raises what `StoreTransaction.commit` raises."""
        changes.time = self._ambient.now()
        await self.store.begin().commit(changes)
