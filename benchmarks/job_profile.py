"""Where the time of `benchmarks.consume_job` goes in Oyez: ``python -m benchmarks.job_profile``.

First without a profiler: CPU seconds of each stage on the thread that it runs on, µs an event. Then
the event loop's thread under cProfile, which makes every call dearer, so only its order counts.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.consume_job import by_oyez
from benchmarks.embedded_append import make_records
from benchmarks.machine import Surroundings
from oyez.ambient import SystemAmbient
from oyez.brokers.embedded import log
from oyez.cli.invocation import run_async
from oyez.doorbell import Doorbell
from oyez.runtime import batches
from oyez.runtime.interpreter import tune
from oyez.sqlite.connection import Reader
from oyez.sqlite.writer import Writer
from oyez.stores import sqlite
from oyez.transaction import Announcer, UnitOfWork

_STAGES: tuple[tuple[str, Any, str], ...] = (
    ("loop: open the envelope", batches, "open_record"),
    ("loop: decode the data", batches, "decode_for"),
    ("loop: announce the event", Announcer, "announce"),
    ("loop: group the writes", UnitOfWork, "_drain"),
    ("loop: pack for the broker's file", log.Log, "pack"),
    ("thread: fetch from the broker's file", log.Log, "fetch"),
    ("thread: append to the broker's file", log.Log, "append"),
    ("thread: apply to the store's file", sqlite, "_apply"),
    ("thread: commits, both files", Writer, "commit"),
    ("thread: all reads, both files", Reader, "run"),
    ("thread: wake the others", Doorbell, "ring"),
)


def main() -> None:
    """Print the stages and the profile."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.job_profile")
    parser.add_argument("--events", type=int, default=20_000)
    events = parser.parse_args().events
    tune()
    with tempfile.TemporaryDirectory(prefix="oyez-bench-") as folder:
        here = Surroundings(folder=Path(folder), quick=False, ambient=SystemAmbient())
        records = make_records(here, events)
        plain = [run_async(by_oyez(here, records))["events/s"] for _ in range(3)]
        print(f"{events:,} events, {median(plain):,.0f}/s, {1e6 / median(plain):.1f} µs an event\n")
        spent: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
        with _measured(spent):
            run_async(by_oyez(here, records))
        print(f"{'stage':38}{'calls':>8}{'CPU µs/event':>14}{'wall µs/event':>15}")
        for name, (calls, cpu, wall) in spent.items():
            print(f"{name:38}{calls:8}{cpu / events * 1e6:14.2f}{wall / events * 1e6:15.2f}")
        profile = cProfile.Profile()
        profile.runcall(run_async, by_oyez(here, records))
        print()
        pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(32)


@contextmanager
def _measured(spent: dict[str, list[float]]) -> Iterator[None]:
    patches = [
        patch.object(owner, attribute, _timed(getattr(owner, attribute), spent, name))
        for name, owner, attribute in _STAGES
    ]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def _timed(
    function: Callable[..., Any], spent: dict[str, list[float]], name: str
) -> Callable[..., Any]:
    entry = spent[name]

    def timed(*arguments: Any, **named: Any) -> Any:
        cpu, wall = time.thread_time(), time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            entry[0] += 1
            entry[1] += time.thread_time() - cpu
            entry[2] += time.perf_counter() - wall

    return timed


if __name__ == "__main__":
    main()
