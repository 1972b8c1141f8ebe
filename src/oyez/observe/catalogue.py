"""Every metric that a process of Oyez exposes: its name, kind, labels and meaning.

Names, labels and meanings are an interface: dashboards and alerts rest on them. Times are in
seconds, and a name tells the unit. Each also has the label `SERVICE`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
SERVICE = "service"
"""The label with the name of the service, of the bridge, or ``gateway``."""
EVENTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

Where = Literal["service", "gateway"]
"""The kind of process; a bridge is a service."""


class Metric(msgspec.Struct, frozen=True):
    """One metric family."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    text: str
    where: tuple[Where, ...] = ("service",)
    bounds: tuple[float, ...] = ()
    """The upper bounds of a histogram's buckets, without the infinite one."""
    unknown: bool = False
    """Whether it is absent while its value is not known; else it is 0 from the beginning."""


def _counter(name: str, labels: str, text: str, *where: Where) -> Metric:
    return Metric(name, "counter", tuple(labels.split()), text, where or ("service",))


def _gauge(name: str, labels: str, text: str, *where: Where, unknown: bool = False) -> Metric:
    shown = where or ("service",)
    return Metric(name, "gauge", tuple(labels.split()), text, shown, unknown=unknown)


def _histogram(
    name: str, labels: str, text: str, *where: Where, bounds: tuple[float, ...] = SECONDS
) -> Metric:
    return Metric(name, "histogram", tuple(labels.split()), text, where or ("service",), bounds)


CATALOGUE = (
    _counter("oyez_events_handled_total", "stream", "Events whose handling was committed."),
    _counter(
        "oyez_events_published_total",
        "stream",
        "Events that the broker acknowledged.",
        "service",
        "gateway",
    ),
    _counter("oyez_events_retried_total", "handler", "Failed attempts that will be retried."),
    _counter(
        "oyez_events_dead_total",
        "handler",
        "Events that became dead letters; the handler is empty if the event could not be decoded.",
    ),
    _counter(
        "oyez_events_missed_total",
        "stream",
        "Events deleted by retention before they were handled.",
    ),
    _counter(
        "oyez_events_late_total",
        "window",
        "Events that came after their window had closed, once for each window that they missed.",
    ),
    _histogram(
        "oyez_handler_seconds",
        "handler outcome",
        "Duration of a handler's call, without the commit; outcome is done, retry or dead.",
    ),
    _histogram("oyez_batch_seconds", "", "Time from the arrival of a batch to its commit."),
    _histogram("oyez_batch_events", "", "Events that were handled in one batch.", bounds=EVENTS),
    _histogram("oyez_commit_seconds", "", "Time that the store took to commit a unit of work."),
    _histogram(
        "oyez_publish_seconds",
        "",
        "Time that the broker took to acknowledge records.",
        "service",
        "gateway",
    ),
    _gauge(
        "oyez_broker_answer_seconds",
        "",
        "Time in which the broker told the ends of a stream, every 15 s; absent if it did not.",
        unknown=True,
    ),
    _gauge(
        "oyez_store_answer_seconds",
        "",
        "Time in which the store told what waits in it, every 15 s; absent if it did not.",
        unknown=True,
    ),
    _gauge(
        "oyez_lag_records",
        "stream partition",
        "Lag of an owned partition in records, every 5 s; absent where unknown.",
        unknown=True,
    ),
    _gauge(
        "oyez_oldest_event_seconds",
        "stream partition",
        "Age of the oldest event of an owned partition that was not handled, every 5 s; 0 without "
        "lag, absent where unknown.",
        unknown=True,
    ),
    _gauge(
        "oyez_view_stale_seconds",
        "view version",
        "Age of the oldest event that a view has not applied in this process, every 5 s.",
        unknown=True,
    ),
    _gauge(
        "oyez_outbox_events",
        "",
        "Due events that the broker has not acknowledged, in the store, up to 100,000.",
        unknown=True,
    ),
    _gauge(
        "oyez_outbox_oldest_seconds",
        "",
        "How long the oldest of them has waited.",
        unknown=True,
    ),
    _gauge(
        "oyez_outbox_refused_events",
        "",
        "Events of the outbox that the broker refused, in the store, up to 100,000.",
        unknown=True,
    ),
    _gauge(
        "oyez_parked_events",
        "",
        "Parked events, in the store, up to 10,000: those to be retried, and those behind them.",
        unknown=True,
    ),
    _gauge(
        "oyez_parked_oldest_seconds",
        "",
        "How long ago the oldest of them was parked.",
        unknown=True,
    ),
    _gauge(
        "oyez_dead_letters",
        "",
        "Dead letters to be redriven or discarded, in the store, up to 100,000.",
        unknown=True,
    ),
    _gauge("oyez_stuck_sagas", "saga", "Instances of a saga that need a person.", unknown=True),
    _gauge("oyez_owned_partitions", "", "Partitions that this process owns."),
    _gauge("oyez_stalled_partitions", "", "Partitions that make no progress though there is lag."),
    _counter("oyez_claims_total", "", "Partitions that this process has taken."),
    _counter("oyez_releases_total", "", "Partitions that this process has given up."),
    _counter(
        "oyez_fenced_total", "", "Commits refused because another replica owns the partition."
    ),
    _counter(
        "oyez_trouble_total", "part", "Errors of broker or store, by the part that tries again."
    ),
    _gauge("oyez_ready", "", "1 if /readyz answers 200, else 0.", "service", "gateway"),
    _counter(
        "oyez_gateway_requests_total",
        "route method status",
        "Requests that were answered, by the route's path and the class of the status, such as "
        "2xx; none if the client left before.",
        "gateway",
    ),
    _histogram(
        "oyez_gateway_request_seconds",
        "route method",
        "Time from a request's head to the last byte of its answer.",
        "gateway",
    ),
    _counter(
        "oyez_gateway_refused_total",
        "code",
        "Requests that the gateway itself refused, by the code of the problem document.",
        "gateway",
    ),
    _counter(
        "oyez_gateway_limited_total",
        "route limit",
        "Requests refused over a rate limit, by the route's path and the name of the limit.",
        "gateway",
    ),
    _gauge(
        "oyez_gateway_limits_alone",
        "",
        "1 while the store of shared rate limits is away and this replica counts alone, else 0.",
        "gateway",
    ),
    _counter(
        "oyez_gateway_repeated_total",
        "route",
        "Requests that were sent to their service once more, which had broken off.",
        "gateway",
    ),
    _gauge(
        "oyez_gateway_circuit_open",
        "upstream",
        "1 while requests to a service are refused at once, as it did not answer, else 0.",
        "gateway",
    ),
    _gauge("oyez_gateway_in_flight_requests", "", "Requests that are being answered.", "gateway"),
    _gauge("oyez_gateway_connections", "", "Connections of clients, idle ones too.", "gateway"),
    _gauge("oyez_gateway_watchers", "", "Clients that wait for more of a flow.", "gateway"),
    _gauge("oyez_gateway_tunnels", "", "WebSockets between clients and services.", "gateway"),
    _histogram(
        "oyez_loop_lag_seconds",
        "",
        "How late the event loop comes to what is ready, twice a second.",
        "service",
        "gateway",
    ),
    _gauge(
        "oyez_build_info",
        "version python",
        "Always 1; the labels tell what runs.",
        "service",
        "gateway",
    ),
)
"""All of them, in the order in which they are shown."""

BY_NAME = {metric.name: metric for metric in CATALOGUE}
