"""Runs parked events when they are due: retries, and handlers without a transaction.

They run beside the lanes, concurrently across keys and in order within a key: the store returns
only the first event of each chain, and the commit that settles it releases the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import Fenced, OyezError, StoreError, Superseded
from oyez.handler import Handler
from oyez.ports import Changes, Parked, Store, Writes
from oyez.runtime.execution import DIED, Execution, deaths, is_suspect
from oyez.runtime.handlers import Handlers
from oyez.runtime.lane import Lane
from oyez.runtime.loop import Bell, Loop
from oyez.runtime.reports import Reports
from oyez.runtime.retry import Dead, longest

POLL = 1.0
"""Seconds between two queries of the store unless the bell rings."""
DEATHS = 3
"""The number of deaths of the process during attempts at one event alone that make it dead."""
PAUSE = 1.0
"""Seconds after which an event that the store could not settle is due again."""


class ParkedEvents:
    """The parked events of the partitions that this process owns."""

    def __init__(
        self,
        owner: str,
        handlers: Handlers,
        execution: Execution,
        lanes: Mapping[tuple[str, int], Lane],
        *,
        store: Store,
        ambient: Ambient,
        reports: Reports,
        work: Bell,
    ) -> None:
        """``work`` is rung when an event may be due."""
        self._owner = owner
        self._handlers = handlers
        self._execution = execution
        self._lanes = lanes
        self._store = store
        self._ambient = ambient
        self._reports = reports
        self._work = work
        self._loop = Loop("parked events", self._look, ambient, reports.trouble, bell=work)
        self._running: dict[int, tuple[Parked, asyncio.Task[None]]] = {}
        self._ended: set[int] = set()
        self._suspects: dict[int, bool] = {}
        """The running events that may kill the process, each with whether it runs alone."""
        self._survived: dict[int, float] = {}
        """When the attempts began that were recorded and whose outcome the store does not hold."""
        self._refused = self._waiting = False
        """Whether one that must run alone could not, in this query and in the previous one."""

    def start(self) -> None:
        """Start to query for due events."""
        self._loop.start()

    async def stop(self, grace: float) -> None:
        """Start no more events; cancel the running ones after ``grace`` seconds."""
        await self._loop.cancel()
        await self._end([task for _, task in self._running.values()], grace)

    async def drain(self, stream: str, partition: int, grace: float) -> None:
        """Wait at most ``grace`` seconds for the running events of a partition no longer read."""
        mine = [
            task
            for parked, task in self._running.values()
            if (parked.stream, parked.partition) == (stream, partition)
        ]
        await self._end(mine, grace)

    @property
    def running(self) -> int:
        """The number of running events."""
        return len(self._running)

    async def _end(self, tasks: list[asyncio.Task[None]], grace: float) -> None:
        if not tasks:
            return
        try:
            async with self._ambient.timeout(max(grace, 0.0)):
                await asyncio.wait(tasks)
        except TimeoutError:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _look(self) -> float:
        """Start due events; return the seconds until the next query."""
        now = self._ambient.now()
        wait = POLL
        # Of what runs, or stands behind it, nobody knows yet whether it kills the process.
        running = {(parked.stream, parked.partition) for parked, _ in self._running.values()}
        quiet = self._lanes.keys() - running
        self._waiting, self._refused = self._refused, False
        for handler in self._handlers:
            # An event that is settled during the query may still be in its result.
            self._ended.clear()
            busy = sum(parked.handler == handler.name for parked, _ in self._running.values())
            if busy >= handler.concurrency:
                quiet.clear()
            else:
                limit = handler.concurrency
                due = await self._store.due(self._owner, handler.name, now, limit)
                if len(due) == limit:
                    quiet.clear()
                for parked in due:
                    quiet.discard((parked.stream, parked.partition))
                    if parked.seq in self._running or parked.seq in self._ended:
                        continue
                    if busy < handler.concurrency:
                        busy += self._begin(handler, parked)
            asked = {"handler": handler.name, "now": now, "owner": self._owner}
            (row,) = await self._store.fetch(tables.NEXT_RETRY, asked)
            if row["due"] is not None:
                wait = min(wait, await self._until(handler, row["due"], now))
        await self._bury_orphans(now)
        for place in quiet:
            lane = self._lanes.get(place)
            if lane is not None:
                lane.suspects = False
        return max(wait, 0.0)

    async def _until(self, handler: Handler, due: float, now: float) -> float:
        """Return the seconds until the next retry; 0 for one that a clock set back would delay."""
        latest = now + longest(handler.retry)
        if due <= latest:
            return due - now
        hasten: Writes = [(tables.HASTEN, [{"handler": handler.name, "latest": latest}])]
        await self._store.begin().commit(Changes(writes=hasten, time=now))
        return 0.0

    async def _bury_orphans(self, now: float) -> None:
        """Make dead letters of events whose handler no longer exists, so that they block no key."""
        for row in await self._store.fetch(tables.PARKED_HANDLERS, {}):
            name = row["handler"]
            if name in self._handlers:
                continue
            for parked in await self._store.due(self._owner, name, now, 100):
                lane = self._lanes.get((parked.stream, parked.partition))
                mine = lane is not None and lane.claim.reader == parked.reader
                if lane is not None and mine and not lane.fenced:
                    error = OyezError(
                        f"{self._reports.service} has no handler {name}: redrive it to another "
                        "with --handler, or discard it"
                    )
                    await self._execution.record(parked, lane, Dead(str(error)), error)

    def _begin(self, handler: Handler, parked: Parked) -> bool:
        lane = self._lanes.get((parked.stream, parked.partition))
        if lane is None or lane.takes_no_more or self._loop.ending:
            return False
        survived = self._survived.get(parked.seq)
        if any(entry["error"] == DIED and entry["at"] == survived for entry in parked.history[-1:]):
            parked.history.pop()  # the process lives: the store alone failed
        if lane.suspects and not self._may_run(parked):
            return False
        task = asyncio.create_task(self._settle(handler, parked, lane), name=f"event {parked.seq}")
        self._running[parked.seq] = (parked, task)
        task.add_done_callback(lambda _: self._done(parked))
        return True

    def _done(self, parked: Parked) -> None:
        del self._running[parked.seq]
        self._suspects.pop(parked.seq, None)
        self._ended.add(parked.seq)
        self._work.ring()

    async def _settle(self, handler: Handler, parked: Parked, lane: Lane) -> None:
        try:
            begun = lane.suspects
            if begun:
                if await self._killed_too_often(parked, lane):
                    return
                alone = self._suspects.get(parked.seq, False)
                await self._execution.begin(parked, lane, alone=alone)
                self._survived[parked.seq] = parked.history[-1]["at"]
            await self._execution.attempt(handler, parked, lane, begun=begun)
            self._survived.pop(parked.seq, None)
        except Superseded:
            return
        except Fenced:
            lane.fenced = True
        except StoreError as error:
            self._reports.trouble("parked events", error)
            await self._ambient.sleep(PAUSE)  # its row is unchanged: it is due again

    # -- events that may kill their process -------------------------------------------------------

    def _may_run(self, parked: Parked) -> bool:
        """Return whether a suspect may run now: at first together with others, then alone.

        The process may die of an event, but also of an operator's kill or a lack of memory while
        harmless events run. So a death counts only against an event that ran without other
        suspects, and every event during which the process died once runs without them afterwards.
        """
        alone = is_suspect(parked)
        if alone:
            free = not self._suspects
            self._refused |= not free
        else:
            free = not self._waiting and not any(self._suspects.values())
        if free:
            self._suspects[parked.seq] = alone
        return free

    async def _killed_too_often(self, parked: Parked, lane: Lane) -> bool:
        died = deaths(parked)
        if died < DEATHS:
            return False
        error = OyezError(f"{DIED}, {died} times while nothing else was suspect")
        await self._execution.record(parked, lane, Dead(str(error)), error)
        return True
