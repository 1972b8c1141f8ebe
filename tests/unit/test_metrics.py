"""Signals as metrics, and what a scraper gets."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from oyez import signals
from oyez.observe.catalogue import BY_NAME, CATALOGUE
from oyez.observe.metrics import Metrics
from oyez.observe.series import LIMIT, OTHER

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def scraped(metrics: Metrics) -> dict[tuple[str, str], float]:
    """The samples by name and labels, as a scraper that knows Prometheus' text reads them."""
    content, kind = asyncio.run(metrics.render("text/plain"))
    assert kind.startswith("text/plain; version=0.0.4")
    return {
        (sample.name, _shown(sample.labels)): sample.value
        for family in parse_text(content.decode())
        for sample in family.samples
    }


def exemplars(metrics: Metrics) -> list[tuple[str, str, Any]]:
    content, kind = asyncio.run(metrics.render(OPENMETRICS))
    assert kind.startswith("application/openmetrics-text")
    return [
        (sample.name, sample.labels["le"], sample.exemplar)
        for family in parse_openmetrics(content.decode())
        for sample in family.samples
        if sample.exemplar
    ]


def _shown(labels: Mapping[str, str]) -> str:
    """The labels but the one that all have."""
    assert labels.get("service", "s") == "s"
    return ",".join(f"{n}={value}" for n, value in sorted(labels.items()) if n != "service")


def fed(*given: signals.Signal, gateway: bool = False) -> Metrics:
    metrics = Metrics("gateway" if gateway else "service", service="s")
    for signal in given:
        metrics.count(signal)
    return metrics


def test_a_batch_is_counted_and_timed() -> None:
    found = scraped(
        fed(
            signals.BatchHandled(service="s", stream='a"b\n', partition=0, events=3, seconds=0.002),
            signals.HandlerTimed(
                service="s", handler="h", outcome="done", seconds=[0.0002, 0.0002, 0.3]
            ),
            signals.HandlerTimed(service="s", handler="h", outcome="dead", seconds=[99.0]),
            signals.Committed(service="s", seconds=0.001),
        )
    )
    assert found["oyez_events_handled_total", 'stream=a"b\n'] == 3
    assert found["oyez_batch_seconds_bucket", "le=0.001"] == 0
    assert found["oyez_batch_seconds_bucket", "le=0.0025"] == 1
    assert found["oyez_batch_seconds_count", ""] == 1
    assert found["oyez_batch_events_bucket", "le=2.0"] == 0
    assert found["oyez_batch_events_bucket", "le=4.0"] == 1
    assert found["oyez_commit_seconds_bucket", "le=0.001"] == 1
    done = "handler=h,{}outcome=done"
    assert found["oyez_handler_seconds_bucket", done.format("le=0.00025,")] == 2
    assert found["oyez_handler_seconds_count", done.format("")] == 3
    assert found["oyez_handler_seconds_sum", done.format("")] == pytest.approx(0.3004)
    assert found["oyez_handler_seconds_bucket", "handler=h,le=30.0,outcome=dead"] == 0
    assert found["oyez_handler_seconds_bucket", "handler=h,le=+Inf,outcome=dead"] == 1


def test_what_is_unknown_is_absent() -> None:
    """From the beginning, and again when a measurement fails; what nothing happened to is 0."""
    unknown = {each.name for each in CATALOGUE if each.unknown}
    assert {name for name, _ in scraped(fed())} & unknown == set()
    assert scraped(fed())["oyez_stalled_partitions", ""] == 0
    assert scraped(fed())["oyez_batch_seconds_count", ""] == 0

    def lag(partition: int, records: int | None, seconds: float | None) -> signals.Signal:
        return signals.LagMeasured(
            service="s", stream="x", partition=partition, records=records, seconds=seconds
        )

    store = signals.StoreMeasured(
        service="s",
        seconds=0.001,
        outbox=0,
        outbox_seconds=0.0,
        refused=1,
        parked=2,
        parked_seconds=9.0,
        dead=3,
        stuck={"fulfilment": 0, "other": 4},
    )
    metrics = fed(
        lag(1, 7, 2.5),
        lag(2, 5, 1.0),
        lag(2, None, None),
        store,
        signals.BrokerMeasured(service="s", seconds=0.004),
        signals.ViewMeasured(service="s", view="v", version=1, seconds=0.0),
    )
    found = {each: value for each, value in scraped(metrics).items() if each[0] in unknown}
    assert found == {
        ("oyez_lag_records", "partition=1,stream=x"): 7,
        ("oyez_oldest_event_seconds", "partition=1,stream=x"): 2.5,
        ("oyez_store_answer_seconds", ""): 0.001,
        ("oyez_broker_answer_seconds", ""): 0.004,
        ("oyez_outbox_events", ""): 0,
        ("oyez_outbox_oldest_seconds", ""): 0,
        ("oyez_outbox_refused_events", ""): 1,
        ("oyez_parked_events", ""): 2,
        ("oyez_parked_oldest_seconds", ""): 9,
        ("oyez_dead_letters", ""): 3,
        ("oyez_stuck_sagas", "saga=fulfilment"): 0,
        ("oyez_stuck_sagas", "saga=other"): 4,
        ("oyez_view_stale_seconds", "version=1,view=v"): 0,
    }
    metrics.count(signals.StoreMeasured(service="s", seconds=None))
    metrics.count(signals.BrokerMeasured(service="s", seconds=None))
    left = {name for name, _ in scraped(metrics)} & unknown
    assert left == {"oyez_lag_records", "oyez_oldest_event_seconds", "oyez_view_stale_seconds"}


def test_what_is_known_to_happen_is_counted_from_0() -> None:
    """The first of its kind would have no rate: Prometheus sees no step from absent to 1."""
    metrics = Metrics(service="s", handlers=["h"])
    for stream in ("x", "oyez:outbox"):
        metrics.count(signals.Claimed(service="s", stream=stream, partition=0, epoch=1))
    found = scraped(metrics)
    for name, labels in (
        ("oyez_events_dead_total", "handler=h"),
        ("oyez_events_retried_total", "handler=h"),
        ("oyez_events_handled_total", "stream=x"),
        ("oyez_events_missed_total", "stream=x"),
        ("oyez_handler_seconds_count", "handler=h,outcome=dead"),
    ):
        assert found.pop((name, labels)) == 0
    assert not any("oyez:outbox" in labels for _, labels in found)


def test_claims_troubles_and_events_that_went_wrong() -> None:
    place = {"service": "s", "stream": "x", "partition": 0}
    event = {"service": "s", "handler": "h", "event_id": "1", "type": "t"}
    found = scraped(
        fed(
            signals.Claimed(**place, epoch=1),
            signals.Claimed(**place, epoch=2),
            signals.Released(**place, epoch=1),
            signals.ClaimLost(**place, epoch=1),
            signals.Stalled(**place, seconds=30),
            signals.Stalled(**place, seconds=30, reader="view:v@1"),
            signals.Resumed(**place),
            signals.Trouble(service="s", part="shop.orders[3]", error="away"),
            signals.Trouble(service="s", part="shop.orders[4]", error="away"),
            signals.EventRetried(**event, attempt=1, seconds=1.0, error="no"),
            signals.EventDead(**event, reason="no"),
            signals.EventsMissed(**place, events=5),
            signals.EventsLate(service="s", window="minute", events=2),
            signals.EventsPublished(service="s", stream="x", events=4, seconds=0.02),
        )
    )
    expected = {
        ("oyez_owned_partitions", ""): 1,
        ("oyez_claims_total", ""): 2,
        ("oyez_releases_total", ""): 1,
        ("oyez_fenced_total", ""): 1,
        ("oyez_stalled_partitions", ""): 1,
        ("oyez_trouble_total", "part=shop.orders"): 2,
        ("oyez_events_retried_total", "handler=h"): 1,
        ("oyez_events_dead_total", "handler=h"): 1,
        ("oyez_events_missed_total", "stream=x"): 5,
        ("oyez_events_late_total", "window=minute"): 2,
        ("oyez_events_published_total", "stream=x"): 4,
        ("oyez_publish_seconds_count", ""): 1,
    }
    assert {each: found[each] for each in expected} == expected


def test_a_histogram_names_the_trace_of_a_sampled_call() -> None:
    metrics = fed(
        signals.HandlerTimed(
            service="s", handler="h", outcome="done", seconds=[0.0001, 0.2], trace_id=TRACE
        ),
        signals.HandlerTimed(service="s", handler="h", outcome="done", seconds=[0.7]),
    )
    ((name, bound, exemplar),) = exemplars(metrics)
    assert (name, bound) == ("oyez_handler_seconds_bucket", "0.25")
    assert (exemplar.labels, exemplar.value) == ({"trace_id": TRACE}, 0.2)
    assert exemplar.timestamp is not None


def test_a_request_is_counted_by_route_and_class_of_status() -> None:
    def answered(status: int, seconds: float | None = 0.01, **more: Any) -> signals.Signal:
        fields = {"route": "/orders", "method": "GET", **more}
        return signals.RequestAnswered(service="g", status=status, seconds=seconds, **fields)

    metrics = fed(
        answered(200, trace_id=TRACE),
        answered(404),
        answered(503, code="busy"),
        answered(0),
        answered(999),
        answered(405, method="X" * 9_000),
        answered(400, None, method="", route="-", code="malformed"),
        gateway=True,
    )
    found = scraped(metrics)
    totals = {
        labels: value for (name, labels), value in found.items()
        if name == "oyez_gateway_requests_total"
    }  # fmt: skip
    assert totals == {
        "method=GET,route=/orders,status=2xx": 1,
        "method=GET,route=/orders,status=4xx": 1,
        "method=GET,route=/orders,status=5xx": 1,
        "method=GET,route=/orders,status=none": 1,
        "method=GET,route=/orders,status=other": 1,
        "method=other,route=/orders,status=4xx": 1,
        "method=other,route=-,status=4xx": 1,
    }
    assert found["oyez_gateway_refused_total", "code=busy"] == 1
    assert found["oyez_gateway_refused_total", "code=malformed"] == 1
    counts = [each for name, each in found if name == "oyez_gateway_request_seconds_count"]
    assert sorted(counts) == ["method=GET,route=/orders", "method=other,route=/orders"]
    ((_, bound, exemplar),) = exemplars(metrics)
    assert (bound, exemplar.labels) == ("0.01", {"trace_id": TRACE})


def test_series_are_bounded() -> None:
    metrics = fed()
    for number in range(LIMIT + 50):
        metrics.count(
            signals.EventsPublished(service="s", stream=f"s{number}", events=2, seconds=0.1)
        )
        metrics.count(
            signals.HandlerTimed(service="s", handler=f"h{number}", outcome="done", seconds=[0.1])
        )
    found = scraped(metrics)
    published = [each for name, each in found if name == "oyez_events_published_total"]
    assert len(published) == LIMIT + 1
    assert found["oyez_events_published_total", f"stream={OTHER}"] == 100
    assert found["oyez_handler_seconds_count", f"handler={OTHER},outcome={OTHER}"] == 50


async def test_series_may_be_added_while_they_are_shown() -> None:
    metrics, streams = fed(), 300

    async def add() -> None:
        for number in range(streams):
            metrics.count(
                signals.EventsPublished(service="s", stream=f"s{number}", events=1, seconds=0.1)
            )
            await asyncio.sleep(0)

    adding = asyncio.create_task(add())
    while not adding.done():
        await metrics.render()
    content, _ = await metrics.render()
    assert content.count(b"oyez_events_published_total{") == streams


def test_a_gauge_is_read_when_it_is_scraped() -> None:
    metrics, values = fed(), iter((0.0, 1.0))
    metrics.read("oyez_ready", lambda: next(values))
    assert scraped(metrics)["oyez_ready", ""] == 0
    assert scraped(metrics)["oyez_ready", ""] == 1


def test_the_process_itself_is_measured() -> None:
    metrics = fed()
    metrics.turned(0.3)
    found = scraped(metrics)
    assert found["process_resident_memory_bytes", ""] > 1e6
    assert found["oyez_loop_lag_seconds_bucket", "le=0.25"] == 0
    assert found["oyez_loop_lag_seconds_bucket", "le=0.5"] == 1
    assert 'oyez_ready{service="s"} 0.0' in asyncio.run(metrics.render())[0].decode().splitlines()
    (build,) = (labels for name, labels in found if name == "oyez_build_info")
    assert "version=" in build


@pytest.mark.parametrize("accept", ["", "*/*", "text/html", "application/vnd.google.protobuf"])
def test_who_asks_for_nothing_known_gets_text(accept: str) -> None:
    assert asyncio.run(fed().render(accept))[1].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize("where", ["service", "gateway"])
def test_a_process_shows_its_own_metrics(where: Any) -> None:
    content, _ = asyncio.run(Metrics(where).render())
    shown = {family.name for family in parse_text(content.decode())}
    wanted = {each.name.removesuffix("_total") for each in CATALOGUE if where in each.where}
    assert {name for name in shown if name.startswith("oyez_")} == wanted


def test_names_tell_their_kind_and_unit() -> None:
    for each in CATALOGUE:
        assert each.name.endswith("_total") == (each.kind == "counter"), each.name
        assert (each.bounds != ()) == (each.kind == "histogram"), each.name
        assert list(each.bounds) == sorted(set(each.bounds))
    assert len(BY_NAME) == len(CATALOGUE)


def test_the_client_is_imported_when_metrics_are_first_scraped() -> None:
    code = (
        "import asyncio, sys; from oyez.cli import run, gateway;"
        "from oyez.observe.metrics import Metrics;"
        "m = Metrics(); assert 'prometheus_client' not in sys.modules; asyncio.run(m.render());"
        "assert 'prometheus_client' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
