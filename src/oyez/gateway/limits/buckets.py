"""The buckets of one limit in this process.

A bucket holds so many tokens as may be taken at once, and is filled at a rate. It is kept as one
number, the time at which it is full again: a request that takes a token moves that time by the time
in which one is filled in, and is refused where that would be further ahead than a whole bucket
takes. This is the generic cell rate algorithm (ITU-T I.371; the ATM Forum's Traffic Management
Specification 4.0, in the form of virtual scheduling). Times are whole nanoseconds, so that nothing
is gained or lost by rounding, however many tokens are taken.
"""

from __future__ import annotations

from oyez.config import Limit

SECOND = 1_000_000_000
"""Nanoseconds."""
MOST = 65_536
"""The most buckets of a limit in memory; above it the one that was used longest ago is dropped."""


def every(limit: Limit) -> int:
    """Return the nanoseconds in which one token is filled in, rounded up."""
    return -(-limit.rate.seconds * SECOND // limit.rate.count)


class Buckets:
    """The buckets of one limit, each full at first."""

    def __init__(self, limit: Limit, most: int = MOST) -> None:
        self._every = every(limit)
        self._depth = limit.size * self._every
        self._most = most
        self._full: dict[str, int] = {}
        """When each is full again; the one that was used longest ago is first."""

    def __len__(self) -> int:
        return len(self._full)

    def wait(self, who: str, now: int) -> int:
        """Return the nanoseconds until a token is there; 0 if one is."""
        full = self._full.get(who)
        if full is None:
            return 0
        short = full + self._every - self._depth - now
        return short if short > 0 else 0

    def take(self, who: str, now: int) -> None:
        """Take a token, which must be there."""
        full = self._full.pop(who, now)
        self._full[who] = (full if full > now else now) + self._every
        if full == now and len(self._full) > 1:
            self._drop(now)

    def left(self, who: str, now: int) -> int:
        """Return how many tokens are there."""
        full = self._full.get(who, now)
        ahead = full - now if full > now else 0
        return (self._depth - ahead) // self._every

    def _drop(self, now: int) -> None:
        """Drop what came first: a full bucket is as good as none."""
        oldest = next(iter(self._full))
        if self._full[oldest] <= now or len(self._full) > self._most:
            del self._full[oldest]
