"""Events that wait for a retry: their chains, and whose they are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from oyez.errors import Superseded
from oyez.ports import Changes
from oyez.testing.store_suite.database import (
    DEADLINE,
    Database,
    make_event,
    make_letter,
    make_parked,
    take_claim,
)


class ParkedEvents(Database):
    """Events that wait for a retry: their chains, and whose they are."""

    async def test_a_parked_event_comes_back_as_it_was(self, tmp_path: Path) -> None:
        """With its history and its original bytes, also a tombstone."""
        async with self._open(tmp_path) as (store,):
            await take_claim(store, "me")
            parked = [
                make_parked("1", chain=None, data=None, key=None, attempt=3),
                make_parked("2", chain=None, data=b"\x00\xff", key="北京", attempt=1),
            ]
            await store.begin().commit(Changes(parked=parked))
            found = await store.due("me", "handler", 100.0, 10)
            assert len({row.seq for row in found}) == 2
            assert [msgspec.structs.replace(row, seq=0) for row in found] == parked

    async def test_one_chain_runs_one_after_the_other(self, tmp_path: Path) -> None:
        """The head comes due, the others wait behind it; its end frees the next (G3)."""
        async with self._open(tmp_path) as (store,):
            await take_claim(store, "me")
            for number in range(4):
                await store.begin().commit(Changes(parked=[make_parked(str(number), chain="k")]))
            for number in range(4):
                (head,) = await store.due("me", "handler", 100.0, 10)
                assert head.event_id == str(number)
                assert await store.due("me", "handler", 100.0, 10) == [head]
                dead = [make_letter(head.event_id)] if number % 2 else []
                await store.begin().commit(Changes(settled=[head], dead=dead, time=50.0))
            assert await store.due("me", "handler", 100.0, 10) == []
            events = [make_event(str(number)) for number in range(4)]
            assert await store.seen(events) == set(events)
            await store.begin().commit(Changes(parked=[make_parked("9", chain="k")]))
            assert [p.event_id for p in await store.due("me", "handler", 100.0, 9)] == ["9"]

    async def test_a_retried_head_stays_the_head(self, tmp_path: Path) -> None:
        """It comes due again at its new time; what is behind it still waits."""
        async with self._open(tmp_path) as (store,):
            await take_claim(store, "me")
            await store.begin().commit(
                Changes(parked=[make_parked("1", chain="k"), make_parked("2", chain="k")])
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
            claim = await take_claim(store, "me")
            parked = [make_parked(str(n), chain="k") for n in range(4)]
            parked += [make_parked("4", chain="l"), make_parked("5", chain=None)]
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
                    parked=[make_parked("6", chain="l"), make_parked("7", chain="l")],
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
            claim = await take_claim(store, "me")
            count = 40

            async def park() -> None:
                for number in range(count):
                    one = make_parked(str(number), chain="k")
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
            await take_claim(store, "me")
            await take_claim(store, "me", partition=1)
            await store.begin().commit(
                Changes(
                    parked=[
                        make_parked("1", chain="a", due=3.0),
                        make_parked("2", chain="b", due=2.0),
                        make_parked("3", chain="a", due=0.5, partition=1),
                        make_parked("4", chain=None, due=1.5),
                        make_parked("5", chain=None, due=1.0),
                        make_parked("6", chain="a", due=0.1),
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
            await take_claim(store, "me")
            await take_claim(store, "other", partition=1)
            await store.begin().commit(
                Changes(
                    parked=[
                        make_parked("1"),
                        make_parked("2", partition=1),
                        make_parked("3", partition=2),
                        make_parked("4", handler="another"),
                    ]
                )
            )

            async def ids(owner: str, handler: str) -> list[str]:
                return [p.event_id for p in await store.due(owner, handler, 100.0, 10)]

            assert await ids("me", "handler") == ["1"]
            assert await ids("other", "handler") == ["2"]
            assert await ids("me", "another") == ["4"]
            assert await ids("nobody", "handler") == []
