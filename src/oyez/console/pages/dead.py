"""Dead letters: their causes, the letters of one cause, one letter, many, and their cures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Literal
from urllib.parse import quote, urlencode

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from oyez import strict_json
from oyez.console.answers import (
    Asked,
    Discard,
    GroupPage,
    Job,
    LetterPage,
    Look,
    Looked,
    Many,
    Redrive,
)
from oyez.console.desk import Screen, desk, form, person
from oyez.console.pages.streaming import follow
from oyez.console.safe import differences, laid_out
from oyez.console.system import Answer, Unanswered
from oyez.errors import InvalidEvent
from oyez.runtime.dead import Group, Wanted

SHOWN = 50
"""Letters, or causes, on one page."""
RATE = 50
"""The limit of letters in a second that the form of a redrive begins with."""
_FASTEST = 1_000_000
_FILTERS = ("handler", "type", "key", "group", "text")
_LARGEST = 2**63 - 1


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """A group of a service's dead letters."""

    service: str
    group: Group

    @property
    def place(self) -> tuple[int, str, str]:
        """Where it stands among those of all services."""
        return -self.group.letters, self.group.group, self.service


def merged(answers: Iterable[Answer[GroupPage]]) -> tuple[list[Cause], Cause | None]:
    """Return one page of the groups that services answered, and the last if more follow."""
    found, more = [], False
    for answer in answers:
        if answer.value is not None:
            found += [Cause(service=answer.service, group=each) for each in answer.value.groups]
            more = more or answer.value.more
    found.sort(key=lambda cause: cause.place)
    page = found[:SHOWN]
    return page, page[-1] if page and (more or len(found) > SHOWN) else None


def begins(
    services: Iterable[str], letters: int, group: str, last: str
) -> dict[str, tuple[int, str] | None]:
    """Return after which group each service's part of the next page begins.

    The page before ended with a group of the service ``last``. Another service may have a group of
    that name too, which comes after it if the service does.
    """
    before = f"{int(group, 16) - 1:016x}" if group.strip("0") else ""
    return {name: (letters, group if name <= last else before) for name in services}


async def _causes(request: Request) -> Response:
    shared, query = desk(request), request.query_params
    chosen = query.get("service", "")
    services = [_known(request, chosen)] if chosen else shared.system.services
    wanted = _wanted(query)
    after: dict[str, tuple[int, str] | None] = dict.fromkeys(services)
    if "after" in query:
        place = query["after"]
        if len(place) > 16 or set(place) - set("0123456789abcdef"):
            raise HTTPException(404)
        after = begins(services, _number(query.get("letters", "")), place, query.get("last", ""))
    answers = await shared.system.groups(after, wanted, SHOWN)
    causes, last = merged(answers)
    following = None
    if last is not None:
        at = {"letters": last.group.letters, "after": last.group.group, "last": last.service}
        following = urlencode({**({"service": chosen} if chosen else {}), **wanted, **at})
    return shared.page(
        request,
        "dead.html",
        chosen=chosen,
        services=shared.system.services,
        wanted=wanted,
        causes=causes,
        following=following,
        jobs=_under_way(answers),
        gaps=[each.gap for each in answers if each.gap is not None],
    )


async def _letters(request: Request) -> Response:
    shared, query = desk(request), request.query_params
    service = _known(request, request.path_params["service"])
    wanted = _wanted(query)
    every = query.get("all") == "1"
    after = _number(query.get("after", ""))
    page, answers = await asyncio.gather(
        shared.system.letters(service, wanted, every=every, after=after, limit=SHOWN),
        shared.system.groups({service: None}, wanted, 1),
    )
    return shared.page(
        request,
        "dead-letters.html",
        service=service,
        wanted=wanted,
        query=urlencode(wanted),
        group=_group(answers, wanted),
        every=every,
        letters=page.letters,
        following=_following(page, wanted, every),
        jobs=_under_way(answers),
    )


async def _many(request: Request) -> Response:
    """Show what would be done with all letters that are wanted, and the forms that do it."""
    shared, query = desk(request), request.query_params
    service = _known(request, request.path_params["service"])
    wanted, to, old = _wanted(query), query.get("to", ""), query.get("old") == "1"
    look = Look(wanted=Wanted(**wanted), handler=to or None, old=old)
    looked, answers = await asyncio.gather(
        shared.system.look(service, look), shared.system.groups({service: None}, wanted, 1)
    )
    return shared.page(
        request,
        "dead-many.html",
        service=service,
        wanted=wanted,
        query=urlencode(wanted),
        to=to,
        old=old,
        looked=looked,
        group=_group(answers, wanted),
        rate=RATE,
    )


async def _start(request: Request) -> Response:
    service = _known(request, request.path_params["service"])
    fields = form(request)
    act: Literal["redrive", "discard"] = "discard" if fields.get("act") == "discard" else "redrive"
    why = fields.get("why", "").strip()
    if act == "discard" and not why:
        return _reason_is_missing(request)
    rate = _rate(fields.get("rate", ""))
    if rate is None:
        return desk(request).problem(
            request, 422, "Not a rate", f"Give a number above 0, up to {_FASTEST}; or nothing."
        )
    many = Many(
        who=person(request).name,
        why=why,
        act=act,
        wanted=Wanted(**_wanted(fields)),
        handler=fields.get("to") or None,
        old=fields.get("old") == "1",
        rate=rate,
    )
    job = await desk(request).system.start(service, many)
    return RedirectResponse(_job_address(service, job.id), 303)


async def _job(request: Request) -> Response:
    service, name = _job_of(request)
    job = await desk(request).system.job(service, name)
    return desk(request).page(
        request, "dead-job.html", service=service, job=job, live=_progress(request, service, job)
    )


async def _live_job(request: Request) -> Response:
    service, name = _job_of(request)

    async def part() -> tuple[str, bool]:
        try:
            job = await desk(request).system.job(service, name)
        except Unanswered as error:
            return desk(request).part("dead-job-lost.html", why=str(error)), True
        return _progress(request, service, job), job.ended is not None

    return follow(request, part)


def _progress(request: Request, service: str, job: Job) -> str:
    return desk(request).part("dead-job-live.html", service=service, job=job)


async def _stop(request: Request) -> Response:
    service, name = _job_of(request)
    await desk(request).system.stop(service, name, Asked(who=person(request).name))
    return RedirectResponse(_job_address(service, name), 303)


async def _letter(request: Request) -> Response:
    shared, query = desk(request), request.query_params
    service, letter = _known(request, request.path_params["service"]), request.path_params["id"]
    to, old = query.get("to", ""), query.get("old") == "1"
    shown = await shared.system.letter(service, letter)
    looked: Looked | None = None
    if shown.whole.letter.state == "dead":
        looked = await shared.system.look(service, Look(letter=letter, handler=to or None, old=old))
    data = shown.whole.data
    payload = None if data is None or shown.size is None else laid_out(data, shown.size)
    return shared.page(
        request,
        "letter.html",
        service=service,
        shown=shown,
        whole=shown.whole,
        letter=shown.whole.letter,
        size=shown.size,
        payload=payload,
        preview=looked.previews[0] if looked is not None and looked.previews else None,
        to=to,
        old=old,
        done=query.get("done", ""),
    )


async def _download(request: Request) -> Response:
    service, letter = _known(request, request.path_params["service"]), request.path_params["id"]
    content = await desk(request).system.payload(service, letter)
    name = f"{service}-{letter}.data"
    return Response(
        content,
        media_type="application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


async def _redrive(request: Request) -> Response:
    fields = form(request)
    data = fields.get("data")
    body = Redrive(
        who=person(request).name,
        data=None if data is None else _posted(data).encode(),
        handler=fields.get("to") or None,
        old=fields.get("old") == "1",
    )
    return await _act(request, "redrive", body)


async def _discard(request: Request) -> Response:
    why = form(request).get("why", "").strip()
    if not why:
        return _reason_is_missing(request)
    return await _act(request, "discard", Discard(who=person(request).name, why=why))


async def _edit(request: Request) -> Response:
    """Show what an edit would change, and what its handler would get, before it is done."""
    shared, fields = desk(request), form(request)
    service, letter = _known(request, request.path_params["service"]), request.path_params["id"]
    shown = await shared.system.letter(service, letter)
    after = _posted(fields.get("data", ""))
    to, old = fields.get("to", ""), fields.get("old") == "1"
    data = shown.whole.data or b""
    before = laid_out(data, shown.size or 0)
    wrong = ""
    if before.form == "JSON":
        try:
            strict_json.read(after.encode())
        except InvalidEvent as error:
            wrong = str(error)
    look = Look(letter=letter, handler=to or None, old=old, data=after.encode())
    looked = None if wrong else await shared.system.look(service, look)
    return shared.page(
        request,
        "letter-edit.html",
        service=service,
        letter=shown.whole.letter,
        lines=differences(before.text, after),
        data=after,
        wrong=wrong,
        to=to,
        old=old,
        preview=looked.previews[0] if looked is not None and looked.previews else None,
    )


async def _act(request: Request, act: str, body: msgspec.Struct) -> Response:
    service = _known(request, request.path_params["service"])
    letter = request.path_params["id"]
    await desk(request).system.act(service, f"/oyez/letters/{letter}/{act}", body)
    return RedirectResponse(f"/dead/{quote(service)}/{letter}?done={act}", 303)


def _reason_is_missing(request: Request) -> Response:
    return desk(request).problem(
        request, 422, "A reason is missing", "State why it may be discarded."
    )


def _known(request: Request, service: str) -> str:
    if service not in desk(request).system.services:
        raise HTTPException(404)
    return service


def _job_of(request: Request) -> tuple[str, str]:
    name = request.path_params["job"]
    if not (name.isascii() and name.isalnum()):
        raise HTTPException(404)
    return _known(request, request.path_params["service"]), name


def _job_address(service: str, job: str) -> str:
    return f"/dead/{quote(service)}/jobs/{job}"


def _wanted(given: Mapping[str, str]) -> dict[str, str]:
    """Return the filters that are filled in, of an address or of a form."""
    return {name: given[name] for name in _FILTERS if given.get(name)}


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def _rate(text: str) -> float | None:
    """Return a rate, 0 for an empty text; None for what is not one."""
    if not text.strip():
        return 0.0
    try:
        rate = float(text)
    except ValueError:
        return None
    return rate if 0 < rate <= _FASTEST else None


def _following(page: LetterPage, wanted: Mapping[str, str], every: bool) -> str | None:
    if not page.more:
        return None
    after = {"after": page.letters[-1].id}
    return urlencode({**wanted, **({"all": 1} if every else {}), **after})


def _group(answers: Iterable[Answer[GroupPage]], wanted: Mapping[str, str]) -> Group | None:
    """Return the group that is wanted, if it is one."""
    groups = (each for answer in answers if answer.value for each in answer.value.groups)
    return next(groups, None) if "group" in wanted else None


def _under_way(answers: Iterable[Answer[GroupPage]]) -> list[tuple[str, Job]]:
    return [
        (answer.service, job)
        for answer in answers
        if answer.value is not None
        for job in answer.value.jobs
        if job.ended is None
    ]


def _posted(text: str) -> str:
    """Return a text as it was before the browser sent it, with the line ends of forms."""
    return text.replace("\r\n", "\n")


_OF = "/dead/{service}"
_ID = "/dead/{service}/{id:int}"
_JOB = "/dead/{service}/jobs/{job}"

DEAD = Screen(
    title="Dead letters",
    path="/dead",
    key="d",
    routes=(
        Route("/dead", _causes),
        Route(_OF, _letters),
        Route(f"{_OF}/many", _many),
        Route(f"{_OF}/many", _start, methods=["POST"]),
        Route(_ID, _letter),
        Route(f"{_ID}/data", _download),
        Route(f"{_ID}/redrive", _redrive, methods=["POST"]),
        Route(f"{_ID}/edit", _edit, methods=["POST"]),
        Route(f"{_ID}/discard", _discard, methods=["POST"]),
        Route(_JOB, _job),
        Route(f"{_JOB}/live", _live_job),
        Route(f"{_JOB}/stop", _stop, methods=["POST"]),
    ),
)
