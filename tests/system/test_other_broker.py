"""Positions of one kind of broker are never taken for another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import StoreRefused
from oyez.ports import Changes
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.service import Service
from oyez.signals import Signals
from oyez.stores.sqlite import SqliteStore
from oyez.testing import VirtualAmbient


async def start(tmp_path: Path, broker: str, *, moved: int = 0) -> None:
    ambient = VirtualAmbient()
    store = SqliteStore(tmp_path / "desk.db", ambient, inline=True, durable=False)
    process = ServiceProcess(
        Service("desk"),
        ProcessSettings(system="shop", broker=broker),
        broker=MemoryBroker(ambient),
        store=store,
        ambient=ambient,
        signals=Signals(),
    )
    await process.start()
    if moved:
        sql = "insert into oyez_cursor (stream, partition, position) values ('s', 0, :p)"
        begun = store.begin()
        await begun.fetch("select 1 as one", {}, [(sql, [{"p": moved}])])
        await begun.commit(Changes())
    await process.drain()


async def test_another_kind_of_broker_is_refused_once_a_position_moved(tmp_path: Path) -> None:
    await start(tmp_path, "kafka")
    await start(tmp_path, "nats")
    await start(tmp_path, "nats", moved=5)
    await start(tmp_path, "nats")
    with pytest.raises(StoreRefused, match=r"positions of nats, and the broker is kafka.*bridge"):
        await start(tmp_path, "kafka")
    await start(tmp_path, "nats")
