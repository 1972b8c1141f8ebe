"""The tail of the outbox in memory: what it gives, and when the outbox is to be read instead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oyez.ports import Announcement
from oyez.runtime.tail import MOST, MOST_BYTES, Tail

ROOM = 1_000


def _rows(*numbers: int, size: int = 1) -> list[Announcement]:
    return [
        Announcement(stream="s", key="k", headers={"id": str(number)}, data=bytes(size))
        for number in numbers
    ]


def _took(tail: Tail, limit: int = 100, room: int = ROOM) -> list[int]:
    first, rows = tail.take(limit, room)
    numbers = [int(row.headers["id"]) for row in rows]
    assert numbers == list(range(first, first + len(rows))) or not rows
    return numbers


@pytest.fixture
def tail() -> Tail:
    """One that knows that row 10 was the last one published."""
    made = Tail()
    made.passed(10)
    return made


def test_without_a_known_row_before_them_rows_are_not_taken() -> None:
    tail = Tail()
    tail.add(1, _rows(1, 2))
    assert tail.gap
    assert _took(tail) == []
    tail.passed(1)
    assert _took(tail) == [2]


def test_rows_that_follow_are_taken_whatever_the_order_in_which_they_came(tail: Tail) -> None:
    tail.add(14, _rows(14))
    assert tail.gap
    assert _took(tail) == []
    tail.add(11, _rows(11, 12))
    assert _took(tail) == [11, 12]
    assert tail.gap
    tail.add(13, _rows(13))
    assert _took(tail) == [13, 14]
    assert not tail.gap


def test_no_more_than_the_limit_and_the_room_are_taken_but_one(tail: Tail) -> None:
    tail.add(11, _rows(11, 12, 13, size=400))
    tail.add(14, _rows(14, size=2_000))
    tail.add(15, _rows(15, 16))
    assert _took(tail, limit=1) == [11]
    assert _took(tail) == [12, 13]
    assert _took(tail) == [14]
    assert _took(tail) == [15, 16]


def test_what_was_read_meanwhile_is_not_taken(tail: Tail) -> None:
    tail.add(11, _rows(11, 12, 13))
    tail.passed(12)
    assert _took(tail) == [13]
    tail.add(12, _rows(12, 13))
    assert _took(tail) == []
    assert not tail.gap


def test_rows_that_were_held_back_are_read_before_others_are_taken(tail: Tail) -> None:
    tail.add(11, _rows(11))
    tail.passed(5)
    assert tail.gap
    assert _took(tail) == []
    tail.passed(10)
    assert _took(tail) == [11]


def test_more_than_it_keeps_is_left_to_the_outbox(tail: Tail) -> None:
    tail.add(11, _rows(*range(11, 11 + MOST)))
    tail.add(11 + MOST, _rows(11 + MOST))
    assert _took(tail, limit=2 * MOST, room=2 * MOST) == list(range(11, 11 + MOST))
    tail.add(12 + MOST, _rows(12 + MOST))
    assert tail.gap
    tail.passed(11 + MOST)
    assert _took(tail) == [12 + MOST]


def test_more_bytes_than_it_keeps_are_left_to_the_outbox(tail: Tail) -> None:
    half = MOST_BYTES // 2 + 1
    tail.add(11, _rows(11, size=half))
    tail.add(12, _rows(12, size=half))
    assert _took(tail, room=MOST_BYTES) == [11]
    tail.add(12, _rows(12, size=half))
    assert _took(tail, room=MOST_BYTES) == [12]


@given(st.data())
def test_each_row_is_taken_or_read_once_and_in_order(data: st.DataObject) -> None:
    """Commits of this process and of others, told late or never, with reads in between."""
    tail, sent, untold = Tail(), list[int](), list[tuple[int, list[Announcement]]]()
    last = 0
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(("mine", "theirs", "tell", "take", "read", "forget"))):
            case "mine":
                numbers = range(last + 1, last + 1 + data.draw(st.integers(1, 5)))
                untold.append((numbers[0], _rows(*numbers)))
                last = numbers[-1]
            case "theirs":
                last += 1
            case "tell" if untold:
                tail.add(*untold.pop(data.draw(st.integers(0, len(untold) - 1))))
            case "take":
                sent += _took(tail, limit=data.draw(st.integers(1, 6)))
            case "read":
                start = sent[-1] if sent else 0
                upto = data.draw(st.integers(start, last))
                if upto > start:
                    sent += range(start + 1, upto + 1)
                    tail.passed(upto)
            case "forget":
                tail.forget()
    assert sent == list(range(1, len(sent) + 1))


def test_it_is_behind_while_rows_are_in_the_outbox_alone(tail: Tail) -> None:
    tail.add(11, _rows(*range(11, 11 + MOST)))
    assert not tail.behind
    tail.add(11 + MOST, _rows(11 + MOST))
    assert tail.behind
    assert len(_took(tail, MOST, MOST)) == MOST
    assert tail.behind
    tail.passed(11 + MOST)
    assert not tail.behind


def test_what_was_forgotten_is_in_the_outbox_alone(tail: Tail) -> None:
    tail.add(11, _rows(11, 12))
    tail.forget()
    assert tail.behind
    tail.passed(11)
    assert tail.behind
    tail.passed(12)
    assert not tail.behind


def test_at_the_end_of_the_outbox_it_is_not_behind_whatever_became_of_rows(tail: Tail) -> None:
    """Others may have published some, and some may be of later."""
    tail.add(11, _rows(11, 12))
    tail.forget()
    tail.read()
    assert not tail.behind
