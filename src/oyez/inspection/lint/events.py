"""Rules on events: who publishes and who handles them, by which key and in which shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import get_args, get_origin, get_type_hints

from oyez.event import is_event
from oyez.handler import Handler
from oyez.inspection.lint.contracts import OWN
from oyez.inspection.lint.system import Found, System, fault, named


def _contracts(system: System) -> Found:
    handlers = {(service.name, handler.name): handler for service, handler in system.handlers}
    for each in system.between.misfits():
        if each.handler is not None:
            handler = handlers[each.service, each.handler]
            yield fault(each.code, each.level, handler, each.text, each.remedy), handler
        else:
            published = system.published[each.type][each.service].cls
            yield fault(each.code, each.level, published, each.text, each.remedy), None


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


RULES: tuple[Callable[[System], Found], ...] = (
    _contracts,
    _misdirected,
    _order_lost,
    _feeds_itself,
)


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
