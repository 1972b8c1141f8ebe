"""What the rules of the lint read: the declarations of all services, and how a fault is told."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import msgspec

from oyez.event import EventType
from oyez.handler import Handler, Retry
from oyez.inspection.lint.contracts import OWN, Between, contracts_of
from oyez.inspection.lint.shapes import Shape
from oyez.saga import SagaType
from oyez.service import Service
from oyez.state import Correlation, Keyed, StateType
from oyez.view import ViewType
from oyez.window import WindowType

Level = Literal["warning", "error"]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A fault between services."""

    code: str
    level: Level
    file: str
    """The file of the declaration at fault, empty if it has none."""
    line: int
    text: str
    remedy: str


Found = Iterator[tuple[Fault, Handler | None]]
"""Faults, each with the handler that may permit it."""


class Heard(msgspec.Struct, frozen=True):
    """One event type that a handler subscribes to."""

    service: Service
    handler: Handler
    kind: EventType


class Stored(msgspec.Struct, frozen=True):
    """A kind of keyed state: a `State`, saga, window or view."""

    keyed: Keyed
    name: str
    """For a view, that of all its versions."""
    cls: type
    version: int
    users: tuple[Handler, ...]
    """The handlers that change it."""

    def key_field(self, state: Correlation, event: EventType) -> str | None:
        """Return the field by which an event finds its row, if it is a field."""
        if isinstance(self.keyed, ViewType):
            by: object = self.keyed.methods[event.cls].by
        else:
            by = event.key_field if state.by is None else state.by
        return by if isinstance(by, str) else None


class System:
    """The declarations of all services, by event type.

    ``external``, ``erasure`` and ``outward`` are settings, ``recorded`` the shapes of keyed state
    as they were last recorded, by service and kind; None if they never were.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        *,
        name: str = "",
        external: Iterable[str] = (),
        erasure: str | None = None,
        outward: Iterable[str] = (),
        recorded: Mapping[str, Mapping[str, Shape]] | None = None,
    ) -> None:
        self.services = services
        self.name = name
        self.external = frozenset(external)
        self.erasure = erasure
        self.outward = frozenset(outward)
        self.recorded = recorded
        self.published: dict[str, dict[str, EventType]] = {}
        self.handled: dict[str, list[Heard]] = {}
        for service in services.values():
            for kind in service.publishes:
                self.published.setdefault(kind.name, {})[service.name] = kind
            for handler in service.subscriptions:
                for kind in handler.events:
                    if kind.name.startswith(OWN):
                        continue
                    self.handled.setdefault(kind.name, []).append(Heard(service, handler, kind))

    @cached_property
    def between(self) -> Between:
        """The contracts between the services."""
        told = [contracts_of(service) for service in self.services.values()]
        return Between(told, name=self.name, external=self.external)

    @property
    def all_handled(self) -> list[Heard]:
        """Every subscription, by type."""
        return [each for name in sorted(self.handled) for each in self.handled[name]]

    @property
    def handlers(self) -> list[tuple[Service, Handler]]:
        """Every handler, with its service."""
        services = self.services.values()
        return [(each, handler) for each in services for handler in each.subscriptions]


def stored_by(service: Service) -> list[Stored]:
    """Return the kinds of keyed state of a service, with its views."""
    found = []
    for keyed in (*service.kinds.values(), *service.views):
        users = tuple(h for h in service.subscriptions if any(s.kind is keyed for s in h.states))
        if isinstance(keyed, ViewType):
            name = f"view:{keyed.view}"
            found.append(Stored(keyed, name, keyed.cls, keyed.version, users))
        elif isinstance(keyed, StateType | WindowType):
            state = keyed.state if isinstance(keyed, WindowType) else keyed
            found.append(Stored(keyed, keyed.name, state.cls, state.version, users))
    return found


def fault(code: str, level: Level, at: Any, text: str, remedy: str) -> Fault:
    """Return a fault at a declaration: a class, a function, a handler, or None if it is gone."""
    declared = _declaration(at) if isinstance(at, Handler) else at
    try:
        file, line = inspect.getsourcefile(declared) or "", inspect.getsourcelines(declared)[1]
    except (OSError, TypeError):
        file, line = "", 0
    return Fault(code=code, level=level, file=file, line=line, text=text, remedy=remedy)


def _declaration(handler: Handler) -> Any:
    """Return what a handler was made of: its function, or the class of a saga, view or window."""
    kinds = [each.kind for each in handler.states]
    made = (k.cls for k in kinds if isinstance(k, SagaType | ViewType | WindowType))
    return next(made, handler.function)


def named(handler: Handler) -> str:
    """Return a handler's name for texts."""
    return f"{handler.service}.{handler.name}"


def worst_case(handler: Handler) -> float:
    """Return the seconds until a handler is done with an event, or gives up, at most."""
    if handler.timeout is None:
        return math.inf
    return waits(handler.retry) + handler.retry.attempts * handler.timeout


def waits(retry: Retry) -> float:
    """Return the seconds of all waits between attempts, at most."""
    total = 0.0
    for attempt in range(1, retry.attempts):
        planned = retry.first * retry.factor ** (attempt - 1)
        if planned >= retry.longest or retry.factor == 1.0:
            total += min(planned, retry.longest) * (retry.attempts - attempt)
            break
        total += planned
    return total * (1 + retry.jitter)


def permitting(handlers: Sequence[Handler], code: str) -> Handler | None:
    """Return the one of the handlers at fault that permits it, or else the first."""
    return next((each for each in handlers if code in each.allow), next(iter(handlers), None))
