"""The search: many seeds on several processes, some run twice, and the first failure shrunk."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Iterator, Sequence

import msgspec

from oyez.simulation.run import Result, run
from oyez.simulation.shrink import shrink
from oyez.simulation.stage import Plan

TWICE = 20
"""Each seed that is a multiple of this runs twice, and must do the same."""
DIFFERS = "non-determinism"
CHUNK = 20
"""The number of seeds that a process runs before it tells of them."""


class Found(msgspec.Struct, kw_only=True):
    """What a search has found."""

    seeds: int = 0
    """The number of seeds that ran."""
    seconds: float = 0.0
    """Real seconds that it took, without shrinking."""
    virtual: float = 0.0
    """Virtual seconds of all runs together."""
    jobs: int = 1
    failure: Result | None = None
    """The first failure, as it was found."""
    shrunk: Result | None = None
    """The same, made as short as it could be."""
    unreached: list[str] = []
    """What no seed has reached, of what some seed must."""


class _Told(msgspec.Struct):
    """What a process tells of some seeds."""

    seeds: int
    virtual: float
    reached: set[str]
    expected: set[str]
    failure: Result | None


def search(
    plan: Plan,
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    minutes: float | None = None,
    shrinks: bool = True,
) -> Found:
    """Run seeds until one fails, all have run, or the time is over."""
    found = Found(jobs=jobs)
    began = time.monotonic()
    reached: set[str] = set()
    expected: set[str] = set()
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    for told in _all(plan, chunks, jobs):
        found.seeds += told.seeds
        found.virtual += told.virtual
        reached |= told.reached
        expected |= told.expected
        found.failure = told.failure
        over = minutes is not None and time.monotonic() - began > minutes * 60
        if told.failure is not None or over:
            break
    found.seconds = time.monotonic() - began
    if found.failure is not None:
        found.shrunk = found.failure
        if shrinks and not found.failure.failures[0].startswith(DIFFERS):
            found.shrunk = shrink(plan, found.failure)
    else:
        found.unreached = sorted(expected - reached)
    return found


def _all(plan: Plan, chunks: Sequence[Sequence[int]], jobs: int) -> Iterator[_Told]:
    if jobs == 1:
        for chunk in chunks:
            yield _some(plan, chunk)
        return
    global _plan
    _plan = plan  # what is forked has it, so nothing of it is sent
    context = multiprocessing.get_context("fork")
    with context.Pool(jobs) as pool:
        yield from (msgspec.msgpack.decode(each, type=_Told) for each in pool.imap(_sent, chunks))


_plan: Plan | None = None


def _sent(chunk: Sequence[int]) -> bytes:
    assert _plan is not None
    return msgspec.msgpack.encode(_some(_plan, chunk))


def _some(plan: Plan, chunk: Sequence[int]) -> _Told:
    told = _Told(0, 0.0, set(), set(), None)
    for seed in chunk:
        result = run(plan, seed)
        if seed % TWICE == 0 and not result.failures:
            again = run(plan, seed)
            if again.trace != result.trace:
                result.failures.append(_difference(result, again))
        told.seeds += 1
        told.virtual += result.virtual
        told.reached |= result.reached
        told.expected |= result.expected
        if result.failures:
            told.failure = result
            break
    gc.collect()
    return told


def _difference(one: Result, other: Result) -> str:
    for step, (first, second) in enumerate(zip(one.story, other.story, strict=False)):
        if first != second:
            return (
                f"{DIFFERS} at step {step}: {first.node}: {first.what}; and when run again, "
                f"{second.node}: {second.what}: take time, ids and chance from the transaction"
            )
    return f"{DIFFERS}: {len(one.story)} steps, and when run again {len(other.story)}"
