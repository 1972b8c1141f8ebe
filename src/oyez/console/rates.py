"""Rates of the last minutes, from the counts that processes answered; nothing is kept on disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from oyez.console.answers import Counts, Replica

KEPT = 150
"""Measurements that are kept of a service: five minutes, at one each two seconds."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Events per second of one service between two looks."""

    handled: float
    published: float
    retried: float
    dead: float
    by_stream: dict[str, float]
    """Handled events, by the stream they were on."""


class Rates:
    """The rates of a system's services."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, Counts]] = {}
        self._kept: dict[str, deque[Rate]] = {}

    def note(self, now: float, replicas: Iterable[Replica]) -> None:
        """Note the counts of all replicas that answered at ``now``, in seconds."""
        found: dict[str, list[Rate]] = {}
        last: dict[str, tuple[float, Counts]] = {}
        for replica in replicas:
            last[replica.owner] = now, replica.counts
            before = self._last.get(replica.owner)
            if before is not None and now > before[0]:
                rate = _rate(before[1], replica.counts, now - before[0])
                found.setdefault(replica.service, []).append(rate)
        self._last = last
        for service, rates in found.items():
            self._kept.setdefault(service, deque(maxlen=KEPT)).append(_sum(rates))
        for service in self._kept.keys() - found.keys():
            del self._kept[service]  # its line would join what lies minutes apart

    def now(self, service: str) -> Rate | None:
        """Return the newest rate; None if it is not known."""
        kept = self._kept.get(service)
        return kept[-1] if kept else None

    def handled(self, service: str) -> list[float]:
        """Return the rates of handled events, the newest last."""
        return [rate.handled for rate in self._kept.get(service, ())]


def _rate(before: Counts, after: Counts, seconds: float) -> Rate:
    def per_second(old: dict[str, int], new: dict[str, int]) -> dict[str, float]:
        return {name: max(0, count - old.get(name, 0)) / seconds for name, count in new.items()}

    by_stream = per_second(before.handled, after.handled)
    return Rate(
        handled=sum(by_stream.values()),
        published=sum(per_second(before.published, after.published).values()),
        retried=sum(per_second(before.retried, after.retried).values()),
        dead=sum(per_second(before.dead, after.dead).values()),
        by_stream=by_stream,
    )


def _sum(rates: list[Rate]) -> Rate:
    by_stream: dict[str, float] = {}
    for rate in rates:
        for stream, value in rate.by_stream.items():
            by_stream[stream] = by_stream.get(stream, 0.0) + value
    return Rate(
        handled=sum(rate.handled for rate in rates),
        published=sum(rate.published for rate in rates),
        retried=sum(rate.retried for rate in rates),
        dead=sum(rate.dead for rate in rates),
        by_stream=by_stream,
    )
