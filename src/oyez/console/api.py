"""The services' side: what a process tells of itself, under ``/oyez`` of its admin port.

The admin port has checked the token. Every answer is of `oyez.console.answers` or of
`oyez.inspection`, asked of the broker and the store that the process has open.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from oyez import signals, tables
from oyez.console.answers import (
    IDENTITY,
    ActPage,
    Asked,
    Counts,
    Discard,
    Done,
    GroupPage,
    Hear,
    Job,
    LetterPage,
    LetterShown,
    Look,
    Looked,
    Many,
    ParkedPage,
    Problem,
    Redrive,
    Replica,
    ServiceShown,
    SettingsShown,
    Stuck,
    TakePart,
    Timings,
    Trouble,
    ViewShown,
)
from oyez.console.asked import LARGEST, number, read_body
from oyez.console.events import Events
from oyez.console.instances import Instances, Refused
from oyez.console.jobs import Jobs
from oyez.console.shared import Shared
from oyez.console.timings import Stopwatch
from oyez.errors import BrokerError, InvalidEvent, NotRedriven, NotThere, OyezError
from oyez.inspection import witness
from oyez.inspection.installation import Setting, read_applied, read_leases
from oyez.inspection.lag import ServiceLag, measure
from oyez.inspection.letters import read_letter, read_letters
from oyez.inspection.parked import read_parked
from oyez.inspection.scale import Gauge, Scale
from oyez.inspection.schedule import list_later
from oyez.inspection.views import ViewVersion, read_views
from oyez.runtime.audit import list_acts
from oyez.runtime.dead import Wanted, count_dead, discard, list_groups, redrive, target_of
from oyez.runtime.process import ServiceProcess
from oyez.runtime.redrive import Preview, handlers_of, preview_letters

T = TypeVar("T")

SHOWN = 65_536
"""Bytes of a payload that are shown; the rest can be downloaded."""
PAGE = 1_000
"""The most dead letters in one answer."""
LOOKED_AT = 20
"""The most letters in one dry run."""
LATER = 100
"""The most scheduled events, schedules and timers in one answer: those that are next."""
STALE = 0.5
"""Seconds to find out how far one version of a view is behind."""
SEARCH = 0.5
"""Seconds to find the oldest events of all partitions."""
FRESH = 1.0
"""Seconds for which a measurement answers everybody who asks."""
_GROUPS = 10
_ACTS = 50
_CUT = 2_000


def api(process: ServiceProcess, settings: Callable[[], Sequence[Setting]] = tuple) -> Starlette:
    """Return the app of a process. It counts what the process does from now on.

    ``settings`` returns those in effect, without secrets.
    """
    return _Api(process, settings).app()


class _Api:
    def __init__(self, process: ServiceProcess, settings: Callable[[], Sequence[Setting]]) -> None:
        self._process = process
        self._settings = settings
        self._stopwatch = Stopwatch(process.reports, process.ambient)
        self._handled: Counter[str] = Counter()
        self._published: Counter[str] = Counter()
        self._retried: Counter[str] = Counter()
        self._dead: Counter[str] = Counter()
        self._lag = Shared(process, self._measure)
        self._trouble = Shared(process, self._look_for_trouble)
        self._gauge = Gauge(process.settings.scaling)
        self._scale = Shared(process, self._measure_scale)
        self._calls = self._failed = 0
        self._jobs = Jobs(process)
        self._events = Events(process)
        self._instances = Instances(process)
        process.reports.listen(self._count)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/replica", _answer(self._replica)),
                Route("/lag", _answer(self._lag.answer)),
                Route("/scale", _answer(self._scale.answer)),
                Route("/trouble", _answer(self._trouble.answer)),
                Route("/groups", _answer(self._groups)),
                Route("/letters", _answer(self._letters)),
                Route("/letters/look", _answer(self._look), methods=["POST"]),
                Route("/letters/{id:int}", _answer(self._letter)),
                Route("/letters/{id:int}/data", self._data),
                Route("/letters/{id:int}/redrive", _answer(self._redrive), methods=["POST"]),
                Route("/letters/{id:int}/discard", _answer(self._discard), methods=["POST"]),
                Route("/jobs", _answer(self._start), methods=["POST"]),
                Route("/jobs/{job}", _answer(self._job)),
                Route("/jobs/{job}/stop", _answer(self._stop), methods=["POST"]),
                Route("/timings", _answer(self._timings)),
                Route("/parked", _answer(self._parked)),
                Route("/service", _answer(self._service)),
                Route("/settings", _answer(self._shown_settings)),
                Route("/find", _answer(self._find)),
                Route("/history", _answer(self._history), methods=["POST"]),
                Route("/positions", _answer(self._positions)),
                Route("/journey", _answer(self._recall)),
                Route("/journey", _answer(self._part), methods=["POST"]),
                Route("/sagas", _answer(self._instances.standing)),
                Route("/sagas/{saga}/instances", _answer(self._instances.page)),
                Route("/sagas/{saga}/instance", _answer(self._instances.one)),
                Route("/sagas/{saga}/retry", _answer(self._instances.retry), methods=["POST"]),
                Route("/sagas/{saga}/abort", _answer(self._instances.abort), methods=["POST"]),
                Route("/sagas/{saga}/resolve", _answer(self._instances.resolve), methods=["POST"]),
                Route("/audit", _answer(self._audit)),
                Route("/streams", _answer(self._events.streams)),
                Route("/events", _answer(self._events.page)),
                Route("/events/arrivals", _answer(self._events.arrivals)),
                Route("/events/one", _answer(self._events.one)),
                Route("/events/data", self._events.data),
                Route("/contracts", _answer(self._events.contracts)),
            ]
        )

    def _count(self, signal: signals.Signal) -> None:
        match signal:
            case signals.BatchHandled(stream=stream, events=events):
                self._handled[stream] += events
            case signals.EventsPublished(stream=stream, events=events):
                self._published[stream] += events
            case signals.HandlerTimed(outcome=outcome, seconds=seconds):
                self._calls += len(seconds)
                self._failed += len(seconds) if outcome != "done" else 0
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

    async def _measure(self) -> ServiceLag:
        process = self._process
        system, name, now = process.settings.system, process.service.name, process.ambient.now()
        code, store = process.service, process.store
        try:
            return await measure(system, name, code, process.broker, store, now, within=SEARCH)
        except BrokerError:
            return await measure(system, name, code, None, store, now)

    async def _measure_scale(self) -> Scale:
        process = self._process
        broker, store, ambient = process.broker, process.store, process.ambient
        system, name, now = process.settings.system, process.service.name, ambient.now()
        failing = self._failed / self._calls if self._calls else 0.0
        lag = await measure(system, name, process.service, broker, store, now, within=SEARCH)
        scale = await self._gauge.look(lag, broker, ambient.monotonic(), now, failing=failing)
        self._calls = self._failed = 0
        return scale

    async def _look_for_trouble(self) -> Trouble:
        store = self._process.store
        groups = await list_groups(store, limit=_GROUPS + 1)
        stuck = await store.fetch(tables.STUCK_SAGAS, {})
        return Trouble(
            groups=tuple(groups[:_GROUPS]),
            more=len(groups) > _GROUPS,
            stuck=tuple(
                Stuck(saga=row["kind"], count=row["sagas"], example=row["key"]) for row in stuck
            ),
        )

    async def _groups(self, request: Request) -> GroupPage:
        limit = max(1, number(request, "limit", 100, PAGE))
        after = None
        if "after" in request.query_params:
            letters = number(request, "letters", 0, LARGEST)
            after = letters, request.query_params["after"][:16]
        groups = await list_groups(
            self._process.store, wanted=_wanted(request), after=after, limit=limit + 1
        )
        return GroupPage(
            groups=tuple(groups[:limit]), more=len(groups) > limit, jobs=self._jobs.known()
        )

    async def _letters(self, request: Request) -> LetterPage:
        letters, more = await read_letters(
            self._process.service.name,
            self._process.store,
            every=number(request, "every", 0, 1) == 1,
            after=number(request, "after", 0, LARGEST),
            limit=max(1, number(request, "limit", 100, PAGE)),
            wanted=_wanted(request),
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
        return LetterShown(
            whole=whole,
            size=size,
            acts=tuple(await list_acts(store, target=target_of(_id(request)), limit=_ACTS)),
            handlers=self._handlers,
        )

    async def _data(self, request: Request) -> Response:
        whole = await read_letter(self._process.service.name, self._process.store, _id(request))
        if whole is None or whole.data is None:
            return _problem(404, "there is no such payload")
        return Response(whole.data, media_type="application/octet-stream")

    async def _redrive(self, request: Request) -> Done:
        asked = await read_body(request, Redrive)
        await redrive(
            self._process.store,
            _id(request),
            self._process.ambient,
            by=asked.actor(),
            handler=asked.handler,
            handlers=self._handlers,
            data=asked.data,
            old=asked.old,
        )
        return Done()

    async def _discard(self, request: Request) -> Done:
        asked = await read_body(request, Discard)
        process = self._process
        await discard(process.store, _id(request), process.ambient, by=asked.actor())
        return Done()

    async def _look(self, request: Request) -> Looked:
        asked, process = await read_body(request, Look), self._process
        chosen = asked.wanted if asked.letter is None else [asked.letter]
        previews: list[Preview] = []
        looking = preview_letters(
            process.store,
            chosen,
            process.service,
            process.ambient,
            handler=asked.handler,
            data=asked.data,
            old=asked.old,
        )
        async with aclosing(looking):
            async for each in looking:
                data = None if each.data is None else each.data[:_CUT]
                previews.append(msgspec.structs.replace(each, data=data))
                if len(previews) == LOOKED_AT:
                    break
        total = 1 if asked.letter is not None else await count_dead(process.store, asked.wanted)
        return Looked(previews=tuple(previews), total=total, handlers=self._handlers)

    async def _start(self, request: Request) -> Job:
        return self._jobs.start(await read_body(request, Many))

    async def _job(self, request: Request) -> Job:
        return self._jobs.job(request.path_params["job"])

    async def _stop(self, request: Request) -> Job:
        (await read_body(request, Asked)).actor()
        return self._jobs.stop(request.path_params["job"])

    @property
    def _handlers(self) -> tuple[str, ...]:
        return tuple(sorted(handlers_of(self._process.service)))

    async def _timings(self, _: Request) -> Timings:
        return self._stopwatch.read(self._process.owner)

    async def _parked(self, request: Request) -> ParkedPage:
        events, more = await read_parked(
            self._process.store,
            after=number(request, "after", 0, LARGEST),
            limit=max(1, number(request, "limit", 100, PAGE)),
        )
        return ParkedPage(events=tuple(events), more=more)

    async def _service(self, _: Request) -> ServiceShown:
        process = self._process
        store, now = process.store, process.ambient.now()
        later, more = await list_later(store, LATER)
        versions = await read_views(process.service.name, store, process.broker, now)
        stale = await asyncio.gather(*map(self._stale, versions))
        return ServiceShown(
            leases=tuple(await read_leases(store, now)),
            later=tuple(later),
            more_later=more,
            views=tuple(
                ViewShown(version=each, stale=seconds)
                for each, seconds in zip(versions, stale, strict=True)
            ),
            migrations=tuple(await read_applied(store)),
        )

    async def _stale(self, version: ViewVersion) -> float | None:
        """Return how many seconds a version is behind; None where it can't be told in time."""
        kinds = [each for each in self._process.service.views if each.view == version.view]
        if not kinds:
            return None
        try:
            async with asyncio.timeout(STALE):
                return await self._process.staleness(kinds[0], version.version)
        except (TimeoutError, OyezError):
            return None

    async def _shown_settings(self, _: Request) -> SettingsShown:
        return SettingsShown(settings=tuple(self._settings()))

    async def _audit(self, request: Request) -> ActPage:
        limit = max(1, number(request, "limit", 100, PAGE))
        acts = await list_acts(
            self._process.store,
            target=request.query_params.get("target", "").replace("\0", "?"),
            before=number(request, "before", LARGEST, LARGEST),
            limit=limit + 1,
        )
        return ActPage(acts=tuple(acts[:limit]), more=len(acts) > limit)

    async def _find(self, request: Request) -> witness.Known:
        process = self._process
        return await witness.know(process.service, process.store, _identity(request))

    async def _history(self, request: Request) -> witness.Heard:
        asked = await read_body(request, Hear)
        process = self._process
        return await witness.hear(
            process.settings.system,
            process.broker,
            process.ambient.now(),
            identity=asked.identity,
            correlation=asked.correlation,
            after=asked.after,
        )

    async def _positions(self, _: Request) -> witness.Positions:
        return await witness.positions(self._process.store)

    async def _recall(self, request: Request) -> witness.Recalled:
        return await witness.recall(self._process.store, _identity(request))

    async def _part(self, request: Request) -> witness.Part:
        asked = await read_body(request, TakePart)
        process = self._process
        return await witness.take_part(
            process.settings.system, process.service, process.store, asked.events, asked.awaited
        )


def _answer(
    ask: Callable[[Request], Awaitable[object]],
) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that answers with the value as JSON, or with a problem."""

    async def endpoint(request: Request) -> Response:
        try:
            value = await ask(request)
        except (msgspec.DecodeError, InvalidEvent) as error:
            return _problem(422, str(error))
        except Refused as error:
            return _problem(409, str(error))
        except NotRedriven as error:
            return _problem(409, str(error), error.cause)
        except NotThere as error:
            return _problem(404, str(error))
        except OyezError as error:
            return _problem(503 if error.transient else 500, str(error))
        return Response(msgspec.json.encode(value), media_type="application/json")

    return endpoint


def _problem(status: int, detail: str, code: str = "") -> Response:
    problem = Problem(title="It could not be done", status=status, code=code, detail=detail)
    return Response(msgspec.json.encode(problem), status, media_type="application/problem+json")


def _id(request: Request) -> int:
    return min(int(request.path_params["id"]), LARGEST)


def _identity(request: Request) -> str:
    text = request.query_params.get("id", "")
    if not 0 < len(text) <= IDENTITY:
        raise InvalidEvent("id", f"1 to {IDENTITY} characters")
    return text


def _wanted(request: Request) -> Wanted:
    given = request.query_params
    return Wanted(**{name: given[name] for name in tables.WANTED if name in given})
