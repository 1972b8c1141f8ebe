"""Windows in processes that are killed one after the other: each closes once, and whole."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from oyez import Event, brokers, stores
from oyez.ambient import SystemAmbient
from oyez.contract import decode
from oyez.envelope import format_time
from oyez.errors import OyezError
from oyez.event import describe
from oyez.ports import BEGINNING, Broker, Record, Store
from oyez.testing.ticks import until
from oyez.transaction import Announcer, Origin

SENSORS = 40
READINGS = 12_000
SIZE = 2.0
LATE = 1.0
BEGIN = 1_767_225_600.0
"""When the first window begins: 2026-01-01, long before the events are handled."""
KILLS = 6
PARTITIONS = 4
SEED = 20261129
TOML = """[system]
name = "plant"
broker = "embedded:.oyez/events.db"

[services.measure]
app = "measure:service"
store = "{store}"
lease = 1.0
"""
SERVICE = f"""
from oyez import Event, Service, Window

class Reading(Event, type="plant.reading", key="sensor"):
    sensor: str
    at: float
    value: int

class Measured(Event, type="plant.measured", key="sensor"):
    sensor: str
    start: float
    count: int
    total: int

class CameLate(Event, type="plant.late", key="sensor"):
    sensor: str

class Span(Window, key="sensor", size={SIZE}, late={LATE}):
    count: int = 0
    total: int = 0

    def add(self, event: Reading) -> None:
        self.count += 1
        self.total += event.value

    def close(self) -> Measured:
        start = self.start.timestamp()
        return Measured(sensor=self.key, start=start, count=self.count, total=self.total)

    def late(self, event: Reading) -> CameLate:
        return CameLate(sensor=self.key)

service = Service("measure")
service.window(Span, Reading, time="at")
"""


class Reading(Event, type="plant.reading", key="sensor"):
    """What a sensor measured, and when, in seconds since 1970."""

    sensor: str
    at: float
    value: int


class Measured(Event, type="plant.measured", key="sensor"):
    """A window of a sensor that has closed."""

    sensor: str
    start: float
    count: int
    total: int


def readings() -> list[Reading]:
    """Readings of all sensors, in an order that is wrong by less than the lateness."""
    choice = random.Random(SEED)
    made = [
        Reading(
            sensor=f"s{number % SENSORS:02}",
            at=round(BEGIN + number // SENSORS * 0.2, 3),
            value=choice.randrange(1000),
        )
        for number in range(READINGS)
    ]
    return sorted(made, key=lambda each: each.at + choice.random() * LATE * 0.9)


def expected() -> dict[tuple[str, float], tuple[int, int]]:
    """The count and the total of each window, by sensor and start."""
    count, total = Counter[tuple[str, float]](), Counter[tuple[str, float]]()
    for each in readings():
        place = (each.sensor, BEGIN + (each.at - BEGIN) // SIZE * SIZE)
        count[place] += 1
        total[place] += each.value
    return {place: (count[place], total[place]) for place in count}


@pytest.mark.timeout(240)
async def test_each_window_closes_once_and_whole_while_replicas_are_killed(
    tmp_path: Path, store_url: str
) -> None:
    (tmp_path / "oyez.toml").write_text(TOML.format(store=store_url))
    (tmp_path / "measure.py").write_text(SERVICE)
    ambient, wanted = SystemAmbient(), expected()
    broker = brokers.connect(
        "embedded:.oyez/events.db", ambient, root=tmp_path, partitions=PARTITIONS
    )
    await broker.open()
    await broker.create("plant.sensors", PARTITIONS)
    store = stores.connect(store_url, ambient, root=tmp_path)
    announcer = Announcer("plant", "sensors", ambient)
    records = []
    for each in readings():
        row = announcer.announce(each, Origin(), format_time(ambient.now()), 0.0, None)
        records.append(Record(stream=row.stream, key=row.key, headers=row.headers, data=row.data))
    for first in range(0, READINGS, 500):
        await broker.publish(records[first : first + 500])
    running = [start(tmp_path, number) for number in range(2)]
    try:

        async def handled(share: float) -> bool:
            (row,) = await store.fetch("select count(*) as n from oyez_inbox", {})
            return bool(row["n"] >= READINGS * share)

        await until(lambda: exists(store), 60.0, lambda: logs(tmp_path))
        killed_within = 0
        for kill in range(KILLS):
            share = (kill + 1) / (KILLS + 2)
            await until(partial(handled, share), 60.0, lambda: logs(tmp_path))
            killed_within += not await handled(1.0)
            running[kill % 2].kill()
            await asyncio.to_thread(running[kill % 2].wait)
            running[kill % 2] = start(tmp_path, kill + 2)

        assert killed_within > KILLS // 2

        async def closed() -> bool:
            return len(await measured(broker)) >= len(wanted)

        await until(closed, 90.0, lambda: logs(tmp_path))
        found = await measured(broker)
        assert {place: (each.count, each.total) for place, each in found.items()} == wanted
        assert await store.fetch("select reason from oyez_dead", {}) == []
    finally:
        for process in running:
            process.kill()
            process.wait()
        await store.close()
        await broker.close()


async def exists(store: Store) -> bool:
    """Whether the store can be read: its tables are made by the service."""
    try:
        await store.open()
        await store.fetch("select 1 as one from oyez_inbox limit 1", {})
    except OyezError:
        return False
    return True


async def measured(broker: Broker) -> dict[tuple[str, float], Measured]:
    """The windows that were announced, each under one event id; none was late."""
    found: dict[tuple[str, float], Measured] = {}
    ids: dict[tuple[str, float], str] = {}
    for partition, end in enumerate(await broker.ends("plant.measure")):
        position = BEGINNING
        while position < end:
            reader = broker.read("plant.measure", partition, position)
            batch = await anext(reader)
            await reader.aclose()  # type: ignore[attr-defined]
            position = batch.records[-1].position
            for record in batch.records:
                assert record.headers["type"] == describe(Measured).name
                event = decode(describe(Measured), record.data or b"")
                assert isinstance(event, Measured)
                place = (event.sensor, event.start)
                # A relay that is killed sends what it sent once more, under the same id.
                assert ids.setdefault(place, record.headers["id"]) == record.headers["id"]
                found[place] = event
    return found


def start(root: Path, number: int) -> subprocess.Popen[bytes]:
    """A process of the service."""
    with (root / f"replica{number}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "oyez", "run", "measure"],
            cwd=root,
            env={**os.environ, "OYEZ_PROJECT": str(root), "OYEZ_LOG": "json"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def logs(root: Path) -> str:
    return "\n".join(log.read_text(errors="replace")[-1_500:] for log in root.glob("*.log"))
