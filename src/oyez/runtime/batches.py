"""Handles the records of one partition: 1 to 256 in one transaction.

The handlers' writes, the events they publish, the inbox and the new position are one commit. If any
part fails, all is rolled back and the events run one by one, so that only the failing one is
parked, followed by the later events of its key. A handler without a transaction never runs here:
its event is parked at once, due now, and `oyez.runtime.parked` calls it beside the lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from types import CoroutineType
from typing import cast

import msgspec

from oyez.ambient import Ambient
from oyez.envelope import Envelope, open_record, sampled
from oyez.errors import Fenced, InvalidEvent, StateConflict, StoreUnavailable
from oyez.handler import Handler
from oyez.parameters import Context
from oyez.ports import Batch, Broker, Changes, DeadLetter, Parked, Position, Record
from oyez.runtime.calls import Told, clocked
from oyez.runtime.commits import Commits
from oyez.runtime.execution import CONFLICTS, Execution, decode_for, park
from oyez.runtime.handlers import Handlers
from oyez.runtime.lane import Lane
from oyez.runtime.reports import Reports
from oyez.runtime.retry import describe_error, describe_traceback
from oyez.signals import EventDead, HandlerTimed
from oyez.transaction import Transaction, UnitOfWork

PARKED_LIMIT = 10_000
"""The number of parked events at which a lane stops reading until some are done."""
SAVE = 1.0
"""Seconds after which a position is saved that moved only past events of no handler here."""


class Item(msgspec.Struct):
    """A record for this service, and the handlers that have not handled it yet."""

    record: Record
    envelope: Envelope | None
    key: str | None
    """The key that orders the event."""
    handlers: Sequence[Handler]
    broken: InvalidEvent | None = None


class Batches:
    """The consumer that runs a service's handlers for the records of one lane."""

    def __init__(
        self,
        lane: Lane,
        handlers: Handlers,
        execution: Execution,
        *,
        broker: Broker,
        commits: Commits,
        ambient: Ambient,
        reports: Reports,
    ) -> None:
        self._lane = lane
        self._wanted = handlers.of(lane.claim.stream)
        self._handlers = handlers
        self._execution = execution
        self._calls = execution.calls
        self._broker = broker
        self._commits = commits
        self._ambient = ambient
        self._reports = reports
        # A view's reading is not recorded: it reads all events of long ago when it is rebuilt.
        self._tracer = None if lane.claim.reader else reports.tracer

    async def take(self, batch: Batch) -> int:
        lane = self._lane
        last = batch.records[-1].position
        items = await self._open(batch.records)
        if not items:
            lane.position = last
            if not self._broker.capabilities.history:
                # A queue holds back later events of a key until the earlier ones are acknowledged.
                self._broker.handled(lane.claim.stream, lane.claim.partition, last)
            if self._ambient.monotonic() - lane.saved_at > SAVE:
                await lane.save()
        else:
            if lane.careful:
                await self._park_all(items, last)
            else:
                await self._together(items, last)
            while lane.chains.total >= PARKED_LIMIT and not lane.leaving:
                await lane.chains.wait(1.0)
        lane.careful = False
        return len(items)

    # -- the handlers of a record ------------------------------------------------------------------

    async def _open(self, records: Sequence[Record]) -> list[Item]:
        """Return the records for this service that its handlers have not handled yet."""
        table, me = self._wanted, self._handlers.service
        items: list[Item] = []
        for record in records:
            headers = record.headers
            kind = headers.get("type")
            if kind is not None and kind not in table:
                continue
            if headers.get("recipient", me) != me:
                continue
            try:
                envelope = open_record(record.headers, record.data)
            except InvalidEvent as error:
                items.append(Item(record, None, record.key, (), error))
                continue
            handlers = table.get(envelope.type)
            recipient = envelope.recipient
            if handlers and (recipient is None or recipient == me):
                items.append(Item(record, envelope, envelope.key, handlers))
        return await self._without_duplicates(items)

    async def _without_duplicates(self, items: list[Item]) -> list[Item]:
        asked = [
            (item.envelope.id, item.envelope.source, handler.name)
            for item in items
            if item.envelope is not None
            for handler in item.handlers
        ]
        if not asked:
            return items
        seen = await self._commits.store.seen(asked, self._lane.claim.reader)
        if not seen and len(set(asked)) == len(asked):
            return items
        left: list[Item] = []
        for item in items:
            envelope = item.envelope
            if envelope is not None:
                fresh = []
                for handler in item.handlers:
                    identity = (envelope.id, envelope.source, handler.name)
                    if identity not in seen:
                        seen.add(identity)
                        fresh.append(handler)
                if not fresh:
                    continue
                item.handlers = fresh
            left.append(item)
        return left

    # -- all in one transaction --------------------------------------------------------------------

    async def _together(self, items: list[Item], last: Position) -> None:
        """Handle all items in one transaction; one by one if that fails."""
        for _ in range(CONFLICTS):
            with suppress(StateConflict):
                await self._try_together(items, last, alone=False)
                return
        await self._try_together(items, last, alone=True)

    async def _try_together(self, items: list[Item], last: Position, *, alone: bool) -> None:
        """Handle all items in one transaction, which runs beside others unless ``alone``.

        Raises StateConflict when it has to be tried again, with nothing changed.
        """
        lane = self._lane
        unit = self._commits.unit(lane.claim)
        told = None
        if self._tracer is not None or self._reports.calls:
            told = Told(self._ambient, self._reports, self._tracer)
        took: list[float] | None = [] if self._reports.heard else None
        parked: list[Parked] = []
        broken: list[DeadLetter] = []
        try:
            calls: list[tuple[Handler, Item]] = []
            lists: dict[str, list[Item]] = {}
            for item in items:
                if item.broken is not None:
                    broken.append(self._broken(item))
                    continue
                for handler in item.handlers:
                    if self._must_park(handler, item.key):
                        event = self._waiting(item, handler)
                        lane.chains.add(event.chain)
                        parked.append(event)
                    elif handler.batch:
                        lists.setdefault(handler.name, []).append(item)
                    else:
                        calls.append((handler, item))
            alone |= any(self._handlers[name].reads for name in lists)
            await self._call(unit, calls, told, took, alone)
            for name, members in lists.items():
                handler = self._handlers[name]
                await self._call_batch(unit, handler, members, told, took)
                calls.append((handler, members[0]))
            unit.changes.parked = parked
            unit.changes.dead = broken
            await lane.commit(unit, last)
        except (Fenced, StoreUnavailable, asyncio.CancelledError):
            self._forget(parked)
            raise
        except Exception:  # noqa: BLE001 - a handler may raise anything; each runs alone now
            self._forget(parked)
            if told is not None:
                told.tell("repeated")
            await unit.rollback()
            for item in items:
                await self._alone(item)
            await lane.advance(last)
        else:
            self._report(broken)
            if took:
                self._tell_durations(calls, took)
            if told is not None:
                told.tell("done")
        finally:
            if told is not None:
                told.tell("repeated")
            await unit.rollback()

    async def _call(
        self,
        unit: UnitOfWork,
        calls: Sequence[tuple[Handler, Item]],
        told: Told | None,
        took: list[float] | None,
        alone: bool,
    ) -> None:
        """Call handlers for one event each.

        ``told`` collects the calls to be told of, ``took`` how long each call took, in seconds.
        """
        handled = unit.changes.handled
        now = unit.changes.time
        events = [
            decode_for(handler, cast(Envelope, item.envelope), now) for handler, item in calls
        ]
        if self._handlers.keep_state:
            places = [
                (state.kind.name, state.key_of(event, item.key))
                for (handler, item), event in zip(calls, events, strict=True)
                for state in handler.states
            ]
            if places:
                alone = alone or any(handler.reads for handler, _ in calls)
                await unit.load(places, alone=alone)
        wants = None if told is None else told.wants
        index, begin, clock = 0, self._calls.begin, self._ambient.monotonic
        began = clock()
        while index < len(calls):
            handler, item = calls[index]
            if not handler.blocking:
                envelope = cast(Envelope, item.envelope)
                tx = Transaction(unit, envelope, item.key)
                context = self._context(handler, envelope) if handler.needs_context else None
                call = None
                if told is not None and wants is not None and wants(envelope.traceparent):
                    at = item.record
                    call = told.call(handler, (envelope,), tx, at.stream, at.partition)
                if call is None:
                    answer = begin(handler, events[index], tx, context)
                    for event in await answer if isinstance(answer, CoroutineType) else answer:
                        tx.publish(event)
                else:
                    with call:
                        tx.publish_all(
                            await self._calls.perform(handler, events[index], tx, context)
                        )
                handled.append((envelope.id, envelope.source, handler.name))
                if took is not None:
                    ended = clock() if call is None else call.ended
                    took.append(ended - began)
                    began = ended
                index += 1
                continue
            end = index
            while end < len(calls) and calls[end][0] is handler:
                end += 1
            await self._call_blocking(unit, calls[index:end], events[index:end], told, took)
            began = clock()
            index = end

    async def _call_blocking(
        self,
        unit: UnitOfWork,
        calls: Sequence[tuple[Handler, Item]],
        events: Sequence[object],
        told: Told | None,
        took: list[float] | None,
    ) -> None:
        ready = []
        transactions = []
        for (handler, item), event in zip(calls, events, strict=True):
            envelope = cast(Envelope, item.envelope)
            tx = unit.transaction(envelope, item.key)
            context = self._context(handler, envelope) if handler.needs_context else None
            call = self._calls.ready(handler, event, tx, context)
            known = None
            if told is not None and told.wants(envelope.traceparent):
                at = item.record
                known = told.call(handler, (envelope,), tx, at.stream, at.partition)
            if known is not None:
                call = known.around(call, took)
            elif took is not None:
                call = clocked(call, self._ambient.monotonic, took)
            ready.append((handler, call))
            transactions.append(tx)
            unit.changes.handled.append((envelope.id, envelope.source, handler.name))
        results = await self._calls.perform_blocking(ready)
        for tx, returned in zip(transactions, results, strict=True):
            tx.publish_all(returned)

    async def _call_batch(
        self,
        unit: UnitOfWork,
        handler: Handler,
        items: list[Item],
        told: Told | None,
        took: list[float] | None,
    ) -> None:
        envelopes = [cast(Envelope, item.envelope) for item in items]
        tx = unit.transaction(envelopes[0])
        if len({envelope.authid for envelope in envelopes}) > 1:
            tx.disown()
        now = unit.changes.time
        events = [decode_for(handler, envelope, now) for envelope in envelopes]
        call = None
        if told is not None and any(told.wants(each.traceparent) for each in envelopes):
            at = items[0].record
            call = told.call(handler, envelopes, tx, at.stream, at.partition)
        began = self._ambient.monotonic()
        with call or nullcontext():
            tx.publish_all(await self._calls.perform(handler, events, tx, None))
        if took is not None:
            took.append((self._ambient.monotonic() if call is None else call.ended) - began)
        unit.changes.handled.extend((e.id, e.source, handler.name) for e in envelopes)

    def _tell_durations(self, calls: Sequence[tuple[Handler, Item]], took: Sequence[float]) -> None:
        """Report how long calls took that were committed: one signal for each handler."""
        names = {handler.name for handler, _ in calls}
        for name in names:
            own, seconds = calls, took
            if len(names) > 1:
                chosen = [index for index, (each, _) in enumerate(calls) if each.name == name]
                own = [calls[index] for index in chosen]
                seconds = [took[index] for index in chosen]
            longest = own[seconds.index(max(seconds))][1].envelope
            self._reports.emit(
                HandlerTimed(
                    service=self._reports.service,
                    handler=name,
                    outcome="done",
                    seconds=seconds,
                    trace_id="" if longest is None else sampled(longest.traceparent),
                )
            )

    def _context(self, handler: Handler, envelope: Envelope) -> Context:
        return Context(envelope, self._reports.service, handler.name, 1, handler.retry.attempts)

    # -- one by one --------------------------------------------------------------------------------

    async def _alone(self, item: Item) -> None:
        """Run each handler of one item in a transaction of its own, and record a failure."""
        lane = self._lane
        if item.broken is not None:
            letters = [self._broken(item)]
            await lane.commit(Changes(claim=lane.claim, dead=letters), item.record.position)
            self._report(letters)
            return
        for handler in item.handlers:
            # The position moves with the last one; until then the inbox records what is done.
            position = item.record.position if handler is item.handlers[-1] else None
            event = self._waiting(item, handler)
            if self._must_park(handler, item.key):
                await park(lane, [event], Changes(claim=lane.claim), position)
            else:
                await self._execution.attempt(
                    handler, event, lane, envelope=item.envelope, position=position
                )

    # -- parking -----------------------------------------------------------------------------------

    def _must_park(self, handler: Handler, key: str | None) -> bool:
        if not handler.transactional:
            return True
        chains = self._lane.chains
        return chains.total > 0 and handler.ordered and key is not None and key in chains

    def _waiting(self, item: Item, handler: Handler) -> Parked:
        """Return the event as parked for the handler, due at once."""
        record, envelope = item.record, cast(Envelope, item.envelope)
        return Parked(
            event_id=envelope.id,
            source=envelope.source,
            handler=handler.name,
            stream=record.stream,
            partition=record.partition,
            position=record.position,
            chain=item.key if handler.ordered else None,
            due=0.0,
            attempt=0,
            history=[],
            key=record.key,
            headers=record.headers,
            data=record.data,
            reader=self._lane.claim.reader,
        )

    def _forget(self, parked: list[Parked]) -> None:
        for event in parked:
            self._lane.chains.remove(event.chain)

    async def _park_all(self, items: list[Item], last: Position) -> None:
        lane = self._lane
        broken = [self._broken(item) for item in items if item.broken is not None]
        events = [self._waiting(item, handler) for item in items for handler in item.handlers]
        await park(lane, events, Changes(claim=lane.claim, dead=broken), last)
        self._report(broken)

    # -- unreadable records ------------------------------------------------------------------------

    def _broken(self, item: Item) -> DeadLetter:
        record, error = item.record, cast(InvalidEvent, item.broken)
        headers = record.headers
        return DeadLetter(
            event_id=headers.get("id", ""),
            source=headers.get("source", ""),
            type=headers.get("type", ""),
            handler="",
            stream=record.stream,
            partition=record.partition,
            position=record.position,
            key=record.key,
            reason=f"unreadable: {describe_error(error)}",
            traceback=describe_traceback(error),
            attempts=0,
            history=[],
            headers=headers,
            data=record.data,
            time=self._ambient.now(),
            reader=self._lane.claim.reader,
        )

    def _report(self, letters: list[DeadLetter]) -> None:
        for letter in letters:
            self._reports.emit(
                EventDead(
                    service=self._reports.service,
                    handler="",
                    event_id=letter.event_id,
                    type=letter.type,
                    reason=letter.reason,
                )
            )
