"""Dead letters: their causes, the letters of one cause, one letter, and its cures."""

from __future__ import annotations

from urllib.parse import quote

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from oyez import strict_json
from oyez.console.answers import Discard, LetterPage, Redrive
from oyez.console.causes import by_cause
from oyez.console.desk import Screen, desk, form, person
from oyez.console.live import SAMPLE
from oyez.console.safe import differences, laid_out
from oyez.console.system import Answer, Unanswered
from oyez.errors import InvalidEvent
from oyez.inspection.letters import Letter

SHOWN = 50
"""Letters on one page."""


async def _causes(request: Request) -> Response:
    shared = desk(request)
    chosen = request.query_params.get("service", "")
    services = [_known(request, chosen)] if chosen else []
    answers = await shared.system.letters(services, limit=SAMPLE)
    return shared.page(
        request,
        "dead.html",
        chosen=chosen,
        causes=by_cause(letter for each in answers if each.value for letter in each.value.letters),
        more=[each.service for each in answers if each.value is not None and each.value.more],
        gaps=[each.gap for each in answers if each.gap is not None],
        sample=SAMPLE,
    )


async def _letters(request: Request) -> Response:
    shared = desk(request)
    service = _known(request, request.path_params["service"])
    cause = request.query_params.get("cause", "")
    every = request.query_params.get("all") == "1"
    after = _number(request.query_params.get("after", "0"))
    (answer,) = await shared.system.letters([service], every=every, after=after, limit=SAMPLE)
    if answer.value is None:
        raise Unanswered(503, str(answer.gap))
    found = [
        letter
        for group in by_cause(answer.value.letters)
        if not cause or group.id == cause
        for letter in group.letters
    ]
    found.sort(key=lambda letter: letter.id)
    return shared.page(
        request,
        "dead-letters.html",
        service=service,
        cause=cause,
        every=every,
        letters=found[:SHOWN],
        next=_next(found[: SHOWN + 1], answer),
    )


async def _letter(request: Request) -> Response:
    shared = desk(request)
    service = _known(request, request.path_params["service"])
    shown = await shared.system.letter(service, request.path_params["id"])
    data = shown.whole.data
    payload = None if data is None or shown.size is None else laid_out(data, shown.size)
    return shared.page(
        request,
        "letter.html",
        service=service,
        whole=shown.whole,
        letter=shown.whole.letter,
        size=shown.size,
        payload=payload,
        done=request.query_params.get("done", ""),
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
        handler=fields.get("handler") or None,
        old=fields.get("old") == "1",
    )
    return await _act(request, "redrive", body)


async def _discard(request: Request) -> Response:
    why = form(request).get("why", "").strip()
    if not why:
        return desk(request).problem(
            request, 422, "A reason is missing", "State why it may be discarded."
        )
    return await _act(request, "discard", Discard(who=person(request).name, why=why))


async def _edit(request: Request) -> Response:
    """Show what an edit would change, before it is done."""
    shared = desk(request)
    service = _known(request, request.path_params["service"])
    shown = await shared.system.letter(service, request.path_params["id"])
    after = _posted(form(request).get("data", ""))
    data = shown.whole.data or b""
    before = laid_out(data, shown.size or 0)
    wrong = ""
    if before.form == "JSON":
        try:
            strict_json.read(after.encode())
        except InvalidEvent as error:
            wrong = str(error)
    return shared.page(
        request,
        "letter-edit.html",
        service=service,
        letter=shown.whole.letter,
        lines=differences(before.text, after),
        data=after,
        wrong=wrong,
    )


async def _act(request: Request, act: str, body: msgspec.Struct) -> Response:
    service = _known(request, request.path_params["service"])
    letter = request.path_params["id"]
    await desk(request).system.act(service, f"/oyez/letters/{letter}/{act}", body)
    return RedirectResponse(f"/dead/{quote(service)}/{letter}?done={act}", 303)


def _known(request: Request, service: str) -> str:
    if service not in desk(request).system.services:
        raise HTTPException(404)
    return service


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def _next(found: list[Letter], answer: Answer[LetterPage]) -> int | None:
    """Return the number of the letter after which the next page begins; None for the last."""
    if len(found) > SHOWN:
        return found[SHOWN - 1].id
    if answer.value is not None and answer.value.more:
        return answer.value.letters[-1].id
    return None


def _posted(text: str) -> str:
    """Return a text as it was before the browser sent it, with the line ends of forms."""
    return text.replace("\r\n", "\n")


_ID = "/dead/{service}/{id:int}"

DEAD = Screen(
    title="Dead letters",
    path="/dead",
    key="d",
    routes=(
        Route("/dead", _causes),
        Route("/dead/{service}", _letters),
        Route(_ID, _letter),
        Route(f"{_ID}/data", _download),
        Route(f"{_ID}/redrive", _redrive, methods=["POST"]),
        Route(f"{_ID}/edit", _edit, methods=["POST"]),
        Route(f"{_ID}/discard", _discard, methods=["POST"]),
    ),
)
