"""Identifiers, and the two clocks: the machine's and the virtual one."""

from __future__ import annotations

import asyncio
import random
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oyez.ambient import Ambient, SystemAmbient, Uuid7
from oyez.testing import VirtualAmbient
from oyez.testing.clock import START


class TestUuid7:
    @given(st.lists(st.floats(0, 4e9), min_size=2, max_size=60), st.integers(0, 2**32))
    def test_grows_strictly_whatever_the_clock_does(self, times: list[float], seed: int) -> None:
        source = Uuid7(random.Random(seed))
        made = [source.next(now) for now in times]
        assert made == sorted(set(made))

    def test_grows_strictly_within_one_millisecond(self) -> None:
        source = Uuid7(random.Random(1))
        made = [source.next(1_700_000_000.0) for _ in range(20_000)]
        assert made == sorted(set(made))

    @given(st.floats(0, 2**47 / 1000))
    def test_has_the_layout_of_rfc_9562(self, now: float) -> None:
        text = Uuid7(random.Random(1)).next(now)
        value = uuid.UUID(text)
        assert str(value) == text
        assert value.version == 7
        assert value.variant == uuid.RFC_4122
        assert value.int >> 80 == max(int(now * 1000), 0) or now < 0.001

    def test_two_processes_differ(self) -> None:
        ids = {SystemAmbient().new_id() for _ in range(100)}
        assert len(ids) == 100


def test_the_machine_gives_growing_ids_and_time() -> None:
    ambient = SystemAmbient()
    ids = [ambient.new_id() for _ in range(5_000)]
    assert ids == sorted(set(ids))
    assert ambient.monotonic() <= ambient.monotonic()
    assert 0 <= ambient.chance() < 1
    assert 0 <= ambient.bits(64) < 2**64


class TestVirtualClock:
    def test_one_seed_gives_one_history(self) -> None:
        def history(seed: int) -> list[object]:
            ambient = VirtualAmbient(seed)
            return [f() for _ in range(20) for f in (ambient.new_id, ambient.chance)]

        assert history(1) == history(1)
        assert history(1) != history(2)

    async def test_stands_still_until_it_is_advanced(self) -> None:
        ambient = VirtualAmbient()
        assert (ambient.now(), ambient.monotonic()) == (START, 0.0)
        sleeping = asyncio.ensure_future(ambient.sleep(10.0))
        await ambient.advance(9.5)
        assert not sleeping.done()
        await ambient.advance(0.5)
        assert sleeping.done()
        assert (ambient.now(), ambient.monotonic()) == (START + 10.0, 10.0)

    async def test_sleepers_wake_in_order_each_at_its_own_time(self) -> None:
        ambient = VirtualAmbient()
        woken: list[tuple[str, float]] = []

        async def sleeper(name: str, *naps: float) -> None:
            for nap in naps:
                await ambient.sleep(nap)
                woken.append((name, ambient.monotonic()))

        tasks = [
            asyncio.ensure_future(sleeper("a", 3.0)),
            asyncio.ensure_future(sleeper("b", 1.0, 1.0, 5.0)),
            asyncio.ensure_future(sleeper("c", 1.0)),
        ]
        await ambient.advance(4.0)
        assert woken == [("b", 1.0), ("c", 1.0), ("b", 2.0), ("a", 3.0)]
        assert [task.done() for task in tasks] == [True, False, True]
        await ambient.advance(3.0)
        assert woken[-1] == ("b", 7.0)

    async def test_a_sleep_of_nothing_lets_others_run_and_needs_no_time(self) -> None:
        ambient = VirtualAmbient()
        for nothing in (0.0, -1.0):
            await ambient.sleep(nothing)
        assert ambient.monotonic() == 0.0

    async def test_a_cancelled_sleep_is_gone(self) -> None:
        ambient = VirtualAmbient()
        sleeping = asyncio.ensure_future(ambient.sleep(1.0))
        await asyncio.sleep(0)
        sleeping.cancel()
        await ambient.advance(2.0)
        assert sleeping.cancelled()


async def passing(ambient: Ambient, seconds: float) -> None:
    if isinstance(ambient, VirtualAmbient):
        await ambient.advance(seconds)


@pytest.mark.parametrize("make", [SystemAmbient, VirtualAmbient])
class TestTimeouts:
    """Both clocks' timeouts behave alike."""

    async def test_what_ends_in_time_is_left_alone(self, make: type[Ambient]) -> None:
        ambient = make()
        for seconds in (60.0, None):
            async with ambient.timeout(seconds):
                await asyncio.sleep(0)
        await passing(ambient, 100.0)
        await asyncio.sleep(0)

    async def test_what_takes_too_long_is_cancelled(self, make: type[Ambient]) -> None:
        ambient = make()
        cancelled = False

        async def work() -> None:
            nonlocal cancelled
            async with ambient.timeout(0.01):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled = True
                    raise

        task = asyncio.ensure_future(work())
        await passing(ambient, 0.01)
        with pytest.raises(TimeoutError):
            await task
        assert cancelled
        assert not task.cancelling()

    async def test_the_inner_of_two_goes_off_alone(self, make: type[Ambient]) -> None:
        ambient = make()

        async def work() -> str:
            async with ambient.timeout(600.0):
                try:
                    async with ambient.timeout(0.01):
                        await asyncio.Event().wait()
                except TimeoutError:
                    await asyncio.sleep(0)
                    return "went on"
            return "no"

        task = asyncio.ensure_future(work())
        await passing(ambient, 1.0)
        assert await task == "went on"

    async def test_the_outer_of_two_ends_both(self, make: type[Ambient]) -> None:
        ambient = make()
        inner: list[type[BaseException]] = []

        async def work() -> None:
            async with ambient.timeout(0.01):
                try:
                    async with ambient.timeout(600.0):
                        await asyncio.Event().wait()
                except BaseException as error:
                    inner.append(type(error))
                    raise

        task = asyncio.ensure_future(work())
        await passing(ambient, 1.0)
        with pytest.raises(TimeoutError):
            await task
        assert inner == [asyncio.CancelledError]

    async def test_a_cancellation_from_outside_stays_one(self, make: type[Ambient]) -> None:
        ambient = make()

        async def work() -> None:
            async with ambient.timeout(600.0):
                await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_another_error_is_not_hidden(self, make: type[Ambient]) -> None:
        ambient = make()
        with pytest.raises(LookupError):
            async with ambient.timeout(600.0):
                raise LookupError

    async def test_it_works_while_a_cancelled_task_cleans_up(self, make: type[Ambient]) -> None:
        ambient = make()
        found: list[type[BaseException]] = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                try:
                    async with ambient.timeout(0.01):
                        await asyncio.Event().wait()
                except (TimeoutError, asyncio.CancelledError) as error:
                    found.append(type(error))

        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        await passing(ambient, 1.0)
        await asyncio.wait([task])
        assert found == [TimeoutError]


async def test_a_timer_that_goes_off_as_the_block_ends_cancels_nothing() -> None:
    ambient = VirtualAmbient()
    go = asyncio.Event()
    left = asyncio.Event()

    async def work() -> str:
        async with ambient.timeout(1.0):
            await go.wait()
        left.set()
        await asyncio.sleep(0)
        return "whole"

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    go.set()
    due, _, timer = ambient._timers[0]
    assert due == 1.0
    timer.set_result(None)
    await left.wait()
    assert await task == "whole"
