"""A service: its handlers with their policies, what it provides to them, and its HTTP side."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar, get_args, get_type_hints

import msgspec

from oyez.errors import DeclarationError
from oyez.event import EventType, describe
from oyez.handler import Handler, Retry, compile_handler
from oyez.ports import Row, Store
from oyez.transaction import Announcer, Transaction, UnitOfWork, origin

F = TypeVar("F", bound=Callable[..., Any])

NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")


class Bound(Protocol):
    """What a running process lends to the service that it runs."""

    store: Store
    announcer: Announcer
    stopping: bool

    def committed(self) -> None:
        """Wake what follows the service's changes."""
        ...

    def changes(self, every: float | None) -> AsyncIterator[None]:
        """Return what `Service.changes` does."""
        ...


class Provider(msgspec.Struct, frozen=True):
    """A function whose result, one per process, handlers may ask for by its type."""

    provides: type
    function: Callable[..., Any]
    """Returns the value, or yields it once and cleans up afterwards; plain or async."""


class Service:
    """One autonomous service.

    ``http`` is any ASGI app, served on the address that ``oyez.toml`` gives. ``migrations`` is a
    folder of numbered SQL files, relative to the project, each run once. ``publishes`` names
    events that the HTTP side announces, so that they show in the topology.
    """

    def __init__(
        self,
        name: str,
        *,
        http: Any = None,
        migrations: str | None = None,
        publishes: tuple[type, ...] = (),
    ) -> None:
        if not NAME.fullmatch(name):
            raise DeclarationError(
                f"service name {name!r}: expected a small letter, then up to 40 of a-z, 0-9 and '-'"
            )
        self.name = name
        self.http = http
        self.migrations = migrations
        self.handlers: list[Handler] = []
        self.providers: list[Provider] = []
        self._publishes = tuple(describe(cls) for cls in publishes)
        self._bound: Bound | None = None

    @property
    def publishes(self) -> tuple[EventType, ...]:
        """Every event type that this service is known to announce."""
        found = list(self._publishes)
        for handler in self.handlers:
            found.extend(handler.publishes)
        return tuple({kind.name: kind for kind in found}.values())

    def on(
        self,
        *events: type,
        name: str | None = None,
        retry: Retry | None = None,
        timeout: float | None = 30.0,
        concurrency: int = 32,
        order: str = "key",
        batch: bool = False,
        stream: str | None = None,
    ) -> Callable[[F], F]:
        """Subscribe the decorated function to these event classes.

        ``name`` is how the inbox and dead letters know it: keep it when you rename the function.
        ``timeout`` is in seconds. ``concurrency`` bounds the calls that run at once, for a handler
        without a transaction. ``order="none"`` lets events overtake a failed one of their key.
        ``batch`` hands over lists. ``stream`` reads that stream alone. Raises DeclarationError.
        """

        def subscribe(function: F) -> F:
            handler = compile_handler(
                function,
                events,
                service=self.name,
                name=name,
                retry=retry,
                timeout=timeout,
                concurrency=concurrency,
                order=order,
                batch=batch,
                stream=stream,
            )
            if any(handler.name == other.name for other in self.handlers):
                raise DeclarationError(
                    f"service {self.name} has two handlers named {handler.name}: give one "
                    "@service.on(…, name=…)"
                )
            self.handlers.append(handler)
            return function

        return subscribe

    def provides(self, function: F) -> F:
        """Register a function whose result handlers ask for by its return type.

        It runs once, when the process starts. One that yields its value instead of returning it
        goes on after the service has drained, to clean up.
        """
        annotation = get_type_hints(function).get("return")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            annotation = next(iter(get_args(annotation)), None)
        if not isinstance(annotation, type):
            raise DeclarationError(
                f"{function.__module__}.{function.__qualname__}: annotate what it returns with a "
                "class"
            )
        self.providers.append(Provider(annotation, function))
        return function

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Change data and announce events together, from an HTTP handler.

        It commits when the block ends and is undone when the block raises. What is announced is
        durable when the block has ended; it is published soon after, broker up or not.
        """
        bound = self._running()
        unit = UnitOfWork(bound.store, bound.announcer, bound.committed)
        try:
            yield unit.transaction(origin.get())
            await unit.commit()
        finally:
            await unit.rollback()

    @property
    def stopping(self) -> bool:
        """Whether the process is being drained: answers that go on and on should end."""
        return self._running().stopping

    def changes(self, *, every: float | None = None) -> AsyncIterator[None]:
        """Return an iterator that wakes after commits of the service, for pages that are live.

        It wakes once at the beginning; at once after a commit of this process, or one of another
        replica that announced an event; within about a second after any other commit of a replica;
        and after ``every`` seconds without a commit. Commits that come while it is not awaited, or
        within a tenth of a second, are one wake-up. It does not say what has changed, if anything:
        query what is shown. It ends when the process is being drained.
        """
        return self._running().changes(every)

    async def fetch(self, sql: str, /, **parameters: Any) -> list[Row]:
        """A query on a snapshot of what is committed; holds up no one."""
        return await self._running().store.fetch(sql, parameters)

    def bind(self, bound: Bound | None) -> None:
        """Lend the service a running process's store, or take it back; the runtime calls this."""
        self._bound = bound

    def _running(self) -> Bound:
        if self._bound is None:
            raise DeclarationError(
                f"service {self.name} is not running: start it with `oyez run {self.name}`, or in "
                "a test with oyez.testing.running"
            )
        return self._bound
