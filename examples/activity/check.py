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
from trial import Rows, differ

from oyez.envelope import open_record
from oyez.inspection import history
from oyez.ports import Record
from oyez.project import Project
from profiles.service import best, cosine

HALF = 60 * 86_400
ENOUGH = 50
"""People whose last click is guessed, below which a hit rate says nothing."""
KEPT = ("activity.clicked", "activity.item.viewed", "activity.visit.ended",
        "activity.hour.counted", "activity.customer.erased")  # fmt: skip
_TABLES = """select name from sqlite_master where type in ('table', 'view')
 and name not like 'sqlite_%'"""
LEARNED = """select (select count(*) from seen) as pairs,
 (select trained_on from model order by version desc limit 1) as learned"""
_PG_TABLES = "select table_name as name from information_schema.tables where table_schema = :schema"


class Fed(msgspec.Struct):
    """What the run has done: the speed, who was erased, and what was kept back by name."""

    speed: float
    erased: list[str]
    held: dict[str, str]


class Books(msgspec.Struct):
    """What was found: events by type, each table of each service, and who is named in events."""

    fed: Fed
    events: dict[str, Rows]
    tables: dict[str, dict[str, Rows]]
    named: int = 0
    """Events in which somebody who was erased is named in clear."""
    total: int = 0


async def read(project: Project, fed: Fed) -> Books:
    """Read all of history and every table."""
    books = Books(fed, defaultdict(list), {})
    erased = _finder(fed.erased)
    known: set[tuple[str, str]] = set()

    def look(record: Record) -> None:
        event = open_record(record.headers, record.data)
        books.named += bool(erased(f"{event.headers()} {event.data.decode()}"))
        if (event.source, event.id) not in known:  # a relay that died has sent some twice
            known.add((event.source, event.id))
            if event.type in KEPT:
                books.events[event.type].append(msgspec.json.decode(event.data))

    async with project.opened_broker() as broker:
        await history.scan(broker, await history.ends(broker, await history.streams(broker)), look)
    books.total = len(known)
    for name in project.config.services:
        async with project.opened_store(name) as store:
            if project.store_file(name):
                found = await store.fetch(_TABLES, {})
            else:
                (row,) = await store.fetch("select current_schema() as schema", {})
                found = await store.fetch(_PG_TABLES, row)
            books.tables[name] = {
                row["name"]: await store.fetch(f"select * from {row['name']}", {}) for row in found
            }
    return books


def judge(books: Books) -> Iterator[str]:
    """Yield what is wrong."""
    clicks, views = books.events["activity.clicked"], books.events["activity.item.viewed"]
    erased = {event["person"] for event in books.events["activity.customer.erased"]}
    stored = len(books.tables["clicks"]["click"])
    yield from differ("clicks, by person and by item", {len(clicks), len(views)}, {stored})
    told = Counter(
        (visit["person"], _micros(visit["start"]), visit["clicks"])
        for visit in books.events["activity.visit.ended"]
        if visit["person"] not in erased
    )
    yield from differ("visits", told, visits_of(clicks, books.fed.speed, erased))
    told = Counter(
        (hour["item"], _micros(hour["start"]), hour["views"])
        for hour in books.events["activity.hour.counted"]
    )
    yield from differ("hours", told, hours_of(views, books.fed.speed))
    yield from differ("companions whose counts differ", lopsided(books), set())
    yield from differ("remains of who was erased", {*remains(books, erased)}, set())
    rates, people = hit_rates(books)
    if people >= ENOUGH and rates["seen together"] <= rates["popular"]:
        yield f"what is seen together guesses no better than what is popular: {rates}"


def visits_of(clicks: Rows, speed: float, without: set[str]) -> Counter[Any]:
    """Return visits as (person, start, clicks), from all clicks at once."""
    times = defaultdict(list)
    for click in clicks:
        if click["person"] not in without:
            times[click["person"]].append(_micros(click["at"]))
    found: Counter[Any] = Counter()
    for person, each in times.items():
        each.sort()
        start, count = each[0], 0
        for at, following in zip(each, [*each[1:], None], strict=True):
            count += 1
            if following is None or following - at >= round(1_800 / speed * 1e6):
                found[person, start, count] += 1
                start, count = following or 0, 0
    return found


def hours_of(views: Rows, speed: float) -> Counter[Any]:
    """Return hours as (item, start, views) that have two views, from all views at once."""
    size, step = round(3_600 / speed * 1e6), round(300 / speed * 1e6)
    counted: Counter[Any] = Counter()
    for view in views:
        at = _micros(view["at"])
        for start in range(at - at % step, at - size, -step):
            counted[view["item"], start] += 1
    return Counter((*key, count) for key, count in counted.items() if count >= 2)


def lopsided(books: Books) -> set[str]:
    """Return pairs of items that one knows to be seen together more often than the other."""
    half = HALF / books.fed.speed
    rows = books.tables["recommend"]["oyez_state"]
    states = {row["key"]: msgspec.msgpack.decode(row["data"]) for row in rows}
    newest = max((state["at"] for state in states.values()), default=0.0)
    counts = {
        (item, other): count * 0.5 ** ((newest - state["at"]) / half)
        for item, state in states.items()
        for other, count in state["counts"].items()
    }
    return {
        f"{item} and {other}"
        for (item, other), count in counts.items()
        if abs(counts.get((other, item), 0.0) - count) > 1e-6 * count
    }


def remains(books: Books, erased: set[str]) -> Iterator[str]:
    """Yield where somebody who was erased is still to be found."""
    names, pseudonyms = _finder(books.fed.erased), _finder(erased)
    if books.named:
        yield f"{books.named} events name who was erased"
    for service, tables in books.tables.items():
        for table, rows in tables.items():
            text = [str(row) for row in rows]
            yield from (f"{service}.{table} names {names(row)}" for row in text if names(row))
            # A row of windows stays a week, empty and under a pseudonym that is nobody's any more.
            if service == "sessions":
                text = [row["key"] for row in rows if table == "oyez_state" and _open(row)]
            found = {pseudonyms(row) for row in text} - {""}
            yield from (f"{service}.{table} has {each}" for each in found)
    if len(erased) != len(books.fed.erased) or not books.tables["clicks"]["person"]:
        yield f"{len(erased)} of {len(books.fed.erased)} people were erased"


def hit_rates(books: Books) -> tuple[dict[str, float], int]:
    """Return how often the last click is among ten that are shown, and for how many people."""
    tables = books.tables["profiles"]
    people = {row["name"]: row["person"] for row in books.tables["clicks"]["person"]}
    seen = {row["person"]: msgspec.json.decode(row["seen"]) for row in tables["person"]}
    items = {row["item"]: row for row in tables["item"]}
    together = cosine(
        {item: msgspec.json.decode(row["companions"]) for item, row in items.items()},
        {item: row["visits"] for item, row in items.items()},
    )
    newest = max(tables["model"], key=lambda row: row["version"], default=None)
    model = msgspec.json.decode(newest["similar"]) if newest else {}
    popular = Counter(click["item"] for click in books.events["activity.clicked"]).most_common()
    hits: Counter[str] = Counter()
    held = {people[name]: item for name, item in books.fed.held.items() if name in people}
    for person, item in held.items():
        looked = set(seen.get(person, ()))
        hits["popular"] += item in [each for each, _ in popular if each not in looked][:10]
        hits["seen together"] += item in best(together, seen.get(person, []))
        hits["model"] += item in best(model, seen.get(person, []))
    rates = {by: hits[by] / max(1, len(held)) for by in ("popular", "seen together", "model")}
    return rates, len(held)


def _open(windows: dict[str, Any]) -> bool:
    """Return whether any window of a key is open: they are the last of what its row holds."""
    return bool(msgspec.msgpack.decode(windows["data"])[-1])


def _finder(words: Iterable[str]) -> Callable[[str], str]:
    """Return what finds the first of these words in a text; an empty text for none."""
    pattern = re.compile("|".join(map(re.escape, words)) or "(?!)")
    return lambda text: found[0] if (found := pattern.search(text)) else ""


def _micros(time: str) -> int:
    return (datetime.fromisoformat(time) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta.resolution
