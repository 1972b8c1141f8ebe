"""Migrations, and the end: closed at any time, or killed."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from oyez.errors import StoreMissing, StoreRefused
from oyez.ports import Changes
from oyez.testing.crash import run_and_kill
from oyez.testing.store_suite.database import (
    DEADLINE,
    SET_COUNTER,
    Database,
    count_left,
    take_claim,
)

_CHILD = """
import asyncio, itertools, sys
from pathlib import Path
from oyez.ambient import SystemAmbient
from oyez.ports import Announcement, Changes, Claim
from oyez.stores import connect

url, root, start = sys.argv[1:]

async def main():
    store = connect(url, SystemAmbient(), root=Path(root))
    await store.open()
    for number in itertools.count(int(start)):
        tx = store.begin()
        insert = ("insert into item (id, n) values (:id, :n)", [{"id": number, "n": number}])
        changes = Changes(
            writes=[insert],
            handled=[(str(number), "/child", "handler")],
            announced=[Announcement(stream="s", key="k", headers={"id": str(number)}, data=b"1")],
            claim=Claim(stream="s", partition=0, owner="child", epoch=1),
            position=number,
        )
        if number % 2:
            await tx.fetch("select count(*) as n from item", {}, [insert])
            changes.writes = []
        await tx.commit(changes)
        print(number, flush=True)

asyncio.run(main())
"""


class Lifetime(Database):
    """Migrations, and the end: closed at any time, or killed."""

    async def test_migrations_run_once_and_in_order(self, tmp_path: Path) -> None:
        """Also when two replicas start at once; each may hold several statements."""
        scripts = [
            ("001.sql", "create table a (n integer); insert into a values (1); select n from a;"
             " insert into a values (2);"),
            ("002.sql", "insert into a select n + 10 from a"),
        ]  # fmt: skip
        async with self._open(tmp_path, 2) as (store, other):
            async with asyncio.timeout(DEADLINE):
                ran = await asyncio.gather(store.migrate(scripts), other.migrate(scripts))
            assert sorted(ran[0] + ran[1]) == ["001.sql", "002.sql"]
            rows = await store.fetch("select n from a order by n", {})
            assert [row["n"] for row in rows] == [1, 2, 11, 12]
            assert await store.migrate([*scripts, ("003.sql", "drop table a")]) == ["003.sql"]

    async def test_a_migration_that_changed_is_refused(self, tmp_path: Path) -> None:
        """And none behind it runs."""
        async with self._open(tmp_path) as (store,):
            await store.migrate([("001.sql", "create table a (n integer)")])
            changed = [("001.sql", "create table a (m integer)"), ("002.sql", "drop table a")]
            with pytest.raises(StoreRefused, match=r"001\.sql"):
                await store.migrate(changed)
            assert await store.fetch("select n from a", {}) == []

    async def test_a_migration_that_fails_leaves_nothing(self, tmp_path: Path) -> None:
        """It is not recorded, and runs when it was mended."""
        broken = "create table a (n integer); insert into nowhere values (1)"
        async with self._open(tmp_path) as (store,):
            with pytest.raises(Exception, match="nowhere"):
                await store.migrate(
                    [("001.sql", "create table z (n integer)"), ("002.sql", broken)]
                )
            mended = [
                ("001.sql", "create table z (n integer)"),
                ("002.sql", "create table a (n integer)"),
            ]
            assert await store.migrate(mended) == ["002.sql"]
            assert await store.fetch("select n from a", {}) == []

    # -- the end -----------------------------------------------------------------------------------

    async def test_looking_makes_nothing(self, tmp_path: Path) -> None:
        """Opened without ``create``, a store that is not there stays so."""
        connect = self.make(tmp_path)
        for _ in range(2):
            store = connect()
            with pytest.raises(StoreMissing):
                await store.open(create=False)
            await store.close()
        store = connect()
        await store.open()
        await store.close()
        await store.open(create=False)
        await store.close()

    async def test_closing_is_safe_at_any_time(self, tmp_path: Path) -> None:
        """Never opened, and twice; what was committed is there afterwards."""
        store = self.make(tmp_path)()
        await store.close()
        await store.open()
        await store.migrate([("001.sql", "create table a (n integer)")])
        await store.begin().commit(Changes(writes=[("insert into a values (:n)", [{"n": 1}])]))
        await store.close()
        await store.close()
        await store.open()
        assert await store.fetch("select n from a", {}) == [{"n": 1}]
        await store.close()

    async def test_committed_units_survive_kill_9_whole(self, tmp_path: Path) -> None:
        """Killed at a random moment, five times: what was acknowledged is there, all of it (G2)."""
        chance = random.Random()  # noqa: S311 - any moment will do
        async with self._open(tmp_path) as (store,):
            if not store.capabilities.processes:
                pytest.skip("capabilities.processes is declared False")
            await take_claim(store, "child")
            for _ in range(5):
                (row,) = await store.fetch("select coalesce(max(id), 0) + 1 as n from item", {})
                start = row["n"]
                arguments = (self.url(tmp_path), str(tmp_path), str(start))
                lines = chance.randrange(1, 120)
                said = await asyncio.to_thread(run_and_kill, _CHILD, *arguments, lines=lines)
                acknowledged = int(said[-1])
                assert [int(line) for line in said] == list(range(start, acknowledged + 1))
                async with asyncio.timeout(DEADLINE):
                    await store.begin().commit(Changes(writes=[(SET_COUNTER, [{"n": start}])]))
                rows = await store.fetch("select id from item order by id", {})
                numbers = [row["id"] for row in rows]
                last = len(numbers)
                assert numbers == list(range(1, last + 1))
                assert last >= acknowledged
                assert await count_left(store) == {
                    "item": last, "outbox": last, "inbox": last, "dead": 0, "position": last
                }  # fmt: skip
