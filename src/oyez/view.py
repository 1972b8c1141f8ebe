"""Views: read copies of what other services told, one row for each order, customer or sensor.

::

    class CustomerOrders(View, table="customer_orders", key="order_id", version=2,
                         index=("customer_id",)):
        order_id: str
        customer_id: str = ""
        status: str = "placed"

        @applies
        def placed(self, event: OrderPlaced) -> None:
            self.take(event)

        @applies
        def erased(self, event: OrderErased) -> Gone:
            return GONE

    service.view(CustomerOrders)
    rows = await service.fetch("select * from customer_orders where customer_id = :c", c="4711")

A view is a pure function of the history: its methods change one row and can't do anything else, so
it can be filled again from the beginning at any time. Each version has a table of its own
(``customer_orders__2``), made from the class; the SQL view ``customer_orders`` shows the version
that is active.

A row is folded from its keyed state of the kind ``view:customer_orders@2``, as MessagePack, and
written to the table by the same commit. So it is locked, loaded and versioned as all keyed state
is, on every store, and every value is read back as it was, whatever a column can hold.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    TypeVar,
    dataclass_transform,
    get_type_hints,
    overload,
)

import msgspec
from msgspec import inspect as types

from oyez.errors import DeclarationError, StateMismatch
from oyez.event import MAX_DATA, EventType, describe, is_event
from oyez.handler import Handler, Retry, compile_fold
from oyez.parameters import FoldedParameter
from oyez.ports import Kept, Parameters
from oyez.state import By, Correlation, Tabled, correlate

F = TypeVar("F", bound=Callable[..., Any])

_ATTRIBUTE = "__oyez_view__"
_TABLE = re.compile(r"(?!oyez_)(?!.*__)[a-z][a-z0-9_]{0,39}")
_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,49}")
_RESERVED = ("take",)
_LARGEST = (1 << 63) - 1
_MAX_NAME = 63


class Gone(Enum):
    """The type of `GONE`."""

    GONE = "gone"


GONE: Final = Gone.GONE
"""What a method of a view returns to delete its row."""


class Applies(msgspec.Struct, frozen=True):
    """A method of a view that `applies` marked, and what of its event names the row."""

    function: Callable[..., Any]
    by: By | None = None


@overload
def applies(function: F) -> F: ...
@overload
def applies(*, by: By | None = None) -> Callable[[F], F]: ...
def applies(function: Callable[..., Any] | None = None, *, by: By | None = None) -> Any:
    """Mark a method of a `View` as the one for the class of event that it takes.

    It changes the row (``self``) and returns None, or `GONE` to delete it. ``by`` is the field of
    the event that holds the row's key, by default of the same name as the view's; or a function of
    the event that returns the key, a str.
    """
    if function is not None:
        return Applies(function)
    return lambda decorated: Applies(decorated, by)


class Column(msgspec.Struct, frozen=True):
    """A column of a view's table: the name of its field, its SQL type and what it holds."""

    name: str
    type: str
    """A type that PostgreSQL has and SQLite understands."""
    holds: Literal["value", "integer", "text", "json"]
    """The value itself, an integer of at most 64 bits, the value's text, or its JSON."""

    def value(self, value: Any) -> Any:
        """Return the value for the column. Raises ValueError for one that it can't hold."""
        if value is None or self.holds == "value":
            return value
        if self.holds == "integer":
            if type(value) is not int:
                value = msgspec.to_builtins(value)
            if not -_LARGEST - 1 <= value <= _LARGEST:
                raise ValueError(f"{self.name}: a column holds integers of 64 bits")
            return value
        if self.holds == "text":
            return str(msgspec.to_builtins(value))
        return msgspec.json.encode(value).decode()


class Method(msgspec.Struct, frozen=True):
    """What a view does with one class of event."""

    event: type
    function: Callable[[Any, Any], Any]
    by: By


class Entry:
    """The row of a view in a unit of work, or its absence."""

    __slots__ = ("_kind", "key", "row")

    def __init__(self, kind: ViewType, key: str, row: Any) -> None:
        self._kind = kind
        self.key = key
        self.row = row
        """The row, or None."""

    def apply(self, event: object) -> None:
        """Change, add or delete the row as the event says."""
        row = apply(self._kind, self.row, event, self.key)
        self.row = None if row is GONE else row


class ViewType(Tabled):
    """The description of a `View` class; a kind of keyed state with a table."""

    def __init__(
        self,
        cls: type[Any],
        table: str,
        version: int,
        key_field: str,
        columns: tuple[Column, ...],
        indexes: tuple[tuple[str, ...], ...],
        methods: Mapping[type, Method],
    ) -> None:
        self.cls = cls
        self.view = table
        """The SQL view that shows the active version."""
        self.version = version
        self.name = self.of(version)
        """The kind of its rows, the reader of its positions and inbox, and the handler."""
        self.table = f"{table}__{version}"
        """The table of this version."""
        self.key_field = key_field
        self.columns = columns
        self.indexes = indexes
        self.methods = methods
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(cls).decode
        self._taken: dict[type, tuple[str, ...]] = {}
        self._names = names = [column.name for column in columns]
        self._converted = [column for column in columns if column.holds != "value"]
        update = ", ".join(f'"{name}" = excluded."{name}"' for name in names if name != key_field)
        self._upsert = (
            f"insert into {self.table} ({_quoted(names)})"
            f" values (:{', :'.join(names)})"
            f' on conflict ("{key_field}") do {f"update set {update}" if update else "nothing"}'
        )
        self._delete = f'delete from {self.table} where "{key_field}" = :{key_field}'

    def of(self, version: int) -> str:
        """Return what `name` is for another version of the view."""
        return f"view:{self.view}@{version}"

    @property
    def events(self) -> tuple[type, ...]:
        """The classes of events that it applies."""
        return tuple(self.methods)

    def new(self, key: str) -> Any:
        """Return a row that no event has changed yet."""
        return self.cls(**{self.key_field: key})

    def open(self, row: Kept) -> Entry:
        """See `Keyed.open`."""
        if row.data is None:
            return Entry(self, row.key, None)
        try:
            return Entry(self, row.key, self._decode(row.data))
        except msgspec.MsgspecError as error:
            raise StateMismatch(
                f"{self.view} {row.key} does not fit its class: {error}: raise the view's version, "
                "so that it is filled again"
            ) from error

    def read(self, version: int, row: Kept) -> Any:
        """Return the row of a version of the view; fields that only the class has are defaults.

        Raises StateMismatch for one that does not fit the class.
        """
        if version == self.version:
            return self.open(row).row
        try:
            return msgspec.convert(msgspec.msgpack.decode(row.data or b""), self.cls)
        except msgspec.MsgspecError as error:
            raise StateMismatch(
                f"version {version} of {self.view} is the active one, and {row.key} does not fit "
                f"version {self.version}, which is still being filled: {error}"
            ) from error

    def close(self, value: Entry, row: Kept) -> Kept | None:
        """See `Keyed.close`."""
        if value.row is None:
            if not row.version:
                return None
            return Kept(kind=row.kind, key=row.key, version=row.version)
        try:
            data = self._encode(value.row)
            if data == row.data:
                return None
            self._decode(data)  # what can't be read back would stop the view later, and for good
        except (TypeError, ValueError, OverflowError) as error:
            raise StateMismatch(f"{self.view} {row.key} can't be stored: {error}") from error
        if len(data) > MAX_DATA:
            raise StateMismatch(
                f"{self.view} {row.key} is {len(data)} bytes; at most {MAX_DATA} are allowed"
            )
        return Kept(kind=row.kind, key=row.key, version=row.version, shape=1, data=data)

    def write(self, value: Entry, row: Kept) -> tuple[str, Parameters]:
        """See `Tabled.write`."""
        if value.row is None:
            return self._delete, {self.key_field: row.key}
        return self._upsert, self.values(value.row)

    def values(self, row: Any) -> dict[str, Any]:
        """Return the columns of a row. Raises StateMismatch for what they can't hold."""
        try:
            found = {name: getattr(row, name) for name in self._names}
            for column in self._converted:
                found[column.name] = column.value(found[column.name])
            return found
        except (TypeError, ValueError) as error:
            key = getattr(row, self.key_field)
            raise StateMismatch(f"{self.view} {key} can't be stored: {error}") from error

    def taken(self, event: type) -> tuple[str, ...]:
        """Return the fields that `View.take` copies from an event of this class."""
        found = self._taken.get(event)
        if found is None:
            names = describe(event).fields
            mine = (each.name for each in self.columns if each.name != self.key_field)
            found = self._taken[event] = tuple(name for name in mine if name in names)
        return found

    # -- SQL ---------------------------------------------------------------------------------------

    def migrations(self) -> list[tuple[str, str]]:
        """Return what creates table and indexes, for `Store.migrate`: (name, SQL)."""
        columns = ", ".join(
            f'"{each.name}" {each.type}' + (" primary key" if each.name == self.key_field else "")
            for each in self.columns
        )
        mark = f"oyez:{self.name}"
        scripts = [(mark, f"create table {self.table} ({columns})")]
        for fields in self.indexes:
            index = f"{self.table}__{'_'.join(fields)}"
            sql = f"create index {index} on {self.table} ({_quoted(fields)})"
            scripts.append((f"{mark} ({', '.join(fields)})", sql))
        return scripts


def apply(kind: ViewType, row: Any, event: object, key: str | None = None) -> Any:
    """Return the row after an event, or `GONE`; ``row`` is None where there is none yet.

    A row that is given is changed in place. ``key`` is that of a new row, by default the event's.
    Raises what the view's method raises.
    """
    method = kind.methods[type(event)]
    if row is None:
        if key is None:
            by = method.by
            key = str(getattr(event, by) if isinstance(by, str) else by(event))
        row = kind.new(key)
    answer = method.function(row, event)
    if answer is None:
        return row
    if answer is GONE:
        return GONE
    raise TypeError(
        f"{kind.cls.__qualname__}.{method.function.__name__} returned {type(answer).__name__}: "
        "expected None or GONE"
    )


class ViewMeta(msgspec.StructMeta):
    """The metaclass that reads ``table``, ``key``, ``version`` and ``index``."""

    def __new__(  # noqa: D102
        mcls,
        cls_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        table: str | None = None,
        key: str | None = None,
        version: int = 1,
        index: Sequence[str | tuple[str, ...]] = (),
        **options: Any,
    ) -> Any:
        found = {k: v for k, v in namespace.items() if isinstance(v, Applies)}
        namespace = {k: v.function if k in found else v for k, v in namespace.items()}
        options.setdefault("kw_only", True)  # msgspec does not inherit it
        cls = super().__new__(mcls, cls_name, bases, namespace, **options)
        if any(isinstance(base, ViewMeta) for base in bases):
            setattr(cls, _ATTRIBUTE, _declare(cls, table, key, version, index, found))
        return cls


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class View(msgspec.Struct, metaclass=ViewMeta, kw_only=True):
    """The base class of views; its fields are the columns of a row.

    ``table`` names the SQL view to read, ``key`` the field that identifies a row, in the class and
    in its events. All other fields need a default. Raise ``version`` with every change of a field
    or of what a method does: the view is then filled again beside the old one. ``index`` names the
    columns, or tuples of columns, that have an index.
    """

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            table: str,
            key: str,
            version: int = 1,
            index: Sequence[str | tuple[str, ...]] = (),
        ) -> None: ...

    def take(self, event: object) -> None:
        """Copy the fields that the event and the row both have, but for the key."""
        for name in view_of(type(self)).taken(type(event)):
            setattr(self, name, getattr(event, name))


def view_of(cls: type) -> ViewType:
    """Return the `ViewType` of a class. Raises DeclarationError for any other class."""
    found: ViewType | None = vars(cls).get(_ATTRIBUTE)
    if found is None:
        raise DeclarationError(
            f"{cls.__module__}.{cls.__qualname__} is not a view: subclass oyez.View"
        )
    return found


def is_view(cls: object) -> bool:
    """Return whether it is a subclass of `View`."""
    return isinstance(cls, type) and _ATTRIBUTE in vars(cls)


class EntryParameter(FoldedParameter):
    """The row of a view: the second parameter of its handler."""

    word = "view"


def compile_view(kind: ViewType, service: str, allow: Mapping[str, str] | None = None) -> Handler:
    """Return the handler that applies a view's events. Raises DeclarationError."""
    place = f"{kind.cls.__module__}.{kind.cls.__qualname__}"
    streams = {describe(cls).stream for cls in kind.events}
    if len(streams) > 1:
        raise DeclarationError(
            f"{place}: its events name different streams, and a view reads one or all: declare "
            "them with the same stream, or with none"
        )

    async def apply_event(event: object, entry: Entry) -> None:
        entry.apply(event)

    return compile_fold(
        apply_event,
        [describe(cls) for cls in kind.events],
        EntryParameter,
        _correlation(kind, place),
        declared_by=kind.cls,
        service=service,
        retry=Retry(attempts=1),  # what is pure fails again
        stream=streams.pop(),
        allow=allow,
    )


def _correlation(kind: ViewType, place: str) -> Correlation:
    found = {
        cls: correlate(
            kind, method.by, [cls], lambda problem: DeclarationError(f"{place}: {problem}")
        ).key_of
        for cls, method in kind.methods.items()
    }
    return Correlation(kind, lambda event, key: found[type(event)](event, key))


# -- declaration -----------------------------------------------------------------------------------


def _declare(
    cls: type,
    table: str | None,
    key: str | None,
    version: int,
    index: Sequence[str | tuple[str, ...]],
    marked: Mapping[str, Applies],
) -> ViewType:
    place = f"{cls.__module__}.{cls.__qualname__}"
    if table is None or not _TABLE.fullmatch(table):
        raise DeclarationError(
            f"{place}: table={table!r}: expected a lower-case letter, then up to 39 of a-z, 0-9 "
            "and '_', without '__' and not beginning with oyez_"
        )
    if version < 1:
        raise DeclarationError(f"{place}: version={version}: expected 1 or more")
    try:
        msgspec.msgpack.Decoder(cls)
        fields = {field.name: field for field in msgspec.structs.fields(cls)}
    except (TypeError, NameError) as error:
        raise DeclarationError(f"{place}: its fields can't be stored: {error}") from error
    if key is None or key not in fields:
        raise DeclarationError(
            f"{place}: key={key!r}: expected one of its fields: {', '.join(fields)}"
        )
    for field in fields.values():
        if field.name in _RESERVED or not _COLUMN.fullmatch(field.name):
            raise DeclarationError(
                f"{place}: field {field.name} is a column: expected a lower-case letter, then up "
                "to 49 of a-z, 0-9 and '_', and not take"
            )
        if field.name == key and field.type is not str:
            raise DeclarationError(f"{place}: field {key} holds the key, which is a str")
        if field.name != key and field.required:
            raise DeclarationError(
                f"{place}: field {field.name} has no default: a row may begin with any event"
            )
    columns = tuple(_column(field.name, field.type) for field in fields.values())
    methods = _methods(place, key, marked)
    indexes = tuple((each,) if isinstance(each, str) else tuple(each) for each in index)
    for each in indexes:
        lacking = [name for name in each if name not in fields]
        if lacking or not each:
            raise DeclarationError(
                f"{place}: index={each!r}: expected fields of it: {', '.join(fields)}"
            )
        if len(name := f"{table}__{version}__{'_'.join(each)}") > _MAX_NAME:
            raise DeclarationError(
                f"{place}: index={each!r}: its name {name} is longer than the {_MAX_NAME} "
                "characters of PostgreSQL: shorten the table's or the fields'"
            )
    return ViewType(cls, table, version, key, columns, indexes, methods)


def _methods(place: str, key: str, marked: Mapping[str, Applies]) -> dict[type, Method]:
    if not marked:
        raise DeclarationError(f"{place}: it applies no event: mark a method with @applies")
    methods: dict[type, Method] = {}
    for name, mark in marked.items():
        event = _event_of(f"{place}.{name}", mark.function)
        if event in methods:
            raise DeclarationError(f"{place}.{name}: {event.__qualname__} has a method already")
        by = key if mark.by is None else mark.by
        if isinstance(by, str) and by not in describe(event).fields:
            raise DeclarationError(
                f"{place}.{name}: {event.__qualname__} has no field {by}, by which its row is "
                'found: add it, or name another one with @applies(by="…")'
            )
        methods[event] = Method(event, mark.function, by)
    _check_types(place, methods)
    return methods


def _check_types(place: str, methods: Mapping[type, Method]) -> None:
    kinds: dict[str, EventType] = {}
    for cls in methods:
        kind = describe(cls)
        if kind.name in kinds:
            raise DeclarationError(
                f"{place}: {cls.__qualname__} and {kinds[kind.name].cls.__qualname__} are both "
                f"{kind.name}: apply one class"
            )
        kinds[kind.name] = kind


def _event_of(place: str, function: Callable[..., Any]) -> type:
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise DeclarationError(f"{place}: a view waits for nothing: make it a plain def")
    names = list(inspect.signature(function).parameters)
    if len(names) != 2:
        raise DeclarationError(f"{place}: expected two parameters: self and the event")
    try:
        annotation = get_type_hints(function).get(names[1])
    except NameError as error:
        raise DeclarationError(
            f"{place}: its annotations can't be resolved ({error}): import the types at the top "
            "of the module"
        ) from error
    if not isinstance(annotation, type) or not is_event(annotation):
        raise DeclarationError(f"{place}: annotate {names[1]} with one class of event")
    return annotation


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _column(name: str, annotation: Any) -> Column:
    kind = types.type_info(annotation)
    if isinstance(kind, types.UnionType):
        members = [each for each in kind.types if not isinstance(each, types.NoneType)]
        if len(members) == 1:
            kind = members[0]
    match kind:
        case types.StrType():
            return Column(name, "text", "value")
        case types.IntType():
            return Column(name, "bigint", "integer")
        case types.FloatType():
            return Column(name, "double precision", "value")
        case types.BoolType():
            return Column(name, "boolean", "value")
        case types.BytesType():
            return Column(name, "bytea", "value")
        case types.EnumType(cls=cls) if issubclass(cls, int):
            return Column(name, "bigint", "integer")
        case types.LiteralType(values=values) if all(isinstance(each, int) for each in values):
            return Column(name, "bigint", "integer")
        case types.LiteralType(values=values) if not all(isinstance(e, str) for e in values):
            return Column(name, "text", "json")
        case (
            types.EnumType()
            | types.LiteralType()
            | types.DateTimeType()
            | types.DateType()
            | types.TimeType()
            | types.TimeDeltaType()
            | types.UUIDType()
            | types.DecimalType()
        ):
            return Column(name, "text", "text")
    return Column(name, "text", "json")
