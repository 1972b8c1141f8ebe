"""State, sagas and timers: kept with the rest or not at all, and no change is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oyez import tables
from oyez.errors import ConstraintViolated, StateConflict, Superseded
from oyez.partitioning import partition_of
from oyez.ports import Changes, Kept, Store, Writes
from oyez.testing.store_suite.database import (
    DEADLINE,
    Database,
    change_state,
    count_left,
    make_announcement,
    make_event,
    make_item,
    make_letter,
    make_parked,
    take_claim,
)
from oyez.timers import arm, disarm, disarm_all


class KeyedState(Database):
    """State, sagas and timers: kept with the rest or not at all, and no change is lost."""

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
            claim = await take_claim(store, "me")
            await store.begin().commit(
                Changes(
                    announced=[
                        make_announcement(n, due) for n, due in enumerate((0, 0, 0, 5.0, 99.0))
                    ],
                    handled=[make_event("1")],
                    parked=[make_parked("2"), make_parked("3")],
                    dead=[make_letter("4"), make_letter("5")],
                    claim=claim,
                    position=1,
                    time=3.0,
                )
            )
            await store.begin().commit(
                Changes(parked=[make_parked("6")], claim=claim, position=2, time=4.0)
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
                await change_state(store, "a", data=data, shape=version + 1, **fields)
                kept = Kept(
                    kind="Kind", key="a", version=version, shape=version + 1, data=data, **fields
                )
                assert await _load(other, "b", "a") == [Kept(kind="Kind", key="b"), kept]
                seen = await store.fetch("select key, status from oyez_saga", {})
                assert seen == ([{"key": "a", "status": "running"}] if fields else [])
            rows = await store.fetch("select key, version from oyez_state", {})
            assert rows == [{"key": "a", "version": 4}]
            await change_state(other, "a", data=None)
            await change_state(other, "b", data=None)
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
                await change_state(store, key, data=b"1", shape=1, **fields)
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
            await change_state(store, "z", data=b"1", shape=1)
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
            await store.begin().commit(Changes(writes=[make_item(1)]))
            for alone in (False, True):
                tx = store.begin()
                rows = await tx.load([("Kind", "a"), ("Kind", "b")], alone=alone)
                rows[0].data = b"1"
                if alone:
                    assert await tx.fetch("select n from item", {}, []) == [{"n": 1}]
                with pytest.raises(ConstraintViolated):
                    await tx.commit(Changes(kept=rows[:1], writes=[make_item(1)]))
                await tx.rollback()
                assert await store.fetch("select key from oyez_state", {}) == []

    async def test_many_rows_of_state_are_written_with_the_ends_of_their_events(
        self, tmp_path: Path
    ) -> None:
        """As due timers are; and none of them where one event has ended already."""
        names = [str(number) for number in range(40)]
        places = [("Kind", name) for name in names]
        async with self._open(tmp_path) as (store,):
            claim = await take_claim(store, "me")
            parked = [make_parked(f"{name}/{n}", chain=name) for n in range(2) for name in names]
            await store.begin().commit(Changes(parked=parked, claim=claim))
            for data in (b"1", b"2"):
                due = await store.due("me", "handler", 100.0, 100)
                assert [event.chain for event in due] == names
                tx = store.begin()
                rows = [
                    msgspec.structs.replace(row, data=data)
                    for row in await tx.load(places, alone=False)
                ]
                await tx.commit(Changes(kept=rows, settled=due, claim=claim, time=1.0))
                tx = store.begin()
                rows = await tx.load(places, alone=False)
                assert {row.data for row in rows} == {data}
                with pytest.raises(Superseded):
                    await tx.commit(Changes(kept=rows, settled=due[:1], claim=claim, time=2.0))
                await tx.rollback()
            assert await store.due("me", "handler", 100.0, 100) == []
            kept = await store.fetch("select version from oyez_state", {})
            assert kept == [{"version": 2}] * len(names)

    async def test_state_that_was_not_loaded_is_never_overwritten(self, tmp_path: Path) -> None:
        """Neither where a row was changed since, nor where one was added or deleted."""
        async with self._open(tmp_path) as (store,):
            await change_state(store, "a", data=b"1")
            await change_state(store, "a", data=b"2")
            for key, version in (("a", 0), ("a", 1), ("b", 4)):
                for data in (b"3", None):
                    if (version, data) == (0, None):
                        continue
                    tx = store.begin()
                    await tx.load([("Kind", "c")], alone=False)
                    row = Kept(kind="Kind", key=key, version=version, data=data)
                    with pytest.raises(StateConflict):
                        await tx.commit(Changes(kept=[row], writes=[make_item(1)]))
                    await tx.rollback()
            assert (await _load(store, "a"))[0].data == b"2"
            assert (await count_left(store))["item"] == 0

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


async def _load(store: Store, *keys: str) -> list[Kept]:
    tx = store.begin()
    try:
        rows = await tx.load([("Kind", key) for key in keys], alone=False)
    finally:
        await tx.rollback()
    place = {key: index for index, key in enumerate(keys)}
    return sorted(rows, key=lambda row: place[row.key])
