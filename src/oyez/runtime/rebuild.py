"""Reads a view's events from the beginning of every stream, and for as long as the view exists.

A view has positions, an inbox and parked events of its own, under the reader that bears its name
and version. The lanes that fill it are its lanes for ever: between catching up and living there is
no hand-over, and so no gap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import HistoryMissing
from oyez.handler import Handler
from oyez.ports import BEGINNING, Batch, Broker, Position, Record
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

TURN = 0.002
"""Seconds that a view works at a time beside live events."""
REST = 3.0
"""The rest after a turn, in its lengths."""
LEAST = 8
"""The least events of a turn."""
LATELY = 1.0
"""Seconds after a live event in which others are expected."""


class Pace:
    """Leaves time to what a process handles live, while its views catch up.

    Where the process has handlers too, one view reads at a time. Beside live events it takes so few
    of its own that it holds up a live one for some `TURN`, and then rests for `REST` times as long.
    So it does at first, while the handlers' lanes are claimed.
    """

    def __init__(self, ambient: Ambient, lanes: Mapping[Place, Lane], *, alone: bool) -> None:
        """``lanes`` are those of the process's handlers; ``alone`` if it has none."""
        self._ambient = ambient
        self._lanes = lanes
        self._alone = alone
        self._began = ambient.monotonic()
        self._lock = asyncio.Lock()
        self._most = LEAST

    async def run(
        self, records: Sequence[Record], work: Callable[[Sequence[Record]], Awaitable[int]]
    ) -> int:
        """Let ``work`` have the records, some at a time; return the sum of its results."""
        done = begun = 0
        while begun < len(records):
            if self._alone:
                return done + await work(records[begun:])
            async with self._lock:
                part = records[begun : begun + self._most] if self._busy() else records[begun:]
                start = self._ambient.monotonic()
                done += await work(part)
                took = self._ambient.monotonic() - start
                begun += len(part)
                if self._busy():
                    self._most = max(LEAST, int(len(part) * min(TURN / max(took, 1e-6), 2.0)))
                    await self._ambient.sleep(took * REST)
        return done

    def _busy(self) -> bool:
        """Whether a live event came lately, or the process began."""
        since = self._ambient.monotonic() - LATELY
        return self._began > since or any(
            not lane.idle or lane.moved > since
            for (stream, _), lane in self._lanes.items()
            if stream != tables.TIMERS
        )


class Whole:
    """A consumer that refuses a stream whose beginning is no longer there; see `Consumer`.

    It keeps to the pace until the lane has reached what was the end of its stream at first.
    """

    def __init__(
        self,
        lane: Lane,
        batches: Batches,
        broker: Broker,
        pace: Pace,
        missing: dict[Place, int],
        applied: dict[Place, float],
    ) -> None:
        """``missing`` is told of what it refuses: the number of records of each partition.

        ``applied`` is told the time of the last record of each partition that was handled.
        """
        self._lane = lane
        self._place = (lane.claim.stream, lane.claim.partition)
        self._batches = batches
        self._broker = broker
        self._pace = pace
        self._missing = missing
        self._applied = applied
        self._until: Position | None = None

    async def take(self, batch: Batch) -> int:
        lane = self._lane
        if self._until is None:
            self._until = await self._begin(batch)
        if lane.position >= self._until or lane.leaving:
            count = await self._batches.take(batch)
        else:
            count = await self._pace.run(batch.records, self._take)
        self._applied[self._place] = batch.records[-1].time
        return count

    async def _take(self, records: Sequence[Record]) -> int:
        count = await self._batches.take(Batch(list(records)))
        self._lane.progress()  # the rest of the batch may wait long for its turn
        return count

    async def _begin(self, batch: Batch) -> Position:
        """Return the end of the partition. Raises HistoryMissing, and BrokerError."""
        stream, partition = self._place
        if self._lane.position == BEGINNING:
            starts = await self._broker.starts(stream)
            known = starts[partition] if partition < len(starts) else BEGINNING
            missed = batch.missed or known
            if missed:
                self._missing[self._place] = missed
                raise HistoryMissing(
                    f"{self._lane.claim.reader} can't be filled: retention has deleted the first "
                    f"{missed} records of {stream}[{partition}]: see `oyez view begin`"
                )
        self._missing.pop(self._place, None)
        ends = await self._broker.ends(stream)
        return ends[partition] if partition < len(ends) else BEGINNING


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
        pace: Pace,
    ) -> None:
        self.kind = kind
        self.missing: dict[Place, int] = {}
        """Partitions whose first records are deleted, with their number: the view is not whole."""
        self.lanes: dict[Place, Lane] = {}
        self._applied: dict[Place, float] = {}
        self.work = Bell(ambient)
        self.handlers = Handlers(system, handler.service, [handler])
        self.handlers.bind({})
        self._pace = pace
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
            Whole(lane, batches, self._broker, self._pace, self.missing, self._applied),
            broker=self._broker,
            ambient=self._ambient,
            reports=self._reports,
        )
