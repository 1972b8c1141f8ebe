"""A handler that keeps state against one that queues the same change as SQL.

Both count the cents of an account, on the whole way from the embedded broker to the end of their
commits; neither announces anything. An account is a row of ``oyez_state`` for one, and a row of a
table of its own for the other. CPU is that of the process; PostgreSQL's own is not in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from benchmarks import servers
from benchmarks.comparison import Aim, Figures, Report, Way, interleave
from benchmarks.consume_job import fill
from benchmarks.embedded_append import Paid, make_records
from benchmarks.machine import Surroundings
from benchmarks.servers import NotRunning
from oyez import Service, State, Transaction
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.ports import Changes, Record, Store
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import BatchHandled, Signal, Signals
from oyez.stores import connect

_SCHEMA = "bench_state"
_TABLE = "create table account (id text primary key, cents bigint not null);"
_BOOK = """insert into account (id, cents) values (:account, :cents)
 on conflict (id) do update set cents = account.cents + excluded.cents"""


class Account(State, key="account"):
    """The sum of an account."""

    cents: int = 0


async def run(here: Surroundings) -> Report:
    """State and SQL, on each store."""
    count = here.pick(2_000, 20_000)
    records = make_records(here, count)
    notes = [f"a backlog of {count:,} events, 1,000 keys, batches of 256"]
    stores: dict[str, Callable[[], Store]] = {}
    stores["sqlite"] = lambda: connect("sqlite:ledger.db", here.ambient, root=here.fresh("store"))
    try:
        url = servers.url("postgresql")
    except NotRunning as error:
        notes.append(f"without PostgreSQL: {error}")
    else:
        stores["postgresql"] = lambda: connect(
            f"{url}?schema={_SCHEMA}", here.ambient, root=here.folder
        )
    rows = []
    for name, store in stores.items():
        ways = [
            Way("State", partial(_turn, here, store, by_state, records)),
            Way("tx.execute", partial(_turn, here, store, by_sql, records)),
        ]
        rows += await interleave(name, ways, here.pick(1, 7))
    return Report(
        benchmark="keyed_state",
        about="events handled a second, and a second of CPU; above 1 is faster",
        rows=rows,
        aims=[
            Aim(
                what=f"keyed state on {name}, events a second of CPU beside tx.execute",
                case=name,
                figure="events/CPU s",
                way="tx.execute",
                at_least=0.67,
            )
            for name in ("sqlite", "postgresql")
        ],
        lacks={"tx.execute": "no lock of the row from its reading to the commit"},
        notes=notes,
    )


def by_state() -> Service:
    """The change as an object's."""
    service = Service("ledger")

    @service.on(Paid)
    async def book(event: Paid, account: Account) -> None:
        account.cents += event.cents

    return service


def by_sql() -> Service:
    """The change as one queued statement."""
    service = Service("ledger")

    @service.on(Paid)
    async def book(event: Paid, tx: Transaction) -> None:
        tx.execute(_BOOK, account=event.account, cents=event.cents)

    return service


async def _turn(
    here: Surroundings,
    connect_store: Callable[[], Store],
    make: Callable[[], Service],
    records: list[Record],
) -> Figures:
    folder = here.fresh("broker")
    await fill(here, folder, records)
    store = connect_store()
    await empty(store, _SCHEMA)
    signals, done, handled = Signals(), asyncio.Event(), 0

    def count(signal: Signal) -> None:
        nonlocal handled
        if isinstance(signal, BatchHandled):
            handled += signal.events
            if handled >= len(records):
                done.set()

    signals.listen(count)
    service = make()
    process = ServiceProcess(
        service,
        ProcessSettings(system="bench", root=folder),
        broker=EmbeddedBroker(folder / "events.db", here.ambient),
        store=store,
        ambient=here.ambient,
        signals=signals,
    )
    start, cpu = time.perf_counter(), time.process_time()
    await process.start()
    await done.wait()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    await _check(service, store, records)
    await process.drain()
    return {"events/s": len(records) / seconds, "events/CPU s": len(records) / cpu}


async def empty(store: Store, schema: str) -> None:
    """Make the tables anew, with the service's own."""
    await store.open()
    if store.begin().dialect == "postgresql":
        tx = store.begin()
        await tx.run(f"drop schema {schema} cascade", [()], [])
        await tx.run(f"create schema {schema}", [()], [])
        await tx.commit(Changes())
        await store.close()
        await store.open()
    await store.migrate([("001_account.sql", _TABLE)])


async def _check(service: Service, store: Store, records: list[Record]) -> None:
    wanted = len(records) * (len(records) - 1) // 2
    rows = await store.fetch("select coalesce(sum(cents), 0) as cents from account", {})
    found = int(rows[0]["cents"])
    if not found:
        for number in range(1_000):
            account = await service.read(Account, f"account-{number}")
            found += 0 if account is None else account.cents
    if found != wanted:
        raise AssertionError(f"booked {found} cents, expected {wanted}")
