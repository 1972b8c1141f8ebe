"""Parked events: handlers without a transaction, and events that waited behind one that failed.

``drain``: the events are parked already, for a handler that returns at once and leaves one write to
the commit. ``smooth``: the same from a backlog of the embedded broker, so each event is parked
first. ``behind``: a handler with a transaction that fails at the first event of each key, so that
all later ones of the key wait for its retry. ``outage``: a backlog as it is there after a broker's
outage, while 80 events a second come in; its figure is the backlog's end in seconds.

By hand there is a loop that takes the rows in order, awaits the handler and writes the same: its
row and the end of the inbox row, one event a commit or 256. It has no claims, no retries, no order
within a key, no limit of calls, and one failure would undo its whole batch. CPU is that of the
process; PostgreSQL's own is not in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import apsw
import asyncpg
import msgspec

from benchmarks import servers
from benchmarks.comparison import Aim, Figures, Report, Row, Way, interleave
from benchmarks.consume_job import fill
from benchmarks.embedded_append import Paid, make_records
from benchmarks.keyed_state import empty
from benchmarks.machine import Surroundings
from benchmarks.servers import NotRunning
from oyez import After, Context, Retry, Service, Transaction
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.brokers.memory.broker import MemoryBroker
from oyez.partitioning import partition_of
from oyez.ports import Broker, Changes, Parked, Record, Store
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.stores import connect

PARTITIONS = 8
FAILING = 30
"""The number of keys that fail at their first event: all that there are then."""
INFLOW = 80
"""Events a second that come in beside the backlog."""
_SCHEMA = "bench_parked"
_BOOK = """insert into account (id, cents) values (:account, :cents)
 on conflict (id) do update set cents = account.cents + excluded.cents"""
_LEFT = "select seq from oyez_inbox where state > 0 limit 1"
_HANDLED = "select count(*) as events from oyez_inbox where state = 0"


async def run(here: Surroundings) -> Report:
    """Every case on SQLite, and on PostgreSQL if it runs."""
    count = here.pick(1_000, 10_000)
    rounds = here.pick(1, 5)
    records, few_keys = make_records(here, count), make_records(here, count, FAILING)
    notes = [
        f"{count:,} events, 1,000 keys, {PARTITIONS} partitions; behind {FAILING} keys that fail"
    ]
    stores: dict[str, Callable[[], Store]] = {}
    stores["sqlite"] = lambda: connect("sqlite:ledger.db", here.ambient, root=here.fresh("store"))
    try:
        url = servers.url("postgresql")
    except NotRunning as error:
        url = ""
        notes.append(f"without PostgreSQL: {error}")
    else:
        stores["postgresql"] = lambda: connect(
            f"{url}?schema={_SCHEMA}", here.ambient, root=here.folder
        )
    rows: list[Row] = []
    for name, store in stores.items():
        by_hand = _on_sqlite if name == "sqlite" else partial(_on_postgres, url)
        ways = [
            Way("oyez", partial(_drain, here, store, records)),
            Way("256 a commit by hand", partial(by_hand, here, records, 256)),
            Way("1 a commit by hand", partial(by_hand, here, records[: count // 10], 1)),
        ]
        rows += await interleave(f"{name}, drain", ways, rounds)
        for case, make, events in (
            ("smooth", calling, records),
            ("behind", failing_first, few_keys),
        ):
            way = Way("oyez", partial(_from_backlog, here, store, make, events))
            rows += await interleave(f"{name}, {case}", [way], rounds)
    backlog = here.pick(1_000, 20_000)
    events = make_records(here, backlog + here.pick(30, 300) * INFLOW)
    for name, store in stores.items():
        way = Way("oyez", partial(_after_outage, here, store, events, backlog))
        rows += await interleave(f"{name}, outage of {backlog:,}", [way], 1)
    return Report(
        benchmark="parked",
        about="parked events handled a second, and a second of CPU; above 1 is faster",
        rows=rows,
        aims=[
            Aim(
                what=f"parked events handled a second, 1,000 keys, {name}",
                case=f"{name}, drain",
                figure="events/s",
                way="oyez",
                at_least=10_000,
                absolute=True,
            )
            for name in stores
        ]
        + [
            Aim(
                what=f"seconds until a backlog of {backlog:,} after an outage is gone, {name}",
                case=f"{name}, outage of {backlog:,}",
                figure="seconds",
                way="oyez",
                at_most=30,
                absolute=True,
            )
            for name in stores
        ],
        lacks=dict.fromkeys(
            ("256 a commit by hand", "1 a commit by hand"),
            "order per key, retries, a limit of calls at once, replicas, protection from poison",
        ),
        notes=notes,
    )


class Calls:
    """The number of calls of a handler that did not fail."""

    made = 0


def calling(calls: Calls) -> Service:
    """A handler that runs beside the lane, and returns at once."""
    service = Service("ledger")

    @service.on(Paid)
    async def book(event: Paid, after: After) -> None:
        after.execute(_BOOK, account=event.account, cents=event.cents)
        calls.made += 1

    return service


def failing_first(calls: Calls) -> Service:
    """A handler in the lane's transaction that fails at the first event of each key."""
    service = Service("ledger")

    @service.on(Paid, retry=Retry(first=0.2, jitter=0.0))
    async def book(event: Paid, tx: Transaction, context: Context) -> None:
        if event.cents < FAILING and context.attempt == 1:
            raise ValueError("not yet")
        calls.made += 1
        tx.execute(_BOOK, account=event.account, cents=event.cents)

    return service


async def _drain(
    here: Surroundings, connect_store: Callable[[], Store], records: list[Record]
) -> Figures:
    store = connect_store()
    await empty(store, _SCHEMA)
    events = [_parked(number, record) for number, record in enumerate(records)]
    for start in range(0, len(events), 256):
        await store.begin().commit(Changes(parked=events[start : start + 256], time=1.0))
    broker = MemoryBroker(here.ambient, partitions=PARTITIONS)
    await broker.create(records[0].stream, PARTITIONS)
    return await _work_off(here, calling, broker, store, records)


async def _from_backlog(
    here: Surroundings,
    connect_store: Callable[[], Store],
    make: Callable[[Calls], Service],
    records: list[Record],
) -> Figures:
    store = connect_store()
    await empty(store, _SCHEMA)
    folder = here.fresh("broker")
    await fill(here, folder, records)
    broker = EmbeddedBroker(folder / "events.db", here.ambient)
    return await _work_off(here, make, broker, store, records)


async def _work_off(
    here: Surroundings,
    make: Callable[[Calls], Service],
    broker: Broker,
    store: Store,
    records: list[Record],
) -> Figures:
    calls = Calls()
    process = _process(here, make(calls), broker, store)
    start, cpu = time.perf_counter(), time.process_time()
    await process.start()
    await _until_handled(store, calls, len(records))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    await _check(store, records)
    await process.drain()
    return {"events/s": len(records) / seconds, "events/CPU s": len(records) / cpu}


async def _after_outage(
    here: Surroundings, connect_store: Callable[[], Store], records: list[Record], backlog: int
) -> Figures:
    store = connect_store()
    await empty(store, _SCHEMA)
    folder = here.fresh("broker")
    await fill(here, folder, records[:backlog])
    broker = EmbeddedBroker(folder / "events.db", here.ambient)
    added = backlog
    over = asyncio.Event()

    async def inflow() -> None:
        nonlocal added
        while not over.is_set() and added < len(records):
            wanted = backlog + int((time.perf_counter() - start) * INFLOW)
            if added < wanted:
                await broker.publish(records[added:wanted])
                added = min(wanted, len(records))
            await asyncio.sleep(0.1)

    calls = Calls()
    process = _process(here, calling(calls), broker, store)
    start, cpu = time.perf_counter(), time.process_time()
    await process.start()
    coming = asyncio.create_task(inflow())
    # What came in meanwhile counts: the backlog is gone when the service keeps up again.
    while calls.made < added - INFLOW // 5:
        await asyncio.sleep(0.01)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    over.set()
    await coming
    await _until_handled(store, calls, added)
    await _check(store, records[:added])
    await process.drain()
    return {"seconds": seconds, "CPU s": cpu}


def _process(here: Surroundings, service: Service, broker: Broker, store: Store) -> ServiceProcess:
    return ServiceProcess(
        service,
        ProcessSettings(system="bench", root=here.folder),
        broker=broker,
        store=store,
        ambient=here.ambient,
        signals=Signals(),
    )


def _parked(number: int, record: Record) -> Parked:
    key = record.key or ""
    return Parked(
        event_id=record.headers["id"],
        source=record.headers["source"],
        handler="book",
        stream=record.stream,
        partition=partition_of(key, PARTITIONS),
        position=number + 1,
        chain=key,
        due=0.0,
        attempt=0,
        history=[],
        key=key,
        headers=record.headers,
        data=record.data,
    )


async def _until_handled(store: Store, calls: Calls, count: int) -> None:
    while calls.made < count or await _handled(store) < count:
        await asyncio.sleep(0.005 if calls.made < count else 0.02)
    if await store.fetch(_LEFT, {}):
        raise AssertionError(f"more than {count} events were there")


async def _handled(store: Store) -> int:
    (row,) = await store.fetch(_HANDLED, {})
    return int(row["events"])


async def _check(store: Store, records: list[Record]) -> None:
    (row,) = await store.fetch("select coalesce(sum(cents), 0) as cents from account", {})
    _equal(row["cents"], records)


def _equal(found: Any, records: list[Record]) -> None:
    wanted = len(records) * (len(records) - 1) // 2
    if found != wanted:
        raise AssertionError(f"booked {found} cents, expected {wanted}")


# -- by hand --------------------------------------------------------------------------------------

_decode = msgspec.json.Decoder(Paid).decode
_headers_of = msgspec.json.Decoder(dict[str, str]).decode


async def _called(event: Paid) -> tuple[str, int]:
    return event.account, event.cents


def _rows(records: list[Record]) -> list[tuple[bytes, bytes]]:
    return [(msgspec.json.encode(r.headers), r.data or b"") for r in records]


async def _on_sqlite(here: Surroundings, records: list[Record], size: int) -> Figures:
    connection = apsw.Connection(str(here.fresh("hand") / "ledger.db"))
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=full")
    connection.execute("create table account (id text primary key, cents integer not null)")
    connection.execute("""create table inbox (seq integer primary key, state integer not null,
     headers blob, data blob); create index inbox_due on inbox (seq) where state = 2""")
    connection.executemany(
        "insert into inbox (state, headers, data) values (2, ?, ?)", _rows(records)
    )
    book = """insert into account values (?, ?)
     on conflict do update set cents = cents + excluded.cents"""
    settle = "update inbox set state = 0, headers = null, data = null where seq = ? and state = 2"
    take = "select seq, headers, data from inbox where state = 2 order by seq limit 256"
    start, cpu = time.perf_counter(), time.process_time()
    while rows := connection.execute(take).fetchall():
        for first in range(0, len(rows), size):
            writes, settled = [], []
            for seq, headers, data in rows[first : first + size]:
                _headers_of(headers)
                writes.append(await _called(_decode(data)))
                settled.append((seq,))
            connection.execute("begin immediate")
            connection.executemany(book, writes)
            connection.executemany(settle, settled)
            connection.execute("commit")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    _equal(connection.execute("select sum(cents) from account").get, records)
    connection.close()
    return {"events/s": len(records) / seconds, "events/CPU s": len(records) / cpu}


async def _on_postgres(url: str, here: Surroundings, records: list[Record], size: int) -> Figures:
    connection: Any = await asyncpg.connect(url)
    await connection.execute(f"""drop schema if exists {_SCHEMA}_hand cascade;
     create schema {_SCHEMA}_hand; set search_path = {_SCHEMA}_hand;
     create table account (id text primary key, cents bigint not null);
     create table inbox (seq bigint generated always as identity primary key,
      state int not null default 2, headers bytea, data bytea);
     create index inbox_due on inbox (seq) where state = 2""")
    add = "insert into inbox (headers, data) values ($1, $2)"
    await connection.executemany(add, _rows(records))
    book = """insert into account values ($1, $2)
     on conflict (id) do update set cents = account.cents + excluded.cents"""
    settle = """update inbox set state = 0, headers = null, data = null
     where seq = any($1::bigint[]) and state = 2"""
    take = "select seq, headers, data from inbox where state = 2 order by seq limit 256"
    start, cpu = time.perf_counter(), time.process_time()
    while rows := await connection.fetch(take):
        for first in range(0, len(rows), size):
            writes, settled = [], []
            for seq, headers, data in rows[first : first + size]:
                _headers_of(headers)
                writes.append(await _called(_decode(data)))
                settled.append(seq)
            async with connection.transaction():
                await connection.executemany(book, writes)
                await connection.execute(settle, settled)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    _equal(await connection.fetchval("select sum(cents)::bigint from account"), records)
    await connection.execute(f"drop schema {_SCHEMA}_hand cascade")
    await connection.close()
    return {"events/s": len(records) / seconds, "events/CPU s": len(records) / cpu}
