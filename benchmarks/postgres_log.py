"""The PostgreSQL broker beside asyncpg used by hand on a table with one sequence.

By hand: one connection, one table, ``synchronous_commit=on``; each batch is one insert from arrays,
a backlog is read 256 rows at a time by position. What the broker does besides: partitions, order
per key, positions in commit order (a sequence gives them in any), telling the readers, byte bounds.
The server is the one that ``scripts/services up postgresql`` started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import asyncpg
import msgspec

from benchmarks import servers
from benchmarks.comparison import Figures, Report, Way, interleave
from benchmarks.embedded_append import make_records
from benchmarks.machine import Surroundings
from oyez.brokers import connect
from oyez.ports import BEGINNING, Broker, Record
from oyez.postgres_server import Connection

_TABLE = """drop schema if exists by_hand cascade; create schema by_hand;
create table by_hand.log (position bigint generated always as identity primary key,
 time double precision not null, key bytea, headers bytea not null, data bytea)"""
_INSERT = """insert into by_hand.log (time, key, headers, data)
 select extract(epoch from clock_timestamp()), *
 from unnest($1::bytea[], $2::bytea[], $3::bytea[])"""
_READ = """select position, time, key, headers, data from by_hand.log
 where position > $1 order by position limit 256"""

_encode = msgspec.json.Encoder().encode
_headers = msgspec.json.Decoder(dict[str, str]).decode


async def run(here: Surroundings) -> Report:
    """Batches of 1 and 256, 16 publishers of one record each at once, and a backlog."""
    url, rounds, rows = servers.url("postgresql"), here.pick(3, 9), []
    async with AsyncExitStack() as stack:
        by_hand = await asyncpg.connect(url)
        stack.push_async_callback(by_hand.close)
        await by_hand.execute("drop schema if exists bench cascade")
        await by_hand.execute(_TABLE)
        broker = connect(f"{url}?schema=bench", here.ambient, root=Path())
        await broker.open()
        stack.push_async_callback(broker.close)
        pool = [await asyncpg.connect(url) for _ in range(16)]
        for connection in pool:
            stack.push_async_callback(connection.close)
        for batch, publishers, count in (
            (1, 1, here.pick(100, 500)),
            (256, 1, here.pick(5_120, 25_600)),
            (1, 16, here.pick(320, 3_200)),
        ):
            records = make_records(here, count)
            batches = [records[i : i + batch] for i in range(0, count, batch)]
            ways = [
                Way("oyez", partial(_publish, broker, batches, publishers)),
                Way("asyncpg by hand", partial(_insert, pool[:publishers], batches)),
            ]
            case = f"batch {batch}" + (f", {publishers} at once" if publishers > 1 else "")
            rows += await interleave(case, ways, rounds)
        stream = make_records(here, 1)[0].stream
        ends = list(await broker.ends(stream))
        count = min(here.pick(5_000, 25_000), sum(ends))
        ways = [
            Way("oyez", partial(_consume, broker, stream, len(ends), count)),
            Way("asyncpg by hand", partial(_select, by_hand, stream, count)),
        ]
        rows += await interleave("backlog", ways, rounds)
    return Report(
        benchmark="postgres_log",
        about="durable appends, and records read, a second; above 1 is faster than by hand",
        rows=rows,
        notes=["at once: by hand each publisher has a connection of its own, the broker has one"],
    )


async def _publish(broker: Broker, batches: Sequence[list[Record]], publishers: int) -> Figures:
    waiting = iter(batches)

    async def publisher() -> None:
        for batch in waiting:
            await broker.publish(batch)

    start = time.perf_counter()
    await asyncio.gather(*(publisher() for _ in range(publishers)))
    return {"events/s": sum(map(len, batches)) / (time.perf_counter() - start)}


async def _insert(connections: Sequence[Connection], batches: Sequence[list[Record]]) -> Figures:
    waiting = iter(batches)

    async def publisher(connection: Connection) -> None:
        for batch in waiting:
            keys = [None if r.key is None else r.key.encode() for r in batch]
            headers = [_encode(r.headers) for r in batch]
            await connection.fetch(_INSERT, keys, headers, [r.data for r in batch])

    start = time.perf_counter()
    await asyncio.gather(*map(publisher, connections))
    return {"events/s": sum(map(len, batches)) / (time.perf_counter() - start)}


async def _consume(broker: Broker, stream: str, partitions: int, count: int) -> Figures:
    left = count

    async def reader(partition: int) -> None:
        nonlocal left
        async for batch in broker.read(stream, partition, BEGINNING):
            left -= len(batch.records)
            if left <= 0:
                return

    start = time.perf_counter()
    readers = [asyncio.ensure_future(reader(partition)) for partition in range(partitions)]
    await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
    took = time.perf_counter() - start
    for task in readers:
        task.cancel()
    await asyncio.wait(readers)
    return {"events/s": (count - left) / took}


async def _select(connection: Connection, stream: str, count: int) -> Figures:
    position = found = 0
    start = time.perf_counter()
    while found < count:
        rows = await connection.fetch(_READ, position)
        records = [
            Record(
                stream=stream,
                key=None if key is None else key.decode(),
                headers=_headers(headers),
                data=data,
                position=at,
                time=moment,
            )
            for at, moment, key, headers, data in rows
        ]
        found += len(records)
        position = records[-1].position
    return {"events/s": found / (time.perf_counter() - start)}
