"""Rules on single handlers: what they do besides their transaction, and for how long."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from oyez.inspection.lint.system import Found, System, fault, named, waits
from oyez.parameters import ContextParameter, ProvidedParameter
from oyez.tables import INBOX_RETENTION


def _outward(system: System) -> Found:
    for service, handler in system.handlers:
        if not handler.transactional:
            continue
        makers = {each.provides: each.function for each in service.providers}
        for parameter in handler.parameters:
            wanted = parameter.filled_by
            if not isinstance(wanted, type) or not isinstance(parameter, ProvidedParameter):
                continue
            names = {wanted.__qualname__, f"{wanted.__module__}.{wanted.__qualname__}"}
            if inspect.isasyncgenfunction(makers.get(wanted)) or names & system.outward:
                yield (
                    fault(
                        "E15",
                        "warning",
                        handler,
                        f"{named(handler)} has a transaction and {wanted.__qualname__}: the store "
                        "waits for what is outside, and that is not undone with it",
                        "call it in a handler without a transaction, and announce what came of it",
                    ),
                    handler,
                )


def _not_idempotent(system: System) -> Found:
    for _, handler in system.handlers:
        kinds = [type(parameter) for parameter in handler.parameters]
        if (
            not handler.transactional
            and ProvidedParameter in kinds
            and ContextParameter not in kinds
        ):
            yield (
                fault(
                    "E16",
                    "warning",
                    handler,
                    f"{named(handler)} runs outside of a transaction, so it may run again, and has "
                    "no Context to take an idempotency key from",
                    "ask for Context and pass context.idempotency_key on",
                ),
                handler,
            )


def _retries_too_long(system: System) -> Found:
    for _, handler in system.handlers:
        total = waits(handler.retry)
        if total > INBOX_RETENTION:
            yield (
                fault(
                    "E17",
                    "warning",
                    handler,
                    f"{named(handler)} retries for {total / 86_400:.0f} days; duplicates are "
                    f"recognised for {INBOX_RETENTION / 86_400:.0f}",
                    "allow fewer attempts, or redrive the dead letter later",
                ),
                handler,
            )


RULES: tuple[Callable[[System], Found], ...] = (
    _outward,
    _not_idempotent,
    _retries_too_long,
)
