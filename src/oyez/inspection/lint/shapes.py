"""The shapes of events and keyed state: fields and their types, as JSON Schema has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from oyez.event import EventType

_ABSENT = "absent"
"""The type of a field that need not be there."""

# -- events ----------------------------------------------------------------------------------------


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """What decides whether data of one class of an event fits another."""

    version: int
    required: tuple[str, ...] = ()
    """The fields that must be there."""
    types: dict[str, tuple[str, ...]] | None = None
    """The JSON types that each field may have; None for a class that msgspec can't read."""


def outline(kind: EventType) -> Outline:
    """Return the outline of an event class."""
    found = _fields(kind)
    if found is None:
        return Outline(version=kind.version)
    required, fields = found
    types = {name: tuple(sorted(each)) for name, each in fields.items()}
    return Outline(version=kind.version, required=tuple(sorted(required)), types=types)


def why_unfit(published: Outline, handled: Outline) -> str:
    """Return why data of the one class does not fit the other; empty if nothing is known of it."""
    if handled.version < published.version:
        return f"version {published.version} is published, and {handled.version} is handled"
    given, expected = published.types, handled.types
    if given is None or expected is None:
        return ""
    missing = sorted(set(handled.required) - given.keys())
    if missing:
        return f"it has no field {', '.join(missing)}"
    for field in sorted(expected.keys() & given.keys()):
        mine, theirs = _numbers(expected[field]), _numbers(given[field])
        if mine and theirs and not mine & theirs:
            return (
                f"the field {field} is {' or '.join(sorted(theirs))}, and "
                f"{' or '.join(sorted(mine))} is expected"
            )
    return ""


def types_of(kind: EventType, field: str) -> set[str]:
    """Return the JSON types that a field of an event may have; empty where that is unknown."""
    found = _fields(kind)
    return set() if found is None else found[1].get(field, set())


@lru_cache(maxsize=4096)  # a class is asked for once for each of its handlers
def _fields(kind: EventType) -> tuple[set[str], dict[str, set[str]]] | None:
    """The required fields, and the JSON types of each; None for a class that msgspec can't read."""
    try:
        (reference,), components = msgspec.json.schema_components((kind.cls,))
    except TypeError:
        return None
    schema = _resolved(reference, components)
    fields = {
        name: _types(_resolved(field, components), components)
        for name, field in schema.get("properties", {}).items()
    }
    return set(schema.get("required", ())), fields


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


def _numbers(types: Iterable[str]) -> set[str]:
    return {"number" if name == "integer" else name for name in types}


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
