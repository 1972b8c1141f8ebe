"""Proves from the stores and from history what must be true once all is settled.

Visits and hours are what a plain loop over all clicks makes of them; who is with whom is so both
ways; who was erased is in no table, view or event; what is seen together guesses better than what
is popular.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec.msgpack import decode
from trial import History, Rows, differ, tables, told

from clicks.events import Clicked, CustomerErased, ItemViewed
from oyez.envelope import Envelope
from oyez.project import Project
from profiles.service import best, cosine
from sessions.events import HourCounted, VisitEnded

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HALF = 60 * 86_400
ENOUGH = 50
"""People whose last click is guessed, below which a hit rate says nothing."""
TOLD = (Clicked, ItemViewed, VisitEnded, HourCounted, CustomerErased)
LEARNED = """select (select count(*) from seen) as pairs,
 (select trained_on from model order by version desc limit 1) as trained_on"""
TABLES = {"recommend": {"learned": LEARNED}}


class Books(msgspec.Struct):
    """What was fed and what was found, when all had settled."""

    speed: float
    erased: list[str]
    """Who asked to be forgotten, by name."""
    held: dict[str, str]
    """The last clicks that were kept back, by name."""
    events: History
    tables: dict[str, dict[str, Rows]]
    named: int
    """Events in which somebody who was erased is named in clear."""


async def read(project: Project, speed: float, erased: list[str], held: dict[str, str]) -> Books:
    """Read all of history and every table."""
    names, named = _finder(erased), set()

    def look(event: Envelope) -> None:
        if names(f"{event.headers()} {event.data.decode()}"):
            named.add(event.id)

    events = await told(project, *TOLD, look=look)
    found = {name: await tables(project, name) for name in project.config.services}
    return Books(speed, erased, held, events, found, len(named))


def judge(books: Books) -> Iterator[str]:
    """Yield what is wrong."""
    clicks, views = books.events.of(Clicked), books.events.of(ItemViewed)
    erased = {event.person for event in books.events.of(CustomerErased)}
    stored = len(books.tables["clicks"]["click"])
    yield from differ("clicks, by person and by item", {len(clicks), len(views)}, {stored})
    ended = [visit for visit in books.events.of(VisitEnded) if visit.person not in erased]
    visits = Counter((visit.person, visit.start, visit.clicks) for visit in ended)
    yield from differ("visits", visits, visits_of(clicks, books.speed, erased))
    hours = Counter((hour.item, hour.start, hour.views) for hour in books.events.of(HourCounted))
    yield from differ("hours", hours, hours_of(views, books.speed))
    yield from differ("companions whose counts differ", lopsided(books))
    yield from differ("remains of who was erased", {*remains(books, erased)})
    rates, people = hit_rates(books)
    if people >= ENOUGH and rates["seen together"] <= rates["popular"]:
        yield f"what is seen together guesses no better than what is popular: {rates}"


def visits_of(clicks: list[Clicked], speed: float, without: set[str]) -> Counter[Any]:
    """Return visits as (person, start, clicks), from all clicks at once."""
    times = defaultdict(list)
    for click in clicks:
        if click.person not in without:
            times[click.person].append(click.at)
    found: Counter[Any] = Counter()
    for person, each in times.items():
        each.sort()
        start = 0
        for number in range(1, len(each)):
            if each[number] - each[number - 1] >= timedelta(seconds=1_800 / speed):
                found[person, each[start], number - start] += 1
                start = number
        found[person, each[start], len(each) - start] += 1
    return found


def hours_of(views: list[ItemViewed], speed: float) -> Counter[Any]:
    """Return hours as (item, start, views) that have two views, from all views at once."""
    size, step = timedelta(seconds=3_600 / speed), timedelta(seconds=300 / speed)
    counted: Counter[Any] = Counter()
    for view in views:
        start = view.at - (view.at - EPOCH) % step
        while start > view.at - size:
            counted[view.item, start] += 1
            start -= step
    return Counter((*key, count) for key, count in counted.items() if count >= 2)


def lopsided(books: Books) -> set[str]:
    """Return pairs of items that one knows to be seen together more often than the other."""
    counts: dict[tuple[str, str], tuple[float, float]] = {}
    for row in books.tables["recommend"]["oyez_state"]:
        state = decode(row["data"])
        for other, count in state["counts"].items():
            counts[row["key"], other] = count, state["at"]
    wrong = set()
    for (item, other), (count, at) in counts.items():
        mirrored, then = counts.get((other, item), (0.0, at))
        if abs(mirrored * 0.5 ** ((at - then) / HALF * books.speed) - count) > 1e-6 * count:
            wrong.add(f"{item} and {other}")
    return wrong


def remains(books: Books, erased: set[str]) -> Iterator[str]:
    """Yield where somebody who was erased is still to be found, by name or by pseudonym."""
    if books.named:
        yield f"{books.named} events name who was erased"
    words = _finder([*books.erased, *erased])
    for service, of_service in books.tables.items():
        for table, rows in of_service.items():
            kept: list[Any] = rows
            if service == "sessions":
                # A row of windows stays a week, empty and under a pseudonym that is nobody's now.
                kept = [
                    row["key"] for row in rows if table == "oyez_state" and decode(row["data"])[-1]
                ]
            found = {words(str(each)) for each in kept}
            yield from (f"{service}.{table} has {each}" for each in found - {""})
    if len(erased) != len(books.erased) or not books.tables["clicks"]["person"]:
        yield f"{len(erased)} of {len(books.erased)} people were erased"


def hit_rates(books: Books) -> tuple[dict[str, float], int]:
    """Return how often the last click is among ten that are shown, and for how many people."""
    views, read_json = books.tables["profiles"], msgspec.json.decode
    people = {row["name"]: row["person"] for row in books.tables["clicks"]["person"]}
    seen = {row["person"]: read_json(row["seen"]) for row in views["person"]}
    companions = {row["item"]: read_json(row["companions"]) for row in views["item"]}
    together = cosine(companions, {row["item"]: row["visits"] for row in views["item"]})
    models = sorted(views["model"], key=lambda row: row["version"])
    model = read_json(models[-1]["similar"]) if models else {}
    popular = Counter(click.item for click in books.events.of(Clicked)).most_common()
    hits = Counter({"popular": 0, "seen together": 0, "model": 0})
    held = {people[name]: item for name, item in books.held.items() if name in people}
    for person, item in held.items():
        looked = seen.get(person, [])
        hits["popular"] += item in [each for each, _ in popular if each not in looked][:10]
        hits["seen together"] += item in best(together, looked)
        hits["model"] += item in best(model, looked)
    return {by: count / max(1, len(held)) for by, count in hits.items()}, len(held)


def _finder(words: Iterable[str]) -> Callable[[str], str]:
    """Return what finds the first of these words in a text; an empty text for none."""
    pattern = re.compile("|".join(map(re.escape, words)) or "(?!)")
    return lambda text: found[0] if (found := pattern.search(text)) else ""
