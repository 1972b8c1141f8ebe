"""From the publisher's call to the handler in another process, by the embedded broker.

The publisher is this process, the receiver is ``oyez run`` with a handler that writes a row, or a
loop written by hand that does the same: one polls the table every 10 ms, one is woken by a
datagram. Events come at random moments, on average 150 or 500 a second, so that no way is in
step. The loops by hand have no partitions, claims or deduplication, and their publisher waits for
the disk on its only thread. CPU is that of both processes.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import apsw

from benchmarks.comparison import Aim, Figures, Report, Row, Way, interleave, percentile
from benchmarks.latency_probe import LOG, SEEN, Ticked, connect
from benchmarks.machine import Surroundings
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.envelope import format_time
from oyez.ports import Record
from oyez.transaction import Announcer, Origin

RATES = (150.0, 500.0)
"""Events a second."""
_TOML = """
[system]
name = "bench"
broker = "embedded:events.db"

[services.probe]
app = "benchmarks.latency_probe:service"
store = "sqlite:seen.db"
"""

Publish = Callable[[int], Awaitable[None]]


async def run(here: Surroundings) -> Report:
    """All at the same rate, in turns of a few seconds."""
    rows: list[Row] = []
    async with _service(here) as (seen, publish, process):
        for rate in RATES:
            count = int(here.pick(1, 4) * rate)
            ways = [
                Way("oyez", partial(_turn, seen, publish, process, rate, count)),
                Way("by hand, datagram", partial(_by_hand, here, "datagram", rate, count)),
                Way("by hand, polled", partial(_by_hand, here, "poll", rate, count)),
            ]
            rows += await interleave(f"{rate:.0f}/s", ways, here.pick(2, 6))
    return Report(
        benchmark="embedded_latency",
        about="from publish to handler, two processes; below 1 is faster, or cheaper, than by hand",
        rows=rows,
        aims=[
            Aim(
                what=f"publish to handler at 500/s, {name}",
                case="500/s",
                figure=name,
                way="oyez",
                at_most=most,
                absolute=True,
            )
            for name, most in (("p50 ms", 1.0), ("p99 ms", 3.0))
        ],
        lacks=dict.fromkeys(
            ("by hand, datagram", "by hand, polled"),
            "deduplication, partitions, replicas, positions that survive a crash, retries, traces",
        ),
        notes=["the events of a few seconds a turn; the polled loop sleeps 10 ms"],
    )


@asynccontextmanager
async def _service(
    here: Surroundings,
) -> AsyncIterator[tuple[apsw.Connection, Publish, asyncio.subprocess.Process]]:
    folder = here.fresh("latency")
    (folder / "oyez.toml").write_text(_TOML)
    (folder / "migrations").mkdir()
    (folder / "migrations" / "001_seen.sql").write_text(SEEN)
    broker = EmbeddedBroker(folder / "events.db", here.ambient)
    await broker.open()
    await broker.create("bench.ticks", 8)
    announcer = Announcer("bench", "ticks", here.ambient)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "oyez", "run", "probe"),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": _paths(), "OYEZ_PROJECT": ""},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def publish(number: int) -> None:
        event = Ticked(key=f"key-{number % 100}", number=number, sent=time.monotonic_ns())
        now = format_time(here.ambient.now())
        row = announcer.announce(event, Origin(), now, 0.0, None)
        record = Record(stream=row.stream, key=row.key, headers=row.headers, data=row.data)
        await broker.publish([record])

    try:
        seen = await _opened(folder / "seen.db")
        yield seen, publish, process
        seen.close()
    finally:
        process.terminate()
        await process.wait()
        await broker.close()


async def _turn(
    seen: apsw.Connection,
    publish: Publish,
    process: asyncio.subprocess.Process,
    rate: float,
    count: int,
) -> Figures:
    """Publish so many at the rate, then wait for their rows."""
    first = (seen.execute("select max(number) from seen").get or 0) + 1
    moments = random.Random(first)
    cpu = _cpu(process)
    next_at = time.monotonic()
    for number in range(first, first + count):
        next_at += moments.expovariate(rate)
        await asyncio.sleep(max(0.0, next_at - time.monotonic()))
        await publish(number)
    async with asyncio.timeout(30):
        while (seen.execute("select max(number) from seen").get or 0) < first + count - 1 or (
            seen.execute("select count(*) from seen where number >= ?", (first,)).get < count
        ):
            await asyncio.sleep(0.02)
    micros = [m for (m,) in seen.execute("select micros from seen where number >= ?", (first,))]
    return {
        "p50 ms": percentile(micros, 0.5) / 1000,
        "p99 ms": percentile(micros, 0.99) / 1000,
        "CPU µs/event": (_cpu(process) - cpu) / count * 1e6,
    }


def _cpu(process: asyncio.subprocess.Process) -> float:
    """CPU seconds of this process and that one, so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


async def _by_hand(here: Surroundings, way: str, rate: float, count: int) -> Figures:
    folder = here.fresh(way)
    log = connect(folder / "log.db")
    log.execute(LOG)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.latency_probe", way, str(folder)),
        env={**os.environ, "PYTHONPATH": _paths()},
    )
    bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def publish(number: int) -> None:
        sent = time.monotonic_ns()
        log.execute("insert into log (number, sent) values (?, ?)", (number, sent))
        if way == "datagram":
            bell.sendto(b"!", str(folder / "bell"))

    try:
        async with asyncio.timeout(30):
            while not (folder / "ready").exists():
                await asyncio.sleep(0.02)
        seen = connect(folder / "seen.db")
        try:
            return await _turn(seen, publish, process, rate, count)
        finally:
            seen.close()
    finally:
        process.terminate()
        await process.wait()
        bell.close()
        log.close()


async def _opened(path: Path) -> apsw.Connection:
    """The service's own file, once its migration has run and its lanes are claimed."""
    ready = "select count(*) from oyez_cursor where stream = 'bench.ticks' and owner is not null"
    async with asyncio.timeout(30):
        while True:
            if path.exists():
                seen = apsw.Connection(str(path))
                seen.set_busy_timeout(5000)
                try:
                    if seen.execute(ready).get == 8:
                        return seen
                except apsw.SQLError:
                    pass  # the tables are being made
                seen.close()
            await asyncio.sleep(0.05)


def _paths() -> str:
    here = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), here)))
