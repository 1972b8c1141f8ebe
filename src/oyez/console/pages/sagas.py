"""Sagas: where their instances stand, the instances of one saga, one instance, and its cures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from urllib.parse import quote, urlencode

import msgspec
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from oyez.console.answers import Resolve, SagaAct, Standings
from oyez.console.desk import Screen, desk, form, person
from oyez.console.safe import laid_out
from oyez.console.system import Answer, Unanswered
from oyez.inspection.drawing import Note, SagaNotes, saga_svg
from oyez.inspection.plan import Plan
from oyez.inspection.sagas import Place, WholeInstance
from oyez.inspection.standing import MOST, SAMPLE, Standing, Stuck
from oyez.saga import Asked, Progress, Stage, Status
from oyez.saga_transition import START, STEP

SHOWN = 50
"""Instances on one page."""

_STATUSES = (Status.STUCK, Status.UNDOING, Status.RUNNING, Status.WAITING, Status.ENDED)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A step of an instance."""

    name: str
    stage: str
    stuck: bool
    asked: Asked
    undo: str
    """The name of what undoes it; empty where nothing does, or where that is not known."""
    due: float | None
    """When it is taken for unanswered, or is asked again; None where nothing is waited for."""


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """A timer that is set."""

    what: str
    due: float


def stuck(standings: Iterable[Standing]) -> list[tuple[Standing, Stuck]]:
    """Return what is stuck, the longest first, each with its saga."""
    found = [(each, group) for each in standings for group in each.stuck]
    return sorted(found, key=lambda pair: pair[1].since)


def counted(instances: int) -> str:
    """Return a count, of which more than `MOST` is not known."""
    return f"{instances:,}{'+' * (instances >= MOST)}".replace(",", "\u202f")


def notes(standing: Standing) -> SagaNotes:
    """Return what the picture of a saga says beside its names: how many instances stand there."""
    on: dict[bool, dict[str, int]] = {False: {}, True: {}}
    for group in standing.stuck:
        on[group.undoing][group.step] = group.instances
    ended = sum(standing.ends.values())
    of = "" if ended == standing.counts[Status.ENDED] else f" of the last {ended}"
    waiting = standing.counts[Status.WAITING]
    return SagaNotes(
        start=Note(text=f"{counted(waiting)} wait for it") if waiting else None,
        steps=_beside(standing.asked, on[False]),
        undos=_beside(standing.undoing, on[True], "· "),
        ends={name: Note(text=f"{count}{of}") for name, count in standing.ends.items()},
    )


def marks(progress: Progress) -> SagaNotes:
    """Return what the picture of one instance says beside its names: where it stands."""
    steps: dict[str, Note] = {}
    undos: dict[str, Note] = {}
    for name, asked in progress.steps.items():
        here = progress.stuck_on == name
        text = f"{asked.stage.value}, stuck" if here else asked.stage.value
        undone = asked.stage in (Stage.UNDOING, Stage.UNDONE)
        bad = here or asked.stage in (Stage.FAILED, Stage.UNKNOWN)
        if undone:
            undos[name] = Note(text=f"· {text}", trouble=bad)
        else:
            steps[name] = Note(text=text, trouble=bad)
    ends = {progress.end: Note(text="it ended here")} if progress.end else {}
    early = progress.phase is Status.WAITING
    return SagaNotes(
        start=Note(text="it waits for it") if early else None, steps=steps, undos=undos, ends=ends
    )


def steps(progress: Progress, plan: Plan | None) -> list[Step]:
    """Return the steps that an instance has asked, in their order."""
    undos = {} if plan is None else {step.name: step.undo for step in plan.steps}
    return [
        Step(
            name=name,
            stage=asked.stage.value,
            stuck=progress.stuck_on == name,
            asked=asked,
            undo=undos.get(name, ""),
            due=asked.due if asked.timer else None,
        )
        for name, asked in progress.steps.items()
    ]


def pivot(progress: Progress, plan: Plan | None) -> str:
    """Return the step because of which an instance can't be undone; empty where it can."""
    for step in () if plan is None else plan.steps:
        asked = progress.steps.get(step.name)
        if step.pivot and asked is not None and asked.stage in (Stage.ASKED, Stage.DONE):
            return step.name
    return ""


def unsettled(progress: Progress) -> list[str]:
    """Return the steps whose outcome a person may know better than an instance."""
    open_ = (Stage.ASKED, Stage.UNKNOWN, Stage.UNDOING)
    return [
        name
        for name, asked in progress.steps.items()
        if asked.stage in open_ or name == progress.stuck_on
    ]


def waits(whole: WholeInstance) -> list[Waits]:
    """Return what an instance waits for by the clock, the next first."""
    found = []
    for timer, due in whole.timers:
        name = timer.rpartition("#")[0] or timer
        if timer == START:
            what = "it is given up unless it has started"
        elif name.startswith(STEP):
            step = name.removeprefix(STEP)
            asked = whole.progress.steps.get(step)
            undoing = asked is not None and asked.stage is Stage.UNDOING
            what = f"{'the undoing of ' * undoing}{step} is taken for unanswered"
        else:
            what = f"its timer {name} fires"
        found.append(Waits(what=what, due=due))
    return found


def place(query: Mapping[str, str]) -> Place | None:
    """Return the place in a listing that an address names; None for its beginning."""
    try:
        return Place(
            status=Status(query["at"]), changed=float(query["changed"]), key=query["after"]
        )
    except (KeyError, ValueError):
        return None


def address(service: str, saga: str, **query: object) -> str:
    """Return the address of a saga's page."""
    path = f"/sagas/{quote(service, safe='')}/{quote(saga, safe='')}"
    asked = {name: value for name, value in query.items() if value != ""}
    return f"{path}?{urlencode(asked)}" if asked else path


def instance_address(service: str, saga: str, key: str, **query: object) -> str:
    """Return the address of an instance's page. Any text may be a key, ``..`` too."""
    asked = urlencode({"key": key, **query})
    return f"{address(service, saga)}/instance?{asked}"


def _beside(
    waiting: Mapping[str, int], stuck: Mapping[str, int], mark: str = ""
) -> dict[str, Note]:
    found = {}
    for name in {**waiting, **stuck}:
        parts = [counted(waiting[name])] if name in waiting else []
        parts += [f"{counted(stuck[name])} stuck"] if name in stuck else []
        found[name] = Note(text=mark + " · ".join(parts), trouble=name in stuck)
    return found


async def _sagas(request: Request) -> Response:
    shared = desk(request)
    chosen = request.query_params.get("service", "")
    services = [_known(request, chosen)] if chosen else []
    answers = await shared.system.sagas(services)
    found = [each for answer in answers if answer.value for each in answer.value.sagas]
    return shared.page(
        request,
        "sagas.html",
        chosen=chosen,
        stuck=stuck(found),
        sagas=found,
        statuses=_STATUSES,
        counted=counted,
        address=address,
        instance_address=instance_address,
        gaps=[answer.gap for answer in answers if answer.gap is not None],
    )


async def _saga(request: Request) -> Response:
    shared = desk(request)
    service, saga = _known(request, request.path_params["service"]), request.path_params["saga"]
    status = request.query_params.get("status", "")
    if status not in ("", *_STATUSES):
        raise HTTPException(404)
    after = place(request.query_params)
    (told,), listed = await asyncio.gather(
        shared.system.sagas([service], saga=saga),
        shared.system.instances(service, saga, status=status, after=after, limit=SHOWN),
    )
    standing = _one(told)
    if listed.value is None:
        raise Unanswered(503, str(listed.gap))
    if standing is None:
        raise HTTPException(404)
    more = listed.value.more
    return shared.page(
        request,
        "saga.html",
        service=service,
        saga=saga,
        standing=standing,
        picture=_picture(standing.plan, notes(standing)),
        stuck=stuck([standing]),
        only=status,
        statuses=_STATUSES,
        instances=listed.value.instances,
        later=after is not None,
        next=None if more is None else _next(service, saga, status, more),
        sample=SAMPLE,
        counted=counted,
        address=address,
        instance_address=instance_address,
    )


async def _instance(request: Request) -> Response:
    shared = desk(request)
    service, saga = _known(request, request.path_params["service"]), request.path_params["saga"]
    key = request.query_params.get("key", "")
    before = _number(request.query_params.get("before", ""))
    shown = await shared.system.instance(service, saga, key, before=before)
    whole = shown.whole
    if whole is None:
        why = "No saga has this key here: none of its events came, or it ended and was forgotten."
        return shared.problem(request, 404, "No such instance", why)
    fields = None
    if whole.fields is not None and shown.size is not None:
        fields = laid_out(whole.fields, shown.size)
    first = whole.log[0].number if whole.log else 1
    return shared.page(
        request,
        "saga-instance.html",
        service=service,
        saga=saga,
        key=key,
        instance=whole.instance,
        progress=whole.progress,
        plan=shown.plan,
        picture=_picture(shown.plan, marks(whole.progress)),
        steps=steps(whole.progress, shown.plan),
        waits=waits(whole),
        log=whole.log,
        earlier=instance_address(service, saga, key, before=first) if first > 1 else "",
        latest=before is None,
        by_hand=any(not each.event_id for each in whole.log),
        fields=fields,
        size=shown.size,
        live=whole.progress.phase in (Status.RUNNING, Status.UNDOING),
        pivot=pivot(whole.progress, shown.plan),
        unsettled=unsettled(whole.progress),
        done=request.query_params.get("done", ""),
        address=address,
    )


async def _retry(request: Request) -> Response:
    return await _act(
        request, "retry", SagaAct(who=person(request).name, key=_field(request, "key"))
    )


async def _abort(request: Request) -> Response:
    why = _field(request, "why")
    if not why:
        return _reasonless(request, "State why it is undone.")
    return await _act(
        request, "abort", SagaAct(who=person(request).name, why=why, key=_field(request, "key"))
    )


async def _resolve(request: Request) -> Response:
    step, outcome, why = (_field(request, name) for name in ("step", "outcome", "why"))
    if not why:
        return _reasonless(request, "State how you know it.")
    body = Resolve(
        who=person(request).name,
        why=why,
        key=_field(request, "key"),
        step=step,
        done=outcome == "done",
    )
    return await _act(request, "resolve", body)


async def _act(request: Request, act: str, body: SagaAct | Resolve) -> Response:
    service, saga = _known(request, request.path_params["service"]), request.path_params["saga"]
    path = f"/oyez/sagas/{quote(saga, safe='')}/{act}"
    await desk(request).system.act(service, path, body)
    return RedirectResponse(instance_address(service, saga, body.key, done=act), 303)


def _field(request: Request, name: str) -> str:
    text = form(request).get(name, "")
    return text if name == "key" else text.strip()


def _reasonless(request: Request, remedy: str) -> Response:
    return desk(request).problem(request, 422, "A reason is missing", remedy)


def _picture(plan: Plan | None, beside: SagaNotes) -> Markup | None:
    if plan is None:
        return None
    return Markup(saga_svg(plan, beside))  # noqa: S704 - saga_svg() escapes all names


def _known(request: Request, service: str) -> str:
    if service not in desk(request).system.services:
        raise HTTPException(404)
    return service


def _one(answer: Answer[Standings]) -> Standing | None:
    if answer.value is None:
        raise Unanswered(503, str(answer.gap))
    return answer.value.sagas[0] if answer.value.sagas else None


def _next(service: str, saga: str, status: str, more: Place) -> str:
    return address(
        service, saga, status=status, at=more.status.value, changed=more.changed, after=more.key
    )


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


_ONE = "/sagas/{service}/{saga}"

SAGAS = Screen(
    title="Sagas",
    path="/sagas",
    key="s",
    routes=(
        Route("/sagas", _sagas),
        Route(_ONE, _saga),
        Route(f"{_ONE}/instance", _instance),
        Route(f"{_ONE}/retry", _retry, methods=["POST"]),
        Route(f"{_ONE}/abort", _abort, methods=["POST"]),
        Route(f"{_ONE}/resolve", _resolve, methods=["POST"]),
    ),
)
