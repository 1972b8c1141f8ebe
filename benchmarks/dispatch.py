"""What decode and dispatch cost an event, beside a bare loop that decodes and calls.

A lane reads a memory broker and commits to a store that keeps nothing, so neither a disk nor SQLite
is in the figure: envelope, duplicates within the batch, decoding, the call, the unit of work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from benchmarks.comparison import Aim, Figures, Report, Way, interleave
from benchmarks.embedded_append import Paid, make_records
from benchmarks.machine import Surroundings
from oyez import Service, Transaction
from oyez.brokers.memory.broker import MemoryBroker
from oyez.ports import BEGINNING, Changes, Claim, Parameters, Record, Row, Writes
from oyez.runtime.batches import Batches
from oyez.runtime.calls import Calls
from oyez.runtime.commits import Commits
from oyez.runtime.execution import Execution
from oyez.runtime.handlers import Handlers
from oyez.runtime.lane import Chains, Lane
from oyez.runtime.loop import Bell
from oyez.runtime.reading import Reading
from oyez.runtime.reports import Reports
from oyez.signals import BatchHandled, Signal, Signals
from oyez.stores.sqlite import SqliteStore
from oyez.transaction import Announcer

_SQL = "update account set cents = cents + :cents where id = :account"


class ForgetfulStore(SqliteStore):
    """A store that has seen nothing and keeps nothing."""

    async def seen(
        self, events: Sequence[tuple[str, str, str]], reader: str = ""
    ) -> set[tuple[str, str, str]]:
        """Nothing was handled before."""
        return set()

    def begin(self) -> ForgetfulTransaction:  # type: ignore[override]
        """A transaction that leaves nothing behind."""
        return ForgetfulTransaction()


class ForgetfulTransaction:
    """Commits nothing."""

    async def fetch(self, sql: str, parameters: Parameters, before: Writes) -> list[Row]:
        """No rows."""
        return []

    async def commit(self, changes: Changes) -> None:
        """Forget it."""

    async def rollback(self) -> None:
        """Nothing to undo."""


async def run(here: Surroundings) -> Report:
    """Handlers that do nothing, queue one write, announce one event."""
    count = here.pick(1_024, 20_480)
    rounds = here.pick(3, 15)
    broker = MemoryBroker(here.ambient, partitions=1)
    await broker.publish(make_records(here, count))
    records = broker.logs["bench.accounts"][0]
    rows = []
    for case, service, by_hand in (
        ("does nothing", _idle(), _decode_and_call),
        ("queues one write", _writing(), _decode_and_write),
        ("announces one event", _announcing(), None),
    ):
        ways = [Way("oyez", partial(_lane, here, broker, service, count))]
        if by_hand is not None:
            ways.append(Way("bare loop", partial(by_hand, records)))
        rows += await interleave(case, ways, rounds)
    return Report(
        benchmark="dispatch",
        about="µs an event for decode and dispatch; above 1 is dearer than the bare loop",
        rows=rows,
        notes=["the bare loop: msgspec decodes the data, an async function is called"],
        aims=[
            Aim(
                what="dispatch with decode",
                case="does nothing",
                figure="µs/event",
                way="oyez",
                at_most=4.0,
                absolute=True,
            )
        ],
        lacks={
            "bare loop": "envelope, checks of it, duplicates, lanes, units of work, errors",
        },
    )


def _idle() -> Service:
    service = Service("idle")

    @service.on(Paid)
    async def nothing(event: Paid, tx: Transaction) -> None:
        pass

    return service


def _writing() -> Service:
    service = Service("writing")

    @service.on(Paid)
    async def book(event: Paid, tx: Transaction) -> None:
        tx.execute(_SQL, account=event.account, cents=event.cents)

    return service


def _announcing() -> Service:
    service = Service("announcing")

    @service.on(Paid)
    async def pass_on(event: Paid, tx: Transaction) -> Paid:
        return event

    return service


async def _lane(here: Surroundings, broker: MemoryBroker, service: Service, count: int) -> Figures:
    signals = Signals()
    ambient = here.ambient
    store = ForgetfulStore(here.folder / "never-opened.db", ambient)
    commits = Commits(store, Announcer("bench", service.name, ambient), ambient)
    reports = Reports(service.name, signals)
    handlers = Handlers("bench", service.name, service.handlers)
    handlers.bind({})
    lane = Lane(
        Claim(stream="bench.accounts", partition=0, owner="bench", epoch=1),
        BEGINNING,
        Chains({}, ambient),
        broker=broker,
        commits=commits,
        ambient=ambient,
        reports=reports,
        work=Bell(ambient),
    )
    with ThreadPoolExecutor(1) as threads:
        execution = Execution(Calls(handlers, ambient, threads), commits, ambient, reports)
        batches = Batches(
            lane,
            handlers,
            execution,
            broker=broker,
            commits=commits,
            ambient=ambient,
            reports=reports,
        )
        reading = Reading(lane, batches, broker=broker, ambient=ambient, reports=reports)
        return await _read(reading, signals, count)


async def _read(reading: Reading, signals: Signals, count: int) -> Figures:
    handled = 0
    done = asyncio.Event()

    def count_up(signal: Signal) -> None:
        nonlocal handled
        if isinstance(signal, BatchHandled):
            handled += signal.events
            if handled >= count:
                done.set()

    signals.listen(count_up)
    start = time.perf_counter()
    reading.start()
    await done.wait()
    seconds = time.perf_counter() - start
    await reading.stop()
    return {"µs/event": seconds / count * 1e6}


async def _decode_and_call(records: Sequence[Record]) -> Figures:
    decode = msgspec.json.Decoder(Paid).decode

    async def nothing(event: Paid) -> None:
        pass

    start = time.perf_counter()
    for record in records:
        await nothing(decode(record.data or b""))
    return {"µs/event": (time.perf_counter() - start) / len(records) * 1e6}


async def _decode_and_write(records: Sequence[Record]) -> Figures:
    decode = msgspec.json.Decoder(Paid).decode
    queue: list[tuple[str, dict[str, object]]] = []

    async def book(event: Paid) -> None:
        queue.append((_SQL, {"account": event.account, "cents": event.cents}))

    start = time.perf_counter()
    for record in records:
        await book(decode(record.data or b""))
    return {"µs/event": (time.perf_counter() - start) / len(records) * 1e6}
