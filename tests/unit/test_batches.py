"""What becomes of the records of one batch."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from fakes import ITEM
from parts import STREAM, Parts, Placed, batch, parked, record

from oyez import Retry, Service, Transaction
from oyez.errors import Fenced, StoreUnavailable
from oyez.ports import Changes
from oyez.runtime.batches import PARKED_LIMIT
from oyez.runtime.reports import Reports
from oyez.signals import EventDead, HandlerCalled, HandlerTimed, Signals


class Desk(Parts):
    """A service that writes each order; those in ``bad`` fail until a test takes them out.

    ``take`` is in order, ``count`` is not, and ``call`` has no transaction.
    """

    def __init__(self, *names: str, **parts: Any) -> None:
        self.bad: set[str] = set()
        self.called: list[tuple[str, str]] = []
        service = Service("desk")

        async def take(event: Placed, tx: Transaction) -> None:
            await self._do("take", event, tx)

        async def count(event: Placed, tx: Transaction) -> None:
            await self._do("count", event, tx)

        async def call(event: Placed) -> None:
            self.called.append(("call", event.order))

        async def gather(events: list[Placed], tx: Transaction) -> None:
            self.called.append(("gather", "".join(event.order for event in events)))
            if self.bad & {event.order for event in events}:
                raise ValueError("no")

        retry = Retry(attempts=9, first=4.0, jitter=0.0)
        for handler in (take, count, call, gather):
            if handler.__name__ in (names or ("take",)):
                order = "none" if handler is count else "key"
                batch = handler is gather
                service.on(Placed, order=order, batch=batch, retry=retry)(handler)
        super().__init__(service, **parts)

    async def _do(self, name: str, event: Placed, tx: Transaction) -> None:
        self.called.append((name, event.order))
        tx.execute("insert into log values (:order, :by)", order=event.order, by=name)
        if event.order in self.bad:
            raise ValueError("no")

    async def start(self, **how: Any) -> None:
        self.one = await self.lane(**how)
        self.taker = self.batches(self.one)

    async def take(self, *orders: str, after: int = 0) -> int:
        """Take a batch of these orders, from the position behind ``after`` on."""
        records = [record(after + n, order) for n, order in enumerate(orders, 1)]
        return await self.taker.take(batch(*records))

    @property
    def log(self) -> list[str]:
        return [str(row["order"]) for sql, row in self.store.written if sql != ITEM]

    @property
    def waiting(self) -> list[str]:
        return [row["event_id"] for row in self.store.waiting]


async def started(*names: str, parts: dict[str, Any] | None = None, **how: Any) -> Desk:
    desk = Desk(*names, **(parts or {}))
    await desk.start(**how)
    return desk


async def test_a_batch_is_one_commit() -> None:
    desk = await started()
    before = len(desk.store.commits)
    assert await desk.take("a", "b", "a") == 3
    assert desk.log == ["a", "b", "a"]
    assert len(desk.store.commits) == before + 1
    assert desk.store.position(STREAM) == 3
    assert await desk.store.seen([(f"e{n}", "/shop/till", "take") for n in (1, 2, 3)])


async def test_when_one_fails_the_others_are_handled_all_the_same() -> None:
    """Each by itself, in order; the failing one is parked, and its key's later ones behind it."""
    desk = await started()
    desk.bad = {"b"}
    assert await desk.take("a", "b", "c", "b") == 4
    assert desk.log == ["a", "c"]
    assert desk.waiting == ["e2", "e4"]
    assert [row["attempt"] for row in desk.store.waiting] == [1, 0]
    assert desk.called.count(("take", "b")) == 2, "the later one of its key is not tried"
    assert desk.store.position(STREAM) == 4
    assert desk.one.chains.total == 2


async def test_what_comes_later_is_parked_behind_a_blocked_key() -> None:
    """In one commit with what is handled, for handlers in order alone."""
    desk = await started("take", "count")
    await desk.park(parked("e0", "b"))
    await desk.start()
    before = len(desk.store.commits)
    await desk.take("a", "b", "b")
    assert len(desk.store.commits) == before + 1
    assert desk.waiting == ["e0", "e2", "e3"]
    assert [row["state"] for row in desk.store.waiting] == [2, 1, 1]
    assert desk.called.count(("take", "b")) == 0
    assert desk.called.count(("count", "b")) == 2
    assert desk.one.chains.total == 3


async def test_a_handler_without_a_transaction_is_not_called_but_parked_to_run_now() -> None:
    desk = await started("take", "call")
    await desk.take("a", "b")
    assert desk.called == [("take", "a"), ("take", "b")]
    assert [(row["handler"], row["due"]) for row in desk.store.waiting] == [("call", 0.0)] * 2


async def test_of_copies_in_a_batch_the_first_is_handled() -> None:
    desk = await started()
    assert await desk.taker.take(batch(record(1), record(2), record(3, headers=record(1).headers)))
    assert desk.log == ["a", "a"]
    assert desk.store.position(STREAM) == 3


async def test_what_the_inbox_knows_is_not_handled_again() -> None:
    """By handler: the one that has not handled it does."""
    desk = await started("take", "count")
    handled = [("e1", "/shop/till", "take"), ("e2", "/shop/till", "take")]
    handled.append(("e1", "/shop/till", "count"))
    await desk.store.begin().commit(Changes(handled=handled))
    assert await desk.take("a", "b") == 1
    assert desk.called == [("count", "b")]
    assert await desk.take("a", "b") == 0
    assert len(desk.called) == 1


async def test_a_copy_on_another_partition_that_is_faster_wins() -> None:
    """It commits between our look at the inbox and our own commit."""
    desk = await started()
    hold = desk.store.faults.hold("commit")
    taking = asyncio.ensure_future(desk.take("a", "b"))
    await hold.reached.wait()
    await desk.store.begin().commit(Changes(handled=[("e1", "/shop/till", "take")]))
    hold.release.set()
    assert await taking == 2
    assert desk.log == ["b"]
    assert desk.waiting == []
    assert desk.store.position(STREAM) == 2


async def test_what_can_not_be_read_is_a_dead_letter_and_the_rest_is_handled() -> None:
    desk = await started()
    broken = record(2, headers={"type": "shop.placed"}, data=b"?")
    assert await desk.taker.take(batch(record(1), broken, record(3, "b"))) == 3
    assert desk.log == ["a", "b"]
    (letter,) = desk.store.letters
    assert (letter["handler"], letter["position"], letter["data"]) == ("", 2, b"?")
    assert letter["reason"].startswith("unreadable: InvalidEvent")
    assert len(desk.signals(EventDead)) == 1


async def test_what_can_not_be_read_beside_one_that_fails_is_told_once() -> None:
    desk = await started()
    desk.bad = {"b"}
    broken = record(1, headers={"type": "shop.placed"}, data=b"?")
    await desk.taker.take(batch(broken, record(2, "b")))
    assert len(desk.store.letters) == len(desk.signals(EventDead)) == 1
    assert desk.waiting == ["e2"]
    assert desk.store.position(STREAM) == 2


async def test_others_events_move_the_position_which_is_saved_now_and_then() -> None:
    desk = await started()
    headers = {**record(1).headers, "type": "shop.other"}
    assert await desk.taker.take(batch(record(1, headers=headers))) == 0
    assert (desk.one.position, desk.store.position(STREAM)) == (1, 0)
    assert desk.broker.told == []
    await desk.ambient.advance(1.5)
    assert await desk.taker.take(batch(record(2, headers=headers))) == 0
    assert (desk.one.position, desk.store.position(STREAM)) == (2, 2)
    assert desk.called == []


async def test_a_queue_hears_of_others_events_at_once() -> None:
    desk = await started(parts={"history": False})
    headers = {**record(1).headers, "type": "shop.other"}
    await desk.taker.take(batch(record(1, headers=headers)))
    assert desk.broker.told == [1]


async def test_with_care_a_batch_is_parked_unseen() -> None:
    """Its last owners died at this position; the next batch is handled as ever."""
    desk = await started("take", "count", careful=True)
    broken = record(1, headers={"type": "shop.placed"}, data=b"?")
    assert await desk.taker.take(batch(broken, record(2, "a"), record(3, "b"))) == 3
    assert desk.called == []
    assert desk.waiting == ["e2", "e2", "e3", "e3"]
    assert len(desk.store.letters) == 1
    assert desk.store.position(STREAM) == 3
    assert desk.one.suspects
    await desk.take("c", after=3)
    assert ("take", "c") in desk.called


async def test_care_lasts_until_the_batch_is_parked() -> None:
    desk = await started(careful=True)
    desk.store.faults.fail("commit", StoreUnavailable("full"))
    with pytest.raises(StoreUnavailable):
        await desk.take("a")
    assert desk.one.chains.total == 0
    await desk.take("a")
    assert desk.called == []
    assert desk.waiting == ["e1"]


async def test_a_lane_with_too_many_parked_events_waits_for_room() -> None:
    desk = await started("call", parked=PARKED_LIMIT - 1)
    taking = asyncio.ensure_future(desk.take("a"))
    await desk.ambient.advance(5.0)
    assert not taking.done()
    assert desk.waiting == ["e1"]
    desk.one.chains.remove(None)
    await desk.ambient.advance(0.0)
    assert await taking == 1


async def test_a_lane_that_is_given_up_does_not_wait_for_room() -> None:
    desk = await started("call", parked=PARKED_LIMIT)
    taking = asyncio.ensure_future(desk.take("a"))
    await desk.ambient.advance(0.5)
    assert not taking.done()
    desk.one.leaving = True
    await desk.ambient.advance(1.0)
    assert taking.done()


@pytest.mark.parametrize("error", [StoreUnavailable("full"), Fenced("no")])
async def test_a_commit_that_the_store_refuses_leaves_chains_as_they_were(
    error: Exception,
) -> None:
    """Nothing is tried one by one: the batch is read again, or not at all."""
    desk = await started("take", "call")
    desk.store.faults.fail("commit", error)
    with pytest.raises(type(error)):
        await desk.take("a", "b")
    assert desk.called == [("take", "a"), ("take", "b")]
    assert desk.one.chains.total == 0
    assert "a" not in desk.one.chains
    assert (desk.one.position, desk.log, desk.waiting) == (0, [], [])
    if isinstance(error, StoreUnavailable):
        await desk.take("a", "b")
        assert desk.log == ["a", "b"]
        assert desk.one.chains.total == 2


async def test_a_batch_that_is_handled_one_by_one_counts_each_parked_event_once() -> None:
    desk = await started("take", "call")
    desk.bad = {"b"}
    await desk.take("a", "b")
    assert len(desk.waiting) == desk.one.chains.total == 3


async def test_what_was_done_one_by_one_is_not_done_again_when_the_store_comes_back() -> None:
    desk = await started()
    desk.bad = {"c"}
    desk.store.faults.fail("commit", StoreUnavailable("full"), when=_handles("e2"))
    with pytest.raises(StoreUnavailable):
        await desk.take("a", "b", "c")
    assert (desk.log, desk.store.position(STREAM)) == (["a"], 1)
    await desk.take("a", "b", "c")
    assert desk.log == ["a", "b"]
    assert desk.waiting == ["e3"]
    assert desk.store.position(STREAM) == 3


async def test_a_position_moves_when_the_last_handler_of_its_event_has_ended() -> None:
    """One by one, the store fails between two handlers of one event: none of them is lost."""
    desk = await started("take", "count")
    desk.bad = {"b"}
    count = [("e1", "/shop/till", "count")]
    desk.store.faults.fail(
        "commit", StoreUnavailable("full"), when=lambda changes: changes.handled == count
    )
    with pytest.raises(StoreUnavailable):
        await desk.take("a", "b")
    assert desk.log == ["a"]
    assert (desk.one.position, desk.store.position(STREAM)) == (0, 0)
    await desk.take("a", "b")
    assert desk.log == ["a", "a"]
    assert desk.waiting == ["e2", "e2"]


async def test_cancelled_in_a_handler_or_a_commit_it_leaves_nothing() -> None:
    desk = await started("take", "call")
    for call in ("seen", "commit"):
        hold = desk.store.faults.hold(call)
        taking = asyncio.ensure_future(desk.take("a", "b"))
        await hold.reached.wait()
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert (desk.one.position, desk.log, desk.waiting) == (0, [], [])
        assert desk.one.chains.total == 0
    assert await desk.take("a", "b") == 2


async def test_a_list_of_events_is_one_call_and_fails_one_by_one() -> None:
    desk = await started("gather")
    await desk.take("a", "b")
    assert desk.called == [("gather", "ab")]
    desk.called.clear()
    desk.bad = {"d"}
    await desk.take("c", "d", "e", after=2)
    assert desk.called == [("gather", call) for call in ("cde", "c", "d", "e")]
    assert desk.waiting == ["e4"]


async def test_calls_are_told_when_the_batch_is_committed() -> None:
    desk = await started("take", "gather", parts={"calls": True})
    desk.store.faults.fail("commit", StoreUnavailable("full"))
    with pytest.raises(StoreUnavailable):
        await desk.take("a", "b")
    assert desk.signals(HandlerCalled) == []
    await desk.take("a", "b")
    assert [(call.handler, call.outcome, call.events) for call in desk.signals(HandlerCalled)] == [
        ("take", "done", 1), ("take", "done", 1), ("gather", "done", 2)
    ]  # fmt: skip


@pytest.mark.parametrize("calls", [False, True])
async def test_durations_are_told_by_handler_when_the_batch_is_committed(calls: bool) -> None:
    desk = await started("take", "count", "gather", parts={"calls": calls})
    waits = desk._do

    async def slowly(name: str, event: Placed, tx: Transaction) -> None:
        await desk.ambient.sleep({"take": 2.0, "count": 0.0}[name] * (event.order == "b"))
        await waits(name, event, tx)

    desk._do = slowly  # type: ignore[method-assign]
    desk.store.faults.fail("commit", StoreUnavailable("full"))
    for _ in range(2):
        assert desk.signals(HandlerTimed) == []
        traced = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        second = record(2, "b")
        second = record(2, "b", headers=second.headers | traced)
        taking = asyncio.ensure_future(desk.taker.take(batch(record(1, "a"), second)))
        await desk.ambient.advance(5.0)
        await asyncio.wait([taking])
    told = {each.handler: each for each in desk.signals(HandlerTimed)}
    assert {name: each.seconds for name, each in told.items()} == {
        "take": [0.0, 2.0], "count": [0.0, 0.0], "gather": [0.0]
    }  # fmt: skip
    assert {each.outcome for each in told.values()} == {"done"}
    assert told["take"].trace_id == "a" * 32
    assert told["gather"].trace_id == ""
    assert isinstance(taking.result(), int)


@pytest.mark.parametrize("calls", [False, True])
async def test_durations_of_calls_that_fail_are_told_one_by_one(calls: bool) -> None:
    desk = await started(parts={"calls": calls})
    desk.bad, does = {"b"}, desk._do

    async def slowly(name: str, event: Placed, tx: Transaction) -> None:
        desk.ambient._elapsed += {"a": 1.0, "b": 2.0, "c": 3.0}[event.order]
        await does(name, event, tx)

    desk._do = slowly  # type: ignore[method-assign]
    await desk.take("a", "b", "c")
    told = [(each.outcome, each.seconds) for each in desk.signals(HandlerTimed)]
    assert told == [("done", [1.0]), ("retry", [2.0]), ("done", [3.0])]


@pytest.mark.parametrize("calls", [False, True])
async def test_durations_on_a_thread_are_those_of_each_call(calls: bool) -> None:
    service = Service("desk")

    @service.on(Placed)
    def weigh(event: Placed, tx: Transaction) -> None:
        parts.ambient._elapsed += {"a": 1.0, "b": 3.0}[event.order]

    parts = Parts(service, calls=calls)
    await parts.batches(await parts.lane()).take(batch(record(1, "a"), record(2, "b")))
    assert [told.seconds for told in parts.signals(HandlerTimed)] == [[1.0, 3.0]]


@pytest.mark.parametrize("handler", ["take", "weigh"])
async def test_no_call_is_measured_while_nobody_listens(
    handler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service("desk")
    readings: list[int] = []

    async def take(event: Placed, tx: Transaction) -> None:
        readings.append(measured)

    def weigh(event: Placed, tx: Transaction) -> None:
        readings.append(measured)

    service.on(Placed)({"take": take, "weigh": weigh}[handler])
    parts, measured = Parts(service), 0
    parts.reports = Reports("desk", Signals())
    clock = parts.ambient.monotonic

    def counted() -> float:
        nonlocal measured
        measured += 1
        return clock()

    taker = parts.batches(await parts.lane())
    monkeypatch.setattr(parts.ambient, "monotonic", counted)
    await taker.take(batch(*(record(n) for n in range(1, 5))))
    # A thread that runs many handlers looks after each whether to return to the event loop.
    each = 1 if handler == "weigh" else 0
    assert [later - sooner for sooner, later in pairwise(readings)] == [each] * 3


async def test_a_handler_whose_own_wait_was_cancelled_is_retried_alone() -> None:
    desk = await started()
    service_error = asyncio.CancelledError()

    async def fails(name: str, event: Placed, tx: Transaction) -> None:
        if event.order == "b":
            raise service_error
        desk.called.append((name, event.order))

    desk._do = fails  # type: ignore[method-assign]
    await desk.take("a", "b", "c")
    assert desk.waiting == ["e2"]
    assert desk.store.position(STREAM) == 3


def _handles(event_id: str) -> Any:
    return lambda changes: [event_id] == [event for event, _, _ in changes.handled]
