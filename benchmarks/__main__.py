"""``python -m benchmarks [NAME…] [--quick] [--json] [--write] [--folder DIR]``.

A whole run at full size writes ``benchmarks/results.md`` and the plot of the guide; any other does
with ``--write``.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import results
from benchmarks.comparison import Report
from benchmarks.machine import Surroundings, describe
from benchmarks.servers import NotRunning
from oyez.ambient import SystemAmbient
from oyez.cli.invocation import run_async
from oyez.runtime.interpreter import tune

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    "embedded_append",
    "embedded_latency",
    "consume_job",
    "traced",
    "keyed_state",
    "parked",
    "dispatch",
    "view_fill",
    "idle_tail",
    "plain_consume",
    "start",
    "growth",
    "gateway",
    "ingest",
    "http_bridge",
    "postgres_store",
    "server_job",
    "kafka_log",
    "nats_log",
    "postgres_log",
    "rabbitmq_log",
    "redis_log",
    "sns_sqs_queue",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that were named, or all of them."""
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        sys.exit(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}")
    # As `oyez run` sets it; the peers' threads gain by it as well.
    tune()
    commit = _commit()  # before what is written changes the tree
    with tempfile.TemporaryDirectory(prefix="oyez-bench-", dir=options.folder) as folder:
        machine = describe(Path(folder))
        if not options.as_json:
            print(", ".join(f"{name} {value}" for name, value in machine.items()))
        reports: list[Report] = []
        here = Surroundings(folder=Path(folder), quick=options.quick, ambient=SystemAmbient())
        for name in options.names or NAMES:
            module = importlib.import_module(f"benchmarks.{name}")
            start = time.monotonic()
            try:
                report = run_async(module.run(here))
            except NotRunning as error:
                print(f"\n{name}: left out: {error}", file=sys.stderr, flush=True)
                continue
            reports.append(report)
            if options.write or not (options.names or options.quick):
                # Each time, so that a run that is cut off leaves what it has.
                _write(reports, machine, commit, quick=options.quick)
            if options.as_json:
                report = msgspec.structs.replace(report, machine=machine)
                print(msgspec.json.encode(report).decode(), flush=True)
            else:
                print(f"\n{report}\n  ({time.monotonic() - start:.0f} s)", flush=True)


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return described.stdout.strip() or "unknown"


def _write(
    reports: Sequence[Report], machine: Mapping[str, Any], commit: str, *, quick: bool
) -> None:
    day = datetime.now(UTC).date().isoformat()
    for path, text in (
        (
            ROOT / "benchmarks" / "results.md",
            results.page(reports, machine, commit, day, quick=quick),
        ),
        (ROOT / "docs" / "pictures" / "performance.svg", results.plot(reports, commit, day)),
    ):
        path.write_text(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it works")
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="one JSON object a benchmark"
    )
    parser.add_argument(
        "--write", action="store_true", help="write the results and the plot, of whatever was run"
    )
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    return parser


if __name__ == "__main__":
    main()
