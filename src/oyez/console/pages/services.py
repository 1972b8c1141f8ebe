"""The services: a list, and each with its processes, handlers, partitions and what waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from oyez import tables
from oyez.config import BridgeSettings
from oyez.console.answers import Replica, Timings
from oyez.console.desk import Desk, Screen, desk
from oyez.console.live import Snapshot
from oyez.console.pages.overview import Row, rows
from oyez.console.pages.streaming import live
from oyez.console.system import Answer
from oyez.console.timings import BOUNDS, percentile
from oyez.endpoint import redact
from oyez.inspection.installation import Lease
from oyez.inspection.lag import PartitionLag, ServiceLag
from oyez.inspection.reach import Gap

T = TypeVar("T")

PARTITIONS = 100
"""Partitions on one page."""
WORST = 12
"""Partitions that are shown on a service's own page."""
PARKED = 100
"""Parked events on one page."""
FIRST_PARKED = 10
"""Parked events that are shown on a service's own page."""


class ReplicaRow(msgspec.Struct, frozen=True, kw_only=True):
    """A process of a service; None stands for an unknown value."""

    owner: str
    """Empty for one that is known by its address alone."""
    admin: str
    since: float | None
    state: Literal["answers", "silent", "not asked"]
    """``not asked``: it lives, and is behind an address at which another one answered."""
    notes: tuple[str, ...]
    """Why it is silent or not ready, and its warnings."""


class HandlerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A handler in all replicas that answered, over the last minutes."""

    name: str
    types: tuple[str, ...]
    rate: float | None
    """Calls per second; None where it has just begun to be counted."""
    calls: int
    retried: int
    dead: int
    line: list[float]
    percentiles: tuple[float | None, float | None, float | None]
    """The 50th, 95th and 99th, in seconds; None without a call."""


class StreamRow(msgspec.Struct, frozen=True, kw_only=True):
    """The partitions of one stream, together."""

    stream: str
    partitions: int
    owned: int
    """The number of these that a living process owns."""
    lag: int | None
    oldest: float | None
    oldest_id: str | None
    oldest_known: bool
    parked: int
    dead: int


class BridgeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A bridge, without the passwords in its addresses."""

    name: str
    source: str
    target: str
    streams: tuple[str, ...]


def replica_rows(
    leases: Iterable[Lease] | None, asked: Iterable[Answer[Replica]]
) -> list[ReplicaRow]:
    """Return the processes: those with a lease, then addresses that did not answer.

    ``leases`` is None where the store could not be asked.
    """
    answers = {each.value.owner: each for each in asked if each.value is not None}
    silent = {each.at: each.gap for each in asked if each.gap is not None}
    found: list[ReplicaRow] = []
    for lease in leases or ():
        answer = answers.pop(lease.owner, None)
        gap = silent.pop(lease.admin, None)
        found.append(_replica(lease.owner, lease.admin, lease.since, answer, gap))
    found += [_replica(owner, answer.at, None, answer, None) for owner, answer in answers.items()]
    found += [_replica("", at, None, None, gap) for at, gap in silent.items()]
    return found


def _replica(
    owner: str, admin: str, since: float | None, answer: Answer[Replica] | None, gap: Gap | None
) -> ReplicaRow:
    value = None if answer is None else answer.value
    if value is not None:
        notes = (*value.reasons, *value.warnings)
        return ReplicaRow(owner=owner, admin=admin, since=since, state="answers", notes=notes)
    if gap is not None:
        notes = (gap.reason,)
        return ReplicaRow(owner=owner, admin=admin, since=since, state="silent", notes=notes)
    return ReplicaRow(owner=owner, admin=admin, since=since, state="not asked", notes=())


def handler_rows(replicas: Iterable[Replica], timings: Sequence[Timings]) -> list[HandlerRow]:
    """Return the handlers of the replicas' code, with what all of them did together."""
    types = {name: kinds for replica in replicas for name, kinds in replica.handlers.items()}
    names = sorted({*types, *(name for each in timings for name in each.handlers)})
    return [_handler(name, types.get(name, ()), timings) for name in names]


def _handler(name: str, types: tuple[str, ...], timings: Sequence[Timings]) -> HandlerRow:
    counted = [(each.seconds, each.handlers.get(name)) for each in timings]
    found = [times for _, times in counted if times is not None]
    buckets = [sum(each) for each in zip(*(times.buckets for times in found), strict=True)]
    rates = [
        0.0 if times is None else sum(times.buckets) / seconds
        for seconds, times in counted
        if seconds >= 1
    ]
    return HandlerRow(
        name=name,
        types=types,
        rate=sum(rates) if rates else None,
        calls=sum(buckets),
        retried=sum(times.retried for times in found),
        dead=sum(times.dead for times in found),
        line=[float(sum(each)) for each in zip(*(times.line for times in found), strict=True)],
        percentiles=(
            percentile(buckets, 0.5),
            percentile(buckets, 0.95),
            percentile(buckets, 0.99),
        ),
    )


def stream_rows(partitions: Iterable[PartitionLag]) -> list[StreamRow]:
    """Return the streams of these partitions, in their order."""
    streams: dict[str, list[PartitionLag]] = {}
    for each in partitions:
        streams.setdefault(each.stream, []).append(each)
    return [_stream(stream, found) for stream, found in streams.items()]


def _stream(stream: str, found: Sequence[PartitionLag]) -> StreamRow:
    lags = [each.lag for each in found if each.lag is not None]
    dated = [each for each in found if each.oldest is not None]
    oldest = min(dated, key=lambda each: each.oldest or 0.0, default=None)
    return StreamRow(
        stream=stream,
        partitions=len(found),
        owned=sum(each.alive for each in found),
        lag=sum(lags) if len(lags) == len(found) else None,
        oldest=None if oldest is None else oldest.oldest,
        oldest_id=None if oldest is None else oldest.oldest_id,
        oldest_known=all(each.oldest_known for each in found),
        parked=sum(each.parked for each in found),
        dead=sum(each.dead for each in found),
    )


def worst(partitions: Iterable[PartitionLag]) -> list[PartitionLag]:
    """Return the partitions with something that waits or that nobody owns, the oldest first."""
    found = [
        each
        for each in partitions
        if each.lag is None or each.lag or each.parked or each.dead or not each.alive
    ]
    return sorted(
        found,
        key=lambda each: (
            float("inf") if each.oldest is None else each.oldest,
            -(each.lag or 0),
            -each.parked - each.dead,
        ),
    )


def bridge_row(settings: BridgeSettings) -> BridgeRow:
    """Return what may be shown of a bridge."""
    return BridgeRow(
        name=settings.name,
        source=redact(settings.source),
        target=redact(settings.target),
        streams=settings.streams,
    )


def carriers(bridges: Iterable[BridgeSettings], lag: ServiceLag | None) -> list[BridgeRow]:
    """Return the bridges that carry a stream which a service reads."""
    streams = {each.stream for each in lag.partitions} if lag is not None else set()
    return [bridge_row(each) for each in bridges if any(map(each.carries, streams))]


async def _list(request: Request) -> Response:
    shared = desk(request)
    return shared.page(request, "services.html", live=_part(shared, await shared.live.look()))


async def _live(request: Request) -> Response:
    return live(request, _part)


def _part(shared: Desk, snapshot: Snapshot) -> str:
    found: list[Row] = rows(snapshot, shared.system.services, shared.live.rates)
    code = {each.service: each.value for each in snapshot.replicas if each.value is not None}
    bridges = {each.name: bridge_row(each) for each in shared.system.bridges.values()}
    return shared.part("services-live.html", rows=found, code=code, bridges=bridges, at=snapshot.at)


async def _service(request: Request) -> Response:
    shared = desk(request)
    name = _known(request)
    system = shared.system
    replicas, timings, lag, parked, told, settings = await asyncio.gather(
        system.replicas_of(name),
        system.timings_of(name),
        system.lag_of(name),
        system.parked_of(name, after=0, limit=FIRST_PARKED),
        system.service(name),
        system.settings_of(name),
    )
    counted = [each.value for each in timings if each.value is not None]
    answered = [each.value for each in replicas if each.value is not None]
    own = system.bridges.get(name)
    partitions = () if lag.value is None else lag.value.partitions
    waiting = worst(partitions)
    return shared.page(
        request,
        "service.html",
        service=name,
        bridge=None if own is None else bridge_row(own),
        carriers=carriers(system.bridges.values(), None if own else lag.value),
        replicas=replica_rows(told.value.leases if told.value else None, replicas),
        ready=[not each.reasons for each in answered],
        publishes=sorted({kind for each in answered for kind in each.publishes}),
        handlers=handler_rows(answered, counted),
        counted=max((each.seconds for each in counted), default=None),
        longest=BOUNDS[-1],
        lag=lag,
        streams=stream_rows(partitions),
        waiting=len(waiting),
        worst=waiting[:WORST],
        parked=parked,
        told=told,
        settings=settings,
        timers=tables.TIMERS,
        at=shared.ambient.now(),
    )


async def _partitions(request: Request) -> Response:
    shared = desk(request)
    name = _known(request)
    lag = await shared.system.lag_of(name)
    stream = request.query_params.get("stream", "")
    found = [
        each
        for each in (lag.value.partitions if lag.value is not None else ())
        if not stream or each.stream == stream
    ]
    first = min(_number(request, "from"), max(0, len(found) - 1) // PARTITIONS * PARTITIONS)
    return shared.page(
        request,
        "service-partitions.html",
        service=name,
        stream=stream,
        gap=lag.gap,
        total=len(found),
        first=first,
        partitions=found[first : first + PARTITIONS],
        size=PARTITIONS,
        timers=tables.TIMERS,
    )


async def _parked(request: Request) -> Response:
    shared = desk(request)
    name = _known(request)
    answer = await shared.system.parked_of(name, after=_number(request, "after"), limit=PARKED)
    return shared.page(request, "service-parked.html", service=name, parked=answer)


def _known(request: Request) -> str:
    service: str = request.path_params["service"]
    if service not in desk(request).system.services:
        raise HTTPException(404)
    return service


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


_NAME = "/services/{service}"

SERVICES = Screen(
    title="Services",
    path="/services",
    key="v",
    routes=(
        Route("/services", _list),
        Route("/live/services", _live),
        Route(_NAME, _service),
        Route(f"{_NAME}/partitions", _partitions),
        Route(f"{_NAME}/parked", _parked),
    ),
)
