"""Rules on sagas: whether each step is answered, in time, and can be undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import CodeType, NoneType
from typing import Any, get_args, get_type_hints

import msgspec

from oyez.event import EventType, describe
from oyez.handler import Handler, published_types
from oyez.inspection.lint.system import (
    Found,
    System,
    fault,
    named,
    permitting,
    stored_by,
    worst_case,
)
from oyez.saga import SagaType, Step
from oyez.service import Service


class Ask(msgspec.Struct, frozen=True):
    """What a saga asks for, in a step or to undo one."""

    saga: SagaType
    name: str
    function: Callable[..., Any]
    asks: tuple[EventType, ...]
    answers: tuple[EventType, ...]
    within: float

    @property
    def title(self) -> str:
        """Its name for texts."""
        return f"{self.saga.name}.{self.name}"


def _asks(saga: SagaType, step: Step) -> list[Ask]:
    """Return what a step asks and, after it, what undoes it."""
    found = [_ask(saga, step.name, step.function, (*step.done, *step.failed), step.within)]
    undo = step.undone_by
    if undo is not None:
        found.append(_ask(saga, undo.name, undo.function, undo.done, undo.within))
    return found


def _ask(
    saga: SagaType,
    name: str,
    function: Callable[..., Any],
    answers: tuple[type, ...],
    within: float,
) -> Ask:
    asked = published_types(get_type_hints(function).get("return"))
    return Ask(saga, name, function, asked, tuple(map(describe, answers)), within)


def _sagas(system: System) -> Iterator[tuple[SagaType, Handler | None]]:
    """Yield each saga, with the handler that runs it."""
    for service in system.services.values():
        for kind in stored_by(service):
            if isinstance(kind.keyed, SagaType):
                yield kind.keyed, permitting(kind.users, "")


def _receivers(system: System, kind: EventType) -> list[tuple[Service, Handler]]:
    """Return the handlers that an event is for."""
    return [
        (each.service, each.handler)
        for each in system.handled.get(kind.name, ())
        if kind.to in (None, each.service.name)
    ]


# -- the rules -------------------------------------------------------------------------------------


def _overtakes(system: System) -> Found:
    for saga, _ in _sagas(system):
        for step in saga.steps.values():
            for ask in _asks(saga, step) if step.undone_by is not None else ():
                for kind in ask.asks:
                    for _, handler in _receivers(system, kind):
                        if not handler.ordered:
                            yield (
                                fault(
                                    "E08",
                                    "error",
                                    handler,
                                    f"{named(handler)} handles {kind.name} in any order, so that "
                                    f"in {saga.name} an undo may overtake what it undoes",
                                    'subscribe to it with order="key"',
                                ),
                                handler,
                            )


def _keys_differ(system: System) -> Found:
    for saga, runner in _sagas(system):
        for step in saga.steps.values():
            if step.undone_by is None:
                continue
            asked, undone = _asks(saga, step)
            for one in asked.asks:
                for other in undone.asks:
                    if one.to == other.to and one.key_field != other.key_field:
                        yield (
                            fault(
                                "E08",
                                "error",
                                other.cls,
                                f"{undone.title} asks {other.name} by {other.key_field}, and "
                                f"{asked.title} {one.name} by {one.key_field}: the undo may "
                                "overtake what it undoes",
                                "declare the same key for both",
                            ),
                            runner,
                        )


def _no_undo(system: System) -> Found:
    for saga, runner in _sagas(system):
        before = {name: _before(saga.steps, name) for name in saga.steps}
        for name, step in saga.steps.items():
            if step.pivot or not step.changes:
                continue
            settled = sorted(other for other in before[name] if saga.steps[other].pivot)
            others = [each for each in saga.steps if each != name and each not in before[name]]
            if settled and step.undone_by is not None:
                text = f"{saga.name}.{name} can be undone, and comes after the pivot {settled[0]}"
                remedy = "remove its undo: after the pivot nothing is undone; or ask it before"
            elif not settled and others and step.undone_by is None:
                text = f"{saga.name}.{name} can't be undone when {others[0]} fails"
                remedy = (
                    f"add @{name}.undo(…), or make it the pivot and ask it last; or say "
                    "changes=False if there is nothing to undo"
                )
            else:
                continue
            yield fault("E09", "error", step.function, text, remedy), runner


def _before(steps: Mapping[str, Step], name: str) -> set[str]:
    """Return the steps that have to be done before one is asked."""
    found: set[str] = set()
    open_ = [name]
    while open_:
        for other in steps[open_.pop()].behind:
            if other not in found:
                found.add(other)
                open_.append(other)
    return found


def _too_soon(system: System) -> Found:
    for ask, runner in _all_asks(system):
        answers = {kind.name for kind in ask.answers}
        for kind in ask.asks:
            for _, handler in _receivers(system, kind):
                if kind.to is None and not answers & {each.name for each in handler.publishes}:
                    continue  # an event asks those alone that answer it
                longest = worst_case(handler)
                if ask.within < longest:
                    yield (
                        fault(
                            "E10",
                            "error",
                            ask.function,
                            f"{ask.title} waits {ask.within:g} s for its answer, and "
                            f"{named(handler)} may take {longest:.0f} s with all its attempts",
                            "raise within=, or lower the attempts and the timeout of the handler",
                        ),
                        runner,
                    )


def _no_answer(system: System) -> Found:
    for ask, runner in _all_asks(system):
        receivers = [each for kind in ask.asks for each in _receivers(system, kind)]
        if ask.asks and not receivers:
            continue  # that is E03, or E01
        answers = {kind.name for kind in ask.answers}
        said = {kind.name for service, _ in receivers for kind in service.publishes}
        silent = sorted(answers - (said if ask.asks else system.published.keys()) - system.external)
        if silent:
            asked = " and ".join(sorted({service.name for service, _ in receivers})) or "nobody"
            text = f"{ask.title} waits for {', '.join(silent)}"
            yield (
                fault(
                    "E11",
                    "error",
                    ask.function,
                    f"{text}, which {asked} {'does not publish' if ask.asks else 'publishes'}",
                    "declare it in the return annotation of the handler, or correct the step",
                ),
                runner,
            )
            continue
        for _, handler in receivers:
            if answers & {each.name for each in handler.publishes} and _may_be_none(handler):
                yield (
                    fault(
                        "E11",
                        "warning",
                        handler,
                        f"{named(handler)} may return None, and {ask.title} waits for its answer",
                        "answer in any case, also when there was nothing to do",
                    ),
                    handler,
                )


def _no_end(system: System) -> Found:
    for saga, runner in _sagas(system):
        words = {word for each in _methods(saga) for word in _words(each.__code__)}
        if not saga.steps and "ending" not in words:
            yield (
                fault(
                    "E12",
                    "error",
                    saga.cls,
                    f"{saga.name} has no step, and no method of it ends it",
                    "call self.ending(…) where it is done",
                ),
                runner,
            )
            continue
        for name in saga.ends:
            by_steps = saga.steps and name in (saga.complete, saga.undone)
            if not by_steps and name not in words:
                yield (
                    fault(
                        "E12",
                        "error",
                        saga.cls,
                        f"{saga.name} never reaches its end {name}",
                        f'call self.ending("{name}") where that is due, or remove it',
                    ),
                    runner,
                )


RULES: tuple[Callable[[System], Found], ...] = (
    _overtakes,
    _keys_differ,
    _no_undo,
    _too_soon,
    _no_answer,
    _no_end,
)


def _all_asks(system: System) -> Iterator[tuple[Ask, Handler | None]]:
    for saga, runner in _sagas(system):
        for step in saga.steps.values():
            for ask in _asks(saga, step):
                yield ask, runner


def _may_be_none(handler: Handler) -> bool:
    return NoneType in get_args(get_type_hints(handler.function).get("return"))


def _methods(saga: SagaType) -> list[Callable[..., Any]]:
    """Return the functions in the class, as far as they are its methods for events and timers."""
    return [*saga.starters.values(), *saga.reactions.values(), *saga.timers.values()]


def _words(code: CodeType) -> Iterator[str]:
    """Yield the names and texts in a function: enough to see which ends it may name."""
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, str):
            yield each
        elif isinstance(each, CodeType):
            yield from _words(each)
