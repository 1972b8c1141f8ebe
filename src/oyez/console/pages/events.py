"""Events: the streams, the events of one that are looked for, one event, and what arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from oyez.console.answers import Explore, Place
from oyez.console.desk import Screen, desk
from oyez.console.live import STREAMS
from oyez.console.safe import laid_out
from oyez.console.system import Unanswered
from oyez.errors import InvalidEvent
from oyez.inspection.explore import at_of, at_text

EVERY = 1.0
"""Seconds between two looks at what has arrived."""

_FILTERS = ("type", "key", "text", "partition", "since", "until", "order")


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the form asks for."""

    broker: str
    asked: Explore
    fields: Mapping[str, str]
    """As they were filled in."""

    def query(self, **more: str) -> str:
        """Return the query of a page with the same fields and more."""
        kept = {name: value for name, value in self.fields.items() if value}
        stream = f"{self.broker} {self.asked.stream}"
        return urlencode({"stream": stream, **kept, **more}, errors="replace")


class Wrong(msgspec.Struct, frozen=True, kw_only=True):
    """A field that can't be read."""

    field: str
    why: str


def wish(query: Mapping[str, str], brokers: Mapping[str, object]) -> Wish | Wrong | None:
    """Return what a query asks for; None if it names no stream of a known broker.

    ``stream`` is the name of a broker, a space and that of the stream.
    """
    broker, _, stream = query.get("stream", "").partition(" ")
    if broker not in brokers or not stream:
        return None
    fields = {name: query.get(name, "").strip() for name in _FILTERS}
    given: dict[str, Any] = {name: fields[name] for name in ("type", "key", "text")}
    try:
        for name in ("since", "until"):
            given[name] = _time(name, fields[name])
        given["partition"] = int(fields["partition"]) if fields["partition"] else None
        at_of(query.get("at", ""))
        asked = msgspec.convert(
            {
                **given,
                "stream": stream,
                "at": query.get("at", ""),
                "oldest": fields["order"] == "oldest",
            },
            Explore,
        )
    except InvalidEvent as error:
        return Wrong(field=error.field, why=error.problem)
    except msgspec.ValidationError as error:
        return Wrong(field="", why=str(error))
    except ValueError:
        return Wrong(field="partition", why="a number from 0 up")
    return Wish(broker=broker, asked=asked, fields=fields)


async def _explore(request: Request) -> Response:
    shared = desk(request)
    found = await shared.system.streams()
    wanted = wish(request.query_params, found)
    values: dict[str, Any] = {
        "brokers": found,
        "gaps": [each.gap for each in found.values() if each.gap is not None],
        "wish": None,
        "page": None,
        "wrong": wanted if isinstance(wanted, Wrong) else None,
        "query": request.query_params,
    }
    if not isinstance(wanted, Wish):
        status = 200 if wanted is None else 422
        return shared.page(request, "events.html", status, **values)
    page = await shared.system.events(wanted.broker, wanted.asked)
    return shared.page(
        request,
        "events.html",
        **{**values, "wish": wanted, "page": page},
        onward=wanted.query(at=at_text(page.at)) if page.at else "",
        tail="" if wanted.asked.oldest else f"/live/events?{wanted.query()}",
    )


async def _event(request: Request) -> Response:
    shared = desk(request)
    broker, place = _place(request)
    shown = await shared.system.event(broker, place)
    return shared.page(
        request,
        "event.html",
        broker=broker,
        stream=place.stream,
        shown=shown,
        event=shown.sighting,
        payload=None if shown.data is None else laid_out(shown.data, shown.size),
        around=urlencode(
            {
                "stream": f"{broker} {place.stream}",
                "partition": place.partition,
                "at": at_text({place.partition: place.position}),
            },
            errors="replace",
        ),
        download=f"/events/data?{request.url.query}",
    )


async def _data(request: Request) -> Response:
    broker, place = _place(request)
    parts = await desk(request).system.data(broker, place)
    name = f"event-{place.partition}-{place.position}.data"
    return StreamingResponse(
        parts,
        media_type="application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


async def _tail(request: Request) -> Response:
    """Answer with what arrives, as rows; the id of each message is where to go on from."""
    shared = desk(request)
    wanted = wish(request.query_params, shared.system.brokers)
    if not isinstance(wanted, Wish):
        raise HTTPException(404)
    if shared.live.viewers >= STREAMS:
        return PlainTextResponse("too many pages are kept up to date", 503)
    again = request.headers.get("last-event-id", wanted.asked.at)

    async def rows() -> AsyncIterator[str]:
        shared.live.viewers += 1
        try:
            at = again
            while shared.access.session(request) is not None and not shared.live.closed:
                asked = msgspec.structs.replace(wanted.asked, at=at, oldest=False)
                answer = await shared.system.arrivals(wanted.broker, asked)
                if answer.value is None:
                    yield _message("gap", str(answer.gap), at)
                else:
                    at = at_text(answer.value.at)
                    text = shared.part(
                        "events-rows.html",
                        events=answer.value.events[::-1],
                        broker=wanted.broker,
                        stream=wanted.asked.stream,
                    )
                    kind = "dropped" if answer.value.dropped else ""
                    if kind:
                        yield _message(kind, str(answer.value.dropped), at)
                    yield _message("", text, at)
                await shared.ambient.sleep(EVERY)
        finally:
            shared.live.viewers -= 1

    return StreamingResponse(rows(), media_type="text/event-stream")


def _message(kind: str, text: str, at: str) -> str:
    lines = "".join(f"data: {line}\n" for line in text.splitlines()) or "data:\n"
    return (f"event: {kind}\n" if kind else "") + f"id: {at}\n{lines}\n"


def _place(request: Request) -> tuple[str, Place]:
    query = request.query_params
    broker, _, stream = query.get("stream", "").partition(" ")
    if broker not in desk(request).system.brokers:
        raise HTTPException(404)
    numbers = {name: query.get(name, "") for name in ("partition", "position")}
    try:
        return broker, msgspec.convert({"stream": stream, **numbers}, Place, strict=False)
    except msgspec.ValidationError as error:
        raise Unanswered(404, f"there is no such event: {error}") from error


def _time(name: str, text: str) -> float | None:
    """Return the time in a field of a form, in UTC. Raises InvalidEvent."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise InvalidEvent(name, "a time such as 2030-01-31T12:00:00, in UTC") from None


EVENTS = Screen(
    title="Events",
    path="/events",
    key="e",
    routes=(
        Route("/events", _explore),
        Route("/events/one", _event),
        Route("/events/data", _data),
        Route("/live/events", _tail),
    ),
)
