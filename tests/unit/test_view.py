"""Views: their declaration, what events make of a row, and their table."""

import math
from datetime import UTC, datetime
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Literal

import pytest

from oyez import GONE, Event, Gone, Service, View, applies
from oyez.errors import DeclarationError, StateMismatch
from oyez.inspection.lint import check
from oyez.inspection.lint.system import System
from oyez.inspection.topology import flows
from oyez.ports import Kept
from oyez.state import Fold
from oyez.testing import running
from oyez.view import apply, compile_view, is_view, view_of


class Placed(Event, type="test.placed", key="order"):
    order: str
    customer: str
    cents: int = 0


class Shipped(Event, type="test.shipped", key="parcel"):
    parcel: str
    order: str


class Erased(Event, type="test.erased", key="number"):
    number: str


class Orders(View, table="orders_seen", key="order", version=2, index=("customer",)):
    order: str
    customer: str = ""
    cents: int = 0
    status: str = "placed"

    @applies
    def placed(self, event: Placed) -> None:
        self.take(event)

    @applies
    def shipped(self, event: Shipped) -> None:
        self.status = "shipped"

    @applies(by="number")
    def erased(self, event: Erased) -> Gone:
        return GONE


KIND = view_of(Orders)


class TestRows:
    """What `apply` makes of a row."""

    def test_events_make_change_and_delete_a_row(self) -> None:
        row = apply(KIND, None, Placed(order="a", customer="c", cents=7))
        assert row == Orders(order="a", customer="c", cents=7)
        row = apply(KIND, row, Shipped(parcel="p", order="a"))
        assert row == Orders(order="a", customer="c", cents=7, status="shipped")
        assert apply(KIND, row, Erased(number="a")) is GONE

    async def test_a_function_of_the_event_finds_the_row(self, tmp_path: Path) -> None:
        class Towns(View, table="towns", key="town"):
            town: str
            orders: int = 0

            @applies(by=lambda event: event.customer.rpartition(" of ")[2])
            def placed(self, event: Placed) -> None:
                self.orders += 1

        assert apply(view_of(Towns), None, Placed(order="a", customer="Ada of York")).town == "York"
        service = Service("towns")
        service.view(Towns)
        async with running(service, root=tmp_path) as system:
            people = ("Ada of York", "Bob of Bath", "Eve of York")
            for order, customer in zip("abc", people, strict=True):
                await system.publish(Placed(order=order, customer=customer), service="orders")
            await system.settled()
            rows = await service.fetch("select town, orders from towns order by town")
        assert rows == [{"town": "Bath", "orders": 1}, {"town": "York", "orders": 2}]

    def test_a_row_may_begin_with_any_event(self) -> None:
        row = apply(KIND, None, Shipped(parcel="p", order="a"))
        assert apply(KIND, row, Placed(order="a", customer="c")) == Orders(
            order="a", customer="c", status="shipped"
        )

    def test_methods_can_be_called_by_a_test(self) -> None:
        row = Orders(order="a")
        row.shipped(Shipped(parcel="p", order="a"))
        assert row.status == "shipped"

    def test_anything_else_that_a_method_returns_is_an_error(self) -> None:
        class Odd(View, table="odd", key="order"):
            order: str

            @applies
            def placed(self, event: Placed) -> Any:
                return event

        with pytest.raises(TypeError, match=r"Odd.placed returned Placed: expected None or GONE"):
            apply(view_of(Odd), None, Placed(order="a", customer="c"))

    def test_the_handler_finds_the_row_of_each_event(self) -> None:
        handler = compile_view(KIND, "desk")
        assert handler.name == KIND.name == "view:orders_seen@2"
        assert {kind.name for kind in handler.events} == {
            "test.placed",
            "test.shipped",
            "test.erased",
        }
        (rows,) = handler.states
        assert rows.key_of(Placed(order="a", customer="c"), "x") == "a"
        assert rows.key_of(Shipped(parcel="p", order="b"), "p") == "b"
        assert rows.key_of(Erased(number="d"), "d") == "d"


class TestUnits:
    """A view's rows in a `Fold`."""

    def test_each_row_is_written_once_for_all_its_events(self) -> None:
        fold = Fold()
        fold.add([Kept(kind=KIND.name, key=key) for key in "ab"])
        for event in (
            Placed(order="a", customer="c", cents=1),
            Placed(order="b", customer="d", cents=2),
            Shipped(parcel="p", order="a"),
        ):
            fold.of(KIND, event.order).apply(event)
        kept = fold.changed()
        assert [(row.kind, row.key, row.version) for row in kept] == [
            ("view:orders_seen@2", "a", 0),
            ("view:orders_seen@2", "b", 0),
        ]
        ((sql, rows),) = fold.tables.items()
        assert sql.startswith("insert into orders_seen__2")
        assert rows == [
            {"order": "a", "customer": "c", "cents": 1, "status": "shipped"},
            {"order": "b", "customer": "d", "cents": 2, "status": "placed"},
        ]
        again = Fold()
        again.add([Kept(kind=r.kind, key=r.key, version=1, shape=1, data=r.data) for r in kept])
        assert again.of(KIND, "a").row == Orders(order="a", customer="c", cents=1, status="shipped")
        again.of(KIND, "a").apply(Erased(number="a"))
        again.of(KIND, "b").apply(Shipped(parcel="q", order="b"))
        again.of(KIND, "b").row.status = "placed"
        (gone,) = again.changed()
        assert (gone.key, gone.version, gone.data) == ("a", 1, None)
        assert again.tables == {
            'delete from orders_seen__2 where "order" = :order': [{"order": "a"}]
        }

    def test_a_row_that_never_was_is_not_deleted(self) -> None:
        fold = Fold()
        fold.add([Kept(kind=KIND.name, key="a")])
        fold.of(KIND, "a").apply(Placed(order="a", customer="c"))
        fold.of(KIND, "a").apply(Erased(number="a"))
        assert (fold.changed(), fold.tables) == ([], {})

    def test_what_can_not_be_read_back_is_not_stored(self) -> None:
        row = Kept(kind=KIND.name, key="a")
        for wrong, message in (
            ({"cents": "7"}, r"Expected `int`, got `str` - at `\$.cents`"),
            ({"cents": 1 << 70}, "orders_seen a can't be stored"),
        ):
            entry = KIND.open(row)
            entry.apply(Placed(order="a", customer="c"))
            for name, value in wrong.items():
                setattr(entry.row, name, value)
            with pytest.raises(StateMismatch, match=message):
                KIND.close(entry, row)
        entry = KIND.open(row)
        entry.apply(Placed(order="a", customer="c", cents=1 << 63))
        kept = KIND.close(entry, row)
        assert kept is not None
        with pytest.raises(StateMismatch, match="cents: a column holds integers of 64 bits"):
            KIND.write(entry, kept)

    def test_a_stored_row_of_other_fields_is_told(self) -> None:
        with pytest.raises(StateMismatch, match=r"orders_seen a does not fit .* raise the view's"):
            KIND.open(Kept(kind=KIND.name, key="a", version=1, data=b"\xc0"))


class TestTables:
    """The SQL made from the class."""

    def test_scalars_are_columns_and_the_rest_is_json(self) -> None:
        class Colour(Enum):
            RED = "red"

        class Level(IntEnum):
            LOW = 1

        class Wide(View, table="wide", key="order", index=("name", ("level", "at"))):
            order: str
            name: str | None = None
            cents: int = 0
            share: float = 0.0
            paid: bool = False
            digest: bytes = b""
            at: datetime | None = None
            colour: Colour = Colour.RED
            level: Level = Level.LOW
            kind: Literal["a", "b"] = "a"
            lines: list[dict[str, int]] = []  # noqa: RUF012 - copied for each
            odd: int | str = 0

            @applies
            def placed(self, event: Placed) -> None: ...

        kind = view_of(Wide)
        assert {column.name: column.type for column in kind.columns} == {
            "order": "text",
            "name": "text",
            "cents": "bigint",
            "share": "double precision",
            "paid": "boolean",
            "digest": "bytea",
            "at": "text",
            "colour": "text",
            "level": "bigint",
            "kind": "text",
            "lines": "text",
            "odd": "text",
        }
        row = Wide(order="a", at=datetime(2026, 1, 2, tzinfo=UTC), share=math.inf, lines=[{"n": 1}])
        assert kind.values(row) == {
            "order": "a",
            "name": None,
            "cents": 0,
            "share": math.inf,
            "paid": False,
            "digest": b"",
            "at": "2026-01-02T00:00:00Z",
            "colour": "red",
            "level": 1,
            "kind": "a",
            "lines": '[{"n":1}]',
            "odd": "0",
        }
        assert kind.migrations() == [
            (
                "oyez:view:wide@1",
                'create table wide__1 ("order" text primary key, "name" text, "cents" bigint, '
                '"share" double precision, "paid" boolean, "digest" bytea, "at" text, '
                '"colour" text, "level" bigint, "kind" text, "lines" text, "odd" text)',
            ),
            ("oyez:view:wide@1 (name)", 'create index wide__1__name on wide__1 ("name")'),
            (
                "oyez:view:wide@1 (level, at)",
                'create index wide__1__level_at on wide__1 ("level", "at")',
            ),
        ]


class TestDeclared:
    """Wrong declarations name the class and the remedy."""

    @pytest.mark.parametrize(
        ("options", "fields", "message"),
        [
            ({"table": "oyez_x"}, {}, "table='oyez_x': expected a lower-case letter"),
            ({"table": "a__2"}, {}, "table='a__2'"),
            ({"table": None}, {}, "table=None"),
            ({"version": 0}, {}, "version=0: expected 1 or more"),
            ({"key": "odd"}, {}, "key='odd': expected one of its fields: order"),
            ({"key": None}, {}, "key=None"),
            ({}, {"left": int}, "field left has no default"),
            ({}, {"take": int}, "field take is a column"),
            ({}, {"Upper": int}, "field Upper is a column"),
            ({}, {"order": int}, "field order holds the key, which is a str"),
            ({"index": ("odd",)}, {}, r"index=\('odd',\): expected fields of it: order"),
            ({"index": ((),)}, {}, r"index=\(\): expected fields"),
        ],
    )
    def test_classes(self, options: Any, fields: Any, message: str) -> None:
        def placed(self: Any, event: Placed) -> None: ...

        options = {"table": "bad", "key": "order", **options}
        body = {
            "__annotations__": {"order": str, **fields},
            "__module__": "m",
            "placed": applies(placed),
        }
        with pytest.raises(DeclarationError, match=message) as caught:
            type(View)("Bad", (View,), body, **options)
        assert str(caught.value).startswith("m.Bad: ")

    def test_methods(self) -> None:
        class Other(Event, type="test.placed", key="order"):
            order: str

        class Elsewhere(Event, type="test.elsewhere", stream="other.till"):
            order: str

        async def slow(self: Any, event: Placed) -> None: ...
        def alone(self: Any) -> None: ...
        def bare(self: Any, event) -> None: ...  # type: ignore[no-untyped-def]
        def no_event(self: Any, event: int) -> None: ...
        def unknown(self: Any, event: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
        def placed(self: Any, event: Placed) -> None: ...
        def again(self: Any, event: Placed) -> None: ...
        def other(self: Any, event: Other) -> None: ...
        def erased(self: Any, event: Erased) -> None: ...

        for methods, message in (
            ([], "applies no event: mark a method with @applies"),
            ([slow], "Bad.slow: a view waits for nothing"),
            ([alone], "Bad.alone: expected two parameters"),
            ([bare], "Bad.bare: annotate event with one class of event"),
            ([no_event], "Bad.no_event: annotate event"),
            ([unknown], "Bad.unknown: its annotations can't be resolved"),
            ([placed, again], "Bad.again: Placed has a method already"),
            ([placed, other], "Other and Placed are both test.placed: apply one class"),
            ([erased], "Bad.erased: Erased has no field order, by which its row is found"),
        ):
            body = {"__annotations__": {"order": str}, "__module__": "m"}
            marked = {each.__name__: applies(each) for each in methods}  # type: ignore[attr-defined]
            with pytest.raises(DeclarationError, match=message):
                type(View)("Bad", (View,), {**body, **marked}, table="bad", key="order")

        class Mixed(View, table="mixed", key="order"):
            order: str

            @applies
            def placed(self, event: Placed) -> None: ...
            @applies
            def elsewhere(self, event: Elsewhere) -> None: ...

        with pytest.raises(DeclarationError, match="its events name different streams"):
            Service("desk").view(Mixed)

    def test_services(self) -> None:
        service = Service("desk")
        assert service.view(Orders) is Orders
        assert [kind.view for kind in service.views] == ["orders_seen"]
        with pytest.raises(DeclarationError, match="two views named orders_seen"):
            service.view(Orders)
        with pytest.raises(DeclarationError, match=r"is not a view: subclass oyez\.View"):
            service.view(Placed)  # type: ignore[type-var]
        assert is_view(Orders)
        assert not is_view(View)

    def test_a_view_is_a_subscription_of_its_service(self) -> None:
        till, desk = Service("till", publishes=(Placed, Shipped)), Service("desk")
        desk.view(Orders)
        found = flows([till, desk])
        assert found["test.placed"].handlers == (("desk", "view:orders_seen@2"),)
        (fault,) = check(System({"till": till, "desk": desk}, name="test"))
        assert fault.code == "E02"
        assert "test.erased" in fault.text
        assert fault.file == __file__
