"""The shapes of events and keyed state: fields and their types, as JSON Schema has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from oyez.event import EventType
from oyez.opaque import Opaque

_ABSENT = "absent"
"""The type of a field that need not be there."""

# -- events ----------------------------------------------------------------------------------------


def types_of(kind: EventType, field: str) -> set[str]:
    """Return the JSON types that a field of an event may have; empty where that is unknown."""
    return _fields(kind).get(field, set())


@lru_cache(maxsize=4096)  # a class is asked for once for each of its handlers
def _fields(kind: EventType) -> dict[str, set[str]]:
    """The JSON types of each field; none for a class that msgspec can't read, or need not."""
    if issubclass(kind.cls, Opaque):
        return {}
    try:
        (reference,), components = msgspec.json.schema_components((kind.cls,))
    except TypeError:
        return {}
    schema = _resolved(reference, components)
    return {
        name: _types(_resolved(field, components), components)
        for name, field in schema.get("properties", {}).items()
    }


def _resolved(schema: Any, components: Mapping[str, Any]) -> Any:
    reference = schema.get("$ref")
    return components[reference.rpartition("/")[2]] if reference else schema


def _types(schema: Any, components: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema allows; empty where it does not tell."""
    if "anyOf" in schema:
        parts = [_types(_resolved(each, components), components) for each in schema["anyOf"]]
        return set().union(*parts) if all(parts) else set()
    found = schema.get("type")
    if found is None and "enum" in schema:
        return {"string" if isinstance(each, str) else "number" for each in schema["enum"]}
    return {found} if isinstance(found, str) else set(found or ())


# -- keyed state -----------------------------------------------------------------------------------


class Shape(msgspec.Struct, frozen=True, omit_defaults=True):
    """The shape of a kind of keyed state, as it is recorded in a file."""

    version: int
    fields: dict[str, str]
    """The types of each field, and of what is in it, such as ``lines[].sku``."""
    steps: tuple[str, ...] = ()
    """The names of a saga's steps, in alphabetical order."""


def shape_of(cls: type, version: int, steps: Iterable[str] = ()) -> Shape:
    """Return the shape of a class; without fields where JSON Schema has no word for one of them."""
    try:
        (reference,), components = msgspec.json.schema_components((cls,))
    except TypeError:
        return Shape(version, {}, tuple(sorted(steps)))
    found: dict[str, set[str]] = {}
    _walk(reference, components, "", found, frozenset())
    fields = {path: " | ".join(sorted(types)) for path, types in found.items()}
    return Shape(version, fields, tuple(sorted(steps)))


def why_changed(recorded: Shape, declared: Shape) -> str:
    """Return why a row of the recorded shape does not fit the declared one; empty if it does."""
    for path, text in recorded.fields.items():
        now = declared.fields.get(path)
        if now is None:
            return f"its field {path} is gone"
        allowed = set(now.split(" | "))
        if "number" in allowed:
            allowed.add("integer")
        if not set(text.split(" | ")) <= allowed:
            return f"its field {path} was {text} and is {now}"
    for path in declared.fields.keys() - recorded.fields.keys():
        owner, dot, _ = path.rpartition(".")
        if dot and owner in recorded.fields and _ABSENT not in declared.fields[path].split(" | "):
            return f"its field {path} is new and has no default"
    gone = sorted(set(recorded.steps) - set(declared.steps))
    return f"its step {gone[0]} is gone" if gone else ""


def _walk(
    schema: Any,
    components: Mapping[str, Any],
    path: str,
    found: dict[str, set[str]],
    within: frozenset[str],
) -> None:
    """Add the types of a schema, and of what is in it, by path; ``within`` ends a recursive one."""
    reference = schema.get("$ref", "")
    if reference in within:
        return
    if reference:
        within, schema = within | {reference}, _resolved(schema, components)
    if "anyOf" in schema:
        for each in schema["anyOf"]:
            _walk(each, components, path, found, within)
        return
    if path:
        found.setdefault(path, set()).update(_words(schema))
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        inner = f"{path}.{name}" if path else name
        _walk(field, components, inner, found, within)
        if path and name not in required:  # at the top all have a default
            found.setdefault(inner, set()).add(_ABSENT)
    inside = [("[]", schema.get("items")), ("{}", schema.get("additionalProperties"))]
    inside += [(f"[{index}]", each) for index, each in enumerate(schema.get("prefixItems", ()))]
    for mark, each in inside:
        if isinstance(each, dict):
            _walk(each, components, path + mark, found, within)


def _words(schema: Any) -> set[str]:
    if "enum" in schema:
        return {repr(each) for each in schema["enum"]}
    detail = schema.get("format") or schema.get("contentEncoding")
    known = schema.get("type", "any")
    names = [known] if isinstance(known, str) else known
    return {f"{name} ({detail})" if detail else name for name in names}
