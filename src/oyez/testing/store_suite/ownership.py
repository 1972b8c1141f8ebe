"""Readers, fencing and leases, and what other processes on the database learn."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oyez import tables
from oyez.errors import ConstraintViolated, Fenced
from oyez.ports import Changes
from oyez.testing.store_suite.database import (
    DEADLINE,
    Database,
    count_left,
    make_announcement,
    make_event,
    make_item,
    make_parked,
    take_claim,
)

LEASE = 1.2
"""Seconds of the lease that a blocked event loop must not lose."""


class Ownership(Database):
    """Readers, fencing and leases, and what other processes on the database learn."""

    async def test_a_reader_has_positions_an_inbox_and_chains_of_its_own(
        self, tmp_path: Path
    ) -> None:
        """What the service has handled is new to another reader of the same partition."""
        async with self._open(tmp_path) as (store,):
            claim = await take_claim(store, "me")
            await store.begin().commit(
                Changes(writes=[(tables.ADD_CURSOR, [_place("view")])], time=1.0)
            )
            begun = store.begin()
            (row,) = await begun.fetch(
                tables.CLAIM, {**_place("view"), "owner": "me", "now": 1.0}, []
            )
            await begun.commit(Changes())
            view = msgspec.structs.replace(claim, epoch=row["epoch"], reader="view")
            await store.begin().commit(Changes(claim=claim, position=7, handled=[make_event("1")]))
            assert await store.seen([make_event("1")], "view") == set()
            await store.begin().commit(Changes(claim=view, position=3, handled=[make_event("1")]))
            assert await store.seen([make_event("1")], "view") == {make_event("1")}
            for reader, position in (("", 7), ("view", 3)):
                (cursor,) = await store.fetch(tables.CURSORS, {"reader": reader})
                assert cursor["position"] == position
            parked = [
                make_parked("2", chain="k"),
                make_parked("2", chain="k", reader="view"),
                make_parked("3", chain="k", reader="view"),
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
            claim = await take_claim(store, "me", epoch=7)
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
                    await tx.fetch("select 1 as one", {}, [make_item(1)])
                changes = Changes(
                    claim=wrong, position=9, writes=[make_item(2)],
                    announced=[make_announcement(1)],
                    handled=[make_event("1")], parked=[make_parked("2")],
                )  # fmt: skip
                with pytest.raises(Fenced):
                    await tx.commit(changes)
                await tx.rollback()
            assert await count_left(store) == {
                "item": 0, "outbox": 0, "inbox": 0, "dead": 0, "position": 0
            }  # fmt: skip
            await store.begin().commit(Changes(claim=claim, writes=[make_item(1)]))
            assert (await count_left(store))["position"] == 0
            await store.begin().commit(Changes(claim=claim, position=3))
            left = await count_left(store)
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
            await take_claim(store, "me")
            await take_claim(store, "me", partition=1)
            await take_claim(store, "other", partition=2)
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
                Changes(announced=[make_announcement(1)]),
                Changes(parked=[make_parked("1")]),
                Changes(ring=True),
                Changes(announced=[make_announcement(2)], told=True),
                Changes(announced=[make_announcement(3, due=9.0)], told=True),
                Changes(announced=[make_announcement(4)], parked=[make_parked("2")], told=True),
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
            await store.begin().commit(Changes(writes=[make_item(1)], handled=[make_event("1")]))
            assert await other.fetch("select id from item", {}) == [{"id": 1}]
            assert await other.seen([make_event("1")]) == {make_event("1")}
            with pytest.raises(ConstraintViolated):
                await other.begin().commit(Changes(handled=[make_event("1")]))


def _place(reader: str) -> dict[str, Any]:
    return {"stream": "s", "partition": 0, "reader": reader}
