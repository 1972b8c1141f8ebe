"""How the handlers of a process did in the last minutes: calls by outcome and by duration.

It counts only while somebody looks: from the first question until nobody has asked for `WINDOW`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from oyez.ambient import Ambient
from oyez.console.answers import HandlerTimes, Timings
from oyez.runtime.reports import Reports
from oyez.signals import HandlerCalled, Signal

BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Seconds up to which the calls of each bucket lasted."""
SLICE = 10.0
"""Seconds of one slice of the time that is kept."""
SLICES = 30
WINDOW = SLICE * SLICES
"""Seconds that are kept: five minutes."""
_OUTCOMES = ("done", "retry", "dead")


class _Slice:
    """What one handler did in one slice."""

    __slots__ = ("buckets", "outcomes")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = dict.fromkeys(_OUTCOMES, 0)
        self.buckets = [0] * (len(BOUNDS) + 1)


class Stopwatch:
    """The counts of one process."""

    def __init__(self, reports: Reports, ambient: Ambient) -> None:
        self._reports = reports
        self._ambient = ambient
        self._began: float | None = None
        """Since when it counts; None while it does not."""
        self._asked = 0.0
        self._slices: dict[int, dict[str, _Slice]] = {}

    def read(self, owner: str) -> Timings:
        """Return what was counted, and go on counting."""
        now = self._asked = self._ambient.monotonic()
        if self._began is None:
            self._began = now
            self._reports.listen(self._count, calls=True)
        current = self._forget(now)
        found: dict[str, list[tuple[int, _Slice]]] = {}
        for number, handlers in sorted(self._slices.items()):
            for name, each in handlers.items():
                found.setdefault(name, []).append((number, each))
        return Timings(
            owner=owner,
            seconds=min(now - self._began, (SLICES - 1) * SLICE + now % SLICE),
            handlers={name: _sum(slices, current) for name, slices in found.items()},
        )

    def _count(self, signal: Signal) -> None:
        if not isinstance(signal, HandlerCalled):
            return
        now = self._ambient.monotonic()
        if now - self._asked > WINDOW:
            self._stop()
            return
        handlers = self._slices.get(int(now // SLICE))
        if handlers is None:
            handlers = self._slices[self._forget(now)] = {}
        found = handlers.get(signal.handler)
        if found is None:
            found = handlers[signal.handler] = _Slice()
        found.outcomes[signal.outcome] += 1
        found.buckets[bisect_left(BOUNDS, signal.seconds)] += 1

    def _stop(self) -> None:
        self._reports.leave(self._count)
        self._slices = {}
        self._began = None

    def _forget(self, now: float) -> int:
        """Forget the slices that are too old; return the number of the present one."""
        current = int(now // SLICE)
        for number in [each for each in self._slices if each <= current - SLICES]:
            del self._slices[number]
        return current


def _sum(slices: Iterable[tuple[int, _Slice]], current: int) -> HandlerTimes:
    line = [0] * SLICES
    outcomes: dict[str, int] = dict.fromkeys(_OUTCOMES, 0)
    buckets = [0] * (len(BOUNDS) + 1)
    for number, each in slices:
        line[number - current - 1] = sum(each.buckets)
        buckets = [a + b for a, b in zip(buckets, each.buckets, strict=True)]
        for outcome, calls in each.outcomes.items():
            outcomes[outcome] += calls
    return HandlerTimes(
        done=outcomes["done"],
        retried=outcomes["retry"],
        dead=outcomes["dead"],
        buckets=tuple(buckets),
        line=tuple(line),
    )


def percentile(buckets: Sequence[int], share: float) -> float | None:
    """Return the duration that this share of the calls does not exceed, in seconds.

    It is interpolated within its bucket: infinite beyond the last bound, None without a call.
    """
    wanted = share * sum(buckets)
    if not wanted:
        return None
    below = 0
    for index, calls in enumerate(buckets):
        if calls and below + calls >= wanted:
            if index == len(BOUNDS):
                break
            low = BOUNDS[index - 1] if index else 0.0
            return low + (BOUNDS[index] - low) * (wanted - below) / calls
        below += calls
    return float("inf")
