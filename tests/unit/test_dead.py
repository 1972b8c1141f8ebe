"""Dead letters: listed, redriven and discarded; each once, and each whole or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from fakes import FakeStore
from parts import BY, because, parked

from oyez import tables
from oyez.errors import InvalidEvent, NotRedriven, StoreUnavailable
from oyez.ports import Announcement, Changes, DeadLetter
from oyez.runtime.dead import INBOX_RETENTION, discard, list_dead, redrive, show_dead
from oyez.testing import VirtualAmbient


class Desk:
    """A store with dead letters, and a clock."""

    def __init__(self) -> None:
        self.ambient = VirtualAmbient()
        self.store = FakeStore()

    async def letter(self, event_id: str = "e1", **changed: Any) -> int:
        """One more dead letter; its event was handled in vain. Its id."""
        known = parked(event_id)
        letter = DeadLetter(
            event_id=event_id,
            source=known.source,
            type="shop.placed",
            handler="take",
            stream=known.stream,
            partition=0,
            position=4,
            key="a",
            reason="because",
            traceback="Traceback",
            attempts=1,
            history=[{"attempt": 1, "at": 1.0, "error": "ValueError: no"}],
            headers=known.headers,
            data=b"old",
            time=self.ambient.now(),
        )
        letter = msgspec.structs.replace(letter, **changed)
        handled = [(event_id, letter.source, letter.handler)] if letter.handler else []
        await self.store.begin().commit(Changes(dead=[letter], handled=handled))
        return int(self.store.letters[-1]["id"])

    async def refused(self, key: str | None = "a") -> int:
        """A dead letter of the outbox, with two events of its key behind it. Its id."""
        rows = [
            Announcement(stream="shop.desk", key=key, headers={"id": f"e{n}"}, data=b"old")
            for n in (1, 2, 3)
        ]
        await self.store.begin().commit(Changes(announced=rows))
        (seq, *_) = [row["seq"] for row in self.store.announced]
        writes: list[Any] = [(tables.REFUSE, [{"seq": seq}])]
        if key is not None:
            writes.append((tables.HOLD, [{"stream": "shop.desk", "key": key}]))
        await self.store.begin().commit(Changes(writes=writes))
        return await self.letter(handler=tables.OUTBOX, position=seq, stream="shop.desk", key=key)

    async def redrive(self, letter: int, **how: Any) -> None:
        await redrive(self.store, letter, self.ambient, by=BY, **how)

    async def outbox(self) -> list[tuple[str, bytes]]:
        """What may be published."""
        rows = await self.store.outbox(0, self.ambient.now(), 9)
        return [(row.headers["id"], row.data) for row in rows]


async def test_letters_are_listed_in_pages_without_what_is_settled() -> None:
    desk = Desk()
    letters = [await desk.letter(f"e{n}") for n in range(5)]
    await discard(desk.store, letters[1], desk.ambient, by=because("known"))
    first = await list_dead(desk.store, limit=2)
    assert [row["event_id"] for row in first] == ["e0", "e2"]
    rest = await list_dead(desk.store, after=first[-1]["id"], limit=9)
    assert [row["event_id"] for row in rest] == ["e3", "e4"]
    every = await list_dead(desk.store, every=True, limit=9)
    assert [row["event_id"] for row in every] == [f"e{n}" for n in range(5)]
    assert "data" not in every[0]


async def test_one_letter_is_shown_whole() -> None:
    desk = Desk()
    row = await show_dead(desk.store, await desk.letter())
    assert row is not None
    assert (row["headers"]["id"], row["data"], row["traceback"]) == ("e1", b"old", "Traceback")
    assert row["history"] == [{"attempt": 1, "at": 1.0, "error": "ValueError: no"}]
    assert await show_dead(desk.store, 99) is None


async def test_a_redriven_event_is_parked_to_run_now_with_fresh_attempts() -> None:
    desk = Desk()
    heard = asyncio.Event()
    desk.store.on_commit(heard.set)
    letter = await desk.letter()
    await desk.redrive(letter)
    (row,) = desk.store.waiting
    assert (row["event_id"], row["handler"], row["attempt"]) == ("e1", "take", 0)
    assert (row["due"], row["data"], row["chain"]) == (0.0, b"old", None)
    assert row["history"][0]["error"] == "ValueError: no"
    assert heard.is_set()
    assert await list_dead(desk.store) == []


async def test_a_letter_is_redriven_or_discarded_once() -> None:
    desk = Desk()
    first, second = await desk.letter("e1"), await desk.letter("e2")
    await desk.redrive(first)
    await discard(desk.store, second, desk.ambient, by=because("known"))
    for letter, what in ((first, "redriven"), (second, "discarded already: known")):
        with pytest.raises(NotRedriven, match=what):
            await desk.redrive(letter)
        with pytest.raises(NotRedriven, match="still dead"):
            await discard(desk.store, letter, desk.ambient, by=because("again"))
    with pytest.raises(NotRedriven, match="no dead letter 99"):
        await desk.redrive(99)
    with pytest.raises(NotRedriven, match="no dead letter 99"):
        await discard(desk.store, 99, desk.ambient, by=because("why"))
    assert len(desk.store.waiting) == 1


async def test_of_two_at_once_one_redrives() -> None:
    desk = Desk()
    letter = await desk.letter()
    results = await asyncio.gather(
        desk.redrive(letter), desk.redrive(letter), return_exceptions=True
    )
    assert sorted(isinstance(result, NotRedriven) for result in results) == [False, True]
    assert len(desk.store.waiting) == 1


async def test_who_comes_too_late_does_not_run_it_again_though_it_has_ended() -> None:
    desk = Desk()
    letter = await desk.letter()
    hold = desk.store.faults.hold("begun")
    late = asyncio.ensure_future(desk.redrive(letter))
    await hold.reached.wait()
    await desk.redrive(letter)
    desk.store.waiting[0]["state"] = tables.Inbox.HANDLED
    hold.release.set()
    with pytest.raises(NotRedriven, match="already"):
        await late
    assert desk.store.waiting == []


async def test_an_event_that_is_parked_already_is_not_redriven_and_its_letter_stays() -> None:
    """It was redriven from another letter of its, and has not run yet."""
    desk = Desk()
    first = await desk.letter()
    await desk.redrive(first)
    row = {**desk.store.letters[0], "id": 77, "state": "dead"}
    desk.store.letters.append(row)
    with pytest.raises(NotRedriven, match="being redriven already"):
        await desk.redrive(77)
    assert [row["id"] for row in await list_dead(desk.store)] == [77]


async def test_one_that_is_too_old_to_know_a_duplicate_by_wants_to_be_meant() -> None:
    desk = Desk()
    letter = await desk.letter()
    await desk.ambient.advance(INBOX_RETENTION + 1)
    with pytest.raises(NotRedriven, match=r"older than 7 days.*use --old"):
        await desk.redrive(letter)
    assert desk.store.waiting == []
    await desk.redrive(letter, old=True)
    assert len(desk.store.waiting) == 1


async def test_handler_and_data_can_be_replaced_and_that_is_recorded() -> None:
    desk = Desk()
    letter = await desk.letter()
    await desk.redrive(letter, handler="book", data=b"new")
    (row,) = desk.store.waiting
    assert (row["handler"], row["data"]) == ("book", b"new")
    shown = await show_dead(desk.store, letter)
    assert shown is not None
    assert shown["data"] == b"old"
    assert "to book" in shown["note"]


async def test_what_could_not_be_read_needs_a_handler() -> None:
    desk = Desk()
    letter = await desk.letter(handler="")
    with pytest.raises(NotRedriven, match="name it with --handler"):
        await desk.redrive(letter)
    await desk.redrive(letter, handler="take", data=b"{}")
    assert desk.store.waiting[0]["handler"] == "take"


async def test_to_discard_one_must_say_why() -> None:
    desk = Desk()
    letter = await desk.letter()
    with pytest.raises(InvalidEvent, match="state why"):
        await discard(desk.store, letter, desk.ambient, by=because(""))
    await discard(desk.store, letter, desk.ambient, by=because("w" * 999))
    assert desk.store.letters[0]["note"] == "w" * 500


@pytest.mark.parametrize("outbox", [False, True])
@pytest.mark.parametrize("call", ["begun", "commit"])
async def test_a_store_that_fails_in_between_leaves_the_letter_dead(
    call: str, outbox: bool
) -> None:
    """Marked and moved in one transaction: a mark without its move would lose the event."""
    desk = Desk()
    letter = await (desk.refused() if outbox else desk.letter())
    moves = (tables.PARK_AGAIN, tables.ANNOUNCE_AGAIN)
    desk.store.faults.fail(
        call, StoreUnavailable("full"), when=lambda about: call == "commit" or about in moves
    )
    with pytest.raises(StoreUnavailable):
        await desk.redrive(letter)
    assert [row["id"] for row in await list_dead(desk.store)] == [letter]
    assert desk.store.waiting == []
    assert await desk.outbox() == []
    await desk.redrive(letter)
    assert await list_dead(desk.store) == []


async def test_a_refused_event_is_redriven_in_its_place_before_its_key_s_others() -> None:
    desk = Desk()
    letter = await desk.refused()
    assert await desk.outbox() == []
    with pytest.raises(NotRedriven, match="leave out --handler"):
        await desk.redrive(letter, handler="take")
    await desk.redrive(letter, data=b"new")
    assert await desk.outbox() == [("e1", b"new"), ("e2", b"old"), ("e3", b"old")]
    with pytest.raises(NotRedriven, match="redriven already"):
        await desk.redrive(letter)


async def test_a_refused_event_that_is_discarded_lets_the_others_go() -> None:
    desk = Desk()
    letter = await desk.refused()
    await discard(desk.store, letter, desk.ambient, by=because("known"))
    assert [event_id for event_id, _ in await desk.outbox()] == ["e2", "e3"]


async def test_a_refused_event_without_a_key_held_up_none() -> None:
    desk = Desk()
    letter = await desk.refused(key=None)
    assert [event_id for event_id, _ in await desk.outbox()] == ["e2", "e3"]
    await desk.redrive(letter)
    assert [event_id for event_id, _ in await desk.outbox()] == ["e1", "e2", "e3"]
