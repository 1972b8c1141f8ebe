"""Announces what a service has to one that lacks the history of it; see `Service.backfill`.

Each chunk is read and announced in one transaction, in which no other one changes what it reads.
Events leave the outbox in the order of commits, so a chunk neither overtakes nor overwrites a
later change: that comes behind it in the stream. Debezium's incremental snapshots need watermarks
for this, as they read a database that does not announce by itself.

How far a backfill is, is kept with each chunk. So one that was interrupted goes on, and announces
nothing twice; several processes with the same one share the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from oyez import tables
from oyez.ambient import backoff
from oyez.errors import BackfillFailed, OyezError
from oyez.ports import Broker, Changes, Parameters, Position, Row, Store
from oyez.runtime.audit import Actor, audited
from oyez.service import Backfill
from oyez.transaction import Announcer, Origin, UnitOfWork

CHUNK = 500
"""The limit of events that are announced in one transaction."""
ATTEMPTS = 5
"""How often a chunk is tried while the store is busy."""


_MARK = "oyez:backfill:"


class Walked(msgspec.Struct, frozen=True, kw_only=True):
    """How far a backfill is."""

    begins: list[Position]
    """The end of each partition of the owner's stream before it began: all that was published up
    to there had its effect on what is announced, which comes behind."""
    after: str = ""
    """The key of the last event that was announced."""
    announced: int = 0
    done: bool = False


class Walk:
    """A backfill of one event for one service, as announced by the service that owns the facts."""

    def __init__(
        self,
        backfill: Backfill,
        recipient: str,
        *,
        broker: Broker,
        store: Store,
        announcer: Announcer,
    ) -> None:
        """``broker``, ``store`` and ``announcer`` are those of the owner."""
        self.walked = Walked(begins=[])
        """How far it is, as of the last call."""
        self._backfill = backfill
        self._recipient = recipient
        self._name = {"name": mark_of(backfill.event.name, recipient)}
        self._broker = broker
        self._store = store
        self._announcer = announcer
        self._seen: set[str] = set()

    async def begin(self, *, by: Actor) -> bool:
        """Begin, or go on where it was interrupted; return whether it goes on.

        Raises BrokerError and StoreError.
        """
        found = await self._store.fetch(tables.ACTIVE, self._name)
        if found and not (walked := _walked(found[0])).done:
            self.walked = walked
            now = self._announcer.ambient.now()
            writes = [self._audited(by, {"announced": walked.announced})]
            await self._store.begin().commit(Changes(writes=writes, time=now))
            return True
        # The ends first: what is published afterwards is not lost, wherever it is announced.
        begins = list(await self._broker.ends(self._announcer.stream))
        unit = UnitOfWork(self._store, self._announcer)
        try:
            sql, (row,) = self._audited(by)
            unit.transaction(Origin()).execute(sql, **row)
            await self._keep(unit, Walked(begins=begins))
        finally:
            await unit.rollback()
        return False

    def _audited(
        self, by: Actor, before: dict[str, int] | None = None
    ) -> tuple[str, list[Parameters]]:
        target = f"backfill of {self._backfill.event.name} for {self._recipient}"
        return audited(by, "backfill.begin", target, self._announcer.ambient.now(), before)

    async def chunk(self) -> bool:
        """Announce the next chunk; return whether there may be more.

        Raises BackfillFailed for what the service's function did wrong, and StoreError.
        """
        failures = 0
        while True:
            try:
                return await self._chunk()
            except OyezError as error:
                failures += 1
                if not error.transient or failures >= ATTEMPTS:
                    raise
            ambient = self._announcer.ambient
            await ambient.sleep(backoff(failures, ambient.chance()))

    async def _chunk(self) -> bool:
        unit = UnitOfWork(self._store, self._announcer)
        try:
            tx = unit.transaction(Origin())
            # A write, so that another process with this backfill waits, on every store.
            (row,) = await tx.fetch(tables.HOLD_MARK, **self._name)
            walked = self.walked = _walked(row)
            if walked.done:
                return False
            try:
                events = await self._backfill.function(tx, walked.after)
            except OyezError:
                raise
            except Exception as error:
                raise self._failed(f"raised {type(error).__name__}: {error}") from error
            events = self._checked(events)[:CHUNK]
            if events:
                last = self._key(events[-1])
                if last == walked.after or last in self._seen:
                    raise self._failed(
                        f"does not move forward: after {walked.after!r} it returned rows that end "
                        f"with {last!r} again. Return those behind `after`, in the order of the key"
                    )
                unit.changes.announced += [
                    self._announcer.announce(
                        event, Origin(), tx.time, 0.0, None, recipient=self._recipient
                    )
                    for event in events
                ]
                await self._keep(
                    unit,
                    msgspec.structs.replace(
                        walked, after=last, announced=walked.announced + len(events)
                    ),
                )
                self._seen.add(last)
            else:
                await self._keep(unit, msgspec.structs.replace(walked, done=True))
            return bool(events)
        finally:
            await unit.rollback()

    async def _keep(self, unit: UnitOfWork, walked: Walked) -> None:
        mark = msgspec.json.encode(walked).decode()
        tx = unit.transaction(Origin())
        tx.execute(tables.SET_MARK, **self._name, mark=mark, now=unit.changes.time)
        await unit.commit()
        self.walked = walked

    def _checked(self, events: object) -> Sequence[object]:
        cls = self._backfill.event.cls
        if not isinstance(events, list | tuple):
            raise self._failed(
                f"returned {type(events).__name__}: expected a list of {cls.__name__}"
            )
        for event in events:
            if type(event) is not cls:
                raise self._failed(
                    f"returned a {type(event).__name__}: expected each to be a {cls.__name__}"
                )
        return events

    def _key(self, event: object) -> str:
        return str(self._backfill.event.key(event))

    def _failed(self, what: str) -> BackfillFailed:
        name = self._backfill.function.__qualname__
        return BackfillFailed(f"{name}, the backfill of {self._backfill.event.name}, {what}")


def mark_of(event: str, recipient: str) -> str:
    """Return the name of the row in ``oyez_migration`` that says how far a backfill is."""
    return f"{_MARK}{event}:{recipient}"


async def walked_for(store: Store, recipient: str) -> dict[str, Walked]:
    """Return how far the backfills for a service are, in the owner's store, by type of event."""
    found = {}
    for row in await store.fetch(tables.BACKFILLS, {}):
        event, _, asked = row["name"].removeprefix(_MARK).rpartition(":")
        if asked == recipient:
            found[event] = _walked(row)
    return found


def _walked(row: Row) -> Walked:
    return msgspec.json.decode(row["version"], type=Walked)
