"""Appends to the embedded broker beside the same insert and commit written by hand.

By hand: one thread, one connection, one table, WAL with ``synchronous=FULL``; each batch is one
``begin immediate``, one ``executemany``, one ``commit``. What the broker does besides: partitions,
positions, checksums, a lock that queues fairly, a thread, waking the readers.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import msgspec

from benchmarks.comparison import Figures, Report, Way, interleave
from benchmarks.machine import Surroundings
from oyez import Event
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.envelope import format_time
from oyez.ports import Record
from oyez.transaction import Announcer, Origin

_TABLE = """create table log (position integer primary key, time real not null, key text,
 headers blob not null, data blob not null)"""
_INSERT = "insert into log (time, key, headers, data) values (?, ?, ?, ?)"

_encode = msgspec.json.Encoder().encode


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
        by_apsw = _open(apsw.Connection, here.fresh("append") / "apsw.db")
        stack.callback(by_apsw.close)
        by_sqlite3 = _open(
            partial(sqlite3.connect, isolation_level=None), here.fresh("append") / "sqlite3.db"
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
                Way("sqlite3 by hand", partial(_insert, by_sqlite3, batches)),
            ]
            case = f"batch {batch}" + (f", {publishers} at once" if publishers > 1 else "")
            rows += await interleave(case, ways, rounds)
    return Report(
        benchmark="embedded_append",
        about="durable appends a second; above 1 is faster than by hand",
        rows=rows,
        notes=["at once: by hand there is no group commit, so it stays one commit a record"],
    )


def make_records(here: Surroundings, count: int) -> list[Record]:
    """Events as a relay publishes them, of 1,000 accounts in turn."""
    announcer = Announcer("bench", "accounts", here.ambient)
    now = format_time(here.ambient.now())
    made = []
    for number in range(count):
        event = Paid(account=f"account-{number % 1000}", order=f"order-{number}", cents=number)
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

    start = time.perf_counter()
    await asyncio.gather(*(publisher() for _ in range(publishers)))
    return {"events/s": sum(map(len, batches)) / (time.perf_counter() - start)}


async def _insert(connection: Any, batches: Sequence[list[Record]]) -> Figures:
    start = time.perf_counter()
    for batch in batches:
        now = time.time()
        rows = [(now, r.key, _encode(r.headers), r.data) for r in batch]
        connection.execute("begin immediate")
        connection.executemany(_INSERT, rows)
        connection.execute("commit")
    return {"events/s": sum(map(len, batches)) / (time.perf_counter() - start)}


def _open(connect: Callable[[str], Any], path: Path) -> Any:
    connection = connect(str(path))
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=full")
    connection.execute(_TABLE)
    return connection
