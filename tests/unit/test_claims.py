"""Claims that were committed and never came to be held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oyez import Event, Service, Transaction, tables
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import StoreUnavailable
from oyez.ports import Parameters, Record, Row
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.stores.sqlite import SqliteStore
from oyez.testing import VirtualAmbient


class Placed(Event, type="shop.placed", key="order"):
    order: str


class Fails(SqliteStore):
    """Out of reach for a moment, after the claims and before their lanes began."""

    left = 0
    """How often it fails; below 0 for ever."""

    async def fetch(self, sql: str, parameters: Parameters) -> list[Row]:
        if self.left and sql is tables.BLOCKED:
            self.left -= 1
            raise StoreUnavailable("for a moment")
        return await super().fetch(sql, parameters)


async def test_a_partition_that_nobody_reads_fails_readiness_within_30_seconds(
    tmp_path: Path,
) -> None:
    """Its claim is in our own name; no lane is there to say that it stands still (G5)."""
    process, store, _ = await _started(tmp_path, failures=-1)
    await process.ambient.advance(30.0)
    reasons = process.health.readiness()
    assert any("shop.till[7] has been read by no replica for" in reason for reason in reasons)
    store.left = 0
    await process.ambient.advance(10.0)
    assert process.health.readiness() == []
    await process.drain()


async def test_claims_that_are_not_renewed_fail_readiness_within_30_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, _, _ = await _started(tmp_path, failures=0)
    with monkeypatch.context() as patch:
        patch.setattr("oyez.tables.LIVING", "select nonsense")
        await process.ambient.advance(30.0)
    assert any("claims have not been swept" in r for r in process.health.readiness())
    await process.ambient.advance(10.0)
    assert process.health.readiness() == []
    await process.drain()


async def test_what_was_claimed_and_lost_on_its_way_is_claimed_again(tmp_path: Path) -> None:
    """Nobody else would take it: its owner lives."""
    process, store, seen = await _started(tmp_path, failures=1)
    for number in range(16):
        await process.broker.publish([_placed(str(number))])
    await process.ambient.advance(5.0)
    assert sorted(map(int, seen)) == list(range(16))
    assert store.left == 0
    await process.drain()


async def test_a_drain_stops_all_partitions_together(tmp_path: Path) -> None:
    """None stands still while another finishes its batch: nobody has them meanwhile."""
    process, _, seen = await _started(tmp_path, failures=0, until=lambda: _all_leave(process))
    for number in range(16):
        await process.broker.publish([_placed(str(number))])
    await process.ambient.advance(1.0)
    assert seen == []
    drain = asyncio.create_task(process.drain())
    await process.ambient.advance(30.0)
    assert drain.done()
    assert sorted(map(int, seen)) == list(range(16))


def _all_leave(process: ServiceProcess) -> bool:
    return all(lane.leaving for lane in process.lanes.values())


async def _started(
    tmp_path: Path, *, failures: int, until: Callable[[], bool] = lambda: True
) -> tuple[Any, Fails, list[str]]:
    ambient, service, seen = VirtualAmbient(), Service("desk"), list[str]()

    @service.on(Placed)
    async def take(event: Placed, tx: Transaction) -> None:
        while not until():
            await ambient.sleep(0.01)
        seen.append(event.order)

    broker = MemoryBroker(ambient, partitions=8)
    await broker.create("shop.till", 8)
    store = Fails(tmp_path / "desk.db", ambient, inline=True, durable=False)
    store.left = failures
    process = ServiceProcess(
        service,
        ProcessSettings(system="shop", broker="memory"),
        broker=broker,
        store=store,
        ambient=ambient,
        signals=Signals(),
    )
    await process.start()
    return process, store, seen


def _placed(order: str) -> Record:
    headers = {
        "specversion": "1.0",
        "id": order,
        "source": "/shop/till",
        "type": "shop.placed",
        "subject": order,
    }
    return Record(
        stream="shop.till", key=order, headers=headers, data=b'{"order":"%s"}' % order.encode()
    )
