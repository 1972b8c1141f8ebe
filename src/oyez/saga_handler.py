"""The handler of a saga: its transitions, with their effects in the handler's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from oyez import tables
from oyez.event import describe
from oyez.handler import Handler, compile_fold
from oyez.parameters import Context, FoldedParameter
from oyez.partitioning import partition_of
from oyez.ports import DeadLetter, Parameters, Writes
from oyez.saga import CommandDied, Outputs, Saga, SagaType, correlation, saga_kind
from oyez.saga_transition import transition
from oyez.state import is_deleted
from oyez.tables import PLACES, TIMERS
from oyez.timers import Timer, arm, disarm, disarm_all
from oyez.transaction import Transaction


def compile_saga(cls: type[Saga], service: str, allow: Mapping[str, str] | None = None) -> Handler:
    """Return the handler of a saga, whose name is the saga's. Raises DeclarationError."""
    kind = saga_kind(cls)

    async def handle(event: object, begun: Begun) -> None:
        begun.handle(kind, event)

    return compile_fold(
        handle,
        [*kind.events.values(), describe(Timer), describe(CommandDied)],
        SagaParameter,
        correlation(kind),
        declared_by=cls,
        service=service,
        publishes=kind.publishes,
        timeout=30.0,
        allow=allow,
    )


class Begun(msgspec.Struct, frozen=True):
    """A transition that is about to be made: the instance, and where its effects go."""

    saga: Saga
    tx: Transaction
    context: Context

    def handle(self, kind: SagaType, event: object) -> None:
        """Make the transition. Raises what `transition` raises."""
        now = self.tx.unit.changes.time
        outputs = transition(kind, self.saga, event, now, self.context.envelope)
        carry_out(kind, self.saga, outputs, self.tx)


class SagaParameter(FoldedParameter):
    """The instance of the event's saga, with the call's transaction and envelope."""

    word = "saga"
    contextual = True

    def given(self, value: Any, tx: Transaction, context: Context | None) -> Begun:
        """Return the transition that is about to be made."""
        assert context is not None  # it is contextual
        return Begun(value, tx, context)


def carry_out(kind: SagaType, saga: Saga, outputs: Outputs, tx: Transaction) -> None:
    """Carry out the effects of a transition in a transaction, which writes the instance as well.

    Raises InvalidEvent for an event that can't be published.
    """
    now = tx.unit.changes.time
    for each in outputs.events:
        expires = None if each.expires is None else each.expires - now
        event_id = tx.publish(each.event, expires=expires)
        if each.step:
            saga.progress.steps[each.step].command = event_id
    for letter in outputs.dead:
        headers = letter.early.headers
        tx.unit.changes.dead.append(
            DeadLetter(
                event_id=headers["id"],
                source=headers["source"],
                type=headers["type"],
                handler=kind.name,
                # It is redriven beside the timers: its own partition may be gone.
                stream=TIMERS,
                partition=partition_of(saga.key, PLACES),
                position=0,
                key=saga.key,
                reason=letter.reason,
                traceback="",
                attempts=0,
                history=[],
                headers=headers,
                data=letter.early.data,
                time=now,
            )
        )
    for sql, rows in _writes(kind.name, saga, outputs, now, tx):
        for row in rows:
            tx.execute(sql, **row)


def _writes(kind: str, saga: Saga, outputs: Outputs, now: float, tx: Transaction) -> Writes:
    place = {"kind": kind, "key": saga.key}
    writes: Writes = []
    if outputs.disarm or is_deleted(saga):
        writes += disarm_all(**place)
    for name, due in outputs.timers.items():
        if due is None:
            writes += disarm(**place, name=name)
        elif not is_deleted(saga):
            writes += arm(
                **place,
                name=name,
                due=due,
                now=now,
                traceparent=tx.traceparent,
                tracestate=tx.tracestate,
                authid=tx.authid,
                authtype=tx.authtype,
            )
    if is_deleted(saga):
        return [*writes, (tables.FORGET_SAGA, [place])]
    rows: list[Parameters] = [
        {
            **place,
            "number": each.number,
            "at": each.at,
            "event_id": each.event_id,
            "type": each.type,
            "step": each.step,
            "outputs": msgspec.json.encode(each.effects),
        }
        for each in outputs.log
    ]
    return [*writes, (tables.LOG_SAGA, rows)]
