"""What comes from outside is refused with the field's path before it becomes poison."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pydantic
import pytest

from oyez import Event, event, parse, upcast
from oyez.contract import decode, encode
from oyez.errors import BadJson, DeclarationError, InvalidEvent, UnknownVersion
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
        parse(Order, data)
    assert not isinstance(caught.value, BadJson)
    assert caught.value.field == path


@pytest.mark.parametrize("kind", [Placed, Model, Order, object])
def test_what_is_refused_for_any_kind(kind: type) -> None:
    with pytest.raises(BadJson):
        parse(kind, b"{'id': 1}")
    for data, field in (
        (b'{"order_id": "1", "sensor": "1", "id": "1", "x": [NaN]}', "$.x[0]"),
        (b'{"order_id": "1", "sensor": "1", "id": "1", "x": 9223372036854775808}', "$.x"),
        (b'{"order_id": "1", "sensor": "1", "id": "1", "id": "1"}', "$"),
        (b"[" * 100_000, "$"),
        (b'{"order_id": "1", "sensor": "1", "id": "' + b"1" * MAX_DATA + b'"}', "$"),
    ):
        with pytest.raises(InvalidEvent) as caught:
            parse(kind, data)
        assert not isinstance(caught.value, BadJson)
        assert caught.value.field == field


def test_kinds_that_may_be_parsed() -> None:
    assert parse(Placed, b'{"order_id": "1", "later": {}}') == Placed(order_id="1")
    assert parse(Model, b'{"sensor": "s", "value": 0.5}') == Model(sensor="s", value=0.5)
    order = parse(Order, b'{"id": "1", "lines": [{"sku": "a", "quantity": 2}]}')
    assert order == Order(id="1", lines=[Line(sku="a", quantity=2)])
    assert parse(dict[int, datetime], b'{"1": "2026-01-02T03:04:05Z"}') == {
        1: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    }


@pytest.mark.parametrize(
    ("kind", "data", "field"),
    [
        (Placed, b'{"order_id": 1}', "$.order_id"),
        (Placed, b'{"order_id": "1", "items": [1, "2"]}', "$.items[1]"),
        (Model, b'{"sensor": "1", "count": "x"}', "$"),
    ],
)
def test_an_event_that_does_not_fit_its_class(kind: type, data: bytes, field: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        parse(kind, data)
    assert caught.value.field == field


def test_the_bound_of_what_is_parsed() -> None:
    assert parse(object, b'"abc"', most=5) == "abc"
    with pytest.raises(InvalidEvent, match="is 6 bytes; at most 5 are allowed"):
        parse(object, b'"abcd"', most=5)


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


class Renamed(Event, type="test.contract.renamed", key="order_id", version=4):
    order_id: str
    cents: int
    currency: str


@upcast(Renamed, since=1)
def in_cents(data: dict[str, Any]) -> dict[str, Any]:
    data["cents"] = round(data.pop("price") * 100)
    return data


@upcast(Renamed, since=3)
def in_euro(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "currency": "EUR"}


@pytest.mark.parametrize(
    ("version", "data", "cents", "currency"),
    [
        (1, b'{"order_id": "1", "price": 1.5}', 150, "EUR"),
        (2, b'{"order_id": "1", "cents": 7}', 7, "EUR"),
        (3, b'{"order_id": "1", "cents": 7}', 7, "EUR"),
        (4, b'{"order_id": "1", "cents": 7, "currency": "USD"}', 7, "USD"),
    ],
)
def test_data_of_an_older_version_is_upcast(
    version: int, data: bytes, cents: int, currency: str
) -> None:
    found = decode(describe(Renamed), data, f"urn:oyez:test.contract.renamed:{version}")
    assert found == Renamed(order_id="1", cents=cents, currency=currency)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"order_id": "1"}', "can't be upcast from version 1: KeyError: 'price'"),
        (b"[]", "expected an object"),
        (b"{", "Input data was truncated"),
        (b"\xff", "codec can't decode|JSON is malformed"),
        (b'{"price": 1}', "missing required field `order_id`"),
    ],
)
def test_what_can_not_be_upcast_is_an_invalid_event(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidEvent, match=problem):
        decode(describe(Renamed), data, "urn:oyez:test.contract.renamed:1")


def test_an_event_of_this_version_or_of_none_is_not_upcast() -> None:
    data = b'{"order_id": "1", "cents": 7, "currency": "USD"}'
    for schema in (None, "urn:oyez:test.contract.other:1", "https://example.com/schema"):
        assert decode(describe(Renamed), data, schema).currency == "USD"


def test_an_upcast_is_declared_for_an_older_version_once() -> None:
    for since in (0, 4, 5):
        with pytest.raises(DeclarationError, match="expected a version before"):
            upcast(Renamed, since=since)
    with pytest.raises(DeclarationError, match="twice"):
        upcast(Renamed, since=1)(in_cents)

    async def slow(data: dict[str, Any]) -> dict[str, Any]:
        return data

    with pytest.raises(DeclarationError, match="not async def"):
        upcast(Renamed, since=2)(slow)  # type: ignore[arg-type]
