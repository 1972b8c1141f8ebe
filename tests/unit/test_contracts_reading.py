"""The verdict is that of the decoder, on drawn pairs of classes and on changes one by one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from types import new_class
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest
from drawn_schemas import Shape, event_of, pairs, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from oyez import Event, event
from oyez.contract import decode, encode
from oyez.contracts.reading import Misread, accepts, misreads, sample
from oyez.contracts.schema import read, written
from oyez.errors import InvalidEvent
from oyez.event import describe

PAIRS = int(os.environ.get("OYEZ_PAIRS", "200"))
"""How many pairs of classes are drawn."""


def verdict(writer: type, reader: type) -> list[Misread]:
    mine, theirs = written(writer), read(reader)
    assert mine is not None
    assert theirs is not None
    return misreads(mine, theirs)


def emitted(writer: type, value: Any) -> bytes:
    """What a writer publishes that holds a value given as JSON."""
    kind = describe(writer)
    return encode(kind, kind.decode(msgspec.json.encode(value)))


@settings(
    max_examples=PAIRS,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(pairs(), st.data())
def test_the_verdict_on_a_drawn_pair_is_that_of_the_decoder(
    pair: tuple[Shape, Shape], data: st.DataObject
) -> None:
    writer, reader = (event_of(each) for each in pair)
    found = verdict(writer, reader)
    for each in found:
        assert each.rule != "UNDECIDED"
        witness = emitted(writer, each.witness)
        assert unordered(msgspec.json.decode(witness)) == unordered(each.witness), each
        assert not is_read(reader, witness), each
    schemas = written(writer), read(reader)
    drawn = [data.draw(values(pair[0]), label="value") for _ in range(3)]
    if schemas[0] is not None and not found:
        drawn.append(sample(schemas[0]))
    for value in drawn:
        line = emitted(writer, value)
        assert accepts(schemas[0] or {}, msgspec.json.decode(line)), line
        read_too = is_read(reader, line)
        assert accepts(schemas[1] or {}, msgspec.json.decode(line)) == read_too, line
        assert read_too or found, line


def is_read(reader: type, line: bytes) -> bool:
    try:
        decode(describe(reader), line)
    except InvalidEvent:
        return False
    return True


def unordered(value: Any) -> Any:
    """A value whose arrays are sorted: a set is written in any order."""
    if isinstance(value, dict):
        return {name: unordered(each) for name, each in value.items()}
    return sorted(map(unordered, value), key=repr) if isinstance(value, list) else value


# -- changes, one by one ---------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class More(Enum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"


class Tolerant(Enum):
    RED = "red"
    OTHER = "other"

    @classmethod
    def _missing_(cls, value: object) -> Tolerant:
        return cls.OTHER


class Card(msgspec.Struct, tag="card"):
    digits: str


class Cash(msgspec.Struct, tag="cash"):
    pass


class Line(msgspec.Struct):
    sku: str


class Tree(msgspec.Struct):
    leaf: int | str
    below: list[Tree] = []


class Bush(msgspec.Struct):
    leaf: int
    below: list[Bush] = []


def drawn(fields: dict[str, Any], **options: Any) -> type:
    """An event class with these fields; a pair is a type with its default."""
    annotations = {n: each[0] if isinstance(each, tuple) else each for n, each in fields.items()}
    defaults = {n: each[1] for n, each in fields.items() if isinstance(each, tuple)}

    def body(namespace: dict[str, Any]) -> None:
        namespace.update(__annotations__=annotations, __module__=__name__, **defaults)

    return new_class("Made", (Event,), {"type": "t.made", **options}, body)


Short = Annotated[str, msgspec.Meta(max_length=3)]
Zoned = Annotated[datetime, msgspec.Meta(tz=True)]
Naive = Annotated[datetime, msgspec.Meta(tz=False)]
Six = Annotated[int, msgspec.Meta(le=6)]
Five = Annotated[int, msgspec.Meta(le=5)]
Code = Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")]
Other = Annotated[str, msgspec.Meta(pattern="^[A-Z]{2}")]


@pytest.mark.parametrize(
    ("writes", "reads", "rule", "path"),
    [
        ({"id": str}, {"id": str, "vat": int}, "FIELD_MISSING", "$.vat"),
        ({"id": str | None}, {"id": str}, "FIELD_OPTIONAL", "$.id"),
        ({"id": (str | UnsetType, UNSET)}, {"id": str}, "FIELD_OPTIONAL", "$.id"),
        ({"id": str}, {"id": int}, "TYPE_NARROWED", "$.id"),
        ({"id": float}, {"id": int}, "TYPE_NARROWED", "$.id"),
        ({"at": datetime}, {"at": Zoned}, "TYPE_NARROWED", "$.at"),
        ({"at": Naive}, {"at": Zoned}, "TYPE_NARROWED", "$.at"),
        ({"at": str}, {"at": date}, "TYPE_NARROWED", "$.at"),
        ({"it": More}, {"it": Colour}, "ENUM_VALUE_ADDED", "$.it"),
        ({"it": str}, {"it": Literal["a", "b"]}, "ENUM_VALUE_ADDED", "$.it"),
        ({"by": Card | Cash}, {"by": Card}, "ENUM_VALUE_ADDED", "$.by"),
        ({"id": str}, {"id": Short}, "RANGE_NARROWED", "$.id"),
        ({"id": str}, {"id": Code}, "RANGE_NARROWED", "$.id"),
        ({"id": Six}, {"id": Five}, "RANGE_NARROWED", "$.id"),
        ({"id": Code}, {"id": Other}, "UNDECIDED", "$.id"),
        ({"them": list[int]}, {"them": list[str]}, "TYPE_NARROWED", "$.them[]"),
        ({"them": list[int]}, {"them": tuple[int, int]}, "RANGE_NARROWED", "$.them"),
        ({"them": dict[str, int]}, {"them": dict[int, int]}, "RANGE_NARROWED", "$.them{key}"),
        ({"them": dict[str, str]}, {"them": Line}, "FIELD_OPTIONAL", "$.them.sku"),
        ({"tree": Tree}, {"tree": Bush}, "TYPE_NARROWED", "$.tree.leaf"),
    ],
)
def test_what_a_reader_can_not_read_has_a_rule_and_a_witness(
    writes: dict[str, Any], reads: dict[str, Any], rule: str, path: str
) -> None:
    writer, reader = drawn(writes), drawn(reads)
    (found,) = verdict(writer, reader)
    assert (found.rule, found.path) == (rule, path)
    if rule == "UNDECIDED":
        assert found.witness is None
        (missing, _) = verdict(writer, drawn({**reads, "more": int}))
        assert (missing.rule, missing.path, missing.witness) == ("FIELD_MISSING", "$.more", None)
    else:
        assert not is_read(reader, emitted(writer, found.witness))


@pytest.mark.parametrize(
    ("writes", "reads"),
    [
        ({"id": str, "new": (str | None, None)}, {"id": str}),
        ({"id": str}, {"id": str, "new": (int, 0)}),
        ({"id": str, "count": (int, 0)}, {"id": str, "count": int}),
        ({"count": int}, {"count": float}),
        ({"it": Colour}, {"it": More}),
        ({"it": More}, {"it": Tolerant}),
        ({"it": Literal["a"]}, {"it": str}),
        ({"at": Zoned}, {"at": datetime}),
        ({"sum": Decimal}, {"sum": Decimal}),
        ({"by": Card}, {"by": Card | Cash}),
        ({"id": Code}, {"id": str}),
        ({"id": Code}, {"id": Code}),
        ({"tree": Bush}, {"tree": Tree}),
        ({"any": int}, {"any": Any}),
        ({"part": Card}, {"part": dict[str, str]}),
    ],
)
def test_what_a_reader_reads_has_none(writes: dict[str, Any], reads: dict[str, Any]) -> None:
    assert verdict(drawn(writes), drawn(reads)) == []


def test_a_reader_that_refuses_unknown_fields() -> None:
    writer, reader = drawn({"id": str, "new": int}), drawn({"id": str}, forbid_unknown_fields=True)
    (found,) = verdict(writer, reader)
    assert (found.rule, found.path) == ("FORBIDS_UNKNOWN", "$.new")
    assert not is_read(reader, emitted(writer, found.witness))


def test_what_is_left_out_is_never_its_default() -> None:
    writer = drawn({"id": str, "note": (str | None, None)}, omit_defaults=True)
    assert verdict(writer, drawn({"id": str, "note": (str, "none")})) == []
    (found,) = verdict(writer, drawn({"id": str, "note": str}))
    assert (found.rule, found.path) == ("FIELD_OPTIONAL", "$.note")


def test_dataclasses_and_pydantic_models_have_schemas() -> None:
    @dataclass
    class Plain:
        id: str
        count: int = 0

    class Model(pydantic.BaseModel):
        id: str
        count: int

    plain = event(type="t.made")(Plain)
    model = event(type="t.made")(Model)
    assert verdict(plain, model) == verdict(model, plain) == []
    (found,) = verdict(drawn({"id": str, "count": str}), model)
    assert (found.rule, found.path) == ("TYPE_NARROWED", "$.count")
    assert not is_read(model, emitted(drawn({"id": str, "count": str}), found.witness))


def test_an_example_is_taken_for_a_sample() -> None:
    told = Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$", examples=["EUR"])]
    schema = written(drawn({"currency": told}))
    assert schema is not None
    assert sample(schema) == {"currency": "EUR"}
    with pytest.raises(ValueError, match="no value was found"):
        sample(written(drawn({"currency": Code})) or {})
