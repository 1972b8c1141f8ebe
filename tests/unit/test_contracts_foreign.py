"""Contracts from elsewhere are bounded: their size, their depth, their patterns, their circles."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from oyez.contracts.foreign import DEPTH, PARTS, TYPES, deep
from oyez.contracts.model import Published, Read, ServiceContract, decode, encode
from oyez.contracts.patterns import LONGEST, WAYS, Undecided, matches, ways
from oyez.contracts.reading import accepts, misreads, sample
from oyez.errors import ConfigurationError

CATASTROPHES = (
    r"(x+)+$",
    r"^(x|x)*y",
    r"(x*)*y",
    r"(?:x?){30}x{30}y",
    r"x*x*x*x*x*x*y",
    r"(x|xx)+y",
    r"^(([a-z])+.)+[A-Z]([a-z])+$",
    r"(?=(x+)+y)x",
    r"(x+)\1+y",
    "x?" * 40 + "x" * 40 + "y",
)


@pytest.mark.parametrize("pattern", CATASTROPHES)
def test_no_pattern_runs_for_long(pattern: str) -> None:
    started = time.process_time()
    for length in (1, 10, 30, 1_000, 100_000):
        try:
            matches(pattern, "x" * length + "!")
        except Undecided:
            assert ways(pattern, length + 1) > WAYS
    written = {"type": "object", "properties": {"a": {"type": "string", "minLength": 40}}}
    read = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    for each in (written, read):
        each["required"] = ["a"]
    found = misreads(written, read)
    assert [one.rule for one in found] in (["RANGE_NARROWED"], ["UNDECIDED"])
    misreads(read, read)
    assert time.process_time() - started < 10  # any of them alone would take years


def test_what_is_not_found_out_is_no_fault() -> None:
    written = {"properties": {"a": {"type": "string", "minLength": 40}}, "required": ["a"]}
    read = {"properties": {"a": {"type": "string", "pattern": "(x+)+$"}}, "required": ["a"]}
    (found,) = misreads({"type": "object", **written}, {"type": "object", **read})
    assert (found.rule, found.path) == ("UNDECIDED", "$.a")


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[a-z]{2}[0-9]{2,30}$",
        r"^[^@ ]+@[^@ ]+\.[a-z]{2,8}$",
        r"^(draft|open|closed)$",
        r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        r"^[A-Z][A-Za-z0-9_.-]*$",
        r"^\+?[0-9 ]{5,20}$",
    ],
)
def test_patterns_of_every_day_are_run(pattern: str) -> None:
    assert ways(pattern, 60) <= WAYS
    assert not matches(pattern, " ")


def test_what_is_no_pattern_is_not_run() -> None:
    for wrong in ("(", "[", "(?P<a>x)(?P=a)", "x" * (LONGEST + 1), "(" * 900 + ")" * 900):
        assert ways(wrong, 3) > WAYS
    with pytest.raises(Undecided):
        accepts({"type": "string", "pattern": "(x+)+$"}, "x" * 50)


def contract(schema: Any) -> bytes:
    published = Published(
        version=1, key=None, stream="s.a", to=None, personal=(), schema={"type": "object"}
    )
    made = ServiceContract(system="s", service="a", publishes={"s.b": published}, reads=())
    told = msgspec.json.decode(encode(made))
    told["publishes"]["s.b"]["schema"] = schema
    return msgspec.json.encode(told)


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"properties": []}, r"publishes\.s\.b\.schema\.properties: expected an object"),
        ({"properties": {"a": {"type": "text"}}}, r"properties\.a\.type: can't be 'text'"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "is no part of this schema"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "is no part of this schema"),
        ({"items": {"pattern": "("}}, r"items\.pattern: can't be '\('"),
        ({"anyOf": [{"multipleOf": 0}]}, r"anyOf\[0\]\.multipleOf: can't be '0'"),
        ({"anyOf": {}}, "expected schemas in a list"),
        ({"minItems": -1}, "minItems: can't be"),
        ({"minLength": 2**60}, "minLength: can't be"),
        ({"minimum": "1"}, "minimum: can't be"),
        ({"required": "a"}, "required: can't be"),
        ({"enum": []}, "enum: can't be"),
        ({"enum": [*range(5_001)]}, "enum: can't be"),
        ({"maximum": 1e301}, "maximum: can't be"),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}, "refers to itself"),
        (
            {
                "$defs": {
                    "A": {"anyOf": [{"$ref": "#/$defs/B"}]},
                    "B": {"not": {"$ref": "#/$defs/A"}},
                }
            },
            "refers to itself",
        ),
        ({"anyOf": [{"title": "x"}] * PARTS}, "more than 20000 parts"),
    ],
)
def test_a_schema_that_can_not_be_used_is_refused(schema: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        decode(contract(schema), "orders.json")


@pytest.mark.parametrize("name", ["../../x", "a\n", "", "A", "a" * 100])
def test_a_service_has_a_name_that_may_be_a_file(name: str) -> None:
    told = msgspec.json.decode(contract({"type": "object"}))
    told["service"] = name
    with pytest.raises(ConfigurationError, match=r"orders\.json: service: "):
        decode(msgspec.json.encode(told), "orders.json")


def test_a_schema_may_hold_itself() -> None:
    tree = {"type": "array", "items": {"$ref": "#/$defs/Tree"}}
    decode(contract({"$ref": "#/$defs/Tree", "$defs": {"Tree": tree}}), "orders.json")


def test_depth_and_number_are_bounded() -> None:
    assert deep(b"[" * (DEPTH + 1))
    assert not deep(b'["' + b"[" * 1_000 + b'\\"[' + b'"]')
    with pytest.raises(ConfigurationError, match="nested deeper than 64"):
        decode(b"[" * 100_000, "orders.json")
    reads = Read(
        type="a", version=1, key=None, stream=None, handlers=("h",), upcasts=(), schema=None
    )
    many = ServiceContract(system="s", service="a", publishes={}, reads=(reads,) * (TYPES + 1))
    with pytest.raises(ConfigurationError, match="more than 1000 types"):
        decode(encode(many), "orders.json")


def test_a_comparison_that_would_never_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oyez.contracts.reading.STEPS", 50_000)  # the test need not last as long
    defs: dict[str, Any] = {
        f"L{n}": {
            "type": "object",
            "properties": {name: {"$ref": f"#/$defs/L{n + 1}"} for name in "ab"},
            "required": ["a", "b"],
        }
        for n in range(40)
    }
    defs["L40"] = {"type": "string"}
    schema = {"$ref": "#/$defs/L0", "$defs": defs}
    with pytest.raises(ConfigurationError, match="too large, or too deep"):
        misreads(schema, {**schema, "$defs": {**defs, "L40": {"type": "integer"}}})


def test_no_witness_is_larger_than_an_event() -> None:
    wide: dict[str, Any] = {"type": "string"}
    for _ in range(6):
        wide = {"type": "array", "minItems": 1_000, "items": wide}
    (found,) = misreads(wide, {"type": "array", "maxItems": 3})
    assert (found.rule, found.witness) == ("RANGE_NARROWED", None)
    with pytest.raises(ValueError, match="no value was found"):
        sample(wide)
    for many in ({"uniqueItems": True, "minItems": 400_000}, {"minItems": 400_000}):
        schema = {"type": "array", "items": {"type": "string", "minLength": 9}, **many}
        with pytest.raises(ValueError, match="no value was found"):
            sample(schema)
    with pytest.raises(ValueError, match="no value was found"):
        sample({"type": "object", "minProperties": 400_000})
