"""Keyed state in several processes: no change is lost, and none costs an attempt."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest

from oyez import Event, brokers, stores
from oyez.ambient import SystemAmbient
from oyez.envelope import format_time
from oyez.partitioning import partition_of
from oyez.ports import Record
from oyez.testing.ticks import until
from oyez.transaction import Announcer, Origin

STREAMS = [f"tally.desk-{n}" for n in range(4)]
PARTITIONS = 8
EVENTS = 25
"""Events that each stream holds of a key."""
REPLICAS = 3
TOML = """[system]
name = "tally"
broker = "embedded:.oyez/events.db"

[services.counter]
app = "counter:service"
store = "{store}"
lease = 2.0
"""
SERVICE = """
from oyez import Event, Service, State, Transaction

class Counted(Event, type="tally.counted", key="account"):
    account: str
    number: int

class Tally(State, key="account"):
    count: int = 0
    numbers: list[int] = []

service = Service("counter")

@service.on(Counted)
async def count(event: Counted, tally: Tally) -> None:
    tally.count += 1
    tally.numbers.append(event.number)

@service.on(Counted, name="by_parity", by=lambda event: event.number % 2)
async def by_parity(event: Counted, tally: Tally, tx: Transaction) -> None:
    assert await tx.fetch("select 1 as one") == [{"one": 1}]
    tally.count += 1
"""


class Counted(Event, type="tally.counted", key="account"):
    """One event of an account."""

    account: str
    number: int


def accounts() -> list[str]:
    """One account for each partition, so that some have their four streams on two replicas."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < PARTITIONS:
        name = f"account-{number}"
        found.setdefault(partition_of(name, PARTITIONS), name)
        number += 1
    return list(found.values())


@pytest.mark.timeout(180)
async def test_events_of_one_key_on_four_streams_and_three_replicas(
    tmp_path: Path, store_url: str
) -> None:
    """One replica is killed on the way: every count is exact, and no attempt was used."""
    (tmp_path / "oyez.toml").write_text(TOML.format(store=store_url))
    (tmp_path / "counter.py").write_text(SERVICE)
    ambient, names = SystemAmbient(), accounts()
    broker = brokers.connect("embedded:.oyez/events.db", ambient, root=tmp_path)
    await broker.open()
    for stream in STREAMS:
        await broker.create(stream, PARTITIONS)
    store = stores.connect(store_url, ambient, root=tmp_path)
    await store.open()
    try:
        with replicas(tmp_path) as running:

            async def handled() -> int:
                (row,) = await store.fetch("select count(*) as n from oyez_inbox", {})
                return int(row["n"])

            async def shared() -> bool:
                sql = """select count(distinct owner) as owners, count(owner) as owned
                  from oyez_cursor where stream <> 'oyez:outbox'"""
                (row,) = await store.fetch(sql, {})
                places = PARTITIONS * len(STREAMS)
                return bool(row["owners"] == REPLICAS and row["owned"] >= places)

            async def begun() -> bool:
                return await handled() > wanted // 8

            wanted = 2 * len(STREAMS) * len(names) * EVENTS

            async def done() -> bool:
                return await handled() == wanted

            await until(shared, 60.0, lambda: logs(tmp_path))
            for number in range(EVENTS):
                await broker.publish(
                    [record for stream in STREAMS for record in backlog(stream, names, number)]
                )
            await until(begun, 60.0, lambda: logs(tmp_path))
            running[0].kill()
            await until(done, 90.0, lambda: logs(tmp_path))
        rows = await store.fetch("select key, data from oyez_state", {})
        tallies = {row["key"]: msgspec.msgpack.decode(row["data"]) for row in rows}
        assert tallies.keys() == {*names, "0", "1"}
        for name in names:
            assert tallies[name]["count"] == len(STREAMS) * EVENTS
            numbers = tallies[name]["numbers"]
            assert sorted(numbers) == sorted(list(range(EVENTS)) * len(STREAMS))
        assert tallies["0"]["count"] + tallies["1"]["count"] == wanted // 2
        assert await store.fetch("select reason from oyez_dead", {}) == []
        used = "select attempt from oyez_inbox where coalesce(attempt, 0) > 0"
        assert await store.fetch(used, {}) == []
    finally:
        await store.close()
        await broker.close()


def backlog(stream: str, names: list[str], number: int) -> Iterator[Record]:
    """One event of each account, for one stream."""
    announcer = Announcer("tally", stream.partition(".")[2], SystemAmbient())
    now = format_time(SystemAmbient().now())
    for name in names:
        row = announcer.announce(Counted(account=name, number=number), Origin(), now, 0.0, None)
        yield Record(stream=stream, key=row.key, headers=row.headers, data=row.data)


@contextmanager
def replicas(root: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes of the service, which are killed at the end."""
    with ExitStack() as stack:
        started = []
        for number in range(REPLICAS):
            log = stack.enter_context((root / f"replica{number}.log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "oyez", "run", "counter"],
                cwd=root,
                env={**os.environ, "OYEZ_PROJECT": str(root), "OYEZ_LOG": "json"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(process)
        yield started


def logs(root: Path) -> str:
    return "\n".join(log.read_text(errors="replace")[-1_500:] for log in root.glob("*.log"))
