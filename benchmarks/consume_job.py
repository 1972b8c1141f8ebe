"""One job, several ways: dedupe by event id, update a row, announce one event, on SQLite.

Every way begins with the same backlog and ends when the last announced event is confirmed by the
broker; the clock starts when the consumer is told to start. Every commit is durable against a power
loss (WAL with ``synchronous=FULL``; Redis with ``appendfsync always``). The peers' outbox is
relayed in batches, as a careful team would write it.

CPU is that of this process: Redis's own is not in it. The long backlog is for the ways that can
work it off within a minute; there the first 0.1 s, in which a service claims its partitions, do not
count for much.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import apsw
import msgspec

from benchmarks.comparison import Aim, Figures, Report, Way, interleave
from benchmarks.embedded_append import Paid, make_records
from benchmarks.machine import Surroundings
from oyez import Event, Service, Transaction
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.ports import Record, Store
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import EventsPublished, Signal, Signals
from oyez.spans import Tracer
from oyez.stores.sqlite import SqliteStore

ACCOUNTS = 1_000
LEDGER = """
create table account (id text primary key, cents integer not null);
with recursive n (i) as (select 0 union all select i + 1 from n where i < 999)
 insert into account select 'account-' || i, 0 from n;
"""
"""The service's own table, the same for every way."""

Job = Callable[[list[Record]], Awaitable[Figures]]
"""Works off a backlog."""

_HAND, _BATCHES = "apsw batches by hand", "FastStream, Core, batches"
_BATCH = 256
_encode = msgspec.json.Encoder().encode


class Booked(Event, type="bench.booked", key="account"):
    """What the job announces."""

    account: str
    order: str


async def run(here: Surroundings) -> Report:
    """Oyez, FastStream with SQLAlchemy, and batches by hand."""
    count, many = here.pick(500, 5_000), here.pick(2_000, 50_000)
    records = make_records(here, many)
    notes = [
        f"a backlog of {count:,} and of {many:,} events, {ACCOUNTS:,} keys, the whole way to the "
        "broker"
    ]
    jobs: dict[str, Job] = {
        "oyez": partial(by_oyez, here),
        _HAND: partial(_by_hand, here),
    }
    async with AsyncExitStack() as stack:
        try:
            from benchmarks import faststream_job
        except ImportError as error:
            notes.append(f"without FastStream: {error}; pip install 'faststream[redis]' aiosqlite")
        else:
            route, peers = await stack.enter_async_context(faststream_job.route(here))
            notes.append(f"FastStream's events come and go by {route}")
            jobs.update({f"FastStream, {name}": job for name, job in peers.items()})
        ways = [Way(name, partial(job, records[:count])) for name, job in jobs.items()]
        rows = await interleave("backlog", ways, here.pick(2, 5))
        fast = [
            Way(name, partial(job, records))
            for name, job in jobs.items()
            if name in ("oyez", _HAND, _BATCHES)
        ]
        rows += await interleave("long backlog", fast, here.pick(1, 3))
    return Report(
        benchmark="consume_job",
        about="events a second: dedupe, update a row, announce; above 1 is faster",
        rows=rows,
        notes=notes,
        aims=[
            Aim(
                what=f"the job beside {way}",
                case="long backlog",
                figure="events/s",
                way=way,
                at_least=least,
            )
            for way, least in ((_HAND, 0.5), (_BATCHES, 5.0))
        ],
        lacks={
            _HAND: "partitions, claims, fencing, checksums, retries, dead letters, traces, "
            "headers but id and type",
            _BATCHES: "partitions that replicas share, retries, dead letters, traces; the handler "
            "is written for batches",
        },
    )


class Stopwatch:
    """The time and the CPU time of this process since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def figures(self, events: int) -> Figures:
        """What these events took until now."""
        wall = time.perf_counter() - self._wall
        return {
            "events/s": events / wall,
            "events/CPU s": events / (time.process_time() - self._cpu),
        }


# -- Oyez -----------------------------------------------------------------------------------------


def ledger() -> Service:
    """The job as a service."""
    service = Service("ledger", migrations="migrations")

    @service.on(Paid)
    async def book(event: Paid, tx: Transaction) -> Booked:
        tx.execute(
            "update account set cents = cents + :cents where id = :account",
            cents=event.cents,
            account=event.account,
        )
        return Booked(account=event.account, order=event.order)

    return service


async def by_oyez(
    here: Surroundings, records: list[Record], tracer: Tracer | None = None
) -> Figures:
    """The embedded broker in and out, the SQLite store, the outbox and its relay."""
    folder = here.fresh("oyez")
    (folder / "migrations").mkdir()
    (folder / "migrations" / "001_account.sql").write_text(LEDGER)

    async def balanced(store: Store) -> None:
        booked = await store.fetch("select sum(cents) as cents from account", {})
        _check(booked[0]["cents"], records)

    return await serve(here, folder, ledger(), records, balanced, tracer)


async def serve(
    here: Surroundings,
    folder: Path,
    service: Service,
    records: list[Record],
    balanced: Callable[[Store], Awaitable[None]],
    tracer: Tracer | None = None,
) -> Figures:
    """Let a service announce one event for each of a backlog, then look into its store."""
    await fill(here, folder, records)
    signals = Signals()
    process = ServiceProcess(
        service,
        ProcessSettings(system="bench", root=folder),
        broker=EmbeddedBroker(folder / "events.db", here.ambient),
        store=SqliteStore(folder / "ledger.db", here.ambient),
        ambient=here.ambient,
        signals=signals,
        tracer=tracer,
    )
    published = 0
    done = asyncio.Event()

    def count(signal: Signal) -> None:
        nonlocal published
        if isinstance(signal, EventsPublished):
            published += signal.events
            if published >= len(records):
                done.set()

    signals.listen(count)
    watch = Stopwatch()
    await process.start()
    await done.wait()
    figures = watch.figures(len(records))
    await balanced(process.store)
    await process.drain()
    return figures


async def fill(here: Surroundings, folder: Path, records: list[Record]) -> None:
    """Publish the backlog to the embedded broker of a folder."""
    broker = EmbeddedBroker(folder / "events.db", here.ambient)
    await broker.open()
    for index in range(0, len(records), _BATCH):
        await broker.publish(records[index : index + _BATCH])
    await broker.close()


def _check(cents: int, records: list[Record]) -> None:
    wanted = len(records) * (len(records) - 1) // 2
    if cents != wanted:
        raise AssertionError(f"booked {cents} cents, expected {wanted}")


# -- by hand --------------------------------------------------------------------------------------

_LOG = """create table log (position integer primary key, key text, headers blob not null,
 data blob not null)"""
_OWN = """
create table inbox (event_id text primary key) without rowid;
create table outbox (seq integer primary key, key text, headers blob not null, data blob not null);
create table cursor (position integer not null);
insert into cursor values (0);
"""


async def _by_hand(here: Surroundings, records: list[Record]) -> Figures:
    """The ceiling: one thread, batches of 256, two commits a batch, no claims, no retries."""
    folder = here.fresh("hand")
    store = _connect(folder / "ledger.db", LEDGER + _OWN)
    log = _connect(folder / "in.db", _LOG)
    out = _connect(folder / "out.db", _LOG)
    log.executemany(
        "insert into log (key, headers, data) values (?, ?, ?)",
        [(r.key, _encode(r.headers), r.data) for r in records],
    )
    watch = Stopwatch()
    _work_off(store, log, out)
    figures = watch.figures(len(records))
    _check(store.execute("select sum(cents) from account").get, records)
    for connection in (store, log, out):
        connection.close()
    return figures


def _work_off(store: apsw.Connection, log: apsw.Connection, out: apsw.Connection) -> None:
    """Work off the log, 256 at a time."""
    decode = msgspec.json.Decoder(Paid).decode
    headers_of = msgspec.json.Decoder(dict[str, str]).decode
    encode = msgspec.json.Encoder().encode
    position, sent = 0, 0
    read = "select position, headers, data from log where position > ? order by position limit 256"
    while True:
        rows = list(log.execute(read, (position,)))
        store.execute("begin immediate")
        store.execute("delete from outbox where seq <= ?", (sent,))
        writes, announced = [], []
        for _, headers, data in rows:
            event_id = headers_of(headers)["id"]
            fresh = store.execute("insert or ignore into inbox values (?) returning 1", (event_id,))
            if fresh.get is None:
                continue
            event = decode(data)
            writes.append((event.cents, event.account))
            booked = Booked(account=event.account, order=event.order)
            announced.append(
                (event.account, encode({"id": event_id, "type": "bench.booked"}), encode(booked))
            )
        store.executemany("update account set cents = cents + ? where id = ?", writes)
        store.executemany("insert into outbox (key, headers, data) values (?, ?, ?)", announced)
        sent = store.last_insert_rowid()
        if rows:
            position = rows[-1][0]
        store.execute("update cursor set position = ?", (position,))
        store.execute("commit")
        if not rows:
            return
        with out:
            out.executemany("insert into log (key, headers, data) values (?, ?, ?)", announced)


def _connect(path: Path, schema: str) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=full")
    connection.execute(schema)
    return connection
