"""Streams are explored on every broker that keeps a history, and queues are not."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.errors import BrokerRefused
from oyez.inspection.explore import Sighting, Wanted, arrivals, explore, show
from oyez.ports import Broker, Record
from servers import server

PARTITIONS, EVENTS, KEYS = 4, 600, 20
HISTORIES = ("embedded", "postgresql", "redis", "kafka", "nats", "rabbitmq")


def record(stream: str, number: int) -> Record:
    headers = {"specversion": "1.0", "id": f"e{number}", "source": "/s", "type": "shop.x"}
    return Record(stream=stream, key=f"k{number % KEYS}", headers=headers, data=b'"%d"' % number)


@pytest.fixture(params=HISTORIES)
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    name = request.param
    url = f"embedded:{tmp_path}/events.db" if name == "embedded" else server(name).url
    found = connect(url, SystemAmbient(), root=tmp_path, partitions=PARTITIONS)
    await found.open()
    try:
        yield found
    finally:
        await found.close()


async def every(broker: Broker, stream: str, wanted: Wanted, *, newest: bool) -> list[Sighting]:
    found: list[Sighting] = []
    page = await explore(broker, stream, wanted, newest=newest)
    while True:
        found += page.events
        if not page.at:
            return found
        page = await explore(broker, stream, wanted, newest=newest, at=page.at)


async def _another_time() -> None:
    """Let the clock show another millisecond: what is published then has another time."""
    begun = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == begun:
        await asyncio.sleep(0)


async def test_a_stream_is_explored(broker: Broker) -> None:
    stream = f"shop.{uuid.uuid4().hex}"
    await broker.create(stream, PARTITIONS)
    for start in range(0, EVENTS, 200):
        await broker.publish([record(stream, start + number) for number in range(200)])
        await _another_time()
    async with asyncio.timeout(60):
        for newest in (True, False):
            found = await every(broker, stream, Wanted(), newest=newest)
            assert sorted(int((each.id or "")[1:]) for each in found) == list(range(EVENTS))
            first = {int((each.id or "")[1:]) // 200 for each in found[:50]}
            assert first == {EVENTS // 200 - 1 if newest else 0}
            by_key = await every(broker, stream, Wanted(key="k7"), newest=newest)
            numbers = list(range(7, EVENTS, KEYS))
            assert [each.id for each in by_key] == [
                f"e{number}" for number in (numbers[::-1] if newest else numbers)
            ]
        middle = sorted(each.time for each in found)[EVENTS // 2]
        late = await every(broker, stream, Wanted(since=middle), newest=False)
        assert {each.id for each in late} == {each.id for each in found if each.time >= middle}
        early = await every(broker, stream, Wanted(until=middle), newest=True)
        assert {each.id for each in early} == {each.id for each in found if each.time <= middle}
        one = found[EVENTS // 3]
        shown = await show(broker, stream, one.partition, one.position)
        assert shown.sighting == one
        before = await arrivals(broker, stream, Wanted(), at={})
        await broker.publish([record(stream, EVENTS + number) for number in range(10)])
        now = await arrivals(broker, stream, Wanted(), at=before.at)
        assert sorted(each.id or "" for each in now.events) == [f"e{EVENTS + n}" for n in range(10)]
        assert now.dropped == 0


async def test_a_queue_is_left_alone(tmp_path: Path) -> None:
    queue = connect(f"{server('rabbitmq').url}?queue=quorum", SystemAmbient(), root=tmp_path)
    await queue.open()
    try:
        stream = f"shop.{uuid.uuid4().hex}"
        await queue.create(stream, 1)
        await queue.publish([record(stream, 1)])
        with pytest.raises(BrokerRefused, match="keeps no history"):
            await explore(queue, stream, Wanted())
    finally:
        await queue.close()
