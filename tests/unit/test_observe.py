"""Signals as metrics and log lines."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from oyez import signals
from oyez.logger import Logger, configure
from oyez.observe.logs import log_signal
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
    configure("console")


def test_signals_are_log_lines(json_log: pytest.CaptureFixture[str]) -> None:
    log_signal(signals.Trouble(service="s", part="relay", error="the broker is away"))
    log_signal(signals.BatchHandled(service="s", stream="x", partition=0, events=1, seconds=0.1))
    (line,) = json_log.readouterr().err.splitlines()
    assert json.loads(line)["error"] == "the broker is away"
    assert json.loads(line)["level"] == "warning"


def test_a_line_has_the_fields_of_its_logger_and_of_its_call(
    json_log: pytest.CaptureFixture[str],
) -> None:
    logger = Logger(service="s", attempt=1)
    logger.bind(attempt=2).warning("odd", of={1}, event_id="\ud800")
    logger.debug("below the lowest level")
    logger.info("as before")
    first, second = map(json.loads, json_log.readouterr().err.splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "odd", "level": "warning", "service": "s", "attempt": 2, "of": "{1}",
        "event_id": "\ud800",
    }  # fmt: skip
    assert (second["event"], second["attempt"]) == ("as before", 1)


def test_an_exception_has_its_traceback(json_log: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError("of a test")
    except RuntimeError:
        Logger().exception("failed")
    line = json.loads(json_log.readouterr().err)
    assert (line["level"], line["event"]) == ("error", "failed")
    assert line["exception"].startswith("Traceback ")
    assert line["exception"].endswith("RuntimeError: of a test")


def test_lines_for_people_are_plain_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError("of a test")
    except RuntimeError:
        Logger(b="two words").exception("failed", a="\x1b[2J")
    line, *stack = capsys.readouterr().err.splitlines()
    assert line.partition(" ")[2] == f'[error    ] {"failed":<30} a="\\u001b[2J" b=two words'
    assert stack[-1] == "RuntimeError: of a test"
