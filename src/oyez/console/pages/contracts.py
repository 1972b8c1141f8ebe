"""Contracts: the event types with their versions, who publishes and who reads which fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlencode

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from oyez.console.desk import Desk, Screen, desk
from oyez.inspection.lint.contracts import Between, Contract, Contracts, Misfit, Reading
from oyez.inspection.reach import Gap


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """An event type in the list."""

    type: str
    versions: tuple[int, ...]
    to: str | None
    publishers: tuple[str, ...]
    readers: tuple[str, ...]
    level: str
    """That of its gravest fault: ``error``, ``warning``, or empty."""


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """A field of an event type, in each class that has it."""

    path: str
    types: tuple[str | None, ...]
    """Its types, for each publisher; None where the class does not have it."""
    required: bool
    personal: bool
    readers: tuple[str | None, ...]
    """The types that each reader expects; None for one that does not read it."""


def rows(between: Between, faults: Iterable[Misfit]) -> list[Row]:
    """Return the event types in alphabetical order."""
    levels: dict[str, str] = {}
    for fault in faults:
        if levels.get(fault.type) != "error":
            levels[fault.type] = fault.level
    found = []
    for name in between.types:
        published, readings = between.published.get(name, {}), between.read.get(name, [])
        classes = [*published.values(), *(reading.contract for _, reading in readings)]
        found.append(
            Row(
                type=name,
                versions=tuple(sorted({each.version for each in classes})),
                to=next((each.to for each in classes if each.to), None),
                publishers=tuple(published),
                readers=tuple(f"{service}.{each.handler}" for service, each in readings),
                level=levels.get(name, ""),
            )
        )
    return found


def fields(
    published: Mapping[str, Contract], readings: Iterable[tuple[str, Reading]]
) -> list[Field]:
    """Return the fields of an event type, those of its publishers first."""
    given, read = list(published.values()), [reading.contract for _, reading in readings]
    paths = dict.fromkeys(path for each in (*given, *read) for path in each.fields)
    return [
        Field(
            path=path,
            types=tuple(each.fields.get(path) for each in given),
            required=any(path in each.required for each in given),
            personal=any(path in each.personal for each in (*given, *read)),
            readers=tuple(each.fields.get(path) for each in read),
        )
        for path in paths
    ]


def open_faults(between: Between, *, whole: bool) -> list[Misfit]:
    """Return the faults that no handler permits, the gravest first."""
    allowed = {
        (service, reading.handler, code)
        for readings in between.read.values()
        for service, reading in readings
        for code in reading.allow
    }
    found = [
        each
        for each in between.misfits(whole=whole)
        if (each.service, each.handler, each.code) not in allowed
    ]
    return sorted(found, key=lambda each: (each.level != "error", each.code, each.text))


async def _contracts(request: Request) -> Response:
    shared = desk(request)
    between, gaps = await _asked(shared)
    faults = open_faults(between, whole=not gaps)
    return shared.page(
        request, "contracts.html", rows=rows(between, faults), faults=faults, gaps=gaps
    )


async def _contract(request: Request) -> Response:
    shared, name = desk(request), request.query_params.get("type", "")
    between, gaps = await _asked(shared)
    published, readings = between.published.get(name, {}), between.read.get(name, [])
    if not published and not readings:
        raise HTTPException(404)
    faults = [each for each in open_faults(between, whole=not gaps) if each.type == name]
    return shared.page(
        request,
        "contract.html",
        type=name,
        row=next(row for row in rows(between, faults) if row.type == name),
        published=published,
        readings=readings,
        fields=fields(published, readings),
        faults=faults,
        gaps=gaps,
        events={each: _events(shared, each, name) for each in published},
    )


async def _asked(shared: Desk) -> tuple[Between, list[Gap]]:
    answers = await shared.system.contracts()
    told: list[Contracts] = [each.value for each in answers if each.value is not None]
    between = Between(told, name=shared.system.name, external=shared.system.external)
    return between, [each.gap for each in answers if each.gap is not None]


def _events(shared: Desk, service: str, kind: str) -> str:
    """Return the path of the events of a type that a service has published."""
    broker = next(name for name, on in shared.system.brokers.items() if service in on)
    stream = f"{broker} {shared.system.name}.{service}"
    return f"/events?{urlencode({'stream': stream, 'type': kind})}"


CONTRACTS = Screen(
    title="Contracts",
    path="/contracts",
    key="c",
    routes=(Route("/contracts", _contracts), Route("/contracts/one", _contract)),
)
