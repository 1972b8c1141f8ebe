"""The numbers behind the metrics of a process, as plain as they can be counted."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence

from oyez.observe.catalogue import BY_NAME, CATALOGUE, Where

LIMIT = 1_000
"""The limit of the series of one metric."""
OTHER = "other"
"""The value of each label of the series beyond them."""

RECENT = 1.0
"""Seconds for which an exemplar is kept though there is a newer one."""

Labels = tuple[str, ...]
"""The values of a metric's labels, in the order of its declaration."""


class Exemplar:
    """A measured value and the trace that it belongs to."""

    __slots__ = ("at", "trace_id", "value")

    def __init__(self, value: float, trace_id: str, at: float) -> None:
        self.value = value
        self.trace_id = trace_id
        self.at = at
        """In seconds since 1970."""


class Histogram:
    """The counts of one series of a histogram."""

    __slots__ = ("bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By bucket, not cumulative; the last is the infinite one."""
        self.total = 0.0
        """The sum of the values."""
        self.exemplars: dict[int, Exemplar] = {}
        """A recent one of each bucket."""

    def exemplify(self, bucket: int, value: float, trace_id: str) -> None:
        """Keep the trace of a value that was counted, unless the bucket has a recent one."""
        known, now = self.exemplars.get(bucket), time.time()
        if known is None or now - known.at > RECENT:
            self.exemplars[bucket] = Exemplar(value, trace_id, now)

    def add(self, value: float) -> int:
        """Count a value; return its bucket."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.total += value
        return bucket


class Series:
    """The series of every metric that one kind of process shows.

    The values of labels come from closed sets: the handlers, streams, sagas, windows and routes of
    the code and its configuration. Should one of them grow without bounds all the same, further
    values are counted together as `OTHER`.
    """

    def __init__(self, where: Where, service: str) -> None:
        """``service`` is the name of the process's service."""
        self.service = service
        self.families = tuple(each for each in CATALOGUE if where in each.where)
        self.values: dict[str, dict[Labels, float]] = {
            each.name: {} for each in self.families if each.kind != "histogram"
        }
        """The series of each counter and gauge."""
        self.histograms: dict[str, dict[Labels, Histogram]] = {
            each.name: {} for each in self.families if each.kind == "histogram"
        }
        for each in self.families:
            if not each.labels and each.kind == "histogram":
                self.histogram(each.name, ())
            elif not each.labels and not each.unknown:
                self.values[each.name][()] = 0.0

    def add(self, name: str, labels: Labels, amount: float) -> None:
        """Add to a counter or a gauge."""
        series, labels = self.counter(name, labels)
        series[labels] += amount

    def counter(self, name: str, labels: Labels) -> tuple[dict[Labels, float], Labels]:
        """Return all series of a counter or a gauge, and the labels of the one to add to."""
        series = self.values[name]
        if labels not in series:
            if len(series) >= LIMIT:
                labels = (OTHER,) * len(labels)
            series.setdefault(labels, 0.0)
        return series, labels

    def set(self, name: str, labels: Labels, value: float | None) -> None:
        """Set a gauge; None leaves it absent."""
        if value is None:
            self.values[name].pop(labels, None)
        else:
            self.values[name][labels] = value

    def histogram(self, name: str, labels: Labels) -> Histogram:
        """Return a series of a histogram."""
        series = self.histograms[name]
        found = series.get(labels)
        if found is None:
            if len(series) >= LIMIT:
                labels = (OTHER,) * len(labels)
            found = series.setdefault(labels, Histogram(BY_NAME[name].bounds))
        return found
