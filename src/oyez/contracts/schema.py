"""JSON Schemas (draft 2020-12) of what an event class writes, and of what it reads.

The two differ. A class writes every field, also one that has a default; it reads events without
that field. It writes a decimal as a text, and reads a number as well. It writes no field that it
does not declare, and reads events that have more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from enum import Enum
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec
from msgspec import inspect as types

from oyez.opaque import Opaque

Schema: TypeAlias = dict[str, Any]

WHOLE_NUMBER = "^(0|-?[1-9][0-9]*)$"
"""The pattern of a key of an object that stands for an integer."""


def written(cls: type) -> Schema | None:
    """Return the schema of what a class encodes; None where JSON Schema has no word for it."""
    return _schema(cls, write=True)


def read(cls: type) -> Schema | None:
    """Return the schema of what a class decodes; None where JSON Schema has no word for it."""
    return _schema(cls, write=False)


@lru_cache(maxsize=4096)  # a class is asked for once for each of its handlers
def _schema(model: Any, *, write: bool) -> Schema | None:
    if issubclass(model, Opaque):
        return None if model.schema is None else dict(model.schema)
    if hasattr(model, "model_json_schema"):
        try:
            found: Schema = model.model_json_schema(
                mode="serialization" if write else "validation", by_alias=not write
            )
        except Exception:  # noqa: BLE001 - pydantic's, of a field that has no schema
            return None
        return found
    try:
        told = types.type_info(model)
    except TypeError:
        return None
    return _Writer(write=write).root(told)


class _Writer:
    """Writes the schema of one class, with those of the classes within it under ``$defs``."""

    def __init__(self, *, write: bool) -> None:
        self._write = write
        self._defs: dict[str, Schema] = {}
        self._names: dict[Any, str] = {}

    def root(self, told: types.Type) -> Schema:
        schema = self.of(told)
        name = schema["$ref"].rpartition("/")[2]
        if f"'{schema['$ref']}'" in repr(self._defs):  # it has a field of its own type
            return {**schema, "$defs": dict(sorted(self._defs.items()))}
        top = self._defs.pop(name)
        return {**top, "$defs": dict(sorted(self._defs.items()))} if self._defs else top

    def of(self, told: types.Type) -> Schema:
        if isinstance(told, types.Metadata):
            return {**self.of(told.type), **(told.extra_json_schema or {})}
        if isinstance(told, types.UnionType):
            return self._union(told)
        if isinstance(told, _OBJECTS):
            return self._named(told.cls, lambda: self._object(told))
        if isinstance(told, types.EnumType):
            return self._named(told.cls, lambda: self._enum(told.cls))
        if isinstance(told, types.LiteralType):
            return {"enum": sorted(told.values, key=_sorting)}
        if isinstance(told, types.DictType):
            return self._dict(told)
        if isinstance(told, types.CollectionType):
            unique = isinstance(told, types.SetType | types.FrozenSetType) and self._write
            return {
                "type": "array",
                "items": self.of(told.item_type),
                **_lengths(told.min_length, told.max_length, "Items"),
                **({"uniqueItems": True} if unique else {}),
            }
        if isinstance(told, types.TupleType):
            return _tuple([self.of(each) for each in told.item_types], len(told.item_types))
        return self._scalar(told)

    def _scalar(self, told: types.Type) -> Schema:
        match told:
            case types.NoneType():
                return {"type": "null"}
            case types.BoolType():
                return {"type": "boolean"}
            case types.IntType() | types.FloatType():
                name = "integer" if isinstance(told, types.IntType) else "number"
                bounds = {
                    "minimum": told.ge,
                    "exclusiveMinimum": told.gt,
                    "maximum": told.le,
                    "exclusiveMaximum": told.lt,
                    "multipleOf": told.multiple_of,
                }
                return {"type": name, **_given(bounds)}
            case types.StrType():
                lengths = _lengths(told.min_length, told.max_length, "Length")
                return {"type": "string", **lengths, **_given({"pattern": told.pattern})}
            case types.DateTimeType():
                return _zoned(told.tz, "date-time")
            case types.TimeType():
                return _zoned(told.tz, "time")
            case types.DecimalType():
                text = {"type": "string", "format": "decimal"}
                return text if self._write else {"anyOf": [text, {"type": "number"}]}
            case types.BytesType() | types.ByteArrayType() | types.MemoryViewType():
                return {"type": "string", "contentEncoding": "base64"}
        for kind, name in _FORMATS.items():
            if isinstance(told, kind):
                return {"type": "string", "format": name}
        return {}

    def _union(self, told: types.UnionType) -> Schema:
        tagged = sum(isinstance(each, types.StructType) for each in told.types) > 1
        found = []
        for each in told.types:
            schema = self.of(each)
            if tagged and isinstance(each, types.StructType) and not each.array_like:
                schema = {**schema, "required": [each.tag_field]}
            found.append(schema)
        return {"anyOf": sorted(found, key=_sorting)} if len(found) > 1 else found[0]

    def _named(self, cls: Any, make: Callable[[], Schema]) -> Schema:
        name = self._names.get(cls)
        if name is None:
            name, number = cls.__name__, 2
            while name in self._defs:
                name, number = f"{cls.__name__}{number}", number + 1
            self._names[cls] = name
            self._defs[name] = {}  # holds the name for a class that has a field of its own type
            self._defs[name] = make()
        return {"$ref": f"#/$defs/{name}"}

    def _enum(self, cls: type[Enum]) -> Schema:
        values = sorted((each.value for each in cls), key=_sorting)
        if not self._write and "_missing_" in {n for c in cls.__mro__[:-1] for n in _own(c)}:
            # It has a member for what it does not know.
            kinds = {_JSON[type(each)] for each in values}
            return {"title": cls.__name__, "type": sorted(kinds)}
        return {"title": cls.__name__, "enum": values}

    def _object(self, told: Any) -> Schema:
        omits = self._write and _omits_defaults(told.cls)
        tag = getattr(told, "tag", None)
        names: dict[str, Schema] = {}
        required = []
        if tag is not None:
            names[told.tag_field] = {"enum": [tag]}
            if self._write:
                required.append(told.tag_field)
        for field in told.fields:
            names[field.encode_name] = {
                **self._field(field),
                **({"not": {"const": _left_out(field)}} if omits and _is_left_out(field) else {}),
            }
            unset = not field.required and _has_no_default(field)
            always = not omits and not unset and not isinstance(told, types.TypedDictType)
            if field.required or (self._write and always):
                required.append(field.encode_name)
        text = _text(told.cls)
        head = {"title": told.cls.__name__, **({"description": text} if text else {})}
        closed = getattr(told, "forbid_unknown_fields", False) and not self._write
        if getattr(told, "array_like", False) or isinstance(told, types.NamedTupleType):
            least = len(names) if self._write else len(required) + (tag is not None)
            return {**head, **_tuple(list(names.values()), least, closed or self._write)}
        return {
            **head,
            "type": "object",
            "properties": dict(sorted(names.items())),
            "required": sorted(required),
            **({"additionalProperties": False} if closed else {}),
        }

    def _field(self, field: types.Field) -> Schema:
        schema = self.of(field.type)
        if field.default is msgspec.NODEFAULT or field.default is msgspec.UNSET:
            return schema
        try:
            value = msgspec.to_builtins(field.default)
        except TypeError:
            return schema
        return {**schema, "default": value}

    def _dict(self, told: types.DictType) -> Schema:
        values = self.of(told.value_type)
        keys = _bare(told.key_type)
        if isinstance(keys, types.StrType | types.AnyType):
            names = {name: v for name, v in self.of(told.key_type).items() if name != "type"}
        elif isinstance(keys, types.IntType):
            names = {"pattern": WHOLE_NUMBER}
        else:
            names = self.of(told.key_type)
        return {
            "type": "object",
            "additionalProperties": values or True,
            **({"propertyNames": names} if names else {}),
            **_lengths(told.min_length, told.max_length, "Properties"),
        }


_OBJECTS = (
    types.StructType,
    types.DataclassType,
    types.TypedDictType,
    types.NamedTupleType,
)
_CHOICES = (types.LiteralType, types.EnumType)
_FORMATS: dict[type[types.Type], str] = {
    types.DateType: "date",
    types.TimeDeltaType: "duration",
    types.UUIDType: "uuid",
}
_JSON = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def _zoned(zone: bool | None, name: str) -> Schema:
    forms = {True: [name], False: [f"{name}-local"], None: [name, f"{name}-local"]}[zone]
    found = [{"type": "string", "format": form} for form in forms]
    return {"anyOf": found} if len(found) > 1 else found[0]


def _tuple(items: list[Schema], least: int, closed: bool = True) -> Schema:
    most = {"maxItems": len(items), "items": False} if closed else {}
    return {"type": "array", "prefixItems": items, "minItems": least, **most}


def _lengths(least: int | None, most: int | None, of: str) -> Schema:
    return _given({f"min{of}": least or None, f"max{of}": most})


def _has_no_default(field: types.Field) -> bool:
    nothing = (msgspec.NODEFAULT, msgspec.UNSET)
    return any(field.default is each for each in nothing) and (
        field.default_factory is msgspec.NODEFAULT
    )


def _given(values: dict[str, Any]) -> Schema:
    return {name: value for name, value in values.items() if value is not None}


def _omits_defaults(cls: type) -> bool:
    config = getattr(cls, "__struct_config__", None)
    return config is not None and config.omit_defaults


def _is_left_out(field: types.Field) -> bool:
    """Whether a default is surely not written. It is left out by identity, not by equality."""
    value = field.default
    if field.default_factory in (list, dict, set):
        return True
    if value is None or isinstance(value, bool) or _bare(field.type).__class__ in _CHOICES:
        return field.default_factory is msgspec.NODEFAULT and value is not msgspec.NODEFAULT
    # These are one object each in Python, however they are made.
    small = type(value) is int and -5 <= value <= 256
    return small or (type(value) is str and len(value) < 2 and value < "\u0100")


def _left_out(field: types.Field) -> Any:
    if field.default_factory is msgspec.NODEFAULT:
        return msgspec.to_builtins(field.default)
    return {} if field.default_factory is dict else []


def _bare(told: types.Type) -> types.Type:
    return _bare(told.type) if isinstance(told, types.Metadata) else told


def _own(cls: type) -> Iterable[str]:
    return () if cls is Enum or cls.__module__ == "enum" else vars(cls)


def _text(cls: type) -> str:
    text = vars(cls).get("__doc__") or ""
    made = text.startswith(f"{cls.__name__}(")  # what a dataclass says without a docstring
    return "" if made else inspect.cleandoc(text)


def _sorting(value: object) -> str:
    return f"{type(value).__name__} {value!r}"
