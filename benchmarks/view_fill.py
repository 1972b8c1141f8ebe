"""Live events while a view of the same process is filled from its history.

The service is run by ``oyez run``, with one handler and one view; another process publishes live
events at random moments, on average 150 a second. Beside it: the same service without a history.
A turn whose view was filled before its last live event is refused.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import apsw

from benchmarks.comparison import Aim, Figures, Report, Way, interleave, percentile
from benchmarks.latency_probe import SEEN, Ticked
from benchmarks.machine import Surroundings
from benchmarks.view_probe import Went
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.envelope import format_time
from oyez.ports import Record
from oyez.transaction import Announcer, Origin

RATE = 150.0
"""Live events a second."""
PARTITIONS = 8
_TOML = """
[system]
name = "bench"
broker = "embedded:events.db"

[services.probe]
app = "benchmarks.view_probe:service"
store = "sqlite:seen.db"
"""
_CLAIMED = """select count(*) from oyez_cursor
 where stream = 'bench.ticks' and reader = '' and owner is not null"""
_FILLED = "select coalesce(sum(times), 0) from trips"


async def run(here: Surroundings) -> Report:
    """Turns of a few seconds, each in a process of its own."""
    count, past = here.pick(150, 600), here.pick(60_000, 200_000)
    history = here.fresh("history")
    await _write(here, history, past)
    ways = [
        Way("while it is filled", partial(_turn, here, history, count, past)),
        Way("alone", partial(_turn, here, None, count, past)),
    ]
    return Report(
        benchmark="view_fill",
        about="ms from publish to handler, while a view is filled; above 1 is slower than alone",
        rows=await interleave(f"{RATE:.0f}/s", ways, here.pick(2, 5)),
        notes=[f"p99 of {count} live events a turn; the view's history is {past:,} events"],
        aims=[
            Aim(
                what="p99 of live events beside a view's fill, to alone",
                case=f"{RATE:.0f}/s",
                figure="p99 ms",
                way="alone",
                at_most=2.0,
            )
        ],
    )


async def _write(here: Surroundings, folder: Path, past: int) -> None:
    """Write the history, and the empty stream of the live events."""
    broker = EmbeddedBroker(folder / "events.db", here.ambient)
    await broker.open()
    await broker.create("bench.ticks", PARTITIONS)
    await broker.create("bench.past", PARTITIONS)
    await broker.close()
    shutil.copytree(folder, folder.with_name("empty"), dirs_exist_ok=True)
    await broker.open()
    announcer, now = Announcer("bench", "past", here.ambient), format_time(here.ambient.now())
    for first in range(0, past, 1_000):
        events = (Went(van=f"van-{n % 5_000}", metres=n) for n in range(first, first + 1_000))
        rows = [announcer.announce(event, Origin(), now, 0.0, None) for event in events]
        await broker.publish(
            [Record(stream=r.stream, key=r.key, headers=r.headers, data=r.data) for r in rows]
        )
    await broker.close()


async def _turn(here: Surroundings, history: Path | None, count: int, past: int) -> Figures:
    folder = here.fresh("fill")
    source = history or here.folder / "empty"
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / "oyez.toml").write_text(_TOML)
    (folder / "migrations").mkdir()
    (folder / "migrations" / "001_seen.sql").write_text(SEEN)
    broker = EmbeddedBroker(folder / "events.db", here.ambient)
    await broker.open()
    announcer, moments = Announcer("bench", "ticks", here.ambient), random.Random(count)
    async with _running(folder) as store:
        began = store.execute(_FILLED).get
        next_at = time.monotonic()
        for number in range(count):
            next_at += moments.expovariate(RATE)
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            event = Ticked(key=f"key-{number % 100}", number=number, sent=time.monotonic_ns())
            row = announcer.announce(event, Origin(), format_time(here.ambient.now()), 0.0, None)
            await broker.publish(
                [Record(stream=row.stream, key=row.key, headers=row.headers, data=row.data)]
            )
        filled = store.execute(_FILLED).get
        async with asyncio.timeout(30):
            while store.execute("select count(*) from seen").get < count:
                await asyncio.sleep(0.02)
        micros = [m for (m,) in store.execute("select micros from seen")]
    await broker.close()
    if history is not None and not began < filled < past:
        raise RuntimeError(f"the view went from {began} to {filled} of {past} events meanwhile")
    return {"p50 ms": percentile(micros, 0.5) / 1000, "p99 ms": percentile(micros, 0.99) / 1000}


@asynccontextmanager
async def _running(folder: Path) -> AsyncIterator[apsw.Connection]:
    """The store of the service, while it runs and once its lanes are claimed."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "oyez", "run", "probe"),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OYEZ_PROJECT": ""},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(30):
            while not _is_ready(folder / "seen.db"):
                if process.returncode is not None:
                    raise RuntimeError(f"oyez run ended with code {process.returncode}")
                await asyncio.sleep(0.05)
        store = apsw.Connection(str(folder / "seen.db"))
        store.set_busy_timeout(5000)
        yield store
        store.close()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _is_ready(path: Path) -> bool:
    if not path.exists():
        return False
    store = apsw.Connection(str(path))
    store.set_busy_timeout(5000)
    try:
        return bool(store.execute(_CLAIMED).get == PARTITIONS)
    except apsw.SQLError:
        return False  # the tables are being made
    finally:
        store.close()
