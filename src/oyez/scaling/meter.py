"""The meter: from successive looks at a service's partitions to its rates."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import msgspec

from oyez.scaling.rule import Measured

Place = tuple[str, int]
"""A partition: its stream, and its number."""

SMOOTH = 30.0
"""Seconds after which a rate has forgotten two thirds of what it was."""
LASTING = 1.0
"""Seconds of work that have to wait in a partition, or for a replica, for its lag to be lasting.

Records that are on their way wait too, in a service that is far from busy.
"""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A partition in one look."""

    lag: int
    owner: str | None
    """The replica that reads it."""
    handled: int | None = None
    """The records handled since the last look; None where nothing tells."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """A service at one time; times are seconds of a clock that does not go back."""

    at: float
    replicas: int
    partitions: Mapping[Place, Seen]
    failing: float = 0.0
    """The share of handlers' calls since the last look that failed."""


class Meter:
    """Turns looks at one service into what the rule is asked with."""

    def __init__(self) -> None:
        self._last: Look | None = None
        self._inflow: float | None = None
        self._total: float | None = None
        self._rate: float | None = None

    def note(self, look: Look) -> Measured:
        """Return the service as of this look, which is later than those before."""
        last, self._last = self._last, look
        behind, recent, arriving = 0, 0.0, None
        if last is not None and look.at > last.at:
            behind, recent, arriving = self._compare(last, look)
        return Measured(
            at=look.at,
            replicas=look.replicas,
            partitions=len(look.partitions),
            behind=behind,
            lag=sum(each.lag for each in look.partitions.values()),
            # What begins to arrive counts at once, what ceases to arrive after a while.
            inflow=None if arriving is None else max(arriving, self._inflow or 0.0),
            total=self._total or 0.0,
            recent=recent,
            rate=self._rate,
            stuck=behind > 0 and recent == 0,
            failing=look.failing,
        )

    def _compare(self, last: Look, look: Look) -> tuple[int, float, float | None]:
        """Update the rates; return the partitions behind, and what was handled and arrived."""
        seconds = look.at - last.at
        there = {p: last.partitions[p] for p in look.partitions if p in last.partitions}
        counts = {p: look.partitions[p].handled for p in there}
        done = {p: count for p, count in counts.items() if count is not None}
        if len(done) < len(there) or not there:
            return 0, 0.0, None
        arrived = sum(max(0, done[p] + look.partitions[p].lag - there[p].lag) for p in there)
        total = sum(done.values())
        self._inflow = _blend(self._inflow, arrived / seconds, seconds)
        self._total = _blend(self._total, total / seconds, seconds)
        behind = sum(
            _lasts(there[place].lag, look.partitions[place].lag, done[place] / seconds)
            for place in there
        )
        self._note_rate(there, look.partitions, done, seconds)
        return behind, total / seconds, arrived / seconds

    def _note_rate(
        self,
        before: Mapping[Place, Seen],
        after: Mapping[Place, Seen],
        done: Mapping[Place, int],
        seconds: float,
    ) -> None:
        """Note what one replica handles, by those that had enough to do all the time."""
        work: defaultdict[str, int] = defaultdict(int)
        waited: defaultdict[str, int] = defaultdict(int)
        waits: defaultdict[str, int] = defaultdict(int)
        moved: set[str | None] = set()
        for place, then in before.items():
            owner = after[place].owner
            if owner is None or owner != then.owner:
                moved |= {owner, then.owner}
                continue
            work[owner] += done[place]
            waited[owner] += then.lag
            waits[owner] += after[place].lag
        rates = [
            count / seconds
            for owner, count in work.items()
            if owner not in moved and count and _lasts(waited[owner], waits[owner], count / seconds)
        ]
        if rates:
            self._rate = _blend(self._rate, sum(rates) / len(rates), seconds)


def _lasts(before: int, after: int, rate: float) -> bool:
    least = min(before, after)
    return least > 0 and least >= rate * LASTING


def _blend(old: float | None, new: float, seconds: float) -> float:
    return new if old is None else old + (new - old) * (1 - math.exp(-seconds / SMOOTH))
