"""Clicks come in here, each once; who clicked them is known here and nowhere else.

A person gets a pseudonym and a key. Events are never changed, so a name must not get into one: they
have the pseudonym, and what a person typed is sealed by the key. To forget a person is to delete
one row: then nobody knows whose the pseudonym was, and nobody opens what was sealed.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from cryptography.fernet import Fernet
from msgspec import Meta
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clicks.events import Clicked, CustomerErased, ItemViewed
from oyez import InvalidEvent, Service, Transaction, parse
from oyez.errors import BadJson

Kind = Literal["view", "purchase"]
Short = Annotated[str, Meta(min_length=1, max_length=80)]


class Click(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a shop tells of a click; ``id`` is its own, so that it may be sent again."""

    id: Short
    name: Short
    item: Short
    title: Annotated[str, Meta(max_length=200)]
    kind: Kind
    at: Annotated[datetime, Meta(tz=True)]
    query: Annotated[str, Meta(max_length=200)] = ""


async def take(request: Request) -> Response:
    """``POST /clicks``: 202 when all are stored, however often they are sent."""
    try:
        clicks = parse(list[Click], await request.body())
    except (InvalidEvent, BadJson) as error:
        return JSONResponse({"title": "Invalid clicks", "detail": str(error)}, 422)
    async with service.transaction() as tx:
        people = {name: await _person(tx, name) for name in sorted({each.name for each in clicks})}
        new = [click for click in clicks if await tx.fetch(_NEW, id=click.id)]
        for click in new:
            person, key = people[click.name].values()
            query = Fernet(key).encrypt(click.query.encode()).decode() if click.query else ""
            tx.publish(
                Clicked(person=person, item=click.item, kind=click.kind, at=click.at, query=query)
            )
            tx.publish(ItemViewed(item=click.item, title=click.title, at=click.at))
    return JSONResponse({"accepted": len(new)}, 202)


async def _person(tx: Transaction, name: str) -> dict[str, str]:
    """Return pseudonym and key of a name, made for who is new."""
    key = Fernet.generate_key().decode()
    (row,) = await tx.fetch(_PERSON, name=name, person=tx.new_id(), key=key)
    return row


async def forget(request: Request) -> Response:
    """``DELETE /people/{name}``: 202 once nobody can tell any more who it was."""
    async with service.transaction() as tx:
        gone = await tx.fetch(_GONE, name=request.path_params["name"])
        for row in gone:
            tx.publish(CustomerErased(person=row["person"], at=datetime.fromisoformat(tx.time)))
    return JSONResponse({"erased": len(gone)}, 202 if gone else 404)


async def look_up(request: Request) -> Response:
    """``GET /keys/{name}``: pseudonym and key, for the pages; the gateway lets nobody come here."""
    rows = await service.fetch(_KEY, name=request.path_params["name"])
    return JSONResponse(rows[0] if rows else None, 200 if rows else 404)


_NEW = "insert into click values (:id) on conflict (id) do nothing returning id"
_PERSON = """insert into person values (:name, :person, :key)
 on conflict (name) do update set name = excluded.name returning person, key"""
_GONE = "delete from person where name = :name returning person"
_KEY = "select person, key from person where name = :name"

routes = [
    Route("/clicks", take, methods=["POST"]),
    Route("/people/{name}", forget, methods=["DELETE"]),
    Route("/keys/{name}", look_up),
]
service = Service(
    "clicks",
    http=Starlette(routes=routes),
    migrations="clicks/migrations",
    publishes=(Clicked, ItemViewed, CustomerErased),
)
