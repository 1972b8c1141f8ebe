"""The services' side of the sagas: where their instances stand, one instance, and acts on it."""

from __future__ import annotations

import math
from collections.abc import Awaitable

import msgspec
from starlette.requests import Request

from oyez.console.answers import (
    Done,
    InstancePage,
    InstanceShown,
    Resolve,
    SagaAct,
    Standings,
)
from oyez.console.asked import LARGEST, number, read_body
from oyez.console.shared import Shared
from oyez.errors import InvalidEvent, OyezError
from oyez.inspection.plan import plan_of
from oyez.inspection.sagas import Place, read_instance, read_instances
from oyez.inspection.standing import Standing, standing
from oyez.runtime.audit import Actor
from oyez.runtime.process import ServiceProcess
from oyez.runtime.sagas import Sagas
from oyez.saga import SagaType, Status

SHOWN = 65_536
"""Bytes of an instance's fields that are shown."""
PAGE = 1_000
"""The most instances in one answer."""
LOGGED = 200
"""The most transitions of an instance in one answer."""


class Refused(Exception):
    """An act on a saga was refused; ``str`` says why."""


class Instances:
    """Answers about the instances of one process's sagas, and carries out acts on them."""

    def __init__(self, process: ServiceProcess) -> None:
        self._process = process
        self._standing = Shared(process, self._stand)

    async def standing(self, request: Request) -> Standings:
        """Answer with how many instances stand where, of one saga or of all."""
        saga = request.query_params.get("saga", "")
        found = await self._standing.answer(request)
        return Standings(sagas=tuple(each for each in found if saga in ("", each.saga)))

    async def _stand(self) -> list[Standing]:
        service = self._process.service
        return await standing(service.name, service, self._process.store)

    async def page(self, request: Request) -> InstancePage:
        """Answer with instances of a saga, by status or all that go on."""
        at = _status(request, "at")
        after = None
        if at is not None:
            after = Place(status=at, changed=_time(request, "changed"), key=_key(request))
        found, more = await read_instances(
            self._process.service.name,
            self._process.store,
            request.path_params["saga"],
            status=_status(request, "status"),
            after=after,
            limit=max(1, number(request, "limit", 100, PAGE)),
        )
        return InstancePage(instances=tuple(found), more=more)

    async def one(self, request: Request) -> InstanceShown:
        """Answer with an instance and its last transitions."""
        service, saga = self._process.service, request.path_params["saga"]
        whole = await read_instance(
            service.name,
            self._process.store,
            saga,
            _key(request),
            before=number(request, "before", LARGEST, LARGEST),
            limit=LOGGED,
        )
        if whole is None:
            return InstanceShown()
        size = None if whole.fields is None else len(whole.fields)
        kept = [msgspec.structs.replace(each, data=b"") for each in whole.progress.early]
        whole = msgspec.structs.replace(
            whole,
            fields=None if whole.fields is None else whole.fields[:SHOWN],
            progress=msgspec.structs.replace(whole.progress, early=kept),
        )
        kind = service.kinds.get(saga)
        plan = plan_of(kind) if isinstance(kind, SagaType) else None
        return InstanceShown(whole=whole, size=size, plan=plan)

    async def retry(self, request: Request) -> Done:
        """Retry an instance. Raises Refused."""
        asked = await read_body(request, SagaAct)
        sagas = self._acting(asked.actor())
        return await _done(sagas.retry(request.path_params["saga"], asked.key))

    async def abort(self, request: Request) -> Done:
        """Abort an instance. Raises Refused."""
        asked = await read_body(request, SagaAct)
        sagas = self._acting(asked.actor())
        return await _done(sagas.abort(request.path_params["saga"], asked.key))

    async def resolve(self, request: Request) -> Done:
        """Take a step of an instance for done or undone. Raises Refused."""
        asked = await read_body(request, Resolve)
        sagas, saga = self._acting(asked.actor()), request.path_params["saga"]
        return await _done(sagas.resolve(saga, asked.key, asked.step, done=asked.done))

    def _acting(self, by: Actor) -> Sagas:
        process = self._process
        return Sagas(process.store, process.service, process.announcer, by=by)


async def _done(act: Awaitable[object]) -> Done:
    """Carry out an act on a saga, which refuses with an error of no class of its own."""
    try:
        await act
    except InvalidEvent:
        raise
    except OyezError as error:
        if error.transient:
            raise
        raise Refused(str(error)) from error
    return Done()


def _status(request: Request, name: str) -> Status | None:
    text = request.query_params.get(name, "")
    try:
        return Status(text) if text else None
    except ValueError:
        names = ", ".join(filter(None, Status))
        raise InvalidEvent(name, f"one of {names}") from None


def _time(request: Request, name: str) -> float:
    try:
        seconds = float(request.query_params.get(name, "")[:40])
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InvalidEvent(name, "a time in seconds")
    return seconds


def _key(request: Request) -> str:
    key = request.query_params.get("key", "")
    if "\0" in key:  # PostgreSQL has no such text
        raise InvalidEvent("key", "a text without NUL")
    return key
