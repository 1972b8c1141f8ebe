"""What an event costs as a system grows: partitions, handlers, streams, replicas, the inbox.

Each turn is a backlog that processes of their own work off, on the embedded broker and SQLite: the
job of `benchmarks.consume_job`. Counted is the CPU time of those processes after their start, so
that claiming is within it; and the books are checked.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import apsw
import msgspec

from benchmarks.comparison import Aim, Figures, Report, Row, Way, interleave
from benchmarks.consume_job import LEDGER
from benchmarks.growth_probe import kinds
from benchmarks.machine import Surroundings
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.brokers.embedded.options import EmbeddedOptions
from oyez.envelope import format_time
from oyez.partitioning import is_own
from oyez.ports import Record
from oyez.transaction import Announcer, Origin

_BATCH = 2_048
_AT_ONCE = 500_000
_LONGER = 5
_FILL = """insert into oyez_inbox (event_id, source, handler, seen)
 with recursive n (i) as (select :first union all select i + 1 from n where i < :last)
 select printf('%08x-%04x-7000-8000-%012x', i / 65536, i % 65536, i), '/bench/accounts0',
  'ledger.book0', :now from n"""
_LEFT = """select (select count(*) from oyez_outbox) + :wanted
 - (select coalesce(sum(cents), 0) from account)"""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a system."""

    partitions: int = 8
    handlers: int = 1
    streams: int = 1
    replicas: int = 1


async def run(here: Surroundings) -> Report:
    """Each growth is a case of its own: the large way beside the small one."""
    events, rounds = here.pick(6_000, 30_000), here.pick(2, 5)
    turn, long = partial(_fresh, here, events), partial(_fresh, here, _LONGER * events)
    rows: list[Row] = []
    aims: list[Aim] = []
    full, inbox = here.fresh("full"), here.pick(500_000, 10_000_000)
    await _fill(here, full, inbox)
    for case, large, small in (
        (
            "partitions",
            ("64", partial(turn, Size(partitions=64))),
            ("1", partial(turn, Size(partitions=1))),
        ),
        ("handlers", ("200", partial(turn, Size(handlers=200))), ("1", partial(turn, Size()))),
        (
            "streams of one partition",
            ("100", partial(turn, Size(partitions=1, streams=100))),
            ("1", partial(turn, Size(partitions=1))),
        ),
        ("replicas", ("4", partial(long, Size(replicas=4))), ("1", partial(long, Size()))),
        (
            "rows in the inbox",
            (f"{inbox:,}", partial(_turn, here, events, Size(), full)),
            ("0", partial(turn, Size())),
        ),
    ):
        rows += await interleave(case, [Way(*large), Way(*small)], rounds)
        aims.append(
            Aim(
                what=f"CPU an event, {large[0]} {case} to {small[0]}",
                case=case,
                figure="CPU µs an event",
                way=small[0],
                at_most=1.2,
            )
        )
    return Report(
        benchmark="growth",
        about="CPU time an event of all replicas; above 1 is dearer than in the small system",
        rows=rows,
        notes=[
            f"a backlog of {events:,} events a turn; 8 partitions unless said otherwise",
            f"replicas have {_LONGER} times the backlog: each claims its partitions once, for some "
            "30 ms, whatever there is to do",
        ],
        aims=aims,
    )


async def _fresh(here: Surroundings, events: int, size: Size) -> Figures:
    return await _turn(here, events, size, here.fresh("growth"))


async def _turn(here: Surroundings, events: int, size: Size, folder: Path) -> Figures:
    """Work off a backlog in a folder, which may be one that was used before."""
    _prepare(folder)
    options = EmbeddedOptions(partitions=size.partitions)
    broker = EmbeddedBroker(folder / "events.db", here.ambient, options)
    await broker.open()
    records = _records(here, events, size)
    for index in range(0, events, _BATCH):
        await broker.publish(records[index : index + _BATCH])
    read = [s for s in await broker.streams() if s != "bench.ledger" and not is_own(s)]
    wanted = sum([sum(await broker.ends(each)) for each in read])
    replicas = [await _replica(folder, size.handlers) for _ in range(size.replicas)]
    try:
        await _until_done(folder / "ledger.db", wanted, replicas)
    finally:
        for process in replicas:
            process.send_signal(signal.SIGTERM)
        printed = [(await process.communicate())[0] for process in replicas]
    booked = sum(await broker.ends("bench.ledger"))
    await broker.close()
    if booked != wanted:
        raise AssertionError(f"{wanted} events were booked, and {booked} announced")
    return {"CPU µs an event": sum(map(float, printed)) / events * 1e6}


def _prepare(folder: Path) -> None:
    migrations = folder / "migrations"
    migrations.mkdir(exist_ok=True)
    (migrations / "001_account.sql").write_text(LEDGER)


def _records(here: Surroundings, count: int, size: Size) -> list[Record]:
    """Events of one cent each, evenly of all types, and of one stream after the other."""
    types = kinds(size.handlers)
    announcers = [
        Announcer("bench", f"accounts{number}", here.ambient) for number in range(size.streams)
    ]
    now = format_time(here.ambient.now())
    made = []
    for number in range(count):
        event = types[number % len(types)](
            account=f"account-{number % 1000}", order=f"order-{number}", cents=1
        )
        announcer = announcers[number * size.streams // count]
        row = announcer.announce(event, Origin(), now, 0.0, None)
        made.append(Record(stream=row.stream, key=row.key, headers=row.headers, data=row.data))
    return made


async def _replica(folder: Path, handlers: int) -> asyncio.subprocess.Process:
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.growth_probe", str(folder), str(handlers)),
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
    )


async def _until_done(path: Path, wanted: int, replicas: list[asyncio.subprocess.Process]) -> None:
    """Wait until all events are booked, once, and what they announced has left the outbox."""
    left: int | None = None
    while left != 0:
        await asyncio.sleep(0.05)
        ended = [process.returncode for process in replicas if process.returncode is not None]
        if ended:
            raise AssertionError(f"a replica ended with code {ended[0]}")
        if left is None and not path.exists():
            continue
        with _open(path) as store:
            try:
                left = store.execute(_LEFT, {"wanted": wanted}).get
            except apsw.SQLError:
                continue  # the tables are being made
        if left < 0:
            raise AssertionError(f"{-left} cents too many are booked")


def _open(path: Path) -> apsw.Connection:
    store = apsw.Connection(str(path))
    store.set_busy_timeout(5_000)
    return store


async def _fill(here: Surroundings, folder: Path, rows: int) -> None:
    """Make a store whose inbox has so many rows, by a first turn and SQL."""
    await _turn(here, 100, Size(), folder)
    store = _open(folder / "ledger.db")
    for first in range(0, rows, _AT_ONCE):
        last = min(first + _AT_ONCE, rows) - 1
        store.execute(_FILL, {"first": first, "last": last, "now": here.ambient.now()})
    store.close()
