"""The job of `benchmarks.consume_job` on servers: PostgreSQL with NATS JetStream, or with Kafka.

An event comes in, is deduplicated by its id, a row is updated and one event announced, with an
inbox and an outbox. Every way reads a stream of its own with the same events, in a process of its
own, and ends when the broker has confirmed the last announced event. CPU is that process's; the
servers' is not counted, and they share the machine. At the end the sum in the table is checked, and
that each event was announced once.

Every commit is on the disk (``synchronous_commit=on``), as is every message (see
``scripts/services``). By hand (`benchmarks.server_job_by_hand`): batches of 256 from one consumer,
a statement for each table, and a relay beside it. It has no claims, so no second replica; no order
of a key across failures; no retries, dead letters, traces or schema of events; a broken event stops
it. FastStream (`benchmarks.server_job_faststream`) has 8 workers, a transaction a message, and a
relay of batches: no order of a key under NATS either, and no outbox of its own.

The caused event is timed from the publisher's call to the announced event in the hands of a reader,
which are both in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from benchmarks import servers
from benchmarks.broker_log import PARTITIONS
from benchmarks.comparison import Aim, Figures, Report, Row, Way, interleave, percentile
from benchmarks.consume_job import ACCOUNTS, ledger
from benchmarks.embedded_append import make_records
from benchmarks.machine import Surroundings
from oyez.ambient import SystemAmbient
from oyez.brokers import connect as connect_broker
from oyez.cli.invocation import run_async
from oyez.ports import BEGINNING, Broker, Record
from oyez.runtime.interpreter import tune
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import EventsPublished, Signal, Signals
from oyez.stores import connect as connect_store

ACCOUNT = f"""create table account (id text primary key, cents bigint not null);
insert into account select 'account-' || n, 0 from generate_series(0, {ACCOUNTS - 1}) n;"""
WAYS = {
    "oyez": "benchmarks.server_job",
    "by hand": "benchmarks.server_job_by_hand",
    "FastStream, Core, 8 workers": "benchmarks.server_job_faststream",
}
"""Each way's module, whose ``work`` does the job."""
Work = Callable[["Job", Callable[[], None], Callable[[], None]], Coroutine[Any, Any, None]]
"""Does the job; calls the first function when it reads, and the second when all is confirmed."""

_BEHIND = 120.0
"""Seconds that what is announced may come after the last publish, before the turn fails."""
_TICK = 0.002
"""Seconds between two publishes of the latency's publisher, at most."""


class Job(msgspec.Struct, frozen=True):
    """One turn's places, and how many events there are; 0 for no end."""

    kind: str
    broker: str
    postgresql: str
    system: str
    count: int

    @property
    def source(self) -> str:
        """The stream to read."""
        return f"{self.system}.accounts"

    @property
    def target(self) -> str:
        """The stream to announce to."""
        return f"{self.system}.ledger"


class Done(msgspec.Struct, frozen=True):
    """What a process reports at its end."""

    seconds: float
    cpu: float


async def run(here: Surroundings) -> Report:
    """A backlog on both brokers, and the caused event on NATS."""
    ways = dict(WAYS)
    notes = [
        f"{ACCOUNTS:,} keys, {PARTITIONS} partitions, one process; FastStream gets less events"
    ]
    try:
        importlib.import_module(WAYS["FastStream, Core, 8 workers"])
    except ImportError as error:
        del ways["FastStream, Core, 8 workers"]
        notes.append(f"without FastStream: {error}; pip install 'faststream[nats,kafka]'")
    rows: list[Row] = []
    for kind in ("nats", "kafka"):
        counts = {way: here.pick(2_000, 20_000) for way in ways}
        counts["FastStream, Core, 8 workers"] = here.pick(200, 1_000)
        turns = [Way(way, partial(_backlog, here, kind, way, counts[way])) for way in ways]
        rows += await interleave(f"backlog, {kind}", turns, here.pick(1, 5))
    # By hand reaches a tenth of 10,000/s on NATS: each message is one fsync.
    for rate, seconds, peers in (
        (150, here.pick(2, 10), ways),
        (10_000, here.pick(1, 4), ["oyez"]),
    ):
        turns = [Way(way, partial(_caused, here, "nats", way, rate, seconds)) for way in peers]
        rows += await interleave(f"caused event, {rate:,}/s, nats", turns, here.pick(1, 3))
    return Report(
        benchmark="server_job",
        about="the job on PostgreSQL: events/s above 1 is faster, µs and ms below 1 are better",
        rows=rows,
        aims=[
            Aim(
                what=f"the job on PostgreSQL and {kind}, beside {way}",
                case=f"backlog, {kind}",
                figure="events/s",
                way=way,
                at_least=least,
            )
            for kind in ("nats", "kafka")
            for way, least in (("by hand", 0.6), ("FastStream, Core, 8 workers", 40.0))
        ]
        + [
            Aim(
                what=f"caused event at {rate:,}/s, PostgreSQL and NATS, {figure}",
                case=f"caused event, {rate:,}/s, nats",
                figure=figure,
                way="oyez",
                at_most=most,
                absolute=True,
            )
            for rate, figure, most in ((150, "p50 ms", 2.0), (10_000, "p99 ms", 25.0))
        ],
        lacks={
            "by hand": "order per key, claims, fencing, retries, dead letters, traces",
            "FastStream, Core, 8 workers": "order per key over its workers, dead letters, fencing; "
            "a transaction for each message, as its users write it",
        },
        notes=notes,
    )


# -- turns ----------------------------------------------------------------------------------------


async def _backlog(here: Surroundings, kind: str, way: str, count: int) -> Figures:
    async with _places(here, kind, count) as (job, broker, database):
        records = _records(here, job, count)
        for start in range(0, count, 2_000):
            await broker.publish(records[start : start + 2_000])
        process = await _process(way, job)
        try:
            output, _ = await process.communicate()
        finally:
            await _end(process)
        if process.returncode:
            raise AssertionError(f"{way} failed with {process.returncode}")
        done = msgspec.json.decode(output.splitlines()[-1], type=Done)
        await _check(job, broker, database, range(count))
    return {"events/s": count / done.seconds, "client CPU µs": done.cpu / count * 1e6}


async def _caused(here: Surroundings, kind: str, way: str, rate: int, seconds: int) -> Figures:
    """Publish at the rate while a reader waits for what each event causes."""
    count, warm = rate * seconds, rate // 2
    async with _places(here, kind, 0) as (job, broker, database):
        records = _records(here, job, count + warm)
        process = await _process(way, job)
        try:
            assert process.stdout is not None
            await process.stdout.readline()
            waits = await _flow(broker, job, records, rate)
        finally:
            await _end(process)
        await _check(job, broker, database, range(len(records)))
    late = waits[warm:]
    return {"p50 ms": percentile(late, 0.5) * 1e3, "p99 ms": percentile(late, 0.99) * 1e3}


async def _flow(broker: Broker, job: Job, records: list[Record], rate: int) -> list[float]:
    """Publish the records at the rate; return how long each took until its cause came back."""
    sent, came = [0.0] * len(records), [0.0] * len(records)
    left = len(records)
    done = asyncio.Event()

    async def reader(partition: int) -> None:
        nonlocal left
        async for batch in broker.read(job.target, partition, BEGINNING):
            now = time.perf_counter()
            for record in batch.records:
                number = _number(record)
                if not came[number]:
                    came[number] = now
                    left -= 1
            if not left:
                done.set()

    readers = [asyncio.create_task(reader(partition)) for partition in range(PARTITIONS)]
    publishing: set[asyncio.Task[None]] = set()
    start, number = time.perf_counter(), 0
    while number < len(records):
        now = time.perf_counter()
        until = min(len(records), int((now - start) * rate) + 1)
        if until > number:
            sent[number:until] = [now] * (until - number)
            task = asyncio.create_task(broker.publish(records[number:until]))
            publishing.add(task)
            task.add_done_callback(publishing.discard)
            number = until
        await asyncio.sleep(min(_TICK, 1 / rate))
    await asyncio.gather(*publishing)
    async with asyncio.timeout(_BEHIND):
        await done.wait()
    for task in readers:
        task.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    return [end - begin for begin, end in zip(sent, came, strict=True)]


async def _check(job: Job, broker: Broker, database: Any, numbers: Sequence[int]) -> None:
    """Raise AssertionError unless each event was booked and announced once."""
    cents = await database.fetchval(f'select sum(cents)::bigint from "{job.system}".account')
    if cents != sum(numbers):
        raise AssertionError(f"booked {cents} cents, expected {sum(numbers)}")
    announced: list[int] = []
    for partition, count in (await broker.lag(job.target, dict.fromkeys(range(8), 0))).items():
        batches = broker.read(job.target, partition, BEGINNING)
        while count > 0:
            records = (await anext(batches)).records
            announced += map(_number, records)
            count -= len(records)
        await batches.aclose()  # type: ignore[attr-defined]
    if sorted(announced) != list(numbers):
        raise AssertionError(f"announced {len(announced)} events, expected {len(numbers)} others")


def _records(here: Surroundings, job: Job, count: int) -> list[Record]:
    source = f"/{job.system}/accounts"
    return [
        Record(
            stream=job.source,
            key=each.key,
            headers=each.headers | {"source": source},
            data=each.data,
        )
        for each in make_records(here, count)
    ]


def _number(record: Record) -> int:
    order: str = msgspec.json.decode(record.data or b"")["order"]
    return int(order.removeprefix("order-"))


@asynccontextmanager
async def _places(
    here: Surroundings, kind: str, count: int
) -> AsyncIterator[tuple[Job, Broker, Any]]:
    """Streams and a schema that are deleted at the end."""
    job = Job(kind, servers.url(kind), servers.url("postgresql"), f"job{time.time_ns()}", count)
    async with AsyncExitStack() as stack:
        database = await asyncpg.connect(job.postgresql)
        stack.push_async_callback(database.close)
        await database.execute(
            f'create schema "{job.system}"; set search_path = "{job.system}"; {ACCOUNT}; checkpoint'
        )
        stack.push_async_callback(database.execute, f'drop schema "{job.system}" cascade')
        broker = connect_broker(job.broker, here.ambient, root=Path(), partitions=PARTITIONS)
        await broker.open()
        stack.push_async_callback(broker.close)
        for stream in (job.source, job.target):
            await broker.create(stream, PARTITIONS)
            stack.push_async_callback(asyncio.to_thread, _delete, job, stream)
        yield job, broker, database


def _delete(job: Job, stream: str) -> None:
    if job.kind == "kafka":
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": job.broker.removeprefix("kafka://")})
        admin.delete_topics([stream])[stream].result()
        return

    async def delete() -> None:
        import nats

        client = await nats.connect(job.broker)
        await client.jetstream().delete_stream(stream.replace(".", "_"))
        await client.close()

    asyncio.run(delete())


async def _process(way: str, job: Job) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.server_job", way),
        msgspec.json.encode(job).decode(),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        await process.wait()


# -- Oyez -----------------------------------------------------------------------------------------


async def work(job: Job, started: Callable[[], None], ended: Callable[[], None]) -> None:
    """Do the job as a service of Oyez."""
    ambient = SystemAmbient()
    signals = Signals()
    done = asyncio.Event()
    published = 0

    def count(signal: Signal) -> None:
        nonlocal published
        if isinstance(signal, EventsPublished):
            published += signal.events
            if job.count and published >= job.count:
                done.set()

    signals.listen(count)
    group = f"{job.system}.ledger"
    store = connect_store(f"{job.postgresql}?schema={job.system}", ambient, root=Path())
    service = ledger()
    service.migrations = None  # the table is there, as for every way
    process = ServiceProcess(
        service,
        ProcessSettings(system=job.system),
        broker=connect_broker(job.broker, ambient, root=Path(), group=group, partitions=PARTITIONS),
        store=store,
        ambient=ambient,
        signals=signals,
        reads=lambda stream: stream == job.source,
    )
    await process.start()
    started()
    await done.wait()
    ended()
    await process.drain()


def main() -> None:
    """Do one job in this process, until it is done or is terminated, and print `Done`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server_job")
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("job", type=lambda text: msgspec.json.decode(text, type=Job))
    options = parser.parse_args()
    tune()  # as `oyez run` does
    work: Work = importlib.import_module(WAYS[options.way]).work
    began, spent = time.perf_counter(), time.process_time()

    def ended() -> None:
        done = Done(time.perf_counter() - began, time.process_time() - spent)
        print(msgspec.json.encode(done).decode(), flush=True)

    run_async(work(options.job, lambda: print("ready", flush=True), ended))


if __name__ == "__main__":
    main()
