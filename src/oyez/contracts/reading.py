"""The verdict: can one class read whatever another writes? If not, an event that shows it.

Schemas are compared by what is read: fields that the reader does not declare count only if it
refuses them. For each fault a *witness* is built, a value that the writer's schema allows and the
reader's refuses. Where a pattern makes it impossible to say, the verdict says that instead.
"""

from __future__ import annotations

import base64
import contextlib
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, TypeAlias
from uuid import UUID

import msgspec

from oyez.contracts.patterns import Undecided, matches
from oyez.contracts.schema import Schema
from oyez.errors import ConfigurationError
from oyez.event import MAX_DATA

Rule: TypeAlias = Literal[
    "FIELD_MISSING",
    "FIELD_OPTIONAL",
    "TYPE_NARROWED",
    "ENUM_VALUE_ADDED",
    "RANGE_NARROWED",
    "FORBIDS_UNKNOWN",
    "UNDECIDED",
]


class Misread(msgspec.Struct, frozen=True, kw_only=True):
    """One reason why a reader refuses some of what a writer writes."""

    rule: Rule
    path: str
    """Where in the event, such as ``$.lines[].sku``."""
    reason: str
    witness: Any
    """A value that the writer may write and the reader refuses.

    None with ``UNDECIDED``, where a value of another field can't be told from its pattern, and
    where it would be larger than an event may be.
    """


def misreads(written: Schema, read: Schema) -> list[Misread]:
    """Return why a reader can't read all that a writer writes; empty if it can.

    Both are JSON Schemas, ``written`` of what is encoded, ``read`` of what is decoded. Raises
    ConfigurationError for schemas that take more than `STEPS` to compare.
    """
    found: dict[tuple[str, str], Misread] = {}
    steps = iter(range(STEPS))
    try:
        given, wanted = _Node(written, written, steps), _Node(read, read, steps)
        for each in _compare(given, wanted, "$", frozenset()):
            shown = each.witness if _is_small(each.witness) else None
            found.setdefault((each.rule, each.path), msgspec.structs.replace(each, witness=shown))
    except (_Endless, RecursionError) as error:
        raise ConfigurationError(
            "the schemas are too large, or too deep, to be compared: make fewer and shorter lists, "
            "and fewer kinds of kinds"
        ) from error
    return list(found.values())


def sample(schema: Schema) -> Any:
    """Return a value that a schema allows, with all of its fields.

    Raises ValueError where none is found, as for a pattern.
    """
    try:
        found = _sample(_Node(schema, schema, iter(range(STEPS))))
    except (_Endless, RecursionError):
        found = _NONE
    if not _is_small(found):
        raise ValueError("no value was found that the schema allows")
    return found


def accepts(schema: Schema, value: object) -> bool:
    """Return whether a schema allows a value, as a decoder decides it.

    Raises ValueError where a pattern could take too long to find out.
    """
    return _accepts(_Node(schema, schema, iter(range(STEPS))), value)


STEPS = 1_000_000
"""The most parts of schemas that one comparison looks at, some more than once: seconds."""
_MOST_DISTINCT = 10_000
"""So many values that differ, or keys, are made for a witness, and no more."""


# -- schemas ---------------------------------------------------------------------------------------


class _None:
    """The absence of a value, where None is one."""


_NONE = _None()
_MOST_ITEMS = MAX_DATA // 2
"""An array of more is larger than an event may be."""


_FIELDS = 20_000
"""The most parts of a schema that are told to people."""


class _Endless(Exception):
    """A comparison takes too many steps."""


class _Node:
    """A schema within its document, whose ``$defs`` it may refer to."""

    __slots__ = ("ref", "root", "schema", "steps")

    def __init__(self, root: Schema, schema: Any, steps: Iterator[int]) -> None:
        if next(steps, None) is None:
            raise _Endless
        ref = ""
        while isinstance(schema, dict) and "$ref" in schema:
            ref = schema["$ref"]
            target = root["$defs"][ref.rpartition("/")[2]]
            beside = {name: value for name, value in schema.items() if name not in _ASIDE}
            schema = {**target, **beside}
            if "required" in beside:
                schema["required"] = sorted({*target.get("required", ()), *beside["required"]})
        self.root = root
        self.steps = steps
        self.ref = ref
        self.schema: Schema = schema if isinstance(schema, dict) else {}

    def within(self, schema: Any) -> _Node:
        return _Node(self.root, schema, self.steps)

    def alternatives(self) -> list[_Node]:
        """The schemas, of one type each, of which a value fits one."""
        schema = self.schema
        for name in ("anyOf", "oneOf"):
            if name in schema:
                found = [a for each in schema[name] for a in self.within(each).alternatives()]
                return [a._but(schema["not"]) for a in found] if "not" in schema else found
        if len(schema.get("allOf", ())) == 1:
            return self.within(schema["allOf"][0]).alternatives()
        if "const" in schema:
            return [self._as({**schema, "enum": [schema["const"]]})]
        kinds = schema.get("type")
        if isinstance(kinds, list) and "enum" not in schema:
            return [self._as({**schema, "type": kind}) for kind in kinds]
        return [self]

    @property
    def type(self) -> str:
        """Its one type: that of JSON, ``enum``, or empty for any value."""
        return "enum" if "enum" in self.schema else self.schema.get("type", "")

    @property
    def is_record(self) -> bool:
        """Whether it is an object of named fields, not one of any keys."""
        return "properties" in self.schema

    def get(self, name: str, default: Any = None) -> Any:
        return self.schema.get(name, default)

    def item(self, index: int) -> _Node | None:
        """The schema of an item of an array; None if there can't be one."""
        first = self.get("prefixItems", ())
        if index < len(first):
            return self.within(first[index])
        rest = self.get("items", True)
        return None if rest is False else self.within(rest)

    def _but(self, schema: Schema) -> _Node:
        return self._as({**self.schema, "not": schema})

    def _as(self, schema: Schema) -> _Node:
        made = _Node(self.root, schema, self.steps)
        made.ref = self.ref
        return made


_ASIDE = ("$ref", "default", "description", "title", "$defs", "examples")


# -- what a reader accepts -------------------------------------------------------------------------


def _accepts(node: _Node, value: object) -> bool:
    return any(_fits(each, value) for each in node.alternatives())


def _surely(node: _Node, value: object) -> bool:
    """Whether a schema allows a value, and that is found out."""
    try:
        return _accepts(node, value)
    except Undecided:
        return False


def _fits(node: _Node, value: Any) -> bool:
    schema = node.schema
    if not _is_let(node, value):
        return False
    if node.type == "enum":
        return any(each == value and type(each) is type(value) for each in schema["enum"])
    if node.type not in ("", _kind(value)) and not (
        node.type == "number" and _kind(value) == "integer"
    ):
        return False
    match value:
        case bool() | None:
            return True
        case int() | float():
            return _in_range(schema, value)
        case str():
            return _fits_text(schema, value)
        case list():
            return _fits_array(node, value)
        case dict():
            return _fits_object(node, value)
    return False


def _in_range(schema: Mapping[str, Any], value: float) -> bool:
    step = schema.get("multipleOf")
    return (
        value >= schema.get("minimum", -math.inf)
        and value > schema.get("exclusiveMinimum", -math.inf)
        and value <= schema.get("maximum", math.inf)
        and value < schema.get("exclusiveMaximum", math.inf)
        and (step is None or value % step == 0)
    )


def _fits_text(schema: Mapping[str, Any], value: str) -> bool:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
        return False
    if "pattern" in schema and not matches(schema["pattern"], value):
        return False
    if schema.get("contentEncoding") == "base64":
        try:
            base64.b64decode(value, validate=True)
        except ValueError:
            return False
    return _has_format(schema.get("format", ""), value)


def _has_format(name: str, value: str) -> bool:
    found = _FORMATS.get(name)
    if found is None:
        return True
    try:
        read = msgspec.convert(value, found[0])
    except msgspec.ValidationError:
        return False
    aware = getattr(read, "tzinfo", None) is not None
    return not name.startswith(("date-time", "time")) or aware != name.endswith("-local")


_FORMATS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "date": (date, ("2026-01-31",)),
    "date-time": (datetime, ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.123456+02:00")),
    "date-time-local": (datetime, ("2026-01-31T12:00:00", "2026-01-31T12:00:00.123456")),
    "decimal": (Decimal, ("1.5", "1", "-123456789012345678901234567890.123456789")),
    "duration": (timedelta, ("PT1S", "P0D", "-P99999DT86399.999999S")),
    "time": (time, ("12:00:00Z", "12:00:00.123456+02:00")),
    "time-local": (time, ("12:00:00", "12:00:00.123456")),
    "uuid": (UUID, ("018f0c1e-0000-7000-8000-000000000000",)),
}
"""The formats that a decoder checks, each with values that it is written as, short and long."""


def _fits_array(node: _Node, value: list[Any]) -> bool:
    if not node.get("minItems", 0) <= len(value) <= node.get("maxItems", math.inf):
        return False
    items = [node.item(index) for index in range(len(value))]
    return all(i is not None and _accepts(i, v) for i, v in zip(items, value, strict=True))


def _fits_object(node: _Node, value: dict[str, Any]) -> bool:
    if any(name not in value for name in node.get("required", ())):
        return False
    if not node.get("minProperties", 0) <= len(value) <= node.get("maxProperties", math.inf):
        return False
    return all(_fits_property(node, name, each) for name, each in value.items())


def _fits_property(node: _Node, name: str, value: object) -> bool:
    fields = node.get("properties", {})
    if name in fields:
        return _accepts(node.within(fields[name]), value)
    rest = node.get("additionalProperties", True)
    if rest is False or not _accepts(_keys(node), name):
        return False
    return _accepts(node.within(rest), value)


def _keys(node: _Node) -> _Node:
    names = node.get("propertyNames", {})
    bare = "$ref" in names or "anyOf" in names or "enum" in names
    return node.within(names if bare else {"type": "string", **names})


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "")


_KINDS = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    list: "array",
    dict: "object",
}


# -- values that a writer writes -------------------------------------------------------------------


def _sample(node: _Node, within: frozenset[str] = frozenset()) -> Any:
    """One value with all fields, or ``_NONE``; ``within`` ends a schema that refers to itself."""
    for each in node.schema.get("examples", ()):
        if _surely(node, each):
            return each
    if node.ref in within and node.ref:
        return _NONE
    if node.ref:
        within |= {node.ref}
    for each in sorted(node.alternatives(), key=lambda each: each.type == "null"):
        found = _sample_of(each, within)
        if found is not _NONE:
            return found
    return _NONE


def _sample_of(node: _Node, within: frozenset[str]) -> Any:
    if node.type == "array":
        return next(iter(_arrays(node, (), within)), _NONE)
    if node.type == "object":
        return _object(node, within)
    return next(iter(_scalars(node, ())), _NONE)


def _object(node: _Node, within: frozenset[str]) -> Any:
    found: dict[str, Any] = {}
    for name, field in node.get("properties", {}).items():
        value = _sample(node.within(field), within)
        if value is not _NONE:
            found[name] = value
        elif name in node.get("required", ()):
            return _NONE
    if not node.is_record:
        return next(iter(_maps(node, (), within)), _NONE)
    return found


def _scalars(node: _Node, beside: Iterable[_Node]) -> Iterator[Any]:
    """Values of a schema that is neither of arrays nor of objects.

    Those at its own bounds are among them, and those at the bounds of the schemas ``beside``.
    """
    schemas = [node.schema, *(each.schema for each in beside)]
    match node.type:
        case "enum":
            values: Iterator[Any] = iter(node.schema["enum"])
        case "null":
            values = iter((None,))
        case "boolean":
            values = iter((True, False))
        case "integer":
            values = _integers(schemas)
        case "number":
            values = _floats(schemas)
        case "string":
            values = _texts(schemas)
        case _:
            values = iter(("x", 1, 1.5, True, None, [], {}))
    yield from (each for each in values if _surely(node, each))


def _integers(schemas: list[Schema]) -> Iterator[int]:
    yield 1
    yield 0
    steps = {int(each["multipleOf"]) for each in schemas if each.get("multipleOf", 0) >= 1}
    for bound in (*_bounds(schemas), -(2**63), 2**63 - 1):
        low = math.floor(bound)
        spread = 2 + max((len(each.get("enum", ())) for each in schemas), default=0)
        yield from _fitting(range(low - spread, low + spread + 1))
        for step in steps:
            first = low - low % step
            yield from _fitting((first - step, first, first + step, first + 2 * step))


def _fitting(values: Iterable[int]) -> Iterator[int]:
    return (each for each in values if -(2**63) <= each < 2**63)


def _floats(schemas: list[Schema]) -> Iterator[float]:
    yield 1.5
    yield 0.0
    for bound in _bounds(schemas):
        here = float(bound)
        yield from (here, math.nextafter(here, math.inf), math.nextafter(here, -math.inf))
        yield from (here + 0.5, here - 0.5)
        for step in {each["multipleOf"] for each in schemas if each.get("multipleOf")}:
            yield from ((here // step + more) * step for more in (0, 1, 2))
    yield from (sys.float_info.max, -sys.float_info.max)


def _bounds(schemas: list[Schema]) -> list[float]:
    names = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    return [each[name] for each in schemas for name in names if name in each]


def _texts(schemas: list[Schema]) -> Iterator[str]:
    own = schemas[0]
    if own.get("contentEncoding") == "base64":
        lengths = {1, 0, *(each.get("maxLength", 0) for each in schemas)}
        yield from (base64.b64encode(b"x" * each).decode() for each in sorted(lengths))
        return
    name = own.get("format", "")
    if name in _FORMATS:
        yield from _FORMATS[name][1]
        return
    known = max((len(each.get("enum", ())) for each in schemas), default=0)
    least, most = own.get("minLength", 0), own.get("maxLength", math.inf)
    lengths = {1, 0, least, most}
    for each in schemas:
        lengths |= {each.get("minLength", 1) - 1, each.get("maxLength", 0) + 1}
    for length in sorted(lengths, key=lambda each: (each != 1, each)):
        if least <= length <= min(most, MAX_DATA) and length >= 0:
            size = int(length)
            yield "x" * size
            yield from ("0" * size, " " * size, "A" * size, "é" * size)
            yield from (chr(0x61 + index % 26) * size for index in range(min(known + 1, 26)))
    for index in range(known + 1):
        yield f"x{index}"


def _arrays(node: _Node, beside: Iterable[_Node], within: frozenset[str]) -> Iterator[list[Any]]:
    least, most = node.get("minItems", 0), node.get("maxItems", math.inf)
    lengths = {least, 1, min(most, _MOST_ITEMS)} if most < 64 else {least, 1}
    for each in beside:
        lengths |= {each.get("minItems", 1) - 1, each.get("maxItems", 0) + 1}
    for length in sorted(lengths, key=lambda each: (each != max(1, least), each)):
        if least <= length <= min(most, _MOST_ITEMS):
            made = _filled(node, int(length), within)
            if made is not None and _is_let(node, made):
                yield made


def _is_let(node: _Node, value: object) -> bool:
    return "not" not in node.schema or not _accepts(node.within(node.schema["not"]), value)


def _filled(
    node: _Node, length: int, within: frozenset[str], at: int = -1, value: Any = _NONE
) -> list[Any] | None:
    """An array of a length, with a value at a place; None if there is none."""
    made: list[Any] = []
    unique = node.get("uniqueItems", False)
    if unique and length > _MOST_DISTINCT:
        return None
    last: tuple[_Node | None, Any] = (None, _NONE)
    first = len(node.get("prefixItems", ()))
    for index in range(length):
        if index == at:
            made.append(value)
            continue
        item = node.item(index)
        if item is None:
            return None
        if unique:
            each = next((v for v in _several(item, length) if v not in made and v != value), _NONE)
        else:
            # The items after the first ones are of one kind.
            each = last[1] if index > first and last[0] is not None else _sample(item, within)
            last = (item, each) if index >= first else last
        if each is _NONE:
            return None
        made.append(each)
    return made


def _several(node: _Node, number: int) -> Iterator[Any]:
    for each in node.alternatives():
        if each.type == "integer":
            low = each.get("minimum", each.get("exclusiveMinimum", -1) + 1)
            yield from (v for v in range(int(low), int(low) + 2 * number) if _surely(each, v))
        elif each.type == "string" and "format" not in each.schema:
            yield from (v for v in (f"x{index}" for index in range(number)) if _surely(each, v))
        if each.type not in ("array", "object"):
            yield from _scalars(each, ())


def _maps(node: _Node, beside: Iterable[_Node], within: frozenset[str]) -> Iterator[dict[str, Any]]:
    least, most = node.get("minProperties", 0), node.get("maxProperties", math.inf)
    sizes = {least, 1}
    for each in beside:
        sizes |= {each.get("minProperties", 1) - 1, each.get("maxProperties", 0) + 1}
        sizes |= {len(each.get("required", ()))}
    value = _sample(node.within(node.get("additionalProperties", True)), within)
    for size in sorted(sizes, key=lambda each: (each != max(1, least), each)):
        if least <= size <= min(most, _MOST_ITEMS) and (value is not _NONE or size == 0):
            keys = _some_keys(node, int(size))
            if keys is not None and _is_let(node, made := dict.fromkeys(keys, value)):
                yield made


def _some_keys(node: _Node, size: int, but: str | None = None) -> list[str] | None:
    """So many keys of an object of any keys, other than one; None if there are not as many."""
    if size > _MOST_DISTINCT:
        return None
    names = _keys(node)
    found: list[str] = []
    tried = (v for each in names.alternatives() for v in _scalars(each, ()))
    more = (str(index) for index in range(size + 1))
    longer = (f"x{index}".ljust(names.get("minLength", 0), "x") for index in range(size + 1))
    for each in (*tried, *longer, *more):
        if len(found) == size:
            break
        if each != but and each not in found and _surely(names, each):
            found.append(each)
    return found if len(found) == size else None


# -- the comparison --------------------------------------------------------------------------------


def _compare(
    given: _Node, wanted: _Node, path: str, seen: frozenset[tuple[str, str]]
) -> Iterator[Misread]:
    try:
        yield from _compared(given, wanted, path, seen)
    except Undecided:
        yield _undecided(path)


def _compared(
    given: _Node, wanted: _Node, path: str, seen: frozenset[tuple[str, str]]
) -> Iterator[Misread]:
    if not wanted.schema.keys() - _NOTES:
        return  # it takes anything
    if given.ref and wanted.ref:
        if (given.ref, wanted.ref) in seen:
            return
        seen |= {(given.ref, wanted.ref)}
    options = wanted.alternatives()
    for each in given.alternatives():
        same = [option for option in options if option.type == each.type]
        if each.type == "object" and same:
            yield from _compare_objects(each, same, path, seen)
        elif each.type == "array" and len(same) == 1:
            yield from _compare_arrays(each, same[0], path, seen)
        else:
            yield from _compare_values(each, wanted, options, path)


_NOTES = {"title", "description", "default", "examples", "deprecated", "$defs", "$schema"}


def _compare_values(
    given: _Node, wanted: _Node, options: list[_Node], path: str
) -> Iterator[Misread]:
    found: set[str] = set()
    values = [_sample_of(given, frozenset())] if given.type in ("array", "object") else None
    for value in _scalars(given, options) if values is None else values:
        if value is _NONE or _may_accept(wanted, value):
            continue
        rule, reason = _why(given, value, options)
        if rule not in found:
            found.add(rule)
            yield Misread(rule=rule, path=path, reason=reason, witness=value)
    patterned = any("pattern" in each.schema for each in (given, *options))
    if not found and given.type == "string" and patterned and not _same_text(given, options):
        yield _undecided(path)


def _may_accept(wanted: _Node, value: object) -> bool:
    try:
        return _accepts(wanted, value)
    except Undecided:
        return True


def _same_text(given: _Node, options: list[_Node]) -> bool:
    """Whether texts are read with the same conditions as they are written with, or with none."""
    mine = {n: v for n, v in given.schema.items() if n not in _NOTES}
    theirs = [{n: v for n, v in each.schema.items() if n not in _NOTES} for each in options]
    return any(each.items() <= mine.items() for each in theirs)


def _undecided(path: str) -> Misread:
    reason = "what it is written as can't be told from its pattern: give the field an example"
    return Misread(rule="UNDECIDED", path=path, reason=reason, witness=_NONE)


def _why(given: _Node, value: Any, options: list[_Node]) -> tuple[Rule, str]:
    if value is None:
        return "FIELD_OPTIONAL", "it may be null, and null is not expected"
    kind = _kind(value)
    for option in options:
        if option.type == "enum" and any(_kind(each) == kind for each in option.schema["enum"]):
            known = ", ".join(str(each) for each in option.schema["enum"][:8])
            return "ENUM_VALUE_ADDED", f"it may be {value!r}, and one of {known} is expected"
    same = [o for o in options if o.type == kind or (kind == "integer" and o.type == "number")]
    if any(_form(option) in ("", _form(given)) for option in same):
        return "RANGE_NARROWED", f"it may be {_shown(value)}, which is out of the expected range"
    names = sorted({_named(each) for each in options})
    return "TYPE_NARROWED", f"it is {_named(given)}, and {' or '.join(names)} is expected"


def _form(node: _Node) -> str:
    return str(node.get("format") or node.get("contentEncoding") or "")


def _named(node: _Node) -> str:
    if node.type == "enum":
        return " or ".join(sorted({_kind(each) for each in node.schema["enum"]}))
    form = _form(node)
    return f"{node.type or 'anything'} ({form})" if form else node.type or "anything"


def _shown(value: Any) -> str:
    text = repr(value)
    if len(text) <= 60:
        return text
    return f"{text[:40]}… ({len(value)} long)" if isinstance(value, str | list | dict) else text


def _compare_arrays(
    given: _Node, wanted: _Node, path: str, seen: frozenset[tuple[str, str]]
) -> Iterator[Misread]:
    low, high = wanted.get("minItems", 0), wanted.get("maxItems", math.inf)
    for value in _arrays(given, [wanted], frozenset()):
        if not low <= len(value) <= high:
            reason = f"it may have {len(value)} items, and {_range(low, high)} are expected"
            yield Misread(rule="RANGE_NARROWED", path=path, reason=reason, witness=value)
            break
    most = given.get("maxItems", math.inf)
    first = max(len(given.get("prefixItems", ())), len(wanted.get("prefixItems", ())))
    for index in range(int(min(first + 1, most))):
        mine, theirs = given.item(index), wanted.item(index)
        if mine is None or theirs is None:
            break
        at = f"{path}[]" if index >= first else f"{path}[{index}]"
        for each in _compare(mine, theirs, at, seen):
            length = max(index + 1, given.get("minItems", 0))
            made = _filled(given, length, frozenset(), index, each.witness)
            yield _undecided(at) if made is None else _around(each, made)


def _compare_objects(
    given: _Node, options: list[_Node], path: str, seen: frozenset[tuple[str, str]]
) -> Iterator[Misread]:
    matching = [each for each in options if _may_be(given, each)]
    if not matching:
        value = _object(given, frozenset())
        if value is not _NONE:
            reason = "it may be of a kind that is not known"
            yield Misread(rule="ENUM_VALUE_ADDED", path=path, reason=reason, witness=value)
        return
    if len(matching) > 1:
        value = _object(given, frozenset())
        if value is not _NONE and not any(_fits(each, value) for each in matching):
            reason = "it is none of the kinds that are expected"
            yield Misread(rule="TYPE_NARROWED", path=path, reason=reason, witness=value)
        return
    compare = _compare_records if given.is_record else _compare_maps
    yield from compare(given, matching[0], path, seen)


def _may_be(given: _Node, wanted: _Node) -> bool:
    """Whether their tags, the fields that have one value, agree."""
    mine, theirs = given.get("properties", {}), wanted.get("properties", {})
    for name in mine.keys() & theirs.keys():
        tags = [given.within(mine[name]), wanted.within(theirs[name])]
        if all(each.type == "enum" and len(each.schema["enum"]) == 1 for each in tags) and (
            tags[0].schema["enum"] != tags[1].schema["enum"]
        ):
            return False
    return True


def _compare_records(
    given: _Node, wanted: _Node, path: str, seen: frozenset[tuple[str, str]]
) -> Iterator[Misread]:
    whole, fields = _object(given, frozenset()), given.get("properties", {})
    if whole is _NONE:
        some = {name: _sample(given.within(field)) for name, field in fields.items()}
        yield from (
            msgspec.structs.replace(each, witness=_NONE)
            for each in _differing(given, wanted, path, seen, some)
        )
        return
    yield from _differing(given, wanted, path, seen, whole)


def _differing(
    given: _Node,
    wanted: _Node,
    path: str,
    seen: frozenset[tuple[str, str]],
    whole: dict[str, Any],
) -> Iterator[Misread]:
    """The misreads of two records, of which ``whole`` is a value of the first."""
    fields, always = given.get("properties", {}), given.get("required", ())
    for name in wanted.get("required", ()):
        at, without = f"{path}.{name}", {k: v for k, v in whole.items() if k != name}
        if name not in fields:
            reason = "it is required, and is not published"
            yield Misread(rule="FIELD_MISSING", path=at, reason=reason, witness=without)
        elif name not in always:
            reason = "it is required, and may be left out"
            yield Misread(rule="FIELD_OPTIONAL", path=at, reason=reason, witness=without)
    low, high = wanted.get("minProperties", 0), wanted.get("maxProperties", math.inf)
    bare = {name: whole[name] for name in always if name in whole}
    for value in (whole, bare):
        if not low <= len(value) <= high:
            reason = f"it has {len(value)} fields, and {_range(low, high)} are expected"
            yield Misread(rule="RANGE_NARROWED", path=path, reason=reason, witness=value)
            break
    expected = wanted.get("properties", {})
    rest = wanted.get("additionalProperties", True)
    for name, field in fields.items():
        if name not in whole and name not in expected:
            continue
        at = f"{path}.{name}"
        if name in expected:
            theirs = wanted.within(expected[name])
        elif rest is False:
            reason = "it is published, and unknown fields are refused"
            yield Misread(rule="FORBIDS_UNKNOWN", path=at, reason=reason, witness=whole)
            continue
        elif not _accepts(_keys(wanted), name):
            reason = "its name is not one that is expected as a key"
            yield Misread(rule="RANGE_NARROWED", path=at, reason=reason, witness=whole)
            continue
        else:
            theirs = wanted.within(rest)
        for each in _compare(given.within(field), theirs, at, seen):
            yield _around(each, {**whole, name: each.witness})


def _compare_maps(
    given: _Node, wanted: _Node, path: str, seen: frozenset[tuple[str, str]]
) -> Iterator[Misread]:
    values = given.within(given.get("additionalProperties", True))
    low, high = wanted.get("minProperties", 0), wanted.get("maxProperties", math.inf)
    required = wanted.get("required", ())
    for value in _maps(given, [wanted], frozenset()):
        if not low <= len(value) <= high:
            reason = f"it may have {len(value)} keys, and {_range(low, high)} are expected"
            yield Misread(rule="RANGE_NARROWED", path=path, reason=reason, witness=value)
            break
    for name in required:
        for value in _maps(given, [wanted], frozenset()):
            if name not in value:
                reason = "it is required, and is a key that there need not be"
                at = f"{path}.{name}"
                yield Misread(rule="FIELD_OPTIONAL", path=at, reason=reason, witness=value)
                break
    rest = wanted.get("additionalProperties", True)
    if rest is False:
        names = wanted.get("properties", {})
        for value in _maps(given, [wanted], frozenset()):
            if value.keys() - names.keys():
                reason = "it may have any keys, and unknown fields are refused"
                yield Misread(rule="FORBIDS_UNKNOWN", path=path, reason=reason, witness=value)
                break
    elif not wanted.is_record:
        yield from _compare_keys(given, wanted, path)
    for name, field in wanted.get("properties", {}).items():
        if _accepts(_keys(given), name):
            for each in _compare(values, wanted.within(field), f"{path}.{name}", seen):
                made = _mapped(given, name, each.witness)
                if made is not None:
                    yield _around(each, made)
    if rest is not False:
        for each in _compare(values, wanted.within(rest), f"{path}{{}}", seen):
            key = _key_beside(given, wanted.get("properties", {}))
            made = None if key is None else _mapped(given, key, each.witness)
            if made is not None:
                yield _around(each, made)


def _compare_keys(given: _Node, wanted: _Node, path: str) -> Iterator[Misread]:
    value = _sample(given.within(given.get("additionalProperties", True)))
    if value is _NONE or given.get("maxProperties", 1) < 1:
        return
    names = _keys(wanted)
    for each in _compare(_keys(given), names, f"{path}{{key}}", frozenset()):
        made = _mapped(given, each.witness, value) if isinstance(each.witness, str) else None
        if made is not None or each.rule == "UNDECIDED":
            yield _around(each, made)


def _key_beside(node: _Node, names: Mapping[str, Any]) -> str | None:
    """A key of an object of any keys that is none of these names; None if there is none."""
    for size in range(len(names) + 1, 0, -1):
        for key in _some_keys(node, size) or ():
            if key not in names:
                return key
    return None


def _mapped(node: _Node, key: str, value: Any) -> dict[str, Any] | None:
    """An object of any keys that has this one, and as many as it must."""
    more = max(node.get("minProperties", 0) - 1, 0)
    if node.get("maxProperties", 1) < 1:
        return None
    keys = _some_keys(node, more, key)
    other = _sample(node.within(node.get("additionalProperties", True))) if more else None
    if keys is None or other is _NONE:
        return None
    return {key: value, **dict.fromkeys(keys, other)}


def _is_small(value: Any) -> bool:
    """Whether there is a value, and it is not larger than an event may be."""
    left, waiting = MAX_DATA, [value]
    while waiting:
        each = waiting.pop()
        if each is _NONE:
            return False
        left -= len(each) + 1 if isinstance(each, str | list | dict) else 1
        if left < 0:
            return False
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            waiting += each.values()
    return True


def _around(each: Misread, value: Any) -> Misread:
    return each if each.witness is _NONE else msgspec.structs.replace(each, witness=value)


def _range(low: float, high: float) -> str:
    if high == math.inf:
        return f"at least {low}"
    return str(low) if low == high else f"{low} to {high}"


# -- for people ------------------------------------------------------------------------------------


def outline(schema: Schema) -> dict[str, str]:
    """Return the types of each field of a schema, and of what is in it, for people, by path.

    A field that may be left out has a question mark. Of a schema that takes too long it is a part.
    """
    found: dict[str, list[str]] = {}
    with contextlib.suppress(_Endless, RecursionError):
        _walk(_Node(schema, schema, iter(range(_FIELDS))), "", found, frozenset())
    return {path: " | ".join(sorted(set(words))) for path, words in sorted(found.items()) if path}


def _walk(node: _Node, path: str, found: dict[str, list[str]], within: frozenset[str]) -> None:
    if node.ref and node.ref in within:
        return
    within |= {node.ref}
    for each in node.alternatives():
        found.setdefault(path, []).append(_word(each))
        for name, field in each.get("properties", {}).items():
            mark = "" if name in each.get("required", ()) else "?"
            inner = f"{path}.{name}{mark}" if path else f"{name}{mark}"
            _walk(each.within(field), inner, found, within)
        if each.type == "array":
            for index, item in enumerate(each.get("prefixItems", ())):
                _walk(each.within(item), f"{path}[{index}]", found, within)
            if isinstance(each.get("items"), dict):
                _walk(each.within(each.get("items")), f"{path}[]", found, within)
        if isinstance(each.get("additionalProperties"), dict):
            _walk(each.within(each.get("additionalProperties")), f"{path}{{}}", found, within)


def _word(node: _Node) -> str:
    if node.type == "enum":
        return " | ".join(sorted(repr(each) for each in node.schema["enum"]))
    names = sorted(node.schema.keys() & _CONDITIONS)
    conditions = ", ".join(f"{name} {node.schema[name]}" for name in names)
    return _named(node) + (f" {{{conditions}}}" if conditions else "")


_CONDITIONS = {
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
}
