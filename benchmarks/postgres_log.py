"""The PostgreSQL broker beside asyncpg used by hand on a table with one sequence.

By hand: a connection for each publisher, one table, ``synchronous_commit=on``; each batch is one
insert from arrays, a backlog is read 256 rows at a time by position. What the broker does besides:
partitions, order per key, positions in commit order (a sequence gives them in any), telling the
readers, byte bounds. The server is the one that ``scripts/services up postgresql`` started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from benchmarks import servers
from benchmarks.broker_log import compare
from benchmarks.comparison import Report
from benchmarks.machine import Surroundings
from oyez.brokers import connect
from oyez.ports import Record

CONNECTIONS = 16

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
    """The broker against its driver."""
    url = servers.url("postgresql")
    async with AsyncExitStack() as stack:
        pool = await asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS)
        stack.push_async_callback(pool.close)
        await pool.execute("drop schema if exists bench cascade")
        await pool.execute(_TABLE)
        broker = connect(f"{url}?schema=bench", here.ambient, root=Path())
        await broker.open()
        stack.push_async_callback(broker.close)
        return await compare(here, broker, _Client(pool), benchmark="postgres_log", large=25_600)


class _Client:
    name = "asyncpg by hand"

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def prepare(self, batch: Sequence[Record]) -> Any:
        return batch

    async def publish(self, batch: Any) -> None:
        keys = [None if record.key is None else record.key.encode() for record in batch]
        headers = [_encode(record.headers) for record in batch]
        await self._pool.execute(_INSERT, keys, headers, [record.data for record in batch])

    async def consume(self, stream: str, lags: Mapping[int, int]) -> None:
        position, left = 0, sum(lags.values())
        while left > 0:
            rows = await self._pool.fetch(_READ, position)
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
            left -= len(records)
            position = records[-1].position
