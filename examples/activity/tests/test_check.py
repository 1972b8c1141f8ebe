"""The check itself: what is in order passes, and each fault alone is found."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from trial import History

from check import Books, hit_rates, judge
from clicks.events import Clicked, CustomerErased, ItemViewed
from sessions.events import HourCounted, VisitEnded


def at(minute: int) -> datetime:
    """So many minutes after noon."""
    return datetime(2026, 11, 1, 12, tzinfo=UTC) + timedelta(minutes=minute)


def visit(minute: int, clicks: int) -> VisitEnded:
    return VisitEnded(person="p", start=at(minute), end=at(minute), clicks=clicks, items=[])


def hour(minute: int, views: int) -> HourCounted:
    return HourCounted(item="bell", start=at(minute), end=at(minute + 60), views=views)


def books() -> Books:
    """Two people in order: one of two visits, one who was erased; an hour with two views."""
    clicks = [("p", "bell", 0), ("p", "boots", 2), ("p", "bell", 40), ("q", "bell", 41)]
    events = History()
    for person, item, minute in clicks:
        events.append(Clicked(person=person, item=item, kind="view", at=at(minute)))
        events.append(ItemViewed(item=item, title="", at=at(minute)))
    events += [visit(0, 2), visit(40, 1)]
    events += [hour(minute, 3 if minute <= 0 else 2) for minute in range(-15, 41, 5)]
    events.append(CustomerErased(person="q", at=at(60)))
    state = {"item": "bell", "visits": 2.0, "at": 0.0, "news": 0}
    rows = [
        {"key": item, "data": msgspec.msgpack.encode({**state, "counts": {other: 1.5}})}
        for item, other in (("bell", "boots"), ("boots", "bell"))
    ]
    empty: dict[str, list[dict[str, Any]]] = {"oyez_inbox": [], "oyez_outbox": [], "oyez_dead": []}
    return Books(
        speed=1.0,
        erased=["eve@example.org"],
        held={},
        events=events,
        tables={
            "clicks": {
                **deepcopy(empty),
                "click": [{"id": str(n)} for n in range(4)],
                "person": [{"name": "ada@example.org", "person": "p"}],
            },
            "sessions": {**deepcopy(empty), "oyez_state": []},
            "recommend": {**deepcopy(empty), "oyez_state": rows},
            "profiles": {
                **deepcopy(empty),
                "person": [{"person": "p", "seen": "[]"}],
                "item": [],
                "model": [],
            },
        },
        named=0,
    )


def drop(event: Any) -> Callable[[Books], object]:
    return lambda found: found.events.remove(event)


def add(event: Any) -> Callable[[Books], object]:
    return lambda found: found.events.append(event)


def test_what_is_in_order_has_no_problem() -> None:
    assert list(judge(books())) == []
    assert len(books().events.of(HourCounted)) == 12


FAULTS: dict[str, tuple[Callable[[Books], object], str]] = {
    "a visit is lost": (drop(visit(40, 1)), "visits: 1 missing"),
    "a visit is told twice": (add(visit(0, 2)), "visits: 1 unexpected"),
    "a visit lacks a click": (
        lambda found: (drop(visit(0, 2))(found), add(visit(0, 1))(found)),
        "visits: 1 missing",
    ),
    "an hour is lost": (drop(hour(40, 2)), "hours: 1 missing"),
    "an hour counts one more": (
        lambda found: (drop(hour(40, 2))(found), add(hour(40, 9))(found)),
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
        "profiles.item has eve@example.org",
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
        drop(CustomerErased(person="q", at=at(60))),
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
        found.held[name] = "bell"
        found.tables["clicks"]["person"].append({"name": name, "person": person})
        found.tables["profiles"]["person"].append({"person": person, "seen": '["boots"]'})
    assert "guesses no better" in str(list(judge(found)))
    found.tables["profiles"]["item"] = [
        {"item": item, "visits": 1.0, "companions": json}
        for item, json in (("boots", '{"bell": 1.0}'), ("bell", "{}"))
    ]
    assert hit_rates(found)[0]["seen together"] == 1.0
