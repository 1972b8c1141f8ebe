"""Appends to the embedded broker, and a backlog read, beside the same written by hand.

By hand: one connection, one table, WAL with ``synchronous=FULL``; each batch is one ``begin
immediate``, one ``executemany``, one ``commit``. Twice: the plain loop blocks its only thread, and
keeps one sequence of rows. The one "for readers" does what a service needs of it: it runs on a
thread beside the event loop, and each record has a partition by its key, a position and a checksum.
What the broker does besides either: a lock that queues fairly among processes, readers that are
woken, retention.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import apsw
import msgspec

from benchmarks.comparison import Aim, Figures, Report, Way, interleave
from benchmarks.machine import Surroundings
from oyez import Event
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.envelope import format_time
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Record
from oyez.transaction import Announcer, Origin

_TABLE = """create table log (position integer primary key, time real not null, key text,
 headers blob not null, data blob not null)"""
_INSERT = "insert into log (time, key, headers, data) values (?, ?, ?, ?)"
_SELECT = """select position, time, key, headers, data from log where position > ?
 order by position limit 256"""
_FOR_READERS = """
create table head (partition integer primary key, last integer not null);
insert into head values (0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0);
create table log (partition integer, position integer, time real not null, key text,
 headers blob not null, data blob not null, crc integer not null,
 primary key (partition, position)) without rowid"""
_PARTITIONS = 8

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, str]).decode


class Paid(Event, type="bench.paid", key="account"):
    """An event of ordinary size."""

    account: str
    order: str
    cents: int


async def run(here: Surroundings) -> Report:
    """Batches of 1, 16 and 256, and 64 publishers of one record each at once."""
    rows = []
    rounds = here.pick(3, 9)
    async with AsyncExitStack() as stack:
        broker = EmbeddedBroker(here.fresh("append") / "events.db", here.ambient)
        await broker.open()
        stack.push_async_callback(broker.close)
        by_apsw = _open(apsw.Connection, here.fresh("append") / "apsw.db", _TABLE)
        stack.callback(by_apsw.close)
        for_readers = _open(apsw.Connection, here.fresh("append") / "readers.db", _FOR_READERS)
        stack.callback(for_readers.close)
        thread = stack.enter_context(ThreadPoolExecutor(1))
        by_sqlite3 = _open(
            partial(sqlite3.connect, isolation_level=None),
            here.fresh("append") / "sqlite3.db",
            _TABLE,
        )
        stack.callback(by_sqlite3.close)
        for batch, publishers, count in (
            (1, 1, here.pick(100, 1_000)),
            (16, 1, here.pick(640, 8_000)),
            (256, 1, here.pick(5_120, 51_200)),
            (1, 64, here.pick(640, 8_000)),
        ):
            records = make_records(here, count)
            batches = [records[i : i + batch] for i in range(0, count, batch)]
            ways = [
                Way("oyez", partial(_publish, broker, batches, publishers)),
                Way("apsw by hand", partial(_insert, by_apsw, batches)),
                Way(
                    "apsw by hand, for readers",
                    partial(_insert_for_readers, for_readers, thread, batches, publishers),
                ),
                Way("sqlite3 by hand", partial(_insert, by_sqlite3, batches)),
            ]
            case = f"batch {batch}" + (f", {publishers} at once" if publishers > 1 else "")
            rows += await interleave(case, ways, rounds)
        count = here.pick(5_120, 51_200)
        filled = await _fill(here, stack, make_records(here, count))
        ways = [
            Way("oyez", partial(_read, filled[0], count)),
            Way("apsw by hand", partial(_select, filled[1], count)),
        ]
        rows += await interleave("backlog read", ways, rounds)
    return Report(
        benchmark="embedded_append",
        about="durable appends a second, and a backlog; above 1 is faster than by hand",
        rows=rows,
        aims=[
            Aim(
                what=f"embedded append, batches of {batch}, beside {way}",
                case=f"batch {batch}",
                figure="events/s",
                way=way,
                at_least=0.8,
            )
            for batch in (1, 16, 256)
            for way in ("apsw by hand", "apsw by hand, for readers")
        ],
        lacks={
            "apsw by hand": "partitions, positions, checksums, a thread beside the event loop",
            "apsw by hand, for readers": "batches, streams by name, readers that are woken, limits",
            "sqlite3 by hand": "what apsw by hand does not do",
        },
        notes=[
            "at once: by hand there is no group commit, so it stays one commit a record",
            "backlog: appended 256 at a time; by hand decodes headers, checks and makes nothing",
            "CPU: of the whole process; below 1 is cheaper",
        ],
    )


def make_records(here: Surroundings, count: int, accounts: int = 1_000) -> list[Record]:
    """Events as a relay publishes them, of so many accounts in turn."""
    announcer = Announcer("bench", "accounts", here.ambient)
    now = format_time(here.ambient.now())
    made = []
    for number in range(count):
        event = Paid(account=f"account-{number % accounts}", order=f"order-{number}", cents=number)
        row = announcer.announce(event, Origin(), now, 0.0, None)
        made.append(Record(stream=row.stream, key=row.key, headers=row.headers, data=row.data))
    return made


async def _publish(
    broker: EmbeddedBroker, batches: Sequence[list[Record]], publishers: int
) -> Figures:
    waiting = iter(batches)

    async def publisher() -> None:
        for batch in waiting:
            await broker.publish(batch)

    stream = batches[0][0].stream
    before = sum(await broker.ends(stream))
    watch = _Watch()
    await asyncio.gather(*(publisher() for _ in range(publishers)))
    figures = watch.figures(sum(map(len, batches)))
    _check(sum(await broker.ends(stream)) - before, batches)
    return figures


async def _insert(connection: Any, batches: Sequence[list[Record]]) -> Figures:
    count = "select count(*) from log"
    (before,) = next(iter(connection.execute(count)))
    watch = _Watch()
    for batch in batches:
        now = time.time()
        rows = [(now, r.key, _encode(r.headers), r.data) for r in batch]
        connection.execute("begin immediate")
        connection.executemany(_INSERT, rows)
        connection.execute("commit")
    figures = watch.figures(sum(map(len, batches)))
    _check(next(iter(connection.execute(count)))[0] - before, batches)
    return figures


async def _insert_for_readers(
    connection: apsw.Connection,
    thread: ThreadPoolExecutor,
    batches: Sequence[list[Record]],
    publishers: int,
) -> Figures:
    def insert(batch: list[Record]) -> None:
        now = time.time()
        encoded = [(partition_of(r.key or "", _PARTITIONS), _encode(r.headers), r) for r in batch]
        lasts: dict[int, int] = {}
        rows = []
        connection.execute("begin immediate")
        for partition, headers, r in encoded:
            last = lasts.get(partition)
            if last is None:
                head = "select last from head where partition = ?"
                last = connection.execute(head, (partition,)).get
            lasts[partition] = last = last + 1
            crc = crc32(r.data or b"", crc32(headers))
            rows.append((partition, last, now, r.key, headers, r.data, crc))
        connection.executemany("insert into log values (?, ?, ?, ?, ?, ?, ?)", rows)
        connection.executemany(
            "update head set last = ? where partition = ?",
            [(last, partition) for partition, last in lasts.items()],
        )
        connection.execute("commit")

    waiting = iter(batches)

    async def publisher() -> None:
        loop = asyncio.get_running_loop()
        for batch in waiting:
            await loop.run_in_executor(thread, insert, batch)

    total = "select sum(last) from head"
    before = connection.execute(total).get
    watch = _Watch()
    await asyncio.gather(*(publisher() for _ in range(publishers)))
    figures = watch.figures(sum(map(len, batches)))
    _check(connection.execute(total).get - before, batches)
    return figures


async def _fill(
    here: Surroundings, stack: AsyncExitStack, records: list[Record]
) -> tuple[EmbeddedBroker, apsw.Connection]:
    """The same backlog in a new broker and in a new table."""
    broker = EmbeddedBroker(here.fresh("backlog") / "events.db", here.ambient)
    await broker.open()
    stack.push_async_callback(broker.close)
    connection = _open(apsw.Connection, here.fresh("backlog") / "apsw.db", _TABLE)
    stack.callback(connection.close)
    batches = [records[i : i + 256] for i in range(0, len(records), 256)]
    for batch in batches:
        await broker.publish(batch)
    await _insert(connection, batches)
    return broker, connection


async def _read(broker: EmbeddedBroker, count: int) -> Figures:
    found = 0

    async def partition(number: int, end: int) -> None:
        nonlocal found
        if end:
            async for batch in broker.read("bench.accounts", number, BEGINNING):
                found += sum(1 for record in batch.records if record.headers["id"])
                if batch.records[-1].position == end:
                    return

    ends = await broker.ends("bench.accounts")
    watch = _Watch()
    await asyncio.gather(*(partition(number, end) for number, end in enumerate(ends)))
    figures = watch.figures(count)
    if found != count:
        raise AssertionError(f"read {found} events, expected {count}")
    return figures


async def _select(connection: apsw.Connection, count: int) -> Figures:
    position, found = 0, 0
    watch = _Watch()
    while rows := list(connection.execute(_SELECT, (position,))):
        position = rows[-1][0]
        found += sum(1 for _, _, _, headers, _ in rows if _decode(headers)["id"])
    figures = watch.figures(count)
    if found != count:
        raise AssertionError(f"read {found} events, expected {count}")
    return figures


class _Watch:
    """Time and CPU time since it was made."""

    def __init__(self) -> None:
        self._start, self._cpu = time.perf_counter(), time.process_time()

    def figures(self, events: int) -> Figures:
        seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        return {"events/s": events / seconds, "CPU µs/event": cpu / events * 1e6}


def _check(found: int, batches: Sequence[list[Record]]) -> None:
    wanted = sum(map(len, batches))
    if found != wanted:
        raise AssertionError(f"{found} records were added, expected {wanted}")


def _open(connect: Callable[[str], Any], path: Path, schema: str) -> Any:
    connection = connect(str(path))
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=full")
    if isinstance(connection, sqlite3.Connection):
        connection.executescript(schema)
    else:
        connection.execute(schema)
    return connection
