"""Profiles serves the pages, of one person and of all, from what it was told and nothing else.

Each view is a function of history, so it can be filled again from the beginning. What a person has
searched for stays sealed in it; the key is asked for with each page, and kept nowhere.
"""

from __future__ import annotations

import base64
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any

import httpx
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from oyez import GONE, Gone, Personal, Service, View, applies
from profiles import events

SPEED = float(os.environ.get("ACTIVITY_SPEED", "1"))
"""How many times faster than a clock the time of this shop is."""
KEYS = os.environ.get("ACTIVITY_KEYS", "http://127.0.0.1:8141")
"""Where Clicks listens, which has the keys."""
SEEN, RECENT, SEARCHES, SHOWN = 500, 20, 5, 10
CHALLENGED = 10
"""One of so many people gets what the model says: its roll-out is this number."""

Neighbours = Mapping[str, Mapping[str, float]]


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


class Model(View, table="model", key="version"):
    """A model."""

    version: str
    trained_on: int = 0
    similar: dict[str, dict[str, float]] = {}

    @applies
    def trained(self, event: events.ModelTrained) -> None:
        """Keep it."""
        self.take(event)


def cosine(companions: Neighbours, visits: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return how alike items are: how often seen together, for how often each is seen."""
    return {
        item: {
            other: count / math.sqrt(visits[item] * visits[other])
            for other, count in others.items()
            if visits.get(other)
        }
        for item, others in companions.items()
    }


def best(neighbours: Neighbours, seen: Sequence[str], count: int = SHOWN) -> list[str]:
    """Return the items that are most like the last ones seen, without any that was seen."""
    scores: Counter[str] = Counter()
    for item in seen[-RECENT:]:
        scores.update(neighbours.get(item, {}))
    for item in seen:
        del scores[item]
    return sorted(scores, key=lambda item: (-scores[item], item))[:count]


async def key_of(name: str) -> dict[str, str] | None:
    """Ask Clicks for pseudonym and key; None for nobody that it knows."""
    async with httpx.AsyncClient(base_url=KEYS, timeout=5.0, verify=False) as client:  # noqa: S501 - plain HTTP
        found: dict[str, str] | None = (await client.get(f"/keys/{name}")).json()
        return found


def unseal(key: str, person: str, sealed: str) -> str:
    """Return a text that the key of the person opens."""
    raw = base64.b64decode(sealed)
    return AESGCM(bytes.fromhex(key)).decrypt(raw[:12], raw[12:], person.encode()).decode()


async def page(request: Request) -> Response:
    """``GET /people/{name}``: what the page of a person shows."""
    try:
        known = await key_of(request.path_params["name"])
    except httpx.TransportError:
        return JSONResponse({"title": "The keys are out of reach"}, 503, {"retry-after": "1"})
    if known is None:
        return JSONResponse({"title": "Nobody of this name is known here"}, 404)
    person, after = known["person"], request.headers.get("oyez-after", "")
    row = await service.read(Person, person, after=after, wait=20.0) or Person(person=person)
    recent = row.seen[: -RECENT - 1 : -1]
    model = None
    if zlib.crc32(person.encode()) % CHALLENGED == 0:
        model = await _newest_model()
    found = best(model.similar if model else await _alike(recent), row.seen)
    titles = await _titles([*recent, *found])
    return JSONResponse(
        {
            "clicks": row.clicks,
            "bought": row.bought,
            "recent": [titles[item] for item in recent],
            "searches": [unseal(known["key"], person, text) for text in row.searches],
            "also": [titles[item] for item in found],
            "by": f"the model of {model.version}" if model else "what is seen together",
        }
    )


async def live(request: Request) -> Response:
    """``GET /live``: what happens now, as server-sent events."""
    changes = service.changes(every=15.0)

    async def told() -> AsyncIterator[str]:
        shown: dict[str, Any] = {}
        async for _ in changes:
            now = await _now()
            yield ": still here\n\n" if now == shown else f"data: {json.dumps(now)}\n\n"
            shown = now

    return StreamingResponse(told(), media_type="text/event-stream")


async def _now() -> dict[str, Any]:
    """Return what happens by the clock of the clicks: the newest one is now."""
    (totals,) = await service.fetch(_TOTALS, visit=1_800 / SPEED)
    trending = await service.fetch(_TRENDING, newest=totals["newest"] or 0.0, hour=3_600 / SPEED)
    model = await _newest_model()
    return {**totals, "trending": trending, "model": model.version if model else None}


async def _newest_model() -> Model | None:
    rows = await service.fetch("select max(version) as version from model")
    return await service.read(Model, rows[0]["version"]) if rows[0]["version"] else None


async def _alike(items: Sequence[str]) -> Neighbours:
    rows = await service.fetch("select item, visits from item")
    found = [each for item in items if (each := await service.read(Item, item))]
    visits = {row["item"]: row["visits"] for row in rows}
    return cosine({each.item: each.companions for each in found}, visits)


async def _titles(items: Sequence[str]) -> dict[str, str]:
    found = {item: await service.read(Item, item) for item in items}
    return {item: (row.title or item) if row else item for item, row in found.items()}


_TOTALS = """select count(*) as people, sum(clicks) as clicks, sum(bought) as bought,
 max(at) as newest,
 (select count(*) from person where at > (select max(at) from person) - :visit) as live
 from person"""
_TRENDING = """select title, views from item where hour > :newest - 2 * :hour and views > 0
 order by views desc, hour desc, item limit 10"""

routes = [Route("/people/{name}", page), Route("/live", live)]
service = Service("profiles", http=Starlette(routes=routes))
service.view(Person)
service.view(Item)
service.view(Model)
