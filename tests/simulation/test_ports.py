"""The broker and the store of a simulation, with nothing going wrong, keep all guarantees."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from oyez.ambient import SystemAmbient
from oyez.simulation.broker import KINDS, Log, SimBroker
from oyez.simulation.store import Database, SimStore
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
