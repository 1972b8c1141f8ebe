"""Holds a store to `oyez.ports.Store` and to guarantees G1, G2 and G3.

::

    class TestMyStore(StoreSuite):
        def make(self, tmp_path):
            return lambda: MyStore("localhost:1234", SystemAmbient())

A test is skipped only for a capability that the store itself declares not to have. Needs pytest and
pytest-asyncio. Its own statements are plain SQL; `binary` and `big` name two column types.
"""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oyez import tables
from oyez.ambient import SystemAmbient
from oyez.errors import (
    ConstraintViolated,
    Fenced,
    NotRedriven,
    StateConflict,
    StoreMissing,
    StoreRefused,
    Superseded,
)
from oyez.inspection.witness import HERE, know, recall
from oyez.partitioning import partition_of
from oyez.ports import (
    Announcement,
    Changes,
    Claim,
    DeadLetter,
    Kept,
    Parked,
    Row,
    Store,
    StoreTransaction,
    Writes,
)
from oyez.runtime.audit import Actor, audited, list_acts
from oyez.runtime.dead import ALL, Wanted, discard, list_dead, list_groups, redrive
from oyez.service import Service
from oyez.tables import INBOX_RETENTION
from oyez.testing.crash import run_and_kill
from oyez.timers import arm, disarm, disarm_all

DEADLINE = 60.0
"""Seconds that a test waits, at most, for what must come."""
LEASE = 1.2
"""Seconds of the lease that a blocked event loop must not lose."""

BY = Actor(who="suite", via="command", why="to see it")

Factory = Callable[[], Store]

_INSERT = "insert into item (id, n) values (:id, :n)"
_DELAYED = """insert into oyez_outbox (due, stream, key, headers, data)
 with recursive number (n) as (
  select 1 union all select n + 1 from number where n < cast(:count as integer))
 select cast(:start as double precision) + n, 's', 'k', :headers, :data from number"""
_COUNTER = "update counter set n = :n where id = 1"

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


class StoreSuite:
    """Subclass it under a name that begins with ``Test`` and override `make`."""

    pytestmark = pytest.mark.asyncio

    binary = "blob"
    """The column type for bytes."""
    big = "integer"
    """The column type for integers of 64 bits."""

    def make(self, tmp_path: Path) -> Factory:
        """What opens nothing yet and gives another `Store` on one and the same database.

        Each test has a database of its own. A store without ``capabilities.processes`` may give the
        same object each time.
        """
        raise NotImplementedError

    def url(self, tmp_path: Path) -> str:
        """What `oyez.stores.connect` makes of that database in a child process.

        Asked for only where several processes can use it.
        """
        raise NotImplementedError("a store for several processes needs StoreSuite.url()")

    # -- one transaction ---------------------------------------------------------------------------

    async def test_a_commit_leaves_everything(self, tmp_path: Path) -> None:
        """Own writes, announced, handled, parked, dead and the position, together."""
        async with self._open(tmp_path) as (store,):
            claim = await _claimed(store, "me")
            dead = _dead("4")
            await store.begin().commit(
                Changes(
                    writes=[_item(1)],
                    announced=[_announcement(1)],
                    handled=[_event("1")],
                    parked=[_parked("2")],
                    dead=[dead],
                    claim=claim,
                    position=42,
                    time=5.0,
                )
            )
            assert await _left(store) == {
                "item": 1, "outbox": 1, "inbox": 2, "dead": 1, "position": 42
            }  # fmt: skip
            row = (await store.fetch("select * from oyez_dead", {}))[0]
            for field in ("event_id", "source", "type", "handler", "key", "reason", "traceback"):
                assert row[field] == getattr(dead, field)
            assert msgspec.json.decode(row["headers"]) == dead.headers
            assert msgspec.json.decode(row["history"]) == dead.history
            assert (row["data"], row["attempts"]) == (dead.data, dead.attempts)

    @pytest.mark.parametrize("interactive", [False, True])
    async def test_a_commit_that_fails_leaves_nothing(
        self, tmp_path: Path, interactive: bool
    ) -> None:
        """Whatever part of it fails, and whether it read before or not."""
        async with self._open(tmp_path) as (store,):
            claim = await _claimed(store, "me")
            await store.begin().commit(Changes(writes=[_item(1)], handled=[_event("old")]))
            before = await _left(store)
            good: dict[str, Any] = {
                "writes": [_item(2)],
                "announced": [_announcement(1)],
                "handled": [_event("1")],
                "parked": [_parked("2")],
                "dead": [_dead("4")],
                "claim": claim,
                "position": 42,
            }
            bad: dict[str, Any] = {
                "writes": [_item(2), _item(1)],
                "handled": [_event("1"), _event("old")],
                "parked": [_parked("2"), _parked("old")],
            }
            for name, value in bad.items():
                tx = store.begin()
                if interactive:
                    await tx.fetch("select n from item", {}, [_item(3)])
                with pytest.raises(ConstraintViolated):
                    await tx.commit(Changes(**{**good, name: value}))
                await tx.rollback()
                assert await _left(store) == before
            await store.begin().commit(Changes(**good))
            assert (await _left(store))["item"] == 2

    async def test_a_failing_statement_undoes_its_own_transaction_alone(
        self, tmp_path: Path
    ) -> None:
        """Others that commit at the same moment, in the same group perhaps, are not touched."""
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(Changes(writes=[_item(0)]))

            async def commit(number: int) -> None:
                last = 0 if number % 5 == 0 else number + 1_000
                tx = store.begin()
                if number % 3 == 0:
                    await tx.fetch("select 1 as one", {}, [_item(number)])
                    changes = Changes(writes=[_item(last)], announced=[_announcement(number)])
                else:
                    writes = [_item(number), _item(last)]
                    changes = Changes(writes=writes, announced=[_announcement(number)])
                try:
                    await tx.commit(changes)
                finally:
                    await tx.rollback()

            async with asyncio.timeout(DEADLINE):
                results = await asyncio.gather(
                    *(commit(n) for n in range(1, 61)), return_exceptions=True
                )
            failed = {n for n, result in enumerate(results, 1) if result is not None}
            assert failed == {n for n in range(1, 61) if n % 5 == 0}
            assert all(isinstance(results[n - 1], ConstraintViolated) for n in failed)
            good = {n for n in range(1, 61) if n % 5}
            rows = await store.fetch("select id from item", {})
            assert {row["id"] for row in rows} == {0} | good | {n + 1_000 for n in good}
            outbox = await store.outbox(0, 1.0, 1_000)
            assert sorted(int(row.headers["id"]) for row in outbox) == sorted(good)

    async def test_a_read_sees_the_writes_before_it(self, tmp_path: Path) -> None:
        """Those given with it, those of earlier reads, and writes that return rows."""
        async with self._open(tmp_path) as (store,):
            tx = store.begin()
            count = "select count(*) as n from item"
            assert await tx.fetch(count, {}, [_item(1), _item(2)]) == [{"n": 2}]
            assert await tx.fetch(count, {}, [_item(3)]) == [{"n": 3}]
            rows = await tx.fetch(f"{_INSERT} returning id, n", {"id": 4, "n": 40}, [])
            assert rows == [{"id": 4, "n": 40}]
            assert await tx.fetch("select n from item where id = :id", {"id": 99}, []) == []
            await tx.commit(Changes(writes=[_item(5)]))
            assert await store.fetch(count, {}) == [{"n": 5}]

    async def test_a_write_that_returns_rows_runs_for_every_parameter_set(
        self, tmp_path: Path
    ) -> None:
        """Nobody reads the rows; each write happens all the same."""
        sql = f"{_INSERT} returning id"
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(
                Changes(writes=[(sql, [{"id": n, "n": n} for n in range(7)])])
            )
            assert (await _left(store))["item"] == 7

    async def test_after_a_failed_read_nothing_is_committed(self, tmp_path: Path) -> None:
        """A handler that swallows the error can't commit without the writes that failed."""
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(Changes(writes=[_item(1)]))
            for sql, before in (("select 1 as one", [_item(2), _item(1), _item(3)]), (_INSERT, [])):
                tx = store.begin()
                await tx.fetch("select 1 as one", {}, [_item(7)])
                with pytest.raises(ConstraintViolated):
                    await tx.fetch(sql, {"id": 1, "n": 1} if sql == _INSERT else {}, before)
                with pytest.raises(ConstraintViolated):
                    await tx.commit(Changes(writes=[_item(4)], announced=[_announcement(1)]))
                await tx.rollback()
                left = await _left(store)
                assert (left["item"], left["outbox"]) == (1, 0)

    async def test_an_answer_tells_columns_and_changes(self, tmp_path: Path) -> None:
        """Also without a row; two columns of one name are two. It sees the writes before it."""
        async with self._open(tmp_path) as (store,):
            tx = store.begin()
            one, two = _placeholders(tx)
            insert = f"insert into item (id, n) values ({one}, {two})"
            answer = await tx.run(f"{insert} returning n, id", [(1, 10)], [_item(7)])
            assert [name for name, _ in answer.columns] == ["n", "id"]
            assert [tuple(row) for row in answer.rows] == [(10, 1)]
            assert answer.changed == 1
            answer = await tx.run(insert, [(n, n) for n in range(2, 7)], [])
            assert (list(answer.columns), list(answer.rows)) == ([], [])
            answer = await tx.run(f"select id, n, id from item where id > {one}", [(7,)], [])
            assert [name for name, _ in answer.columns] == ["id", "n", "id"]
            assert list(answer.rows) == []
            answer = await tx.run(f"update item set n = 0 where id > {one}", [(4,)], [])
            assert (list(answer.columns), answer.changed) == ([], 3)
            answer = await tx.run(f"delete from item where id > {one}", [(7,)], [])
            assert answer.changed == 0
            await tx.commit(Changes())
            assert (await _left(store))["item"] == 7

    async def test_a_savepoint_undoes_a_failed_statement(self, tmp_path: Path) -> None:
        """However it was sent; what came before the savepoint and what comes after it is kept."""
        async with self._open(tmp_path) as (store,):
            tx = store.begin()
            one, two = _placeholders(tx)
            insert = f"insert into item (id, n) values ({one}, {two})"
            await tx.run(insert, [(1, 1)], [])
            for attempt in ("run", "fetch", "before", "syntax", "nothing"):
                await tx.run("savepoint part", [()], [])
                await tx.run(insert, [(2, 2)], [])
                if attempt == "run":
                    with pytest.raises(ConstraintViolated):
                        await tx.run(insert, [(1, 1)], [])
                elif attempt == "fetch":
                    with pytest.raises(ConstraintViolated):
                        await tx.fetch(_INSERT, {"id": 1, "n": 1}, [])
                elif attempt == "before":
                    with pytest.raises(ConstraintViolated):
                        await tx.fetch("select 1 as one", {}, [_item(3), _item(1)])
                elif attempt == "syntax":
                    with pytest.raises(StoreRefused):
                        await tx.run("select from nowhere", [()], [])
                await tx.rollback_to("part")
            await tx.run("release savepoint part", [()], [])
            await tx.run(insert, [(3, 3)], [])
            await tx.commit(Changes(writes=[_item(4)]))
            rows = await store.fetch("select id from item order by id", {})
            assert [row["id"] for row in rows] == [1, 3, 4]

    async def test_a_failure_before_the_savepoint_is_not_forgiven(self, tmp_path: Path) -> None:
        """Nor one after which nobody went back to it."""
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(Changes(writes=[_item(1)]))
            tx = store.begin()
            await tx.run("savepoint part", [()], [_item(2)])
            for _ in range(2):
                with pytest.raises(ConstraintViolated):
                    await tx.fetch("select 1 as one", {}, [_item(1)])
            with pytest.raises(ConstraintViolated):
                await tx.run("savepoint late", [()], [])
            with pytest.raises(ConstraintViolated):
                await tx.commit(Changes())
            await tx.rollback()
            assert (await _left(store))["item"] == 1

    async def test_rollback_is_safe_at_any_time(self, tmp_path: Path) -> None:
        """Before anything, after a read, after a commit, and twice."""
        async with self._open(tmp_path) as (store,):
            tx = store.begin()
            await tx.rollback()
            await tx.rollback()
            tx = store.begin()
            await tx.fetch("select 1 as one", {}, [_item(1)])
            await tx.rollback()
            await tx.rollback()
            assert (await _left(store))["item"] == 0
            for interactive in (1, 2):
                tx = store.begin()
                if interactive == 2:
                    await tx.fetch("select 1 as one", {}, [])
                await tx.commit(Changes(writes=[_item(interactive)]))
                await tx.rollback()
            assert (await _left(store))["item"] == 2

    async def test_values_survive(self, tmp_path: Path) -> None:
        """Integers of 64 bits, floats, any text, any bytes, and null."""
        columns = (
            f"(id integer primary key, i {self.big}, f double precision, t text, b {self.binary})"
        )
        rows: list[dict[str, Any]] = [
            {
                "id": 1,
                "i": 2**63 - 1,
                "f": 1.7976931348623157e308,
                "t": "北京 🚚",
                "b": b"\x00\xff",
            },
            {"id": 2, "i": -(2**63), "f": 5e-324, "t": "", "b": b""},
            {"id": 3, "i": None, "f": None, "t": None, "b": None},
            {"id": 4, "i": 0, "f": 0.1, "t": "' \" ; -- :name\n", "b": bytes(range(256))},
        ]
        async with self._open(tmp_path) as (store,):
            await store.migrate([("900-values.sql", f"create table value_test {columns}")])
            insert = "insert into value_test (id, i, f, t, b) values (:id, :i, :f, :t, :b)"
            await store.begin().commit(Changes(writes=[(insert, list(rows))]))
            assert await store.fetch("select * from value_test order by id", {}) == rows
            tx = store.begin()
            assert await tx.fetch("select * from value_test order by id", {}, []) == rows
            await tx.rollback()

    # -- many transactions -------------------------------------------------------------------------

    @pytest.mark.parametrize("replicas", [1, 2])
    async def test_no_update_is_lost(self, tmp_path: Path, replicas: int) -> None:
        """100 transactions at once read a number and write one more; also from two replicas."""
        async with self._open(tmp_path, replicas) as stores:
            if replicas > 1 and not stores[0].capabilities.processes:
                pytest.skip("capabilities.processes is declared False")

            async def increment(store: Store) -> None:
                tx = store.begin()
                (row,) = await tx.fetch("select n from counter where id = 1", {}, [])
                await asyncio.sleep(0)
                await tx.commit(Changes(writes=[(_COUNTER, [{"n": row["n"] + 1}])]))

            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*(increment(stores[n % replicas]) for n in range(100)))
            assert await stores[0].fetch("select n from counter", {}) == [{"n": 100}]

    async def test_a_snapshot_is_not_held_up_and_sees_only_what_is_committed(
        self, tmp_path: Path
    ) -> None:
        """While a transaction is open."""
        async with self._open(tmp_path) as (store,):
            if not store.capabilities.processes:
                pytest.skip("capabilities.processes is declared False")
            tx = store.begin()
            await tx.fetch("select 1 as one", {}, [_item(1)])
            async with asyncio.timeout(DEADLINE):
                assert await store.fetch("select * from item", {}) == []
                assert await store.seen([_event("1")]) == set()
            await tx.commit(Changes(announced=[_announcement(1)]))
            assert await store.fetch("select id from item", {}) == [{"id": 1}]

    async def test_cancelled_anywhere_it_leaves_all_or_nothing(self, tmp_path: Path) -> None:
        """At every await in turn, while others write; and the store goes on."""
        async with self._open(tmp_path) as (store,):
            whole: set[int] = set()
            turns = number = 0
            while True:
                number += 1
                task = asyncio.ensure_future(_unit(store, number))
                other = asyncio.ensure_future(_unit(store, -number))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                (result,) = await asyncio.gather(task, return_exceptions=True)
                async with asyncio.timeout(DEADLINE):
                    await other
                whole.add(-number)
                if result is None:
                    whole.add(number)
                    break
                assert isinstance(result, asyncio.CancelledError), result
                turns += 1 + turns // 8
                assert number < 500
            rows = {row["id"] for row in await store.fetch("select id from item", {})}
            outbox = {int(row.headers["id"]) for row in await store.outbox(0, 1.0, 10_000)}
            assert rows == outbox >= whole
            events = [_event(str(n)) for n in range(-number, number + 1)]
            assert await store.seen(events) == {_event(str(n)) for n in rows}
            first = await store.fetch("select count(*) as n from item where id < 0", {})
            assert first == [{"n": number}]

    async def test_cancelled_before_its_commit_began_it_leaves_nothing(
        self, tmp_path: Path
    ) -> None:
        """While it waits for another transaction; the other is not disturbed."""
        async with self._open(tmp_path) as (store,):
            first = store.begin()
            await first.fetch("select 1 as one", {}, [_item(1)])
            reading = asyncio.ensure_future(store.begin().fetch("select 1 as one", {}, [_item(2)]))
            writing = asyncio.ensure_future(store.begin().commit(Changes(writes=[_item(3)])))
            await asyncio.sleep(0)
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
            await first.commit(Changes(writes=[_item(4)]))
            await store.begin().commit(Changes(writes=[_item(5)]))
            rows = await store.fetch("select id from item order by id", {})
            assert [row["id"] for row in rows] == [1, 4, 5]

    # -- inbox -------------------------------------------------------------------------------------

    async def test_the_inbox_knows_what_was_handled(self, tmp_path: Path) -> None:
        """By event id, source and handler together; parked events count."""
        async with self._open(tmp_path) as (store,):
            known = [("1", "/a", "h"), ("2", "/a", "h"), ("1", "/b", "h"), ("1", "/a", "g")]
            await store.begin().commit(Changes(handled=known, parked=[_parked("9")]))
            asked = [*known, _event("9"), ("2", "/b", "h"), ("", "", "")]
            assert await store.seen(asked) == {*known, _event("9")}
            assert await store.seen([]) == set()

    @pytest.mark.parametrize("replicas", [1, 2])
    async def test_of_simultaneous_copies_one_has_its_effect(
        self, tmp_path: Path, replicas: int
    ) -> None:
        """The same event handled several times at once: one commit, the rest ConstraintViolated."""
        async with self._open(tmp_path, replicas) as stores:
            if replicas > 1 and not stores[0].capabilities.processes:
                pytest.skip("capabilities.processes is declared False")
            async with asyncio.timeout(DEADLINE):
                results = await asyncio.gather(
                    *(
                        stores[n % replicas]
                        .begin()
                        .commit(
                            Changes(
                                handled=[_event("1")],
                                writes=[_item(n)],
                                announced=[_announcement(n)],
                            )
                        )
                        for n in range(6)
                    ),
                    return_exceptions=True,
                )
            assert sum(result is None for result in results) == 1
            assert sum(isinstance(result, ConstraintViolated) for result in results) == 5
            left = await _left(stores[0])
            assert (left["item"], left["outbox"], left["inbox"]) == (1, 1, 1)

    # -- outbox ------------------------------------------------------------------------------------

    async def test_the_outbox_is_in_commit_order(self, tmp_path: Path) -> None:
        """Whole and unchanged, bounded, behind any row; what was sent is gone."""
        async with self._open(tmp_path) as (store,):
            sent = [
                Announcement(
                    stream=f"s{n % 2}", key=key, headers={"id": str(n), "t": "🚚"}, data=data
                )
                for n, (key, data) in enumerate(
                    [("k", b"1"), (None, b""), ("北京", b"\x00\xff"), ("", b"4"), ("k", b"5")]
                )
            ]
            for row in sent[:3]:
                await store.begin().commit(Changes(announced=[row]))
            tx = store.begin()
            await tx.fetch("select 1 as one", {}, [])
            await tx.commit(Changes(announced=sent[3:]))
            rows = await store.outbox(0, 1.0, 100)
            assert [msgspec.structs.replace(row, seq=0) for row in rows] == sent
            numbers = [row.seq for row in rows]
            assert numbers == sorted(set(numbers))
            assert await store.outbox(0, 1.0, 2) == rows[:2]
            assert await store.outbox(numbers[2], 1.0, 100) == rows[3:]
            await store.begin().commit(Changes(sent=numbers[:2]))
            assert await store.outbox(0, 1.0, 100) == rows[2:]
            await store.begin().commit(Changes(sent=numbers[2:]))
            await store.begin().commit(Changes(announced=sent[:1]))
            (row,) = await store.outbox(0, 1.0, 100)
            assert row.seq > numbers[-1]

    async def test_a_commit_that_says_its_rows_of_the_outbox_says_the_right_ones(
        self, tmp_path: Path
    ) -> None:
        """They follow one another, and each commit's follow those of the commits before it."""
        async with self._open(tmp_path) as (store,):
            counts = (1, 70, 32, 3)
            commits = [
                Changes(announced=[_announcement(100 * n + each) for each in range(count)])
                for n, count in enumerate(counts)
            ]
            for changes in commits:
                await store.begin().commit(changes)
            late = Changes(announced=[_announcement(900), _announcement(901, due=50.0)])
            await store.begin().commit(late)
            assert late.stored is None
            rows = {row.seq: row.headers["id"] for row in await store.outbox(0, 1.0, 1_000)}
            assert list(rows.values())[:-1] == [
                str(100 * n + each) for n, count in enumerate(counts) for each in range(count)
            ]
            last = 0
            for changes in commits:
                if changes.stored is None:
                    continue
                assert changes.stored > last
                for seq, announced in enumerate(changes.announced, changes.stored):
                    assert rows[seq] == announced.headers["id"]
                last = changes.stored + len(changes.announced) - 1

    async def test_concurrent_commits_each_keep_their_order_in_the_outbox(
        self, tmp_path: Path
    ) -> None:
        """As a relay reads it: from the beginning, and what it has sent it deletes."""
        async with self._open(tmp_path) as (store,):

            async def announce(name: int) -> None:
                for step in range(4):
                    rows = [_announcement(name * 100 + step * 2 + n) for n in (0, 1)]
                    await store.begin().commit(Changes(announced=rows))

            work = asyncio.gather(*(announce(name) for name in range(8)))
            numbers: list[int] = []
            async with asyncio.timeout(DEADLINE):
                while len(numbers) < 64:
                    done = work.done()
                    rows = await store.outbox(0, 1.0, 1_000)
                    numbers += [int(row.headers["id"]) for row in rows]
                    await store.begin().commit(Changes(sent=[row.seq for row in rows]))
                    assert not done or len(numbers) == 64
            await work
            assert await store.outbox(0, 1.0, 1_000) == []
            for name in range(8):
                mine = [n for n in numbers if n // 100 == name]
                assert mine == [name * 100 + n for n in range(8)]

    async def test_delayed_announcements_come_when_due(self, tmp_path: Path) -> None:
        """In due order, none before its time."""
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(
                Changes(announced=[_announcement(n, due=due) for n, due in ((1, 30.0), (2, 10.0))])
            )
            await store.begin().commit(
                Changes(announced=[_announcement(3, due=20.0), _announcement(4)])
            )

            async def ids(now: float, limit: int = 100) -> list[str]:
                return [row.headers["id"] for row in await store.outbox(0, now, limit)]

            assert await ids(9.9) == ["4"]
            assert await ids(10.0) == ["4", "2"]
            assert await ids(29.0) == ["4", "2", "3"]
            assert await ids(30.0) == ["4", "2", "3", "1"]
            assert await ids(30.0, limit=3) == ["4", "2", "3"]
            rows = await store.outbox(0, 20.0, 100)
            assert [row.due for row in rows] == [0.0, 10.0, 20.0]
            await store.begin().commit(Changes(sent=[row.seq for row in rows]))
            assert await ids(29.9) == []
            assert await ids(99.0) == ["1"]

    async def test_a_backlog_does_not_hold_up_delayed_announcements(self, tmp_path: Path) -> None:
        """An eighth of what is asked for is theirs; all of it where nothing else waits."""
        async with self._open(tmp_path) as (store,):
            late = [_announcement(n, due=float(n)) for n in range(1, 41)]
            backlog = [_announcement(n) for n in range(100, 180)]
            await store.begin().commit(Changes(announced=[*late, *backlog]))

            async def ids(limit: int) -> list[int]:
                return [int(row.headers["id"]) for row in await store.outbox(0, 50.0, limit)]

            found = await ids(64)
            assert found == [*range(100, 156), *range(1, 9)]
            assert await ids(120) == [*range(100, 180), *range(1, 41)]
            assert await ids(100) == [*range(100, 180), *range(1, 21)]
            rows = await store.outbox(0, 0.0, 200)
            await store.begin().commit(Changes(sent=[row.seq for row in rows]))
            assert await ids(16) == [*range(1, 17)]

    async def test_retries_and_what_waits_for_no_time_take_turns(self, tmp_path: Path) -> None:
        """Neither sort of parked events holds up the other for ever."""
        async with self._open(tmp_path) as (store,):
            await _claimed(store, "me")
            at_once = [_parked(f"a{n}", due=0.0) for n in range(6)]
            late = [_parked(f"r{n}", due=float(n + 1)) for n in range(6)]
            await store.begin().commit(Changes(parked=[*at_once, *late]))

            async def ids(now: float, limit: int) -> list[str]:
                return [p.event_id for p in await store.due("me", "handler", now, limit)]

            assert await ids(9.0, 4) == ["a0", "a1", "r0", "r1"]
            assert await ids(0.0, 4) == ["a0", "a1", "a2", "a3"]
            assert await ids(2.0, 8) == ["a0", "a1", "a2", "a3", "a4", "a5", "r0", "r1"]
            names = await store.fetch(tables.PARKED_HANDLERS, {})
            assert names == [{"handler": "handler"}]

    async def test_parked_events_are_listed_with_what_they_wait_for(self, tmp_path: Path) -> None:
        """Those behind another of their chain name the one that is tried next."""
        async with self._open(tmp_path) as (store,):
            claim = await _claimed(store, "me")
            parked = [
                _parked("1", chain="k", due=5.0),
                _parked("2", chain="k"),
                _parked("3", chain="k", reader="view", due=6.0),
                _parked("4", chain="k", reader="view"),
                _parked("5", due=0.0),
            ]
            await store.begin().commit(
                Changes(claim=claim, handled=[_event("0")], parked=parked, time=3.0)
            )

            async def listed(after: int, limit: int) -> list[Row]:
                return await store.fetch(tables.PARKED_EVENTS, {"after": after, "limit": limit})

            rows = await listed(0, 10)
            assert [(row["event_id"], row["state"], row["first"]) for row in rows] == [
                ("1", tables.Inbox.DUE, "1"),
                ("2", tables.Inbox.BEHIND, "1"),
                ("3", tables.Inbox.DUE, "3"),
                ("4", tables.Inbox.BEHIND, "3"),
                ("5", tables.Inbox.DUE, None),
            ]
            assert [row["seq"] for row in rows] == sorted(row["seq"] for row in rows)
            assert await listed(rows[1]["seq"], 2) == rows[2:4]
            assert await listed(rows[-1]["seq"], 2) == []

    async def test_a_million_delayed_announcements_cost_no_memory_and_hold_up_none(
        self, tmp_path: Path
    ) -> None:
        """They wait in the store; what is due goes at once, a restart forgets none (needs 14)."""
        most, step = 1_000_000, 100_000
        row = {"headers": b'{"id":"later"}', "data": b"{}", "count": step}
        async with self._open(tmp_path) as (store,):
            for start in range(0, most, step):
                rows: list[Mapping[str, Any]] = [{**row, "start": 1_000.0 + start}]
                await store.begin().commit(Changes(writes=[(_DELAYED, rows)]))
            before = _resident()
            await store.begin().commit(Changes(announced=[_announcement(1)]))
            (found,) = await store.outbox(0, 1_000.0, 512)
            assert found.headers["id"] == "1"
            await store.begin().commit(Changes(sent=[found.seq]))
            assert await store.outbox(0, 1_000.0, 512) == []
            due = await store.outbox(0, 1_000.0 + most, 512)
            assert [found.due for found in due] == [1_001.0 + n for n in range(512)]
            assert _resident() - before < 64 * 1024 * 1024
        async with self._open(tmp_path) as (store,):
            assert [row.due for row in await store.outbox(0, 1_003.0, 512)] == [1_001, 1_002, 1_003]
            assert (await _left(store))["outbox"] == most

    async def test_a_later_announcement_is_replaced_by_its_name(self, tmp_path: Path) -> None:
        """In whatever transaction, and no other one is."""
        async with self._open(tmp_path) as (store,):
            for number, name in ((1, "t/a"), (2, "t/b"), (3, "t/a"), (4, None), (5, None)):
                one = _announcement(number, due=10.0 + number)
                named = msgspec.structs.replace(one, event_id=str(number), name=name)
                await store.begin().commit(Changes(announced=[named]))
            rows = await store.outbox(0, 99.0, 100)
            assert sorted(row.headers["id"] for row in rows) == ["2", "3", "4", "5"]
            assert sorted(row.due for row in rows) == [12.0, 13.0, 14.0, 15.0]

    async def test_a_later_announcement_is_cancelled_until_it_is_taken(
        self, tmp_path: Path
    ) -> None:
        """Of a cancel and a take at the same time, one finds the row."""
        async with self._open(tmp_path, 2) as (store, other):

            async def cancel(sql: str, **asked: Any) -> bool:
                tx = other.begin()
                found = await tx.fetch(sql, asked, [])
                await tx.commit(Changes())
                return bool(found)

            async def take() -> None:
                due: list[Mapping[str, Any]] = [{"seq": row.seq} for row in rows]
                await store.begin().commit(Changes(writes=[(tables.TAKE, due)]))

            for number in range(40):
                one = _announcement(number, due=5.0 + number)
                named = msgspec.structs.replace(one, event_id=str(number), name=f"t/{number}")
                await store.begin().commit(Changes(announced=[named]))
            assert await cancel(tables.CANCEL, id="0")
            assert not await cancel(tables.CANCEL, id="0")
            assert await cancel(tables.CANCEL_NAMED, name="t/1")
            assert not await cancel(tables.CANCEL_NAMED, name="t/1")
            rows = await store.outbox(0, 99.0, 100)
            cancels = [cancel(tables.CANCEL, id=str(number)) for number in range(2, 40)]
            _, *cancelled = await asyncio.gather(take(), *cancels)
            left = {row.headers["id"] for row in await store.outbox(0, 0.0, 100)}
            assert left == {
                str(n) for n, gone in zip(range(2, 40), cancelled, strict=True) if not gone
            }
            assert not await cancel(tables.CANCEL, id="2")
            assert not await cancel(tables.CANCEL_NAMED, name="t/2")

    # -- dead letters and the audit ----------------------------------------------------------------

    async def test_an_act_and_its_audit_are_one_commit(self, tmp_path: Path) -> None:
        """Neither a failed act nor a failed audit leaves half of it."""
        ambient = SystemAmbient()
        async with self._open(tmp_path) as (store,):
            letters = [msgspec.structs.replace(_dead(id_), time=ambient.now()) for id_ in "12"]
            await store.begin().commit(Changes(dead=letters))
            first, second = [row["id"] for row in await list_dead(store)]
            await redrive(store, first, ambient, by=BY, data=b"{}")
            with pytest.raises(NotRedriven):
                await redrive(store, first, ambient, by=BY)
            (act,) = await list_acts(store)
            assert (act.who, act.via, act.act, act.target, act.reason) == (
                "suite",
                "command",
                "dead.redrive",
                f"dead letter {first}",
                "to see it",
            )
            assert (act.before["state"], act.after["state"]) == ("dead", "redriven")
            sql, (row,) = audited(BY, "dead.discard", f"dead letter {second}", 1.0)
            mark = {"id": second, "state": "discarded", "note": ""}
            half = Changes(writes=[(tables.MARK_LETTER, [mark]), (sql, [{**row, "act": None}])])
            with pytest.raises(ConstraintViolated):
                await store.begin().commit(half)
            assert [row["id"] for row in await list_dead(store)] == [second]
            assert await list_acts(store) == [act]
            assert await list_acts(store, target=f"dead letter {second}") == []
            assert await list_acts(store, before=act.id) == []

    async def test_dead_letters_are_grouped_and_chosen_by_what_they_share(
        self, tmp_path: Path
    ) -> None:
        """A store writes the cause of each with it, and answers by any part of what is asked."""
        kinds = [
            ("h", "t", "no order 17 of 'ann'", "a"),
            ("h", "t", "no order 4 of 'bob'", "b"),
            ("h", "t", "out of stock", "a"),
            ("h", "u", "no order 5 of 'cy'", "a"),
            ("g", "t", "no order 6 of 'di'", None),
            ("h", "t", "50%_off", "k" * 3_000),
        ]
        letters = [
            msgspec.structs.replace(
                _dead(str(n)), handler=handler, type=kind, reason=reason, key=key, time=float(n)
            )
            for n, (handler, kind, reason, key) in enumerate(kinds)
        ]
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(Changes(dead=letters))
            first, *others = await list_groups(store)
            assert (first.handler, first.type, first.cause) == ("h", "t", "no order # of '…'")
            assert (first.letters, first.oldest, first.newest) == (2, 0.0, 1.0)
            assert [each.letters for each in others] == [1, 1, 1, 1]
            paged, after = [], None
            while page := await list_groups(store, after=after, limit=2):
                paged += page
                after = page[-1].letters, page[-1].group
            assert paged == [first, *others]

            async def chosen(**wanted: str) -> list[str]:
                rows = await list_dead(store, wanted=Wanted(**wanted))
                return [row["event_id"] for row in rows]

            assert await chosen(group=first.group) == ["0", "1"]
            assert await chosen(key="a") == ["0", "2", "3"]
            assert await chosen(key="k" * 3_000) == ["5"]
            assert await chosen(key="k" * 2_999) == []
            assert await chosen(handler="g") == ["4"]
            assert await chosen(type="u", key="a") == ["3"]
            assert await chosen(text="NO ORDER") == ["0", "1", "3", "4"]
            assert await chosen(text="%_") == ["5"]
            assert [row["event_id"] for row in await list_dead(store, wanted=ALL)] == [*"012345"]
            (group,) = await list_groups(store, wanted=Wanted(type="u"))
            assert group.letters == 1
            assert await list_groups(store, wanted=Wanted(text="nothing")) == []

    async def test_a_redrive_older_than_the_inbox_remembers_wants_to_be_meant(
        self, tmp_path: Path
    ) -> None:
        """Its duplicate could no longer be recognised (needs 17)."""
        ambient = SystemAmbient()
        limit = ambient.now() - INBOX_RETENTION
        letters = [
            msgspec.structs.replace(_dead(str(at)), time=at) for at in (limit - 60, limit + 60)
        ]
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(Changes(dead=letters))
            old, young = [row["id"] for row in await list_dead(store)]
            with pytest.raises(NotRedriven, match=r"older than 7 days.*--old"):
                await redrive(store, old, ambient, by=BY)
            assert (await _left(store))["inbox"] == 0
            await redrive(store, young, ambient, by=BY)
            await redrive(store, old, ambient, by=BY, old=True)
            assert (await _left(store))["inbox"] == 2
            for letter in (old, young):
                with pytest.raises(NotRedriven, match="already"):
                    await redrive(store, letter, ambient, by=BY, old=True)

    async def test_a_refused_event_of_the_outbox_holds_its_key_until_it_is_settled(
        self, tmp_path: Path
    ) -> None:
        """Redriven, it is the first of its key again; discarded, the others go on without it."""
        async with self._open(tmp_path) as (store,):
            ambient = SystemAmbient()
            others = msgspec.structs.replace(_announcement(5), key="other")
            announced = [*map(_announcement, range(1, 5)), others]
            await store.begin().commit(Changes(announced=announced))

            async def ids() -> list[str]:
                return [row.headers["id"] for row in await store.outbox(0, 0.0, 10)]

            async def refuse() -> int:
                first = (await store.outbox(0, 0.0, 1))[0]
                letter = msgspec.structs.replace(
                    _dead(first.headers["id"]),
                    handler=tables.OUTBOX,
                    position=first.seq,
                    data=first.data,
                    time=ambient.now(),
                )
                writes: Writes = [
                    (tables.REFUSE, [{"seq": first.seq}]),
                    (tables.HOLD, [{"stream": "s", "key": "k"}]),
                ]
                await store.begin().commit(Changes(writes=writes, dead=[letter]))
                return int((await list_dead(store))[-1]["id"])

            letter = await refuse()
            assert await ids() == ["5"]
            held = await store.fetch(tables.HELD, {})
            assert held == [{"stream": "s", "key": "k", "state": tables.Outbox.REFUSED}]
            await store.begin().commit(Changes(announced=[_announcement(6)]))
            await store.begin().commit(
                Changes(writes=[(tables.HOLD, [{"stream": "s", "key": "k"}])])
            )
            assert await ids() == ["5"]
            assert await store.fetch(tables.REFUSALS, {}) == [{"events": 1}]
            await redrive(store, letter, ambient, by=BY, data=b"mended")
            assert await ids() == ["1", "2", "3", "4", "5", "6"]
            assert (await store.outbox(0, 0.0, 1))[0].data == b"mended"
            letter = await refuse()
            assert await ids() == ["5"]
            await discard(store, letter, ambient, by=BY)
            assert await ids() == ["2", "3", "4", "5", "6"]
            assert await store.fetch(tables.HELD, {}) == []
            with pytest.raises(NotRedriven):
                await discard(store, letter, ambient, by=BY)

    async def test_what_waits_and_what_failed_is_found_by_key_and_by_id(
        self, tmp_path: Path
    ) -> None:
        """An event of a parked row, of a dead letter and of the outbox keeps its correlation id."""
        async with self._open(tmp_path) as (store,):
            await _claimed(store, "me")
            told = {"type": "t", "source": "/suite", "correlationid": "c"}
            parked = _parked("0a1b2c3d", headers={"id": "0a1b2c3d", **told}, key="%")
            dead = msgspec.structs.replace(_dead("9f8e7d6c"), headers={"id": "9f8e7d6c", **told})
            other = msgspec.structs.replace(_dead("11111111"), key="9")
            await store.begin().commit(Changes(parked=[parked], dead=[dead, other]))

            async def found(identity: str) -> tuple[list[str], list[str]]:
                known = await know(Service("suite"), store, identity)
                return [letter.event_id for letter in known.letters], [*known.correlations]

            assert await found("k") == (["9f8e7d6c"], ["c"])
            assert await found("9f8e7d6c") == (["9f8e7d6c"], ["c"])
            assert await found("c") == ([], ["c"])
            assert await found("0a1b2c3d") == ([], ["c"])
            assert await found("%") == ([], ["c"])
            assert await found("") == await found("none") == ([], [])
            number = str((await list_dead(store))[0]["id"])
            assert await found(number) == (["9f8e7d6c"], [])
            assert await found("9" * 30) == ([], [])
            for key, status in (("k", "running"), ("other", "ended")):
                await _change(store, key, data=b"1", shape=1, status=status)
            sql = tables.SAGAS_OF_KEYS.replace("{keys}", ":key0, :key1")
            rows = await store.fetch(sql, {"kind": "Kind", "key0": "k", "key1": "none"})
            assert [(row["key"], row["status"]) for row in rows] == [("k", "running")]
            recalled = await recall(store, "c")
            assert sorted(node.id for node in recalled.events) == ["0a1b2c3d", "9f8e7d6c"]
            assert [node.places[HERE].position for node in recalled.events] == [1, 4]

    # -- keyed state -------------------------------------------------------------------------------

    async def test_what_waits_is_counted_and_how_long(self, tmp_path: Path) -> None:
        """Whatever reader and owner it is of; what is done or is not due does not count."""

        async def waiting(now: float) -> dict[str, Any]:
            (row,) = await store.fetch(tables.WAITING, {"now": now})
            return row

        async def stuck(kind: str) -> int:
            (row,) = await store.fetch(tables.STUCK, {"kind": kind})
            return int(row["sagas"])

        async with self._open(tmp_path) as (store,):
            nothing = {"outbox": 0, "late": None, "refused": 0, "dead": 0}
            assert await waiting(9.0) == {**nothing, "parked": 0, "oldest": None}
            assert await store.fetch(tables.OUTBOX_FIRST, {"now": 9.0}) == []
            assert await stuck("Saga") == 0
            claim = await _claimed(store, "me")
            await store.begin().commit(
                Changes(
                    announced=[_announcement(n, due) for n, due in enumerate((0, 0, 0, 5.0, 99.0))],
                    handled=[_event("1")],
                    parked=[_parked("2"), _parked("3")],
                    dead=[_dead("4"), _dead("5")],
                    claim=claim,
                    position=1,
                    time=3.0,
                )
            )
            await store.begin().commit(
                Changes(parked=[_parked("6")], claim=claim, position=2, time=4.0)
            )
            assert await waiting(4.0) == {
                "outbox": 3, "late": None, "refused": 0, "dead": 2, "parked": 3, "oldest": 3.0
            }  # fmt: skip
            first, second, *_ = await store.outbox(0, 4.0, 10)
            mark = {"state": tables.Letter.DISCARDED, "note": "", "id": 1}
            writes: Writes = [
                (tables.REFUSE, [{"seq": first.seq}]),
                (tables.MARK_LETTER, [mark]),
            ]
            await store.begin().commit(Changes(writes=writes))
            assert await waiting(6.0) == {
                "outbox": 3, "late": 5.0, "refused": 1, "dead": 1, "parked": 3, "oldest": 3.0
            }  # fmt: skip
            (row,) = await store.fetch(tables.OUTBOX_FIRST, {"now": 6.0})
            assert msgspec.json.decode(row["headers"]) == second.headers
            for key, status in (("a", "stuck"), ("b", "waiting"), ("c", "stuck")):
                tx = store.begin()
                (loaded,) = await tx.load([("Saga", key)], alone=False)
                kept = msgspec.structs.replace(loaded, shape=1, data=b"{}", status=status)
                await tx.commit(Changes(kept=[kept]))
            assert (await stuck("Saga"), await stuck("Other")) == (2, 0)

    async def test_state_is_kept_as_it_was_and_deleted(self, tmp_path: Path) -> None:
        """A row that is missing has version 0; each change counts one."""
        async with self._open(tmp_path, 2) as (store, other):
            (row,) = await _load(store, "a")
            assert row == Kept(kind="Kind", key="a")
            saga: dict[str, Any] = {
                "status": "running",
                "step": "pay",
                "started": 1.5,
                "correlationid": "c",
            }
            for version, fields in ((1, {}), (2, saga), (3, {**saga, "ended": 2.5}), (4, {})):
                data = f"{version} Ü".encode()
                await _change(store, "a", data=data, shape=version + 1, **fields)
                kept = Kept(
                    kind="Kind", key="a", version=version, shape=version + 1, data=data, **fields
                )
                assert await _load(other, "b", "a") == [Kept(kind="Kind", key="b"), kept]
                seen = await store.fetch("select key, status from oyez_saga", {})
                assert seen == ([{"key": "a", "status": "running"}] if fields else [])
            rows = await store.fetch("select key, version from oyez_state", {})
            assert rows == [{"key": "a", "version": 4}]
            await _change(other, "a", data=None)
            await _change(other, "b", data=None)
            assert await store.fetch("select key from oyez_state", {}) == []
            assert (await _load(store, "a"))[0].version == 0

    async def test_sagas_are_listed_and_those_that_ended_are_forgotten_with_their_logs(
        self, tmp_path: Path
    ) -> None:
        """By status; only what ended before the given time is deleted."""
        async with self._open(tmp_path) as (store,):
            for key, fields in (
                ("a", {"status": "running", "step": "pay", "started": 1.0}),
                ("b", {"status": "ended", "step": "", "started": 1.0, "ended": 5.0}),
                ("c", {"status": "ended", "step": "", "started": 1.0, "ended": 9.0}),
                ("d", {}),
            ):
                await _change(store, key, data=b"1", shape=1, **fields)
                entry = {
                    "kind": "Kind", "key": key, "number": 1, "at": 1.0, "event_id": "e",
                    "type": "t", "step": "", "outputs": b'["starts"]',
                }  # fmt: skip
                await store.begin().commit(Changes(writes=[(tables.LOG_SAGA, [entry])]))

            async def listed(status: str = "", before: float = 1e12) -> list[str]:
                asked = {"status": status, "before": before, "limit": 9}
                return [row["key"] for row in await store.fetch(tables.SAGAS, asked)]

            assert await listed() == ["a"]
            assert sorted(await listed("ended")) == ["b", "c"]
            assert await listed("ended", before=-1.0) == []
            (row,) = await store.fetch(tables.SAGAS_OF_KEY, {"key": "b"})
            assert (row["kind"], row["ended"], bytes(row["data"])) == ("Kind", 5.0, b"1")
            begun = store.begin()
            then = {"then": 6.0}
            gone = await begun.fetch(tables.DELETE_ENDED, then, [(tables.DELETE_ENDED_LOG, [then])])
            await begun.commit(Changes())
            assert gone == [{"key": "b"}]
            assert await listed("ended") == ["c"]
            left = [
                len(await store.fetch(tables.SAGA_LOG, {"kind": "Kind", "key": key}))
                for key in "abcd"
            ]
            assert left == [1, 0, 1, 1]
            place = {"kind": "Kind", "key": "a"}
            await store.begin().commit(Changes(writes=[(tables.FORGET_SAGA, [place])]))
            assert await store.fetch(tables.SAGA_LOG, place) == []
            assert await store.fetch(tables.TIMERS_OF, place) == []

    async def test_sagas_are_counted_and_read_page_by_page(self, tmp_path: Path) -> None:
        """By kind and status, those of one time by their keys; no more than are asked for."""
        async with self._open(tmp_path) as (store,):

            async def put(kind: str, key: str, time: float, status: str, step: str = "") -> None:
                tx = store.begin()
                (row,) = await tx.load([(kind, key)], alone=False)
                ended = time if status == "ended" else None
                row = msgspec.structs.replace(
                    row, shape=1, data=b"x" * len(key), status=status, step=step, ended=ended
                )
                await tx.commit(Changes(kept=[row], time=time))

            for key, time in (("b", 1.0), ("a", 1.0), ("c", 0.5), ("long", 2.0)):
                await put("Kind", key, time, "running", "pay" if key < "c" else "ship")
            for key, time in (("y", 3.0), ("x", 4.0)):
                await put("Kind", key, time, "ended")
            await put("Another", "a", 1.0, "stuck")
            await _change(store, "z", data=b"1", shape=1)
            kinds = [row["kind"] for row in await store.fetch(tables.SAGA_KINDS, {})]
            assert kinds == ["Another", "Kind"]

            async def ask(statement: str, status: str, **more: Any) -> list[Any]:
                asked = {"kind": "Kind", "status": status, **more}
                rows = await store.fetch(statement, asked)
                return [row.get("key", (row.get("step"), row.get("sagas"))) for row in rows]

            assert await ask(tables.COUNT_SAGAS, "running", limit=9) == [("pay", 2), ("ship", 2)]
            assert await ask(tables.COUNT_SAGAS, "running", limit=2) == [("pay", 1), ("ship", 1)]
            assert await ask(tables.COUNT_SAGAS, "stuck", limit=9) == []
            for limit in (1, 2):
                asked = {"kind": "Kind", "limit": limit}
                assert await store.fetch(tables.COUNT_ENDED, asked) == [{"sagas": limit}]
            longest = await ask(tables.LONGEST_WITH_DATA, "running", bytes=3, limit=9)
            assert (longest[0], sorted(longest)) == ("c", ["a", "b", "c"])
            assert await ask(tables.NEWEST_WITH_DATA, "ended", bytes=3, limit=1) == ["x"]
            first = {"changed": -1.0, "key": "", "limit": 3}
            assert await ask(tables.SAGAS_AFTER, "running", **first) == ["c", "a", "b"]
            second = {"changed": 1.0, "key": "a", "limit": 3}
            assert await ask(tables.SAGAS_AFTER, "running", **second) == ["b", "long"]
            last = {"changed": 1e300, "key": "", "limit": 1}
            assert await ask(tables.SAGAS_BEFORE, "ended", **last) == ["x"]
            before = {"changed": 4.0, "key": "x", "limit": 3}
            assert await ask(tables.SAGAS_BEFORE, "ended", **before) == ["y"]
            entries: list[Mapping[str, Any]] = [
                {
                    "kind": "Kind", "key": "a", "number": number, "at": 1.0, "event_id": "e",
                    "type": "t", "step": "", "outputs": b"[]",
                }
                for number in range(1, 5)
            ]  # fmt: skip
            await store.begin().commit(Changes(writes=[(tables.LOG_SAGA, entries)]))
            place = {"kind": "Kind", "key": "a", "before": 4, "limit": 2}
            log = await store.fetch(tables.SAGA_LOG_BEFORE, place)
            assert [row["number"] for row in log] == [3, 2]

    async def test_state_is_written_with_the_rest_or_not_at_all(self, tmp_path: Path) -> None:
        """Also what a transaction that may read has loaded."""
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(Changes(writes=[_item(1)]))
            for alone in (False, True):
                tx = store.begin()
                rows = await tx.load([("Kind", "a"), ("Kind", "b")], alone=alone)
                rows[0].data = b"1"
                if alone:
                    assert await tx.fetch("select n from item", {}, []) == [{"n": 1}]
                with pytest.raises(ConstraintViolated):
                    await tx.commit(Changes(kept=rows[:1], writes=[_item(1)]))
                await tx.rollback()
                assert await store.fetch("select key from oyez_state", {}) == []

    async def test_state_that_was_not_loaded_is_never_overwritten(self, tmp_path: Path) -> None:
        """Neither where a row was changed since, nor where one was added or deleted."""
        async with self._open(tmp_path) as (store,):
            await _change(store, "a", data=b"1")
            await _change(store, "a", data=b"2")
            for key, version in (("a", 0), ("a", 1), ("b", 4)):
                for data in (b"3", None):
                    if (version, data) == (0, None):
                        continue
                    tx = store.begin()
                    await tx.load([("Kind", "c")], alone=False)
                    row = Kept(kind="Kind", key=key, version=version, data=data)
                    with pytest.raises(StateConflict):
                        await tx.commit(Changes(kept=[row], writes=[_item(1)]))
                    await tx.rollback()
            assert (await _load(store, "a"))[0].data == b"2"
            assert (await _left(store))["item"] == 0

    @pytest.mark.parametrize("replicas", [1, 3])
    async def test_no_change_of_state_is_lost(self, tmp_path: Path, replicas: int) -> None:
        """Transactions that load overlapping keys at the same time, some of which may read."""
        rounds, workers, keys = 20, 4, 6
        async with self._open(tmp_path, replicas) as stores:
            conflicts = 0

            async def work(number: int) -> None:
                nonlocal conflicts
                store, chance = stores[number % replicas], random.Random(number)  # noqa: S311
                for turn in range(rounds):
                    wanted = chance.sample(range(keys), 3)
                    alone = number == 0 and turn % 4 == 0
                    while True:
                        tx = store.begin()
                        try:
                            names = [("Kind", str(key)) for key in wanted]
                            rows = await tx.load(names, alone=alone)
                            await asyncio.sleep(0)
                            for row in rows:
                                row.data = str(int(row.data or b"0") + 1).encode()
                            await tx.commit(Changes(kept=rows))
                            break
                        except StateConflict:
                            conflicts += 1
                        finally:
                            await tx.rollback()

            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*(work(number) for number in range(workers)))
            rows = await _load(stores[0], *map(str, range(keys)))
            assert sum(int(row.data or b"0") for row in rows) == rounds * workers * 3
            assert all(int(row.data or b"0") == row.version for row in rows)
            assert conflicts < rounds * workers

    # -- timers ------------------------------------------------------------------------------------

    async def test_a_timer_is_replaced_by_its_name_and_deleted(self, tmp_path: Path) -> None:
        """Of one kind and key alone; the same in every statement order."""
        async with self._open(tmp_path) as (store,):

            async def left() -> list[tuple[str, str, str, float, float]]:
                sql = "select kind, key, name, due, armed from oyez_timer order by kind, key, name"
                return [tuple(row.values()) for row in await store.fetch(sql, {})]

            writes = [
                *arm("Order", "a", "pay", 10.5, 1.0),
                *arm("Order", "a", "ship", 20.0, 1.0),
                *arm("Order", "b", "pay", 30.0, 1.0),
                *arm("Minute", "a", "pay", 40.0, 1.0),
                *arm("Order", "a", "pay", 50.5, 2.0),
            ]
            await store.begin().commit(Changes(writes=writes))
            assert await left() == [
                ("Minute", "a", "pay", 40.0, 1.0),
                ("Order", "a", "pay", 50.5, 2.0),
                ("Order", "a", "ship", 20.0, 1.0),
                ("Order", "b", "pay", 30.0, 1.0),
            ]
            await store.begin().commit(Changes(writes=disarm("Order", "a", "pay")))
            assert [row[:3] for row in await left()] == [
                ("Minute", "a", "pay"),
                ("Order", "a", "ship"),
                ("Order", "b", "pay"),
            ]
            await store.begin().commit(Changes(writes=disarm_all("Order", "a")))
            assert [row[:3] for row in await left()] == [
                ("Minute", "a", "pay"),
                ("Order", "b", "pay"),
            ]

    async def test_due_timers_are_taken_in_their_order_by_kind_and_place(
        self, tmp_path: Path
    ) -> None:
        """And those armed in the future of a clock that was set back can be shifted."""
        async with self._open(tmp_path) as (store,):
            part = partition_of("a", tables.PLACES)
            other = next(k for k in "bcdefghi" if partition_of(k, tables.PLACES) != part)
            writes: Writes = []
            for n in (3, 1, 2, 4):
                writes += arm("Order", "a", str(n), n, 0.0)
            writes += arm("Minute", "a", "1", 1.0, 0.0) + arm("Order", other, "1", 1.0, 0.0)
            await store.begin().commit(Changes(writes=writes))

            async def take(now: float, limit: int) -> list[str]:
                tx = store.begin()
                asked = {"part": part, "kind": "Order", "now": now, "limit": limit}
                rows = await tx.fetch(tables.TAKE_TIMERS, asked, [])
                await tx.commit(Changes())
                return sorted(row["name"] for row in rows)

            assert await take(3.0, 2) == ["1", "2"]
            assert await take(3.0, 2) == ["3"]
            assert await take(3.0, 2) == []
            next_timer = tables.NEXT_TIMER.format(kind="one")
            both = f"{next_timer} union all {tables.NEXT_TIMER.format(kind='two')}"
            asked = {"part": part, "one": "Order", "two": "Minute"}
            found = await store.fetch(both, asked)
            assert [(row["kind"], row["due"]) for row in found] == [("Order", 4.0), ("Minute", 1.0)]
            shifted = {"part": part, "latest": -10.0, "now": -20.0, "calendar": "oyez:every"}
            assert await store.fetch(tables.AHEAD, {"part": part, "latest": 0.0}) == []
            assert await store.fetch(tables.AHEAD, {"part": part, "latest": -10.0}) != []
            await store.begin().commit(Changes(writes=[(tables.SHIFT_TIMERS, [shifted])]))
            assert [row["due"] for row in await store.fetch(both, asked)] == [-16.0, -19.0]
            (row,) = await store.fetch(tables.OVERDUE_TIMERS, {"now": -19.0})
            assert (row["part"], row["timers"], row["oldest"]) == (part, 1, -19.0)

    # -- parked events -----------------------------------------------------------------------------

    async def test_a_parked_event_comes_back_as_it_was(self, tmp_path: Path) -> None:
        """With its history and its original bytes, also a tombstone."""
        async with self._open(tmp_path) as (store,):
            await _claimed(store, "me")
            parked = [
                _parked("1", chain=None, data=None, key=None, attempt=3),
                _parked("2", chain=None, data=b"\x00\xff", key="北京", attempt=1),
            ]
            await store.begin().commit(Changes(parked=parked))
            found = await store.due("me", "handler", 100.0, 10)
            assert len({row.seq for row in found}) == 2
            assert [msgspec.structs.replace(row, seq=0) for row in found] == parked

    async def test_one_chain_runs_one_after_the_other(self, tmp_path: Path) -> None:
        """The head comes due, the others wait behind it; its end frees the next (G3)."""
        async with self._open(tmp_path) as (store,):
            await _claimed(store, "me")
            for number in range(4):
                await store.begin().commit(Changes(parked=[_parked(str(number), chain="k")]))
            for number in range(4):
                (head,) = await store.due("me", "handler", 100.0, 10)
                assert head.event_id == str(number)
                assert await store.due("me", "handler", 100.0, 10) == [head]
                dead = [_dead(head.event_id)] if number % 2 else []
                await store.begin().commit(Changes(settled=[head], dead=dead, time=50.0))
            assert await store.due("me", "handler", 100.0, 10) == []
            events = [_event(str(number)) for number in range(4)]
            assert await store.seen(events) == set(events)
            await store.begin().commit(Changes(parked=[_parked("9", chain="k")]))
            assert [p.event_id for p in await store.due("me", "handler", 100.0, 9)] == ["9"]

    async def test_a_retried_head_stays_the_head(self, tmp_path: Path) -> None:
        """It comes due again at its new time; what is behind it still waits."""
        async with self._open(tmp_path) as (store,):
            await _claimed(store, "me")
            await store.begin().commit(
                Changes(parked=[_parked("1", chain="k"), _parked("2", chain="k")])
            )
            (head,) = await store.due("me", "handler", 10.0, 10)
            head.due, head.attempt, head.history = 200.0, 2, [{"attempt": 2, "error": "no"}]
            await store.begin().commit(Changes(retried=[head]))
            assert await store.due("me", "handler", 199.0, 10) == []
            assert await store.due("me", "handler", 200.0, 10) == [head]
            await store.begin().commit(Changes(settled=[head], time=200.0))
            (following,) = await store.due("me", "handler", 200.0, 10)
            assert following.event_id == "2"

    async def test_ends_within_one_commit_free_one_another(self, tmp_path: Path) -> None:
        """Settled one after the other, also of one chain; then what is retried, then parked."""
        async with self._open(tmp_path) as (store,):
            claim = await _claimed(store, "me")
            parked = [_parked(str(n), chain="k") for n in range(4)]
            parked += [_parked("4", chain="l"), _parked("5", chain=None)]
            await store.begin().commit(Changes(parked=parked, claim=claim))
            rows = await store.fetch("select event_id, seq from oyez_inbox", {})
            numbers = {row["event_id"]: row["seq"] for row in rows}
            for one in parked:
                one.seq = numbers[one.event_id]
            parked[2].due = 50.0
            await store.begin().commit(
                Changes(
                    settled=[parked[n] for n in (0, 4, 1, 5)],
                    retried=[parked[2]],
                    parked=[_parked("6", chain="l"), _parked("7", chain="l")],
                    claim=claim,
                    time=2.0,
                )
            )

            async def ids(now: float) -> list[str]:
                return [p.event_id for p in await store.due("me", "handler", now, 10)]

            assert await ids(49.0) == ["6"]
            assert await ids(50.0) == ["6", "2"]
            with pytest.raises(Superseded):
                await store.begin().commit(Changes(settled=[parked[3]], claim=claim))
            with pytest.raises(Superseded):
                await store.begin().commit(Changes(retried=[parked[0]], claim=claim))

    async def test_none_is_left_behind_when_one_joins_a_chain_as_another_ends(
        self, tmp_path: Path
    ) -> None:
        """At the same moment, from different tasks: who waits is always freed (G4)."""
        async with self._open(tmp_path) as (store,):
            claim = await _claimed(store, "me")
            count = 40

            async def park() -> None:
                for number in range(count):
                    one = _parked(str(number), chain="k")
                    await store.begin().commit(Changes(parked=[one], claim=claim))

            parking = asyncio.ensure_future(park())
            settled: list[str] = []
            async with asyncio.timeout(DEADLINE):
                while len(settled) < count:
                    done = parking.done()
                    due = await store.due("me", "handler", 100.0, 10)
                    assert len(due) <= 1
                    assert due or not done, "no one comes due any more"
                    for head in due:
                        await store.begin().commit(Changes(settled=[head], claim=claim, time=1.0))
                        settled.append(head.event_id)
                    await asyncio.sleep(0)
            await parking
            assert settled == [str(number) for number in range(count)]

    async def test_chains_are_independent(self, tmp_path: Path) -> None:
        """Of each other and between partitions; events without one stand alone."""
        async with self._open(tmp_path) as (store,):
            await _claimed(store, "me")
            await _claimed(store, "me", partition=1)
            await store.begin().commit(
                Changes(
                    parked=[
                        _parked("1", chain="a", due=3.0),
                        _parked("2", chain="b", due=2.0),
                        _parked("3", chain="a", due=0.5, partition=1),
                        _parked("4", chain=None, due=1.5),
                        _parked("5", chain=None, due=1.0),
                        _parked("6", chain="a", due=0.1),
                    ]
                )
            )
            found = await store.due("me", "handler", 10.0, 10)
            assert [parked.event_id for parked in found] == ["3", "5", "4", "2", "1"]
            assert await store.due("me", "handler", 10.0, 2) == found[:2]
            assert [p.event_id for p in await store.due("me", "handler", 1.0, 10)] == ["3", "5"]

    async def test_due_is_for_the_owner_and_the_handler_that_ask(self, tmp_path: Path) -> None:
        """Parked events of partitions that another owns are that one's."""
        async with self._open(tmp_path) as (store,):
            await _claimed(store, "me")
            await _claimed(store, "other", partition=1)
            await store.begin().commit(
                Changes(
                    parked=[
                        _parked("1"),
                        _parked("2", partition=1),
                        _parked("3", partition=2),
                        _parked("4", handler="another"),
                    ]
                )
            )

            async def ids(owner: str, handler: str) -> list[str]:
                return [p.event_id for p in await store.due(owner, handler, 100.0, 10)]

            assert await ids("me", "handler") == ["1"]
            assert await ids("other", "handler") == ["2"]
            assert await ids("me", "another") == ["4"]
            assert await ids("nobody", "handler") == []

    # -- readers -----------------------------------------------------------------------------------

    async def test_a_reader_has_positions_an_inbox_and_chains_of_its_own(
        self, tmp_path: Path
    ) -> None:
        """What the service has handled is new to another reader of the same partition."""
        async with self._open(tmp_path) as (store,):
            claim = await _claimed(store, "me")
            await store.begin().commit(
                Changes(writes=[(tables.ADD_CURSOR, [_place("view")])], time=1.0)
            )
            begun = store.begin()
            (row,) = await begun.fetch(
                tables.CLAIM, {**_place("view"), "owner": "me", "now": 1.0}, []
            )
            await begun.commit(Changes())
            view = msgspec.structs.replace(claim, epoch=row["epoch"], reader="view")
            await store.begin().commit(Changes(claim=claim, position=7, handled=[_event("1")]))
            assert await store.seen([_event("1")], "view") == set()
            await store.begin().commit(Changes(claim=view, position=3, handled=[_event("1")]))
            assert await store.seen([_event("1")], "view") == {_event("1")}
            for reader, position in (("", 7), ("view", 3)):
                (cursor,) = await store.fetch(tables.CURSORS, {"reader": reader})
                assert cursor["position"] == position
            parked = [
                _parked("2", chain="k"),
                _parked("2", chain="k", reader="view"),
                _parked("3", chain="k", reader="view"),
            ]
            await store.begin().commit(Changes(parked=parked))
            first, second = await store.due("me", "handler", 10.0, 10)
            assert {first.reader, second.reader} == {"", "view"}
            assert {first.event_id, second.event_id} == {"2"}
            mine = first if first.reader == "" else second
            await store.begin().commit(Changes(claim=claim, settled=[mine], time=2.0))
            (left,) = await store.due("me", "handler", 10.0, 10)
            assert (left.event_id, left.reader) == ("2", "view")
            blocked = await store.fetch(tables.BLOCKED, _place("view"))
            assert blocked == [{"chain": "k", "parked": 2}]
            await store.begin().commit(Changes(claim=view, settled=[left], time=3.0))
            (left,) = await store.due("me", "handler", 10.0, 10)
            assert (left.event_id, left.reader) == ("3", "view")
            begun = store.begin()
            await begun.fetch(tables.CLAIM, {**_place("view"), "owner": "me", "now": 1.0}, [])
            await begun.commit(Changes())
            with pytest.raises(Fenced):
                await store.begin().commit(Changes(claim=view, position=9))
            await store.begin().commit(Changes(claim=claim, position=9))

    # -- fencing and leases ------------------------------------------------------------------------

    @pytest.mark.parametrize("interactive", [False, True])
    async def test_who_does_not_own_the_partition_is_fenced(
        self, tmp_path: Path, interactive: bool
    ) -> None:
        """Another owner, an older or newer epoch, an unknown partition: nothing is written (G3)."""
        async with self._open(tmp_path) as (store,):
            claim = await _claimed(store, "me", epoch=7)
            replace = msgspec.structs.replace
            for wrong in (
                replace(claim, owner="other"),
                replace(claim, epoch=6),
                replace(claim, epoch=8),
                replace(claim, partition=1),
                replace(claim, stream="t"),
            ):
                tx = store.begin()
                if interactive:
                    await tx.fetch("select 1 as one", {}, [_item(1)])
                changes = Changes(
                    claim=wrong, position=9, writes=[_item(2)], announced=[_announcement(1)],
                    handled=[_event("1")], parked=[_parked("2")],
                )  # fmt: skip
                with pytest.raises(Fenced):
                    await tx.commit(changes)
                await tx.rollback()
            assert await _left(store) == {
                "item": 0, "outbox": 0, "inbox": 0, "dead": 0, "position": 0
            }  # fmt: skip
            await store.begin().commit(Changes(claim=claim, writes=[_item(1)]))
            assert (await _left(store))["position"] == 0
            await store.begin().commit(Changes(claim=claim, position=3))
            left = await _left(store)
            assert (left["item"], left["position"]) == (1, 3)

    async def test_a_lease_is_kept_while_the_event_loop_is_blocked(self, tmp_path: Path) -> None:
        """By a handler that computes for longer than the lease lasts."""
        async with self._open(tmp_path) as (store,):
            if not store.capabilities.processes:
                pytest.skip("capabilities.processes is declared False")
            await store.keep("me", LEASE, "127.0.0.1:1")
            (first,) = await store.fetch("select until, note from oyez_replica", {})
            assert first["note"] == "127.0.0.1:1"
            begun = time.monotonic()
            while time.monotonic() < begun + LEASE * 1.4:
                sum(range(1_000))
            now = time.time()
            (row,) = await store.fetch("select until from oyez_replica", {})
            assert first["until"] < now < row["until"]
            await store.leave("me")

    async def test_leaving_frees_every_claim_at_once(self, tmp_path: Path) -> None:
        """And those of others stay."""
        async with self._open(tmp_path) as (store,):
            await store.keep("me", 60.0, "")
            await _claimed(store, "me")
            await _claimed(store, "me", partition=1)
            await _claimed(store, "other", partition=2)
            await store.leave("me")
            assert await store.fetch("select owner from oyez_replica", {}) == []
            sql = "select owner, epoch from oyez_cursor order by partition"
            owners = [row["owner"] for row in await store.fetch(sql, {})]
            assert owners == [None, None, "other"]
            await store.leave("me")
            await store.keep("me", 60.0, "again")
            assert await store.fetch("select note from oyez_replica", {}) == [{"note": "again"}]

    # -- other processes ---------------------------------------------------------------------------

    async def test_a_commit_is_told_to_every_store_on_the_database(self, tmp_path: Path) -> None:
        """For announcements and for parked events, here and elsewhere."""
        async with self._open(tmp_path, 2) as (store, other):
            heard = [asyncio.Event(), asyncio.Event()]
            store.on_commit(heard[0].set)
            other.on_commit(heard[1].set)
            changes = [
                Changes(announced=[_announcement(1)]),
                Changes(parked=[_parked("1")]),
                Changes(ring=True),
                Changes(announced=[_announcement(2)], told=True),
                Changes(announced=[_announcement(3, due=9.0)], told=True),
                Changes(announced=[_announcement(4)], parked=[_parked("2")], told=True),
            ]
            for one in changes:
                await store.begin().commit(one)
                async with asyncio.timeout(DEADLINE):
                    if not one.told or one.stored is None or one.parked:
                        await heard[0].wait()
                    if store.capabilities.processes:
                        await heard[1].wait()
                for event in heard:
                    event.clear()

    async def test_what_one_store_commits_another_reads(self, tmp_path: Path) -> None:
        """Replicas share one database."""
        async with self._open(tmp_path, 2) as (store, other):
            await store.begin().commit(Changes(writes=[_item(1)], handled=[_event("1")]))
            assert await other.fetch("select id from item", {}) == [{"id": 1}]
            assert await other.seen([_event("1")]) == {_event("1")}
            with pytest.raises(ConstraintViolated):
                await other.begin().commit(Changes(handled=[_event("1")]))

    # -- migrations --------------------------------------------------------------------------------

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
            await _claimed(store, "child")
            for _ in range(5):
                (row,) = await store.fetch("select coalesce(max(id), 0) + 1 as n from item", {})
                start = row["n"]
                arguments = (self.url(tmp_path), str(tmp_path), str(start))
                lines = chance.randrange(1, 120)
                said = await asyncio.to_thread(run_and_kill, _CHILD, *arguments, lines=lines)
                acknowledged = int(said[-1])
                assert [int(line) for line in said] == list(range(start, acknowledged + 1))
                async with asyncio.timeout(DEADLINE):
                    await store.begin().commit(Changes(writes=[(_COUNTER, [{"n": start}])]))
                rows = await store.fetch("select id from item order by id", {})
                numbers = [row["id"] for row in rows]
                last = len(numbers)
                assert numbers == list(range(1, last + 1))
                assert last >= acknowledged
                assert await _left(store) == {
                    "item": last, "outbox": last, "inbox": last, "dead": 0, "position": last
                }  # fmt: skip

    # -- for the tests above -----------------------------------------------------------------------

    @asynccontextmanager
    async def _open(self, tmp_path: Path, count: int = 1) -> AsyncIterator[list[Store]]:
        connect = self.make(tmp_path)
        async with AsyncExitStack() as stack:
            stores = [connect() for _ in range(count)]
            for store in stores:
                stack.push_async_callback(store.close)
                await store.open()
            tables = (
                "create table item (id integer primary key, n integer not null);"
                "create table counter (id integer primary key, n integer not null);"
                "insert into counter values (1, 0)"
            )
            await stores[0].migrate([("000-suite.sql", tables)])
            yield stores


def _placeholders(tx: StoreTransaction) -> tuple[str, str]:
    return ("?", "?") if tx.dialect == "sqlite" else ("$1", "$2")


async def _unit(store: Store, number: int) -> None:
    tx: StoreTransaction = store.begin()
    try:
        await tx.fetch("select n from counter", {}, [_item(number)])
        await tx.fetch("select n from counter", {}, [(_COUNTER, [{"n": number}])])
        await tx.commit(Changes(announced=[_announcement(number)], handled=[_event(str(number))]))
    finally:
        await tx.rollback()


async def _claimed(store: Store, owner: str, partition: int = 0, epoch: int = 1) -> Claim:
    sql = """insert into oyez_cursor (stream, partition, owner, epoch)
      values ('s', :partition, :owner, :epoch)"""
    row: Mapping[str, Any] = {"partition": partition, "owner": owner, "epoch": epoch}
    await store.begin().commit(Changes(writes=[(sql, [row])]))
    return Claim(stream="s", partition=partition, owner=owner, epoch=epoch)


async def _load(store: Store, *keys: str) -> list[Kept]:
    tx = store.begin()
    try:
        rows = await tx.load([("Kind", key) for key in keys], alone=False)
    finally:
        await tx.rollback()
    place = {key: index for index, key in enumerate(keys)}
    return sorted(rows, key=lambda row: place[row.key])


async def _change(store: Store, key: str, **fields: Any) -> None:
    tx = store.begin()
    try:
        (row,) = await tx.load([("Kind", key)], alone=False)
        cleared = Kept(kind=row.kind, key=row.key, version=row.version)
        await tx.commit(Changes(kept=[msgspec.structs.replace(cleared, **fields)]))
    finally:
        await tx.rollback()


def _place(reader: str) -> dict[str, Any]:
    return {"stream": "s", "partition": 0, "reader": reader}


def _resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def _left(store: Store) -> dict[str, int]:
    sql = """select (select count(*) from item) as item,
      (select count(*) from oyez_outbox) as outbox, (select count(*) from oyez_inbox) as inbox,
      (select count(*) from oyez_dead) as dead,
      (select coalesce(max(position), 0) from oyez_cursor) as position"""
    (row,) = await store.fetch(sql, {})
    return row


def _item(number: int) -> tuple[str, list[Mapping[str, Any]]]:
    return (_INSERT, [{"id": number, "n": number}])


def _announcement(number: int, due: float = 0.0) -> Announcement:
    text = str(number)
    return Announcement(stream="s", key="k", headers={"id": text}, data=text.encode(), due=due)


def _event(event_id: str) -> tuple[str, str, str]:
    return (event_id, "/suite", "handler")


def _parked(event_id: str, **changed: Any) -> Parked:
    parked = Parked(
        event_id=event_id,
        source="/suite",
        handler="handler",
        stream="s",
        partition=0,
        position=1,
        chain=None,
        due=1.0,
        attempt=1,
        history=[{"attempt": 1, "at": 0.5, "error": "ValueError: Ü"}],
        key="k",
        headers={"id": event_id, "type": "t"},
        data=b"{}",
    )
    return msgspec.structs.replace(parked, **changed)


def _dead(event_id: str) -> DeadLetter:
    return DeadLetter(
        event_id=event_id,
        source="/suite",
        type="t",
        handler="handler",
        stream="s",
        partition=0,
        position=4,
        key="k",
        reason="because",
        traceback="Traceback …",
        attempts=3,
        history=[{"attempt": 1}],
        headers={"id": event_id},
        data=b"\x00\xff",
        time=7.0,
    )
