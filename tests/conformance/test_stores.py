"""Every store that ships is certified by the suite that third parties use."""

from __future__ import annotations

from pathlib import Path

import apsw

from oyez.ambient import SystemAmbient
from oyez.stores.sqlite import SqliteStore
from oyez.testing.store_suite import Factory, StoreSuite


class TestSqlite(StoreSuite):
    def make(self, tmp_path: Path) -> Factory:
        return lambda: SqliteStore(tmp_path / "store.db", SystemAmbient())

    def url(self, tmp_path: Path) -> str:
        return "sqlite:store.db"

    async def test_committed_units_survive_kill_9_whole(self, tmp_path: Path) -> None:
        await super().test_committed_units_survive_kill_9_whole(tmp_path)
        connection = apsw.Connection(str(tmp_path / "store.db"))
        assert connection.execute("pragma integrity_check").get == "ok"
        connection.close()


class TestSqliteInline(StoreSuite):
    """As the harness runs it: on the event loop itself."""

    def make(self, tmp_path: Path) -> Factory:
        path = tmp_path / "store.db"
        store = SqliteStore(path, SystemAmbient(), inline=True, durable=False)
        return lambda: store
