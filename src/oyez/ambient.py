"""Time, identifiers and chance: the one source from which the core takes what it can't compute.

The core never calls ``time``, ``uuid`` or ``random`` itself. It is handed an :class:`Ambient`, so a
whole system can run under a virtual clock with seeded chance and give the same history twice.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Ambient(Protocol):
    """What the core needs from its surroundings."""

    def now(self) -> float:
        """Wall-clock time in seconds since 1970, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; its zero means nothing."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds of this clock."""
        ...

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """Cancel the block after so many seconds and raise ``TimeoutError``; None never does."""
        ...

    def new_id(self) -> str:
        """A new identifier: UUIDv7, strictly increasing within one process."""
        ...

    def chance(self) -> float:
        """A number in [0, 1)."""
        ...

    def bits(self, count: int) -> int:
        """A number of so many random bits, e.g. for a span id."""
        ...


def backoff(failures: int, chance: float, *, most: float = 5.0) -> float:
    """Seconds to wait after so many failures in a row: 0.1, doubling up to ``most``.

    ``chance`` in [0, 1) takes away up to half, so that many who failed at once do not come back at
    once ("equal jitter", AWS Architecture Blog, "Exponential Backoff And Jitter").
    """
    return min(most, 0.1 * 2.0 ** min(failures - 1, 10)) * (0.5 + 0.5 * chance)


class Uuid7:
    """Makes UUIDv7 strings (RFC 9562, section 5.7), strictly increasing by method 1 of 6.2.

    ``rand_a`` is a 12-bit counter within the millisecond; when it overflows, or the clock steps
    back, the time field runs ahead of the clock rather than go back.
    """

    def __init__(self, chance: random.Random) -> None:
        self._bits = chance.getrandbits
        self._millis = 0
        self._counter = 0

    def next(self, now: float) -> str:
        """The next identifier at wall-clock time ``now`` (seconds)."""
        millis = int(now * 1000)
        if millis > self._millis:
            self._millis = millis
            self._counter = self._bits(8)
        elif self._counter < 0xFFF:
            self._counter += 1
        else:
            self._millis += 1
            self._counter = 0
        time = f"{self._millis:012x}"
        tail = f"{0x8000_0000_0000_0000 | self._bits(62):016x}"
        return f"{time[:8]}-{time[8:]}-7{self._counter:03x}-{tail[:4]}-{tail[4:]}"


class SystemAmbient:
    """The real surroundings: the machine's clocks and chance seeded by the operating system."""

    def __init__(self) -> None:
        self._random = random.Random(random.SystemRandom().getrandbits(256))  # noqa: S311
        self._ids = Uuid7(self._random)

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(seconds)

    def new_id(self) -> str:
        return self._ids.next(time.time())

    def chance(self) -> float:
        return self._random.random()

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)
