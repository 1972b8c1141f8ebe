"""The contracts between services, as each of them can tell its own, and the faults between them.

A contract is plain data, so a running service can answer with it: whoever compares the contracts of
a system needs none of its code.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Literal

import msgspec

from oyez.contracts.between import faults_between
from oyez.contracts.model import Published, Read
from oyez.contracts.schema import Schema, read, written
from oyez.event import EventType
from oyez.inspection.lint.shapes import shape_of
from oyez.opaque import Opaque, is_unknown
from oyez.personal import personal_fields
from oyez.saga import SagaType
from oyez.service import Service

FIELDS = 500
"""The most fields of a class that are told, those within its fields included."""
SHOWN = 300
"""The most characters that are shown of an event that can't be read."""
OWN = "oyez."
"""How the names of types begin that a service gets from Oyez itself, such as timers."""

_IN_MANY = re.compile(r"\[\d*\]|\{\}")


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """One service's class of an event type."""

    type: str
    key: str | None
    """The field that orders its events."""
    to: str | None
    """The service that a command asks; None for an event."""
    fields: dict[str, str]
    """The types of each field, and of what is in it, such as ``lines[].sku``, for people."""
    personal: tuple[str, ...]
    """The fields that tell something of a person."""
    version: int
    required: tuple[str, ...]
    """The fields that it can't be decoded without."""
    schema: Schema | None
    """What a publisher writes, or what a handler reads; None if JSON Schema can't tell it."""
    upcasts: tuple[int, ...] = ()
    opaque: bool = False
    """Whether nothing is known of its data and its key; see `oyez.contracts.model.Published`."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """A handler's subscription to one event type."""

    handler: str
    contract: Contract
    stream: str | None
    """The only stream that it reads; None for all of the system."""
    answer: bool
    """Whether it is the answer to a command of a saga."""
    allow: tuple[str, ...] = ()
    """The codes of the faults that are meant to be so."""


class Contracts(msgspec.Struct, frozen=True, kw_only=True):
    """What a service publishes and reads, by its own classes."""

    service: str
    publishes: tuple[Contract, ...]
    reads: tuple[Reading, ...]


class Misfit(msgspec.Struct, frozen=True, kw_only=True):
    """A fault between contracts."""

    code: str
    level: Literal["warning", "error"]
    type: str
    service: str
    """Whose declaration is at fault."""
    handler: str | None
    """Its handler, or None for the class that it publishes."""
    text: str
    remedy: str


def contracts_of(service: Service) -> Contracts:
    """Return the contracts of a service."""
    return Contracts(
        service=service.name,
        publishes=tuple(_contract(kind, written(kind.cls)) for kind in service.publishes),
        reads=tuple(
            Reading(
                handler=handler.name,
                contract=_contract(kind, read(kind.cls)),
                stream=handler.stream,
                answer=any(
                    isinstance(each.kind, SagaType) and kind.name in each.kind.answers
                    for each in handler.states
                ),
                allow=tuple(sorted(handler.allow)),
            )
            for handler in service.subscriptions
            for kind in handler.events
            if not kind.name.startswith(OWN)
        ),
    )


class Between:
    """The contracts of a system, by event type."""

    def __init__(
        self, services: Iterable[Contracts], *, name: str, external: Collection[str]
    ) -> None:
        """``name`` is the system's, ``external`` its setting of that name."""
        self.name = name
        self.external = frozenset(external)
        self.published: dict[str, dict[str, Contract]] = {}
        self.read: dict[str, list[tuple[str, Reading]]] = {}
        for each in services:
            for contract in each.publishes:
                self.published.setdefault(contract.type, {})[each.service] = contract
            for reading in each.reads:
                self.read.setdefault(reading.contract.type, []).append((each.service, reading))

    @property
    def types(self) -> list[str]:
        """All event types, in alphabetical order."""
        return sorted(self.published.keys() | self.read.keys())

    def misfits(self, *, whole: bool = True) -> list[Misfit]:
        """Return the faults, also those that a handler permits.

        Without ``whole`` some services are missing: then it is not known of any type that nobody
        publishes or handles it.
        """
        rules = (*_RULES, *(_OF_ALL if whole else ()))
        return [found for rule in rules for found in rule(self)]


def _contract(kind: EventType, schema: Schema | None) -> Contract:
    shape, required = _told(kind)
    marked = set(personal_fields(kind.cls))
    return Contract(
        type=kind.name,
        key=kind.key_field,
        to=kind.to,
        fields=shape,
        personal=tuple(path for path in shape if _IN_MANY.sub("", path) in marked),
        version=kind.version,
        required=required,
        schema=schema,
        upcasts=tuple(sorted(kind.upcasts)),
        opaque=is_unknown(kind),
    )


@lru_cache(maxsize=4096)  # a class is asked for once for each of its handlers
def _told(kind: EventType) -> tuple[dict[str, str], tuple[str, ...]]:
    """The first fields with their types, and the names of those that must be there."""
    schema = read(kind.cls) or {}
    if issubclass(kind.cls, Opaque):
        shape = dict.fromkeys(schema.get("properties", {}), "")
    else:
        shape = shape_of(kind.cls, kind.version).fields or dict.fromkeys(kind.fields, "")
    top = schema["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return dict(sorted(shape.items())[:FIELDS]), tuple(sorted(top.get("required", ())))


def _unheard(between: Between) -> Iterator[Misfit]:
    for name in sorted(between.published.keys() - between.read.keys() - between.external):
        for service, contract in between.published[name].items():
            if contract.to is None:
                yield Misfit(
                    code="E01",
                    level="warning",
                    type=name,
                    service=service,
                    handler=None,
                    text=f"nobody handles {name}, which {service} publishes",
                    remedy="subscribe to it, stop publishing it, or name it in system.external",
                )


def _unsaid(between: Between) -> Iterator[Misfit]:
    for name in sorted(between.read.keys() - between.published.keys() - between.external):
        near = difflib.get_close_matches(name, list(between.published), n=1)
        hint = f"; {near[0]} is published" if near else ""
        for service, reading in between.read[name]:
            if reading.stream is not None and not reading.stream.startswith(f"{between.name}."):
                continue
            if reading.answer:
                continue  # E11 knows who was asked
            yield _at(
                "E02",
                service,
                reading,
                f"nobody publishes {name}, which {service}.{reading.handler} handles{hint}",
                "declare it in publishes or in a return annotation of its publisher, or name it in "
                "system.external",
            )


def _two_owners(between: Between) -> Iterator[Misfit]:
    for name, owners in sorted(between.published.items()):
        is_command = any(contract.to for contract in owners.values())
        if len(owners) > 1 and name not in between.external and not is_command:
            yield Misfit(
                code="E04",
                level="error",
                type=name,
                service=next(iter(owners)),
                handler=None,
                text=f"{name} is published by {' and '.join(sorted(owners))}",
                remedy="give each service an event of its own: a fact has one owner",
            )


def _key_differs(between: Between) -> Iterator[Misfit]:
    for service, reading, owner, published in _pairs(between):
        if published.opaque or reading.contract.opaque:
            continue
        if published.key != reading.contract.key:
            yield _at(
                "E05",
                service,
                reading,
                f"{service}.{reading.handler} orders {published.type} by {_key(reading.contract)}, "
                f"and {owner} publishes it by {_key(published)}",
                "declare the publisher's key: it decides the partition",
            )


def _misfit(between: Between) -> Iterator[Misfit]:
    for service, reading, owner, published in _pairs(between):
        given, needed = _published(published), _needed(reading)
        for each in faults_between(owner, published.type, given, service, needed):
            if each.rule == "KEY_CHANGED" or each.level != "error":
                continue  # E05 is about keys
            shown = "" if each.witness is None else f"; it can't read {_short(each.witness)}"
            place = "" if each.path == "$" else f"{each.path.removeprefix('$.')}: "
            yield _at(
                "E18",
                service,
                reading,
                f"{service}.{reading.handler} can't read the {published.type} of {owner}: "
                f"{each.rule}: {place}{each.reason}{shown}",
                each.remedy,
            )


def _published(contract: Contract) -> Published:
    return Published(
        version=contract.version,
        key=contract.key,
        stream="",
        to=contract.to,
        personal=contract.personal,
        schema=contract.schema,
        opaque=contract.opaque,
    )


def _needed(reading: Reading) -> Read:
    return Read(
        type=reading.contract.type,
        version=reading.contract.version,
        key=reading.contract.key,
        stream=reading.stream,
        handlers=(reading.handler,),
        upcasts=reading.contract.upcasts,
        schema=reading.contract.schema,
        opaque=reading.contract.opaque,
    )


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


_OF_ALL: tuple[Callable[[Between], Iterator[Misfit]], ...] = (_unheard, _unsaid)
_RULES: tuple[Callable[[Between], Iterator[Misfit]], ...] = (_two_owners, _key_differs, _misfit)


def _pairs(between: Between) -> Iterator[tuple[str, Reading, str, Contract]]:
    for name in sorted(between.read):
        owners: Mapping[str, Contract] = between.published.get(name, {})
        for service, reading in between.read[name]:
            for owner, published in owners.items():
                yield service, reading, owner, published


def _at(code: str, service: str, reading: Reading, text: str, remedy: str) -> Misfit:
    return Misfit(
        code=code,
        level="error",
        type=reading.contract.type,
        service=service,
        handler=reading.handler,
        text=text,
        remedy=remedy,
    )


def _key(contract: Contract) -> str:
    return "no key" if contract.key is None else f"the field {contract.key}"
