"""One attempt at one event, to its outcome, for events of a lane and for parked ones."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fakes import ITEM
from parts import STREAM, Parts, Placed, parked

from oyez import Event, Retry, Service, Transaction
from oyez.errors import Fenced, InvalidEvent, StoreUnavailable, Superseded
from oyez.parameters import Context
from oyez.ports import Parked
from oyez.runtime.execution import DIED, deaths, is_suspect
from oyez.runtime.lane import Lane
from oyez.runtime.retry import Dead, Done, RetryAt
from oyez.signals import EventDead, EventRetried, HandlerCalled

ONCE_MORE = Retry(attempts=2, first=4.0, jitter=0.0)


class Paid(Event, type="shop.paid", key="order"):
    order: str


class Desk(Parts):
    """A service with one handler, ``take``, that writes, announces, and then does as it is told."""

    def __init__(self, error: BaseException | None = None, **parts: Any) -> None:
        self.error = error
        self.attempts: list[tuple[int, bool]] = []
        service = Service("desk", publishes=(Paid,))

        @service.on(Placed, retry=ONCE_MORE)
        async def take(event: Placed, tx: Transaction, context: Context) -> Paid:
            self.attempts.append((context.attempt, context.last_attempt))
            tx.execute(ITEM, id=event.order)
            if self.error is not None:
                raise self.error
            return Paid(order=event.order)

        super().__init__(service, **parts)

    async def parked_event(self, **changed: Any) -> tuple[Lane, Parked]:
        """One that is parked already, and its lane."""
        await self.park(parked("e1", **changed))
        lane = await self.lane()
        (event,) = await self.store.due("me", "take", self.ambient.now(), 1)
        return lane, event

    async def attempt(self, event: Parked, lane: Lane, **how: Any) -> Any:
        return await self.execution.attempt(self.handlers["take"], event, lane, **how)

    @property
    def left(self) -> tuple[int, int, int, int]:
        """How many rows were written, announced, parked and dead."""
        store = self.store
        return len(store.written), len(store.announced), len(store.waiting), len(store.letters)


async def test_a_fresh_event_is_done_in_one_commit_with_the_position() -> None:
    desk = Desk()
    lane = await desk.lane()
    before = len(desk.store.commits)
    assert await desk.attempt(parked("e1"), lane, position=5) == Done()
    assert len(desk.store.commits) == before + 1
    assert desk.left == (1, 1, 0, 0)
    assert desk.store.position(STREAM) == 5
    assert await desk.store.seen([("e1", "/shop/till", "take")])
    assert lane.chains.total == 0


async def test_a_parked_event_that_is_done_frees_its_chain() -> None:
    desk = Desk()
    await desk.park(parked("e0"))
    lane, event = await desk.parked_event()
    assert lane.chains.total == 2
    assert await desk.attempt(event, lane) == Done()
    assert desk.left == (1, 1, 1, 0)
    assert lane.chains.total == 1
    assert [row["state"] for row in desk.store.waiting] == [2]


async def test_a_fresh_event_that_fails_is_parked_for_its_retry() -> None:
    """Nothing that the handler wrote or announced is left; the history tells what happened."""
    desk = Desk(ValueError("no"))
    lane = await desk.lane()
    now = desk.ambient.now()
    assert await desk.attempt(parked("e1"), lane, position=5) == RetryAt(now + 4.0)
    assert desk.left == (0, 0, 1, 0)
    (row,) = desk.store.waiting
    assert (row["due"], row["attempt"]) == (now + 4.0, 1)
    assert row["history"] == [{"attempt": 1, "at": now, "error": "ValueError: no"}]
    assert desk.store.position(STREAM) == 5
    assert "a" in lane.chains
    (signal,) = desk.signals(EventRetried)
    assert (signal.handler, signal.event_id, signal.attempt) == ("take", "e1", 1)
    assert (signal.seconds, signal.error, signal.type) == (4.0, "ValueError: no", "shop.placed")


async def test_a_parked_event_that_fails_stays_parked_until_it_is_dead() -> None:
    desk = Desk(ValueError("no"))
    lane, event = await desk.parked_event()
    assert isinstance(await desk.attempt(event, lane), RetryAt)
    assert "a" in lane.chains
    await desk.ambient.advance(4.0)
    (event,) = await desk.store.due("me", "take", desk.ambient.now(), 1)
    result = await desk.attempt(event, lane)
    assert result == Dead("failed 2 of 2 attempts: ValueError: no")
    assert desk.attempts == [(1, False), (2, True)]
    assert desk.left == (0, 0, 0, 1)
    assert "a" not in lane.chains
    assert lane.chains.total == 0
    (letter,) = desk.store.letters
    assert (letter["event_id"], letter["attempts"], letter["reason"]) == ("e1", 2, result.reason)
    assert "ValueError: no" in letter["traceback"]
    (signal,) = desk.signals(EventDead)
    assert (signal.event_id, signal.handler, signal.reason) == ("e1", "take", result.reason)


async def test_a_permanent_error_is_dead_at_once() -> None:
    desk = Desk(InvalidEvent("$.order", "is wrong"))
    lane = await desk.lane()
    result = await desk.attempt(parked("e1"), lane, position=5)
    assert result == Dead("permanent: InvalidEvent: $.order: is wrong")
    assert desk.left == (0, 0, 0, 1)
    assert desk.store.position(STREAM) == 5
    assert await desk.store.seen([("e1", "/shop/till", "take")])


async def test_an_event_that_can_not_be_decoded_is_dead_and_nothing_is_called() -> None:
    desk = Desk()
    lane = await desk.lane()
    result = await desk.attempt(parked("e1", data=b'{"order": 7}'), lane, position=5)
    assert isinstance(result, Dead)
    assert desk.attempts == []
    assert desk.left == (0, 0, 0, 1)


@pytest.mark.parametrize("error", [StoreUnavailable("full"), Fenced("no"), Superseded("no")])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
async def test_a_commit_that_the_store_refuses_changes_nothing(
    error: Exception, fails: bool, fresh: bool
) -> None:
    """Neither the one with the handler's effects nor the one of its failure."""
    desk = Desk(ValueError("no") if fails else None)
    if fresh:
        lane, event = await desk.lane(), parked("e1")
    else:
        lane, event = await desk.parked_event()
    before, blocked = desk.left, lane.chains.total
    desk.store.faults.fail("commit", error)
    with pytest.raises(type(error)):
        await desk.attempt(event, lane, position=5)
    assert (desk.left, lane.chains.total) == (before, blocked)
    assert desk.store.position(STREAM) == 0
    assert lane.position == 0
    assert desk.heard == []


async def test_a_copy_that_was_handled_meanwhile_counts_as_done() -> None:
    """Another partition's copy was faster: its effects stand, and the lane moves on."""
    desk = Desk()
    lane, other = await desk.lane(), await desk.lane(1)
    await desk.attempt(parked("e1", partition=1), other, position=3)
    assert await desk.attempt(parked("e1"), lane, position=5) == Done()
    assert desk.left == (1, 1, 0, 0)
    assert desk.store.position(STREAM) == 5


async def test_a_constraint_of_the_service_fails_the_attempt() -> None:
    desk = Desk()
    lane = await desk.lane()
    await desk.attempt(parked("e1"), lane, position=5)
    result = await desk.attempt(parked("e2"), lane, position=6)
    assert isinstance(result, RetryAt)
    (row,) = desk.store.waiting
    assert row["history"][0]["error"] == "ConstraintViolated: item a is there already"


async def test_cancelled_it_leaves_the_event_as_it_was() -> None:
    desk = Desk()
    lane, event = await desk.parked_event()
    hold = desk.store.faults.hold("commit")
    task = asyncio.ensure_future(desk.attempt(event, lane))
    await hold.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert desk.left == (0, 0, 1, 0)
    assert lane.chains.total == 1


async def test_a_handler_whose_own_wait_was_cancelled_has_failed() -> None:
    """Nobody cancelled the attempt: what it awaited was cancelled by something else."""
    desk = Desk(asyncio.CancelledError())
    lane = await desk.lane()
    assert isinstance(await desk.attempt(parked("e1"), lane, position=5), RetryAt)
    (row,) = desk.store.waiting
    assert "waited for something that was cancelled" in row["history"][0]["error"]


async def test_an_attempt_that_may_end_the_process_is_recorded_as_it_begins() -> None:
    """Its outcome takes the record's place; deaths of before stay in the history."""
    desk = Desk(ValueError("no"))
    died = {"attempt": 1, "at": 0.0, "error": DIED, "alone": True}
    lane, event = await desk.parked_event(history=[died])
    assert (is_suspect(event), deaths(event)) == (True, 1)
    now = desk.ambient.now()
    await desk.execution.begin(event, lane, alone=False)
    begun = {"attempt": 1, "at": now, "error": DIED, "alone": False}
    assert desk.store.waiting[0]["history"] == [died, begun]
    assert (is_suspect(event), deaths(event)) == (True, 1)
    await desk.attempt(event, lane, begun=True)
    failed = {"attempt": 1, "at": now, "error": "ValueError: no"}
    assert desk.store.waiting[0]["history"] == [died, failed]


async def test_calls_are_told_with_their_outcome_and_span_once_that_is_committed() -> None:
    desk = Desk(calls=True)
    lane = await desk.lane()
    desk.store.faults.fail("commit", StoreUnavailable("full"))
    with pytest.raises(StoreUnavailable):
        await desk.attempt(parked("e1"), lane)
    assert desk.signals(HandlerCalled) == []
    await desk.attempt(parked("e1"), lane)
    desk.error = ValueError("no")
    await desk.attempt(parked("e2", "b"), lane)
    await desk.attempt(parked("e3", "c", attempt=1), lane)
    calls = desk.signals(HandlerCalled)
    assert [(call.event_id, call.outcome, call.attempt) for call in calls] == [
        ("e1", "done", 1), ("e2", "retry", 1), ("e3", "dead", 2)
    ]  # fmt: skip
    assert [call.error for call in calls] == ["", "ValueError: no", "ValueError: no"]
    assert len({call.span_id for call in calls}) == 3
    (announced,) = desk.store.announced
    assert announced["headers"]["traceparent"].split("-")[1:3] == [
        calls[0].trace_id, calls[0].span_id
    ]  # fmt: skip
