"""The outcome of a failed attempt: a pure function of error, attempt and policy."""

from __future__ import annotations

import traceback as tracebacks
from typing import Any

import msgspec

from oyez.errors import NewerState, OyezError, RetryLater
from oyez.handler import Retry
from oyez.spans import Failure

NEWER = 5.0
"""Seconds between two looks at state that a newer version of the service wrote."""
MAX_TRACEBACK = 16_384
"""Characters of a traceback that are kept: its end, which names the cause."""


class Done(msgspec.Struct, frozen=True):
    """The event is handled."""


class RetryAt(msgspec.Struct, frozen=True):
    """The event is to be retried at ``due`` (seconds since 1970)."""

    due: float
    failed: bool = True
    """Whether something is amiss; otherwise the event only waits, which is not reported."""


class Dead(msgspec.Struct, frozen=True):
    """The event becomes a dead letter; ``reason`` is one line."""

    reason: str


Outcome = Done | RetryAt | Dead


def outcome(
    error: BaseException, attempt: int, retry: Retry, now: float, chance: float
) -> RetryAt | Dead:
    """Return whether and when attempt number ``attempt``, which raised ``error``, is retried.

    ``chance`` is a number in [0, 1) that spreads the wait by ``retry.jitter``.
    """
    if isinstance(error, OyezError) and not error.transient:
        return Dead(f"permanent: {describe_error(error)}")
    later = error.seconds if isinstance(error, RetryLater) else None
    if later is None and not isinstance(error, retry.on):
        return Dead(f"not retried: {describe_error(error)}")
    if attempt >= retry.attempts:
        return Dead(f"failed {attempt} of {retry.attempts} attempts: {describe_error(error)}")
    seconds = wait(attempt, retry, chance) if later is None else min(later, retry.longest)
    return RetryAt(now + seconds)


def postponed(error: BaseException, retry: Retry, now: float) -> RetryAt | None:
    """Return when the event is retried after this error, if no attempt is counted for it."""
    if isinstance(error, NewerState):
        return RetryAt(now + NEWER)
    if isinstance(error, RetryLater) and not error.counts:
        return RetryAt(now + min(error.seconds, retry.longest), failed=False)
    return None


def wait(attempt: int, retry: Retry, chance: float) -> float:
    """Return the seconds between attempt ``attempt`` and the next one."""
    try:
        planned = retry.first * retry.factor ** (attempt - 1)
    except OverflowError:
        planned = retry.longest
    return min(planned, retry.longest) * (1 + retry.jitter * (2 * chance - 1))


def longest(retry: Retry) -> float:
    """Return the longest time between two attempts, in seconds."""
    return retry.longest * (1 + retry.jitter)


def describe_error(error: BaseException) -> str:
    """Return the error as one line of limited length."""
    try:
        text = _storable(" ".join(str(error).split())[:500])
    except Exception:  # noqa: BLE001 - an error whose text fails is still an error
        text = "(its text can't be read)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def describe_traceback(error: BaseException) -> str:
    """Return the last ``MAX_TRACEBACK`` characters of the error's traceback."""
    return _storable("".join(tracebacks.format_exception(error))[-MAX_TRACEBACK:])


def failure_of(error: BaseException) -> Failure:
    """Return the error as a span records it. The stack is without the text, which may be secret."""
    stack = "".join(tracebacks.format_tb(error.__traceback__))[-MAX_TRACEBACK:]
    return Failure(type(error).__qualname__, describe_error(error), _storable(stack))


def remember(attempt: int, error: BaseException, now: float) -> dict[str, Any]:
    """Return an entry for the event's history."""
    return {"attempt": attempt, "at": now, "error": describe_error(error)}


def _storable(text: str) -> str:
    """Return the text without what no database takes: NUL and lone surrogates."""
    return text.replace("\0", "?").encode(errors="replace").decode()
