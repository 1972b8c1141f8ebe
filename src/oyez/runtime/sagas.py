"""What a person does to an instance of a saga: retry it, abort it, resolve a step of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oyez import tables
from oyez.errors import ConfigurationError, OyezError
from oyez.ports import Store
from oyez.runtime.audit import Actor, audited, require_reason
from oyez.saga import Outputs, Progress, Saga, SagaType
from oyez.saga_handler import carry_out
from oyez.saga_transition import abort, resolve, retry
from oyez.service import Service
from oyez.transaction import TRACEPARENT, Announcer, Origin, UnitOfWork

Operation = Callable[[SagaType, Saga, float], Outputs]
"""What is done to an instance, at a time."""


class Sagas:
    """The instances of a service's sagas, and who acts on them.

    Each act is one commit with its effects and its row of the audit; whatever the service does
    meanwhile comes before or after. An act returns where the instance stands then. Acts raise
    OyezError where there is no such instance or it can't be done to it, ConfigurationError when
    the service does not declare the saga, and StoreError.
    """

    def __init__(self, store: Store, service: Service, announcer: Announcer, *, by: Actor) -> None:
        """``store`` and ``announcer`` are the service's."""
        self._store = store
        self._service = service
        self._announcer = announcer
        self._by = by

    async def retry(self, saga: str, key: str) -> Progress:
        """Ask again what an instance waits for; one that is stuck goes on."""
        return await self._operate(saga, key, "saga.retry", retry)

    async def abort(self, saga: str, key: str) -> Progress:
        """Undo an instance, as if a step had failed. Raises InvalidEvent without a reason."""
        require_reason(self._by, "it is to be undone")

        def operation(kind: SagaType, instance: Saga, now: float) -> Outputs:
            return abort(kind, instance, self._by.why, now)

        return await self._operate(saga, key, "saga.abort", operation)

    async def resolve(self, saga: str, key: str, step: str, *, done: bool) -> Progress:
        """Take a step for done, or for undone. Raises InvalidEvent without a reason."""
        require_reason(self._by, "you know it")
        outcome = "done" if done else "undone"

        def operation(kind: SagaType, instance: Saga, now: float) -> Outputs:
            return resolve(kind, instance, step, done=done, why=self._by.why, now=now)

        return await self._operate(
            saga, key, "saga.resolve", operation, {"step": step, "took": outcome}
        )

    async def _operate(
        self,
        saga: str,
        key: str,
        act: str,
        operation: Operation,
        more: dict[str, str] | None = None,
    ) -> Progress:
        kind = self._service.kinds.get(saga)
        if not isinstance(kind, SagaType):
            raise ConfigurationError(
                f"{self._service.name} does not declare the saga {saga}: do this with the version "
                "of the service that does"
            )
        rows = await self._store.fetch(tables.SAGAS_OF_KEY, {"key": key})
        flows = [row["correlationid"] for row in rows if row["kind"] == saga]
        if not flows:
            raise OyezError(
                f"no saga {saga} has the key {key}: it ended, and its retention is over"
            )
        unit = UnitOfWork(self._store, self._announcer)
        try:
            await unit.load([(kind.name, key)], alone=True)
            instance: Saga = unit.states.of(kind, key)
            trace = instance.progress.traceparent or ""
            since = Origin(
                correlationid=flows[0],
                traceparent=trace if TRACEPARENT.fullmatch(trace) else None,
            )
            tx = unit.transaction(since, key)
            before = _stand(instance.progress)
            now = unit.changes.time
            carry_out(kind, instance, operation(kind, instance, now), tx)
            after = {**_stand(instance.progress), **(more or {})}
            sql, (row,) = audited(self._by, act, f"saga {saga} {key}", now, before, after)
            tx.execute(sql, **row)
            unit.changes.ring = True
            await unit.commit()
        finally:
            await unit.rollback()
        return instance.progress


def _stand(progress: Progress) -> dict[str, Any]:
    """Return where an instance stands, without what its steps said."""
    return {
        "status": progress.status.value,
        "waits_for": progress.waits_for,
        "stuck": bool(progress.stuck),
    }
