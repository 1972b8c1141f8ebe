"""Rules on single handlers: what they do besides their transaction, and for how long."""

from __future__ import annotations

from collections.abc import Callable

from oyez.handler import Retry
from oyez.inspection.lint.system import Found, System, fault, named
from oyez.parameters import ContextParameter, ProvidedParameter
from oyez.tables import INBOX_RETENTION


def _not_idempotent(system: System) -> Found:
    for handler in {id(each.handler): each.handler for each in system.all_handled}.values():
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
                    handler.function,
                    f"{named(handler)} runs outside of a transaction, so it may run again, and has "
                    "no Context to take an idempotency key from",
                    "ask for Context and pass context.idempotency_key on",
                ),
                handler,
            )


def _retries_too_long(system: System) -> Found:
    for handler in {id(each.handler): each.handler for each in system.all_handled}.values():
        total = _total(handler.retry)
        if total > INBOX_RETENTION:
            yield (
                fault(
                    "E17",
                    "warning",
                    handler.function,
                    f"{named(handler)} retries for {total / 86_400:.0f} days; duplicates are "
                    f"recognised for {INBOX_RETENTION / 86_400:.0f}",
                    "allow fewer attempts, or redrive the dead letter later",
                ),
                handler,
            )


RULES: tuple[Callable[[System], Found], ...] = (
    _not_idempotent,
    _retries_too_long,
)


def _total(retry: Retry) -> float:
    """The seconds of all waits between attempts, at most."""
    total = 0.0
    for attempt in range(1, retry.attempts):
        planned = retry.first * retry.factor ** (attempt - 1)
        if planned >= retry.longest or retry.factor == 1.0:
            total += min(planned, retry.longest) * (retry.attempts - attempt)
            break
        total += planned
    return total * (1 + retry.jitter)
