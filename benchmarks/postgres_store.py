"""One job on PostgreSQL, several ways: dedupe by event id, update a row, announce one event.

Each batch ends with what a relay does: read what was announced, and delete it once it was sent. No
broker takes part, so what is measured is the store: its commits are on the disk, for every way. The
server is the one that ``scripts/services up postgresql`` runs; tables are made anew for each turn.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import asyncpg
import msgspec

from benchmarks import servers
from benchmarks.comparison import Figures, Report, Way, interleave
from benchmarks.machine import Surroundings
from oyez.ports import Announcement, Changes, Claim
from oyez.stores import connect

ACCOUNTS = 1_000
_SCHEMA = "bench_store"
_ACCOUNT = f"""create table account (id text primary key, cents bigint not null);
insert into account select 'account-' || n, 0 from generate_series(0, {ACCOUNTS - 1}) n;"""
_OWN = """create table inbox (event_id text primary key);
create table outbox (seq bigint generated always as identity primary key, key text,
  headers bytea not null, data bytea not null);
create table position (at bigint not null);
insert into position values (0);"""
_encode = msgspec.json.Encoder().encode

Batch = list[tuple[str, str, int]]
"""Event id, account and cents of each event."""


async def run(here: Surroundings) -> Report:
    """The store against asyncpg by hand."""
    url = servers.url("postgresql")
    rows = []
    for size, full in ((256, 6_400), (16, 1_600), (1, 200)):
        count = here.pick(size * 2, full)
        ways = [
            Way("oyez", partial(_turn, by_oyez, here, url, count, size)),
            Way("asyncpg, UNNEST", partial(_turn, _by_sets, here, url, count, size)),
            Way("asyncpg, executemany", partial(_turn, _by_many, here, url, count, size)),
        ]
        rows += await interleave(f"{size} a commit", ways, here.pick(1, 5))
    return Report(
        benchmark="postgres_store",
        about="events a second: dedupe, update a row, announce, relay; above 1 is faster",
        rows=rows,
        notes=[f"{ACCOUNTS:,} rows to update, one connection at work, server on the same machine"],
    )


Job = Callable[[Surroundings, str, list[Batch]], Awaitable[float]]


async def _turn(job: Job, here: Surroundings, url: str, count: int, size: int) -> Figures:
    connection = await _connect(url)
    await connection.execute(f"drop schema if exists {_SCHEMA} cascade; create schema {_SCHEMA}")
    await connection.execute(f"set search_path = {_SCHEMA}; {_ACCOUNT}; {_OWN}; checkpoint")
    events = [(f"event-{n}", f"account-{n % ACCOUNTS}", n) for n in range(count)]
    batches = [events[start : start + size] for start in range(0, count, size)]
    seconds = await job(here, url, batches)
    cents = await connection.fetchval("select sum(cents)::bigint from account")
    await connection.execute(f"drop schema {_SCHEMA} cascade")
    await connection.close()
    if cents != count * (count - 1) // 2:
        raise AssertionError(f"booked {cents} cents")
    return {"events/s": count / seconds}


async def by_oyez(here: Surroundings, url: str, batches: list[Batch]) -> float:
    """As a lane and the relay use the store."""
    store = connect(f"{url}?schema={_SCHEMA}", here.ambient, root=here.folder)
    await store.open()
    cursor = "insert into oyez_cursor (stream, partition, owner, epoch) values ('s', 0, 'me', 1)"
    await store.begin().commit(Changes(writes=[(cursor, [{}])]))
    claim = Claim(stream="s", partition=0, owner="me", epoch=1)
    start = time.perf_counter()
    for number, batch in enumerate(batches):
        identities = [(event_id, "/bench", "book") for event_id, _, _ in batch]
        seen = await store.seen(identities)
        fresh = [event for event in batch if (event[0], "/bench", "book") not in seen]
        update = "update account set cents = cents + :cents where id = :account"
        changes = Changes(
            writes=[
                (update, [{"cents": cents, "account": account} for _, account, cents in fresh])
            ],
            handled=identities,
            announced=[
                Announcement(
                    stream="bench", key=account, headers=_headers(event_id), data=_data(account)
                )
                for event_id, account, _ in fresh
            ],
            claim=claim,
            position=number + 1,
            time=1.0,
        )
        await store.begin().commit(changes)
        rows = await store.outbox(0, 1.0, 512)
        await store.begin().commit(Changes(claim=claim, sent=[row.seq for row in rows]))
    seconds = time.perf_counter() - start
    await store.close()
    return seconds


# -- by hand --------------------------------------------------------------------------------------

_FRESH = """insert into inbox select unnest($1::text[]) on conflict do nothing returning event_id"""
_UPDATE_SET = """update account a set cents = a.cents + e.cents from (select account,
  sum(cents)::bigint as cents from unnest($1::text[], $2::bigint[]) u (account, cents)
  group by account) e where a.id = e.account"""
_ANNOUNCE_SET = """insert into outbox (key, headers, data)
  select * from unnest($1::text[], $2::bytea[], $3::bytea[])"""
_READ = "select seq, key, headers, data from outbox order by seq limit 512"
_SENT = "delete from outbox where seq = any($1::bigint[])"


async def _by_sets(here: Surroundings, url: str, batches: list[Batch]) -> float:
    """The ceiling: a statement for each table, no claims, no retries."""

    async def handle(connection: Any, fresh: Batch) -> None:
        accounts = [account for _, account, _ in fresh]
        await connection.execute(_UPDATE_SET, accounts, [cents for _, _, cents in fresh])
        headers = [_encode(_headers(event_id)) for event_id, _, _ in fresh]
        await connection.execute(_ANNOUNCE_SET, accounts, headers, [_data(a) for a in accounts])

    return await _by_hand(url, batches, handle)


async def _by_many(here: Surroundings, url: str, batches: list[Batch]) -> float:
    """As a careful team writes it."""

    async def handle(connection: Any, fresh: Batch) -> None:
        update = "update account set cents = cents + $1 where id = $2"
        await connection.executemany(update, [(cents, account) for _, account, cents in fresh])
        await connection.executemany(
            "insert into outbox (key, headers, data) values ($1, $2, $3)",
            [(account, _encode(_headers(id_)), _data(account)) for id_, account, _ in fresh],
        )

    return await _by_hand(url, batches, handle)


async def _by_hand(
    url: str, batches: list[Batch], handle: Callable[[Any, Batch], Awaitable[None]]
) -> float:
    connection = await _connect(url)
    await connection.execute(f"set search_path = {_SCHEMA}")
    headers_of = msgspec.json.Decoder(dict[str, str]).decode
    start = time.perf_counter()
    for number, batch in enumerate(batches):
        async with connection.transaction():
            await connection.execute("update position set at = $1", number + 1)
            rows = await connection.fetch(_FRESH, [event_id for event_id, _, _ in batch])
            fresh = {row[0] for row in rows}
            await handle(connection, [event for event in batch if event[0] in fresh])
        sent = await connection.fetch(_READ)
        for row in sent:
            headers_of(row["headers"])
        await connection.execute(_SENT, [row["seq"] for row in sent])
    seconds = time.perf_counter() - start
    await connection.close()
    return seconds


async def _connect(url: str) -> Any:
    return await asyncpg.connect(url)


def _headers(event_id: str) -> dict[str, str]:
    return {"id": event_id, "source": "/bench", "type": "bench.booked"}


def _data(account: str) -> bytes:
    return _encode({"account": account})
