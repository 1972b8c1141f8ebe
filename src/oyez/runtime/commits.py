"""The two kinds of commits to a service's store: units of work, and Oyez's own changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from oyez.ambient import Ambient
from oyez.envelope import format_time, open_record
from oyez.errors import InvalidEvent
from oyez.event import describe
from oyez.ports import Changes, Claim, Parked, Store
from oyez.saga import CommandDied
from oyez.transaction import Announcer, Origin, UnitOfWork


class Commits:
    """The transactions of one service's store."""

    def __init__(
        self,
        store: Store,
        announcer: Announcer,
        ambient: Ambient,
        committed: Callable[[Changes], None] | None = None,
    ) -> None:
        """``committed`` is called after each commit of a unit of work; see `UnitOfWork`."""
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
        self._announcer.announced(changes)

    def tell_sender(self, changes: Changes, event: Parked, kind: str, reason: str) -> None:
        """Announce to the sender of a command that it becomes a dead letter with these changes.

        ``kind`` is its type. Any other event, and one from another system, is left alone.
        """
        try:
            envelope = open_record(event.headers, event.data)
        except InvalidEvent:
            return
        system = self._announcer.source.rpartition("/")[0]
        home, _, sender = envelope.source.rpartition("/")
        key = envelope.key
        if (
            envelope.recipient is None
            or kind == describe(CommandDied).name
            or home != system
            or key is None
        ):
            return
        said = "".join(char if char.isprintable() else "?" for char in reason)
        died = CommandDied(command_id=envelope.id, type=kind, key=key, reason=said)
        time = format_time(self._ambient.now())
        # A key that can't be announced is none that a sender here has published.
        with suppress(InvalidEvent):
            changes.announced.append(
                self._announcer.announce(
                    died, Origin.of(envelope), time, 0.0, key, recipient=sender
                )
            )
