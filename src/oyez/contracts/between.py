"""The contracts of several services held against each other: who can't read what, and what changed.

Each fault has a rule with a stable name, the place, the reason, the remedy and, where there is one,
a witness: the data of an event that the publisher may publish and that the handlers would refuse.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from oyez.contract import decode, encode
from oyez.contracts.model import Published, Read, ServiceContract
from oyez.contracts.reading import misreads, outline, sample
from oyez.errors import ConfigurationError, EventError
from oyez.event import EventType
from oyez.service import Service

RULES = {
    "FIELD_MISSING": "a handler requires a field that is not published",
    "FIELD_OPTIONAL": "a handler requires a field that may be left out or null",
    "TYPE_NARROWED": "a field may be of a type that a handler does not expect",
    "ENUM_VALUE_ADDED": "a field may have a value, or a kind, that a handler does not know",
    "RANGE_NARROWED": "a field may be out of the range, length or pattern that a handler expects",
    "FORBIDS_UNKNOWN": "a field is published that a handler refuses, since it refuses unknown ones",
    "KEY_CHANGED": "events are ordered by another key than before, or than a handler expects",
    "STREAM_MOVED": "a handler reads a type from a stream that it is not published to",
    "VERSION_AHEAD": "a newer version is published than a handler reads",
    "TYPE_UNPUBLISHED": "nobody publishes a type that is handled",
    "HISTORY": "events in an older form, which are still kept, can't be read",
    "UNDECIDED": "it can't be said whether a handler reads a field: patterns differ",
}
"""What each rule finds."""

Verdict: TypeAlias = Literal["fine", "deploy consumer first", "deploy publisher first", "breaks"]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why a service can't read what another publishes."""

    rule: str
    level: Literal["warning", "error"]
    type: str
    publisher: str | None
    reader: str | None
    handlers: tuple[str, ...] = ()
    path: str = "$"
    reason: str
    remedy: str
    witness: str | None = None
    """JSON of the data of an event that would become a dead letter."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one event type, for one of its readers, between two states of a system."""

    type: str
    publisher: str
    reader: str | None
    """None where nobody reads it."""
    handlers: tuple[str, ...] = ()
    verdict: Verdict
    changes: tuple[str, ...]
    """What is published otherwise, for people."""
    faults: tuple[Fault, ...] = ()


def faults_between(
    publisher: str, name: str, published: Published, reader: str, read: Read
) -> list[Fault]:
    """Return why a reader of an event type can't read what a publisher publishes; empty if it can.

    Data that an upcast of the reader's makes of an older version is not compared: what a function
    makes of it, no schema tells.
    """

    def fault(rule: str, path: str, reason: str, remedy: str, witness: Any = None) -> Fault:
        return Fault(
            rule=rule,
            level="warning" if rule == "UNDECIDED" else "error",
            type=name,
            publisher=publisher,
            reader=reader,
            handlers=read.handlers,
            path=path,
            reason=reason,
            remedy=remedy,
            witness=None if witness is None else msgspec.json.encode(witness).decode(),
        )

    found = []
    if published.key != read.key and not (published.opaque or read.opaque):
        reason = f"{publisher} orders it by {_key(published.key)}, {reader} by {_key(read.key)}"
        remedy = "declare the publisher's key: it decides the partition"
        found.append(fault("KEY_CHANGED", "$", reason, remedy))
    if published.version > read.version:
        reason = f"version {published.version} is published, and {read.version} is handled"
        remedy = f"give {reader} the new version first: it reads the old one by an upcast"
        found.append(fault("VERSION_AHEAD", "$", reason, remedy))
    elif published.schema is not None and read.schema is not None and not _upcast(published, read):
        try:
            misread = misreads(published.schema, read.schema)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{name}, as {publisher} writes and {reader} reads it: {error}"
            ) from error
        found += [
            fault(each.rule, each.path, each.reason, _REMEDIES[each.rule], each.witness)
            for each in misread
        ]
    return found


def check(
    contracts: Mapping[str, ServiceContract],
    *,
    external: Collection[str] = (),
    services: Mapping[str, Service] | None = None,
) -> list[Fault]:
    """Return the faults between the services of a system, by type.

    Of types in ``external`` it is not asked who publishes them. ``services`` are those whose code
    is here: a witness between two of them is tried on their classes, and a fault without effect is
    left out; and what their upcasts make of an older version is tried.
    """
    found: list[Fault] = []
    for reader, read in _reads(contracts):
        owners = _owners(contracts, reader, read)
        here = {n: p for n, p in owners.items() if read.stream in (None, p.stream)}
        for publisher, published in here.items():
            found += faults_between(publisher, read.type, published, reader, read)
            if services and reader in services and _upcast(published, read):
                found += _upcast_faults(publisher, published, services[reader], read)
        if not here and read.type not in external:
            found += _unpublished(contracts, owners, reader, read)
    if services:
        found = [each for each in found if not _is_read(each, services)]
    return sorted(found, key=lambda each: (each.type, each.reader or "", each.rule, each.path))


def joining(
    contract: ServiceContract,
    deployed: Iterable[ServiceContract],
    external: Collection[str] = (),
) -> list[Fault]:
    """Return the faults between a build of a service and what is deployed, by type.

    ``deployed`` may hold several contracts of one service, also of this one: in a rollout several
    builds run at once. What another build of this service has wrong as well, and a type that nobody
    publishes yet, are warnings: to deploy the build makes nothing worse.
    """
    service, deployed = contract.service, list(deployed)
    own = [each for each in deployed if each.service == service]
    others = [each for each in deployed if each.service != service]
    found = [*_meeting(contract, [contract, *own, *others])]
    for each in own:
        for name in sorted(each.publishes):
            pair = each.publishes[name], contract.publishes.get(name)
            found += _of_publisher(service, name, *pair)
            if pair[1] is None and not any(name in other.publishes for other in others):
                for other in others:
                    reads = (read for read in other.reads if read.type == name)
                    found += [_gone(service, name, other.service, read) for read in reads]
    known = {_placed(f) for each in own for f in _meeting(each, others)}
    published = {name for each in (contract, *own, *others) for name in each.publishes}
    unpublished = [
        _unheard(service, read)
        for read in contract.reads
        if read.type not in published and read.type not in external
    ]
    told = {
        (_placed(each), each.witness): each
        if _placed(each) not in known
        else msgspec.structs.replace(each, level="warning")
        for each in (*found, *unpublished)
    }
    return sorted(
        told.values(),
        key=lambda f: (f.type, f.publisher or "", f.reader or "", f.rule, f.path),
    )


def _meeting(contract: ServiceContract, others: Iterable[ServiceContract]) -> Iterator[Fault]:
    """Why a service can't read what others publish, or they what it publishes."""
    for other in others:
        for writer, reader in ((contract, other), (other, contract)):
            for read in reader.reads:
                published = writer.publishes.get(read.type)
                if published is None or published.to not in (None, reader.service):
                    continue
                if read.stream in (None, published.stream):
                    yield from faults_between(
                        writer.service, read.type, published, reader.service, read
                    )


def _placed(fault: Fault) -> tuple[Any, ...]:
    return fault.rule, fault.type, fault.publisher, fault.reader, fault.path, fault.handlers


def _unheard(service: str, read: Read) -> Fault:
    return Fault(
        rule="TYPE_UNPUBLISHED",
        level="warning",
        type=read.type,
        publisher=None,
        reader=service,
        handlers=read.handlers,
        reason="no deployed service publishes it yet",
        remedy="deploy its publisher as well, or name it in system.external",
    )


def diff(old: Mapping[str, ServiceContract], new: Mapping[str, ServiceContract]) -> list[Change]:
    """Return what changed between two states of a system, for each type and reader of it.

    The verdict is on the deployment, in which services of both states run at once.
    """
    found: list[Change] = []
    for publisher in sorted({*old, *new}):
        before = old[publisher].publishes if publisher in old else {}
        after = new[publisher].publishes if publisher in new else {}
        for name in sorted({*before, *after}):
            pair = before.get(name), after.get(name)
            readers = sorted(
                {who for who, _ in _readers(old, name)} | {who for who, _ in _readers(new, name)}
            )
            changes = _changes(*pair)
            faults = _of_publisher(publisher, name, *pair)
            each = [
                _change(publisher, name, pair, reader, old, new, changes, faults)
                for reader in readers
            ]
            told = [one for one in each if one is not None]
            if not told and changes:
                verdict: Verdict = "breaks" if faults else "fine"
                told = [
                    Change(
                        type=name,
                        publisher=publisher,
                        reader=None,
                        verdict=verdict,
                        changes=changes,
                        faults=faults,
                    )
                ]
            found += told
    return found


def _change(
    publisher: str,
    name: str,
    pair: tuple[Published | None, Published | None],
    reader: str,
    old: Mapping[str, ServiceContract],
    new: Mapping[str, ServiceContract],
    changes: tuple[str, ...],
    faults: tuple[Fault, ...],
) -> Change | None:
    """What the change means to one reader; None if neither it nor the type has changed for it."""
    before, after = pair
    reads = [
        tuple(read for who, read in _readers(state, name) if who == reader) for state in (old, new)
    ]
    if not changes and reads[0] == reads[1]:
        return None

    def between(published: Published | None, which: tuple[Read, ...]) -> list[Fault]:
        if published is None:
            return []
        return [
            fault
            for read in which
            if read.stream in (None, published.stream) and published.to in (None, reader)
            for fault in faults_between(publisher, name, published, reader, read)
            if fault.level == "error"
        ]

    known = {_same(each) for each in between(before, reads[0])}
    at_end = [each for each in between(after, reads[1]) if _same(each) not in known]
    at_first = [each for each in between(after, reads[0]) if _same(each) not in known]
    of_past = [each for each in between(before, reads[1]) if _same(each) not in known]
    if after is None and reads[1]:
        at_end += [_gone(publisher, name, reader, read) for read in reads[1]]
    history = tuple(
        msgspec.structs.replace(each, rule="HISTORY", level="warning", remedy=_REMEDIES["HISTORY"])
        for each in of_past
    )
    verdict: Verdict = "fine"
    if faults or at_end or (at_first and of_past):
        verdict = "breaks"
    elif at_first:
        verdict = "deploy consumer first"
    elif of_past:
        verdict = "deploy publisher first"
    return Change(
        type=name,
        publisher=publisher,
        reader=reader,
        handlers=tuple(sorted({name for read in reads[1] or reads[0] for name in read.handlers})),
        verdict=verdict,
        changes=changes,
        faults=(*faults, *(at_end or at_first), *history),
    )


def _of_publisher(
    publisher: str, name: str, before: Published | None, after: Published | None
) -> tuple[Fault, ...]:
    """The faults that a change has whoever reads the type."""
    if before is None or after is None or before.key == after.key:
        return ()
    reason = f"it was ordered by {_key(before.key)}, and is by {_key(after.key)}"
    return (
        Fault(
            rule="KEY_CHANGED",
            level="error",
            type=name,
            publisher=publisher,
            reader=None,
            reason=reason,
            remedy="keep the key, or publish another type: events of one key lose their order",
        ),
    )


def _changes(before: Published | None, after: Published | None) -> tuple[str, ...]:
    if before is None or after is None:
        return ("no longer published",) if after is None else ("new",)
    found = [
        f"{name}: {mine} → {theirs}"
        for name, mine, theirs in (
            ("version", before.version, after.version),
            ("key", before.key, after.key),
            ("stream", before.stream, after.stream),
            ("to", before.to, after.to),
        )
        if mine != theirs
    ]
    was, now = outline(before.schema or {}), outline(after.schema or {})
    for path in sorted(was.keys() | now.keys()):
        if path not in now:
            found.append(f"- {path}: {was[path]}")
        elif path not in was:
            found.append(f"+ {path}: {now[path]}")
        elif was[path] != now[path]:
            found.append(f"~ {path}: {was[path]} → {now[path]}")
    return tuple(found)


def _reads(contracts: Mapping[str, ServiceContract]) -> Iterator[tuple[str, Read]]:
    for name in sorted(contracts):
        for read in contracts[name].reads:
            yield name, read


def _readers(contracts: Mapping[str, ServiceContract], name: str) -> Iterator[tuple[str, Read]]:
    return ((reader, read) for reader, read in _reads(contracts) if read.type == name)


def _owners(
    contracts: Mapping[str, ServiceContract], reader: str, read: Read
) -> dict[str, Published]:
    owners = {
        name: contract.publishes[read.type]
        for name, contract in sorted(contracts.items())
        if read.type in contract.publishes
    }
    return {name: each for name, each in owners.items() if each.to in (None, reader)}


def _unpublished(
    contracts: Mapping[str, ServiceContract],
    owners: Mapping[str, Published],
    reader: str,
    read: Read,
) -> Iterator[Fault]:
    system = contracts[reader].system
    if not owners and read.stream is not None and not read.stream.startswith(f"{system}."):
        return  # of another system
    if owners:
        streams = " and ".join(sorted(each.stream for each in owners.values()))
        rule, reason = "STREAM_MOVED", f"it is read from {read.stream}, and published to {streams}"
    else:
        every = {name for each in contracts.values() for name in each.publishes}
        near = difflib.get_close_matches(read.type, every, n=1)
        hint = f"; {near[0]} is published" if near else ""
        rule, reason = "TYPE_UNPUBLISHED", f"no service publishes it{hint}"
    yield Fault(
        rule=rule,
        level="error",
        type=read.type,
        publisher=next(iter(owners), None),
        reader=reader,
        handlers=read.handlers,
        reason=reason,
        remedy=_REMEDIES[rule],
    )


def _gone(publisher: str, name: str, reader: str, read: Read) -> Fault:
    return Fault(
        rule="TYPE_UNPUBLISHED",
        level="error",
        type=name,
        publisher=publisher,
        reader=reader,
        handlers=read.handlers,
        reason=f"{publisher} publishes it no longer",
        remedy=_REMEDIES["TYPE_UNPUBLISHED"],
    )


def _is_read(fault: Fault, services: Mapping[str, Service]) -> bool:
    """Whether the reader's own class decodes the witness, which the publisher's does as well."""
    if fault.witness is None or fault.publisher is None or fault.reader is None:
        return False
    writer, reader = services.get(fault.publisher), services.get(fault.reader)
    if writer is None or reader is None:
        return False
    published = next(kind for kind in writer.publishes if kind.name == fault.type)
    kinds = _kinds(reader, fault.type, fault.handlers)
    return all(_decodes(published, kind, fault.witness.encode()) for kind in kinds)


def _upcast_faults(
    publisher: str, published: Published, reader: Service, read: Read
) -> Iterator[Fault]:
    """Why what a reader's upcasts make of an older version does not fit its class, by trying."""
    values = []
    if published.schema is not None and read.schema is not None:
        found = misreads(published.schema, read.schema)
        values = [each.witness for each in found if each.witness is not None]
        with contextlib.suppress(ValueError):
            values.insert(0, sample(published.schema))
    urn = f"urn:oyez:{read.type}:{published.version}"
    for kind in _kinds(reader, read.type, read.handlers):
        for value in values:
            data = msgspec.json.encode(value)
            try:
                decode(kind, data, urn)
            except EventError as error:
                yield Fault(
                    rule="HISTORY",
                    level="error",
                    type=read.type,
                    publisher=publisher,
                    reader=reader.name,
                    handlers=read.handlers,
                    reason=f"version {published.version} is upcast, and refused: {error}",
                    remedy="mend the upcast: this is what it is given",
                    witness=data.decode(),
                )
                return


def _kinds(service: Service, name: str, handlers: Collection[str]) -> list[EventType]:
    """The classes by which these handlers read a type."""
    kinds = [
        kind
        for handler in service.subscriptions
        if handler.name in handlers
        for kind in handler.events
        if kind.name == name
    ]
    return list(dict.fromkeys(kinds))


def _decodes(published: EventType, kind: EventType, witness: bytes) -> bool:
    try:
        data = encode(published, published.decode(witness))
    except (EventError, msgspec.MsgspecError):
        return True  # its own class does not allow it: it is never published
    try:
        decode(kind, data, published.dataschema)
    except EventError:
        return False
    return True


def _upcast(published: Published, read: Read) -> bool:
    return any(published.version <= each < read.version for each in read.upcasts)


def _same(fault: Fault) -> tuple[str, str, tuple[str, ...]]:
    return fault.rule, fault.path, fault.handlers


def _key(key: str | None) -> str:
    return "no key" if key is None else f"the field {key}"


_REMEDIES = {
    "FIELD_MISSING": "give the field a default in the handler's class, or publish it again",
    "FIELD_OPTIONAL": "give the field a default, or let it be None, in the handler's class",
    "TYPE_NARROWED": "let the handler's class take both types, or publish a new version",
    "ENUM_VALUE_ADDED": "let the handler's class take what it does not know, and deploy it first",
    "RANGE_NARROWED": "widen the condition in the handler's class, or narrow the publisher's",
    "FORBIDS_UNKNOWN": "drop forbid_unknown_fields from the handler's class",
    "STREAM_MOVED": "drop stream= from the handler, or name the stream of the publisher",
    "TYPE_UNPUBLISHED": "publish it, handle another type, or name it in system.external",
    "HISTORY": "give the handler's class an upcast of the old form, or a default for the field",
    "UNDECIDED": "use the same pattern on both sides, or none for the handler",
}
