"""Runs parked events when they are due: retries, and handlers without a transaction.

They run beside the lanes, concurrently across keys and in order within a key: the store returns
only the first event of each chain, and the commit that settles it releases the next. Many are read
at once, and those that end together share a commit (`oyez.runtime.sharing`).

Timers change keyed state, whose rows are locked by one transaction alone. So those of a place that
were read together run in one transaction, like a lane's batch; one by one if that fails.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from math import inf

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import Fenced, OyezError, StoreError, Superseded
from oyez.event import describe
from oyez.handler import Handler
from oyez.ports import Changes, Parked, Store, Writes
from oyez.runtime.execution import DIED, Execution, deaths, is_suspect
from oyez.runtime.handlers import Handlers
from oyez.runtime.lane import Lane
from oyez.runtime.loop import Bell, Loop
from oyez.runtime.reports import Reports
from oyez.runtime.retry import Dead, RetryAt, longest
from oyez.runtime.sharing import LIMIT
from oyez.tables import TIMERS
from oyez.timers import Timer

POLL = 1.0
"""Seconds between two queries of the store unless the bell rings."""
AHEAD = 512
"""The limit of a handler's events that are read at once, unless ``concurrency`` is more."""
FIRST = 32
"""The same as long as their size is not known."""
BYTES = 8_388_608
"""The limit of their data, as far as ``concurrency`` allows."""
SUSPECTS = 128
"""The same of events that may kill the process: after it died, each of these runs alone."""
DEATHS = 3
"""The number of deaths of the process during attempts at one event alone that make it dead."""
PAUSE = 1.0
"""Seconds after which an event that the store could not settle is due again."""


class Run:
    """One event that was read, until it is settled here or its attempt has ended otherwise."""

    __slots__ = ("joins", "lane", "line", "parked", "returned", "seated", "task", "waits")

    def __init__(self, line: Line, parked: Parked, lane: Lane) -> None:
        self.line = line
        self.parked = parked
        self.lane = lane
        self.task: asyncio.Task[None] | None = None
        self.seated = False
        """Whether it counts as a concurrent call."""
        self.returned = False
        """Whether its handler has returned, so that only its commit is left."""
        self.waits = False
        """Whether it counts until it has ended: its handler did not return at once."""
        first = not parked.history and not parked.due
        self.joins = line.timed and parked.stream == TIMERS and first
        """Whether it runs in one transaction with others of its place: a timer that has not failed.

        Who handles timers only changes keyed state, and never waits.
        """


class Line:
    """The events of one handler that were read: those that wait for their turn, and their number.

    A call that waits for something counts as running until its outcome is committed, so that no
    more than ``concurrency`` calls can be made in vain. One that returns at once does not: it
    shares a commit with as many others as were read.
    """

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.timed = describe(Timer) in handler.events
        """Whether it handles timers."""
        self.ready: deque[Run] = deque()
        self.held = 0
        """The number of those that wait or run."""
        self.busy = 0
        """The number of calls that count as running."""
        self.waiting: deque[asyncio.Future[None]] = deque()
        """Events that have begun and wait until they may be called."""
        self.ahead = max(handler.concurrency, FIRST)
        """The number of events to read at once."""
        self.low = 0
        """The number of held ones at which more are read."""
        self.more = False
        """Whether the store may have events that are due and were not read."""

    @property
    def has_room(self) -> bool:
        """Whether one more call may begin."""
        return self.busy < self.handler.concurrency

    def take(self) -> list[Run]:
        """Take the first that is ready, with all that may run in one transaction with it."""
        first = self.ready.popleft()
        taken = [first]
        if not first.joins or first.lane.suspects:
            return taken
        left: deque[Run] = deque()
        for run in self.ready:
            joins = run.joins and run.lane is first.lane and len(taken) < LIMIT
            (taken if joins else left).append(run)
        self.ready = left
        return taken


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
        self._lines = {handler.name: Line(handler) for handler in handlers}
        self._held: dict[int, Run] = {}
        """The events that were read and have not ended, by ``seq``."""
        self._running: dict[int, Run] = {}
        """Those of them that have begun."""
        self._ended: set[int] = set()
        self._orphans = -POLL
        """The time of the last look for events without a handler, on the monotonic clock."""
        self._reported: StoreError | None = None
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
        await self._end(list(self._running.values()), grace)

    async def drain(self, stream: str, partition: int, grace: float) -> None:
        """Wait at most ``grace`` seconds for the running events of a partition no longer read."""
        place = (stream, partition)
        mine = [run for run in self._running.values() if _place(run.parked) == place]
        await self._end(mine, grace)

    @property
    def running(self) -> int:
        """The number of running events."""
        return len(self._running)

    async def _end(self, runs: list[Run], grace: float) -> None:
        tasks = [run.task for run in runs if run.task is not None]
        if not tasks:
            return
        try:
            async with self._ambient.timeout(max(grace, 0.0)):
                await asyncio.wait(tasks)
        except TimeoutError:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for lane in {id(run.lane): run.lane for run in runs}.values():
            await lane.shared()

    # -- reading -----------------------------------------------------------------------------------

    async def _look(self) -> float:
        """Read due events and start them; return the seconds until the next query."""
        now = self._ambient.now()
        due = inf
        # Of what was read, or stands behind it, nobody knows yet whether it kills the process.
        quiet = self._lanes.keys() - {_place(run.parked) for run in self._held.values()}
        self._waiting, self._refused = self._refused, False
        orphans = []
        for row in await self._store.fetch(tables.PARKED_TIMES, {"now": now}):
            line = self._lines.get(row["handler"])
            if line is None:
                orphans.append(row["handler"])
                continue
            if row["earliest"] <= now:
                await self._read(line, now, quiet)
            if row["coming"] is not None:
                due = min(due, await self._until(line.handler, row["coming"], now))
        if orphans and self._orphans + POLL <= self._ambient.monotonic():
            self._orphans = self._ambient.monotonic()
            await self._bury(orphans, now)
        for place in quiet:
            lane = self._lanes.get(place)
            if lane is not None and not lane.careful:  # else its suspects are still to be parked
                lane.suspects = False
        return self._ambient.poll(POLL, due=max(due, 0.0))

    async def _read(self, line: Line, now: float, quiet: set[tuple[str, int]]) -> None:
        """Read due events of a handler; take from ``quiet`` the places that may have some."""
        limit = self._limit(line)
        if line.held > line.low:
            quiet.clear()
            line.more = True
            return
        lanes = dict(self._lanes)
        # An event that is settled during the query may still be in its result.
        self._ended.clear()
        line.more = False
        due = await self._store.due(self._owner, line.handler.name, now, limit)
        if len(due) == limit:
            line.more = True
            quiet.clear()
        if due:
            average = sum(len(parked.data or b"") for parked in due) // len(due) + 1
            line.ahead = max(line.handler.concurrency, min(AHEAD, BYTES // average))
        for parked in due:
            place = _place(parked)
            quiet.discard(place)
            if parked.seq in self._held or parked.seq in self._ended:
                continue
            lane = lanes.get(place)
            if lane is not None:
                run = self._held[parked.seq] = Run(line, parked, lane)
                line.ready.append(run)
                line.held += 1
        self._fill(line)

    def _limit(self, line: Line) -> int:
        """Return how many due events of a handler to ask for, those included that were read."""
        concurrency = line.handler.concurrency
        ahead = line.ahead
        if any(lane.suspects for lane in self._lanes.values()):
            ahead = max(concurrency, min(SUSPECTS, ahead))
        line.low = ahead // 2
        return line.held + ahead

    async def _until(self, handler: Handler, due: float, now: float) -> float:
        """Return the seconds until the next retry; 0 for one that a clock set back would delay."""
        latest = now + longest(handler.retry)
        if due <= latest:
            return due - now
        hasten: Writes = [(tables.HASTEN, [{"handler": handler.name, "latest": latest}])]
        await self._store.begin().commit(Changes(writes=hasten, time=now))
        return 0.0

    async def _bury(self, names: list[str], now: float) -> None:
        """Make dead letters of events whose handler no longer exists, so that they block no key."""
        for name in names:
            for parked in await self._store.due(self._owner, name, now, 100):
                lane = self._lanes.get(_place(parked))
                mine = lane is not None and lane.claim.reader == parked.reader
                if lane is not None and mine and not lane.fenced:
                    error = OyezError(
                        f"{self._reports.service} has no handler {name}: redrive it to another "
                        "with --handler, or discard it"
                    )
                    await self._execution.record(parked, lane, Dead(str(error)), error)

    # -- running -----------------------------------------------------------------------------------

    def _fill(self, line: Line) -> None:
        """Start as many of a handler's events as it allows."""
        begun = []
        while line.ready and (line.has_room or line.ready[0].lane.suspects):
            runs = line.take()
            if not self._begin(runs):
                for run in runs:
                    self._release(run)
            elif runs[0].seated:
                begun.append(runs[0])
        if begun:
            self._note(begun)

    def _begin(self, runs: list[Run]) -> bool:
        """Start events that were taken together, which count as one call; return whether."""
        run = runs[0]
        parked, lane = run.parked, run.lane
        # It may have changed hands since it was read, and come back.
        if self._lanes.get(_place(parked)) is not lane or lane.takes_no_more or self._loop.ending:
            return False
        if self._survived:
            survived = self._survived.get(parked.seq)
            last = parked.history[-1:]
            if any(entry["error"] == DIED and entry["at"] == survived for entry in last):
                parked.history.pop()  # the process lives: the store alone failed
        if lane.suspects:
            if not self._may_run(parked):
                return False
        else:
            run.seated = True
            run.line.busy += 1
        together = len(runs) > 1
        work = partial(self._attempt_all, runs) if together else partial(self._attempt, run)
        task = asyncio.create_task(self._settle(runs, work), name=f"event {parked.seq}")
        for each in runs:
            each.task = task
            self._running[each.parked.seq] = each
        task.add_done_callback(lambda _: self._done(runs))
        return True

    async def _seat(self, run: Run) -> None:
        """Wait until the handler may be called for one that has begun without a place."""
        line = run.line
        if line.has_room:
            line.busy += 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            line.waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave(line)
                raise
        run.seated = True
        self._note([run])

    def _note(self, called: list[Run]) -> None:
        """Note which of these wait for something, after the first step of each."""

        def note() -> None:
            for run in called:
                run.waits = not run.returned
            self._fill(called[0].line)

        asyncio.get_running_loop().call_soon(note)

    def _leave(self, line: Line) -> None:
        """Give up a place, to the first that waits for one."""
        while line.waiting:
            turn = line.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        line.busy -= 1

    def _returned(self, run: Run) -> None:
        run.returned = True
        if run.seated and not run.waits:
            run.seated = False
            self._leave(run.line)

    def _done(self, runs: list[Run]) -> None:
        line = runs[0].line
        for run in runs:
            seq = run.parked.seq
            if run.seated:
                self._leave(line)
            del self._running[seq]
            self._suspects.pop(seq, None)
            if len(runs) > 1 and not run.joins:
                line.ready.append(run)
            else:
                self._ended.add(seq)
                self._release(run)
        self._fill(line)
        if line.more and line.held <= line.low:
            self._work.ring()

    def _release(self, run: Run) -> None:
        del self._held[run.parked.seq]
        run.line.held -= 1

    async def _settle(self, runs: list[Run], attempt: Callable[[], Awaitable[bool]]) -> None:
        """Make an attempt, which returns whether more events of their chains may be due."""
        line, lane = runs[0].line, runs[0].lane
        behind = True
        try:
            behind = await attempt()
        except Superseded:
            return
        except Fenced:
            lane.fenced = True
        except StoreError as error:
            if error is not self._reported:  # those of one commit have one error
                self._reported = error
                self._reports.trouble("parked events", error)
            await self._ambient.sleep(PAUSE)
            for run in runs:
                await self._look_again(run.parked, lane)
        finally:
            line.more |= behind

    async def _attempt(self, run: Run) -> bool:
        parked, lane = run.parked, run.lane
        begun = not run.seated
        if begun:
            if await self._killed_too_often(parked, lane):
                return True
            alone = self._suspects.get(parked.seq, False)
            try:
                await self._execution.begin(parked, lane, alone=alone)
            finally:  # it may be recorded although the answer was lost
                self._survived[parked.seq] = parked.history[-1]["at"]
        if not run.seated:
            await self._seat(run)
        outcome = await self._execution.attempt(
            run.line.handler, parked, lane, begun=begun, returned=partial(self._returned, run)
        )
        self._survived.pop(parked.seq, None)
        return _blocked(run) or isinstance(outcome, RetryAt) or lane.suspects

    async def _attempt_all(self, runs: list[Run]) -> bool:
        """Attempt events in one transaction; if that fails, each of them joins no others again."""
        line, lane = runs[0].line, runs[0].lane
        parked = [run.parked for run in runs]
        if await self._execution.attempt_all(line.handler, parked, lane):
            return any(_blocked(run) for run in runs)
        for run in runs:
            run.joins = False
        return False

    async def _look_again(self, parked: Parked, lane: Lane) -> None:
        """Count an event as settled if its commit took effect, though its answer was lost.

        Else its row is unchanged, and it is due again.
        """
        while not lane.takes_no_more:
            try:
                rows = await self._store.fetch(tables.IS_PARKED, {"seq": parked.seq})
            except StoreError:
                await self._ambient.sleep(PAUSE)
                continue
            if not rows:
                lane.chains.remove(parked.chain)
            return

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


def _blocked(run: Run) -> bool:
    """Return whether others of its chain are parked."""
    chain = run.parked.chain
    return chain is not None and chain in run.lane.chains


def _place(parked: Parked) -> tuple[str, int]:
    return parked.stream, parked.partition
