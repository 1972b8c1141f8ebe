"""The check itself: what is in order passes, and each fault alone is found."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import msgspec
import pytest

from check import Books, Fed, hit_rates, judge


def at(minute: int) -> str:
    """So many minutes after noon."""
    return f"2026-11-01T{12 + minute // 60:02d}:{minute % 60:02d}:00Z"


def books() -> Books:
    """Two people in order: one of two visits, one who was erased; an hour with two views."""
    clicks = [("p", "bell", 0), ("p", "boots", 2), ("p", "bell", 40), ("q", "bell", 41)]
    hours = [
        {"item": "bell", "start": at(minute), "views": 3 if minute <= 0 else 2}
        for minute in range(-15, 41, 5)
    ]
    state = {"item": "bell", "visits": 2.0, "at": 0.0, "news": 0}
    rows = [
        {"key": item, "data": msgspec.msgpack.encode({**state, "counts": {other: 1.5}})}
        for item, other in (("bell", "boots"), ("boots", "bell"))
    ]
    empty: dict[str, list[dict[str, Any]]] = {"oyez_inbox": [], "oyez_outbox": [], "oyez_dead": []}
    return Books(
        Fed(1.0, ["eve@example.org"], {}),
        {
            "activity.clicked": [
                {"person": person, "item": item, "at": at(minute)}
                for person, item, minute in clicks
            ],
            "activity.item.viewed": [
                {"item": item, "at": at(minute)} for _, item, minute in clicks
            ],
            "activity.visit.ended": [
                {"person": "p", "start": at(0), "clicks": 2},
                {"person": "p", "start": at(40), "clicks": 1},
            ],
            "activity.hour.counted": hours,
            "activity.customer.erased": [{"person": "q"}],
        },
        {
            "clicks": {
                **deepcopy(empty),
                "click": [{"id": str(n)} for n in range(4)],
                "person": [{"name": "ada@example.org", "person": "p"}],
            },
            "sessions": {**deepcopy(empty), "oyez_state": []},
            "trending": deepcopy(empty),
            "recommend": {**deepcopy(empty), "oyez_state": rows},
            "profiles": {
                **deepcopy(empty),
                "person": [{"person": "p", "seen": "[]"}],
                "item": [],
                "model": [],
            },
        },
    )


def test_what_is_in_order_has_no_problem() -> None:
    assert list(judge(books())) == []
    assert len(books().events["activity.hour.counted"]) == 12


FAULTS: dict[str, tuple[Callable[[Books], object], str]] = {
    "a visit is lost": (lambda b: b.events["activity.visit.ended"].pop(), "visits: 1 missing"),
    "a visit is told twice": (
        lambda b: b.events["activity.visit.ended"].append(b.events["activity.visit.ended"][0]),
        "visits: 1 unexpected",
    ),
    "a visit lacks a click": (
        lambda b: b.events["activity.visit.ended"][0].update(clicks=1),
        "visits: 1 missing",
    ),
    "an hour is lost": (lambda b: b.events["activity.hour.counted"].pop(), "hours: 1 missing"),
    "an hour counts one more": (
        lambda b: b.events["activity.hour.counted"][0].update(views=9),
        "hours: 1 unexpected",
    ),
    "a click is stored twice": (
        lambda b: b.tables["clicks"]["click"].append({"id": "9"}),
        "clicks, by person and by item: 1 unexpected: 4",
    ),
    "companions differ": (
        lambda b: b.tables["recommend"]["oyez_state"].pop(),
        "companions whose counts differ",
    ),
    "an event names who was erased": (
        lambda b: setattr(b, "named", 1),
        "1 events name who was erased",
    ),
    "a table names who was erased": (
        lambda b: b.tables["profiles"]["item"].append(
            {"item": "x", "visits": 1, "companions": "{}", "title": "for eve@example.org"}
        ),
        "profiles.item names eve@example.org",
    ),
    "a view has who was erased": (
        lambda b: b.tables["profiles"]["person"].append({"person": "q", "seen": "[]"}),
        "profiles.person has q",
    ),
    "an open visit has what she looked at": (
        lambda b: b.tables["sessions"]["oyez_state"].append(
            {"key": "q", "data": msgspec.msgpack.encode([0, 0, [["bell"]]])}
        ),
        "sessions.oyez_state has q",
    ),
    "nobody was erased": (
        lambda b: b.events.update({"activity.customer.erased": []}),
        "0 of 1 people were erased",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str) -> None:
    found = books()
    spoil, words = FAULTS[fault]
    spoil(found)
    problems = list(judge(found))
    assert any(words in problem for problem in problems), problems


def test_an_empty_visit_under_the_pseudonym_is_no_remains() -> None:
    found = books()
    row = {"key": "q", "data": msgspec.msgpack.encode([0, 0, []])}
    found.tables["sessions"]["oyez_state"].append(row)
    assert list(judge(found)) == []


def test_guessing_no_better_than_what_is_popular_is_a_problem() -> None:
    found = books()
    for n in range(60):
        name, person = f"n{n}", f"m{n}"
        found.fed.held[name] = "bell"
        found.tables["clicks"]["person"].append({"name": name, "person": person})
        found.tables["profiles"]["person"].append({"person": person, "seen": '["boots"]'})
    assert "guesses no better" in str(list(judge(found)))
    found.tables["profiles"]["item"] = [
        {"item": item, "visits": 1.0, "companions": json}
        for item, json in (("boots", '{"bell": 1.0}'), ("bell", "{}"))
    ]
    assert hit_rates(found)[0]["seen together"] == 1.0
