"""The search: many seeds on several processes, some run twice, and the first failure shrunk.

Where processes are used, each runs some seeds and ends: so nothing need be cleaned up after a run,
and memory does not grow.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

import msgspec

from oyez.simulation.run import Result, begin_ahead, drop_ahead, run
from oyez.simulation.shrink import shrink
from oyez.simulation.sim import Sim
from oyez.simulation.stage import Plan

TWICE = 20
"""Each seed that is a multiple of this runs twice, and must do the same."""
DIFFERS = "non-determinism"
CHUNK = 20
"""The seeds of one process: about 100 MB."""
_PIECE = 65_536


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
    """The failure of the first seed that has one, as it was found."""
    shrunk: Result | None = None
    """The same, made as short as it could be."""
    unreached: list[str] = []
    """What no seed has reached, of what some seed must."""


def search(
    plan: Plan,
    seeds: Sequence[int],
    *,
    jobs: int = 0,
    minutes: float | None = None,
    shrinks: bool = True,
) -> Found:
    """Run seeds until one fails, all have run, or the time is over.

    ``jobs`` is the number of processes at once, which changes nothing of what is found; with 0 all
    runs in this process, slower, and where a debugger sees it.
    """
    found = Found(jobs=max(1, jobs))
    reached: set[str] = set()
    expected: set[str] = set()
    began = time.monotonic()
    for result in _forked(plan, seeds, jobs) if jobs else _here(plan, seeds):
        found.seeds += 1
        found.virtual += result.virtual
        reached |= result.reached
        expected |= result.expected
        over = minutes is not None and time.monotonic() - began > minutes * 60
        if result.failures:
            found.failure = result
        if result.failures or over:
            break
    found.seconds = time.monotonic() - began
    if found.failure is None:
        found.unreached = sorted(expected - reached)
        return found
    found.shrunk = found.failure
    if shrinks and found.failure.tape and not found.failure.failures[0].startswith(DIFFERS):
        found.shrunk = shrink(found.failure, lambda seed, tape: run(plan, seed, tape))
    return found


def _here(plan: Plan, seeds: Sequence[int]) -> Iterator[Result]:
    """Yield the results of seeds that run in this process."""
    for number, seed in enumerate(seeds, 1):
        yield _twice(plan, seed)
        if number % TWICE == 0:
            gc.collect()


def _twice(plan: Plan, seed: int, *, closes: bool = True) -> Result:
    """Return the result of a seed; of some, with a failure if they do not run alike twice."""
    result = run(plan, seed, closes=closes)
    if seed % TWICE == 0 and not result.failures:
        again = run(plan, seed, closes=closes)
        if again.trace != result.trace:
            result.failures.append(_difference(result, again))
    return result


def _difference(one: Result, other: Result) -> str:
    for step, (first, second) in enumerate(zip(one.story, other.story, strict=False)):
        if first != second:
            return (
                f"{DIFFERS} at step {step}: {first.node}: {first.what}; and when run again, "
                f"{second.node}: {second.what}: take time, ids and chance from the transaction"
            )
    return f"{DIFFERS}: {len(one.story)} steps, and when run again {len(other.story)}"


# -- in processes ----------------------------------------------------------------------------------


class _Child:
    """A process that runs some seeds, and what it has told of them."""

    def __init__(self, plan: Plan, seeds: Sequence[int]) -> None:
        self.results: list[Result] = []
        self.ended = False
        self._left = list(seeds)
        self._told = bytearray()
        sys.stdout.flush()
        sys.stderr.flush()
        self.end, writing = os.pipe()
        """The end of the pipe that is read."""
        self._pid = os.fork()
        if not self._pid:
            _run(plan, seeds, writing)
        os.close(writing)

    def read(self) -> None:
        """Read what it tells."""
        piece = os.read(self.end, _PIECE)
        if not piece:
            self._end()
            return
        self._told += piece
        *lines, rest = self._told.split(b"\n")
        self._told = rest
        for line in lines:
            result = msgspec.json.decode(line, type=Result)
            self.results.append(result)
            self._left = [] if result.failures else self._left[1:]

    def kill(self) -> None:
        """End it."""
        if not self.ended:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.close(self.end)
            os.waitpid(self._pid, 0)

    def _end(self) -> None:
        self.ended = True
        os.close(self.end)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if self._left:
            how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
            self.results.append(
                Result(
                    seed=self._left[0],
                    failures=[f"the process was ended {how}: code of a service must not end it"],
                    story=[],
                    tape={},
                    reached=set(),
                    expected=set(),
                    steps=0,
                    virtual=0.0,
                    trace="",
                )
            )


def _forked(plan: Plan, seeds: Sequence[int], jobs: int) -> Iterator[Result]:
    """Yield the results of seeds that run in so many processes at once, in their order."""
    chunks = iter([seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)])
    children: list[_Child] = []
    # What is imported and made now, is so in each process. No handler runs: it may do anything.
    run(msgspec.structs.replace(plan, scenario=_nothing, faults=()), 0)
    begin_ahead(plan, min(CHUNK + 1, len(seeds) // 4))
    gc.collect()
    with selectors.DefaultSelector() as reading:
        try:
            while True:
                for chunk in islice(chunks, jobs - sum(not each.ended for each in children)):
                    children.append(_Child(plan, chunk))
                    reading.register(children[-1].end, selectors.EVENT_READ, children[-1])
                if not children:
                    return
                yield from children[0].results
                children[0].results.clear()
                if children[0].ended:
                    del children[0]
                    continue
                for key, _ in reading.select():
                    key.data.read()
                    if key.data.ended:
                        reading.unregister(key.fd)
        finally:
            for child in children:
                child.kill()
            drop_ahead()


async def _nothing(sim: Sim) -> None:
    pass


def _run(plan: Plan, seeds: Sequence[int], writing: int) -> None:
    """Run seeds until one fails, tell of each, and end the process."""
    code = 1
    try:
        gc.disable()
        with open(writing, "wb") as pipe:
            for seed in seeds:
                result = _twice(plan, seed, closes=False)
                if not result.failures:
                    result.story, result.tape = [], {}
                pipe.write(msgspec.json.encode(result) + b"\n")
                pipe.flush()
                if result.failures:
                    break
        sys.stdout.flush()
        code = 0
    except KeyboardInterrupt:
        pass
    except BaseException:  # noqa: BLE001 - the process must end here
        traceback.print_exc()
    finally:
        os._exit(code)
