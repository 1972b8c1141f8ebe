"""A forecast: a load on paper, the rule, and how replicas and lag would go on.

It takes each replica to handle the rate that was measured, until all of them reach the limit of
what they share. That is all it knows: a measurement with more replicas is worth more.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec

from oyez.scaling.meter import Look, Meter, Place, Seen
from oyez.scaling.rule import Decision, Limits, decide

_STEP = 1.0
"""Seconds between two moments of the simulated time."""

LONGEST = 7 * 86400.0
"""Seconds of a recorded load, at most."""
MOST = 1e9
"""Events a second in it, at most."""
Load = Callable[[float], float]
"""Returns the events a second that arrive at a time, in seconds from the beginning."""


def recorded(text: str) -> tuple[Load, float]:
    """Return a recorded load, and its length in seconds.

    Each line is ``SECONDS,EVENTS-PER-SECOND``, in the order of time; a rate holds until the next
    line. Lines that begin with ``#`` are left out. Raises ``ValueError`` that names the line.
    """
    times: list[float] = []
    rates: list[float] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            at, rate = map(float, line.split(","))
        except ValueError:
            at = rate = math.nan
        if not (0 <= at <= LONGEST and 0 <= rate <= MOST) or (times and at <= times[-1]):
            expected = "SECONDS,EVENTS-PER-SECOND, later than the line before"
            raise ValueError(f"line {number}: expected {expected}, found {line[:60]!r}")
        times.append(at)
        rates.append(rate)
    if len(times) < 2:
        raise ValueError("expected two lines SECONDS,EVENTS-PER-SECOND or more")

    def load(at: float) -> float:
        index = bisect_right(times, at) - 1
        return rates[index] if index >= 0 else 0.0

    return load, times[-1]


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What replicas can do; rates are per second, times in seconds."""

    rate: float
    """Events that one replica handles."""
    shared: float | None = None
    """Events that all of them together handle at most: what their store or a downstream takes."""
    partitions: int = 8
    start: float = 5.0
    """The time until a new replica handles events."""
    shares: tuple[float, ...] = ()
    """The shares of partitions in the load; without them all have the same."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A service at one time of a forecast."""

    at: float
    inflow: float
    """Events a second that arrive."""
    replicas: int
    lag: float
    oldest: float
    """Seconds that the oldest event has waited."""
    wanted: int
    why: str


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What would come of a load."""

    moments: tuple[Moment, ...]
    every: float
    """Seconds between two looks of the rule."""

    @property
    def replica_hours(self) -> float:
        """The replicas' time that it takes."""
        return sum(each.replicas for each in self.moments) * _STEP / 3600

    @property
    def changes(self) -> tuple[tuple[float, int, int], ...]:
        """Each change of the replicas: when, from how many, to how many."""
        return tuple(
            (after.at, before.replicas, after.replicas)
            for before, after in pairwise(self.moments)
            if before.replicas != after.replicas
        )

    @property
    def reversals(self) -> tuple[float, ...]:
        """The times of the changes that take back the direction of the one before."""
        changes = self.changes
        return tuple(at for (_, a, b), (at, c, d) in pairwise(changes) if (b > a) != (d > c))


def forecast(
    load: Load, seconds: float, capacity: Capacity, limits: Limits, *, every: float = 15.0
) -> Forecast:
    """Return what becomes of a load in so many seconds, from rest, with ``limits.least`` replicas.

    The rule looks ``every`` so many seconds, by the same meter that a running service has.
    """
    run = _Run(capacity, limits)
    moments: list[Moment] = []
    at = 0.0
    while at < seconds:
        inflow = load(at)
        run.step(at, inflow)
        at += _STEP
        if at % every < _STEP:
            run.look(at)
        moments.append(run.moment(at, inflow))
    return Forecast(moments=tuple(moments), every=every)


class _Run:
    def __init__(self, capacity: Capacity, limits: Limits) -> None:
        self._capacity = capacity
        self._limits = limits
        shares = capacity.shares or (1.0,) * capacity.partitions
        total = sum(shares)
        self._shares = [share / total for share in shares]
        self._lag = [0.0] * len(shares)
        self._handled = [0.0] * len(shares)
        self._arrived: list[deque[tuple[float, float]]] = [deque() for _ in shares]
        """Of each partition, the time and the count of what waits, the oldest first."""
        self._ready = [0.0] * limits.least
        """The time from which each replica handles events."""
        self._meter = Meter()
        self._decision: Decision | None = None

    def step(self, at: float, inflow: float) -> None:
        """Let events arrive and be handled for one step."""
        for partition, share in enumerate(self._shares):
            count = inflow * share * _STEP
            self._lag[partition] += count
            if count:
                self._arrived[partition].append((at, count))
        owners = self._owners(at)
        working = sorted({owner for owner in owners if owner is not None})
        rate = self._capacity.rate
        if self._capacity.shared is not None and working:
            rate = min(rate, self._capacity.shared / len(working))
        for owner in working:
            self._serve([p for p, each in enumerate(owners) if each == owner], rate * _STEP)

    def look(self, at: float) -> None:
        """Measure, decide, and start or stop replicas."""
        owners = self._owners(at)
        seen: dict[Place, Seen] = {
            ("load", partition): Seen(
                lag=round(lag), owner=None if owner is None else str(owner), handled=round(handled)
            )
            for partition, (lag, owner, handled) in enumerate(
                zip(self._lag, owners, self._handled, strict=True)
            )
        }
        self._handled = [0.0] * len(self._lag)
        look = Look(at=at, replicas=len(self._ready), partitions=seen)
        past = self._decision.past if self._decision is not None else None
        self._decision = decide(self._meter.note(look), self._limits, past)
        wanted = self._decision.wanted
        while len(self._ready) < wanted:
            self._ready.append(at + self._capacity.start)
        del self._ready[wanted:]

    def moment(self, at: float, inflow: float) -> Moment:
        """Return how it is now."""
        oldest = min((each[0][0] for each in self._arrived if each), default=at)
        return Moment(
            at=at,
            inflow=inflow,
            replicas=len(self._ready),
            lag=sum(self._lag),
            oldest=at - oldest,
            wanted=self._decision.wanted if self._decision is not None else len(self._ready),
            why=self._decision.why if self._decision is not None else "",
        )

    def _owners(self, at: float) -> list[int | None]:
        """Return the replica of each partition; those that have not started yet have none."""
        ready = [number for number, since in enumerate(self._ready) if since <= at]
        if not ready:
            return [None] * len(self._lag)
        return [ready[partition % len(ready)] for partition in range(len(self._lag))]

    def _serve(self, partitions: Sequence[int], room: float) -> None:
        """Handle what waits in a replica's partitions, each the same share of its time."""
        waiting = sorted(partitions, key=lambda partition: self._lag[partition])
        for index, partition in enumerate(waiting):
            done = min(self._lag[partition], room / (len(waiting) - index))
            room -= done
            self._lag[partition] -= done
            self._handled[partition] += done
            self._take(partition, done)

    def _take(self, partition: int, count: float) -> None:
        arrived = self._arrived[partition]
        while arrived and count >= arrived[0][1] - 1e-9:
            count -= arrived.popleft()[1]
        if arrived and count > 0:
            arrived[0] = (arrived[0][0], arrived[0][1] - count)
