"""The loop that every part runs on: errors, rings and ends."""

from __future__ import annotations

import asyncio

import pytest

from oyez.runtime.loop import Bell, Loop
from oyez.testing import VirtualAmbient


class Part:
    """A loop whose steps do what a test says, in turn, and then rest for 10 s each."""

    def __init__(self, *does: BaseException | asyncio.Event | float | None) -> None:
        self.ambient = VirtualAmbient()
        self.does = list(does)
        self.began: list[float] = []
        self.ended = 0
        self.troubles: list[str] = []
        self.loop = Loop("part", self._step, self.ambient, self._report)

    def _report(self, name: str, error: Exception) -> None:
        self.troubles.append(f"{name}: {error}")

    async def _step(self) -> float | None:
        self.began.append(self.ambient.monotonic())
        act = self.does.pop(0) if self.does else 10.0
        if isinstance(act, BaseException):
            raise act
        if isinstance(act, asyncio.Event):
            await act.wait()
            act = 10.0
        self.ended += 1
        return act


async def test_a_step_is_repeated_after_the_wait_it_asks_for() -> None:
    part = Part(None, 3.0)
    part.loop.start()
    await part.ambient.advance(13.0)
    assert part.began == [0.0, 0.0, 3.0, 13.0]
    await part.loop.stop()


async def test_the_wait_grows_with_each_error_in_a_row_and_each_is_reported() -> None:
    part = Part(*[ValueError(str(n)) for n in range(4)], 10.0, ValueError("later"))
    part.loop.start()
    await part.ambient.advance(5.0)
    assert part.troubles == [f"part: {n}" for n in range(4)]
    waits = [later - earlier for earlier, later in zip(part.began, part.began[1:], strict=False)]
    for wait, most in zip(waits, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert most / 2 <= wait <= most
    await part.ambient.advance(10.0)
    assert part.troubles[4:] == ["part: later"]
    assert part.began[-1] - part.began[-2] <= 0.1
    await part.loop.stop()


async def test_it_says_since_when_it_fails_and_no_longer_once_it_works() -> None:
    part = Part(5.0, ValueError("1"), ValueError("2"))
    part.loop.start()
    await part.ambient.advance(4.0)
    assert part.loop.failing_since is None
    await part.ambient.advance(1.12)
    assert len(part.troubles) == 2
    assert part.loop.failing_since == 5.0
    await part.ambient.advance(1.0)
    assert part.loop.failing_since is None
    await part.loop.stop()


async def test_a_ring_ends_the_wait_between_steps_but_not_the_one_after_an_error() -> None:
    part = Part(10.0, ValueError("no"))
    part.loop.start()
    await part.ambient.advance(1.0)
    part.loop.ring()
    await part.ambient.advance(0.0)
    assert part.began == [0.0, 1.0]
    part.loop.ring()
    await part.ambient.advance(0.0)
    assert len(part.began) == 2
    await part.ambient.advance(0.1)
    assert len(part.began) == 4, "the ring is remembered for the step that follows"
    await part.loop.stop()


async def test_a_ring_during_a_step_is_remembered() -> None:
    goes_on = asyncio.Event()
    part = Part(goes_on)
    part.loop.start()
    await part.ambient.advance(0.0)
    part.loop.ring()
    goes_on.set()
    await part.ambient.advance(0.0)
    assert len(part.began) == 2
    await part.loop.stop()


async def test_stopped_in_a_step_it_finishes_the_step() -> None:
    goes_on = asyncio.Event()
    part = Part(goes_on)
    part.loop.start()
    await part.ambient.advance(0.0)
    stopping = asyncio.ensure_future(part.loop.stop())
    await part.ambient.advance(60.0)
    assert not stopping.done()
    goes_on.set()
    await stopping
    assert (part.ended, len(part.began)) == (1, 1)


@pytest.mark.parametrize("error", [None, ValueError("no")])
async def test_stopped_between_steps_it_ends_at_once(error: Exception | None) -> None:
    """Also in the wait after an error; and a second time it does nothing."""
    part = Part(*([error] if error else []))
    part.loop.start()
    await part.ambient.advance(0.01)
    await part.loop.stop()
    await part.loop.stop()
    await part.ambient.advance(60.0)
    assert len(part.began) == 1


async def test_a_step_that_says_it_is_idle_is_cancelled_by_a_stop() -> None:
    part = Part(asyncio.Event())
    part.loop.start()
    await part.ambient.advance(0.0)
    part.loop.idle = True
    await part.loop.stop()
    assert part.ended == 0


async def test_killed_it_ends_in_the_middle_of_a_step_however_often() -> None:
    part = Part(asyncio.Event())
    part.loop.kill()
    part.loop.start()
    await part.ambient.advance(1.0)
    assert part.began == [], "killed before it was started"
    part = Part(asyncio.Event())
    part.loop.start()
    await part.ambient.advance(0.0)
    part.loop.kill()
    part.loop.kill()
    await part.loop.cancel()
    await part.ambient.advance(60.0)
    assert (part.ended, len(part.began)) == (0, 1)


async def test_a_loop_that_never_began_can_be_stopped() -> None:
    part = Part()
    await part.loop.stop()
    await part.loop.cancel()


async def test_a_step_may_end_its_loop() -> None:
    part = Part()
    ended: list[float] = []

    async def step() -> float:
        ended.append(part.ambient.monotonic())
        loop.end()
        return 1.0

    loop = Loop("part", step, part.ambient, part._report)
    loop.start()
    await part.ambient.advance(60.0)
    await loop.stop()
    assert ended == [0.0]


async def test_the_first_step_can_wait() -> None:
    ambient = VirtualAmbient()
    began: list[float] = []

    async def step() -> float:
        began.append(ambient.monotonic())
        return 1.0

    loop = Loop("part", step, ambient, lambda name, error: None, after=30.0)
    loop.start()
    await ambient.advance(29.0)
    assert began == []
    await ambient.advance(1.0)
    assert began == [30.0]
    await loop.stop()


async def test_a_cancellation_from_within_a_step_is_an_error_like_others() -> None:
    """A future that something else cancelled must not end a part for good."""
    part = Part(asyncio.CancelledError())
    part.loop.start()
    await part.ambient.advance(1.0)
    assert part.ended == 1
    assert len(part.troubles) == 1
    await part.loop.stop()


async def test_a_bell_rings_once() -> None:
    ambient = VirtualAmbient()
    bell = Bell(ambient)
    bell.ring()
    bell.ring()
    await bell.wait(5.0)
    assert ambient.monotonic() == 0.0
    waiting = asyncio.ensure_future(bell.wait(5.0))
    await ambient.advance(4.9)
    assert not waiting.done()
    await ambient.advance(0.1)
    assert waiting.done()
