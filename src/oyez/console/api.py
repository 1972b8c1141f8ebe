"""The services' side: what a process tells of itself, under ``/oyez`` of its admin port.

The admin port has checked the token. Every answer is of `oyez.console.answers` or of
`oyez.inspection`, asked of the broker and the store that the process has open.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from oyez import signals
from oyez.console.answers import (
    Counts,
    Discard,
    Done,
    LetterPage,
    LetterShown,
    Problem,
    Redrive,
    Replica,
)
from oyez.errors import BrokerError, InvalidEvent, NotRedriven, OyezError
from oyez.event import MAX_DATA
from oyez.inspection.lag import ServiceLag, measure
from oyez.inspection.letters import read_letter, read_letters
from oyez.runtime.dead import discard, redrive
from oyez.runtime.process import ServiceProcess
from oyez.runtime.redrive import handlers_of

T = TypeVar("T")

SHOWN = 65_536
"""Bytes of a payload that are shown; the rest can be downloaded."""
PAGE = 1_000
"""The most dead letters in one answer."""
FRESH = 1.0
"""Seconds for which a measurement of lag answers everybody who asks."""
_LARGEST = 2**63 - 1
_BODY = MAX_DATA * 4 // 3 + 4096


def api(process: ServiceProcess) -> Starlette:
    """Return the app of a process. It counts what the process does from now on."""
    return _Api(process).app()


class _Api:
    def __init__(self, process: ServiceProcess) -> None:
        self._process = process
        self._handled: Counter[str] = Counter()
        self._published: Counter[str] = Counter()
        self._retried: Counter[str] = Counter()
        self._dead: Counter[str] = Counter()
        self._lag: tuple[float, asyncio.Task[ServiceLag]] | None = None
        process.reports.listen(self._count)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/replica", _answer(self._replica)),
                Route("/lag", _answer(self._measured)),
                Route("/letters", _answer(self._letters)),
                Route("/letters/{id:int}", _answer(self._letter)),
                Route("/letters/{id:int}/data", self._data),
                Route("/letters/{id:int}/redrive", _answer(self._redrive), methods=["POST"]),
                Route("/letters/{id:int}/discard", _answer(self._discard), methods=["POST"]),
            ]
        )

    def _count(self, signal: signals.Signal) -> None:
        match signal:
            case signals.BatchHandled(stream=stream, events=events):
                self._handled[stream] += events
            case signals.EventsPublished(stream=stream, events=events):
                self._published[stream] += events
            case signals.EventRetried(handler=handler):
                self._retried[handler] += 1
            case signals.EventDead(handler=handler):
                self._dead[handler] += 1

    async def _replica(self, _: Request) -> Replica:
        process = self._process
        reasons = [*process.health.readiness(), *process.views.problems()]
        return Replica(
            service=process.service.name,
            owner=process.owner,
            publishes=tuple(kind.name for kind in process.service.publishes),
            handlers={
                handler.name: tuple(kind.name for kind in handler.events)
                for handler in process.service.subscriptions
            },
            reasons=(*reasons, *(["draining"] if process.stopping else [])),
            warnings=tuple(process.health.warnings()),
            counts=Counts(
                handled=dict(self._handled),
                published=dict(self._published),
                retried=dict(self._retried),
                dead=dict(self._dead),
            ),
        )

    async def _measured(self, _: Request) -> ServiceLag:
        now = self._process.ambient.monotonic()
        if self._lag is None or now - self._lag[0] > FRESH:
            self._lag = now, asyncio.create_task(self._measure(), name="measure lag")
        return await asyncio.shield(self._lag[1])

    async def _measure(self) -> ServiceLag:
        process = self._process
        system, name, now = process.settings.system, process.service.name, process.ambient.now()
        code, store = process.service, process.store
        try:
            return await measure(system, name, code, process.broker, store, now)
        except BrokerError:
            return await measure(system, name, code, None, store, now)

    async def _letters(self, request: Request) -> LetterPage:
        letters, more = await read_letters(
            self._process.service.name,
            self._process.store,
            every=_number(request, "every", 0, 1) == 1,
            after=_number(request, "after", 0, _LARGEST),
            limit=max(1, _number(request, "limit", 100, PAGE)),
        )
        return LetterPage(letters=tuple(letters), more=more)

    async def _letter(self, request: Request) -> LetterShown:
        name, store = self._process.service.name, self._process.store
        whole = await read_letter(name, store, _id(request))
        if whole is None:
            raise NotRedriven(f"there is no dead letter {_id(request)}")
        size = None if whole.data is None else len(whole.data)
        if whole.data is not None:
            whole = msgspec.structs.replace(whole, data=whole.data[:SHOWN])
        return LetterShown(whole=whole, size=size)

    async def _data(self, request: Request) -> Response:
        whole = await read_letter(self._process.service.name, self._process.store, _id(request))
        if whole is None or whole.data is None:
            return _problem(404, "there is no such payload")
        return Response(whole.data, media_type="application/octet-stream")

    async def _redrive(self, request: Request) -> Done:
        asked = await _body(request, Redrive)
        await redrive(
            self._process.store,
            _id(request),
            self._process.ambient,
            by=asked.actor(),
            handler=asked.handler,
            handlers=handlers_of(self._process.service),
            data=asked.data,
            old=asked.old,
        )
        return Done()

    async def _discard(self, request: Request) -> Done:
        asked = await _body(request, Discard)
        process = self._process
        await discard(process.store, _id(request), process.ambient, by=asked.actor())
        return Done()


def _answer(
    ask: Callable[[Request], Awaitable[object]],
) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that answers with the value as JSON, or with a problem."""

    async def endpoint(request: Request) -> Response:
        try:
            value = await ask(request)
        except (msgspec.DecodeError, InvalidEvent) as error:
            return _problem(422, str(error))
        except NotRedriven as error:
            return _problem(409, str(error))
        except OyezError as error:
            return _problem(503 if error.transient else 500, str(error))
        return Response(msgspec.json.encode(value), media_type="application/json")

    return endpoint


def _problem(status: int, detail: str) -> Response:
    problem = Problem(title="It could not be done", status=status, detail=detail)
    return Response(msgspec.json.encode(problem), status, media_type="application/problem+json")


def _id(request: Request) -> int:
    return min(int(request.path_params["id"]), _LARGEST)


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise InvalidEvent(name, "a number from 0 up")
    return min(int(text), most)


async def _body(request: Request, kind: type[T]) -> T:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _BODY:
            raise InvalidEvent("body", f"at most {_BODY} bytes")
    return msgspec.json.decode(bytes(body), type=kind)
