"""One service under steady load for a long time: does its memory, or anything else, grow?

``python -m benchmarks.soak [--minutes 30] [--events N] [--rate N] [--folder DIR]``: a process of
``oyez run`` does the job of `benchmarks.consume_job` on the embedded broker and SQLite, whose
records and inbox are kept for a minute; this process publishes, as fast as the service follows or
at the rate. Every second it looks at the service's resident memory, descriptors and threads, and at
the size of the files. It ends with code 1 if the books are wrong, if the memory was ever above the
limit, or if the last fifth of the time is above the second fifth.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import apsw
import msgspec

from benchmarks.consume_job import LEDGER
from benchmarks.embedded_append import make_records
from benchmarks.machine import Surroundings, describe
from oyez.ambient import SystemAmbient
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.brokers.embedded.options import EmbeddedOptions
from oyez.ports import Record

LIMIT = 256 * 1024**2
"""Bytes of resident memory that the service may have at any time."""
BACKLOG = 20_000
"""Events that the publisher is ahead of the service, at most."""
BATCH = 256
SLACK = {"memory": 4 * 1024**2, "descriptors": 2, "threads": 2, "files": 16 * 1024**2}
"""What may come on top of a twentieth, in the units of `Sample`."""
RETENTION = 60.0
"""Seconds for which records are kept."""
_TOML = f"""
[system]
name = "bench"
broker = "embedded:events.db"
retention_days = {RETENTION / 86_400}

[services.ledger]
app = "benchmarks.soak_probe:service"
store = "sqlite:ledger.db"
"""
_BOOKED = "select coalesce(sum(cents), 0) from account"


class Sample(msgspec.Struct, frozen=True):
    """What one look found: seconds since the start, events booked; bytes, and counts."""

    at: float
    events: int
    memory: int
    descriptors: int
    threads: int
    files: int


def main() -> None:
    """Run it, and say what grew."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="oyez-soak-", dir=options.folder) as folder:
        machine = describe(Path(folder))
        print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
        here = Surroundings(folder=Path(folder), quick=False, ambient=SystemAmbient())
        samples = asyncio.run(soak(here, options.minutes * 60, options.events, options.rate))
    faults = list(judge(samples))
    peak = max(sample.memory for sample in samples) / 1024**2
    last = samples[-1]
    print(
        f"{last.events:,} events in {last.at:.0f} s ({last.events / last.at:,.0f}/s); "
        f"peak memory {peak:.0f} MiB; {len(samples)} looks"
    )
    for name in SLACK:
        early, late = _fifths(samples, name)
        print(f"  {name}: {early:,.0f} in the second fifth, {late:,.0f} in the last")
    for fault in faults:
        print(f"  fault: {fault}")
    sys.exit(1 if faults else 0)


async def soak(here: Surroundings, seconds: float, most: int, rate: float) -> list[Sample]:
    """Publish for that long, or that many events if more than 0; return the looks.

    Raises AssertionError if an event is missing or was booked twice.
    """
    folder = here.fresh("soak")
    (folder / "oyez.toml").write_text(_TOML)
    (folder / "migrations").mkdir()
    (folder / "migrations" / "001_account.sql").write_text(LEDGER)
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "oyez", "run", "ledger"),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OYEZ_PROJECT": ""},
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        return await _feed(here, folder, process, seconds, most, rate)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _feed(
    here: Surroundings,
    folder: Path,
    process: asyncio.subprocess.Process,
    seconds: float,
    most: int,
    rate: float,
) -> list[Sample]:
    # Whichever process is first deletes what is old: both must mean the same by that.
    options = EmbeddedOptions(retention=RETENTION)
    broker = EmbeddedBroker(folder / "events.db", here.ambient, options)
    await broker.open()
    store = await _opened(folder / "ledger.db", process)
    samples: list[Sample] = []
    start, sent, booked = time.monotonic(), 0, 0
    while (most and sent < most) or (not most and time.monotonic() - start < seconds):
        elapsed = time.monotonic() - start
        if not samples or elapsed - samples[-1].at >= 1.0:
            booked = store.execute(_BOOKED).get
            samples.append(_look(process.pid, folder, elapsed, booked))
        if sent - booked > BACKLOG or (rate and sent > rate * elapsed):
            await asyncio.sleep(0.02)
            booked = store.execute(_BOOKED).get
            continue
        await broker.publish(_events(here, min(BATCH, most - sent) if most else BATCH))
        sent += min(BATCH, most - sent) if most else BATCH
    async with asyncio.timeout(120):
        while store.execute(_BOOKED).get < sent:
            await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)  # a second delivery would come now
    booked = store.execute(_BOOKED).get
    samples.append(_look(process.pid, folder, time.monotonic() - start, booked))
    store.close()
    await broker.close()
    if booked != sent:
        raise AssertionError(f"{sent} events were published, and {booked} booked")
    return samples


def _events(here: Surroundings, count: int) -> list[Record]:
    """Events of one cent each, so that the sum of all accounts counts them."""
    records = make_records(here, count)
    one = [msgspec.json.decode(record.data or b"") | {"cents": 1} for record in records]
    return [
        msgspec.structs.replace(record, data=msgspec.json.encode(data))
        for record, data in zip(records, one, strict=True)
    ]


async def _opened(path: Path, process: asyncio.subprocess.Process) -> apsw.Connection:
    async with asyncio.timeout(30):
        while process.returncode is None:
            if path.exists():
                store = apsw.Connection(str(path))
                store.set_busy_timeout(5000)
                try:
                    store.execute(_BOOKED)
                    return store
                except apsw.SQLError:
                    store.close()  # the tables are being made
            await asyncio.sleep(0.05)
    raise RuntimeError(f"oyez run ended with code {process.returncode}")


def _look(pid: int, folder: Path, at: float, events: int) -> Sample:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return Sample(
        at=at,
        events=events,
        memory=int(status["VmRSS"].split()[0]) * 1024,
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"]),
        files=sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
    )


def judge(samples: list[Sample]) -> Iterator[str]:
    """Say what went above its limit, or grew from the second fifth of the time to the last."""
    peak = max(sample.memory for sample in samples)
    if peak > LIMIT:
        yield f"memory was {peak / 1024**2:.0f} MiB, above {LIMIT / 1024**2:.0f}"
    for name, slack in SLACK.items():
        early, late = _fifths(samples, name)
        if late > early * 1.05 + slack:
            yield f"{name} grew from {early:,.0f} to {late:,.0f}"


def _fifths(samples: list[Sample], name: str) -> tuple[float, float]:
    """Return the medians over the second and the last fifth of the samples."""
    values = [getattr(sample, name) for sample in samples]
    fifth = max(1, len(values) // 5)
    return median(values[fifth : 2 * fifth] or values), median(values[-fifth:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--events", type=int, default=0, help="so many, instead of the minutes")
    parser.add_argument("--rate", type=float, default=0.0, help="events a second; 0: no limit")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    return parser


if __name__ == "__main__":
    main()
