"""Handlers, compiled once: the signature is read when a handler is declared, not per event."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any, get_args, get_type_hints

import msgspec

from oyez.errors import DeclarationError
from oyez.event import EventType, describe, is_event
from oyez.parameters import (
    Context,
    Declared,
    EventParameter,
    Fixed,
    FoldedParameter,
    Input,
    Made,
    Opened,
    Parameter,
    recognize,
)
from oyez.partitioning import is_own
from oyez.schedule import Schedule
from oyez.state import By, Correlation
from oyez.timers import MADE_HERE
from oyez.transaction import Transaction


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """The retry policy of a handler.

    ``attempts`` counts the first one too. The wait before the second is ``first`` seconds, each
    later one ``factor`` times longer, up to ``longest`` seconds, each varied at random by the
    share ``jitter``. Exceptions not listed in ``on`` are not retried, nor are Oyez's permanent
    errors.
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


Call = Callable[[Any, Transaction, Context | None], Any]
"""A handler with its parameters in place: (event or events, transaction, context) -> result."""


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled subscription: its event types, its policies and its call."""

    service: str
    name: str
    events: tuple[EventType, ...]
    publishes: tuple[EventType, ...]
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    transactional: bool
    """Whether it runs inside the lane's transaction; otherwise it runs beside it, concurrently."""
    needs_context: bool
    """Whether a `Context` must be made for each call."""
    states: tuple[Correlation, ...]
    """The keyed state that is loaded before each call."""
    reads: bool
    """Whether it may read the service's tables in that transaction."""
    retry: Retry
    timeout: float | None
    concurrency: int
    ordered: bool
    batch: bool
    blocking: bool
    """A plain ``def``: it runs on a thread."""
    generator: bool
    stream: str | None
    replay: str | None = None
    """``safe``: `oyez replay` may call it again, since that changes nothing; else None."""
    allow: Mapping[str, str]
    """The rules of `oyez topology --check` that it may break, by code, with the reason."""
    schedule: Schedule | None = None
    """When it runs; None for a handler of events."""
    waits: bool = False
    """Whether its timers wait until all that was published before their time is handled."""

    @property
    def layout(self) -> tuple[object, ...]:
        """Return the filler of each parameter; see `Parameter.filled_by`."""
        return tuple(each.filled_by for each in self.parameters)

    def subscribes(self, stream: str, system: str) -> bool:
        """Return whether it reads this stream: the one it names, else all of its system.

        A handler of nothing but timers reads none.
        """
        if all(kind.name in MADE_HERE for kind in self.events):
            return False
        if self.stream is None:
            return stream.startswith(f"{system}.") and not is_own(stream)
        return stream == self.stream

    def wants(self, event_type: str, stream: str, system: str) -> bool:
        """Return whether it is called for an event of this type in this stream."""
        return self.subscribes(stream, system) and any(
            kind.name == event_type for kind in self.events
        )

    def bind(self, provided: Mapping[type, object]) -> Call:
        """Return the flat call, with what the service provides already in place.

        Raises DeclarationError when nothing provides one of the parameter types.
        """
        # One expression of the inputs of a call and the constants of this handler, compiled once.
        constants: dict[str, object] = {"function": self.function}
        opens: list[Opened] = []
        taken = ["event", "tx", "context"]
        arguments: list[str] = []
        for index, parameter in enumerate(self.parameters):
            match parameter.source(provided):
                case Input(name):
                    arguments.append(name)
                case Fixed(value):
                    constants[f"fixed{index}"] = value
                    arguments.append(f"fixed{index}")
                case Made(make):
                    constants[f"make{index}"] = make
                    arguments.append(f"make{index}(event, tx, context)")
                case Opened() as opened:
                    opens.append(opened)
                    taken.append(f"opened{index}")
                    arguments.append(f"opened{index}")
        source = f"lambda {', '.join(taken)}: function({', '.join(arguments)})"
        call: Call = eval(source, constants)  # noqa: S307 - made of the names above alone
        if opens:
            return _within(opens, call, blocking=self.blocking, generator=self.generator)
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
    by: By | None = None,
    replay: str | None = None,
    allow: Mapping[str, str] | None = None,
) -> Handler:
    """Compile a handler from its signature. Raises DeclarationError naming the remedy."""
    place = f"{function.__module__}.{function.__qualname__}"
    kinds = tuple(describe(cls) for cls in events)
    if not kinds:
        raise DeclarationError(f"{place}: @service.on() needs at least one event class")
    if order not in ("key", "none"):
        raise DeclarationError(f'{place}: order: expected "key" or "none", found {order!r}')
    if replay not in (None, "safe"):
        raise DeclarationError(f'{place}: replay: expected "safe" or None, found {replay!r}')
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
    asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    known_as = name or str(getattr(function, "__name__", "handler"))
    parameters = tuple(
        recognize(
            Declared(
                place=place,
                handler=f"{service}.{known_as}",
                name=_positional(parameter, place),
                annotation=hints.get(parameter.name),
                events=tuple(events),
                batch=batch,
                blocking=not asynchronous,
                by=by,
            )
        )
        for parameter in inspect.signature(function).parameters.values()
    )
    for each in parameters:
        each.check(parameters)
    if sum(isinstance(each, EventParameter) for each in parameters) != 1:
        raise DeclarationError(f"{place}: expected exactly one parameter for the event")
    states = tuple(each.correlation for each in parameters if each.correlation is not None)
    if by is not None and not states:
        raise DeclarationError(
            f"{place}: by={by!r}: it finds keyed state, and no parameter is a State"
        )
    if stream is None:
        streams = {kind.stream for kind in kinds}
        if len(streams) > 1:
            raise DeclarationError(
                f"{place}: its events name different streams: subscribe to them one by one"
            )
        (stream,) = streams
    return Handler(
        service=service,
        name=known_as,
        events=kinds,
        publishes=published_types(hints.get("return")),
        function=function,
        parameters=parameters,
        transactional=any(each.transactional for each in parameters),
        needs_context=any(each.contextual for each in parameters),
        states=states,
        reads=any(each.reads for each in parameters),
        retry=retry or Retry(),
        timeout=timeout,
        concurrency=concurrency,
        ordered=order == "key",
        batch=batch,
        blocking=not asynchronous,
        generator=inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function),
        stream=stream,
        replay=replay,
        allow=dict(allow or {}),
    )


def compile_fold(
    function: Callable[[Any, Any], Any],
    events: Sequence[EventType],
    folded: type[FoldedParameter],
    correlation: Correlation,
    *,
    declared_by: type,
    service: str,
    publishes: Sequence[EventType] = (),
    retry: Retry | None = None,
    timeout: float | None = None,
    stream: str | None = None,
    allow: Mapping[str, str] | None = None,
    waits: bool = False,
) -> Handler:
    """Compile ``async function(event, folded)``, the one handler of a saga, a window or a view.

    It bears the name of the kind of its rows. ``declared_by`` is the user's class, where `inspect`
    finds it declared.
    """
    declared = Declared(
        place=f"{declared_by.__module__}.{declared_by.__qualname__}",
        handler=f"{service}.{correlation.kind.name}",
        name="event",
        annotation=None,
        events=tuple(kind.cls for kind in events),
        batch=False,
        blocking=False,
    )
    vars(function)["__wrapped__"] = declared_by
    return Handler(
        service=service,
        name=correlation.kind.name,
        events=tuple(events),
        publishes=tuple(publishes),
        function=function,
        parameters=(EventParameter(declared), folded(declared, correlation)),
        transactional=True,
        needs_context=folded.contextual,
        states=(correlation,),
        reads=False,
        retry=retry or Retry(),
        timeout=timeout,
        concurrency=32,
        ordered=True,
        batch=False,
        blocking=False,
        generator=False,
        stream=stream,
        allow=dict(allow or {}),
        waits=waits,
    )


def published_types(annotation: object) -> tuple[EventType, ...]:
    """Return the event types named anywhere in a return annotation."""
    if isinstance(annotation, type) and is_event(annotation):
        return (describe(annotation),)
    found: list[EventType] = []
    for part in get_args(annotation):
        found.extend(published_types(part))
    return tuple(dict.fromkeys(found))


def _positional(parameter: inspect.Parameter, place: str) -> str:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
        raise DeclarationError(
            f"{place}: parameter {parameter.name}: only plain positional parameters are filled"
        )
    return parameter.name


def _within(
    opens: Sequence[Opened], call: Callable[..., Any], *, blocking: bool, generator: bool
) -> Call:
    """``call(event, tx, context, *opened)`` as a call that opens them itself."""
    if blocking and generator:

        def generate(event: object, tx: Any, context: object) -> Any:
            with ExitStack() as stack:
                opened = [stack.enter_context(each.open(tx)) for each in opens]
                yield from call(event, tx, context, *opened)

        return generate
    if blocking:

        def run(event: object, tx: Any, context: object) -> Any:
            with ExitStack() as stack:
                opened = [stack.enter_context(each.open(tx)) for each in opens]
                return call(event, tx, context, *opened)

        return run
    if generator:

        async def generate_async(event: object, tx: Any, context: object) -> Any:
            async with AsyncExitStack() as stack:
                opened = [await stack.enter_async_context(each.open(tx)) for each in opens]
                async for item in call(event, tx, context, *opened):
                    yield item

        return generate_async

    async def run_async(event: object, tx: Any, context: object) -> Any:
        async with AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(each.open(tx)) for each in opens]
            return await call(event, tx, context, *opened)

    return run_async
