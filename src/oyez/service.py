"""A service: its handlers with their policies, what it provides to them, and its HTTP side."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, get_args, get_type_hints, overload

import msgspec

from oyez import tables
from oyez.errors import DeclarationError, Stale
from oyez.event import SERVICE, EventType, describe
from oyez.freshness import Known, age, known_from, pending, stale_here
from oyez.handler import Handler, Retry, compile_handler
from oyez.ports import Changes, Kept, Row, Store
from oyez.saga import Saga
from oyez.saga_handler import compile_saga
from oyez.schedule import Missed, Tick, schedule
from oyez.state import By, Keyed, S, kind_of
from oyez.transaction import Announcer, Transaction, UnitOfWork, committed_here, origin
from oyez.view import View, ViewType, compile_view, is_view, view_of
from oyez.window import Window, compile_window

if TYPE_CHECKING:
    from oyez.reads import Reads

F = TypeVar("F", bound=Callable[..., Any])
V = TypeVar("V", bound=type[View])

R = TypeVar("R", bound=View)

POLL = 0.025
"""Seconds between two looks for an event that another replica may have applied."""
G = TypeVar("G", bound=Saga)


class Bound(Protocol):
    """The running process of a service, as the service uses it."""

    store: Store
    announcer: Announcer
    stopping: bool

    def committed(self, changes: Changes) -> None:
        """Wake the iterators of `Service.changes` after a commit."""
        ...

    def changes(self, every: float | None) -> AsyncIterator[None]:
        """Return the iterator of `Service.changes`."""
        ...

    async def wait(self, seconds: float) -> None:
        """Wait for a commit of this process, at most that many seconds."""
        ...

    async def staleness(self, kind: ViewType, version: int) -> float:
        """Return the seconds that a version of a view is behind; see `Service.staleness`."""
        ...

    async def redrive(self, letters: Sequence[int], who: str, why: str) -> int:
        """Redrive dead letters and return how many were; see `Service.redrive`."""
        ...


class Provider(msgspec.Struct, frozen=True):
    """A function whose result, one per process, is passed to handler parameters of its type."""

    provides: type
    function: Callable[..., Any]
    """Returns the value, or yields it once and then cleans up; plain or async."""


class Backfill(msgspec.Struct, frozen=True):
    """A function that returns what a service has as events, some keys at a time."""

    event: EventType
    function: Callable[[Transaction, str], Awaitable[Sequence[object]]]


class Service:
    """A service: an independently deployed process with its own store, handlers and HTTP side.

    ``http`` is any ASGI app, served on the address that ``oyez.toml`` gives; a service that only
    shows what it has needs none (`get`, `live`). ``migrations`` is a folder of numbered SQL files,
    relative to the project, each run once. ``publishes`` names events that the HTTP side publishes,
    for the topology.
    """

    def __init__(
        self,
        name: str,
        *,
        http: Any = None,
        migrations: str | None = None,
        publishes: tuple[type, ...] = (),
    ) -> None:
        if not SERVICE.fullmatch(name):
            raise DeclarationError(
                f"service name {name!r}: expected one of a-z, then up to 40 of a-z, 0-9 and '-'"
            )
        self.name = name
        self.http = http
        self.migrations = migrations
        self.handlers: list[Handler] = []
        self.kinds: dict[str, Keyed] = {}
        """The kinds of keyed state that its handlers change, by name."""
        self.views: dict[ViewType, Handler] = {}
        """Its views, each with the handler that applies their events."""
        self.backfills: dict[str, Backfill] = {}
        """What it can announce anew, by type of event."""
        self.providers: list[Provider] = []
        self._publishes = tuple(describe(cls) for cls in publishes)
        self._reads: Reads | None = None
        self._bound: Bound | None = None

    @property
    def publishes(self) -> tuple[EventType, ...]:
        """The event types that this service is declared to publish."""
        found = list(self._publishes)
        for handler in self.handlers:
            found.extend(handler.publishes)
        found.extend(each.event for each in self.backfills.values())
        return tuple({kind.name: kind for kind in found}.values())

    @property
    def subscriptions(self) -> list[Handler]:
        """Its handlers, and those that apply the events of its views."""
        return [*self.handlers, *self.views.values()]

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
        by: By | None = None,
        replay: str | None = None,
        allow: Mapping[str, str] | None = None,
    ) -> Callable[[F], F]:
        """Subscribe the decorated function to these event classes.

        ``name`` identifies the handler in inbox and dead letters: keep it when you rename the
        function. ``timeout`` is in seconds. ``concurrency`` limits the concurrent calls of a
        handler without a transaction. With ``order="none"`` events may overtake a failed one of
        their key. ``batch`` passes lists of events. ``stream`` is the only stream to read.
        ``by`` is the key of its `State`: the name of a field, or a function of the event; by
        default what the `State` names. ``replay="safe"`` lets `oyez replay` call it again for
        events that it has handled: whatever it did for them, doing it twice changes nothing.
        ``allow`` permits it to break rules of `oyez topology --check`, with the reason. Raises
        DeclarationError.
        """

        if Tick in events:
            raise DeclarationError(
                f"service {self.name}: ticks are made by schedules: subscribe with "
                '@service.every("0 6 * * *")'
            )

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
                by=by,
                replay=replay,
                allow=allow,
            )
            self._add(handler)
            return function

        return subscribe

    @overload
    def view(self, cls: V, *, allow: Mapping[str, str] | None = None) -> V: ...

    @overload
    def view(self, *, allow: Mapping[str, str] | None = None) -> Callable[[V], V]: ...

    def view(self, cls: Any = None, *, allow: Mapping[str, str] | None = None) -> Any:
        """Keep a view: its table, its positions and its rows. Usable as a decorator.

        ``allow`` is as for `on`. Raises DeclarationError.
        """
        if cls is None:
            return partial(self.view, allow=allow)
        kind = view_of(cls)
        if any(kind.view == other.view for other in self.views):
            raise DeclarationError(
                f"service {self.name} has two views named {kind.view}: give one another table"
            )
        self.views[kind] = compile_view(kind, self.name, allow)
        return cls

    def every(
        self,
        cron: str | None = None,
        *,
        seconds: float | None = None,
        tz: str | None = None,
        missed: Missed = "once",
        name: str | None = None,
        retry: Retry | None = None,
        timeout: float | None = 30.0,
        allow: Mapping[str, str] | None = None,
    ) -> Callable[[F], F]:
        """Call the decorated function with a `Tick` at these times: once for all replicas.

        ``cron`` has five fields (minute, hour, day of month, month, day of week) in the time zone
        ``tz``, by default UTC; or else ``seconds`` is the interval, counted from 1970. Of ticks
        that were missed, since no process ran, ``missed`` calls it ``"once"`` for all of them, for
        ``"all"`` one by one, or for none (``"skip"``). ``name`` identifies the schedule: keep it
        when you rename the function. The rest is as for `on`. Raises DeclarationError.
        """

        def subscribe(function: F) -> F:
            handler = compile_handler(
                function,
                [Tick],
                service=self.name,
                name=name,
                retry=retry,
                timeout=timeout,
                allow=allow,
            )
            place = f"{function.__module__}.{function.__qualname__}"
            times = schedule(place, handler.name, cron, seconds, tz, missed)
            self._add(msgspec.structs.replace(handler, schedule=times))
            return function

        return subscribe

    def window(
        self,
        cls: type[Window],
        *events: type,
        time: str | None = None,
        by: By | None = None,
        retry: Retry | None = None,
        stream: str | None = None,
        allow: Mapping[str, str] | None = None,
    ) -> None:
        """Add these events to the windows of a class, and publish what its methods return.

        ``time`` is the field with the time of an event, a datetime or a number of seconds since
        1970; by default it is the time of publishing. ``by`` is the key of the window, if not the
        one that the class names: a field, or a function of the event. The name of the class
        identifies the window in the store: pass it ``name`` when you rename the class. The other
        arguments are those of `on`. Raises DeclarationError.
        """
        self._add(
            compile_window(
                cls,
                events,
                service=self.name,
                time=time,
                by=by,
                retry=retry,
                stream=stream,
                allow=allow,
            )
        )

    @overload
    def saga(self, cls: type[G], *, allow: Mapping[str, str] | None = None) -> type[G]: ...

    @overload
    def saga(self, *, allow: Mapping[str, str] | None = None) -> Callable[[type[G]], type[G]]: ...

    def saga(self, cls: Any = None, *, allow: Mapping[str, str] | None = None) -> Any:
        """Run a `Saga` in this service; decorates its class.

        Its handler has the saga's name. ``allow`` is as for `on`. Raises DeclarationError.
        """
        if cls is None:
            return partial(self.saga, allow=allow)
        self._add(compile_saga(cls, self.name, allow))
        return cls

    def backfill(self, event: type) -> Callable[[F], F]:
        """Offer what the service has as events of this class, to services that lack its history.

        The decorated ``async def function(tx, after) -> list[event]`` returns some of them, such as
        the next 500, in the order of their keys and behind the key ``after``, which is empty at
        first; none at the end. `oyez backfill` walks it, each part in one transaction, and
        announces them to the one service that asked. Raises DeclarationError.
        """
        kind = describe(event)

        def offer(function: F) -> F:
            place = f"{function.__module__}.{function.__qualname__}"
            if not inspect.iscoroutinefunction(function):
                raise DeclarationError(f"{place}: a backfill is an async def")
            if len(inspect.signature(function).parameters) != 2:
                raise DeclarationError(
                    f"{place}: a backfill takes two parameters: (tx: Transaction, after: str)"
                )
            if kind.key_field is None:
                raise DeclarationError(
                    f"{place}: {kind.name} has no key, by which a backfill is walked"
                )
            if kind.name in self.backfills:
                raise DeclarationError(
                    f"service {self.name} has two backfills of {kind.name}: leave one"
                )
            self.backfills[kind.name] = Backfill(kind, function)
            return function

        return offer

    def provides(self, function: F) -> F:
        """Register a function that provides handler parameters of its return type.

        It runs once, when the process starts. A function that yields its value instead is resumed
        after the service has drained, to clean up within what is left of the grace and two seconds.
        A class provides itself: it is called without arguments.
        """
        annotation = _provided_by(function)
        if not isinstance(annotation, type):
            raise DeclarationError(
                f"{function.__module__}.{function.__qualname__}: annotate what it returns with a "
                "class"
            )
        self.providers.append(Provider(annotation, function))
        return function

    def get(self, path: str) -> Callable[[F], F]:
        """Answer ``GET path`` on the HTTP side with the JSON of what the function returns.

        The decorated ``async def`` takes the parts of the path that are named in braces, each a
        str. None is answered with 404. Raises DeclarationError, also for a service with an app of
        its own (``http``): that has routes.
        """

        def show(function: F) -> F:
            self._showing().get(path, function)
            return function

        return show

    def live(self, path: str, *, pause: float = 0.5) -> Callable[[F], F]:
        """Show what the function returns live on the HTTP side, as server-sent events.

        It is called after commits (`changes`), for each that follows the page, and not again within
        ``pause`` seconds; its JSON is sent when it has changed. The rest is as for `get`. Behind
        the gateway the route needs ``stream = true``. Raises DeclarationError.
        """

        def show(function: F) -> F:
            self._showing().live(path, function, pause)
            return function

        return show

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Open a transaction for an HTTP handler: writes and events in one commit.

        It commits when the block ends and rolls back when the block raises. After the block its
        events are durable in the outbox, and are published as soon as the broker is in reach.
        """
        bound = self._running()
        unit = UnitOfWork(bound.store, bound.announcer, bound.committed)
        try:
            yield unit.transaction(origin.get())
            await unit.commit()
            told = committed_here.get()
            if told is not None:
                told += unit.changes.announced
        finally:
            await unit.rollback()

    @property
    def stopping(self) -> bool:
        """Whether the process is draining: end endless HTTP responses."""
        return self._running().stopping

    def changes(self, *, every: float | None = None) -> AsyncIterator[None]:
        """Return an iterator that yields after commits of the service, for live pages.

        It yields once at the beginning; at once after a commit of this process, or a commit of
        another replica that published an event; within about a second after any other commit of a
        replica; and after ``every`` seconds without a commit. Commits while it is not awaited, or
        within a tenth of a second, are combined. It yields no description of the change: query the
        data again. It ends when the process drains.
        """
        return self._running().changes(every)

    async def fetch(self, sql: str, /, **parameters: Any) -> list[Row]:
        """Query a snapshot of the committed data; blocks no transaction."""
        return await self._running().store.fetch(sql, parameters)

    @overload
    async def read(self, cls: type[S], key: str) -> S | None: ...

    @overload
    async def read(
        self, cls: type[R], key: str, *, after: str = "", wait: float = 2.0, strict: bool = True
    ) -> R | None: ...

    async def read(
        self,
        cls: type[Any],
        key: str,
        *,
        after: str = "",
        wait: float = 2.0,
        strict: bool = True,
    ) -> Any:
        """Return a copy of the committed state, or the row of a view, of a key, or None.

        Changes of it are not written. ``after`` is the header ``Oyez-After`` of an earlier answer:
        the view is read when it has applied the events named there, for which it waits up to
        ``wait`` seconds. After that it raises Stale or, unless ``strict``, returns the row as it
        is; the answer to the request says so in the header ``Oyez-Stale``. Raises InvalidEvent for
        any other text in ``after``, and StateMismatch for a row of another version that does not
        fit the class.
        """
        if is_view(cls):
            kind = view_of(cls)
            version = await self._await_view(kind, known_from(after), wait, strict)
            row = await self._kept(kind.of(version), key)
            return None if row is None else kind.read(version, row)
        state = kind_of(cls)
        row = await self._kept(state.name, key)
        return None if row is None else state.open(row)

    async def caught_up(
        self, cls: type[View], *, after: str, wait: float = 2.0, strict: bool = True
    ) -> None:
        """Wait until a view has applied the events named in ``after``, then `fetch` from it.

        The arguments, and what is raised, are those of `read`.
        """
        await self._await_view(view_of(cls), known_from(after), wait, strict)

    async def staleness(self, cls: type[View]) -> float:
        """Return how many seconds the active version of a view is behind, whoever reads for it.

        It is the age of the oldest event in its streams that the view applies and has not applied
        yet, at most; 0 means that there is none. It asks the broker: seldom, not for each request.
        Raises BrokerError, also where the broker keeps no history, StoreError, and HistoryMissing
        for a view that can't be filled.
        """
        bound, kind = self._running(), self._kind_of_view(cls)
        return await bound.staleness(kind, await self._active(kind))

    async def redrive(self, letters: Sequence[int], *, who: str, why: str = "") -> int:
        """Redrive dead letters, by their ids in ``oyez_dead``; return how many were redriven.

        For whoever asks on the service's HTTP side: the audit names ``who``, and ``why``. What
        `oyez dead redrive` would refuse stays dead. Raises StoreError.
        """
        return await self._running().redrive(letters, who, why)

    def _kind_of_view(self, cls: type[View]) -> ViewType:
        kind = view_of(cls)
        if kind not in self.views:
            raise DeclarationError(
                f"service {self.name} does not keep the view {kind.view}: add "
                f"service.view({kind.cls.__qualname__})"
            )
        return kind

    async def _active(self, kind: ViewType) -> int:
        name = {"name": f"oyez:view:{kind.view}"}
        rows = await self._running().store.fetch(tables.ACTIVE, name)
        return int(rows[0]["version"]) if rows else kind.version

    async def _await_view(
        self, kind: ViewType, known: Sequence[Known], wait: float, strict: bool
    ) -> int:
        """Return the view's active version, once it has applied these events. Raises Stale."""
        bound = self._running()
        self._kind_of_view(kind.cls)
        ambient = bound.announcer.ambient
        types = {event.name for event in self.views[kind].events}
        pend = pending(known, types, ambient.now())
        end = ambient.monotonic() + wait
        while True:
            version = await self._active(kind)
            reader = kind.of(version)
            pend = [event for event in pend if not await self._applied(event, reader)]
            if not pend:
                return version
            left = end - ambient.monotonic()
            if left <= 0:
                behind = max(wait, age(pend, ambient.now()))
                told = stale_here.get()
                if told is not None:
                    told.append(behind)
                if strict:
                    raise Stale(kind.view, wait, behind)
                return version
            await bound.wait(min(left, POLL))

    async def _applied(self, event: Known, reader: str) -> bool:
        asked = {"reader": reader, "event_id": event.id, "source": event.source}
        (row,) = await self._running().store.fetch(tables.APPLIED, asked)
        return bool(row["applied"])

    async def _kept(self, kind: str, key: str) -> Kept | None:
        rows = await self._running().store.fetch(tables.STATE, {"kind": kind, "key": key})
        return Kept(kind=kind, key=key, **rows[0]) if rows else None

    def attach(self, bound: Bound) -> None:
        """Attach the service to a running process; for the runtime."""
        self._bound = bound

    def detach(self, bound: Bound) -> None:
        """Let go of a process that ends, unless another has taken its place; for the runtime."""
        if self._bound is bound:
            self._bound = None

    def _showing(self) -> Reads:
        if self._reads is None:
            if self.http is not None:
                raise DeclarationError(
                    f"service {self.name} has an HTTP app of its own (http=…): add a route there"
                )
            from oyez.reads import Reads  # a service that shows nothing starts without it

            self._reads = self.http = Reads(self.name, lambda every: self.changes(every=every))
        return self._reads

    def _add(self, handler: Handler) -> None:
        if any(handler.name == other.name for other in self.handlers):
            raise DeclarationError(
                f"service {self.name} has two handlers named {handler.name}: give one "
                "@service.on(…, name=…)"
            )
        for each in handler.states:
            known = self.kinds.setdefault(each.kind.name, each.kind)
            if known is not each.kind:
                raise DeclarationError(
                    f"service {self.name} has two kinds of state named {each.kind.name}: give "
                    "one class(State, name=…)"
                )
        self.handlers.append(handler)

    def _running(self) -> Bound:
        if self._bound is None:
            raise DeclarationError(
                f"service {self.name} is not running: start it with `oyez run {self.name}`, or in "
                "a test with oyez.testing.running"
            )
        return self._bound


def _provided_by(function: Callable[..., Any]) -> Any:
    if isinstance(function, type):
        return function
    annotation = get_type_hints(function).get("return")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return next(iter(get_args(annotation)), None)
    return annotation
