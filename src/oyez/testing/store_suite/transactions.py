"""One transaction and many at once: all or nothing, in order, and what was handled is known."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oyez.errors import ConstraintViolated, StoreRefused
from oyez.ports import Changes, Store, StoreTransaction
from oyez.testing.store_suite.database import (
    DEADLINE,
    INSERT_ITEM,
    SET_COUNTER,
    Database,
    count_left,
    make_announcement,
    make_event,
    make_item,
    make_letter,
    make_parked,
    take_claim,
)


class Transactions(Database):
    """One transaction and many at once: all or nothing, in order, and what was handled is known."""

    async def test_a_commit_leaves_everything(self, tmp_path: Path) -> None:
        """Own writes, announced, handled, parked, dead and the position, together."""
        async with self._open(tmp_path) as (store,):
            claim = await take_claim(store, "me")
            dead = make_letter("4")
            await store.begin().commit(
                Changes(
                    writes=[make_item(1)],
                    announced=[make_announcement(1)],
                    handled=[make_event("1")],
                    parked=[make_parked("2")],
                    dead=[dead],
                    claim=claim,
                    position=42,
                    time=5.0,
                )
            )
            assert await count_left(store) == {
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
            claim = await take_claim(store, "me")
            await store.begin().commit(Changes(writes=[make_item(1)], handled=[make_event("old")]))
            before = await count_left(store)
            good: dict[str, Any] = {
                "writes": [make_item(2)],
                "announced": [make_announcement(1)],
                "handled": [make_event("1")],
                "parked": [make_parked("2")],
                "dead": [make_letter("4")],
                "claim": claim,
                "position": 42,
            }
            bad: dict[str, Any] = {
                "writes": [make_item(2), make_item(1)],
                "handled": [make_event("1"), make_event("old")],
                "parked": [make_parked("2"), make_parked("old")],
            }
            for name, value in bad.items():
                tx = store.begin()
                if interactive:
                    await tx.fetch("select n from item", {}, [make_item(3)])
                with pytest.raises(ConstraintViolated):
                    await tx.commit(Changes(**{**good, name: value}))
                await tx.rollback()
                assert await count_left(store) == before
            await store.begin().commit(Changes(**good))
            assert (await count_left(store))["item"] == 2

    async def test_a_failing_statement_undoes_its_own_transaction_alone(
        self, tmp_path: Path
    ) -> None:
        """Others that commit at the same moment, in the same group perhaps, are not touched."""
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(Changes(writes=[make_item(0)]))

            async def commit(number: int) -> None:
                last = 0 if number % 5 == 0 else number + 1_000
                tx = store.begin()
                if number % 3 == 0:
                    await tx.fetch("select 1 as one", {}, [make_item(number)])
                    changes = Changes(
                        writes=[make_item(last)], announced=[make_announcement(number)]
                    )
                else:
                    writes = [make_item(number), make_item(last)]
                    changes = Changes(writes=writes, announced=[make_announcement(number)])
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
            assert await tx.fetch(count, {}, [make_item(1), make_item(2)]) == [{"n": 2}]
            assert await tx.fetch(count, {}, [make_item(3)]) == [{"n": 3}]
            rows = await tx.fetch(f"{INSERT_ITEM} returning id, n", {"id": 4, "n": 40}, [])
            assert rows == [{"id": 4, "n": 40}]
            assert await tx.fetch("select n from item where id = :id", {"id": 99}, []) == []
            await tx.commit(Changes(writes=[make_item(5)]))
            assert await store.fetch(count, {}) == [{"n": 5}]

    async def test_a_write_that_returns_rows_runs_for_every_parameter_set(
        self, tmp_path: Path
    ) -> None:
        """Nobody reads the rows; each write happens all the same."""
        sql = f"{INSERT_ITEM} returning id"
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(
                Changes(writes=[(sql, [{"id": n, "n": n} for n in range(7)])])
            )
            assert (await count_left(store))["item"] == 7

    async def test_after_a_failed_read_nothing_is_committed(self, tmp_path: Path) -> None:
        """A handler that swallows the error can't commit without the writes that failed."""
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(Changes(writes=[make_item(1)]))
            for sql, before in (
                ("select 1 as one", [make_item(2), make_item(1), make_item(3)]),
                (INSERT_ITEM, []),
            ):
                tx = store.begin()
                await tx.fetch("select 1 as one", {}, [make_item(7)])
                with pytest.raises(ConstraintViolated):
                    await tx.fetch(sql, {"id": 1, "n": 1} if sql == INSERT_ITEM else {}, before)
                with pytest.raises(ConstraintViolated):
                    await tx.commit(
                        Changes(writes=[make_item(4)], announced=[make_announcement(1)])
                    )
                await tx.rollback()
                left = await count_left(store)
                assert (left["item"], left["outbox"]) == (1, 0)

    async def test_an_answer_tells_columns_and_changes(self, tmp_path: Path) -> None:
        """Also without a row; two columns of one name are two. It sees the writes before it."""
        async with self._open(tmp_path) as (store,):
            tx = store.begin()
            one, two = _placeholders(tx)
            insert = f"insert into item (id, n) values ({one}, {two})"
            answer = await tx.run(f"{insert} returning n, id", [(1, 10)], [make_item(7)])
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
            assert (await count_left(store))["item"] == 7

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
                        await tx.fetch(INSERT_ITEM, {"id": 1, "n": 1}, [])
                elif attempt == "before":
                    with pytest.raises(ConstraintViolated):
                        await tx.fetch("select 1 as one", {}, [make_item(3), make_item(1)])
                elif attempt == "syntax":
                    with pytest.raises(StoreRefused):
                        await tx.run("select from nowhere", [()], [])
                await tx.rollback_to("part")
            await tx.run("release savepoint part", [()], [])
            await tx.run(insert, [(3, 3)], [])
            await tx.commit(Changes(writes=[make_item(4)]))
            rows = await store.fetch("select id from item order by id", {})
            assert [row["id"] for row in rows] == [1, 3, 4]

    async def test_a_failure_before_the_savepoint_is_not_forgiven(self, tmp_path: Path) -> None:
        """Nor one after which nobody went back to it."""
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(Changes(writes=[make_item(1)]))
            tx = store.begin()
            await tx.run("savepoint part", [()], [make_item(2)])
            for _ in range(2):
                with pytest.raises(ConstraintViolated):
                    await tx.fetch("select 1 as one", {}, [make_item(1)])
            with pytest.raises(ConstraintViolated):
                await tx.run("savepoint late", [()], [])
            with pytest.raises(ConstraintViolated):
                await tx.commit(Changes())
            await tx.rollback()
            assert (await count_left(store))["item"] == 1

    async def test_rollback_is_safe_at_any_time(self, tmp_path: Path) -> None:
        """Before anything, after a read, after a commit, and twice."""
        async with self._open(tmp_path) as (store,):
            tx = store.begin()
            await tx.rollback()
            await tx.rollback()
            tx = store.begin()
            await tx.fetch("select 1 as one", {}, [make_item(1)])
            await tx.rollback()
            await tx.rollback()
            assert (await count_left(store))["item"] == 0
            for interactive in (1, 2):
                tx = store.begin()
                if interactive == 2:
                    await tx.fetch("select 1 as one", {}, [])
                await tx.commit(Changes(writes=[make_item(interactive)]))
                await tx.rollback()
            assert (await count_left(store))["item"] == 2

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
                await tx.commit(Changes(writes=[(SET_COUNTER, [{"n": row["n"] + 1}])]))

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
            await tx.fetch("select 1 as one", {}, [make_item(1)])
            async with asyncio.timeout(DEADLINE):
                assert await store.fetch("select * from item", {}) == []
                assert await store.seen([make_event("1")]) == set()
            await tx.commit(Changes(announced=[make_announcement(1)]))
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
            events = [make_event(str(n)) for n in range(-number, number + 1)]
            assert await store.seen(events) == {make_event(str(n)) for n in rows}
            first = await store.fetch("select count(*) as n from item where id < 0", {})
            assert first == [{"n": number}]

    async def test_cancelled_before_its_commit_began_it_leaves_nothing(
        self, tmp_path: Path
    ) -> None:
        """While it waits for another transaction; the other is not disturbed."""
        async with self._open(tmp_path) as (store,):
            first = store.begin()
            await first.fetch("select 1 as one", {}, [make_item(1)])
            reading = asyncio.ensure_future(
                store.begin().fetch("select 1 as one", {}, [make_item(2)])
            )
            writing = asyncio.ensure_future(store.begin().commit(Changes(writes=[make_item(3)])))
            await asyncio.sleep(0)
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
            await first.commit(Changes(writes=[make_item(4)]))
            await store.begin().commit(Changes(writes=[make_item(5)]))
            rows = await store.fetch("select id from item order by id", {})
            assert [row["id"] for row in rows] == [1, 4, 5]

    # -- inbox -------------------------------------------------------------------------------------

    async def test_the_inbox_knows_what_was_handled(self, tmp_path: Path) -> None:
        """By event id, source and handler together; parked events count."""
        async with self._open(tmp_path) as (store,):
            known = [("1", "/a", "h"), ("2", "/a", "h"), ("1", "/b", "h"), ("1", "/a", "g")]
            await store.begin().commit(Changes(handled=known, parked=[make_parked("9")]))
            asked = [*known, make_event("9"), ("2", "/b", "h"), ("", "", "")]
            assert await store.seen(asked) == {*known, make_event("9")}
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
                                handled=[make_event("1")],
                                writes=[make_item(n)],
                                announced=[make_announcement(n)],
                            )
                        )
                        for n in range(6)
                    ),
                    return_exceptions=True,
                )
            assert sum(result is None for result in results) == 1
            assert sum(isinstance(result, ConstraintViolated) for result in results) == 5
            left = await count_left(stores[0])
            assert (left["item"], left["outbox"], left["inbox"]) == (1, 1, 1)


def _placeholders(tx: StoreTransaction) -> tuple[str, str]:
    return ("?", "?") if tx.dialect == "sqlite" else ("$1", "$2")


async def _unit(store: Store, number: int) -> None:
    tx: StoreTransaction = store.begin()
    try:
        await tx.fetch("select n from counter", {}, [make_item(number)])
        await tx.fetch("select n from counter", {}, [(SET_COUNTER, [{"n": number}])])
        await tx.commit(
            Changes(announced=[make_announcement(number)], handled=[make_event(str(number))])
        )
    finally:
        await tx.rollback()
