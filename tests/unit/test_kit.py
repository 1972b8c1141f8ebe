"""What adapters of brokers share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oyez.background import lasting
from oyez.brokers.kit.calls import MOST, Deadline, Pauses
from oyez.brokers.kit.findings import Findings
from oyez.brokers.kit.heads import Heads
from oyez.brokers.kit.progress import Progress
from oyez.brokers.kit.streams import (
    Place,
    Streams,
    behind,
    check_count,
    partitions_of,
    too_large,
)
from oyez.brokers.kit.watch import Look, Rounds, every, stop
from oyez.brokers.kit.windows import windows
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable
from oyez.partitioning import partition_of, partition_without_key
from oyez.ports import Position, Record
from oyez.testing import VirtualAmbient


async def test_a_deadline_names_the_server_and_the_last_trouble() -> None:
    ambient = VirtualAmbient()

    async def call() -> None:
        async with Deadline(5.0, "kafka://h", ambient.timeout) as deadline:
            deadline.trouble = ValueError("no route")
            await ambient.sleep(60.0)

    calling = asyncio.ensure_future(call())
    await ambient.advance(5.0)
    with pytest.raises(BrokerUnavailable, match=r"^kafka://h did not answer within 5 s: no route$"):
        await calling


async def test_who_asks_while_a_query_is_under_way_shares_the_next_one() -> None:
    begun: list[str] = []
    going_on = asyncio.Event()

    async def query(about: str) -> int:
        begun.append(about)
        number = len(begun)
        await going_on.wait()
        if about == "gone":
            raise BrokerUnavailable("no")
        return number

    rounds = Rounds(query)
    first = asyncio.ensure_future(rounds.ask("orders"))
    await asyncio.sleep(0.0)
    await asyncio.sleep(0.0)
    assert begun == ["orders"]
    later = [asyncio.ensure_future(rounds.ask("orders")) for _ in range(3)]
    other = asyncio.ensure_future(rounds.ask("gone"))
    for _ in range(5):
        await asyncio.sleep(0.0)
    assert begun == ["orders", "gone"]
    later[0].cancel()  # the others still get their answer
    going_on.set()
    assert await first == 1
    assert [await each for each in later[1:]] == [3, 3]
    with pytest.raises(BrokerUnavailable):
        await other
    assert await rounds.ask("orders") == 4


async def test_a_query_that_is_stopped_can_be_made_again() -> None:
    going_on = asyncio.Event()

    async def query(about: str) -> str:
        await going_on.wait()
        return about

    rounds = Rounds(query)
    asked = [asyncio.ensure_future(rounds.ask("orders"))]
    await asyncio.sleep(0.0)
    asked.append(asyncio.ensure_future(rounds.ask("orders")))
    await asyncio.sleep(0.0)
    await rounds.stop()
    for each in asked:
        with pytest.raises(BrokerUnavailable, match="closed"):
            await each
    going_on.set()
    assert await rounds.ask("orders") == "orders"


async def test_a_deadline_lets_other_errors_and_cancellation_through() -> None:
    with pytest.raises(BrokerRefused, match="no"):
        async with Deadline(5.0, "h"):
            raise BrokerRefused("no")
    with pytest.raises(BrokerUnavailable, match="h did not answer within 5 s"):
        async with Deadline(5.0, "h"):
            raise TimeoutError  # a socket's own

    async def call() -> None:
        async with Deadline(5.0, "h"):
            await asyncio.Event().wait()

    calling = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling


def test_pauses_grow_up_to_a_limit_and_begin_anew_after_a_success() -> None:
    pauses = Pauses(VirtualAmbient())
    found = [pauses.next() for _ in range(12)]
    assert 0 < found[0] <= 0.1
    assert all(MOST / 2 <= pause <= MOST for pause in found[5:])
    pauses.failures = 0
    assert pauses.next() <= 0.1


def test_streams_tell_what_is_added_and_wake_for_any_change() -> None:
    streams: Streams[int] = Streams()
    told = []
    streams.listen(lambda: told.append(dict(streams.known)))
    streams.add("a", 1)
    streams.replace({"a": 1})
    assert told == [{"a": 1}]
    changed = streams.changed
    streams.replace({"a": 2})
    assert changed.is_set()
    assert not streams.changed.is_set()
    streams.replace({})
    assert told == [{"a": 1}]
    streams.replace({"a": 1, "b": 1})
    assert told == [{"a": 1}, {"a": 1, "b": 1}]


def test_the_partition_is_that_of_the_key_or_of_the_id() -> None:
    records = [
        Record(stream="a", key="k", headers={"id": "1"}, data=None),
        Record(stream="b", key=None, headers={"id": "2"}, data=None),
        Record(stream="b", key="\udcff", headers={}, data=None),
    ]
    assert partitions_of(records, {"a": 8, "b": 1_000}) == [
        partition_of("k", 8),
        partition_without_key("2", 1_000),
        partition_of("\udcff", 1_000),
    ]


def test_lag_leaves_out_partitions_that_do_not_exist() -> None:
    assert behind([5, 3], {0: 2, 1: 4, 2: 0, -1: 0}) == {0: 3, 1: 0}


def test_refusals_name_the_remedy() -> None:
    check_count("s", 8, 8)
    with pytest.raises(BrokerRefused, match=r"s has 8 partitions, not 4.*system.partitions"):
        check_count("s", 8, 4)
    refusal = str(too_large("s", 9, 8, "raise max_payload"))
    assert refusal == (
        "a record of s has 9 bytes; 8 are allowed: set system.claim_check, or raise max_payload"
    )


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 5), st.integers(1, 60))
def test_windows_hold_everything_in_order_and_no_more_than_they_may(
    sizes: list[int], count: int, size: int
) -> None:
    parts = [sizes[window] for window in windows(sizes, size, count)]
    assert [each for part in parts for each in part] == sizes
    for part, following in zip_longest(parts, parts[1:]):
        assert 0 < len(part) <= count
        assert len(part) == 1 or sum(part) <= size
        if following is not None:
            assert len(part) == count or sum(part) + following[0] > size


async def test_a_head_wakes_its_own_readers_only() -> None:
    heads: Heads[int] = Heads()
    first, second = (asyncio.ensure_future(heads.wait(1)) for _ in range(2))
    other = asyncio.ensure_future(heads.wait(2))
    await asyncio.sleep(0)
    first.cancel()
    heads.wake(1)
    await second
    assert not other.done()
    heads.wake_all()
    await other


async def test_progress_that_could_not_be_shown_is_shown_later_unless_it_moved_on() -> None:
    shown: list[dict[Place, Position]] = []
    error: BrokerError | None = BrokerUnavailable("no")

    async def show(moved: Mapping[Place, Position]) -> None:
        progress.handled["s", 1] = 9  # handled meanwhile
        if error is not None:
            raise error
        shown.append(dict(moved))

    progress = Progress(show)
    await progress.show()
    assert not progress.handled
    progress.handled |= {("s", 0): 5, ("s", 1): 7}
    with pytest.raises(BrokerUnavailable):
        await progress.show()
    assert progress.handled == {("s", 0): 5, ("s", 1): 9}
    error = None
    await progress.show()
    assert shown == [{("s", 0): 5, ("s", 1): 9}]


def test_findings_are_about_something() -> None:
    findings = Findings("topic t: ")
    findings.tell(False, "all is well", "nothing")
    findings.tell(True, "it is slow", "wait", grave=False)
    assert [(each.what, each.remedy, each.grave) for each in findings.found] == [
        ("topic t: it is slow", "wait", False)
    ]


async def test_a_job_goes_on_after_a_failure_until_it_is_stopped() -> None:
    ambient, done = VirtualAmbient(), []

    async def job() -> None:
        done.append(ambient.monotonic())
        if len(done) == 1:
            raise BrokerUnavailable("no")

    watching = asyncio.ensure_future(every(ambient, 2.0, job))
    await ambient.advance(5.0)
    assert done == [2.0, 4.0]
    await stop(watching, None)
    assert watching.cancelled()
    await stop()


async def test_a_job_goes_on_after_what_nobody_foresaw_and_it_is_logged_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ambient = VirtualAmbient()
    done: list[float] = []

    async def job() -> None:
        done.append(ambient.monotonic())
        if len(done) < 4:
            raise RuntimeError("the handler is closed")

    watching = asyncio.create_task(every(ambient, 1.0, job), name="redis streams")
    await ambient.advance(5.0)
    assert done == [1.0, 2.0, 3.0, 4.0, 5.0]
    await stop(watching)
    logged = capsys.readouterr().err
    assert logged.count("RuntimeError: the handler is closed") == 1
    assert "redis streams" in logged


async def test_a_look_that_met_what_nobody_foresaw_is_repeated_if_that_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            looking.soon()
            raise RuntimeError("the handler is closed")

    looking = Look(look, "look")
    looking.soon()
    async with asyncio.timeout(10.0):
        while looks < 2:
            await asyncio.sleep(0)
    await looking.stop()
    assert "RuntimeError: the handler is closed" in capsys.readouterr().err


async def test_lasting_work_begins_again_until_it_returns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ambient = VirtualAmbient()
    begun: list[float] = []

    async def work() -> None:
        begun.append(ambient.monotonic())
        if len(begun) < 3:
            raise RuntimeError(f"no {len(begun)}")

    working = asyncio.ensure_future(lasting("redis arrivals", work, ambient))
    await ambient.advance(1.0)
    await working
    assert len(begun) == 3
    assert begun[0] < begun[1] < begun[2]
    logged = capsys.readouterr().err
    assert "no 1" in logged
    assert "no 2" in logged


async def test_one_look_at_a_time_and_one_more_for_a_reason_that_came_meanwhile() -> None:
    looks, going_on = 0, asyncio.Event()

    async def look() -> None:
        nonlocal looks
        looks += 1
        await going_on.wait()
        raise BrokerUnavailable("no")

    looking = Look(look, "look")
    looking.soon()
    await asyncio.sleep(0)
    for _ in range(3):
        looking.soon()
    assert looks == 1
    going_on.set()
    async with asyncio.timeout(10.0):
        while looks < 2:
            await asyncio.sleep(0)
    await looking.stop()
    assert looks == 2
    looking.soon()
    async with asyncio.timeout(10.0):
        while looks < 3:
            await asyncio.sleep(0)
    await looking.stop()
