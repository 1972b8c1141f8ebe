"""Signals as metrics and log lines."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from oyez import signals
from oyez.observe.logs import configure, log_signal
from oyez.observe.metrics import Metrics


def test_metrics_are_prometheus_text() -> None:
    metrics = Metrics()
    metrics.count(
        signals.BatchHandled(service="s", stream='a"b', partition=0, events=3, seconds=0.002)
    )
    metrics.count(signals.EventDead(service="s", handler="h", event_id="1", type="t", reason="r"))
    metrics.count(signals.LagMeasured(service="s", stream="x", partition=1, records=7))
    metrics.count(signals.LagMeasured(service="s", stream="x", partition=2, records=5))
    metrics.count(signals.LagMeasured(service="s", stream="x", partition=2, records=None))
    lines = metrics.render().splitlines()
    assert 'oyez_events_handled_total{stream="a\\"b"} 3' in lines
    assert 'oyez_events_dead_total{handler="h"} 1' in lines
    assert 'oyez_batch_seconds_bucket{le="0.0025"} 1' in lines
    assert "oyez_batch_seconds_count 1" in lines
    assert [line for line in lines if line.startswith("oyez_lag_records")] == [
        'oyez_lag_records{partition="1",stream="x"} 7'
    ]
    assert "oyez_stalled_partitions 0" in lines


@pytest.fixture
def json_log(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    configure("json")
    yield capsys
    structlog.reset_defaults()


def test_signals_are_log_lines(json_log: pytest.CaptureFixture[str]) -> None:
    log_signal(signals.Trouble(service="s", part="relay", error="the broker is away"))
    log_signal(signals.BatchHandled(service="s", stream="x", partition=0, events=1, seconds=0.1))
    (line,) = json_log.readouterr().err.splitlines()
    assert json.loads(line)["error"] == "the broker is away"
    assert json.loads(line)["level"] == "warning"
