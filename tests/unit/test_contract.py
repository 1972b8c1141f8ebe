"""What comes from outside is refused with the field's path before it becomes poison."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oyez import Event, event
from oyez.contract import MAX_DEPTH, BadJson, decode, encode, parse
from oyez.errors import InvalidEvent, UnknownVersion
from oyez.event import MAX_DATA, describe


class Line(msgspec.Struct):
    sku: str
    quantity: int


class Order(msgspec.Struct):
    id: str
    lines: list[Line] = []
    price: float = 0.0
    note: str | None = None


class Placed(Event, type="test.contract.placed", key="order_id", version=2):
    order_id: str
    text: str = ""
    number: float = 0.0
    maybe: float | None = None
    items: list[int] = []  # noqa: RUF012 - msgspec copies it


@event(type="test.contract.model", key="sensor")
class Model(pydantic.BaseModel):
    sensor: str
    count: int = 0
    value: float | None = None


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"{'id': 1}",
        b'{"id": 1,}',
        b"\xff",
        b'"\xed\xa0\x80"',
        b'"\xc0\x80"',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b'"a\nb"',
        b"nul",
        b"01",
        b"1.",
        b"// x",
    ],
)
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(BadJson):
        parse(data, Any)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"NaN", "$"),
        (b'{"a": [1, NaN]}', "$.a[1]"),
        (b'{"a": Infinity}', "$.a"),
        (b'{"a": -Infinity}', "$.a"),
        (b'{"a": 1e400}', "$.a"),
        (b'{"a": -1e400}', "$.a"),
        (b'{"a": {"b": [0, 9223372036854775808]}}', "$.a.b[1]"),
        (b'{"a": -9223372036854775809}', "$.a"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "$.a"),
        (b'{"a": "\\ud800"}', "$.a"),
        (b'{"a": ["x", "\\udc00\\ud800"]}', "$.a[1]"),
        (b'{"a": "\\u0000"}', "$.a"),
        (b'{"a": {"\\ud800": 1}}', "$.a"),
        (b'{"a\\u0000b": 1}', "$"),
        (b'{"a": 1, "a": 1}', "$"),
        (b'{"a": [{"b": 1, "c": 2, "b": 3}]}', "$.a[0]"),
        (nested(MAX_DEPTH + 1), "$"),
        (b"[" * 100_000, "$"),
        (b'{"a":' * 100_000, "$"),
    ],
)
def test_what_must_not_enter(data: bytes, path: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        parse(data, Any)
    assert not isinstance(caught.value, BadJson)
    assert caught.value.field == path
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"{}", "$"),
        (b"[]", "$"),
        (b"null", "$"),
        (b'{"id": 1}', "$.id"),
        (b'{"id": null}', "$.id"),
        (b'{"id": "1", "lines": {}}', "$.lines"),
        (b'{"id": "1", "lines": [{"sku": "a", "quantity": "2"}]}', "$.lines[0].quantity"),
        (b'{"id": "1", "lines": [{"sku": "a", "quantity": 1.5}]}', "$.lines[0].quantity"),
        (b'{"id": "1", "lines": [{"sku": "a", "quantity": true}]}', "$.lines[0].quantity"),
        (b'{"id": "1", "lines": [{"sku": "a"}]}', "$.lines[0]"),
    ],
)
def test_what_does_not_fit_the_type(data: bytes, path: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        parse(data, Order)
    assert not isinstance(caught.value, BadJson)
    assert caught.value.field == path


@pytest.mark.parametrize(
    "data",
    [
        nested(MAX_DEPTH),
        b'"' + b"[{" * 500 + b'"',
        b'["' + b'\\"[' * 500 + b'"]',
        b"[" + b",".join([b"{}"] * 1_000) + b"]",
        b'{"a": 9223372036854775807, "b": -9223372036854775808}',
        b'{"a": 1.7976931348623157e308, "b": 5e-324, "c": -0.0}',
        b'"\\ud83d\\ude9a"',
        b' {"a": {"a": {"a": 1}}} ',
    ],
)
def test_what_may_enter(data: bytes) -> None:
    assert parse(data, Any) == json.loads(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00")),
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00")),
            inner,
            max_size=4,
        ),
        max_leaves=10,
    )
)  # fmt: skip
def test_every_good_value_comes_back(value: Any) -> None:
    for ascii_only in (True, False):
        assert parse(json.dumps(value, ensure_ascii=ascii_only).encode(), Any) == value


@given(st.binary(max_size=60) | st.text('[]{}",:\\u0d8 19eE.-Nal', max_size=40).map(str.encode))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        value = parse(data, Any)
    except InvalidEvent:
        return
    assert value == json.loads(data)


class TestPublisher:
    def test_data_comes_back(self) -> None:
        kind = describe(Placed)
        event = Placed(order_id="1", text="🚚", number=0.1, maybe=None, items=[1])
        assert decode(kind, encode(kind, event), kind.dataschema) == event

    def test_the_limit_and_one_byte_over(self) -> None:
        kind = describe(Placed)
        size = len(encode(kind, Placed(order_id="1")))
        event = Placed(order_id="1", text="x" * (MAX_DATA - size))
        assert len(encode(kind, event)) == MAX_DATA
        with pytest.raises(InvalidEvent, match=rf"{MAX_DATA + 1} bytes; at most {MAX_DATA}"):
            encode(kind, Placed(order_id="1", text=event.text + "x"))

    @pytest.mark.parametrize(
        ("changed", "field"),
        [
            ({"text": "\ud800"}, "$.text"),
            ({"text": object()}, "$"),
            ({"number": float("nan")}, "$.number"),
            ({"number": float("inf")}, "$.number"),
            ({"text": None}, "$.text"),
        ],
    )
    def test_what_no_consumer_could_read_is_refused(self, changed: Any, field: str) -> None:
        with pytest.raises(InvalidEvent) as caught:
            encode(describe(Placed), Placed(order_id="1", **changed))
        assert caught.value.field == field


class TestConsumer:
    @pytest.mark.parametrize(
        ("data", "field"),
        [
            (b"", "$"),
            (b"\xff", "$"),
            (b"[" * 100_000, "$"),
            (b"null", "$"),
            (b"{}", "$"),
            (b'{"order_id": 1}', "$.order_id"),
            (b'{"order_id": "\xff"}', "$"),
            (b'{"order_id": "1", "items": [1, "2"]}', "$.items[1]"),
        ],
    )
    def test_data_that_does_not_fit_names_the_field(self, data: bytes, field: str) -> None:
        with pytest.raises(InvalidEvent) as caught:
            decode(describe(Placed), data)
        assert caught.value.field == field

    def test_only_a_newer_version_of_the_same_contract_is_refused(self) -> None:
        kind = describe(Placed)
        data = b'{"order_id": "1", "later": {}}'
        for schema in (None, "", "https://x/y", "urn:oyez:test.contract.placed:1",
                       "urn:oyez:test.contract.placed:2", "urn:oyez:other:9"):  # fmt: skip
            assert decode(kind, data, schema) == Placed(order_id="1")
        with pytest.raises(UnknownVersion, match="version 3; this service knows up to 2"):
            decode(kind, data, "urn:oyez:test.contract.placed:3")


class Measured(Event, type="test.contract.measured", key="sensor"):
    sensor: str
    count: int = 0
    value: float | None = None
    notes: dict[str, str] = {}  # noqa: RUF012 - msgspec copies it
    values: list[float] = []  # noqa: RUF012 - msgspec copies it


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"count": 2**63}, "$.count"),
        ({"count": -(2**63) - 1}, "$.count"),
        ({"count": 2**64}, "$.count"),
        ({"count": 10**5_000}, "$.count"),
        ({"value": float("nan")}, "$.value"),
        ({"values": [1.0, float("inf")]}, "$.values[1]"),
        ({"notes": {"a": "\ud800"}}, "$.notes.a"),
        ({"notes": {"a": "b\x00"}}, "$.notes.a"),
        ({"notes": {"a\x00": "b"}}, "$.notes"),
    ],
)
def test_what_no_other_service_could_read_is_not_published(
    given: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidEvent) as caught:
        encode(describe(Measured), Measured(sensor="1", **given))
    assert caught.value.field == field


def test_the_same_holds_for_an_event_that_is_a_pydantic_model() -> None:
    for values, field in (({"count": 2**63}, "$.count"), ({"value": float("nan")}, "$.value")):
        with pytest.raises(InvalidEvent) as caught:
            encode(describe(Model), Model(sensor="1", **values))
        assert caught.value.field == field


def test_what_only_looks_like_it_is_published() -> None:
    whole = Measured(
        sensor="null", count=2**63 - 1, value=1e300, notes={"\\u0000": "\\ud800\n\x1f"}
    )
    assert decode(describe(Measured), encode(describe(Measured), whole)) == whole
    assert encode(describe(Measured), Measured(sensor="1", value=None))
