"""A replica of a newer version joins those of the former, and upgrades the tables under them."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from oyez import Event, Service, Transaction
from oyez.ambient import SystemAmbient
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import StoreRefused
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.stores import sqlite
from oyez.stores.sqlite import SqliteStore

DEADLINE = 60.0
STEP = "alter table oyez_inbox add column weight real not null default 1;"
MIGRATION = "create table seen (name text not null, version text not null);"


class Placed(Event, type="test.placed", key="name"):
    name: str


class Rolled:
    """Replicas of two versions of one service, on one file and one broker."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._ambient = SystemAmbient()
        self._broker = MemoryBroker(self._ambient)
        self._service = Service("desk")

    def store(self) -> SqliteStore:
        return SqliteStore(self.folder / "desk.db", self._ambient)

    async def replica(self, version: str) -> ServiceProcess:
        self._service = service = Service("desk", publishes=(Placed,), migrations="migrations")

        @service.on(Placed)
        def note(event: Placed, tx: Transaction) -> None:
            sql = "insert into seen values (:name, :version)"
            tx.execute(sql, name=event.name, version=version)

        process = ServiceProcess(
            service,
            ProcessSettings(system="test", root=self.folder),
            broker=self._broker,
            store=self.store(),
            ambient=self._ambient,
            signals=Signals(),
        )
        await process.start()
        self._stack.push_async_callback(process.drain)
        return process

    async def place(self, *names: str) -> None:
        async with self._service.transaction() as tx:
            tx.publish_all(Placed(name=name) for name in names)
        async with asyncio.timeout(DEADLINE):
            while not {*names} <= {row["name"] for row in await self.seen()}:
                await asyncio.sleep(0.01)

    async def seen(self) -> list[dict[str, str]]:
        return await self._service.fetch("select name, version from seen")


async def test_former_replicas_go_on_and_can_not_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "001_seen.sql").write_text(MIGRATION)
    names = [f"{number}" for number in range(40)]
    async with AsyncExitStack() as stack:
        rolled = Rolled(tmp_path, stack)
        former = await rolled.replica("former")
        await rolled.place(*names)
        with monkeypatch.context() as newer:
            newer.setattr(sqlite, "STEPS", (*sqlite.STEPS, STEP))
            new = await rolled.replica("new")
            async with asyncio.timeout(DEADLINE):
                while not len(former.lanes) == len(new.lanes) == 4:
                    await asyncio.sleep(0.01)
            more = [f"more-{name}" for name in names]
            await rolled.place(*more)
        with pytest.raises(StoreRefused, match="newer Oyez"):
            await rolled.store().open()
        await former.drain()
        last = [f"last-{name}" for name in names]
        await rolled.place(*last)
        rows = await rolled.seen()
    by_version = Counter((row["version"], row["name"].partition("-")[0]) for row in rows)
    assert Counter(row["name"] for row in rows) == Counter((*names, *more, *last))
    assert by_version["former", "more"] > 0
    assert by_version["new", "more"] > 0
    assert by_version["new", "last"] == len(last)
