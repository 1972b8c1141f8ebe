"""Reads a view's events from the beginning of every stream, and for as long as the view exists.

A view has positions, an inbox and parked events of its own, under the reader that bears its name
and version. The lanes that fill it are its lanes for ever: between catching up and living there is
no hand-over, and so no gap.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import HistoryMissing
from oyez.handler import Handler
from oyez.ports import BEGINNING, Batch, Broker, Position
from oyez.runtime.batches import Batches
from oyez.runtime.calls import Calls
from oyez.runtime.claims import Claims, Place
from oyez.runtime.commits import Commits
from oyez.runtime.execution import Execution
from oyez.runtime.handlers import Handlers
from oyez.runtime.lane import Lane
from oyez.runtime.loop import Bell
from oyez.runtime.parked import ParkedEvents
from oyez.runtime.reading import Reading
from oyez.runtime.reports import Reports
from oyez.view import ViewType

CRASHES = 5
"""The number of owners that died at one position, from which it is passed with care, event by
event: what a view does seldom kills a process, and most who end a rebuild are operators."""


class Whole:
    """A consumer that refuses a stream whose beginning is no longer there; see `Consumer`."""

    def __init__(
        self,
        lane: Lane,
        batches: Batches,
        starts: Callable[[str], Awaitable[list[Position]]],
        missing: dict[Place, int],
        applied: dict[Place, float],
    ) -> None:
        """``missing`` is told of what it refuses: the number of records of each partition.

        ``applied`` is told the time of the last record of each partition that was handled.
        """
        self._lane = lane
        self._batches = batches
        self._starts = starts
        self._missing = missing
        self._applied = applied
        self._checked = lane.position != BEGINNING

    async def take(self, batch: Batch) -> int:
        if not self._checked:
            await self._check(batch)
            self._checked = True
        count = await self._batches.take(batch)
        claim = self._lane.claim
        self._applied[claim.stream, claim.partition] = batch.records[-1].time
        return count

    async def _check(self, batch: Batch) -> None:
        claim = self._lane.claim
        place = (claim.stream, claim.partition)
        missed = batch.missed
        if not missed:
            starts = await self._starts(claim.stream)
            missed = starts[claim.partition] if claim.partition < len(starts) else BEGINNING
        if not missed:
            self._missing.pop(place, None)
            return
        self._missing[place] = missed
        raise HistoryMissing(
            f"{claim.reader} can't be filled: retention has deleted the first {missed} records of "
            f"{claim.stream}[{claim.partition}]"
        )


class Rebuild:
    """One view in this process: the partitions that it reads here, and its parked events."""

    def __init__(
        self,
        kind: ViewType,
        handler: Handler,
        owner: str,
        *,
        system: str,
        calls: Callable[[Handlers], Calls],
        broker: Broker,
        commits: Commits,
        ambient: Ambient,
        reports: Reports,
        grace: float,
    ) -> None:
        self.kind = kind
        self.missing: dict[Place, int] = {}
        """Partitions whose first records are deleted, with their number: the view is not whole."""
        self.lanes: dict[Place, Lane] = {}
        self._applied: dict[Place, float] = {}
        self.work = Bell(ambient)
        self.handlers = Handlers(system, handler.service, [handler])
        self.handlers.bind({})
        self._broker = broker
        self._commits = commits
        self._ambient = ambient
        self._reports = reports
        self._since = ambient.now()
        self._execution = Execution(calls(self.handlers), commits, ambient, reports)
        self.parked = ParkedEvents(
            owner,
            self.handlers,
            self._execution,
            self.lanes,
            store=commits.store,
            ambient=ambient,
            reports=reports,
            work=self.work,
        )
        self.claims = Claims(
            owner,
            self.lanes,
            self.parked,
            reads=self.handlers.read,
            reading=self._reading,
            timers=None,
            broker=broker,
            commits=commits,
            ambient=ambient,
            reports=reports,
            work=self.work,
            grace=grace,
            reader=kind.name,
            crashes=CRASHES,
        )

    def start(self) -> None:
        """Start reading."""
        self.claims.start()
        self.parked.start()

    async def stop(self) -> None:
        """Claim no more; finish and save every lane."""
        await self.claims.stop()

    def kill(self) -> None:
        """End everything at once but the parked events that run."""
        self.claims.kill()

    async def staleness(self) -> float:
        """Return the age in seconds of the oldest event here that is not applied; 0 for none.

        It is at most that: an event is known to be younger than what was applied before it. Raises
        BrokerError and StoreError.
        """
        now = self._ambient.now()
        oldest = now
        positions: dict[str, dict[int, Position]] = {}
        for (stream, partition), lane in list(self.lanes.items()):
            positions.setdefault(stream, {})[partition] = lane.position
        for stream, asked in sorted(positions.items()):
            for partition, lag in (await self._broker.lag(stream, asked)).items():
                place = (stream, partition)
                if lag:
                    oldest = min(oldest, self._applied.setdefault(place, self._since))
                else:
                    self._applied[place] = now
        for row in await self._commits.store.fetch(tables.PARKED, {"reader": self.kind.name}):
            if (row["stream"], row["partition"]) in self.lanes:
                oldest = min(oldest, row["oldest"])
        return now - oldest

    def _reading(self, lane: Lane) -> Reading:
        batches = Batches(
            lane,
            self.handlers,
            self._execution,
            broker=self._broker,
            commits=self._commits,
            ambient=self._ambient,
            reports=self._reports,
        )
        return Reading(
            lane,
            Whole(lane, batches, self._starts, self.missing, self._applied),
            broker=self._broker,
            ambient=self._ambient,
            reports=self._reports,
        )

    async def _starts(self, stream: str) -> list[Position]:
        return list(await self._broker.starts(stream))
