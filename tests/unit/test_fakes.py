"""The fakes are honest: the store behaves as `SqliteStore` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import ONE, FakeStore

from oyez import tables
from oyez.errors import ConstraintViolated, Fenced, Superseded
from oyez.ports import Changes, Claim, DeadLetter, Parked, Store
from oyez.stores.sqlite import SqliteStore
from oyez.testing import VirtualAmbient
from oyez.testing.store_suite import Factory, StoreSuite

PLACE: dict[str, Any] = {"stream": "s", "partition": 0, "reader": ""}


class TestFakeStore:
    """The part of the suite that needs no SQL."""

    pytestmark = pytest.mark.asyncio

    def make(self, tmp_path: Path) -> Factory:
        store = FakeStore()
        return lambda: store

    _open = StoreSuite._open
    test_inbox = StoreSuite.test_the_inbox_knows_what_was_handled
    test_outbox = StoreSuite.test_the_outbox_is_in_commit_order
    test_concurrent = StoreSuite.test_concurrent_commits_each_keep_their_order_in_the_outbox
    test_delayed = StoreSuite.test_delayed_announcements_come_when_due
    test_state = StoreSuite.test_no_change_of_state_is_lost
    test_refused = StoreSuite.test_a_refused_event_of_the_outbox_holds_its_key_until_it_is_settled
    test_told = StoreSuite.test_a_commit_is_told_to_every_store_on_the_database


@pytest.fixture(params=["fake", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """One and then the other: what a test says holds of both."""
    made: Store = FakeStore()
    if request.param == "sqlite":
        made = SqliteStore(tmp_path / "s.db", VirtualAmbient(), inline=True, durable=False)
    await made.open()
    yield made
    await made.close()


async def test_a_claim_is_taken_from_the_dead_and_fences_them(store: Store) -> None:
    first = await _claim(store, "me")
    await store.keep("me", 60.0, "")
    assert await store.fetch(tables.LIVING, {"now": 1.0}) == [{"owner": "me"}]
    assert await _take(store, "another") == []
    await store.begin().commit(Changes(claim=first, position=3))
    (cursor,) = await store.fetch(tables.CURSORS, {"reader": ""})
    assert (cursor["position"], cursor["owner"], cursor["epoch"]) == (3, "me", 1)
    await store.leave("me")
    with pytest.raises(Fenced):
        await store.begin().commit(Changes(claim=first, position=4))
    assert await _take(store, "ghost") == [{"position": 3, "epoch": 2, "crashes": 0}]
    for crashes in (1, 2):
        (row,) = await _take(store, f"ghost {crashes}")
        assert row["crashes"] == crashes
    released = {**PLACE, "owner": "ghost 2", "epoch": row["epoch"]}
    await store.begin().commit(Changes(writes=[(tables.RELEASE, [released])]))
    (cursor,) = await store.fetch(tables.CURSORS, {"reader": ""})
    assert cursor["owner"] is None


async def test_parked_chains_dead_letters_and_their_second_life(store: Store) -> None:
    claim = await _claim(store, "me")
    parked = [_parked("1", "k"), _parked("2", "k"), _parked("3", None, due=9.0)]
    await store.begin().commit(Changes(parked=parked, claim=claim, time=1.0))
    with pytest.raises(ConstraintViolated):
        await store.begin().commit(Changes(parked=[parked[0]], time=1.0))
    blocked = await store.fetch(tables.BLOCKED, PLACE)
    assert {row["chain"]: row["parked"] for row in blocked} == {"k": 2, None: 1}
    times = await store.fetch(tables.PARKED_TIMES, {"now": 1.0})
    assert times == [{"handler": "h", "earliest": 1.0, "coming": 9.0}]
    assert await store.fetch(tables.OLDEST_RETRY, {"owner": "me"}) == [{"due": 1.0}]
    assert await store.fetch(tables.PARKED_HANDLERS, {}) == [{"handler": "h"}]
    (head,) = await store.due("me", "h", 1.0, 9)
    head.due, head.attempt, head.history = 5.0, 1, [{"attempt": 1, "error": "no"}]
    await store.begin().commit(Changes(claim=claim, retried=[head], time=1.0))
    assert await store.due("me", "h", 4.0, 9) == []
    assert await store.due("me", "h", 5.0, 9) == [head]
    dead = Changes(claim=claim, settled=[head], dead=[_dead("1")], time=6.0)
    await store.begin().commit(dead)
    with pytest.raises(Superseded):
        await store.begin().commit(Changes(claim=claim, settled=[head], time=6.0))
    assert [one.event_id for one in await store.due("me", "h", 6.0, 9)] == ["2"]
    (letter,) = await store.fetch(tables.DEAD_LETTERS, {"after": 0, "limit": 9})
    assert (letter["event_id"], letter["state"], letter["note"]) == ("1", "dead", "")
    begun = store.begin()
    mark = {"id": letter["id"], "state": "redriven", "note": "why"}
    assert await begun.fetch(tables.MARK_LETTER, mark, []) == [{"id": letter["id"]}]
    assert await begun.fetch(tables.MARK_LETTER, mark, []) == []
    again = {
        "event_id": "1", "source": "/s", "handler": "h", "reader": "", "stream": "s",
        "partition": 0, "position": 1, "history": b"[]", "key": "k", "headers": b"{}",
        "data": b"new", "now": 7.0,
    }  # fmt: skip
    assert len(await begun.fetch(tables.PARK_AGAIN, again, [])) == 1
    assert await begun.fetch(tables.PARK_AGAIN, again, []) == []
    await begun.commit(Changes(ring=True))
    assert await store.fetch(tables.DEAD_LETTERS, {"after": 0, "limit": 9}) == []
    (letter,) = await store.fetch(tables.ALL_LETTERS, {"after": 0, "limit": 9})
    assert (letter["state"], letter["note"]) == ("redriven", "why")
    assert set(letter) == {
        "id", "event_id", "type", "handler", "stream", "partition", "position", "key",
        "reason", "attempts", "time", "state", "note",
    }  # fmt: skip
    first, second = await store.due("me", "h", 7.0, 9)
    assert (first.event_id, first.data, first.chain, first.attempt) == ("1", b"new", None, 0)
    assert second.event_id == "2"


async def test_a_transaction_that_is_undone_or_fails_leaves_nothing(store: Store) -> None:
    claim = await _claim(store, "me")
    begun = store.begin()
    await begun.fetch(ONE, {}, [(tables.ADD_CURSOR, [{**PLACE, "partition": 1}])])
    await begun.rollback()
    await begun.rollback()
    for bad in (
        Changes(claim=Claim(stream="s", partition=0, owner="me", epoch=9), position=5),
        Changes(claim=claim, position=5, handled=[("1", "/s", "h"), ("1", "/s", "h")]),
        Changes(claim=claim, position=5, settled=[_parked("1", None)]),
    ):
        with pytest.raises((Fenced, ConstraintViolated, Superseded)):
            await store.begin().commit(bad)
    (cursor,) = await store.fetch(tables.CURSORS, {"reader": ""})
    assert cursor["position"] == 0
    assert await store.seen([("1", "/s", "h")]) == set()


async def test_what_is_old_is_deleted(store: Store) -> None:
    await store.begin().commit(Changes(handled=[("1", "/s", "h")], dead=[_dead("1")], time=1.0))
    await store.begin().commit(Changes(handled=[("2", "/s", "h")], dead=[_dead("2")], time=9.0))
    begun = store.begin()
    (first, _) = await begun.fetch(tables.ALL_LETTERS, {"after": 0, "limit": 9}, [])
    mark = {"id": first["id"], "state": "discarded", "note": "why"}
    await begun.fetch(tables.MARK_LETTER, mark, [])
    assert len(await begun.fetch(tables.DELETE_HANDLED, {"then": 5.0}, [])) == 1
    assert len(await begun.fetch(tables.DELETE_SETTLED_LETTERS, {"then": 9.0}, [])) == 1
    await begun.commit(Changes())
    assert await store.seen([("1", "/s", "h"), ("2", "/s", "h")]) == {("2", "/s", "h")}
    (left,) = await store.fetch(tables.ALL_LETTERS, {"after": 0, "limit": 9})
    assert left["event_id"] == "2"


async def _claim(store: Store, owner: str) -> Claim:
    await store.begin().commit(Changes(writes=[(tables.ADD_CURSOR, [PLACE])]))
    (row,) = await _take(store, owner)
    return Claim(stream="s", partition=0, owner=owner, epoch=row["epoch"])


async def _take(store: Store, owner: str) -> list[dict[str, Any]]:
    begun = store.begin()
    rows = await begun.fetch(tables.CLAIM, {**PLACE, "owner": owner, "now": 1.0}, [])
    await begun.commit(Changes())
    return rows


def _parked(event_id: str, chain: str | None, due: float = 1.0) -> Parked:
    return Parked(
        event_id=event_id,
        source="/s",
        handler="h",
        stream="s",
        partition=0,
        position=1,
        chain=chain,
        due=due,
        attempt=0,
        history=[],
        key=chain,
        headers={"id": event_id},
        data=b"{}",
    )


def _dead(event_id: str) -> DeadLetter:
    return DeadLetter(
        event_id=event_id,
        source="/s",
        type="t",
        handler="h",
        stream="s",
        partition=0,
        position=1,
        key="k",
        reason="because",
        traceback="",
        attempts=1,
        history=[],
        headers={},
        data=b"{}",
        time=6.0,
    )
