"""One attempt of one handler at one event, with its outcome committed: Done, RetryAt or Dead.

The event comes from a lane for its first attempt, or is parked. The difference is in the commit
alone, since a parked event has a row already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from math import inf
from typing import Any

from oyez.ambient import Ambient
from oyez.contract import decode
from oyez.envelope import Envelope, open_record, parse_time, sampled
from oyez.errors import (
    ConstraintViolated,
    Expired,
    Fenced,
    InvalidEvent,
    StateConflict,
    StoreUnavailable,
    Superseded,
)
from oyez.event import EventType
from oyez.handler import Handler
from oyez.parameters import Context
from oyez.ports import Changes, DeadLetter, Parked, Position
from oyez.runtime.calls import Calls, Told
from oyez.runtime.commits import Commits
from oyez.runtime.lane import Lane
from oyez.runtime.reports import Reports
from oyez.runtime.retry import (
    Dead,
    Done,
    Outcome,
    RetryAt,
    describe_error,
    describe_traceback,
    outcome,
    postponed,
    remember,
)
from oyez.signals import EventDead, EventRetried, HandlerTimed, Signal
from oyez.spans import here
from oyez.transaction import UnitOfWork

CONFLICTS = 2
"""After so many conflicts over keyed state, a transaction runs alone."""
DIED = "the process died during this attempt"
"""The entry in an event's history of an attempt without a recorded outcome."""
MOMENT = 1.0
"""Seconds within which deaths have one cause, such as a machine that takes its replicas along."""


class Execution:
    """The execution of attempts, with their outcomes recorded."""

    def __init__(self, calls: Calls, commits: Commits, ambient: Ambient, reports: Reports) -> None:
        self.calls = calls
        self._commits = commits
        self._ambient = ambient
        self._reports = reports

    async def attempt(
        self,
        handler: Handler,
        event: Parked,
        lane: Lane,
        *,
        envelope: Envelope | None = None,
        position: Position | None = None,
        begun: bool = False,
        returned: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Call the handler and commit its effects or, after an error, the event's retry or death.

        ``event`` has a ``seq`` if it is parked already. ``envelope`` is its envelope if decoded
        already; ``position`` is the lane's new position in the same commit; ``begun``: `begin` was
        called. ``returned`` is called when the handler has returned and its commit begins.
        Raises Fenced, Superseded and StoreUnavailable, each with nothing changed.
        """
        how = (handler, event, lane, envelope, position, begun, returned)
        outside = here.set(None)
        try:
            for _ in range(CONFLICTS):
                with suppress(StateConflict):
                    return await self._attempt(*how)
            return await self._attempt(*how, alone=True)
        finally:
            here.reset(outside)

    async def attempt_all(self, handler: Handler, events: Sequence[Parked], lane: Lane) -> bool:
        """Call the handler for parked events, one after the other, and commit all effects at once.

        Return whether all of them could be settled so: if not, nothing has changed, and each needs
        an attempt of its own. They are of different chains, and their first attempts. Raises Fenced
        and StoreUnavailable, each with nothing changed.
        """
        outside = here.set(None)
        try:
            for number in range(CONFLICTS + 1):
                with suppress(StateConflict):
                    return await self._attempt_all(handler, events, lane, number == CONFLICTS)
            return False
        finally:
            here.reset(outside)

    async def _attempt_all(
        self, handler: Handler, events: Sequence[Parked], lane: Lane, alone: bool
    ) -> bool:
        """Do the same; raise StateConflict when others were in the way."""
        unit = self._commits.unit(lane.claim)
        tracer = self._reports.tracer
        told = None
        if tracer is not None or self._reports.calls:
            told = Told(self._ambient, self._reports, tracer)
        took: list[float] = []
        try:
            opened = [self._open(handler, event, None, unit) for event in events]
            await self._load(unit, handler, opened, alone)
            for event, (envelope, value) in zip(events, opened, strict=True):
                await self._perform(unit, handler, event, envelope, value, told, took)
            unit.changes.settled.extend(events)
            await lane.commit(unit, None)
        except (Fenced, StoreUnavailable, asyncio.CancelledError):
            raise
        except Exception:  # noqa: BLE001 - a handler may raise anything; each runs alone now
            return False
        else:
            for event in events:
                lane.chains.remove(event.chain)
            self._tell_duration(events[took.index(max(took))], "done", took)
            if told is not None:
                told.tell("done")
            return True
        finally:
            if told is not None:
                told.tell("repeated")
            await unit.rollback()

    async def _attempt(
        self,
        handler: Handler,
        event: Parked,
        lane: Lane,
        envelope: Envelope | None,
        position: Position | None,
        begun: bool,
        returned: Callable[[], None],
        *,
        alone: bool = False,
    ) -> Outcome:
        """Do the same; raise StateConflict, which is no outcome, when others were in the way."""
        unit = self._commits.unit(lane.claim)
        told = None
        tracer = None if event.reader else self._reports.tracer  # see `Batches`
        if tracer is not None or self._reports.calls:
            told = Told(self._ambient, self._reports, tracer)
        took: list[float] = []
        try:
            await self._call(unit, handler, event, envelope, told, took, alone)
            returned()
            self._settle(unit.changes, event)
            await _commit(event, lane, unit, position)
        except (Fenced, Superseded, StoreUnavailable, asyncio.CancelledError):
            if told is not None:
                told.tell("repeated")
            raise
        except Exception as caught:  # noqa: BLE001 - a handler may raise anything
            error = caught
        else:
            if event.seq:
                lane.chains.remove(event.chain)
            self._tell_duration(event, "done", took)
            if told is not None:
                told.tell("done")
            return Done()
        finally:
            await unit.rollback()
        if isinstance(error, ConstraintViolated) and not event.seq:
            identity = (event.event_id, event.source, event.handler)
            if await self._commits.store.seen([identity], lane.claim.reader):
                await lane.advance(position)  # a copy of it, on another partition, was faster
                if told is not None:
                    told.tell("repeated")
                return Done()
        now = self._ambient.now()
        earlier = event.history[:-1] if begun else event.history
        result: RetryAt | Dead | None = postponed(error, handler.retry, now)
        if result is not None:
            event.history = earlier
        else:
            event.attempt += 1
            event.history = [*earlier, remember(event.attempt, error, now)]
            result = outcome(error, event.attempt, handler.retry, now, self._ambient.chance())
        kind = "" if envelope is None else envelope.type
        try:
            await self.record(event, lane, result, error, position, kind)
        except BaseException:
            if told is not None:
                told.tell("repeated", error)
            raise
        if isinstance(result, RetryAt) and not result.failed:
            if told is not None:
                told.tell("repeated")
            return result
        word = "retry" if isinstance(result, RetryAt) else "dead"
        self._tell_duration(event, word, took)
        if told is not None:
            told.tell(word, error)
        return result

    async def record(
        self,
        event: Parked,
        lane: Lane,
        result: RetryAt | Dead,
        error: Exception,
        position: Position | None = None,
        kind: str = "",
    ) -> None:
        """Park an event for its retry or make it a dead letter, and commit.

        ``kind`` is its type, if known better than from the record's headers.
        """
        kind = kind or event.headers.get("type", "")
        now = self._ambient.now()
        changes = Changes(claim=lane.claim)
        signal: Signal
        if isinstance(result, RetryAt):
            event.due = result.due
            if event.seq:
                changes.retried.append(event)
                await lane.share(changes)
            else:
                await park(lane, [event], changes, position)
            if not result.failed:
                return
            signal = EventRetried(
                service=self._reports.service,
                handler=event.handler,
                event_id=event.event_id,
                type=kind,
                attempt=event.attempt,
                seconds=result.due - now,
                error=describe_error(error),
            )
        else:
            self._settle(changes, event)
            changes.dead.append(
                DeadLetter(
                    event_id=event.event_id,
                    source=event.source,
                    type=kind,
                    handler=event.handler,
                    stream=event.stream,
                    partition=event.partition,
                    position=event.position,
                    key=event.key,
                    reason=result.reason,
                    traceback=describe_traceback(error),
                    attempts=len(event.history),
                    history=event.history,
                    headers=event.headers,
                    data=event.data,
                    time=now,
                    reader=event.reader,
                )
            )
            self._commits.tell_sender(changes, event, kind, result.reason)
            await _commit(event, lane, changes, position)
            if event.seq:
                lane.chains.remove(event.chain)
            signal = EventDead(
                service=self._reports.service,
                handler=event.handler,
                event_id=event.event_id,
                type=kind,
                reason=result.reason,
            )
        self._reports.emit(signal)

    async def begin(self, event: Parked, lane: Lane, *, alone: bool) -> None:
        """Record the start of an attempt that may kill the process, and whether it runs alone."""
        started = {
            "attempt": event.attempt + 1,
            "at": self._ambient.now(),
            "error": DIED,
            "alone": alone,
        }
        event.history = [*event.history, started]
        await lane.share(Changes(claim=lane.claim, retried=[event]))

    async def _call(
        self,
        unit: UnitOfWork,
        handler: Handler,
        event: Parked,
        envelope: Envelope | None,
        told: Told | None,
        took: list[float],
        alone: bool,
    ) -> None:
        """Call the handler for one event; as `_perform`."""
        opened = self._open(handler, event, envelope, unit)
        await self._load(unit, handler, [opened], alone)
        await self._perform(unit, handler, event, *opened, told, took)

    def _open(
        self, handler: Handler, event: Parked, envelope: Envelope | None, unit: UnitOfWork
    ) -> tuple[Envelope, Any]:
        """Return the event's envelope, and the event as the handler takes it."""
        if envelope is None:
            envelope = open_record(event.headers, event.data)
        return envelope, decode_for(handler, envelope, unit.changes.time)

    async def _load(
        self,
        unit: UnitOfWork,
        handler: Handler,
        opened: Sequence[tuple[Envelope, Any]],
        alone: bool,
    ) -> None:
        """Load the handler's keyed state for events."""
        if handler.states:
            places = [
                (state.kind.name, state.key_of(value, envelope.key))
                for envelope, value in opened
                for state in handler.states
            ]
            await unit.load(places, alone=alone or handler.reads)

    async def _perform(
        self,
        unit: UnitOfWork,
        handler: Handler,
        event: Parked,
        envelope: Envelope,
        value: Any,
        told: Told | None,
        took: list[float],
    ) -> None:
        """Call the handler; ``told`` collects the call if it is to be told of.

        ``took`` receives how long the call took, in seconds, also if it failed.
        """
        context = None
        if handler.needs_context:
            context = Context(
                envelope,
                self._reports.service,
                handler.name,
                event.attempt + 1,
                handler.retry.attempts,
            )
        tx = unit.transaction(envelope, envelope.key)
        here.set(tx)  # until the attempt ends, so that the lines about its outcome belong to it
        call = None
        if told is not None and told.wants(envelope.traceparent):
            place = (event.stream, event.partition)
            call = told.call(handler, (envelope,), tx, *place, event.attempt + 1)
        began = self._ambient.monotonic()
        try:
            with call or nullcontext():
                events = await self.calls.perform(
                    handler, [value] if handler.batch else value, tx, context
                )
        finally:
            took.append((self._ambient.monotonic() if call is None else call.ended) - began)
        if event.seq:
            unit.restamp()
        tx.publish_all(events)

    def _tell_duration(self, event: Parked, outcome: str, took: list[float]) -> None:
        """Report how long calls took, the longest one with the event; nothing if there was none."""
        if took:
            self._reports.emit(
                HandlerTimed(
                    service=self._reports.service,
                    handler=event.handler,
                    outcome=outcome,
                    seconds=took,
                    trace_id=sampled(event.headers.get("traceparent")),
                )
            )

    def _settle(self, changes: Changes, event: Parked) -> None:
        if event.seq:
            changes.settled.append(event)
        else:
            changes.handled.append((event.event_id, event.source, event.handler))


def _commit(
    event: Parked, lane: Lane, work: UnitOfWork | Changes, position: Position | None
) -> Awaitable[None]:
    return lane.share(work) if event.seq else lane.commit(work, position)


async def park(
    lane: Lane, events: list[Parked], changes: Changes, position: Position | None
) -> None:
    """Park events that have no row yet, in one commit with other changes."""
    for event in events:
        lane.chains.add(event.chain)
    changes.parked.extend(events)
    try:
        await lane.commit(changes, position)
    except BaseException:
        for event in events:
            lane.chains.remove(event.chain)
        raise


def deaths(event: Parked) -> int:
    """Return how often the process died while it attempted this event and no other.

    Deaths within a moment of the first of them count once: a process that an event has killed takes
    longer to come back, and what kills several replicas so soon is not the event.
    """
    count, since = 0, -inf
    for entry in _died(event.history):
        if entry.get("alone") and abs(entry["at"] - since) >= MOMENT:
            count, since = count + 1, entry["at"]
    return count


def is_suspect(event: Parked) -> bool:
    """Return whether the process has died during an attempt at this event."""
    return bool(_died(event.history))


def _died(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in history if entry["error"] == DIED]


def decode_for(handler: Handler, envelope: Envelope, now: float) -> object:
    """Return the event as the class that the handler subscribes with.

    Raises InvalidEvent, and Expired when it is a command that was to be done by a time before
    ``now``.
    """
    expires = envelope.expires
    if expires is not None and parse_time(expires, "expires").timestamp() < now:
        raise Expired(f"expired at {expires}, so it was not done; redrive it with --old")
    kinds = handler.events
    kind = kinds[0] if len(kinds) == 1 else _kind_for(handler, envelope.type)
    return decode(kind, envelope.data, envelope.dataschema)


def _kind_for(handler: Handler, name: str) -> EventType:
    for kind in handler.events:
        if kind.name == name:
            return kind
    raise InvalidEvent("type", f"{handler.name} does not subscribe to {name}")
