"""The kinds of parameters that a handler may have: one class for each.

A kind recognizes its annotations, declares what it needs and the source of its values, and refuses
a wrong declaration. `oyez.handler` calls it when a handler is declared and when its process starts,
and compiles the sources into one flat expression, so that a call costs nothing here. `register`
adds a kind.
"""

from __future__ import annotations

import collections.abc
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast, get_args, get_origin
from uuid import NAMESPACE_URL, uuid5

import msgspec

from oyez.envelope import Envelope
from oyez.errors import DeclarationError
from oyez.event import is_event
from oyez.logger import Logger
from oyez.state import By, Correlation, correlate, is_state, kind_of
from oyez.transaction import After, Transaction

_SEQUENCES = (list, collections.abc.Sequence, collections.abc.Iterable)


class Context:
    """The envelope, the attempt and the identity of one call of a handler."""

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
        """The number of attempts that the retry policy allows."""

    @property
    def last_attempt(self) -> bool:
        """Whether the event becomes a dead letter if this attempt fails."""
        return self.attempt >= self.attempts

    @property
    def idempotency_key(self) -> str:
        """The idempotency key: the same for all attempts of one event in one handler, else unique.

        Pass it to calls outside the store (a payment, an e-mail).
        """
        event = self.envelope
        return str(uuid5(NAMESPACE_URL, f"{event.source}|{event.id}|{self.service}|{self.handler}"))

    @property
    def authid(self) -> str | None:
        """Who sent the request that the event results from, such as ``key:ci``; None if unknown.

        It informs, and proves nothing: whoever may write to the broker may have made it up.
        """
        return self.envelope.authid

    @property
    def authtype(self) -> str | None:
        """How that is known, such as ``api_key``, ``app_user`` or ``unauthenticated``."""
        return self.envelope.authtype

    @property
    def replayed(self) -> bool:
        """Whether the event is reprocessed by ``oyez replay``."""
        return self.envelope.replayed is not None

    @property
    def logger(self) -> Logger:
        """A logger that names service, handler, event and correlation on every line."""
        return Logger(
            service=self.service,
            handler=self.handler,
            event_id=self.envelope.id,
            correlation_id=self.envelope.correlationid,
        )


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter of a signature, with what is known of its handler."""

    place: str
    """The function: its module and qualified name."""
    handler: str
    """The handler: ``service.name``."""
    name: str
    annotation: object
    """None for a parameter without an annotation."""
    events: tuple[type, ...]
    """The event classes that the handler subscribes to."""
    batch: bool
    blocking: bool
    """Whether the handler is a plain ``def``, which runs on a thread."""
    by: By | None = None
    """The key of the handler's keyed state, if it is not the one that the state names."""

    def error(self, problem: str) -> DeclarationError:
        """Return the error that names function and parameter; ``problem`` names the remedy."""
        return DeclarationError(f"{self.place}: parameter {self.name}: {problem}")


class Input(msgspec.Struct, frozen=True):
    """A source: one of the inputs of a call (event or events, transaction, context)."""

    name: Literal["event", "tx", "context"]


class Fixed(msgspec.Struct, frozen=True):
    """A source: one value for all calls."""

    value: object


class Made(msgspec.Struct, frozen=True):
    """A source: a value made for each call from (event or events, transaction, context)."""

    make: Callable[[Any, Transaction, Context | None], object]


class Opened(msgspec.Struct, frozen=True):
    """A source: a context manager around each call, in the call's transaction.

    ``open`` returns an async context manager for an ``async def``, a plain one for a plain ``def``.
    """

    open: Callable[[Transaction], Any]


Source = Input | Fixed | Made | Opened


class Parameter(ABC):
    """One parameter of one handler; each kind of parameter is a subclass."""

    word: ClassVar[str]
    """A word for the kind, for listings."""
    transactional: ClassVar[bool] = False
    """Whether the handler has to run inside the lane's transaction."""
    reads: ClassVar[bool] = False
    """Whether the handler may read the service's tables in that transaction."""
    contextual: ClassVar[bool] = False
    """Whether each call needs a `Context`."""

    def __init__(self, declared: Declared) -> None:
        self.declared = declared

    @classmethod
    @abstractmethod
    def takes(cls, declared: Declared) -> bool:
        """Return whether a parameter so declared is of this kind."""

    @property
    def filled_by(self) -> object:
        """The kind's word, or the type that the service has to provide."""
        return self.word

    @property
    def correlation(self) -> Correlation | None:
        """The keyed state that each call needs, and its key; None for most kinds."""
        return None

    def check(self, siblings: Sequence[Parameter]) -> None:  # noqa: B027 - most have no rule
        """Check it among all parameters of its handler. Raises DeclarationError."""

    @abstractmethod
    def source(self, provided: Mapping[type, object]) -> Source:
        """Return where its values come from; ``provided`` is what the service provides, by type.

        Raises DeclarationError when what it needs is not provided.
        """


class EventParameter(Parameter):
    """The event: its class, or a union of all classes subscribed to."""

    word = "event"

    @classmethod
    def takes(cls, declared: Declared) -> bool:
        """Return whether it is annotated so or, without an annotation, named so."""
        if declared.annotation is None:
            return declared.name == "event" and not declared.batch
        return any(map(is_event, _members(declared.annotation)))

    def check(self, siblings: Sequence[Parameter]) -> None:
        """Check that it is one event and accepts every class subscribed to."""
        if self.declared.batch:
            raise self.declared.error("batch=True hands over a list: annotate it list[…]")
        self._check_classes(self.declared.annotation)

    def source(self, provided: Mapping[type, object]) -> Source:
        return Input("event")

    def _check_classes(self, annotation: object) -> None:
        declared = self.declared
        missing = [c.__qualname__ for c in declared.events if c not in _members(annotation)]
        if annotation is not None and missing:
            raise declared.error(
                f"does not take {', '.join(missing)}, which the handler subscribes to"
            )


class EventsParameter(EventParameter):
    """The events of a batch handler: a list of what `EventParameter` accepts."""

    @classmethod
    def takes(cls, declared: Declared) -> bool:
        """Return whether it is annotated so or, without an annotation, named so."""
        if declared.annotation is None:
            return declared.batch and declared.name in ("event", "events")
        return any(map(is_event, _members(_element(declared.annotation))))

    def check(self, siblings: Sequence[Parameter]) -> None:
        """Check that the handler takes batches, and the list every class subscribed to."""
        if not self.declared.batch:
            raise self.declared.error("is a list: set batch=True")
        self._check_classes(_element(self.declared.annotation))


class TransactionParameter(Parameter):
    """The lane's `Transaction`, for the key of the event."""

    word = "tx"
    transactional = True
    reads = True

    @classmethod
    def takes(cls, declared: Declared) -> bool:
        return declared.annotation is Transaction

    def source(self, provided: Mapping[type, object]) -> Source:
        return Input("tx")


class AfterParameter(Parameter):
    """The `After` of a handler without a transaction."""

    word = "after"

    @classmethod
    def takes(cls, declared: Declared) -> bool:
        return declared.annotation is After

    def check(self, siblings: Sequence[Parameter]) -> None:
        """Check that the handler runs beside the lane, for one event at a time."""
        if any(each.transactional for each in siblings):
            raise self.declared.error(
                "After is for a handler without a transaction: write and publish with the one it "
                "has, and remove this parameter"
            )
        if self.declared.batch:
            raise self.declared.error(
                "a batch is not handled beside the lane: ask for Transaction, or leave out batch"
            )

    def source(self, provided: Mapping[type, object]) -> Source:
        return Made(lambda event, tx, context: After(tx))


class ContextParameter(Parameter):
    """The `Context` of the event."""

    word = "context"
    contextual = True

    @classmethod
    def takes(cls, declared: Declared) -> bool:
        return declared.annotation is Context

    def check(self, siblings: Sequence[Parameter]) -> None:
        """Check that there is one event."""
        if self.declared.batch:
            raise self.declared.error("a batch handler has no single Context: remove it")

    def source(self, provided: Mapping[type, object]) -> Source:
        return Input("context")


class SessionParameter(Parameter):
    """SQLAlchemy's session in the lane's transaction; see `oyez.sqlalchemy`."""

    word = "session"
    transactional = True
    reads = True

    # By name, so that SQLAlchemy is imported only where it is used; whether it blocks its thread.
    _BLOCKS: ClassVar[Mapping[object, bool]] = {
        ("sqlalchemy.ext.asyncio.session", "AsyncSession"): False,
        ("sqlalchemy.orm.session", "Session"): True,
    }

    @classmethod
    def takes(cls, declared: Declared) -> bool:
        """Return whether it is annotated with the session class itself, not a subclass."""
        return _full_name(declared.annotation) in cls._BLOCKS

    def check(self, siblings: Sequence[Parameter]) -> None:
        """Check that the session suits the function, and that SQLAlchemy is installed."""
        declared = self.declared
        if self._BLOCKS[_full_name(declared.annotation)] is not declared.blocking:
            raise declared.error(
                "an async def takes SQLAlchemy's AsyncSession, a plain def its Session"
            )
        try:
            import oyez.sqlalchemy  # noqa: F401 - greenlet, for one, may be missing
        except ImportError as error:
            raise declared.error(
                f"is a SQLAlchemy session, but {error.name} is missing: "
                "pip install 'oyez[sqlalchemy]'"
            ) from error

    def source(self, provided: Mapping[type, object]) -> Source:
        from oyez.sqlalchemy import session, session_on_thread

        return Opened(session_on_thread if self.declared.blocking else session)


class StateParameter(Parameter):
    """The keyed state of the event: a subclass of `oyez.State`."""

    word = "state"
    transactional = True

    def __init__(self, declared: Declared) -> None:
        super().__init__(declared)
        self._kind = kind_of(cast(type, declared.annotation))

    @classmethod
    def takes(cls, declared: Declared) -> bool:
        return is_state(declared.annotation)

    @property
    def correlation(self) -> Correlation:
        declared = self.declared
        by = declared.by if declared.by is not None else self._kind.key_field
        return correlate(self._kind, by, declared.events, declared.error)

    def check(self, siblings: Sequence[Parameter]) -> None:
        """Check that there is one event, with a key, and no second parameter of the kind."""
        if self.declared.batch:
            raise self.declared.error("events of a batch have no single key: leave out batch")
        for other in siblings:
            if isinstance(other, StateParameter) and other is not self and other.named(self):
                raise self.declared.error(f"{self._kind.name} is there twice: remove one of them")
        _ = self.correlation

    def under(self, name: str) -> StateParameter:
        """Return it with its rows kept under another kind, of that name."""
        other = StateParameter(self.declared)
        other._kind = msgspec.structs.replace(self._kind, name=name)
        return other

    def named(self, other: StateParameter) -> bool:
        """Return whether it is of the same kind of state."""
        return self._kind.name == other._kind.name

    def source(self, provided: Mapping[type, object]) -> Source:
        correlation = self.correlation
        kind, key_of = correlation.kind, correlation.key_of
        return Made(lambda event, tx, context: tx.unit.states.of(kind, key_of(event, tx.key)))


class FoldedParameter(Parameter):
    """The object of a saga's, a window's or a view's row, in the handler that is made for it."""

    transactional = True

    def __init__(self, declared: Declared, correlation: Correlation) -> None:
        super().__init__(declared)
        self._correlation = correlation

    @classmethod
    def takes(cls, declared: Declared) -> bool:
        """Return False: `oyez.handler.compile_fold` alone makes one."""
        return False

    @property
    def correlation(self) -> Correlation:
        """The row that each event belongs to."""
        return self._correlation

    def source(self, provided: Mapping[type, object]) -> Source:
        """Return the object of the event's row, as `given` makes it."""
        kind, key_of, given = self._correlation.kind, self._correlation.key_of, self.given

        def make(event: Any, tx: Transaction, context: Context | None) -> object:
            return given(tx.unit.states.of(kind, key_of(event, tx.key)), tx, context)

        return Made(make)

    def given(self, value: Any, tx: Transaction, context: Context | None) -> object:
        """Return what the handler gets: the object itself, or more in a subclass."""
        return value


class ProvidedParameter(Parameter):
    """A value that the service provides: any other class."""

    word = "provided"

    @classmethod
    def takes(cls, declared: Declared) -> bool:
        return isinstance(declared.annotation, type)

    @property
    def filled_by(self) -> object:
        return self.declared.annotation

    def source(self, provided: Mapping[type, object]) -> Source:
        wanted = self.declared.annotation
        assert isinstance(wanted, type)
        if wanted not in provided:
            raise DeclarationError(
                f"{self.declared.handler} asks for {wanted.__qualname__}, which nothing "
                "provides: add a @service.provides function that returns it"
            )
        return Fixed(provided[wanted])


_kinds: list[type[Parameter]] = [
    EventParameter,
    EventsParameter,
    TransactionParameter,
    AfterParameter,
    ContextParameter,
    SessionParameter,
    StateParameter,
    ProvidedParameter,
]
"""The kinds in the order of precedence; the last accepts every remaining class."""


def register(kind: type[Parameter]) -> None:
    """Add a kind of parameter, for the handlers that are declared from now on.

    Call it in the module of the class that users annotate with. The kind comes after those that
    exist, and before the kind of classes that the service provides.
    """
    _kinds.insert(-1, kind)


def recognize(declared: Declared) -> Parameter:
    """Return the parameter as an instance of its kind. Raises DeclarationError when it has none."""
    for kind in _kinds:
        if kind.takes(declared):
            return kind(declared)
    if declared.annotation is None:
        raise declared.error("needs a type annotation")
    raise declared.error(
        "expected the event, Transaction, After, Context, a State or a class that the service "
        "provides, "
        f"found {declared.annotation!r}"
    )


def _members(annotation: object) -> tuple[object, ...]:
    """Return the members of a union, else the annotation."""
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _element(annotation: object) -> object:
    """Return the element type of a list; None for anything else."""
    if get_origin(annotation) not in _SEQUENCES:
        return None
    (element,) = get_args(annotation)
    return element


def _full_name(annotation: object) -> tuple[str, str] | None:
    if not isinstance(annotation, type):
        return None
    return annotation.__module__, annotation.__qualname__
