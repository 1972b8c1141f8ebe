"""Runs parked events when they come due: retries, and handlers without a transaction.

Beside the lanes, concurrently across keys and in order within one: the store offers only the first
event of each chain, and the commit that ends one frees the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from oyez import tables
from oyez.contract import decode
from oyez.envelope import Envelope, open_record
from oyez.errors import Fenced, OyezError, StoreError, StoreUnavailable, Superseded
from oyez.handler import Context, Handler
from oyez.ports import Changes, Parked
from oyez.runtime.execution import perform
from oyez.runtime.lane import Lane, dead_letter, kind_for
from oyez.runtime.retry import Dead, RetryAt, describe_error, outcome, remember
from oyez.runtime.workbench import Bell, Workbench
from oyez.signals import EventDead, EventRetried, Signal
from oyez.transaction import Origin

POLL = 1.0
"""Seconds between two looks at the store when nothing rings."""
DIED = "the process died during this attempt"


class ParkedEvents:
    """The parked events of the partitions that this process owns."""

    def __init__(self, bench: Workbench, lanes: Mapping[tuple[str, int], Lane], work: Bell) -> None:
        self._bench = bench
        self._lanes = lanes
        self._work = work
        self._running: dict[int, tuple[Parked, asyncio.Task[None]]] = {}
        self._ended: set[int] = set()
        self._suspects: dict[int, bool] = {}
        """Which of those that run may be what kills the process, and whether it runs alone."""
        self._refused = self._waiting = False
        """Whether one that must run alone could not, in this look and in the one before."""
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin to look for due events."""
        self._task = asyncio.create_task(self._run(), name="parked events")

    async def stop(self, grace: float) -> None:
        """Start no more; give those that run ``grace`` seconds, then cancel them."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._end([task for _, task in self._running.values()], grace)

    async def drain(self, stream: str, partition: int, grace: float) -> None:
        """Wait for the events of one partition, whose lane has stopped, that are running now."""
        mine = [
            task
            for parked, task in self._running.values()
            if (parked.stream, parked.partition) == (stream, partition)
        ]
        await self._end(mine, grace)

    @property
    def running(self) -> int:
        """How many run at this moment."""
        return len(self._running)

    async def _end(self, tasks: list[asyncio.Task[None]], grace: float) -> None:
        if not tasks:
            return
        try:
            async with self._bench.ambient.timeout(grace):
                await asyncio.wait(tasks)
        except TimeoutError:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                wait = await self._look()
                failures = 0
            except Exception as error:  # noqa: BLE001 - the look outlives every error
                self._bench.trouble("parked events", error)
                failures += 1
                await self._bench.backoff(failures)
                continue
            await self._work.wait(wait)

    async def _look(self) -> float:
        """Start what is due; seconds until the next look."""
        bench = self._bench
        now = bench.ambient.now()
        wait = POLL
        quiet = set(self._lanes)
        self._waiting, self._refused = self._refused, False
        for handler in bench.handlers.values():
            # A row that ends while the store is being asked may still be in its answer.
            self._ended.clear()
            busy = sum(parked.handler == handler.name for parked, _ in self._running.values())
            if busy < handler.concurrency:
                limit = handler.concurrency
                for parked in await bench.store.due(bench.owner, handler.name, now, limit):
                    quiet.discard((parked.stream, parked.partition))
                    if parked.seq in self._running or parked.seq in self._ended:
                        continue
                    if busy < handler.concurrency:
                        busy += self._begin(handler, parked)
            rows = await bench.store.fetch(
                tables.NEXT_RETRY, {"handler": handler.name, "now": now, "owner": bench.owner}
            )
            if rows[0]["due"] is not None:
                wait = min(wait, rows[0]["due"] - now)
        await self._bury_orphans(now)
        for place in quiet:
            lane = self._lanes.get(place)
            if lane is not None:
                lane.suspects = False
        return max(wait, 0.0)

    async def _bury_orphans(self, now: float) -> None:
        """Dead-letter what waits for a handler that is gone, so that it blocks no key."""
        bench = self._bench
        for row in await bench.store.fetch(
            tables.AWAITED_HANDLERS, {"now": now, "owner": bench.owner}
        ):
            name = row["handler"]
            if name in bench.handlers:
                continue
            for parked in await bench.store.due(bench.owner, name, now, 100):
                lane = self._lanes.get((parked.stream, parked.partition))
                if lane is not None and not lane.fenced:
                    error = OyezError(
                        f"{bench.service} has no handler {name}: redrive it to another with "
                        "--handler, or discard it"
                    )
                    await self._record(name, parked, lane, Dead(str(error)), error)

    def _begin(self, handler: Handler, parked: Parked) -> bool:
        lane = self._lanes.get((parked.stream, parked.partition))
        if lane is None or lane.takes_no_more or self._stopping:
            return False
        if lane.suspects and not self._may_run(handler, parked):
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
        bench = self._bench
        try:
            if lane.suspects:
                if await self._killed_too_often(handler, parked, lane):
                    return
                await self._record_start(parked, lane)
            error = await self._attempt(handler, parked, lane)
            if error is not None:
                await self._record_failure(handler, parked, lane, error)
            else:
                lane.unblock(parked.chain)
        except Superseded:
            return
        except Fenced:
            lane.fenced = True
        except StoreError as trouble:
            bench.trouble("parked events", trouble)
            await bench.backoff(3)  # its row is as it was: it comes due again

    async def _attempt(self, handler: Handler, parked: Parked, lane: Lane) -> Exception | None:
        bench = self._bench
        unit = bench.unit(lane.claim)
        try:
            envelope = open_record(parked.headers, parked.data)
            kind = kind_for(handler, envelope.type)
            event: Any = decode(kind, envelope.data, envelope.dataschema)
            if handler.batch:
                event = [event]
            tx = unit.transaction(Origin.of(envelope), parked.key)
            context = self._context(handler, envelope, parked)
            given = tx if handler.transactional else None
            tx.publish_all(await perform(bench, handler, event, given, context))
            unit.changes.settled.append(parked)
            unit.changes.time = bench.ambient.now()
            await unit.commit()
        except (Fenced, Superseded, StoreUnavailable):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a handler raises
            return error
        finally:
            await unit.rollback()
        return None

    async def _record_failure(
        self, handler: Handler, parked: Parked, lane: Lane, error: Exception
    ) -> None:
        bench = self._bench
        now = bench.ambient.now()
        if not lane.suspects:
            parked.attempt += 1
        history = [entry for entry in parked.history if entry["attempt"] != parked.attempt]
        parked.history = [*history, remember(parked.attempt, error, now)]
        result = outcome(error, parked.attempt, handler.retry, now, bench.ambient.chance())
        await self._record(handler.name, parked, lane, result, error)

    async def _record(
        self,
        handler: str,
        parked: Parked,
        lane: Lane,
        result: Dead | RetryAt,
        error: Exception,
    ) -> None:
        bench = self._bench
        now = bench.ambient.now()
        changes = Changes(claim=lane.claim)
        kind = parked.headers.get("type", "")
        signal: Signal
        if isinstance(result, RetryAt):
            parked.due = result.due
            changes.retried.append(parked)
            signal = EventRetried(
                service=bench.service,
                handler=handler,
                event_id=parked.event_id,
                type=kind,
                attempt=parked.attempt,
                seconds=result.due - now,
                error=describe_error(error),
            )
        else:
            changes.settled.append(parked)
            changes.dead.append(
                dead_letter(
                    parked,
                    None,
                    handler,
                    result,
                    error,
                    parked.attempt,
                    parked.history,
                    now,
                    parked.reader,
                )
            )
            signal = EventDead(
                service=bench.service,
                handler=handler,
                event_id=parked.event_id,
                type=kind,
                reason=result.reason,
            )
        await bench.leave(changes)
        if isinstance(result, Dead):
            lane.unblock(parked.chain)
        bench.signals.emit(signal)

    # -- events that may kill their process -------------------------------------------------------

    def _may_run(self, handler: Handler, parked: Parked) -> bool:
        """Whether a suspect may run now: together with others at first, then alone.

        All that run when the process dies are counted as killers. So whoever was among them once,
        or has no attempt to spare, runs without other suspects beside it: only a killer is counted
        again.
        """
        died = any(entry["error"] == DIED for entry in parked.history)
        alone = died or parked.attempt + 1 >= handler.retry.attempts
        if alone:
            free = not self._suspects
            self._refused |= not free
        else:
            free = not self._waiting and not any(self._suspects.values())
        if free:
            self._suspects[parked.seq] = alone
        return free

    async def _record_start(self, parked: Parked, lane: Lane) -> None:
        parked.attempt += 1
        now = self._bench.ambient.now()
        parked.history = [
            *parked.history,
            {"attempt": parked.attempt, "at": now, "error": DIED},
        ]
        await self._bench.leave(Changes(claim=lane.claim, retried=[parked]))

    async def _killed_too_often(self, handler: Handler, parked: Parked, lane: Lane) -> bool:
        deaths = sum(entry["error"] == DIED for entry in parked.history)
        if deaths == 0 or parked.attempt < handler.retry.attempts:
            return False
        error = OyezError(f"{DIED}, {deaths} times")
        result = Dead(f"failed {parked.attempt} of {handler.retry.attempts} attempts: {error}")
        await self._record(handler.name, parked, lane, result, error)
        return True

    def _context(self, handler: Handler, envelope: Envelope, parked: Parked) -> Context | None:
        if not handler.needs_context:
            return None
        attempt = (
            parked.attempt
            if parked.history and parked.history[-1]["error"] == DIED
            else (parked.attempt + 1)
        )
        return Context(envelope, self._bench.service, handler.name, attempt, handler.retry.attempts)
