"""What is due before a service runs: found without a change, and refused where it is not made."""

from __future__ import annotations

from pathlib import Path

import pytest

from oyez import Event, Service, View, applies
from oyez.ambient import SystemAmbient
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import ConfigurationError, MigrationsDue, StoreRefused
from oyez.runtime.migrations import Change, due, migrate
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals, Trouble
from oyez.stores import sqlite
from oyez.stores.sqlite import SqliteStore

TABLES = Change("tables", "new")
FIRST, SECOND = (Change("migration", name) for name in ("001_sale.sql", "002_note.sql"))
SEEN = Change("view", "sales_seen@1")


class Sold(Event, type="till.sold", key="sale"):
    sale: str


class SalesSeen(View, key="sale", table="sales_seen"):
    sale: str

    @applies
    def sold(self, event: Sold) -> None:
        self.take(event)


class Desk:
    """A service with a migration and a view, and its store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ambient = SystemAmbient()
        self.service = Service("desk", migrations="migrations")
        self.service.view(SalesSeen)
        (root / "migrations").mkdir()
        self.write("001_sale.sql", "create table sale (id text);")

    def write(self, name: str, sql: str) -> None:
        (self.root / "migrations" / name).write_text(sql)

    def store(self) -> SqliteStore:
        return SqliteStore(self.root / "desk.db", self.ambient)

    async def due(self) -> list[Change]:
        store = self.store()
        try:
            return await due(store, self.service, self.root)
        finally:
            await store.close()

    async def migrate(self) -> None:
        store = self.store()
        try:
            await migrate(store, self.service, self.root, self.ambient)
        finally:
            await store.close()

    def process(self, signals: Signals) -> ServiceProcess:
        return ServiceProcess(
            self.service,
            ProcessSettings(system="till", root=self.root, migrate=False),
            broker=MemoryBroker(self.ambient),
            store=self.store(),
            ambient=self.ambient,
            signals=signals,
        )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_what_is_due_is_what_is_made(desk: Desk) -> None:
    for _ in range(2):
        assert await desk.due() == [TABLES, FIRST, SEEN]
        assert not (desk.root / "desk.db").exists()
    await desk.migrate()
    assert await desk.due() == []
    desk.write("002_note.sql", "create table note (id text);")
    for _ in range(2):
        assert await desk.due() == [SECOND]
    await desk.migrate()
    assert await desk.due() == []
    store = desk.store()
    await store.open(create=False)
    for table in ("sale", "note", "sales_seen"):
        assert await store.fetch(f"select * from {table}", {}) == []
    await store.close()


async def test_tables_of_an_older_version_are_due_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = sqlite.STEPS
    monkeypatch.setattr(sqlite, "STEPS", newest[:-1])
    await desk.migrate()
    monkeypatch.setattr(sqlite, "STEPS", newest)
    desk.write("002_note.sql", "create table note (id text);")
    for _ in range(2):
        assert await desk.due() == [Change("tables", "older")]
    await desk.migrate()
    assert await desk.due() == []


async def test_what_can_not_be_migrated_is_refused_before_anything_is_made(desk: Desk) -> None:
    desk.write("second.sql", "")
    for attempt in (desk.due, desk.migrate):
        with pytest.raises(ConfigurationError, match=r"second\.sql: expected a name such as"):
            await attempt()
    assert not (desk.root / "desk.db").exists()
    (desk.root / "migrations" / "second.sql").unlink()
    (desk.root / "migrations" / "002_note.sql").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"002_note\.sql: expected readable UTF-8"):
        await desk.due()
    desk.write("002_note.sql", "select 1;")
    await desk.migrate()
    desk.write("001_sale.sql", "create table sale (id integer);")
    for attempt in (desk.due, desk.migrate):
        with pytest.raises(StoreRefused, match=r"001_sale\.sql has run and was changed since"):
            await attempt()


async def test_a_process_that_may_change_nothing_starts_when_nothing_is_due(desk: Desk) -> None:
    signals, heard = Signals(), []
    signals.listen(heard.append)
    told = r"the store of desk lacks Oyez's tables \(new\), migration 001_sale.sql, view sales_seen"
    with pytest.raises(MigrationsDue, match=f"{told}@1: run `oyez migrate desk` first"):
        await desk.process(signals).start()
    assert not (desk.root / "desk.db").exists()
    assert [each for each in heard if isinstance(each, Trouble)] == []
    await desk.migrate()
    process = desk.process(signals)
    await process.start()
    assert process.readiness() == []
    await process.drain()
    desk.write("002_note.sql", "create table note (id text);")
    with pytest.raises(MigrationsDue, match=r"lacks migration 002_note\.sql:"):
        await desk.process(signals).start()
    assert await desk.due() == [SECOND]
