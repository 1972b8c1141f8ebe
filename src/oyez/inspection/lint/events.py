"""Rules on events: who publishes and who handles them, by which key and in which shape."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import get_args, get_origin, get_type_hints

from oyez.event import EventType, is_event
from oyez.handler import Handler
from oyez.inspection.lint.shapes import why_misfit
from oyez.inspection.lint.system import OWN, Found, System, fault, named
from oyez.saga import SagaType


def _unheard(system: System) -> Found:
    for name in sorted(system.published.keys() - system.handled.keys() - system.external):
        for service, kind in system.published[name].items():
            if kind.to is not None:
                continue
            yield (
                fault(
                    "E01",
                    "warning",
                    kind.cls,
                    f"nobody handles {name}, which {service} publishes",
                    "subscribe to it, stop publishing it, or name it in system.external",
                ),
                None,
            )


def _unsaid(system: System) -> Found:
    for name in sorted(system.handled.keys() - system.published.keys() - system.external):
        near = difflib.get_close_matches(name, list(system.published), n=1)
        hint = f"; {near[0]} is published" if near else ""
        for each in system.handled[name]:
            stream, states = each.handler.stream, each.handler.states
            if stream is not None and not stream.startswith(f"{system.name}."):
                continue
            if any(isinstance(s.kind, SagaType) and name in s.kind.answers for s in states):
                continue  # E11 knows who was asked
            yield (
                fault(
                    "E02",
                    "error",
                    each.handler,
                    f"nobody publishes {name}, which {named(each.handler)} handles{hint}",
                    "declare it in publishes or in a return annotation of its publisher, or name "
                    "it in system.external",
                ),
                each.handler,
            )


def _misdirected(system: System) -> Found:
    for name in sorted((system.published.keys() | system.handled.keys()) - system.external):
        owned = [*system.published.get(name, {}).values()]
        handled = system.handled.get(name, [])
        to = next((kind.to for kind in (*owned, *(each.kind for each in handled)) if kind.to), None)
        if to is None:
            continue
        mine = [each for each in handled if each.service.name == to]
        for each in handled:
            if each not in mine[:1]:
                problem = f": {named(mine[0].handler)} does that" if each in mine else ""
                yield (
                    fault(
                        "E03",
                        "error",
                        each.handler,
                        f"{named(each.handler)} handles {name}, which asks {to}{problem}",
                        "one handler of the service that is asked does it: tell others by an event",
                    ),
                    each.handler,
                )
        if owned and not mine:
            yield (
                fault(
                    "E03",
                    "error",
                    owned[0].cls,
                    f"{name} asks {to}, which has no handler of it",
                    f"handle it in {to}, or correct to=",
                ),
                None,
            )


def _two_owners(system: System) -> Found:
    for name, owners in sorted(system.published.items()):
        is_command = any(kind.to for kind in owners.values())
        if len(owners) > 1 and name not in system.external and not is_command:
            yield (
                fault(
                    "E04",
                    "error",
                    next(iter(owners.values())).cls,
                    f"{name} is published by {' and '.join(sorted(owners))}",
                    "give each service an event of its own: a fact has one owner",
                ),
                None,
            )


def _key_differs(system: System) -> Found:
    for each in system.all_handled:
        for owner, kind in system.published.get(each.kind.name, {}).items():
            if kind.key_field != each.kind.key_field:
                yield (
                    fault(
                        "E05",
                        "error",
                        each.handler,
                        f"{named(each.handler)} orders {each.kind.name} by {_key(each.kind)}, and "
                        f"{owner} publishes it by {_key(kind)}",
                        "declare the publisher's key: it decides the partition",
                    ),
                    each.handler,
                )


def _order_lost(system: System) -> Found:
    for each in system.all_handled:
        handler = each.handler
        if handler.transactional and handler.ordered and each.kind.key_field is None:
            states = ", ".join(state.kind.name for state in handler.states)
            text = f"{named(handler)} keeps the order of {each.kind.name}, which has no key"
            yield (
                fault(
                    "E06",
                    "error" if states else "warning",
                    handler,
                    text + (f": {states} changes in any order" if states else ""),
                    'give the event a key, or subscribe with order="none"',
                ),
                handler,
            )


def _feeds_itself(system: System) -> Found:
    edges: dict[str, list[tuple[str, Handler]]] = {}
    for each in system.all_handled:
        if any(kind.name.startswith(OWN) for kind in each.handler.events):
            continue  # with timers, a saga or window goes on by what it stored, and ends
        for kind in each.handler.publishes:
            edges.setdefault(each.kind.name, []).append((kind.name, each.handler))
    for circle in _circles(edges):
        handlers = [handler for _, handler in circle]
        certain = all(map(_always_publishes, handlers))
        path = " → ".join([*(name for name, _ in circle), circle[0][0]])
        permitted = next((each for each in handlers if "E14" in each.allow), handlers[0])
        yield (
            fault(
                "E14",
                "error" if certain else "warning",
                handlers[0],
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


def _misfit(system: System) -> Found:
    for each in system.all_handled:
        for owner, kind in system.published.get(each.kind.name, {}).items():
            problem = why_misfit(kind, each.kind)
            if problem:
                yield (
                    fault(
                        "E18",
                        "error",
                        each.handler,
                        f"{named(each.handler)} can't read the {each.kind.name} of {owner}: "
                        f"{problem}",
                        "change the handler's class, or publish a new version",
                    ),
                    each.handler,
                )


RULES: tuple[Callable[[System], Found], ...] = (
    _unheard,
    _unsaid,
    _misdirected,
    _two_owners,
    _key_differs,
    _order_lost,
    _feeds_itself,
    _misfit,
)


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
