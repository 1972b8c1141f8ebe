"""The broker and the store of a simulation, with nothing going wrong, keep all guarantees."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest

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


def test_a_replica_whose_lease_was_forgotten_while_it_stood_still_has_it_again() -> None:
    loop = SimLoop()
    world = World(loop)
    database = Database("pay", None, world)
    standing, leaving, late = (Node(world, "pay", f"pay#{number}", 1) for number in (1, 2, 3))
    alive = "select owner from oyez_replica where until > 0"

    async def main() -> None:
        stores = {}
        for node in (standing, leaving, late):
            store = stores[node] = SimStore(database, node)
            await store.open()
            await store.keep(node.name, 3.0, "")
            node.freeze(4.0)
        await stores[leaving].leave(leaving.name)  # it was about to, and the answer came late
        held = SimStore(database).begin()
        await held.load([("balance", "ann")], alone=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await stores[late].leave(late.name)
        await held.rollback()
        late.die()
        await asyncio.sleep(2.1)
        assert database.query(alive) == []
        database.run("delete from oyez_replica where until < 1")  # as others do now and then
        await asyncio.sleep(1.0)
        assert database.query(alive) == [{"owner": standing.name}]

    loop.run_until_complete(main())
    loop.close()


@pytest.mark.parametrize("steps", range(5))
def test_what_a_node_rolls_back_when_it_dies_holds_up_nobody(steps: int) -> None:
    loop = SimLoop()
    world = World(loop)
    database = Database("pay", None, world)
    dying, other = (Node(world, "pay", f"pay#{number}", 1) for number in (1, 2))

    async def main() -> None:
        stores = [SimStore(database, node) for node in (dying, other)]
        await stores[0].open()
        transaction = stores[0].begin()
        await dying.run(transaction.load([("balance", "ann")], alone=True))
        dying.run(transaction.rollback())
        for _ in range(steps):  # of the loop: anywhere within the rollback
            await asyncio.sleep(0)
        dying.die()
        async with asyncio.timeout(60.0):
            await other.run(stores[1].begin().commit(Changes(time=1.0)))

    loop.run_until_complete(main())
    for task in loop.tasks:  # what the dead one has left is never awaited
        task.get_coro().close()
    loop.close()
