"""A lane owns one partition: it reads on from its position and handles what has arrived.

What has arrived, 1 to 256 records, is one transaction: the handlers' writes, the events they
announce, the inbox and the new position. If any of it fails, all is undone and the events run one
by one, so that the failing one is parked alone, and behind it the later events of its key. A
handler without a transaction never runs in here: its event is parked at once, due now, and
`oyez.runtime.parked` calls it beside the lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any, cast

import msgspec

from oyez.contract import decode
from oyez.envelope import Envelope, open_record
from oyez.errors import (
    BrokerRefused,
    ConstraintViolated,
    Fenced,
    InvalidEvent,
    StoreError,
    StoreUnavailable,
)
from oyez.event import EventType
from oyez.handler import Context, Handler
from oyez.ports import BEGINNING, Batch, Changes, Claim, DeadLetter, Parked, Position, Record
from oyez.runtime.execution import perform, perform_blocking
from oyez.runtime.retry import (
    Dead,
    RetryAt,
    describe_error,
    describe_traceback,
    outcome,
    remember,
)
from oyez.runtime.workbench import Bell, Workbench
from oyez.signals import BatchHandled, EventDead, EventRetried, EventsMissed, Signal
from oyez.signals import Fenced as FencedSignal
from oyez.transaction import Origin, UnitOfWork

PARKED_LIMIT = 10_000
"""A lane with this many parked events reads no further until some are done."""
SAVE = 1.0
"""Seconds after which a position that only moved past others' events is saved."""


class Item(msgspec.Struct):
    """A record that concerns this service, and the handlers that have not handled it yet."""

    record: Record
    envelope: Envelope | None
    handlers: list[Handler]
    broken: InvalidEvent | None = None

    @property
    def key(self) -> str | None:
        """What orders the event: its envelope's key."""
        return self.envelope.key if self.envelope is not None else self.record.key


class Lane:
    """One partition in the hands of this process."""

    def __init__(
        self,
        bench: Workbench,
        claim: Claim,
        position: Position,
        *,
        blocked: dict[str, int],
        parked: int,
        careful: bool,
        suspects: bool,
        work: Bell,
    ) -> None:
        """``blocked`` counts the parked events of each key, ``parked`` all parked events.

        ``careful``: the last owners died twice at this position, so the first batch is parked
        unseen. ``suspects``: the last owner died, so parked events record an attempt before it is
        made. ``work`` wakes whoever runs parked events.
        """
        self.claim = claim
        self.position = position
        self.suspects = suspects or careful
        self.moved = bench.ambient.monotonic()
        self.idle = False
        self.fenced = False
        self._bench = bench
        self._wanted = bench.handlers_of(claim.stream)
        self._blocked = blocked
        self._parked = parked
        self._room = Bell(bench.ambient)
        self._careful = careful
        self._work = work
        self._saved = position
        self._saved_at = self.moved
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    # -- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read."""
        name = f"lane {self.claim.stream}[{self.claim.partition}]"
        self._task = asyncio.create_task(self._run(), name=name)

    async def stop(self) -> None:
        """Finish the batch in hand, commit it and end. Safe when never started and called twice."""
        self._stopping = True
        if self._task is None:
            return
        if self.idle:
            self._task.cancel()
        await asyncio.wait([self._task])
        if not self.fenced:
            await self.save()

    @property
    def takes_no_more(self) -> bool:
        """Whether it is lost, or about to be given up."""
        return self.fenced or self._stopping

    def kill(self) -> None:
        """End at once; what was not committed is undone."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()

    async def save(self) -> None:
        """Record a position that moved without a commit of its own."""
        if self.position == self._saved or self.fenced:
            return
        position = self.position
        try:
            await self._bench.leave(Changes(claim=self.claim, position=position))
        except Fenced:
            self._lost()
        except StoreError as error:
            self._bench.trouble("position", error)
        else:
            self._has_saved(position)

    def unblock(self, chain: str | None) -> None:
        """A parked event is done with; its key may be free again."""
        self._parked -= 1
        self._room.ring()
        self.moved = self._bench.ambient.monotonic()
        if chain is None:
            return
        left = self._blocked.get(chain, 0) - 1
        if left > 0:
            self._blocked[chain] = left
        else:
            self._blocked.pop(chain, None)

    async def _run(self) -> None:
        bench, claim = self._bench, self.claim
        failures = 0
        while not self._stopping:
            reader = cast(
                AsyncGenerator[Batch, None],
                bench.broker.read(claim.stream, claim.partition, self.position),
            )
            try:
                while not self._stopping:
                    self.idle = True
                    batch = await anext(reader)
                    self.idle = False
                    await self._handle(batch)
                    failures = 0
            except asyncio.CancelledError:
                return
            except Fenced:
                self._lost()
                return
            except Exception as error:  # noqa: BLE001 - a lane outlives every error, and tells it
                self.idle = True
                bench.trouble(f"{claim.stream}[{claim.partition}]", error)
                failures += 1
                try:
                    await bench.backoff(failures)
                except asyncio.CancelledError:
                    return
            finally:
                await reader.aclose()

    def _lost(self) -> None:
        self.fenced = True
        claim = self.claim
        self._bench.signals.emit(
            FencedSignal(
                service=self._bench.service,
                stream=claim.stream,
                partition=claim.partition,
                epoch=claim.epoch,
            )
        )

    # -- a batch ----------------------------------------------------------------------------------

    async def _handle(self, batch: Batch) -> None:
        bench = self._bench
        start = bench.ambient.monotonic()
        last = batch.records[-1].position
        self._look_for_gaps(batch)
        items = await self._open(batch.records)
        if not items:
            self.position = last
            if not bench.broker.capabilities.history:
                # A queue holds back later events of a key until it hears that one is done with.
                bench.broker.handled(self.claim.stream, self.claim.partition, last)
            if start - self._saved_at > SAVE:
                await self.save()
        else:
            if self._careful:
                await self._park_all(items, last)
            else:
                await self._together(items, last)
            while self._parked >= PARKED_LIMIT and not self._stopping:
                await self._room.wait(1.0)
        self._careful = False
        self.moved = bench.ambient.monotonic()
        if items:
            self._tell_handled(len(items), self.moved - start)

    def _tell_handled(self, events: int, seconds: float) -> None:
        self._emit(
            BatchHandled(
                service=self._bench.service,
                stream=self.claim.stream,
                partition=self.claim.partition,
                events=events,
                seconds=seconds,
            )
        )

    def _look_for_gaps(self, batch: Batch) -> None:
        if batch.restarted:
            self._begin_anew()
        if batch.missed:
            self._emit(
                EventsMissed(
                    service=self._bench.service,
                    stream=self.claim.stream,
                    partition=self.claim.partition,
                    events=batch.missed,
                )
            )

    def _begin_anew(self) -> None:
        """Forget the position in a stream that is no more; the inbox knows what was handled."""
        claim = self.claim
        self._bench.trouble(
            f"{claim.stream}[{claim.partition}]",
            BrokerRefused(
                "the stream was deleted and made anew: what stood behind position "
                f"{self.position} is lost; the new one is read from its beginning"
            ),
        )
        self.position = self._saved = BEGINNING

    async def _open(self, records: Sequence[Record]) -> list[Item]:
        """What concerns this service, less what its handlers have handled before."""
        table = self._wanted
        items: list[Item] = []
        for record in records:
            kind = record.headers.get("type")
            if kind is not None and kind not in table:
                continue
            try:
                envelope = open_record(record.headers, record.data)
            except InvalidEvent as error:
                items.append(Item(record, None, [], error))
                continue
            handlers = table.get(envelope.type)
            if handlers:
                items.append(Item(record, envelope, list(handlers)))
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
        seen = await self._bench.store.seen(asked, self.claim.reader)
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

    async def _together(self, items: list[Item], last: Position) -> None:
        """All items in one transaction; one by one if that fails."""
        unit = self._bench.unit(self.claim)
        changes = unit.changes
        try:
            calls: list[tuple[Handler, Item]] = []
            lists: dict[str, list[Item]] = {}
            for item in items:
                if item.broken is not None:
                    changes.dead.append(self._broken(item))
                    continue
                for handler in item.handlers:
                    if self._must_park(handler, item.key):
                        self._park(changes, item, handler)
                    elif handler.batch:
                        lists.setdefault(handler.name, []).append(item)
                    else:
                        calls.append((handler, item))
            await self._call(unit, calls)
            for name, members in lists.items():
                await self._call_batch(unit, self._bench.handlers[name], members)
            await self._commit(unit, last)
        except (Fenced, StoreUnavailable):
            self._forget(changes)
            raise
        except asyncio.CancelledError:
            self._forget(changes)
            raise
        except Exception:  # noqa: BLE001 - whatever a handler raises; each runs alone now
            self._forget(changes)
            await unit.rollback()
            for item in items:
                await self._alone(item)
            await self._pass(last)
        finally:
            await unit.rollback()

    async def _call(self, unit: UnitOfWork, calls: Sequence[tuple[Handler, Item]]) -> None:
        handled = unit.changes.handled
        index = 0
        while index < len(calls):
            handler, item = calls[index]
            if not handler.blocking:
                envelope = cast(Envelope, item.envelope)
                tx = unit.transaction(Origin.of(envelope), item.key)
                context = self._context(handler, envelope) if handler.needs_context else None
                event = _decode(handler, envelope)
                tx.publish_all(await perform(self._bench, handler, event, tx, context))
                handled.append((envelope.id, envelope.source, handler.name))
                index += 1
                continue
            run = []
            while index < len(calls) and calls[index][0] is handler:
                run.append(calls[index])
                index += 1
            await self._call_blocking(unit, run)

    async def _call_blocking(self, unit: UnitOfWork, calls: Sequence[tuple[Handler, Item]]) -> None:
        ready = []
        transactions = []
        for handler, item in calls:
            envelope = cast(Envelope, item.envelope)
            tx = unit.transaction(Origin.of(envelope), item.key)
            context = self._context(handler, envelope) if handler.needs_context else None
            call = self._bench.calls[handler.name]
            ready.append((handler, partial(call, _decode(handler, envelope), tx, context)))
            transactions.append(tx)
            unit.changes.handled.append((envelope.id, envelope.source, handler.name))
        for tx, events in zip(
            transactions, await perform_blocking(self._bench, ready), strict=True
        ):
            tx.publish_all(events)

    async def _call_batch(self, unit: UnitOfWork, handler: Handler, items: list[Item]) -> None:
        envelopes = [cast(Envelope, item.envelope) for item in items]
        tx = unit.transaction(Origin.of(envelopes[0]))
        events = [_decode(handler, envelope) for envelope in envelopes]
        tx.publish_all(await perform(self._bench, handler, events, tx, None))
        unit.changes.handled.extend((e.id, e.source, handler.name) for e in envelopes)

    async def _alone(self, item: Item) -> None:
        """Each handler of one item in a transaction of its own; its failure is recorded."""
        if item.broken is not None:
            unit = self._bench.unit(self.claim)
            unit.changes.dead.append(self._broken(item))
            await self._commit(unit, item.record.position)
            return
        for handler in item.handlers:
            # The position moves with the last one; until then the inbox tells what is done.
            final = handler is item.handlers[-1]
            position = item.record.position if final else None
            if self._must_park(handler, item.key):
                unit = self._bench.unit(self.claim)
                self._park(unit.changes, item, handler)
                await self._commit_parking(unit, position)
                continue
            error = await self._attempt(handler, item, position)
            if error is not None:
                await self._record_failure(handler, item, position, error)

    async def _attempt(
        self, handler: Handler, item: Item, position: Position | None
    ) -> Exception | None:
        unit = self._bench.unit(self.claim)
        try:
            if handler.batch:
                await self._call_batch(unit, handler, [item])
            else:
                await self._call(unit, [(handler, item)])
            await self._commit(unit, position)
        except (Fenced, StoreUnavailable):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a handler raises
            return error
        finally:
            await unit.rollback()
        return None

    async def _record_failure(
        self, handler: Handler, item: Item, position: Position | None, error: Exception
    ) -> None:
        bench = self._bench
        envelope = cast(Envelope, item.envelope)
        identity = (envelope.id, envelope.source, handler.name)
        if isinstance(error, ConstraintViolated) and await bench.store.seen(
            [identity], self.claim.reader
        ):
            await self._pass(position)  # a copy of it, on another partition, was faster
            return
        now = bench.ambient.now()
        unit = bench.unit(self.claim)
        history = [remember(1, error, now)]
        result = outcome(error, 1, handler.retry, now, bench.ambient.chance())
        signal: Signal
        if isinstance(result, RetryAt):
            self._park(unit.changes, item, handler, due=result.due, attempt=1, history=history)
            await self._commit_parking(unit, position)
            signal = EventRetried(
                service=bench.service,
                handler=handler.name,
                event_id=envelope.id,
                type=envelope.type,
                attempt=1,
                seconds=result.due - now,
                error=describe_error(error),
            )
        else:
            unit.changes.dead.append(
                dead_letter(
                    item.record,
                    envelope,
                    handler.name,
                    result,
                    error,
                    1,
                    history,
                    now,
                    self.claim.reader,
                )
            )
            unit.changes.handled.append(identity)
            await self._commit(unit, position)
            signal = EventDead(
                service=bench.service,
                handler=handler.name,
                event_id=envelope.id,
                type=envelope.type,
                reason=result.reason,
            )
        self._emit(signal)

    # -- parking ----------------------------------------------------------------------------------

    def _must_park(self, handler: Handler, key: str | None) -> bool:
        if not handler.transactional:
            return True
        return handler.ordered and key is not None and key in self._blocked

    def _park(
        self,
        changes: Changes,
        item: Item,
        handler: Handler,
        *,
        due: float | None = None,
        attempt: int = 0,
        history: list[dict[str, Any]] | None = None,
    ) -> None:
        record, envelope = item.record, cast(Envelope, item.envelope)
        chain = item.key if handler.ordered else None
        changes.parked.append(
            Parked(
                event_id=envelope.id,
                source=envelope.source,
                handler=handler.name,
                stream=record.stream,
                partition=record.partition,
                position=record.position,
                chain=chain,
                due=changes.time if due is None else due,
                attempt=attempt,
                history=history or [],
                key=record.key,
                headers=record.headers,
                data=record.data,
                reader=self.claim.reader,
            )
        )
        # Blocked before the commit, never after: an event of this key must not slip past. A key
        # that is blocked a moment too long is only slower.
        self._parked += 1
        if chain is not None:
            self._blocked[chain] = self._blocked.get(chain, 0) + 1

    def _forget(self, changes: Changes) -> None:
        for parked in changes.parked:
            self.unblock(parked.chain)
        changes.parked = []

    async def _park_all(self, items: list[Item], last: Position) -> None:
        unit = self._bench.unit(self.claim)
        for item in items:
            if item.broken is not None:
                unit.changes.dead.append(self._broken(item))
            for handler in item.handlers:
                self._park(unit.changes, item, handler)
        await self._commit_parking(unit, last)

    async def _commit_parking(self, unit: UnitOfWork, position: Position | None) -> None:
        try:
            await self._commit(unit, position)
        except BaseException:
            self._forget(unit.changes)
            raise

    # -- what every commit has in common ----------------------------------------------------------

    async def _commit(self, unit: UnitOfWork, position: Position | None) -> None:
        unit.changes.position = position
        await unit.commit()
        if position is not None:
            self._has_saved(position)
        if unit.changes.parked:
            self._work.ring()
        for dead in unit.changes.dead:
            if not dead.handler:
                self._emit(
                    EventDead(
                        service=self._bench.service,
                        handler="",
                        event_id=dead.event_id,
                        type=dead.type,
                        reason=dead.reason,
                    )
                )

    async def _pass(self, position: Position | None) -> None:
        if position is not None and position > self._saved:
            await self._bench.leave(Changes(claim=self.claim, position=position))
            self._has_saved(position)

    def _has_saved(self, position: Position) -> None:
        self.position = max(self.position, position)
        self._saved = position
        self._bench.broker.handled(self.claim.stream, self.claim.partition, position)
        self._saved_at = self._bench.ambient.monotonic()

    def _context(self, handler: Handler, envelope: Envelope) -> Context:
        return Context(envelope, self._bench.service, handler.name, 1, handler.retry.attempts)

    def _broken(self, item: Item) -> DeadLetter:
        error = cast(InvalidEvent, item.broken)
        now = self._bench.ambient.now()
        result = Dead(f"unreadable: {describe_error(error)}")
        return dead_letter(item.record, None, "", result, error, 0, [], now, self.claim.reader)

    def _emit(self, signal: Signal) -> None:
        self._bench.signals.emit(signal)


def dead_letter(
    record: Record | Parked,
    envelope: Envelope | None,
    handler: str,
    result: Dead,
    error: BaseException,
    attempts: int,
    history: list[dict[str, Any]],
    now: float,
    reader: str,
) -> DeadLetter:
    """The dead letter of an event, with its original bytes."""
    headers = record.headers
    return DeadLetter(
        event_id=envelope.id if envelope is not None else headers.get("id", ""),
        source=envelope.source if envelope is not None else headers.get("source", ""),
        type=envelope.type if envelope is not None else headers.get("type", ""),
        handler=handler,
        stream=record.stream,
        partition=record.partition,
        position=record.position,
        key=record.key,
        reason=result.reason,
        traceback=describe_traceback(error),
        attempts=attempts,
        history=history,
        headers=headers,
        data=record.data,
        time=now,
        reader=reader,
    )


def kind_for(handler: Handler, name: str) -> EventType:
    """Which of the handler's event classes stands for the type ``name``."""
    for kind in handler.events:
        if kind.name == name:
            return kind
    raise InvalidEvent("type", f"{handler.name} does not subscribe to {name}")


def _decode(handler: Handler, envelope: Envelope) -> object:
    kinds = handler.events
    kind = kinds[0] if len(kinds) == 1 else kind_for(handler, envelope.type)
    return decode(kind, envelope.data, envelope.dataschema)
