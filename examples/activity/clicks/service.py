"""Clicks come in here, each once; who clicked them is known here and nowhere else.

A person gets a pseudonym and a key. Events are never changed, so a name must not get into one: they
have the pseudonym, and what a person typed is sealed by the key. To forget a person is to delete
one row: then nobody knows whose the pseudonym was, and nobody opens what was sealed.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Meta
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clicks.events import Clicked, CustomerErased, ItemViewed
from oyez import InvalidEvent, Service, Transaction, parse
from oyez.errors import BadJson

MOST = 500
"""Clicks of a request."""

Short = Annotated[str, Meta(min_length=1, max_length=80)]


class Click(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a shop tells of a click; ``id`` is its own, so that it may be sent again."""

    id: Short
    name: Short
    item: Short
    title: Annotated[str, Meta(max_length=200)]
    kind: Literal["view", "purchase"]
    at: Annotated[datetime, Meta(tz=True)]
    query: Annotated[str, Meta(max_length=200)] = ""


async def take(request: Request) -> Response:
    """``POST /clicks``: 202 when all are stored, however often they are sent."""
    try:
        sent = parse(list[Click], await request.body())
        if len(sent) > MOST:
            raise InvalidEvent("$", f"has {len(sent)} clicks; at most {MOST} are allowed")
    except (InvalidEvent, BadJson) as error:
        return JSONResponse({"title": "Invalid clicks", "detail": str(error)}, 422)
    clicks = {click.id: click for click in sent}
    async with service.transaction() as tx:
        known = await tx.fetch(f"select id from click where id in {_set(clicks)}", **_each(clicks))
        for row in known:
            del clicks[row["id"]]
        people = await _people(tx, {click.name for click in clicks.values()})
        for click in clicks.values():
            person, key = people[click.name]
            query = seal(key, person, click.query) if click.query else ""
            tx.execute("insert into click values (:id)", id=click.id)
            tx.publish(
                Clicked(person=person, item=click.item, kind=click.kind, at=click.at, query=query)
            )
            tx.publish(ItemViewed(item=click.item, title=click.title, at=click.at))
    return JSONResponse({"accepted": len(clicks)}, 202)


async def forget(request: Request) -> Response:
    """``DELETE /people/{name}``: 202 once nobody can tell any more who it was."""
    async with service.transaction() as tx:
        gone = await tx.fetch(
            "delete from person where name = :name returning person",
            name=request.path_params["name"],
        )
        for row in gone:
            now = datetime.fromisoformat(tx.time)
            tx.publish(CustomerErased(person=row["person"], at=now))
    return JSONResponse({"erased": len(gone)}, 202 if gone else 404)


async def look_up(request: Request) -> Response:
    """``GET /keys/{name}``: pseudonym and key, for the pages; the gateway lets nobody come here."""
    rows = await service.fetch(
        "select person, key from person where name = :name", name=request.path_params["name"]
    )
    return JSONResponse(rows[0] if rows else None, 200 if rows else 404)


def seal(key: str, person: str, text: str) -> str:
    """Return the text as nobody can read it without the key of the person."""
    nonce = secrets.token_bytes(12)
    sealed = AESGCM(bytes.fromhex(key)).encrypt(nonce, text.encode(), person.encode())
    return base64.b64encode(nonce + sealed).decode()


async def _people(tx: Transaction, names: set[str]) -> dict[str, tuple[str, str]]:
    """Return pseudonym and key of each name, made for who is new."""
    rows = await tx.fetch(f"select * from person where name in {_set(names)}", **_each(names))
    found = {row["name"]: (row["person"], row["key"]) for row in rows}
    for name in sorted(names - found.keys()):
        person, key = found[name] = tx.new_id(), secrets.token_hex(32)
        sql = "insert into person values (:name, :person, :key)"
        tx.execute(sql, name=name, person=person, key=key)
    return found


def _set(values: Iterable[str]) -> str:
    return f"({', '.join(f':v{n}' for n, _ in enumerate(values)) or 'null'})"


def _each(values: Iterable[str]) -> dict[str, str]:
    return {f"v{n}": value for n, value in enumerate(values)}


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
