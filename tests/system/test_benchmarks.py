"""The benchmarks run; how fast is for people to judge, not for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
