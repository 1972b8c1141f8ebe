"""A replica of `benchmarks.growth`: ``python -m benchmarks.growth_probe FOLDER HANDLERS``.

It does the job of `benchmarks.consume_job` until it is told to end, and then prints the CPU seconds
that it has used since it had started.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from types import new_class

from benchmarks.consume_job import Booked
from oyez import Event, Service, Transaction
from oyez.ambient import SystemAmbient
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.cli.invocation import run_async
from oyez.listening import stop_signals
from oyez.runtime.interpreter import tune
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.stores.sqlite import SqliteStore


def kinds(count: int) -> list[type[Event]]:
    """So many event types, alike but for their names."""
    fields = {"account": str, "order": str, "cents": int}
    return [
        new_class(
            f"Paid{number}",
            (Event,),
            {"type": f"bench.paid{number}", "key": "account"},
            lambda body: body.update(__annotations__=fields),
        )
        for number in range(count)
    ]


def ledger(handlers: int) -> Service:
    """The job, by a handler for each of so many event types."""
    service = Service("ledger", migrations="migrations")

    async def book(event: Event, tx: Transaction) -> Booked:
        sql = "update account set cents = cents + :cents where id = :account"
        tx.execute(sql, cents=event.cents, account=event.account)
        return Booked(account=event.account, order=event.order)

    for number, kind in enumerate(kinds(handlers)):

        async def handle(event: Event, tx: Transaction) -> Booked:
            return await book(event, tx)

        handle.__name__ = handle.__qualname__ = f"book{number}"
        handle.__annotations__["event"] = kind
        service.on(kind)(handle)
    return service


async def replica(folder: Path, handlers: int) -> None:
    """Run until SIGTERM."""
    ambient, stopped = SystemAmbient(), asyncio.Event()
    process = ServiceProcess(
        ledger(handlers),
        ProcessSettings(system="bench", root=folder),
        broker=EmbeddedBroker(folder / "events.db", ambient),
        store=SqliteStore(folder / "ledger.db", ambient),
        ambient=ambient,
        signals=Signals(),
    )
    with stop_signals(stopped.set):
        await process.start()
        before = time.process_time()
        await stopped.wait()
        print(time.process_time() - before)
        await process.drain()


if __name__ == "__main__":
    tune()  # as `oyez run` does
    run_async(replica(Path(sys.argv[1]), int(sys.argv[2])))
