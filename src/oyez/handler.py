"""A handler, compiled once: its signature is read when it is declared, never while events flow."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints
from uuid import NAMESPACE_URL, uuid5

import msgspec
import structlog

from oyez.envelope import Envelope
from oyez.errors import DeclarationError
from oyez.event import EventType, describe, is_event
from oyez.transaction import Transaction

_SESSIONS = {
    ("sqlalchemy.ext.asyncio.session", "AsyncSession"): False,
    ("sqlalchemy.orm.session", "Session"): True,
}
"""SQLAlchemy's sessions, known by name so that it need not be loaded: whether each one blocks."""
_SEQUENCES = (list, collections.abc.Sequence, collections.abc.Iterable)


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When a handler that failed runs again.

    ``attempts`` in all, the first one included; the wait before the second is ``first`` seconds,
    each later one ``factor`` times longer, up to ``longest`` seconds, each spread at random by the
    share ``jitter``. Exceptions outside of ``on`` are not retried, nor are Oyez's permanent errors.
    """

    attempts: int = 5
    first: float = 0.5
    factor: float = 2.0
    longest: float = 300.0
    jitter: float = 0.1
    on: tuple[type[BaseException], ...] = (Exception,)

    def __post_init__(self) -> None:
        for field, good, allowed in (
            ("attempts", self.attempts >= 1, "1 or more"),
            ("first", self.first >= 0, "0 seconds or more"),
            ("factor", self.factor >= 1, "1 or more"),
            ("longest", self.longest >= 0, "0 seconds or more"),
            ("jitter", 0 <= self.jitter <= 1, "0 to 1"),
        ):
            if not good:
                found = getattr(self, field)
                raise DeclarationError(f"Retry: {field}: expected {allowed}, found {found}")


class Context:
    """What is known of the event that is being handled, beside its data."""

    __slots__ = ("attempt", "attempts", "envelope", "handler", "service")

    def __init__(
        self, envelope: Envelope, service: str, handler: str, attempt: int, attempts: int
    ) -> None:
        self.envelope = envelope
        self.service = service
        self.handler = handler
        self.attempt = attempt
        """The number of this attempt, from 1."""
        self.attempts = attempts
        """How many attempts the retry policy allows."""

    @property
    def last_attempt(self) -> bool:
        """Whether the event becomes a dead letter if this attempt fails."""
        return self.attempt >= self.attempts

    @property
    def idempotency_key(self) -> str:
        """One and the same for every attempt of this event in this handler, and for no other.

        Give it to whatever is called outside the store (a payment, an e-mail).
        """
        event = self.envelope
        return str(uuid5(NAMESPACE_URL, f"{event.source}|{event.id}|{self.service}|{self.handler}"))

    @property
    def replayed(self) -> bool:
        """Whether history is being reprocessed; see ``oyez replay``."""
        return self.envelope.replayed is not None

    @property
    def logger(self) -> structlog.typing.FilteringBoundLogger:
        """A logger that names service, handler, event and correlation on every line."""
        logger: structlog.typing.FilteringBoundLogger = structlog.get_logger().bind(
            service=self.service,
            handler=self.handler,
            event_id=self.envelope.id,
            correlation_id=self.envelope.correlationid,
        )
        return logger


Call = Callable[[Any, Transaction | None, Context | None], Any]
"""A handler with its parameters in place: (event or events, transaction, context) -> result."""


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled subscription: what it reacts to, under which policies, and how it is called."""

    service: str
    name: str
    events: tuple[EventType, ...]
    publishes: tuple[EventType, ...]
    function: Callable[..., Any]
    layout: tuple[object, ...]
    """Per parameter "event", "tx", "context", "session", or a type that the service provides."""
    retry: Retry
    timeout: float | None
    concurrency: int
    ordered: bool
    batch: bool
    blocking: bool
    """A plain ``def``: it runs on a thread."""
    generator: bool
    stream: str | None

    @property
    def transactional(self) -> bool:
        """Whether it runs inside the lane's transaction; else it runs beside it, concurrently."""
        return "tx" in self.layout or "session" in self.layout

    @property
    def needs_context(self) -> bool:
        """Whether a `Context` must be made for each call."""
        return "context" in self.layout

    def reads(self, stream: str, system: str) -> bool:
        """Whether it reads this stream: the one it names, else all of its system."""
        if self.stream is None:
            return stream.startswith(f"{system}.")
        return stream == self.stream

    def wants(self, event_type: str, stream: str, system: str) -> bool:
        """Whether it is called for an event of this type that stands in this stream."""
        return self.reads(stream, system) and any(kind.name == event_type for kind in self.events)

    def bind(self, provided: Mapping[type, object]) -> Call:
        """The flat call, with what the service provides already in place.

        Raises DeclarationError when nothing provides one of the parameter types.
        """
        function = self.function
        match self.layout:
            case ("event",):
                return lambda event, tx, context: function(event)
            case ("event", "tx"):
                return lambda event, tx, context: function(event, tx)
            case ("event", "context"):
                return lambda event, tx, context: function(event, context)
            case ("event", "tx", "context"):
                return lambda event, tx, context: function(event, tx, context)
        # Anything else: one expression over the three arguments and the constants, made once.
        constants: dict[str, object] = {"function": function}
        arguments = []
        for index, item in enumerate(self.layout):
            if isinstance(item, str):
                arguments.append(item)
                continue
            assert isinstance(item, type)
            if item not in provided:
                raise DeclarationError(
                    f"{self.service}.{self.name} asks for {item.__qualname__}, which nothing "
                    f"provides: add a @service.provides function that returns it"
                )
            constants[f"given{index}"] = provided[item]
            arguments.append(f"given{index}")
        given = "event, tx, context, session" if "session" in self.layout else "event, tx, context"
        source = f"lambda {given}: function({', '.join(arguments)})"
        call: Call = eval(source, constants)  # noqa: S307 - made of the names above alone
        if "session" in self.layout:
            from oyez.stores.sqlalchemy import with_session

            return with_session(call, blocking=self.blocking, generator=self.generator)
        return call


def compile_handler(
    function: Callable[..., Any],
    events: Sequence[type],
    *,
    service: str,
    name: str | None = None,
    retry: Retry | None = None,
    timeout: float | None = 30.0,
    concurrency: int = 32,
    order: str = "key",
    batch: bool = False,
    stream: str | None = None,
) -> Handler:
    """Read the signature once and check it. Raises DeclarationError saying what to change."""
    place = f"{function.__module__}.{function.__qualname__}"
    kinds = tuple(describe(cls) for cls in events)
    if not kinds:
        raise DeclarationError(f"{place}: @service.on() needs at least one event class")
    if order not in ("key", "none"):
        raise DeclarationError(f'{place}: order: expected "key" or "none", found {order!r}')
    if concurrency < 1:
        raise DeclarationError(f"{place}: concurrency: expected 1 or more, found {concurrency}")
    if timeout is not None and timeout <= 0:
        raise DeclarationError(f"{place}: timeout: expected seconds above 0, found {timeout}")
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise DeclarationError(
            f"{place}: its annotations can't be resolved ({error}): import the types at the top "
            "of the module"
        ) from error
    layout = tuple(
        _role(parameter, hints.get(parameter.name), events, batch, place)
        for parameter in inspect.signature(function).parameters.values()
    )
    asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if "session" in layout:
        _check_sessions(hints, blocking=not asynchronous, place=place)
    if layout.count("event") != 1:
        raise DeclarationError(f"{place}: expected exactly one parameter for the event")
    if batch and "context" in layout:
        raise DeclarationError(f"{place}: a batch handler has no single Context: remove it")
    if stream is None:
        streams = {kind.stream for kind in kinds}
        if len(streams) > 1:
            raise DeclarationError(
                f"{place}: its events name different streams: subscribe to them one by one"
            )
        (stream,) = streams
    return Handler(
        service=service,
        name=name or str(getattr(function, "__name__", "handler")),
        events=kinds,
        publishes=published_types(hints.get("return")),
        function=function,
        layout=layout,
        retry=retry or Retry(),
        timeout=timeout,
        concurrency=concurrency,
        ordered=order == "key",
        batch=batch,
        blocking=not asynchronous,
        generator=inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function),
        stream=stream,
    )


def published_types(annotation: object) -> tuple[EventType, ...]:
    """The event types named anywhere in a return annotation."""
    if isinstance(annotation, type) and is_event(annotation):
        return (describe(annotation),)
    found: list[EventType] = []
    for part in get_args(annotation):
        found.extend(published_types(part))
    return tuple(dict.fromkeys(found))


def _role(
    parameter: inspect.Parameter,
    annotation: object,
    events: Sequence[type],
    batch: bool,
    place: str,
) -> object:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
        raise DeclarationError(
            f"{place}: parameter {parameter.name}: only plain positional parameters are filled"
        )
    if annotation is Transaction:
        return "tx"
    if annotation is Context:
        return "context"
    if _session_blocks(annotation) is not None:
        return "session"
    if annotation is None:
        if parameter.name == "event" or (batch and parameter.name == "events"):
            return "event"
        raise DeclarationError(f"{place}: parameter {parameter.name} needs a type annotation")
    wanted = _members(annotation, batch)
    if any(is_event(cls) for cls in wanted):
        missing = [cls.__qualname__ for cls in events if cls not in wanted]
        if missing:
            raise DeclarationError(
                f"{place}: parameter {parameter.name} does not take {', '.join(missing)}, "
                "which it subscribes to"
            )
        return "event"
    if isinstance(annotation, type):
        return annotation
    if get_origin(annotation) in _SEQUENCES:
        raise DeclarationError(f"{place}: parameter {parameter.name} is a list: say batch=True")
    raise DeclarationError(
        f"{place}: parameter {parameter.name}: expected the event, Transaction, Context or a class "
        f"that the service provides, found {annotation!r}"
    )


def _session_blocks(annotation: object) -> bool | None:
    """Whether the session of this class blocks its thread; None for any other annotation."""
    if not isinstance(annotation, type):
        return None
    return _SESSIONS.get((annotation.__module__, annotation.__qualname__))


def _check_sessions(hints: Mapping[str, object], *, blocking: bool, place: str) -> None:
    for name, hint in hints.items():
        if _session_blocks(hint) is (not blocking):
            raise DeclarationError(
                f"{place}: parameter {name}: an async def takes SQLAlchemy's AsyncSession, "
                "a plain def its Session"
            )
    try:
        import oyez.stores.sqlalchemy  # noqa: F401 - greenlet, for one, may be missing
    except ImportError as error:
        raise DeclarationError(
            f"{place}: asks for a SQLAlchemy session, but {error.name} is missing: "
            "pip install 'oyez[sqlalchemy]'"
        ) from error


def _members(annotation: object, batch: bool) -> tuple[Any, ...]:
    if batch:
        if get_origin(annotation) not in _SEQUENCES:
            return ()
        (annotation,) = get_args(annotation)
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)
