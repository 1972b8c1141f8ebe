"""How events are declared, in each of the four ways."""

from __future__ import annotations

import dataclasses
from typing import Any

import attrs
import msgspec
import pydantic
import pytest

from oyez import Command, Event, event
from oyez.contract import decode, encode
from oyez.errors import DeclarationError, InvalidEvent
from oyez.event import MAX_KEY, describe, is_event


class Item(msgspec.Struct, frozen=True):
    sku: str


class AsStruct(Event, type="test.kinds.placed", key="order_id", version=3, stream="s.orders"):
    order_id: str
    cents: int = 0


@event(type="test.kinds.placed", key="order_id", version=3, stream="s.orders")
@dataclasses.dataclass(frozen=True, slots=True)
class AsDataclass:
    order_id: str
    cents: int = 0


@event(type="test.kinds.placed", key="order_id", version=3, stream="s.orders")
@attrs.frozen
class AsAttrs:
    order_id: str
    cents: int = 0


@event(type="test.kinds.placed", key="order_id", version=3, stream="s.orders")
class AsPydantic(pydantic.BaseModel, frozen=True):
    order_id: str
    cents: int = 0


KINDS: list[type[Any]] = [AsStruct, AsDataclass, AsAttrs, AsPydantic]


class Node(Event, type="test.kinds.node"):
    name: str


@pytest.mark.parametrize("cls", KINDS)
class TestEveryKind:
    def test_is_described(self, cls: type[Any]) -> None:
        kind = describe(cls)
        assert (kind.cls, kind.name, kind.version) == (cls, "test.kinds.placed", 3)
        assert (kind.key_field, kind.stream) == ("order_id", "s.orders")
        assert kind.dataschema == "urn:oyez:test.kinds.placed:3"
        assert is_event(cls)

    def test_comes_back_as_its_own_class(self, cls: type[Any]) -> None:
        kind = describe(cls)
        made = cls(order_id="7", cents=900)
        assert msgspec.json.decode(encode(kind, made)) == {"order_id": "7", "cents": 900}
        assert decode(kind, encode(kind, made)) == made
        assert kind.key(made) == "7"

    @pytest.mark.parametrize("other", KINDS)
    def test_is_read_by_every_other(self, cls: type[Any], other: type[Any]) -> None:
        data = encode(describe(cls), cls(order_id="7", cents=900))
        assert decode(describe(other), data) == other(order_id="7", cents=900)

    def test_ignores_what_it_does_not_declare(self, cls: type[Any]) -> None:
        data = b'{"order_id": "7", "new": {"deep": [1]}}'
        assert decode(describe(cls), data) == cls(order_id="7")

    def test_refuses_what_does_not_fit(self, cls: type[Any]) -> None:
        for data in (b"{}", b'{"order_id": null}', b'{"order_id": "1", "cents": "x"}', b"[", b""):
            with pytest.raises(InvalidEvent):
                decode(describe(cls), data)


def test_a_consumer_declares_fewer_fields_of_its_own() -> None:
    class Wide(Event, type="test.shared"):
        order_id: str
        items: list[Item]
        note: str | None = None

    class Narrow(Event, type="test.shared"):
        order_id: str

    data = encode(describe(Wide), Wide(order_id="1", items=[Item(sku="a")]))
    assert decode(describe(Narrow), data) == Narrow(order_id="1")


def test_an_event_is_frozen_and_made_by_name() -> None:
    made = AsStruct(order_id="1")
    with pytest.raises(AttributeError):
        made.order_id = "2"
    with pytest.raises(TypeError):
        AsStruct("1")

    class Ordered(Event, type="test.ordered"):
        maybe: int = 0
        must: str

    assert Ordered(must="a").maybe == 0


class TestKey:
    @pytest.mark.parametrize(("value", "key"), [("a", "a"), (7, "7"), ("x" * MAX_KEY, "x" * 512)])
    def test_is_text(self, value: Any, key: str) -> None:
        assert describe(AsStruct).key(AsStruct(order_id=value)) == key

    @pytest.mark.parametrize("value", ["", None, "x" * (MAX_KEY + 1)])
    def test_null_empty_or_huge_is_refused(self, value: Any) -> None:
        with pytest.raises(InvalidEvent) as caught:
            describe(AsStruct).key(AsStruct(order_id=value))
        assert caught.value.field == "$.order_id"

    def test_a_type_may_have_none(self) -> None:
        assert describe(Node).key(Node(name="a")) is None


class TestBadDeclarations:
    @pytest.mark.parametrize("name", ["", " ", "a b", ".a", "a.", "ä", "a\n", "x" * 201, "a:b"])
    def test_type_name(self, name: str) -> None:
        with pytest.raises(DeclarationError, match="type="):
            type("Bad", (Event,), {}, type=name)

    @pytest.mark.parametrize("name", ["a", "A1", "shop.order.placed", "a/b-c_d", "x" * 200])
    def test_good_type_names(self, name: str) -> None:
        assert describe(type("Good", (Event,), {}, type=name)).name == name

    def test_version(self) -> None:
        with pytest.raises(DeclarationError, match="version=0"):

            class Bad(Event, type="test.bad", version=0):
                pass

    def test_key_that_is_no_field(self) -> None:
        with pytest.raises(DeclarationError, match="key='order' is not a field; fields: order_id"):

            class Bad(Event, type="test.bad", key="order"):
                order_id: str

    def test_a_class_of_another_kind(self) -> None:
        with pytest.raises(DeclarationError, match="dataclass, an attrs class or a pydantic"):

            @event(type="test.bad")
            class Bad:
                order_id: str

    def test_decorators_in_the_wrong_order(self) -> None:
        with pytest.raises(DeclarationError):

            @dataclasses.dataclass
            @event(type="test.bad")
            class Bad:
                order_id: str

    def test_a_field_that_can_not_be_decoded(self) -> None:
        with pytest.raises(DeclarationError, match="can't be encoded and decoded"):

            class Bad(Event, type="test.bad"):
                either: Item | AsStruct

        with pytest.raises(DeclarationError, match="NoSuchName"):

            class Worse(Event, type="test.bad"):
                field: NoSuchName  # noqa: F821

    def test_a_subclass_must_say_its_own_type(self) -> None:
        class Special(AsStruct):
            extra: int = 0

        assert not is_event(Special)
        with pytest.raises(DeclarationError, match=r"Special is not an event"):
            describe(Special)

        class Named(AsStruct, type="test.special", key="order_id"):
            extra: int = 0

        assert describe(Named).cls is Named

    @pytest.mark.parametrize("cls", [Event, int, object, Item])
    def test_what_was_never_declared(self, cls: type) -> None:
        assert not is_event(cls)
        with pytest.raises(DeclarationError, match='type="…"'):
            describe(cls)

    def test_what_is_no_class(self) -> None:
        assert not is_event(AsStruct(order_id="1"))
        assert not is_event(None)


class TestCommands:
    def test_a_command_names_the_service_that_it_asks(self) -> None:
        class Charge(Command, type="test.charge", key="order", to="payments"):
            order: str

        @event(type="test.charge", key="order", to="payments")
        @dataclasses.dataclass(frozen=True)
        class AsDataclass:
            order: str

        assert describe(Charge).to == describe(AsDataclass).to == "payments"
        assert describe(Node).to is None

    def test_a_wrong_declaration_names_the_remedy(self) -> None:
        with pytest.raises(DeclarationError, match=r'Charge: a Command asks one .* to="…"'):

            class Charge(Command, type="test.charge"):
                pass

        with pytest.raises(DeclarationError, match=r"Paid: to='desk': .* subclass oyez.Command"):
            type(Event)("Paid", (Event,), {}, type="test.paid", to="desk")
        with pytest.raises(DeclarationError, match=r"to='The Desk': expected the name of a serv"):

            class Ring(Command, type="test.ring", to="The Desk"):
                pass


class OfOrder(Event, key="order_id", stream="shop.orders"):
    order_id: str


class AskedOf(OfOrder, Command, to="payments"):
    cents: int


def test_what_a_base_names_holds_for_those_made_from_it() -> None:
    class Packed(OfOrder, type="test.packed"): ...

    class Charge(AskedOf, type="test.charge"): ...

    class Checked(OfOrder, type="test.checked", key="by", stream="shop.checks"):
        by: str

    class Signed(Checked, type="test.signed"): ...

    packed, charge = describe(Packed), describe(Charge)
    assert packed.key(Packed(order_id="4711")) == "4711"
    assert (packed.stream, packed.to) == ("shop.orders", None)
    assert charge.key(Charge(order_id="4711", cents=1)) == "4711"
    assert (charge.stream, charge.to) == ("shop.orders", "payments")
    for each in (describe(Checked), describe(Signed)):
        assert (each.key_field, each.stream) == ("by", "shop.checks")
    assert not is_event(OfOrder)


def test_a_key_that_a_base_names_must_be_a_field() -> None:
    class OfNobody(Event, key="who"): ...

    with pytest.raises(DeclarationError, match="key='who' is not a field"):

        class Left(OfNobody, type="test.left"): ...
