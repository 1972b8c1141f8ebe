"""Signals as metrics.

A signal only adds to plain numbers, once a batch. The maintained Prometheus client turns them into
its formats when they are scraped, and is imported then; see `oyez.observe.exposition`.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any

from oyez import signals
from oyez.observe.catalogue import Where
from oyez.observe.series import OTHER, Histogram, Labels, Series

LAG_EVERY = 0.5
"""Seconds between two measurements of the event loop's lag."""
_STATUSES = {0: "none", 1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"}
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_Counted = tuple[dict[Labels, float], Labels, Histogram | None]
"""The counter, its labels, and the histogram of the time that was taken, once any was."""


class Metrics:
    """The metrics of a process; pass `count` to `Signals.listen` and serve `render`."""

    def __init__(
        self, where: Where = "service", *, service: str = "", handlers: Iterable[str] = ()
    ) -> None:
        """``where`` is the kind of the process, ``service`` its name.

        Counters of ``handlers`` are 0 from the beginning: what first appears above 0 has no rate.
        """
        self._series = Series(where, service)
        self._add, self._set = self._series.add, self._series.set
        self._histogram = self._series.histogram
        for handler in handlers:
            for outcome in ("done", "retry", "dead"):
                self._histogram("oyez_handler_seconds", (handler, outcome))
            for counter in ("oyez_events_retried_total", "oyez_events_dead_total"):
                self._add(counter, (handler,), 0)
        self._stuck: set[str] = set()
        """The sagas that were told of."""
        self._read: dict[str, Callable[[], float]] = {}
        self._requests: dict[tuple[str, str, int], _Counted] = {}
        """Where requests to a route are counted, by method and status."""
        self._listeners: dict[type[signals.Signal], Callable[[Any], None]] = {
            signals.BatchHandled: self._batch_handled,
            signals.HandlerTimed: self._handler_timed,
            signals.Committed: self._committed,
            signals.EventsPublished: self._published,
            signals.EventRetried: self._retried,
            signals.EventDead: self._dead,
            signals.EventsMissed: self._missed,
            signals.EventsLate: self._late,
            signals.LagMeasured: self._lag,
            signals.BrokerMeasured: self._broker,
            signals.StoreMeasured: self._store,
            signals.ViewMeasured: self._view,
            signals.Trouble: self._trouble,
            signals.RequestAnswered: self._request,
            signals.RequestLimited: self._limited,
            signals.RequestRepeated: self._repeated,
            signals.CircuitChanged: self._circuit,
            signals.LimitsShared: self._shared,
            signals.ClaimLost: lambda _: self._add("oyez_fenced_total", (), 1),
            signals.Claimed: self._claimed,
            signals.Released: lambda _: self._owns(-1, "oyez_releases_total"),
            signals.Stalled: lambda _: self._add("oyez_stalled_partitions", (), 1),
            signals.Resumed: lambda _: self._add("oyez_stalled_partitions", (), -1),
        }

    def count(self, signal: signals.Signal) -> None:
        """Update the metrics by a signal."""
        listener = self._listeners.get(type(signal))
        if listener is not None:
            listener(signal)

    def read(self, name: str, value: Callable[[], float]) -> None:
        """Have a gauge without labels read whenever the metrics are scraped."""
        self._read[name] = value

    def turned(self, late: float) -> None:
        """Count that the event loop took a turn so many seconds late."""
        self._histogram("oyez_loop_lag_seconds", ()).add(late)

    async def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics, and their media type, in the format that a client accepts.

        OpenMetrics, which has exemplars, or else Prometheus' text format. A thread writes it, so
        that a thousand series hold up nothing.
        """
        for name, value in self._read.items():
            self._set(name, (), value())
        return await asyncio.to_thread(_render, self._series, accept)

    # -- one for each signal -----------------------------------------------------------------------

    def _batch_handled(self, signal: signals.BatchHandled) -> None:
        self._add("oyez_events_handled_total", (signal.stream,), signal.events)
        self._histogram("oyez_batch_seconds", ()).add(signal.seconds)
        self._histogram("oyez_batch_events", ()).add(signal.events)

    def _handler_timed(self, signal: signals.HandlerTimed) -> None:
        found = self._histogram("oyez_handler_seconds", (signal.handler, signal.outcome))
        bounds, counts = found.bounds, found.counts
        for seconds in signal.seconds:
            counts[bisect_left(bounds, seconds)] += 1
        found.total += sum(signal.seconds)
        if signal.trace_id:
            longest = max(signal.seconds)
            found.exemplify(bisect_left(bounds, longest), longest, signal.trace_id)

    def _committed(self, signal: signals.Committed) -> None:
        self._histogram("oyez_commit_seconds", ()).add(signal.seconds)

    def _published(self, signal: signals.EventsPublished) -> None:
        self._add("oyez_events_published_total", (signal.stream,), signal.events)
        self._histogram("oyez_publish_seconds", ()).add(signal.seconds)

    def _retried(self, signal: signals.EventRetried) -> None:
        self._add("oyez_events_retried_total", (signal.handler,), 1)

    def _dead(self, signal: signals.EventDead) -> None:
        self._add("oyez_events_dead_total", (signal.handler,), 1)

    def _missed(self, signal: signals.EventsMissed) -> None:
        self._add("oyez_events_missed_total", (signal.stream,), signal.events)

    def _late(self, signal: signals.EventsLate) -> None:
        self._add("oyez_events_late_total", (signal.window,), signal.events)

    def _lag(self, signal: signals.LagMeasured) -> None:
        place = (signal.stream, str(signal.partition))
        self._set("oyez_lag_records", place, signal.records)
        self._set("oyez_oldest_event_seconds", place, signal.seconds)

    def _broker(self, signal: signals.BrokerMeasured) -> None:
        self._set("oyez_broker_answer_seconds", (), signal.seconds)

    def _store(self, signal: signals.StoreMeasured) -> None:
        self._set("oyez_store_answer_seconds", (), signal.seconds)
        self._set("oyez_outbox_events", (), signal.outbox)
        self._set("oyez_outbox_oldest_seconds", (), signal.outbox_seconds)
        self._set("oyez_outbox_refused_events", (), signal.refused)
        self._set("oyez_parked_events", (), signal.parked)
        self._set("oyez_parked_oldest_seconds", (), signal.parked_seconds)
        self._set("oyez_dead_letters", (), signal.dead)
        stuck = signal.stuck or {}
        self._stuck.update(stuck)
        for saga in self._stuck:
            self._set("oyez_stuck_sagas", (saga,), stuck.get(saga))

    def _view(self, signal: signals.ViewMeasured) -> None:
        place = (signal.view, str(signal.version))
        self._set("oyez_view_stale_seconds", place, signal.seconds)

    def _trouble(self, signal: signals.Trouble) -> None:
        self._add("oyez_trouble_total", (signal.part.partition("[")[0],), 1)

    def _request(self, signal: signals.RequestAnswered) -> None:
        method = signal.method if signal.method in _METHODS else OTHER
        place = (signal.route, method, signal.status)
        counted = self._requests.get(place)
        if counted is None:
            counted = self._requests[place] = self._counted(*place)
        requests, labels, found = counted
        requests[labels] += 1
        if signal.code:
            self._add("oyez_gateway_refused_total", (signal.code,), 1)
        if signal.seconds is None:
            return
        if found is None:
            found = self._histogram("oyez_gateway_request_seconds", (signal.route, method))
            self._requests[place] = requests, labels, found
        bucket = found.add(signal.seconds)
        if signal.trace_id:
            found.exemplify(bucket, signal.seconds, signal.trace_id)

    def _counted(self, route: str, method: str, status: int) -> _Counted:
        labels = (route, method, _STATUSES.get(status // 100, OTHER))
        return *self._series.counter("oyez_gateway_requests_total", labels), None

    def _limited(self, signal: signals.RequestLimited) -> None:
        self._add("oyez_gateway_limited_total", (signal.route, signal.limit), 1)

    def _repeated(self, signal: signals.RequestRepeated) -> None:
        self._add("oyez_gateway_repeated_total", (signal.route,), 1)

    def _circuit(self, signal: signals.CircuitChanged) -> None:
        is_open = float(signal.state != "closed")
        self._set("oyez_gateway_circuit_open", (signal.upstream,), is_open)

    def _shared(self, signal: signals.LimitsShared) -> None:
        self._set("oyez_gateway_limits_alone", (), float(not signal.shared))

    def _claimed(self, signal: signals.Claimed) -> None:
        self._owns(1, "oyez_claims_total")
        if not signal.stream.startswith("oyez:"):  # places of Oyez's own are no streams
            for counter in ("oyez_events_handled_total", "oyez_events_missed_total"):
                self._add(counter, (signal.stream,), 0)

    def _owns(self, more: int, counter: str) -> None:
        self._add("oyez_owned_partitions", (), more)
        self._add(counter, (), 1)


def _render(series: Series, accept: str) -> tuple[bytes, str]:
    from oyez.observe.exposition import render

    return render(series, accept)
