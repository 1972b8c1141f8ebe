"""The audit: what persons did to the services, with commands and in the console."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, urlencode

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from oyez.console.answers import ActPage
from oyez.console.desk import Screen, desk
from oyez.console.pages.sagas import instance_address
from oyez.console.system import Answer
from oyez.runtime.audit import Act

SHOWN = 50
"""Acts on one page."""
LATEST = 2**63 - 1
"""An id that no act has."""

_LETTER = re.compile(r"dead letter (\d{1,18})")
_SAGA = re.compile(r"saga (\S+) (.+)", re.DOTALL)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What an act changed, or what is told of it."""

    name: str
    before: str | None
    """None where nothing is told of the time before."""
    after: str


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Acts on several services, the newest first."""

    acts: tuple[tuple[str, Act], ...]
    """Each with its service."""
    after: dict[str, int] | None
    """By service, the id below which the next page begins; None for the last page."""


def merged(answers: Iterable[Answer[ActPage]], before: Mapping[str, int], shown: int) -> Page:
    """Return the newest acts of all who answered; ``before`` as they were asked."""
    pages = [(each.service, each.value) for each in answers if each.value is not None]
    acts = [(name, act) for name, page in pages for act in page.acts]
    acts.sort(key=lambda each: (-each[1].time, each[0], -each[1].id))
    rest = len(acts) > shown or any(page.more for _, page in pages)
    after = {**before, **{name: act.id for name, act in acts[:shown]}}
    return Page(acts=tuple(acts[:shown]), after=after if rest else None)


def changes(act: Act) -> list[Change]:
    """Return what an act left otherwise than it was, and what is told of the time after alone."""
    return [
        Change(
            name=name,
            before=_text(act.before[name]) if name in act.before else None,
            after=_text(value),
        )
        for name, value in act.after.items()
        if name not in act.before or act.before[name] != value
    ]


def link(service: str, act: Act) -> str:
    """Return the address of the page of what was acted on; empty where there is none."""
    letter = _LETTER.fullmatch(act.target)
    if letter:
        return f"/dead/{quote(service, safe='')}/{letter[1]}"
    saga = _SAGA.fullmatch(act.target)
    return instance_address(service, saga[1], saga[2]) if saga else ""


def positions(given: Sequence[str], services: Iterable[str]) -> dict[str, int]:
    """Return below which id each service is asked, as the parts of an address say: ``orders.7``."""
    found = dict.fromkeys(services, LATEST)
    for text in given:
        name, _, number = text.rpartition(".")
        if name in found and number.isascii() and number.isdecimal() and len(number) < 19:
            found[name] = int(number)
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


async def _audit(request: Request) -> Response:
    shared, query = desk(request), request.query_params
    chosen, target = query.get("service", ""), query.get("target", "")
    if chosen and chosen not in shared.system.services:
        raise HTTPException(404)
    before = positions(query.getlist("before"), [chosen] if chosen else shared.system.services)
    answers = await shared.system.acts(before, target=target, limit=SHOWN)
    page = merged(answers, before, SHOWN)
    return shared.page(
        request,
        "audit.html",
        chosen=chosen,
        target=target,
        services=shared.system.services,
        acts=page.acts,
        next=_next(page.after, chosen, target),
        later=bool(query.getlist("before")),
        gaps=[answer.gap for answer in answers if answer.gap is not None],
        changes=changes,
        link=link,
    )


def _next(after: Mapping[str, int] | None, chosen: str, target: str) -> str:
    if after is None:
        return ""
    asked = [(name, value) for name, value in (("service", chosen), ("target", target)) if value]
    asked += [("before", f"{name}.{number}") for name, number in after.items() if number < LATEST]
    return f"/audit?{urlencode(asked)}"


AUDIT = Screen(title="Audit", path="/audit", key="a", routes=(Route("/audit", _audit),))
