"""Pairs of event classes drawn by Hypothesis; the reader's is mostly a changed copy."""

from __future__ import annotations

import datetime as dt
import types
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from hypothesis import strategies as st

from oyez import Event

Draw = st.DrawFn


class Shape(NamedTuple):
    """A type: its kind, its parts, and its conditions."""

    kind: str
    parts: tuple[Any, ...] = ()
    more: tuple[tuple[str, Any], ...] = ()


class Field(NamedTuple):
    name: str
    shape: Shape
    default: bool


NAMES = ("a", "b", "c", "d")
WORDS = ("x", "y", "red", "blue", "")
PLAIN = (
    *("str", "int", "float", "bool", "datetime", "aware", "naive", "date", "time", "duration"),
    *("uuid", "decimal", "bytes", "any"),
)
ZONE = dt.timezone(dt.timedelta(hours=2))


def bounds(draw: Draw, low: int, high: int, least: str, most: str) -> tuple[tuple[str, Any], ...]:
    first = draw(st.none() | st.integers(low, high))
    last = draw(st.none() | st.integers(low if first is None else first, high))
    return tuple((n, v) for n, v in ((least, first), (most, last)) if v is not None)


@st.composite
def shapes(draw: Draw, depth: int = 2) -> Shape:
    deep = ("list", "dict", "intdict", "record", "optional", "tuple", "set", "kinds")
    kind = draw(st.sampled_from((*PLAIN, "lit", "number", *(deep if depth else ()))))
    if kind == "int":
        more = bounds(draw, -3, 12, "ge", "le")
        step = draw(st.sampled_from((None, None, 2, 3, 4)))
        shape = Shape("int", (), (*more, *((("multiple_of", step),) if step else ())))
        return shape if any(True for _ in integers(shape)) else Shape("int")
    if kind == "float":
        return Shape("float", (), bounds(draw, -3, 9, "ge", "le"))
    if kind == "str":
        return Shape("str", (), bounds(draw, 0, 4, "min_length", "max_length"))
    if kind == "lit":
        pool = draw(st.sampled_from((WORDS, (1, 2, 3, 7), ("x", 1, None, 2))))
        values = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique=True))
        return Shape("lit", tuple(values))
    if kind in PLAIN or kind == "number":
        return Shape(kind)
    inner = shapes(depth - 1)
    if kind == "list":
        return Shape(kind, (draw(inner),), bounds(draw, 0, 3, "min_length", "max_length"))
    if kind in ("dict", "intdict"):
        return Shape(kind, (draw(inner),), bounds(draw, 0, 2, "min_length", "max_length"))
    if kind == "set":
        return Shape(kind, (Shape(draw(st.sampled_from(("int", "str", "date")))),))
    if kind == "optional":
        part = draw(inner)
        return Shape(kind, (part,)) if part.kind not in ("any", "optional") else part
    if kind == "tuple":
        return Shape(kind, tuple(draw(st.lists(inner, min_size=1, max_size=2))))
    if kind == "kinds":
        tags = draw(st.lists(st.sampled_from(("p", "q", "r")), min_size=2, max_size=3, unique=True))
        return Shape(kind, tuple((tag, draw(records(depth - 1))) for tag in sorted(tags)))
    return draw(records(depth - 1))


@st.composite
def records(draw: Draw, depth: int) -> Shape:
    names = draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True))
    fields = tuple(Field(n, draw(shapes(depth)), draw(st.booleans())) for n in sorted(names))
    return Shape("record", fields, options(draw))


def options(draw: Draw) -> tuple[tuple[str, Any], ...]:
    chosen = draw(st.sampled_from(((), (), (), ("forbid",), ("omit",), ("camel",), ("row",))))
    return tuple((each, True) for each in chosen)


@st.composite
def changed(draw: Draw, shape: Shape, depth: int = 2) -> Shape:
    """A copy of a shape with a few changes."""
    act = draw(st.integers(0, 9))
    if act == 0:
        return draw(shapes(depth))
    if act == 1 and shape.kind not in ("any", "optional"):
        return Shape("optional", (shape,))
    if act == 2 and shape.kind == "optional":
        return shape.parts[0]  # type: ignore[no-any-return]
    if act == 3 and shape.more and shape.kind != "record":
        return shape._replace(more=shape.more[1:])
    below = max(depth - 1, 0)
    if shape.kind in ("list", "dict", "intdict", "optional", "tuple"):
        parts = tuple(draw(changed(each, below)) for each in shape.parts)
        if shape.kind == "optional" and parts[0].kind in ("any", "optional"):
            return parts[0]
        return shape._replace(parts=parts)
    if shape.kind == "kinds":
        kept = [(tag, draw(changed_record(each, below))) for tag, each in shape.parts]
        if act == 4 and len(kept) > 2:
            kept.pop()
        return shape._replace(parts=tuple(kept))
    if shape.kind == "record":
        return draw(changed_record(shape, below))
    return shape


@st.composite
def changed_record(draw: Draw, shape: Shape, depth: int) -> Shape:
    fields = []
    for each in shape.parts:
        act = draw(st.integers(0, 7))
        if act == 0:
            continue
        default = not each.default if act == 1 else each.default
        fields.append(Field(each.name, draw(changed(each.shape, depth)), default))
    if draw(st.integers(0, 3)) == 0 and len(fields) < len(NAMES):
        name = draw(st.sampled_from([n for n in NAMES if n not in {f.name for f in fields}]))
        fields.append(Field(name, draw(shapes(depth)), draw(st.booleans())))
    more = options(draw) if draw(st.integers(0, 4)) == 0 else shape.more
    return Shape("record", tuple(sorted(fields)), more)


@st.composite
def pairs(draw: Draw) -> tuple[Shape, Shape]:
    """A writer's and a reader's record."""
    written = top(draw(records(2)))
    read = draw(changed_record(written, 2)) if draw(st.integers(0, 5)) else draw(records(2))
    return written, top(read)


def top(shape: Shape) -> Shape:
    return shape._replace(more=tuple(each for each in shape.more if each[0] != "row"))


# -- classes ---------------------------------------------------------------------------------------


def event_of(shape: Shape, version: int = 1) -> type:
    """The event class of a record."""
    return made(shape, "Drawn", (Event,), {"type": "drawn.made", "version": version})


def made(shape: Shape, name: str, bases: tuple[type, ...], keywords: dict[str, Any]) -> type:
    chosen = dict(shape.more)
    names = {"forbid": "forbid_unknown_fields", "omit": "omit_defaults", "row": "array_like"}
    keywords |= {names[each]: True for each in chosen if each in names}
    if "camel" in chosen:
        keywords["rename"] = "upper"
    annotations = {each.name: annotation(each.shape) for each in shape.parts}
    defaults = {each.name: default(each.shape) for each in shape.parts if each.default}
    defaults = {n: v for n, v in defaults.items() if v is not NO}

    def body(namespace: dict[str, Any]) -> None:
        namespace.update(__annotations__=annotations, __module__=__name__, **defaults)

    return types.new_class(name, bases, {"kw_only": True, **keywords}, body)


class _No:
    pass


NO = _No()


def default(shape: Shape) -> Any:
    """A default of the type, or ``NO``."""
    if shape.kind in ("optional", "any"):
        return None
    if shape.kind == "str" and dict(shape.more).get("min_length", 0) == 0:
        return ""
    if shape.kind in ("list", "dict") and dict(shape.more).get("min_length", 0) == 0:
        return [] if shape.kind == "list" else {}
    if shape.kind == "lit":
        return shape.parts[0]
    return msgspec.UNSET if shape.kind == "bool" else NO


def annotation(shape: Shape) -> Any:
    plain = {
        "str": str,
        "int": int,
        "float": float,
        "datetime": dt.datetime,
        "aware": Annotated[dt.datetime, msgspec.Meta(tz=True)],
        "naive": Annotated[dt.datetime, msgspec.Meta(tz=False)],
        "date": dt.date,
        "time": Annotated[dt.time, msgspec.Meta(tz=True)],
        "duration": dt.timedelta,
        "uuid": uuid.UUID,
        "decimal": Decimal,
        "bytes": bytes,
        "any": Any,
        "number": int | float,
        "bool": bool | msgspec.UnsetType,
    }
    if shape.kind in plain:
        found = plain[shape.kind]
    elif shape.kind == "lit":
        found = Literal[shape.parts]
    elif shape.kind == "record":
        found = made(shape, "Part", (msgspec.Struct,), {})
    elif shape.kind == "kinds":
        found = kinds(shape)
    else:
        parts = tuple(annotation(each) for each in shape.parts)
        found = {
            "list": lambda: list[parts[0]],  # type: ignore[valid-type]
            "dict": lambda: dict[str, parts[0]],  # type: ignore[valid-type]
            "intdict": lambda: dict[int, parts[0]],  # type: ignore[valid-type]
            "set": lambda: set[parts[0]],  # type: ignore[valid-type]
            "optional": lambda: parts[0] | None,
            "tuple": lambda: tuple[parts],  # type: ignore[valid-type]
        }[shape.kind]()
    return Annotated[found, msgspec.Meta(**dict(shape.more))] if conditioned(shape) else found


def conditioned(shape: Shape) -> bool:
    return bool(shape.more) and shape.kind != "record"


def kinds(shape: Shape) -> Any:
    row = any(("row", True) in each.more for _, each in shape.parts)
    found: Any = None
    for tag, each in shape.parts:
        plain = each._replace(more=tuple(o for o in each.more if not row or o[0] != "row"))
        part = made(plain, f"Part{tag}", (msgspec.Struct,), {"tag": tag})
        found = part if found is None else found | part
    return found


# -- values ----------------------------------------------------------------------------------------


def integers(shape: Shape) -> range:
    more = dict(shape.more)
    step = more.get("multiple_of", 1)
    low, high = more.get("ge", -(2**40)), more.get("le", 2**40)
    return range(low + (-low) % step, high + 1, step)


def values(shape: Shape) -> st.SearchStrategy[Any]:
    """What a writer may hold, as JSON has it."""
    return _values(shape).map(lambda each: msgspec.to_builtins(each, str_keys=True))


def _values(shape: Shape) -> st.SearchStrategy[Any]:
    more = dict(shape.more)
    low, high = more.get("min_length", 0), more.get("max_length")
    zones = st.just(dt.UTC) | st.just(ZONE)
    match shape.kind:
        case "str":
            text = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
            return st.text(text, min_size=low, max_size=high if high is not None else low + 8)
        case "int":
            return st.sampled_from(integers(shape))
        case "float":
            return st.floats(more.get("ge"), more.get("le"), allow_nan=False, allow_infinity=False)
        case "number":
            return st.integers(-(2**63), 2**63 - 1) | st.floats(
                allow_nan=False, allow_infinity=False
            )
        case "lit":
            return st.sampled_from(shape.parts)
        case "bool":
            return st.booleans()
        case "datetime":
            return st.datetimes(timezones=st.none() | zones)
        case "aware":
            return st.datetimes(timezones=zones)
        case "naive":
            return st.datetimes()
        case "date":
            return st.dates()
        case "time":
            return st.times(timezones=zones)
        case "duration":
            return st.timedeltas(dt.timedelta(-(10**5)), dt.timedelta(10**5))
        case "uuid":
            return st.uuids()
        case "decimal":
            return st.decimals(allow_nan=False, allow_infinity=False, places=2)
        case "bytes":
            return st.binary(max_size=8)
        case "any":
            return st.none() | st.integers(-5, 5) | st.just("x") | st.just([1]) | st.just({})
        case "optional":
            return st.none() | _values(shape.parts[0])
        case "list":
            most = high if high is not None else low + 2
            return st.lists(_values(shape.parts[0]), min_size=low, max_size=most)
        case "set":
            return st.sets(_values(shape.parts[0]), max_size=3)
        case "dict" | "intdict":
            most = high if high is not None else low + 2
            keys = st.sampled_from((*NAMES, "e")) if shape.kind == "dict" else st.integers(-2, 99)
            return st.dictionaries(keys, _values(shape.parts[0]), min_size=low, max_size=most)
        case "tuple":
            return st.tuples(*(_values(each) for each in shape.parts))
        case "record":
            return _record(shape, None)
        case "kinds":
            row = any(("row", True) in each.more for _, each in shape.parts)
            return st.one_of(*(_record(each, tag, row=row) for tag, each in shape.parts))
    raise AssertionError(shape.kind)


@st.composite
def _record(draw: Draw, shape: Shape, tag: str | None, *, row: bool = False) -> Any:
    chosen = {} if row and ("row", True) in shape.more else dict(shape.more)
    found = {} if tag is None else {"type": tag}
    for each in shape.parts:
        optional = each.default and default(each.shape) is not NO and "row" not in chosen
        if not (optional and draw(st.booleans())):
            name = each.name.upper() if "camel" in chosen else each.name
            found[name] = draw(_values(each.shape))
    return list(found.values()) if "row" in chosen else found
