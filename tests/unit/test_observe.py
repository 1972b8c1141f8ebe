"""Signals as log lines."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from oyez import signals
from oyez.logger import Logger, configure
from oyez.observe.logs import log_signal


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
