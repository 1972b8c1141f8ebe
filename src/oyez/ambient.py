"""The one source of time, identifiers and random numbers in the core.

The core never calls ``time``, ``uuid`` or ``random`` itself. It is given an :class:`Ambient`, so
that a whole system can run under a virtual clock and a seed, and repeat the same history.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AbstractAsyncContextManager
from math import inf
from typing import Protocol


class Timeout(AbstractAsyncContextManager[object], Protocol):
    """A block that is cancelled when its time is over."""

    def expired(self) -> bool:
        """Whether its time was over before the block ended.

        Ask this, not a clock, to tell such a ``TimeoutError`` from one of the block's own: a timer
        may fire up to the resolution of the loop's clock early (a millisecond on uvloop).
        """
        ...


class Ambient(Protocol):
    """The clock, identifiers and random numbers that the core uses."""

    def now(self) -> float:
        """Return the wall-clock time in seconds since 1970, UTC."""
        ...

    def monotonic(self) -> float:
        """Return the seconds of a clock that never goes back; its zero has no meaning."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds of this clock."""
        ...

    def timeout(self, seconds: float | None) -> Timeout:
        """Cancel the block after that many seconds and raise ``TimeoutError``; never for None."""
        ...

    def poll(self, seconds: float, *, due: float = inf, replicas: bool = False) -> float:
        """Return how long to rest until the next look at what a bell tells of as well, in seconds.

        It is ``seconds``; more under a virtual clock, while nothing happens; no more than ``due``,
        the seconds until something is due. ``replicas``: only what replicas do, such as to die,
        gives that look something to find.
        """
        ...

    def new_id(self) -> str:
        """Return a new identifier: UUIDv7, strictly increasing within one process."""
        ...

    def chance(self) -> float:
        """Return a random number in [0, 1)."""
        ...

    def bits(self, count: int) -> int:
        """Return an integer of ``count`` random bits, e.g. for a span id."""
        ...


def backoff(failures: int, chance: float, *, most: float = 5.0) -> float:
    """Return the seconds to wait after a number of failures in a row: 0.1, doubling up to ``most``.

    ``chance`` in [0, 1) reduces it by up to half, so that clients that failed together do not all
    retry together ("equal jitter", AWS Architecture Blog, "Exponential Backoff And Jitter").
    """
    return min(most, 0.1 * 2.0 ** min(failures - 1, 10)) * (0.5 + 0.5 * chance)


class Uuid7:
    """A generator of UUIDv7 strings (RFC 9562, section 5.7), strictly increasing (6.2, method 1).

    ``rand_a`` is a 12-bit counter within the millisecond; when it overflows, or the clock steps
    back, the time field runs ahead of the clock instead.
    """

    def __init__(self, chance: random.Random) -> None:
        self._bits = chance.getrandbits
        self._millis = 0
        self._counter = 0
        self._shown = (-1, "")
        """The time of the last identifier, and how it begins."""

    def next(self, now: float) -> str:
        """Return the next identifier at wall-clock time ``now`` (seconds)."""
        millis = int(now * 1000)
        if millis > self._millis:
            self._millis = millis
            self._counter = self._bits(8)
        elif self._counter < 0xFFF:
            self._counter += 1
        else:
            self._millis += 1
            self._counter = 0
        shown, head = self._shown
        if shown != self._millis:
            time = f"{self._millis:012x}"
            head = f"{time[:8]}-{time[8:]}-7"
            self._shown = (self._millis, head)
        tail = (1 << 63 | self._bits(62)).to_bytes(8).hex("-", 6)
        return f"{head}{self._counter:03x}-{tail}"


class SystemAmbient:
    """The machine's clocks, and random numbers seeded by the operating system."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._random = random.Random(random.SystemRandom().getrandbits(256))  # noqa: S311
        self._ids = Uuid7(self._random)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float | None) -> Timeout:
        return asyncio.timeout(seconds)

    def poll(self, seconds: float, *, due: float = inf, replicas: bool = False) -> float:
        return min(seconds, due)

    def new_id(self) -> str:
        return self._ids.next(time.time())

    def chance(self) -> float:
        return self._random.random()

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)
