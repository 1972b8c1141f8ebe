"""Declares a typed event: its data as a frozen record, its type, version and key.

An event class is any of::

    class OrderPlaced(Event, type="shop.order.placed", key="order_id"):
        order_id: str
        total_cents: int

    @event(type="shop.order.placed", key="order_id")
    @dataclass(frozen=True)              # or an attrs class, or a pydantic model
    class OrderPlaced: ...

A *command* asks one service for something, where an event tells everybody of something::

    class Charge(Command, type="shop.payment.charge", key="order_id", to="payments"):
        order_id: str
        cents: int

A consumer declares its own class with only the fields it needs, under the same ``type``: fields it
does not declare are ignored when an event is decoded.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, dataclass_transform

import msgspec
from msgspec.structs import force_setattr

from oyez.errors import DeclarationError, InvalidEvent

MAX_DATA = 1_048_576
"""Encoded data above this many bytes is refused at the publisher."""
MAX_KEY = 512
"""A longer key (characters) is refused at the publisher."""

SERVICE = re.compile(r"[a-z][a-z0-9-]{0,40}")
"""The name of a service."""

_TYPE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,198}[A-Za-z0-9])?")
_ATTRIBUTE = "__oyez_event_type__"
_UPCASTS = "__oyez_upcasts__"
_NAMED = "__oyez_named__"

T = TypeVar("T")
Upcast: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes the data of one version of an event that of the next."""


class EventType(msgspec.Struct, frozen=True):
    """The description of an event class: its name, stream, key, encoder, decoder and fields."""

    cls: type[Any]
    name: str
    version: int
    key_field: str | None
    stream: str | None
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    fields: tuple[str, ...]
    to: str | None = None
    """The service that a command asks; None for an event."""
    dataschema: str = ""
    """The contract and its version as a URN: the CloudEvents attribute ``dataschema``."""

    def __post_init__(self) -> None:
        force_setattr(self, "dataschema", f"urn:oyez:{self.name}:{self.version}")

    @property
    def upcasts(self) -> Mapping[int, Upcast]:
        """What was declared by `upcast`, by the version of the data that each takes."""
        found: dict[int, Upcast] = vars(self.cls).get(_UPCASTS, {})
        return MappingProxyType(found)

    def key(self, event: object) -> str | None:
        """Return the event's key as text, or None for a type without one.

        Raises InvalidEvent when the key is empty or longer than ``MAX_KEY`` characters.
        """
        if self.key_field is None:
            return None
        value = getattr(event, self.key_field)
        if value is None:
            raise InvalidEvent(f"$.{self.key_field}", "is the key: it can't be null")
        key = value if type(value) is str else str(value)
        if not key or len(key) > MAX_KEY:
            raise InvalidEvent(
                f"$.{self.key_field}", f"is the key: 1 to {MAX_KEY} characters, found {len(key)}"
            )
        return key


class EventMeta(msgspec.StructMeta):
    """The metaclass that reads ``type``, ``key``, ``version``, ``stream`` and ``to``."""

    def __new__(  # noqa: D102
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        type: str | None = None,  # noqa: A002
        key: str | None = None,
        version: int = 1,
        stream: str | None = None,
        to: str | None = None,
        **options: Any,
    ) -> Any:
        options.setdefault("kw_only", True)  # msgspec does not inherit it
        cls = super().__new__(mcls, name, bases, namespace, **options)
        named: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            named |= vars(base).get(_NAMED, {})
        own = {"key": key, "stream": stream, "to": to}
        named |= {word: value for word, value in own.items() if value is not None}
        setattr(cls, _NAMED, named)
        if type is not None:
            key, stream, to = named.get("key"), named.get("stream"), named.get("to")
            place = f"{cls.__module__}.{cls.__qualname__}"
            if to is None and issubclass(cls, Command):
                raise DeclarationError(
                    f'{place}: a Command asks one service: name it with to="…", or subclass Event'
                )
            if to is not None and not issubclass(cls, Command):
                raise DeclarationError(
                    f"{place}: to={to!r}: an event is for everybody: subclass oyez.Command"
                )
            _declare(cls, type, key, version, stream, to)
        return cls


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, metaclass=EventMeta, frozen=True, kw_only=True):
    """The base class of events.

    ``type`` names the fact in the system's language, past tense (``shop.order.placed``). ``key``
    names the field that orders events: events of one key are handled in publish order.
    ``version`` is the contract's major version. ``stream`` is the only stream that a consumer
    reads for the type; by default it reads every stream of the system.

    A class without a ``type`` is no event, but a base of some: they have its fields, and what it
    names (``key``, ``stream`` and a command's ``to``), unless they name another.
    """

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            type: str | None = None,  # noqa: A002
            key: str | None = None,
            version: int = 1,
            stream: str | None = None,
        ) -> None: ...


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Command(Event):
    """The base class of commands: what one service, ``to``, is asked to do.

    ``type`` is in the imperative (``shop.payment.charge``); the other arguments are those of
    `Event`. A command is published in the stream of the service that asks, so commands and events
    of one key that it publishes arrive in their order. Handlers of other services do not get it.
    """

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            to: str | None = None,
            type: str | None = None,  # noqa: A002
            key: str | None = None,
            version: int = 1,
            stream: str | None = None,
        ) -> None: ...


def event(
    *,
    type: str,  # noqa: A002
    key: str | None = None,
    version: int = 1,
    stream: str | None = None,
    to: str | None = None,
) -> Callable[[type[T]], type[T]]:
    """Declare a dataclass, attrs class or pydantic model as an event; arguments as in `Event`.

    With ``to`` it is a command, as in `Command`. Raises DeclarationError when the class can't be
    one.
    """

    def declare(cls: Any) -> Any:
        _declare(cls, type, key, version, stream, to)
        return cls

    return declare


def upcast(cls: type, *, since: int) -> Callable[[Upcast], Upcast]:
    """Declare how data of version ``since`` of an event becomes that of the next version.

    The function takes the decoded data, may change it, and returns it; it is pure, and a plain
    ``def``. Data of an old version goes through all of them, from its own version up to that of the
    class; where there is none for a version, data stays as it is. Raises DeclarationError.
    """
    kind = describe(cls)
    place = f"{cls.__module__}.{cls.__qualname__}"
    if not 1 <= since < kind.version:
        raise DeclarationError(
            f"{place}: upcast(since={since}): expected a version before that of the class, "
            f"{kind.version}: declare it with version={since + 1}"
        )

    def declare(function: Upcast) -> Upcast:
        if inspect.iscoroutinefunction(function):
            raise DeclarationError(f"{place}: upcast(since={since}): expected def, not async def")
        declared = dict(kind.upcasts)
        if since in declared:
            raise DeclarationError(f"{place}: upcast(since={since}) is declared twice")
        setattr(cls, _UPCASTS, declared | {since: function})
        return function

    return declare


def describe(cls: type) -> EventType:
    """Return the `EventType` of an event class. Raises DeclarationError for any other class."""
    # A parent's declaration does not count: decoding would return the parent's class.
    found: EventType | None = vars(cls).get(_ATTRIBUTE)
    if found is None:
        raise DeclarationError(
            f"{cls.__module__}.{cls.__qualname__} is not an event: subclass oyez.Event with "
            'type="…", or decorate it with @oyez.event(type="…")'
        )
    return found


def is_event(cls: object) -> bool:
    """Return whether the class was declared as an event."""
    return isinstance(cls, type) and _ATTRIBUTE in vars(cls)


def attach(cls: type, kind: EventType) -> None:
    """Make a class an event of this kind, which holds how it is encoded; for `oyez.opaque`."""
    setattr(cls, _ATTRIBUTE, kind)


def _declare(
    cls: type, name: str, key: str | None, version: int, stream: str | None, to: str | None
) -> None:
    place = f"{cls.__module__}.{cls.__qualname__}"
    if not _TYPE.fullmatch(name):
        raise DeclarationError(
            f"{place}: type={name!r}: expected 1 to 200 letters, digits, '.', '_', '-' or '/'"
        )
    if version < 1:
        raise DeclarationError(f"{place}: version={version}: expected 1 or more")
    if to is not None and not SERVICE.fullmatch(to):
        raise DeclarationError(
            f"{place}: to={to!r}: expected the name of a service: one of a-z, then up to 40 of "
            "a-z, 0-9 and '-'"
        )
    try:
        fields, encode, decode = _codec(cls, place)
    except (TypeError, NameError) as error:
        raise DeclarationError(
            f"{place}: its fields can't be encoded and decoded: {error}"
        ) from error
    if key is not None and key not in fields:
        raise DeclarationError(f"{place}: key={key!r} is not a field; fields: {', '.join(fields)}")
    attach(cls, EventType(cls, name, version, key, stream, encode, decode, fields, to))


def _codec(
    cls: type, place: str
) -> tuple[tuple[str, ...], Callable[[Any], bytes], Callable[[bytes], Any]]:
    encoder = msgspec.json.Encoder()
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_fields__, encoder.encode, msgspec.json.Decoder(cls).decode
    if dataclasses.is_dataclass(cls):
        names = tuple(field.name for field in dataclasses.fields(cls))
        return names, encoder.encode, msgspec.json.Decoder(cls).decode
    if hasattr(cls, "__attrs_attrs__"):
        names = tuple(field.name for field in cls.__attrs_attrs__)
        return names, encoder.encode, msgspec.json.Decoder(cls).decode
    if hasattr(cls, "model_validate_json"):
        model: Any = cls

        def encode_model(value: Any) -> bytes:
            text: str = value.model_dump_json()
            return text.encode()

        def decode_model(data: bytes) -> Any:
            try:
                return model.model_validate_json(data)
            except ValueError as error:
                raise msgspec.ValidationError(str(error)) from error

        return tuple(model.model_fields), encode_model, decode_model
    raise DeclarationError(
        f"{place}: expected a subclass of oyez.Event, a dataclass, an attrs class or a pydantic "
        "model"
    )
