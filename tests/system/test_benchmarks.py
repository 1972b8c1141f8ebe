"""The benchmarks run; how fast is for people to judge, not for a test."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from benchmarks import results
from benchmarks.comparison import Aim, Report, Row
from benchmarks.soak import Sample, judge

ROOT = Path(__file__).resolve().parents[2]


def test_a_quick_run_prints_one_json_object() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "dispatch", "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert report["benchmark"] == "dispatch"
    assert {row["way"] for row in report["rows"]} == {"oyez", "bare loop"}
    assert all(row["median"] > 0 and row["ratio"] > 0 for row in report["rows"])


def test_an_unknown_name_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "there is no benchmark 'nothing'; there are: embedded_append" in done.stderr


def test_a_soak_counts_each_event_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--events", "2000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2,000 events in" in done.stdout


@pytest.mark.parametrize(
    ("last", "faults"),
    [
        (Sample(9, 9, 70 << 20, 30, 6, 100 << 20), []),
        (Sample(9, 9, 90 << 20, 30, 6, 100 << 20), ["memory grew from"]),
        (Sample(9, 9, 300 << 20, 30, 6, 100 << 20), ["memory was 300 MiB", "memory grew from"]),
        (Sample(9, 9, 70 << 20, 90, 6, 100 << 20), ["descriptors grew from 30 to 90"]),
        (Sample(9, 9, 70 << 20, 30, 16, 100 << 20), ["threads grew from 6 to 16"]),
        (Sample(9, 9, 70 << 20, 30, 6, 900 << 20), ["files grew from"]),
    ],
)
def test_a_soak_says_what_grew(last: Sample, faults: list[str]) -> None:
    samples = [Sample(n, n, 70 << 20, 30, 6, 100 << 20) for n in range(8)]
    found = list(judge([*samples, last, last]))
    assert len(found) == len(faults)
    for fault, start in zip(found, faults, strict=True):
        assert fault.startswith(start)


def test_results_say_what_was_aimed_at_and_whether_it_is_reached() -> None:
    def row(way: str, median: float, ratio: float) -> Row:
        return Row(
            case="job", figure="events/s", way=way, median=median, ratio=ratio, low=0.1, high=9.0
        )

    def aim(what: str, way: str, **limit: float) -> Aim:
        return Aim(what=what, case="job", figure="events/s", way=way, **limit)  # type: ignore[arg-type]

    report = Report(
        benchmark="job",
        about="events a second",
        rows=[row("oyez", 500.0, 1.0), row("by <hand>", 1000.0, 0.5)],
        notes=["with care"],
        aims=[
            aim("the job, to <hand>", "by <hand>", at_least=0.4),
            aim("the job, to more", "by <hand>", at_least=0.6),
            aim("the job at all", "oyez", at_most=400.0, absolute=True),
            aim("left out", "somebody", at_least=1.0),
        ],
        lacks={"by <hand>": "no retries"},
    )
    page = results.page([report], {"cpus": 2}, "abc", "2026-01-01", quick=True)
    assert "| the job, to <hand> | 0.50 times | ≥ 0.4 times | met |" in page
    assert "| the job, to more | 0.50 times | ≥ 0.6 times | **missed** |" in page
    assert "| the job at all | 500 | ≤ 400 | **missed** |" in page
    assert "by <hand> does not do this: no retries" in page
    assert "left out" not in page
    assert "at small sizes" in page
    plot = ET.fromstring(results.plot([report], "abc", "2026-01-01"))
    bars = plot.findall("{http://www.w3.org/2000/svg}rect")
    assert [bar.get("class") for bar in bars] == ["met", "not", "not"]
    assert "aim met: the job, to <hand>: 0.50, at least 0.40" in str(report)
