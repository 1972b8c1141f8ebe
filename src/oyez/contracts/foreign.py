"""Schemas from elsewhere, judged before they are used: what they hold, how large and deep it is.

A contract is a file of another repository, or a record that any service of the system may have
written. A schema that passes has keywords of the right kinds, references to its own parts alone,
and none that leads in a circle without a value in between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from oyez.contracts.patterns import LONGEST
from oyez.errors import ConfigurationError

DEPTH = 64
"""A file that is nested deeper is not read."""
PARTS = 20_000
"""A contract whose schemas have more parts together is not read."""
TYPES = 1_000
"""A contract that publishes or reads more types is not read."""
VALUES = 5_000
"""The most values of an enumeration, and names of required fields."""
COUNT = 2**53
"""The greatest number of items or characters that a schema may name."""

_TYPES = {"string", "integer", "number", "boolean", "null", "array", "object"}
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)


def deep(data: bytes) -> bool:
    """Return whether JSON is nested deeper than `DEPTH`, without parsing it."""
    level = 0
    for each in _STRINGS.sub(b"", data):
        if each in b"[{":
            level += 1
            if level > DEPTH:
                return True
        elif each in b"]}":
            level -= 1
    return False


class Judge:
    """Judges the schemas of one contract; ``place`` is its file, for errors."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._parts = 0

    def judge(self, schema: object, where: str) -> None:
        """Raise ConfigurationError for the first thing that is wrong with a schema."""
        if schema is None:
            return
        root = self._object(schema, where)
        defs = self._object(root.get("$defs", {}), f"{where}.$defs")
        self._schema(root, where, defs)
        for name, each in defs.items():
            self._schema(each, f"{where}.$defs.{name}", defs)
        for name in defs:
            self._ends(name, defs, where)

    def _schema(self, schema: object, where: str, defs: Mapping[str, Any]) -> None:
        self._parts += 1
        if self._parts > PARTS:
            raise self._wrong(where, f"the schemas have more than {PARTS} parts")
        for name, value in self._object(schema, where).items():
            at = f"{where}.{name}"
            if name in _KINDS and not _KINDS[name](value):
                raise self._wrong(at, f"can't be {str(value)[:80]!r}")
            if name == "$ref" and value.removeprefix("#/$defs/") not in defs:
                raise self._wrong(at, f"{value[:80]!r} is no part of this schema: #/$defs/NAME is")
            if name in _LISTS:
                for index, each in enumerate(self._list(value, at)):
                    self._schema(each, f"{at}[{index}]", defs)
            elif name == "properties":
                for field, each in self._object(value, at).items():
                    self._schema(each, f"{at}.{field}", defs)
            elif name in _INNER and not isinstance(value, bool):
                self._schema(value, at, defs)

    def _ends(self, name: str, defs: Mapping[str, Any], where: str) -> None:
        """Refuse a part that is itself, by references and alternatives without a value between."""
        seen: set[str] = set()
        waiting = [*_direct(defs[name])]
        while waiting:
            each = waiting.pop()
            if each == name:
                raise self._wrong(f"{where}.$defs.{name}", "refers to itself, and nothing else")
            if each not in seen:
                seen.add(each)
                waiting += _direct(defs[each])

    def _object(self, value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(where, f"expected an object, found {type(value).__name__}")
        return value

    def _list(self, value: object, where: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._wrong(where, "expected schemas in a list")
        return value

    def _wrong(self, where: str, problem: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self._place}: {where}: {problem}; `oyez contracts export` writes this file"
        )


def _direct(schema: Any) -> Iterator[str]:
    """The parts that a value of a schema must fit too, as it is."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].removeprefix("#/$defs/")
        for name in ("anyOf", "oneOf", "allOf"):
            for each in schema.get(name, ()):
                yield from _direct(each)
        for name in ("not", "propertyNames"):
            yield from _direct(schema.get(name))


def _text(value: object) -> bool:
    return isinstance(value, str)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= COUNT


def _step(value: object) -> bool:
    return _number(value) and isinstance(value, int | float) and value > 0


def _pattern(value: object) -> bool:
    if not isinstance(value, str):
        return False
    if len(value) > LONGEST:
        return True  # it is not run
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _names(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= VALUES
        and all(isinstance(each, str) for each in value)
    )


def _type(value: object) -> bool:
    several = value if isinstance(value, list) else [value]
    return bool(several) and all(isinstance(each, str) and each in _TYPES for each in several)


def _values(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) <= VALUES


_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("title", "description", "format", "contentEncoding", "$ref"), _text),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _number),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _count
    ),
    "multipleOf": _step,
    "pattern": _pattern,
    "required": _names,
    "type": _type,
    "enum": _values,
    "examples": lambda value: isinstance(value, list),
}
_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_INNER = {"items", "additionalProperties", "propertyNames", "not"}
