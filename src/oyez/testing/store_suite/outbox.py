"""Announcements: in commit order, due when they are due, replaced and cancelled by name."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from oyez import tables
from oyez.ports import Announcement, Changes, Row
from oyez.testing.store_suite.database import (
    DEADLINE,
    Database,
    count_left,
    make_announcement,
    make_event,
    make_parked,
    take_claim,
)

_DELAYED = """insert into oyez_outbox (due, stream, key, headers, data)
 with recursive number (n) as (
  select 1 union all select n + 1 from number where n < cast(:count as integer))
 select cast(:start as double precision) + n, 's', 'k', :headers, :data from number"""


class Outbox(Database):
    """Announcements: in commit order, due when they are due, replaced and cancelled by name."""

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
                Changes(announced=[make_announcement(100 * n + each) for each in range(count)])
                for n, count in enumerate(counts)
            ]
            for changes in commits:
                await store.begin().commit(changes)
            late = Changes(announced=[make_announcement(900), make_announcement(901, due=50.0)])
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
                    rows = [make_announcement(name * 100 + step * 2 + n) for n in (0, 1)]
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
                Changes(
                    announced=[make_announcement(n, due=due) for n, due in ((1, 30.0), (2, 10.0))]
                )
            )
            await store.begin().commit(
                Changes(announced=[make_announcement(3, due=20.0), make_announcement(4)])
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
            late = [make_announcement(n, due=float(n)) for n in range(1, 41)]
            backlog = [make_announcement(n) for n in range(100, 180)]
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
            await take_claim(store, "me")
            at_once = [make_parked(f"a{n}", due=0.0) for n in range(6)]
            late = [make_parked(f"r{n}", due=float(n + 1)) for n in range(6)]
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
            claim = await take_claim(store, "me")
            parked = [
                make_parked("1", chain="k", due=5.0),
                make_parked("2", chain="k"),
                make_parked("3", chain="k", reader="view", due=6.0),
                make_parked("4", chain="k", reader="view"),
                make_parked("5", due=0.0),
            ]
            await store.begin().commit(
                Changes(claim=claim, handled=[make_event("0")], parked=parked, time=3.0)
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
            await store.begin().commit(Changes(announced=[make_announcement(1)]))
            (found,) = await store.outbox(0, 1_000.0, 512)
            assert found.headers["id"] == "1"
            await store.begin().commit(Changes(sent=[found.seq]))
            assert await store.outbox(0, 1_000.0, 512) == []
            due = await store.outbox(0, 1_000.0 + most, 512)
            assert [found.due for found in due] == [1_001.0 + n for n in range(512)]
            assert _resident() - before < 64 * 1024 * 1024
        async with self._open(tmp_path) as (store,):
            assert [row.due for row in await store.outbox(0, 1_003.0, 512)] == [1_001, 1_002, 1_003]
            assert (await count_left(store))["outbox"] == most

    async def test_a_later_announcement_is_replaced_by_its_name(self, tmp_path: Path) -> None:
        """In whatever transaction, and no other one is."""
        async with self._open(tmp_path) as (store,):
            for number, name in ((1, "t/a"), (2, "t/b"), (3, "t/a"), (4, None), (5, None)):
                one = make_announcement(number, due=10.0 + number)
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
                one = make_announcement(number, due=5.0 + number)
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


def _resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
