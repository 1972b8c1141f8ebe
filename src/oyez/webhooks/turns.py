"""How many requests an endpoint gets at once, and when the next one has its turn.

One that waits for its turn takes no place of others: it leaves, and comes back at the time that it
was told. The times are spread as the endpoint answers, so that many who wait for a slow one come
back one by one. An endpoint that fails has one request at once, as a probe.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from oyez.errors import RetryLater

LONGEST = 60.0
"""The limit of the seconds until a turn."""
_FIRST = 0.05
"""How long a request is taken to last before one has ended."""
_NEWEST = 0.2
"""The share of the last request in how long one is taken to last."""


class Turns:
    """The requests that this process makes, by subscription."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._lasts: dict[str, float] = {}
        self._booked: dict[str, float] = {}
        """Until when all turns are taken."""

    @contextmanager
    def turn(self, subscription: str, most: int) -> Iterator[None]:
        """Take a turn, if fewer than ``most`` are taken, until the block ends.

        Raises RetryLater, which counts as no attempt, with the time of the next free one.
        """
        if self._running[subscription] >= most:
            now = self._clock()
            until = max(self._booked.get(subscription, 0.0), now)
            until = min(until + self._lasts.get(subscription, _FIRST) / most, now + LONGEST)
            self._booked[subscription] = until
            raise RetryLater("its endpoint is busy", seconds=until - now, counts=False)
        self._running[subscription] += 1
        began = self._clock()
        try:
            yield
        finally:
            lasted = self._clock() - began
            known = self._lasts.get(subscription, lasted)
            self._lasts[subscription] = known + (lasted - known) * _NEWEST
            self._running[subscription] -= 1
            if not self._running[subscription]:
                del self._running[subscription]

    def backlog(self, subscription: str) -> float:
        """Return for how many seconds all turns are taken, as far as is known."""
        return max(0.0, self._booked.get(subscription, 0.0) - self._clock())

    def forget(self, subscription: str) -> None:
        """Forget a subscription that is gone."""
        self._lasts.pop(subscription, None)
        self._booked.pop(subscription, None)
