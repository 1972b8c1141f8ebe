"""The lint of a whole system: faults between services that no service can see alone.

A pure function of the services' declarations: no source is parsed, no service runs. Each rule has a
code, by which a handler permits what is meant to be so: ``@service.on(…, allow={"E14": "why"})``.

=====  =======  ====================================================================================
E00    warning  a permit that is not needed, or that gives no reason
E01    warning  an event that nobody handles
E02    error    an event that is handled and that nobody publishes
E04    error    an event that two services publish: a fact has one owner
E05    error    publisher and handler order the event by different keys
E06    warning  a handler keeps the order of events that have no key
E14    error    events that lead to themselves; a warning where a handler may end the circle
E16    warning  a handler outside of a transaction that can't give its calls an idempotency key
E17    warning  retries that go on for longer than duplicates are recognised
E18    error    a handler expects fields or a version that the publisher does not have
=====  =======  ====================================================================================

Types that come from outside, or that are only handled there, are named in ``system.external``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from oyez.event import EventType, is_event
from oyez.handler import Handler, Retry
from oyez.parameters import ContextParameter, ProvidedParameter
from oyez.project import Project
from oyez.runtime.dead import INBOX_RETENTION
from oyez.service import Service

CODES = ("E00", "E01", "E02", "E04", "E05", "E06", "E14", "E16", "E17", "E18")


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A fault between services."""

    code: str
    level: Literal["warning", "error"]
    file: str
    """The file of the declaration at fault, empty if it has none."""
    line: int
    text: str
    remedy: str


class _Heard(msgspec.Struct, frozen=True):
    service: Service
    handler: Handler
    kind: EventType


class _System:
    """The declarations of all services, by event type."""

    def __init__(self, services: Mapping[str, Service], external: Iterable[str], name: str) -> None:
        self.external = frozenset(external)
        self.name = name
        self.published: dict[str, dict[str, EventType]] = {}
        self.handled: dict[str, list[_Heard]] = {}
        for service in services.values():
            for kind in service.publishes:
                self.published.setdefault(kind.name, {})[service.name] = kind
            for handler in service.handlers:
                for kind in handler.events:
                    self.handled.setdefault(kind.name, []).append(_Heard(service, handler, kind))

    @property
    def all_handled(self) -> list[_Heard]:
        """Every subscription, by type."""
        return [each for name in sorted(self.handled) for each in self.handled[name]]


def lint(project: Project) -> tuple[list[Fault], dict[str, str]]:
    """Return the faults of a system, and the services that can't be imported with the reason.

    Files are relative to the project's folder.
    """
    services, failed = project.services()
    system = project.config.system
    found = check(services, system.external, system=system.name)
    root = project.config.root.resolve()
    return [_relative(each, root) for each in found], failed


def check(
    services: Mapping[str, Service], external: Iterable[str] = (), *, system: str = ""
) -> list[Fault]:
    """Return the faults between these services, in the order of their codes.

    ``external`` names the event types that are published or handled outside of the system, whose
    name is ``system``: a handler that reads the stream of another one needs no publisher here.
    """
    declared = _System(services, external, system)
    faults: list[Fault] = []
    permits = {
        (service.name, handler.name, code): (handler, why)
        for service in services.values()
        for handler in service.handlers
        for code, why in handler.allow.items()
    }
    used: set[tuple[str, str, str]] = set()
    for rule in _RULES:
        for fault, handler in rule(declared):
            permit = None if handler is None else (handler.service, handler.name, fault.code)
            if permit in permits:
                used.add(permit)
            else:
                faults.append(fault)
    for permit, (handler, why) in permits.items():
        if permit not in used or not why.strip():
            problem = "is not needed" if permit not in used else "gives no reason"
            faults.append(
                _fault(
                    "E00",
                    "warning",
                    handler.function,
                    f"{_name(handler)}: the permit of {permit[2]} {problem}",
                    "remove it" if permit not in used else "state why it is meant to be so",
                )
            )
    return sorted(faults, key=lambda each: (each.code, each.file, each.line, each.text))


def as_value(faults: Iterable[Fault], failed: Mapping[str, str]) -> dict[str, Any]:
    """Return the faults as a value for JSON."""
    listed = [msgspec.structs.asdict(each) for each in faults]
    return {
        "ok": not failed and all(each["level"] != "error" for each in listed),
        "failed": dict(failed),
        "faults": listed,
    }


# -- the rules -------------------------------------------------------------------------------------

Found = Iterator[tuple[Fault, Handler | None]]


def _unheard(system: _System) -> Found:
    for name in sorted(system.published.keys() - system.handled.keys() - system.external):
        for service, kind in system.published[name].items():
            yield (
                _fault(
                    "E01",
                    "warning",
                    kind.cls,
                    f"nobody handles {name}, which {service} publishes",
                    "subscribe to it, stop publishing it, or name it in system.external",
                ),
                None,
            )


def _unsaid(system: _System) -> Found:
    for name in sorted(system.handled.keys() - system.published.keys() - system.external):
        near = difflib.get_close_matches(name, list(system.published), n=1)
        hint = f"; {near[0]} is published" if near else ""
        for each in system.handled[name]:
            stream = each.handler.stream
            if stream is not None and not stream.startswith(f"{system.name}."):
                continue
            yield (
                _fault(
                    "E02",
                    "error",
                    each.handler.function,
                    f"nobody publishes {name}, which {_name(each.handler)} handles{hint}",
                    "declare it in publishes or in a return annotation of its publisher, or name "
                    "it in system.external",
                ),
                each.handler,
            )


def _two_owners(system: _System) -> Found:
    for name, owners in sorted(system.published.items()):
        if len(owners) > 1 and name not in system.external:
            yield (
                _fault(
                    "E04",
                    "error",
                    next(iter(owners.values())).cls,
                    f"{name} is published by {' and '.join(sorted(owners))}",
                    "give each service an event of its own: a fact has one owner",
                ),
                None,
            )


def _key_differs(system: _System) -> Found:
    for each in system.all_handled:
        for owner, kind in system.published.get(each.kind.name, {}).items():
            if kind.key_field != each.kind.key_field:
                yield (
                    _fault(
                        "E05",
                        "error",
                        each.handler.function,
                        f"{_name(each.handler)} orders {each.kind.name} by {_key(each.kind)}, and "
                        f"{owner} publishes it by {_key(kind)}",
                        "declare the publisher's key: it decides the partition",
                    ),
                    each.handler,
                )


def _order_lost(system: _System) -> Found:
    for each in system.all_handled:
        handler = each.handler
        if handler.transactional and handler.ordered and each.kind.key_field is None:
            yield (
                _fault(
                    "E06",
                    "warning",
                    handler.function,
                    f"{_name(handler)} keeps the order of {each.kind.name}, which has no key",
                    'give the event a key, or subscribe with order="none"',
                ),
                handler,
            )


def _feeds_itself(system: _System) -> Found:
    edges: dict[str, list[tuple[str, Handler]]] = {}
    for each in system.all_handled:
        for kind in each.handler.publishes:
            edges.setdefault(each.kind.name, []).append((kind.name, each.handler))
    for circle in _circles(edges):
        handlers = [handler for _, handler in circle]
        certain = all(map(_always_publishes, handlers))
        path = " → ".join([*(name for name, _ in circle), circle[0][0]])
        permitted = next((each for each in handlers if "E14" in each.allow), handlers[0])
        yield (
            _fault(
                "E14",
                "error" if certain else "warning",
                handlers[0].function,
                f"events lead to themselves: {path}"
                + ("" if certain else "; whether the circle ends is up to the handlers"),
                "break the circle, or permit it on one of its handlers if it ends",
            ),
            permitted,
        )


def _circles(edges: Mapping[str, list[tuple[str, Handler]]]) -> Iterator[list[tuple[str, Handler]]]:
    """Yield circles: types, each with the handler that leads to the next.

    Not all there are, since they may be very many, but one at least wherever there is one.
    """
    order = {name: number for number, name in enumerate(sorted(edges))}
    for start in sorted(edges):
        path: list[tuple[str, Handler]] = []
        seen: set[str] = set()

        def walk(
            name: str,
            start: str = start,
            path: list[tuple[str, Handler]] = path,
            seen: set[str] = seen,
        ) -> Iterator[list[tuple[str, Handler]]]:
            for target, handler in edges.get(name, ()):
                if target == start:
                    yield [*path, (name, handler)]
                elif order.get(target, -1) > order[start] and target not in seen:
                    seen.add(target)
                    path.append((name, handler))
                    yield from walk(target)
                    path.pop()

        yield from walk(start)


def _not_idempotent(system: _System) -> Found:
    for handler in {id(each.handler): each.handler for each in system.all_handled}.values():
        kinds = [type(parameter) for parameter in handler.parameters]
        if (
            not handler.transactional
            and ProvidedParameter in kinds
            and ContextParameter not in kinds
        ):
            yield (
                _fault(
                    "E16",
                    "warning",
                    handler.function,
                    f"{_name(handler)} runs outside of a transaction, so it may run again, and has "
                    "no Context to take an idempotency key from",
                    "ask for Context and pass context.idempotency_key on",
                ),
                handler,
            )


def _retries_too_long(system: _System) -> Found:
    for handler in {id(each.handler): each.handler for each in system.all_handled}.values():
        total = _total(handler.retry)
        if total > INBOX_RETENTION:
            yield (
                _fault(
                    "E17",
                    "warning",
                    handler.function,
                    f"{_name(handler)} retries for {total / 86_400:.0f} days; duplicates are "
                    f"recognised for {INBOX_RETENTION / 86_400:.0f}",
                    "allow fewer attempts, or redrive the dead letter later",
                ),
                handler,
            )


def _misfit(system: _System) -> Found:
    for each in system.all_handled:
        for owner, kind in system.published.get(each.kind.name, {}).items():
            problem = _why_misfit(kind, each.kind)
            if problem:
                yield (
                    _fault(
                        "E18",
                        "error",
                        each.handler.function,
                        f"{_name(each.handler)} can't read the {each.kind.name} of {owner}: "
                        f"{problem}",
                        "change the handler's class, or publish a new version",
                    ),
                    each.handler,
                )


_RULES: tuple[Callable[[_System], Found], ...] = (
    _unheard,
    _unsaid,
    _two_owners,
    _key_differs,
    _order_lost,
    _feeds_itself,
    _not_idempotent,
    _retries_too_long,
    _misfit,
)


# -- what the rules ask ----------------------------------------------------------------------------


def _fault(
    code: str, level: Literal["warning", "error"], declared: Any, text: str, remedy: str
) -> Fault:
    file, line = _place(declared)
    return Fault(code=code, level=level, file=file, line=line, text=text, remedy=remedy)


def _place(declared: Any) -> tuple[str, int]:
    try:
        return inspect.getsourcefile(declared) or "", inspect.getsourcelines(declared)[1]
    except (OSError, TypeError):
        return "", 0


def _relative(fault: Fault, root: Path) -> Fault:
    file = Path(fault.file)
    if fault.file and file.is_relative_to(root):
        return msgspec.structs.replace(fault, file=str(file.relative_to(root)))
    return fault


def _name(handler: Handler) -> str:
    return f"{handler.service}.{handler.name}"


def _key(kind: EventType) -> str:
    return "no key" if kind.key_field is None else f"the field {kind.key_field}"


def _always_publishes(handler: Handler) -> bool:
    """Whether the return annotation allows nothing but an event."""
    try:
        annotation = get_type_hints(handler.function).get("return")
    except NameError:
        return False
    if is_event(annotation):
        return True
    parts = get_args(annotation)
    return bool(parts) and get_origin(annotation) not in _MANY and all(map(is_event, parts))


_MANY = tuple(
    get_origin(each)
    for each in (list[int], tuple[int], Iterable[int], Iterator[int], set[int], frozenset[int])
)


def _total(retry: Retry) -> float:
    """The seconds of all waits between attempts, at most."""
    total = 0.0
    for attempt in range(1, retry.attempts):
        planned = retry.first * retry.factor ** (attempt - 1)
        if planned >= retry.longest or retry.factor == 1.0:
            total += min(planned, retry.longest) * (retry.attempts - attempt)
            break
        total += planned
    return total * (1 + retry.jitter)


def _why_misfit(published: EventType, handled: EventType) -> str:
    """Return why data of the one class does not fit the other; empty if nothing is known of it."""
    if published.cls is handled.cls:
        return ""
    if handled.version < published.version:
        return f"version {published.version} is published, and {handled.version} is handled"
    there, here = _shape(published), _shape(handled)
    if there is None or here is None:
        return ""
    required, expected = here
    _, given = there
    missing = sorted(required - given.keys())
    if missing:
        return f"it has no field {', '.join(missing)}"
    for field in sorted(expected.keys() & given.keys()):
        mine, theirs = expected[field], given[field]
        if mine and theirs and not mine & theirs:
            return (
                f"the field {field} is {' or '.join(sorted(theirs))}, and "
                f"{' or '.join(sorted(mine))} is expected"
            )
    return ""


def _shape(kind: EventType) -> tuple[set[str], dict[str, set[str]]] | None:
    """The required fields, and the JSON types of each; None for a class that msgspec can't read."""
    try:
        (reference,), components = msgspec.json.schema_components((kind.cls,))
    except TypeError:
        return None
    schema = _resolved(reference, components)
    fields = {
        name: _types(_resolved(field, components), components)
        for name, field in schema.get("properties", {}).items()
    }
    return set(schema.get("required", ())), fields


def _resolved(schema: Any, components: Mapping[str, Any]) -> Any:
    reference = schema.get("$ref")
    return components[reference.rpartition("/")[2]] if reference else schema


def _types(schema: Any, components: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema allows; empty where it does not tell."""
    if "anyOf" in schema:
        parts = [_types(_resolved(each, components), components) for each in schema["anyOf"]]
        return set().union(*parts) if all(parts) else set()
    found = schema.get("type")
    if found is None and "enum" in schema:
        return {"string" if isinstance(each, str) else "number" for each in schema["enum"]}
    names = {found} if isinstance(found, str) else set(found or ())
    return {"number" if name == "integer" else name for name in names}
