"""Profiles serves the pages, of one person and of all, from what it was told and nothing else.

Each view is a function of history, so it can be filled again from the beginning. What a person has
searched for stays sealed in it; the key is asked for with each page, and kept nowhere.
"""

from __future__ import annotations

import math
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import httpx
from cryptography.fernet import Fernet
from starlette.exceptions import HTTPException

from oyez import GONE, Gone, Personal, Service, View, applies
from oyez.http_client import Client
from profiles import events

service = Service("profiles")

SPEED = float(os.environ.get("ACTIVITY_SPEED", "1"))
"""How many times faster than a clock the time of this shop is."""
KEYS = os.environ.get("ACTIVITY_KEYS", "http://127.0.0.1:8141")
"""Where Clicks listens, which has the keys."""
SEEN, RECENT, SEARCHES, SHOWN = 500, 20, 5, 10
CHALLENGED = 10
"""One of so many people gets what the model says: its roll-out is this number."""

Neighbours = Mapping[str, Mapping[str, float]]


@service.view
class Person(View, table="person", key="person"):
    """What somebody looked at."""

    person: str
    clicks: int = 0
    bought: int = 0
    at: float = 0.0
    seen: Annotated[list[str], Personal] = []
    searches: Annotated[list[str], Personal] = []

    @applies
    def clicked(self, event: events.Clicked) -> None:
        """Add a click."""
        self.clicks += 1
        self.bought += event.kind == "purchase"
        self.at = max(self.at, event.at.timestamp())
        self.seen = [*(item for item in self.seen if item != event.item), event.item][-SEEN:]
        if event.query:
            self.searches = [*self.searches, event.query][-SEARCHES:]

    @applies
    def erased(self, event: events.CustomerErased) -> Gone:
        """Forget the person."""
        return GONE


@service.view
class Item(View, table="item", key="item", index=("hour",)):
    """An item; each of three services writes columns of its own."""

    item: str
    title: str = ""
    hour: float = 0.0
    """The end of the last hour that was counted."""
    views: int = 0
    visits: float = 0.0
    companions: dict[str, float] = {}

    @applies
    def viewed(self, event: events.ItemViewed) -> None:
        """Learn its title."""
        self.title = event.title

    @applies
    def counted(self, event: events.HourCounted) -> None:
        """Learn of its last hour."""
        if event.end.timestamp() >= self.hour:
            self.hour, self.views = event.end.timestamp(), event.views

    @applies
    def found(self, event: events.CompanionsFound) -> None:
        """Learn its companions."""
        self.visits, self.companions = event.visits, event.companions


@service.view
class Model(View, table="model", key="version"):
    """A model."""

    version: str
    similar: dict[str, dict[str, float]] = {}

    @applies
    def trained(self, event: events.ModelTrained) -> None:
        """Keep it."""
        self.take(event)


def cosine(companions: Neighbours, visits: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return how alike items are: how often seen together, for how often each is seen.

    Who was seen together may be known before how often each was: nothing orders two streams.
    """
    alike = {}
    for item, others in companions.items():
        both = {other: visits.get(item, 0) * visits.get(other, 0) for other in others}
        alike[item] = {
            other: count / math.sqrt(both[other]) for other, count in others.items() if both[other]
        }
    return alike


def best(neighbours: Neighbours, seen: Sequence[str], count: int = SHOWN) -> list[str]:
    """Return the items that are most like the last ones seen, without any that was seen."""
    scores: Counter[str] = Counter()
    for item in seen[-RECENT:]:
        scores.update(neighbours.get(item, {}))
    return sorted(scores.keys() - {*seen}, key=lambda item: (-scores[item], item))[:count]


async def key_of(name: str) -> dict[str, str] | None:
    """Ask Clicks for pseudonym and key; None for nobody that it knows."""
    async with Client(base_url=KEYS, timeout=5.0, verify=False) as client:  # plain HTTP
        return cast("dict[str, str] | None", (await client.get(f"/keys/{name}")).json())


@service.get("/people/{name}")
async def page(name: str) -> dict[str, Any] | None:
    """What the page of a person shows; nothing for who is not known here."""
    try:
        known = await key_of(name)
    except httpx.TransportError as error:
        raise HTTPException(503, "The keys are out of reach", {"retry-after": "1"}) from error
    if known is None:
        return None
    row = await service.read(Person, known["person"]) or Person(person=known["person"])
    items = await service.fetch("select item, title, visits from item")
    titles = {each["item"]: each["title"] or each["item"] for each in items}
    recent = row.seen[: -RECENT - 1 : -1]
    model = await _newest_model() if zlib.crc32(row.person.encode()) % CHALLENGED == 0 else None
    if model:
        alike: Neighbours = model.similar
    else:
        found = [each for item in recent if (each := await service.read(Item, item))]
        companions = {each.item: each.companions for each in found}
        alike = cosine(companions, {each["item"]: each["visits"] for each in items})
    also = best(alike, row.seen)
    return {
        "clicks": row.clicks,
        "bought": row.bought,
        "recent": [titles.get(item, item) for item in recent],
        "searches": [Fernet(known["key"]).decrypt(text).decode() for text in row.searches],
        "also": [titles.get(item, item) for item in also],
        "by": f"the model of {model.version}" if model else "what is seen together",
    }


@service.live("/live")
async def now() -> dict[str, Any]:
    """What happens by the clock of the clicks: the newest one is now."""
    (totals,) = await service.fetch(_TOTALS, visit=1_800 / SPEED)
    trending = await service.fetch(_TRENDING, newest=totals["newest"] or 0.0, hour=3_600 / SPEED)
    model = await _newest_model()
    return {**totals, "trending": trending, "model": model.version if model else None}


async def _newest_model() -> Model | None:
    rows = await service.fetch("select max(version) as version from model")
    return await service.read(Model, rows[0]["version"]) if rows[0]["version"] else None


_TOTALS = """select count(*) as people, sum(clicks) as clicks, sum(bought) as bought,
 max(at) as newest,
 (select count(*) from person where at > (select max(at) from person) - :visit) as live
 from person"""
_TRENDING = """select title, views from item where hour > :newest - 2 * :hour and views > 0
 order by views desc, hour desc, item limit 10"""
