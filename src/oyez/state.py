"""Keyed state: what a service remembers about one order, parcel or sensor, changed by its events.

::

    class Parcel(State, key="order_id"):
        paid: bool = False
        packed: bool = False

    @service.on(PaymentProcessed)
    async def paid(event: PaymentProcessed, parcel: Parcel) -> ShipmentReady | None:
        parcel.paid = True
        ...

The rows that a batch of events needs are loaded in one read, each event changes the object of its
key in turn, and the rows that changed are written in one statement of the handler's transaction.
From load to commit no other transaction changes them (`oyez.ports.StoreTransaction.load`), so no
change is lost, whatever the number of streams and replicas.

A row is stored as MessagePack, which, unlike JSON, holds every float and bytes as they are.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, dataclass_transform

import msgspec

from oyez.errors import DeclarationError, InvalidEvent, NewerState, StateMismatch
from oyez.event import MAX_DATA, MAX_KEY, describe
from oyez.ports import Kept, Parameters

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_ATTRIBUTE = "__oyez_state__"
_RESERVED = ("key", "delete", "keyed")

S = TypeVar("S", bound="State")

Migrate = Callable[[dict[str, Any]], dict[str, Any]]
Place = tuple[str, str]
"""A kind and a key, which identify a row."""
By = str | Callable[[Any], object]
"""The key of an event: the name of a field, or a function of the event."""


class Keyed(Protocol):
    """A kind of keyed state: how its rows become objects and objects rows."""

    @property
    def name(self) -> str:
        """The kind, by which its rows are stored."""
        ...

    def open(self, row: Kept) -> Any:
        """Return the object of a row, or a new one where the row does not exist.

        Raises NewerState and StateMismatch.
        """
        ...

    def close(self, value: Any, row: Kept) -> Kept | None:
        """Return the row as the object changed it; None if it did not.

        Raises StateMismatch for what can't be stored.
        """
        ...


class Tabled(ABC):
    """A kind of keyed state (`Keyed`) that a table of the service shows as well."""

    @abstractmethod
    def write(self, value: Any, row: Kept) -> tuple[str, Parameters]:
        """Return the statement that goes with a row that `Keyed.close` returned for the object.

        Raises StateMismatch for what the table can't hold.
        """


class Fold:
    """The keyed state of one unit of work: one object for each row, opened on its first use."""

    def __init__(self) -> None:
        self._rows: dict[Place, Kept] = {}
        self._opened: dict[Place, tuple[Keyed, Any]] = {}
        self.tables: dict[str, list[Parameters]] = {}
        """The statements, each with its parameter sets, that go with the rows that `changed`."""

    def missing(self, places: Iterable[Place]) -> list[Place]:
        """Return those of the places that have no row here, in order and each once."""
        return sorted({place for place in places if place not in self._rows})

    def add(self, rows: Iterable[Kept]) -> None:
        """Add loaded rows."""
        for row in rows:
            self._rows[row.kind, row.key] = row

    def of(self, kind: Keyed, key: str) -> Any:
        """Return the object of a loaded row. Raises what `Keyed.open` raises."""
        place = (kind.name, key)
        opened = self._opened.get(place)
        if opened is not None:
            value = opened[1]
            if not is_deleted(value):
                return value
            value = kind.open(Kept(kind=kind.name, key=key))
        else:
            value = kind.open(self._rows[place])
        self._opened[place] = (kind, value)
        return value

    def changed(self) -> list[Kept]:
        """Return the rows that changed, and fill ``tables``. Raises what `Keyed.close` raises."""
        found = []
        self.tables = {}
        for place, (kind, value) in self._opened.items():
            row = kind.close(value, self._rows[place])
            if row is not None:
                found.append(row)
                if isinstance(kind, Tabled):
                    sql, parameters = kind.write(value, row)
                    self.tables.setdefault(sql, []).append(parameters)
        return found


class Correlation(msgspec.Struct, frozen=True):
    """Which row of a kind belongs to an event."""

    kind: Keyed
    key_of: Callable[[Any, str | None], str]
    """(event, the event's own key) -> key. Raises InvalidEvent where there is none."""
    by: By | None = None
    """What the key is made of; None for the event's own key."""


def correlate(
    kind: Keyed, by: By | None, events: Sequence[type], error: Callable[[str], DeclarationError]
) -> Correlation:
    """Return how events of these classes find their row: ``by``, or else their own key.

    ``error`` makes the DeclarationError that is raised where a class lacks the field.
    """
    if by is None:
        unkeyed = [cls.__qualname__ for cls in events if describe(cls).key_field is None]
        if unkeyed:
            raise error(
                f"{', '.join(unkeyed)} has no key to find its {kind.name} by: declare the event "
                f'with key="…", or the subscription with by="field"'
            )
        return Correlation(kind, lambda event, key: _checked(key, "subject", kind.name))
    if isinstance(by, str):
        field = by
        lacking = [cls.__qualname__ for cls in events if field not in describe(cls).fields]
        if lacking:
            raise error(
                f"{', '.join(lacking)} has no field {field}, by which its {kind.name} is found: "
                'add it, or name another one with @service.on(…, by="field")'
            )
        get = attrgetter(field)
        return Correlation(
            kind, lambda event, key: _checked(get(event), f"$.{field}", kind.name), by
        )
    function = by
    return Correlation(kind, lambda event, key: _checked(function(event), "$", kind.name), by)


class StateType(msgspec.Struct, frozen=True):
    """The description of a `State` class; a `Keyed`."""

    cls: type[Any]
    name: str
    version: int
    key_field: str | None
    filled: str | None
    """The field that holds the key, if there is one."""
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    migrations: Mapping[int, Migrate]

    def new(self, key: str, **fields: Any) -> Any:
        """Return the state of a key that has none yet, with these fields."""
        if self.filled is not None:
            fields.setdefault(self.filled, key)
        value = self.cls(**fields)
        value.__dict__["key"] = key
        return value

    def open(self, row: Kept) -> Any:
        """See `Keyed.open`."""
        if row.data is None:
            return self.new(row.key)
        if row.shape > self.version:
            raise NewerState(
                f"{self.name} {row.key} has version {row.shape} and this process knows "
                f"{self.version}: replace it by the newer one"
            )
        try:
            if row.shape == self.version:
                value = self.decode(row.data)
            else:
                old: dict[str, Any] = msgspec.msgpack.decode(row.data)
                for version in range(row.shape, self.version):
                    old = self.migrations[version](old)
                value = msgspec.convert(old, self.cls)
        except msgspec.MsgspecError as error:
            raise StateMismatch(
                f"{self.name} {row.key} does not fit its class: {error}: raise its version, and "
                f"add @migrates({row.shape})"
            ) from error
        if self.filled is not None:
            setattr(value, self.filled, row.key)
        value.__dict__["key"] = row.key
        return value

    def close(self, value: Any, row: Kept) -> Kept | None:
        """See `Keyed.close`."""
        if is_deleted(value):
            if not row.version:
                return None
            return Kept(kind=row.kind, key=row.key, version=row.version)
        try:
            data = self.encode(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise StateMismatch(f"{self.name} {row.key} can't be stored: {error}") from error
        if data == row.data and row.shape == self.version:
            return None
        if len(data) > MAX_DATA:
            raise StateMismatch(
                f"{self.name} {row.key} is {len(data)} bytes; at most {MAX_DATA} are allowed"
            )
        return Kept(kind=row.kind, key=row.key, version=row.version, shape=self.version, data=data)


class Migration(msgspec.Struct, frozen=True):
    """A function that turns the fields of one version of a class into those of the next."""

    version: int
    function: Migrate


def migrates(version: int) -> Callable[[Migrate], Any]:
    """Declare, in the body of a `State`, how a row of ``version`` becomes one of the next.

    The decorated function takes and returns a ``dict`` of fields; it has no ``self``. Raises
    DeclarationError when ``version`` is below 1.
    """
    if version < 1:
        raise DeclarationError(f"@migrates({version}): expected 1 or more")

    def declare(function: Migrate) -> Migration:
        return Migration(version, function)

    return declare


class StateMeta(msgspec.StructMeta):
    """The metaclass that reads ``key``, ``version`` and ``name``, and collects `migrates`."""

    attribute = _ATTRIBUTE
    """Where a class keeps its `StateType`: each base class of keyed state has its own place."""

    def __new__(  # noqa: D102
        mcls,
        cls_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        key: str | None = None,
        version: int = 1,
        name: str | None = None,
        **options: Any,
    ) -> Any:
        found = {k: v for k, v in namespace.items() if isinstance(v, Migration)}
        namespace = {k: v for k, v in namespace.items() if k not in found}
        options.setdefault("kw_only", True)  # msgspec does not inherit it
        cls = super().__new__(mcls, cls_name, bases, namespace, **options)
        if any(isinstance(base, StateMeta) for base in bases):
            kind = _declare(cls, name or cls_name, key, version, list(found.values()))
            setattr(cls, mcls.attribute, kind)
        return cls


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class State(msgspec.Struct, metaclass=StateMeta, kw_only=True, dict=True):
    """The base class of keyed state.

    ``key`` names the field of the events that identifies the row; without it, it is the event's
    own key. A field of this name in the class itself is filled with the key. All other fields need
    a default. ``version`` counts incompatible changes of the fields, each with a `migrates`.
    ``name`` is the kind of its rows, by default the name of the class: keep it when you rename the
    class.
    """

    if TYPE_CHECKING:

        @property
        def key(self) -> str:
            """The key of this row."""
            ...

        def __init_subclass__(
            cls, *, key: str | None = None, version: int = 1, name: str | None = None
        ) -> None: ...

    def delete(self) -> None:
        """Delete the row with the commit. A later event of its key finds a new, empty one."""
        vars(self)["deleted"] = True

    @classmethod
    def keyed(cls: type[S], key: str, **fields: Any) -> S:
        """Return the state of a key with these fields: what a test passes to a handler."""
        state: S = kind_of(cls).new(key, **fields)
        return state


def kind_of(cls: type) -> StateType:
    """Return the `StateType` of a class. Raises DeclarationError for any other class."""
    found: StateType | None = vars(cls).get(_ATTRIBUTE)
    if found is None:
        raise DeclarationError(
            f"{cls.__module__}.{cls.__qualname__} is not keyed state: subclass oyez.State"
        )
    return found


def redefine(cls: type, kind: StateType) -> None:
    """Give a class another `StateType`: for a metaclass whose classes declare more than fields."""
    setattr(cls, _ATTRIBUTE, kind)


def is_state(cls: object) -> bool:
    """Return whether it is a subclass of `State`."""
    return isinstance(cls, type) and _ATTRIBUTE in vars(cls)


def _declare(
    cls: type, name: str, key: str | None, version: int, migrations: list[Migration]
) -> StateType:
    place = f"{cls.__module__}.{cls.__qualname__}"
    if not _NAME.fullmatch(name):
        raise DeclarationError(
            f"{place}: name={name!r}: expected a letter, then up to 99 letters, digits, '_', '.' "
            "or '-'"
        )
    if version < 1:
        raise DeclarationError(f"{place}: version={version}: expected 1 or more")
    try:
        decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(cls).decode
    except (TypeError, NameError) as error:
        raise DeclarationError(f"{place}: its fields can't be stored: {error}") from error
    fields = msgspec.structs.fields(cls)
    filled = next((field.name for field in fields if field.name == key), None)
    for field in fields:
        if field.name in _RESERVED:
            raise DeclarationError(f"{place}: field {field.name}: Oyez uses this name itself")
        if field.required and field.name != filled:
            raise DeclarationError(
                f"{place}: field {field.name} has no default: state begins without an event"
            )
        if field.name == filled and field.type is not str:
            raise DeclarationError(f"{place}: field {filled} holds the key, which is a str")
    known = {each.version: each.function for each in migrations}
    lacking = [number for number in range(1, version) if number not in known]
    if lacking:
        raise DeclarationError(
            f"{place}: version={version}: add @migrates({lacking[0]}), under a name of its own, "
            f"which turns the fields of version {lacking[0]} into those of {lacking[0] + 1}"
        )
    unused = sorted(number for number in known if number >= version)
    if unused:
        raise DeclarationError(
            f"{place}: @migrates({unused[0]}) leads beyond its version: set version={unused[0] + 1}"
        )
    encode = msgspec.msgpack.Encoder().encode
    return StateType(cls, name, version, key, filled, encode, decode, known)


def _checked(key: object, field: str, kind: str) -> str:
    if key is None:
        raise InvalidEvent(field, f"is null, and {kind} is found by it")
    text = key if type(key) is str else str(key)
    if not 0 < len(text) <= MAX_KEY or not text.isprintable():
        raise InvalidEvent(
            field, f"expected 1 to {MAX_KEY} printable characters, by which {kind} is found"
        )
    return text


def is_deleted(value: Any) -> bool:
    """Return whether it is keyed state whose row is to be deleted."""
    return isinstance(value, State) and "deleted" in value.__dict__
