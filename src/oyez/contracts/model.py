"""A service's contract: the event types that it publishes and those that it reads, as plain data.

It is made of the service's code and holds neither a time nor a path, so two of one code are equal:
a change of the file that it is written to is a change of the contract.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from oyez.contracts.foreign import DEPTH, TYPES, Judge, deep
from oyez.contracts.schema import Schema, read, written
from oyez.errors import ConfigurationError
from oyez.event import SERVICE, EventType
from oyez.opaque import is_unknown
from oyez.personal import personal_fields
from oyez.service import Service

FORMAT = 1
"""The version of the form of these files."""
MOST = 8_388_608
"""A larger file (bytes) is not read."""
FOLDER = "contracts"
"""Where a project keeps the files, one a service: ``contracts/orders.json``."""

_OWN = "oyez."


class Published(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event type as a service publishes it."""

    version: int
    key: str | None
    """The field that orders its events."""
    stream: str
    to: str | None
    """The service that a command asks; None for an event."""
    personal: tuple[str, ...]
    """The paths of the fields that tell something of a person."""
    schema: Schema | None
    """What it writes; None for a class that JSON Schema can't tell."""
    opaque: bool = False
    """Whether nothing is known of its data, nor of its key: a program behind a bridge makes it."""


class Read(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event type as handlers of a service read it, by one class."""

    type: str
    version: int
    """The newest version that it reads."""
    key: str | None
    stream: str | None
    """The only stream that it is read from; None for all of the system."""
    handlers: tuple[str, ...]
    upcasts: tuple[int, ...]
    """The older versions that a function makes the next one of."""
    schema: Schema | None
    """What the class needs; None for one that JSON Schema can't tell."""
    opaque: bool = False
    """Whether nothing is known of what it needs: a program behind a bridge handles it."""


class ServiceContract(msgspec.Struct, frozen=True, kw_only=True):
    """What a service publishes, by type, and what it reads."""

    format: int = FORMAT
    system: str
    service: str
    publishes: dict[str, Published]
    reads: tuple[Read, ...]


def contract_of(service: Service, system: str) -> ServiceContract:
    """Return a service's contract in the system of this name."""
    publishes = {
        kind.name: Published(
            version=kind.version,
            key=kind.key_field,
            stream=f"{system}.{service.name}",
            to=kind.to,
            personal=tuple(sorted(personal_fields(kind.cls))),
            schema=written(kind.cls),
            opaque=is_unknown(kind),
        )
        for kind in sorted(service.publishes, key=lambda each: each.name)
    }
    found: dict[tuple[EventType, str | None], list[str]] = {}
    for handler in service.subscriptions:
        for kind in handler.events:
            if not kind.name.startswith(_OWN):
                found.setdefault((kind, handler.stream), []).append(handler.name)
    reads = [_read(kind, stream, names) for (kind, stream), names in found.items()]
    return ServiceContract(
        system=system,
        service=service.name,
        publishes=publishes,
        reads=tuple(sorted(reads, key=lambda each: (each.type, each.handlers))),
    )


def encode(contract: ServiceContract) -> bytes:
    """Return the canonical file of a contract: JSON with sorted keys, ending in a newline."""
    plain = msgspec.json.encode(contract, order="sorted")
    return msgspec.json.format(plain, indent=2) + b"\n"


def decode(data: bytes, place: str) -> ServiceContract:
    """Return the contract in a file. Raises ConfigurationError, naming the ``place`` and field."""
    if len(data) > MOST:
        raise ConfigurationError(f"{place}: is larger than {MOST} bytes, which is the limit")
    if deep(data):
        raise ConfigurationError(f"{place}: is nested deeper than {DEPTH} levels")
    try:
        found = msgspec.json.decode(data, type=ServiceContract)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(
            f"{place}: {error}; `oyez contracts export` writes this file"
        ) from error
    if found.format != FORMAT:
        raise ConfigurationError(
            f"{place}: has the format {found.format}; this Oyez reads {FORMAT}: upgrade it, or "
            "write the file anew by `oyez contracts export`"
        )
    return judged(found, place)


def judged(contract: ServiceContract, place: str) -> ServiceContract:
    """Return a contract from elsewhere. Raises ConfigurationError if its schemas can't be used."""
    if not SERVICE.fullmatch(contract.service):
        raise ConfigurationError(
            f"{place}: service: {contract.service[:80]!r}: expected one of a-z, then up to 40 of "
            "a-z, 0-9 and '-'"
        )
    if max(len(contract.publishes), len(contract.reads)) > TYPES:
        raise ConfigurationError(f"{place}: has more than {TYPES} types")
    judge = Judge(place)
    for name, published in contract.publishes.items():
        judge.judge(published.schema, f"publishes.{name}.schema")
    for index, each in enumerate(contract.reads):
        judge.judge(each.schema, f"reads[{index}].schema")
    return contract


def read_folder(folder: Path) -> dict[str, ServiceContract]:
    """Return the contracts in a folder, by service. Raises ConfigurationError."""
    found: dict[str, ServiceContract] = {}
    for file in sorted(folder.glob("*.json")):
        if not is_contract(file.name):
            continue
        try:
            with file.open("rb") as opened:
                data = opened.read(MOST + 1)
        except OSError as error:
            raise ConfigurationError(f"{file}: {error.strerror}") from error
        contract = decode(data, str(file))
        if contract.service != file.stem:
            raise ConfigurationError(f"{file}: is the contract of {contract.service}: rename it")
        found[contract.service] = contract
    return found


def is_contract(name: str) -> bool:
    """Return whether a file of this name holds a contract; ``state.json`` is about keyed state."""
    return name != "state.json" and _FILE.fullmatch(name) is not None


def _read(kind: EventType, stream: str | None, handlers: list[str]) -> Read:
    return Read(
        type=kind.name,
        version=kind.version,
        key=kind.key_field,
        stream=stream,
        handlers=tuple(sorted(handlers)),
        upcasts=tuple(sorted(kind.upcasts)),
        schema=read(kind.cls),
        opaque=is_unknown(kind),
    )


_FILE = re.compile(r"[a-z][a-z0-9-]*\.json")
