"""What follows a failure is a pure function; these are its properties."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oyez import Context, Event, Retry, RetryLater, Service
from oyez.errors import (
    ConstraintViolated,
    DeclarationError,
    InvalidEvent,
    NewerState,
    StoreCorrupt,
    StoreUnavailable,
    UnknownVersion,
)
from oyez.runtime.retry import (
    MAX_TRACEBACK,
    NEWER,
    Dead,
    RetryAt,
    describe_error,
    describe_traceback,
    outcome,
    postponed,
    remember,
    wait,
)
from oyez.signals import EventRetried, HandlerTimed
from oyez.testing import running

RETRIES = st.builds(
    Retry,
    attempts=st.integers(1, 1_000),
    first=st.floats(0, 1e6),
    factor=st.floats(1, 1e6),
    longest=st.floats(0, 1e9),
    jitter=st.floats(0, 1),
)
ATTEMPTS = st.integers(1, 100_000)
CHANCES = st.floats(0, 1, exclude_max=True)


@given(RETRIES, ATTEMPTS, CHANCES)
def test_a_wait_is_never_negative_and_bounded(retry: Retry, attempt: int, chance: float) -> None:
    assert 0 <= wait(attempt, retry, chance) <= retry.longest * (1 + retry.jitter) * (1 + 1e-9)


@given(RETRIES, ATTEMPTS)
def test_waits_grow_up_to_the_longest(retry: Retry, attempt: int) -> None:
    assert wait(attempt, retry, 0.5) <= wait(attempt + 1, retry, 0.5) <= retry.longest
    assert wait(1, retry, 0.5) == min(retry.first, retry.longest)


@given(RETRIES, ATTEMPTS, CHANCES)
def test_jitter_spreads_around_the_plan(retry: Retry, attempt: int, chance: float) -> None:
    plan = wait(attempt, retry, 0.5)
    assert abs(wait(attempt, retry, chance) - plan) <= plan * retry.jitter + 1e-9 * plan


@given(RETRIES, ATTEMPTS, CHANCES, st.floats(0, 1e10))
def test_a_transient_error_is_tried_exactly_as_often_as_said(
    retry: Retry, attempt: int, chance: float, now: float
) -> None:
    for error in (ValueError("x"), StoreUnavailable("x"), ConstraintViolated("x"), TimeoutError()):
        found = outcome(error, attempt, retry, now, chance)
        if attempt < retry.attempts:
            assert isinstance(found, RetryAt)
            assert found.due == now + wait(attempt, retry, chance)
        else:
            assert isinstance(found, Dead)
            assert f"failed {attempt} of {retry.attempts} attempts" in found.reason


@given(RETRIES, ATTEMPTS)
def test_a_permanent_error_is_never_tried_again(retry: Retry, attempt: int) -> None:
    for error in (InvalidEvent("$.a", "is bad"), UnknownVersion("x"), StoreCorrupt("x")):
        found = outcome(error, attempt, retry, 0.0, 0.5)
        assert isinstance(found, Dead)
        assert found.reason.startswith("permanent: ")


def test_only_the_exceptions_that_are_named_are_tried_again() -> None:
    retry = Retry(attempts=3, on=(ConnectionError, TimeoutError))
    assert isinstance(outcome(ConnectionResetError(), 1, retry, 0.0, 0.5), RetryAt)
    assert isinstance(outcome(TimeoutError(), 1, retry, 0.0, 0.5), RetryAt)
    dead = outcome(ValueError("no"), 1, retry, 0.0, 0.5)
    assert dead == Dead("not retried: ValueError: no")


def test_the_documented_schedule() -> None:
    retry = Retry(attempts=9, first=0.5, factor=2.0, longest=10.0, jitter=0.1)
    plan = [wait(attempt, retry, 0.5) for attempt in range(1, 8)]
    assert plan == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert wait(1, retry, 0.0) == pytest.approx(0.45)


@given(st.text())
def test_a_reason_is_one_bounded_line(text: str) -> None:
    for error in (ValueError(text), InvalidEvent(text, text)):
        line = describe_error(error)
        assert len(line.splitlines()) == 1
        assert len(line) < 600
        assert line.startswith(type(error).__name__)


def test_a_traceback_keeps_its_end() -> None:
    try:
        raise ValueError("x" * 50_000 + "the cause")
    except ValueError as error:
        text = describe_traceback(error)
    assert len(text) == MAX_TRACEBACK
    assert text.endswith("the cause\n")


def test_history_names_attempt_time_and_error() -> None:
    entry = remember(2, ValueError("no"), 12.5)
    assert entry == {"attempt": 2, "at": 12.5, "error": "ValueError: no"}


@pytest.mark.parametrize(
    "field",
    [{"attempts": 0}, {"first": -1}, {"factor": 0.5}, {"longest": -1}, {"jitter": 1.1},
     {"jitter": -0.1}, {"first": float("nan")}],
)  # fmt: skip
def test_an_impossible_policy_is_refused(field: dict[str, float]) -> None:
    with pytest.raises(DeclarationError, match=f"Retry: {next(iter(field))}: expected"):
        Retry(**field)  # type: ignore[arg-type]


def test_an_error_is_described_without_what_no_store_can_hold() -> None:
    error = ValueError("a\0b \ud800 Ü")
    assert describe_error(error) == "ValueError: a?b ? Ü"
    described = describe_traceback(error)
    described.encode()
    assert "\0" not in described


@given(RETRIES, ATTEMPTS, CHANCES, st.floats(0, 1e10), st.floats(0, 1e12))
def test_a_handler_that_says_when_is_heard_up_to_the_longest_wait(
    retry: Retry, attempt: int, chance: float, now: float, seconds: float
) -> None:
    found = outcome(RetryLater("later", seconds=seconds), attempt, retry, now, chance)
    if attempt < retry.attempts:
        assert found == RetryAt(now + min(seconds, retry.longest))
    else:
        assert isinstance(found, Dead)


def test_a_handler_that_says_when_is_retried_whatever_the_policy_is_for() -> None:
    found = outcome(RetryLater("later", seconds=7.0), 1, Retry(on=(KeyError,)), 100.0, 0.5)
    assert found == RetryAt(107.0)


def test_an_event_that_only_waits_has_no_failed_attempt() -> None:
    retry = Retry(longest=60.0)
    soon, late = (RetryLater("full", seconds=each, counts=False) for each in (7.0, 1e9))
    assert postponed(soon, retry, 100.0) == RetryAt(107.0, failed=False)
    assert postponed(late, retry, 100.0) == RetryAt(160.0, failed=False)
    assert postponed(NewerState("newer"), retry, 100.0) == RetryAt(100.0 + NEWER)
    assert postponed(RetryLater("later", seconds=7.0), retry, 100.0) is None
    assert postponed(ValueError("x"), retry, 100.0) is None


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_an_impossible_wait_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds: expected 0 or more"):
        RetryLater("later", seconds=seconds)


class Parcel(Event, type="shop.parcel", key="number"):
    number: str


async def test_an_event_waits_as_often_as_its_handler_says_and_holds_up_its_key() -> None:
    service, calls = Service("carrier"), []

    @service.on(Parcel, retry=Retry(attempts=2, longest=10.0, jitter=0.0))
    async def book(event: Parcel, context: Context) -> None:
        calls.append((event.number, context.attempt))
        if len(calls) <= 5:
            raise RetryLater("shut", seconds=10.0, counts=False)
        if len(calls) == 6:
            raise RetryLater("busy", seconds=3.0)

    async with running(service) as system:
        for _ in range(2):
            await system.publish(Parcel(number="1"))
        await system.settled()
        for count in range(2, 7):
            await system.advance(9.9)
            assert len(calls) == count - 1
            await system.advance(0.1)
            assert len(calls) == count
        await system.advance(3.0)
        assert calls == [("1", 1)] * 6 + [("1", 2), ("1", 1)]
        assert await system.dead("carrier") == []
        (failure,) = [each for each in system.signals if isinstance(each, EventRetried)]
        assert (failure.attempt, failure.error) == (1, "RetryLater: busy")
        timed = [each for each in system.signals if isinstance(each, HandlerTimed)]
        assert Counter(each.outcome for each in timed) == {"done": 2, "retry": 1}


async def test_a_service_redrives_its_dead_letters_in_the_name_of_who_asks() -> None:
    service, calls = Service("carrier"), []

    @service.on(Parcel, retry=Retry(attempts=1))
    async def book(event: Parcel) -> None:
        calls.append(event.number)
        if len(calls) == 1:
            raise ValueError("no")

    async with running(service) as system:
        await system.publish(Parcel(number="1"))
        await system.settled()
        (letter,) = await system.dead("carrier")
        asked = [letter["id"], letter["id"] + 1]
        assert await service.redrive(asked, who="key:ada", why="mended") == 1
        await system.settled()
        assert calls == ["1", "1"]
        assert await system.dead("carrier") == []
        acts = await system.fetch("carrier", "select who, via, reason from oyez_audit")
        assert acts == [{"who": "key:ada", "via": "service", "reason": "mended"}]
