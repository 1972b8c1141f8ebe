"""The broker and the store of a simulation, with nothing going wrong, keep all guarantees."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from oyez.ambient import SystemAmbient
from oyez.ports import Changes
from oyez.simulation.broker import KINDS, Log, SimBroker
from oyez.simulation.loop import SimLoop
from oyez.simulation.store import Database, SimStore
from oyez.simulation.world import Node, World
from oyez.testing.broker_suite import BrokerSuite
from oyez.testing.broker_suite import Factory as BrokerFactory
from oyez.testing.store_suite import Factory as StoreFactory
from oyez.testing.store_suite import StoreSuite


class TestSimBroker(BrokerSuite):
    def make(self, tmp_path: Path) -> BrokerFactory:
        log = Log(SystemAmbient())
        return lambda: SimBroker(log)


class TestSimQueue(BrokerSuite):
    """As a queue, which hands out what was not acknowledged."""

    def make(self, tmp_path: Path) -> BrokerFactory:
        log = Log(SystemAmbient(), kind=KINDS["queue"])
        return lambda: SimBroker(log)


class TestSimStore(StoreSuite):
    _databases: ClassVar[dict[Path, Database]] = {}

    def make(self, tmp_path: Path) -> StoreFactory:
        database = self._databases.setdefault(tmp_path, Database("suite"))
        return lambda: SimStore(database)


def test_a_commit_counts_once_the_database_has_made_it() -> None:
    loop = SimLoop()
    world = World(loop)
    node = Node(world, "pay", "pay#1", 1)
    database = Database("pay", None, world)
    made: list[float] = []
    database.committed = lambda node, changes: made.append(loop.time())
    store = SimStore(database, node)

    async def main() -> None:
        await store.open()
        commit = node.run(store.begin().commit(Changes(time=1.0)))
        await asyncio.sleep(0)
        node.freeze(5.0)  # before it can hear of it
        await asyncio.sleep(1.0)
        assert made == [0.0]
        assert not commit.done()
        await commit
        assert loop.time() == 5.0
        assert made == [0.0]

    loop.run_until_complete(main())
    loop.close()
