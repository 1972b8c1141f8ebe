"""Find, and the flow of one correlation id: first who holds it up, then its tree and time line."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from oyez.console.answers import IDENTITY
from oyez.console.desk import Desk, Screen, desk
from oyez.console.flows import Flow, Found
from oyez.console.pages.streaming import follow
from oyez.console.timeline import timeline
from oyez.inspection.holder import Cure
from oyez.inspection.journey import JourneyEvent
from oyez.inspection.letters import Letter
from oyez.inspection.sagas import Instance


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A link to where something can be done, with what it says."""

    href: str
    text: str


def flow_address(correlation: str) -> str:
    """Return the address of a flow. Any text may be a correlation id."""
    return f"/flow?{urlencode({'id': correlation})}"


def only(found: Found, identity: str, paths: frozenset[str]) -> str | None:
    """Return the address of what an identity is, if that is one thing; None otherwise.

    A flow's dead letters and sagas are a part of it. ``paths`` are those of the screens there are.
    """
    numbered = [letter for letter in found.letters if str(letter.id) == identity]
    if len(found.flows) == 1 and not numbered:
        correlation, _ = found.flows[0]
        if all(saga.correlationid in (correlation, None) for saga in found.sagas):
            return flow_address(correlation)
    if len(found.flows) + len(found.letters) + len(found.sagas) != 1:
        return None
    if found.letters:
        return letter_address(found.letters[0])
    return saga_address(found.sagas[0], paths) if found.sagas else None


def letter_address(letter: Letter) -> str:
    """Return the address of a dead letter."""
    return f"/dead/{letter.service}/{letter.id}"


def saga_address(saga: Instance, paths: frozenset[str]) -> str | None:
    """Return the address of an instance of a saga; None without a screen of sagas."""
    return _saga(saga.service, saga.saga, saga.key) if "/sagas" in paths else None


def event_address(event: JourneyEvent, paths: frozenset[str]) -> str | None:
    """Return the address of an event's payload; None where no screen or no broker has it."""
    if "/events" not in paths or not event.places:
        return None
    place = event.places[0]
    stream = f"{place.broker} {event.stream}"
    asked = {"stream": stream, "partition": place.partition, "position": place.position}
    return f"/events/one?{urlencode(asked)}"


def cure_link(cure: Cure, paths: frozenset[str]) -> Link | None:
    """Return the link to a cure; None where no screen has it."""
    match cure.kind:
        case "letter":
            text = f"Dead letter {cure.letter}"
            return Link(href=f"/dead/{cure.service}/{cure.letter}", text=text)
        case "saga":
            href = _saga(cure.service, cure.saga, cure.key)
            return Link(href=href, text="The saga") if "/sagas" in paths else None
        case "key":
            return Link(href=f"/find?{urlencode({'q': cure.key})}", text="All of this key")
        case "service":
            own = "/services" in paths
            href = f"/services/{cure.service}" if own else f"/#service-{cure.service}"
            return Link(href=href, text=f"The service {cure.service}")


def _saga(service: str, saga: str, key: str) -> str:
    place = urlencode({"key": key})
    return f"/sagas/{quote(service, safe='')}/{quote(saga, safe='')}/instance?{place}"


async def _find(request: Request) -> Response:
    shared = desk(request)
    identity = request.query_params.get("q", "").strip()[:IDENTITY]
    if not identity:
        return shared.page(request, "find.html", identity="", found=None, **_addresses(shared))
    found = await shared.flows.find(identity)
    there = only(found, identity, shared.paths)
    if there is not None:
        return RedirectResponse(there, 303)
    return shared.page(request, "find.html", identity=identity, found=found, **_addresses(shared))


async def _flow(request: Request) -> Response:
    shared = desk(request)
    correlation = request.query_params.get("id", "")[:IDENTITY]
    if not correlation:
        return RedirectResponse("/find", 303)
    flow = await shared.flows.look(correlation)
    return shared.page(
        request,
        "flow.html",
        flow=flow,
        live=_part(shared, flow),
        source="" if flow.over else f"/live{flow_address(correlation)}",
    )


async def _live(request: Request) -> Response:
    shared = desk(request)
    correlation = request.query_params.get("id", "")[:IDENTITY]

    async def look() -> tuple[str, bool]:
        flow = await shared.flows.look(correlation)
        return _part(shared, flow), flow.over

    return follow(request, look)


def _part(shared: Desk, flow: Flow) -> Markup:
    holder = flow.holder
    cure = None if holder is None or holder.cure is None else holder.cure
    return shared.part(
        "flow-live.html",
        flow=flow,
        holder=holder,
        cure=None if cure is None else cure_link(cure, shared.paths),
        line=None if flow.journey is None else timeline(flow.journey, flow.at),
        **_addresses(shared),
    )


def _addresses(shared: Desk) -> dict[str, Any]:
    return {
        "flow_address": flow_address,
        "event_address": lambda event: event_address(event, shared.paths),
        "saga_address": lambda saga: saga_address(saga, shared.paths),
    }


FIND = Screen(
    title="Find",
    path="/find",
    key="f",
    routes=(Route("/find", _find), Route("/flow", _flow), Route("/live/flow", _live)),
)
