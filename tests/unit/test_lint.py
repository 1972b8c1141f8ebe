"""The lint of a system: for each rule a faulty twin that breaks it and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
import test_lint_sagas

from oyez import (
    Command,
    Context,
    Event,
    Personal,
    Retry,
    Service,
    State,
    Transaction,
    View,
    applies,
    event,
    migrates,
)
from oyez.config import load
from oyez.inspection.lint import CODES, as_value, check, lint
from oyez.inspection.lint.keyed import Recorded
from oyez.inspection.lint.live import Kept, Standing, look
from oyez.inspection.lint.sarif import sarif
from oyez.inspection.lint.shapes import Shape, shape_of, why_changed
from oyez.inspection.lint.system import Fault, System
from oyez.personal import personal_fields
from oyez.ports import Changes, Record
from oyez.project import Project
from oyez.window import Window

SHOP = Path(__file__).parents[2] / "examples" / "shop"


class Placed(Event, type="t.placed", key="order"):
    order: str
    cents: int = 0
    note: str | None = None


class Paid(Event, type="t.paid", key="order"):
    order: str


class Lost(Event, type="t.lost", key="order"):
    order: str


class Plased(Event, type="t.plased", key="order"):
    order: str


class Other(Event, type="t.placed", key="cents"):
    order: str
    cents: int


class Closed(Event, type="t.closed"):
    day: str


class Wanting(Event, type="t.placed", key="order"):
    order: str
    vat: int


class Rated(Event, type="bank.rated", key="order", stream="bank.rates"):
    order: str


class Counted(Event, type="t.placed", key="order"):
    order: str
    cents: int


class Tab(State, key="order"):
    cents: int = 0


class Amounts(State):
    last: str = ""


class Card(State, key="order"):
    holder: Annotated[str, Personal] = ""


class Counts(Event, type="t.counts", key="order"):
    order: str
    cents: int


class Deposited(Event, type="t.deposited", key="order"):
    order: str
    cents: str


class Pack(Command, type="t.pack", key="order", to="payments"):
    order: str


class Gateway:
    """What a service provides to call the outside."""


def shop() -> tuple[Service, Service]:
    """Two services without a fault: orders publishes what payments handles."""
    orders = Service("orders", publishes=(Placed,))

    @orders.on(Paid)
    async def paid(event: Paid, tx: Transaction) -> None: ...

    payments = Service("payments")

    @payments.provides
    def gateway() -> Gateway:
        return Gateway()

    @payments.on(Placed)
    async def charge(event: Placed, context: Context, gateway: Gateway) -> Paid: ...

    return orders, payments


def unheard(orders: Service, payments: Service) -> None:
    @orders.on(Paid, name="again")
    async def again(event: Paid, tx: Transaction) -> Lost | None: ...


def unsaid(orders: Service, payments: Service) -> None:
    @payments.on(Plased)
    async def misspelt(event: Plased, tx: Transaction) -> None: ...


def misdirected(orders: Service, payments: Service) -> None:
    @payments.on(Placed, name="ask")
    async def ask(event: Placed, tx: Transaction) -> Pack: ...

    @orders.on(Pack)
    async def pack(event: Pack, tx: Transaction) -> None: ...


def two_owners(orders: Service, payments: Service) -> None:
    @orders.on(Paid, name="again")
    async def again(event: Paid, tx: Transaction) -> None: ...

    orders._publishes = (*orders._publishes, *payments.publishes)


def key_differs(orders: Service, payments: Service) -> None:
    @payments.on(Other, name="other")
    async def other(event: Other, tx: Transaction) -> None: ...


def order_lost(orders: Service, payments: Service) -> None:
    @orders.on(Paid, name="close")
    async def close(event: Paid, tx: Transaction) -> Closed | None: ...

    @payments.on(Closed)
    async def closed(event: Closed, tx: Transaction) -> None: ...


def changes_in_any_order(orders: Service, payments: Service) -> None:
    order_lost(orders, payments)
    payments.handlers.pop()

    @payments.on(Closed, by="day")
    async def closed(event: Closed, tab: Tab) -> None: ...


def row_not_found(orders: Service, payments: Service) -> None:
    @payments.on(Counted, name="counted", by="cents")
    async def counted(event: Counted, amounts: Amounts) -> Paid | None: ...

    @payments.on(Placed, name="placed", by="note")
    async def placed(event: Placed, amounts: Amounts) -> None: ...


def feeds_itself(orders: Service, payments: Service) -> None:
    @orders.on(Paid, name="again")
    async def again(event: Paid, tx: Transaction) -> Placed: ...


def outward(orders: Service, payments: Service) -> None:
    @orders.provides
    async def gateway() -> AsyncIterator[Gateway]:
        yield Gateway()

    @orders.on(Paid, name="tell")
    async def tell(event: Paid, gateway: Gateway, tab: Tab) -> None: ...


def not_idempotent(orders: Service, payments: Service) -> None:
    @payments.on(Placed, name="call")
    async def call(event: Placed, gateway: Gateway) -> None: ...


def retries_too_long(orders: Service, payments: Service) -> None:
    @payments.on(Placed, name="stubborn", retry=Retry(attempts=10_000))
    async def stubborn(event: Placed, tx: Transaction) -> None: ...


def misfit(orders: Service, payments: Service) -> None:
    @payments.on(Wanting, name="wanting")
    async def wanting(event: Wanting, tx: Transaction) -> None: ...


def not_forgotten(orders: Service, payments: Service) -> None:
    @payments.on(Placed, name="card")
    async def card(event: Placed, card: Card) -> None: ...


def changed(orders: Service, payments: Service) -> None:
    @payments.on(Placed, name="tab")
    async def tab(event: Placed, tab: Tab) -> None: ...


def two_streams(orders: Service, payments: Service) -> None:
    @orders.on(Placed, Paid, name="tab")
    async def tab(event: Placed | Paid, tab: Tab) -> None: ...


def nothing(orders: Service, payments: Service) -> None: ...


def unneeded(orders: Service, payments: Service) -> None:
    @payments.on(Placed, name="fine", allow={"E14": "it ends"})
    async def fine(event: Placed, tx: Transaction) -> None: ...


TWINS: dict[str, Callable[[Service, Service], None]] = {
    "E00": unneeded,
    "E01": unheard,
    "E02": unsaid,
    "E03": misdirected,
    "E04": two_owners,
    "E05": key_differs,
    "E06": order_lost,
    "E13": row_not_found,
    "E14": feeds_itself,
    "E15": outward,
    "E16": not_idempotent,
    "E17": retries_too_long,
    "E18": misfit,
    "E19": not_forgotten,
    "E20": changed,
    "E21": nothing,
    "E22": two_streams,
    "E23": nothing,
}
RECORDED: Recorded = {"payments": {"Tab": Shape(1, {"cents": "string"})}}
BOTH = {"shop.orders": 8, "shop.payments": 8}
GONE = Standing(replicas=1, partitions=BOTH, starts={("shop.orders", 3): 12}, stored=Kept())
UNEVEN = Standing(replicas=1, partitions={"shop.orders": 8, "shop.payments": 4}, stored=Kept())
OPTIONS: dict[str, dict[str, Any]] = {
    "E20": {"recorded": RECORDED},
    "E21": {"payments": GONE},
    "E22": {"orders": UNEVEN},
    "E23": {"orders": Standing(replicas=1, stored=Kept(stuck=(("Fulfilment", 2, "4711"),)))},
}
ERRORS = ("E02", "E03", "E04", "E05", "E13", "E14", "E18", "E20", "E21", "E23")
PLACELESS = ("E23",)


def found(
    *breaks: Callable[[Service, Service], None],
    orders: Standing | None = None,
    payments: Standing | None = None,
    **options: Any,
) -> list[Fault]:
    services = dict(zip(("orders", "payments"), shop(), strict=True))
    for each in breaks:
        each(*services.values())
    standing = None
    if orders or payments:
        idle = Standing(replicas=1, stored=Kept())
        standing = {"orders": orders or idle, "payments": payments or idle}
    return check(System(services, name="shop", **options), standing)


def test_a_system_without_a_fault_has_none() -> None:
    assert found() == []
    assert {*TWINS, *test_lint_sagas.TWINS} == set(CODES)


@pytest.mark.parametrize("code", TWINS)
def test_each_twin_breaks_its_own_rule_alone(code: str) -> None:
    faults = found(TWINS[code], **OPTIONS.get(code, {}))
    assert {each.code for each in faults} == {code}
    for each in faults:
        assert code in PLACELESS or (each.file == __file__ and each.line > 0)
        assert each.remedy
        assert each.level == ("error" if code in ERRORS else "warning")


def test_faults_name_what_is_wrong() -> None:
    (unsaid_,) = found(unsaid)
    assert "t.plased, which payments.misspelt handles; t.placed is published" in unsaid_.text
    (circle,) = found(feeds_itself)
    assert circle.text == "events lead to themselves: t.paid → t.placed → t.paid"
    (wanting,) = found(misfit)
    assert wanting.text.endswith(
        "the t.placed of orders: FIELD_MISSING: vat: it is required, and is not published; it "
        """can't read {"cents":1,"note":"x","order":"x"}"""
    )


def test_what_comes_from_outside_is_named() -> None:
    assert found(unsaid, external=("t.plased",)) == []
    assert found(unheard, external=("t.lost",)) == []


def test_a_stream_of_another_system_needs_no_publisher() -> None:
    orders, payments = shop()

    @payments.on(Rated)
    async def rated(event: Rated, tx: Transaction) -> None: ...

    services = {"orders": orders, "payments": payments}
    assert check(System(services, name="shop")) == []
    assert [each.code for each in check(System(services, name="bank"))] == ["E02"]


def test_a_permit_silences_its_rule_and_must_give_a_reason() -> None:
    for reason, codes in (("it ends at the third order", []), (" ", ["E00"])):

        def ends(orders: Service, payments: Service, reason: str = reason) -> None:
            @orders.on(Paid, name="again", allow={"E14": reason})
            async def again(event: Paid, tx: Transaction) -> Placed: ...

        assert [each.code for each in found(ends)] == codes


def test_a_command_is_done_by_one_handler_of_its_service() -> None:
    assert [each.text for each in found(misdirected)] == [
        "t.pack asks payments, which has no handler of it",
        "orders.pack handles t.pack, which asks payments",
    ]

    def asks(orders: Service, payments: Service) -> None:
        for service in (orders, payments):  # whoever wants it may ask for it

            @service.on(Paid if service is orders else Placed, name="ask")
            async def ask(event, tx: Transaction) -> Pack: ...  # type: ignore[no-untyped-def]

    def pack(orders: Service, payments: Service) -> None:
        @payments.on(Pack, name="pack")
        async def pack(event: Pack, tx: Transaction) -> None: ...

    def twice(orders: Service, payments: Service) -> None:
        @payments.on(Pack, name="count")
        async def count(event: Pack, tx: Transaction) -> None: ...

    assert found(asks, pack) == []
    assert [each.code for each in found(asks)] == ["E03"]
    assert found(asks, external=("t.pack",)) == []
    (second,) = found(asks, pack, twice)
    assert (
        second.text == "payments.count handles t.pack, which asks payments: payments.pack does that"
    )


def test_keyed_state_that_changes_in_any_order_is_an_error() -> None:
    (lost,) = found(changes_in_any_order)
    assert (lost.code, lost.level) == ("E06", "error")
    assert lost.text.endswith("t.closed, which has no key: Tab changes in any order")


def test_a_row_is_found_by_one_type() -> None:
    (fault,) = found(row_not_found)
    assert fault.text == (
        "payments.placed finds Amounts by t.placed.note, which is null or string; t.placed.cents "
        "is integer"
    )


def test_what_a_plain_provider_makes_is_outward_if_it_is_named() -> None:
    def call(orders: Service, payments: Service) -> None:
        @payments.on(Placed, name="call")
        async def call(event: Placed, tx: Transaction, gateway: Gateway) -> None: ...

    assert found(call) == []
    for name in ("Gateway", f"{__name__}.Gateway"):
        assert [each.code for each in found(call, outward=(name,))] == ["E15"]


def test_personal_data_is_forgotten_where_the_event_is_handled() -> None:
    (fault,) = found(not_forgotten, erasure="t.lost")
    assert fault.text == (
        "payments keeps personal data in Card (holder), and does not handle t.lost"
    )
    assert found(not_forgotten, erasure="t.placed") == []


@dataclass
class Address:
    street: Annotated[str, Personal]
    town: str


class Contact(msgspec.Struct):
    home: Address
    next: Contact | None = None


class Book(State, key="order"):
    contacts: dict[str, list[Contact]] = msgspec.field(default_factory=dict)
    phone: Annotated[str | None, Personal()] = None
    note: Annotated[str, "of no person"] = ""


def test_personal_data_is_found_within_other_classes() -> None:
    assert personal_fields(Book) == ["contacts.home.street", "phone"]


def test_keyed_state_is_compared_with_its_record() -> None:
    def codes(recorded: Recorded | None) -> list[tuple[str, str]]:
        return [(each.level, each.text) for each in found(changed, recorded=recorded)]

    assert codes(None) == []
    same = {"payments": {"Tab": Shape(1, {"cents": "integer"})}}
    assert codes(same) == []
    assert codes(same | {"gone": {"Tab": Shape(1, {})}}) == []
    assert codes({}) == [("warning", "Tab of payments is not recorded as it is")]
    assert codes({"payments": {"Tab": Shape(1, {})}}) == codes({})
    assert codes(RECORDED) == [
        (
            "error",
            "Tab of payments was changed, and rows do not fit it: its field cents was string and "
            "is integer",
        )
    ]
    newer = {"payments": {"Tab": Shape(2, {"cents": "integer"})}}
    assert codes(newer)[0][1].endswith("rows do not fit it: its version was 2 and is 1")
    renamed = {"payments": same["payments"] | {"Bill": Shape(1, {})}}
    assert codes(renamed) == [
        ("warning", "Bill of payments is recorded, and no handler has it any more")
    ]


class Euros(State, key="order", version=2, name="Tab"):
    euros: float = 0.0

    @migrates(1)
    def _(old: dict[str, Any]) -> dict[str, Any]:  # noqa: N805
        return {"euros": old["cents"] / 100}


def test_a_new_version_may_have_other_fields() -> None:
    def raised(orders: Service, payments: Service) -> None:
        @payments.on(Placed, name="tab")
        async def tab(event: Placed, tab: Euros) -> None: ...

    (fault,) = found(raised, recorded=RECORDED)
    assert (fault.level, fault.text) == ("warning", "Tab of payments is not recorded as it is")


class Item(msgspec.Struct):
    sku: str
    note: str | None = None


class Widened(msgspec.Struct):
    sku: str | int
    note: str | None = None
    count: int = 1


class Narrowed(msgspec.Struct):
    sku: str
    count: int
    note: str | None = None


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (int, float, ""),
        (float, int, "its field value was number and is integer"),
        (str, str | None, ""),
        (str | None, str, "its field value was null | string and is string"),
        (str, bytes, "its field value was string and is string (base64)"),
        (list[Item], list[Widened], ""),
        (list[Widened], list[Item], "its field value[].sku was integer | string and is string"),
        (dict[str, Item], dict[str, Narrowed], "its field value{}.count is new and has no default"),
        (list[Item] | None, dict[str, Item], "its field value was array | null and is object"),
        (tuple[int, str], tuple[int, int], "its field value[1] was string and is integer"),
    ],
)
def test_a_shape_that_holds_what_it_held_fits(before: Any, after: Any, why: str) -> None:
    old, new = (msgspec.defstruct("Shaped", [("value", kind, None)]) for kind in (before, after))
    assert why_changed(shape_of(old, 1), shape_of(new, 1)) == why


def test_history_is_gone_only_for_who_is_still_to_read_it() -> None:
    (fault,) = found(payments=GONE)
    assert fault.text.startswith("payments has yet to read shop.orders from the beginning")
    began = msgspec.structs.replace(GONE, stored=Kept(positions={"": {("shop.orders", 3): 12}}))
    assert found(payments=began) == []
    assert found(orders=GONE) == []  # what orders handles is in another stream
    assert found(payments=msgspec.structs.replace(GONE, stored=None)) == []


def test_a_replica_more_than_partitions_has_nothing_to_read() -> None:
    assert found(payments=Standing(replicas=8, partitions=BOTH)) == []
    (fault,) = found(payments=Standing(replicas=9, partitions=BOTH))
    assert (fault.code, fault.text) == ("E22", "payments has 9 replicas for 8 partitions")


def test_what_waits_for_nobody_is_named() -> None:
    stored = Kept(parked=("charge", "refund"), timers=("Tab", "oyez:schedule"))
    assert [each.text for each in found(payments=Standing(replicas=1, stored=stored))] == [
        "events are parked for payments.refund, which is no handler any more",
        "timers of payments are set for Tab, which no handler has any more",
    ]


def test_rows_of_a_version_that_the_code_does_not_know_yet_are_named() -> None:
    def held(version: int) -> Standing:
        return Standing(replicas=1, stored=Kept(versions={"Tab": version, "Gone": 9}))

    def second(orders: Service, payments: Service) -> None:
        @payments.on(Placed, name="tab")
        async def tab(event: Placed, tab: Euros) -> None: ...

    assert found(second, payments=held(2)) == []
    (fault,) = found(second, payments=held(3))
    assert (fault.code, fault.level) == ("E20", "error")
    assert fault.text == (
        "Tab of payments has version 2, and the store holds rows of version 3, whose events wait"
    )


def test_a_permit_of_a_live_rule_is_needed_as_far_as_is_seen() -> None:
    def permitted(orders: Service, payments: Service) -> None:
        @payments.on(Placed, name="late", allow={"E21": "it begins with what is there"})
        async def late(event: Placed, tx: Transaction) -> None: ...

    assert found(permitted) == []
    assert found(permitted, payments=GONE) == []
    assert [each.code for each in found(permitted, payments=Standing(replicas=1))] == ["E00"]


async def test_a_running_system_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "oyez.toml").write_text(
        '[system]\nname = "shop"\nbroker = "embedded:events.db"\n'
        '[services.orders]\napp = "none:service"\n[services.payments]\napp = "none:service"\n'
        'replicas = 9\n[services.away]\napp = "none:service"\n'
        'store = "postgresql://127.0.0.1:1/none?deadline=0.2"\n'
    )
    project = Project(load(tmp_path, {}))
    orders, payments = shop()
    services = {"orders": orders, "payments": payments}
    nothing_yet, gaps = await look(project, services)
    assert gaps == []
    assert lint(project, services, nothing_yet) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "oyez.toml"]

    store = project.store("orders")
    await store.open()
    await store.begin().commit(
        Changes(
            writes=[
                (sql, [{}])
                for sql in (
                    "insert into oyez_cursor (stream, partition, position)"
                    " values ('shop.payments', 0, 5)",
                    "insert into oyez_timer (kind, key, name, due, part, armed)"
                    " values ('Tab', '1', 'remind', 9, 0, 1)",
                    "insert into oyez_state (kind, key, version, shape, data, changed, status)"
                    " values ('Fulfilment', '4711', 1, 1, x'80', 1, 'stuck')",
                )
            ]
        )
    )
    await store.close()
    async with project.opened_broker(create=True) as broker:
        await broker.create("shop.orders", 8)
        await broker.publish([Record(stream="shop.orders", key="1", headers={}, data=b"{}")])
    standing, gaps = await look(project, services | {"away": Service("away")})
    assert [(gap.part, gap.name, gap.cause) for gap in gaps] == [("store", "away", "unreachable")]
    assert standing["orders"].stored == Kept(
        positions={"": {("shop.payments", 0): 5}},
        timers=("Tab",),
        versions={"Fulfilment": 1},
        stuck=(("Fulfilment", 1, "4711"),),
    )
    assert standing["payments"].partitions == {"shop.orders": 8}
    assert len(standing["payments"].starts) == 8
    assert [each.text for each in lint(project, services, standing)] == [
        "payments has 9 replicas for 8 partitions",
        "1 of Fulfilment in orders are stuck, such as 4711",
        "timers of orders are set for Tab, which no handler has any more",
    ]


class Orders(View, table="orders", key="order"):
    order: str
    cents: int = 0
    payer: Annotated[str, Personal] = ""

    @applies
    def placed(self, event: Placed) -> None: ...


class Wide(View, table="orders", key="order"):
    order: str
    cents: int = 0
    payer: str = ""
    town: str = ""

    @applies
    def placed(self, event: Placed) -> None: ...

    @applies(by="cents")
    def counted(self, event: Counts) -> None: ...


def test_views_are_handlers_and_keyed_state_as_well() -> None:
    def viewed(view: type[View]) -> Callable[[Service, Service], None]:
        def declare(orders: Service, payments: Service) -> None:
            payments.handlers.clear()
            orders.handlers.clear()
            payments.view(view)

        return declare

    (kept,) = found(viewed(Orders))  # t.placed is not unheard
    assert (kept.code, kept.file) == ("E19", __file__)
    assert kept.text.startswith("payments keeps personal data in view:orders (payer)")
    shape = shape_of(Orders, 1)
    record = {"payments": {"view:orders": shape}}
    unfit = "view:orders of payments was changed, and rows do not fit it: "
    assert found(viewed(Orders), erasure="t.placed", recorded=record) == []
    faults = found(viewed(Wide), recorded=record, external=("t.counts",))
    assert [(each.code, each.text.removeprefix(unfit)) for each in faults] == [
        (
            "E13",
            "payments.view:orders@1 finds view:orders by t.counts.cents, which is integer; "
            "t.placed.order is string",
        ),
        ("E20", "its table has no column for the field town"),
    ]
    (gone,) = found(viewed(Orders), erasure="t.placed", payments=GONE)
    assert gone.file == __file__
    assert gone.text.startswith("payments.view:orders@1 has yet to read shop.orders")
    caught_up = Kept(positions={"view:orders@1": {("shop.orders", 3): 12}})
    standing = msgspec.structs.replace(GONE, stored=caught_up)
    assert found(viewed(Orders), erasure="t.placed", payments=standing) == []


class Minute(Window, key="order", size=60, late=10):
    payer: Annotated[str, Personal] = ""

    def add(self, event: Placed) -> None: ...

    def close(self) -> None: ...


def test_a_window_is_keyed_state_as_well() -> None:
    def counted(orders: Service, payments: Service) -> None:
        orders.window(Minute, Paid, Counts, by="order")

    recorded = {"orders": {"Minute": Shape(1, {"payer": "integer"})}}
    personal, changed = found(counted, recorded=recorded, external=("t.counts",))
    assert personal.text.startswith("orders keeps personal data in Minute (payer)")
    assert changed.text.endswith("its field payer was integer and is string")

    def mixed(orders: Service, payments: Service) -> None:
        orders.window(Minute, Counted, Deposited, by="cents")

    faults = found(mixed, erasure="t.placed", external=("t.deposited",))
    assert [each.code for each in faults] == ["E13"]


def test_a_circle_that_a_handler_may_end_is_a_warning() -> None:
    def perhaps(orders: Service, payments: Service) -> None:
        @orders.on(Paid, name="again")
        async def again(event: Paid, tx: Transaction) -> Placed | None: ...

    (circle,) = found(perhaps)
    assert (circle.code, circle.level) == ("E14", "warning")


def test_an_event_may_lead_to_itself_at_once() -> None:
    def echo(orders: Service, payments: Service) -> None:
        @orders.on(Placed, name="echo")
        async def echo(event: Placed, tx: Transaction) -> list[Placed]: ...

    (circle,) = found(echo)
    assert circle.text.startswith("events lead to themselves: t.placed → t.placed; whether")


@pytest.mark.parametrize(
    ("theirs", "mine", "why"),
    [
        (str, int, "TYPE_NARROWED: value: it is string, and integer is expected"),
        (int, float, ""),
        (str | None, str, "FIELD_OPTIONAL: value: it may be null, and null is not expected"),
        (None, str, "FIELD_OPTIONAL: value: it may be null, and null is not expected"),
        (list[int], list[str], "TYPE_NARROWED: value[]: it is integer, and string is expected"),
        (msgspec.UNSET.__class__ | str, str, ""),
    ],
)
def test_types_of_fields_are_compared_as_json(theirs: object, mine: object, why: str) -> None:
    made = dataclass(type("Made", (), {"__annotations__": {"id": str, "value": theirs}}))
    read = dataclass(type("Read", (), {"__annotations__": {"id": str, "value": mine}}))
    orders = Service("orders", publishes=(event(type="t.made", key="id")(made),))
    payments = Service("payments")
    kind = event(type="t.made", key="id")(read)

    async def take(event, tx: Transaction): ...  # type: ignore[no-untyped-def]

    payments.on(kind)(take)
    faults = check(System({"orders": orders, "payments": payments}))
    texts = [each.text.partition(": ")[2].partition("; it can't read ")[0] for each in faults]
    assert texts == ([why] if why else [])


def test_an_older_version_than_is_published_can_not_be_read() -> None:
    class Newer(Event, type="t.paid", key="order", version=2):
        order: str

    orders, _ = shop()
    till = Service("till", publishes=(Newer, Placed))
    faults = check(System({"orders": orders, "till": till}, external=("t.placed",)))
    assert [each.text.partition(": ")[2] for each in faults] == [
        "VERSION_AHEAD: version 2 is published, and 1 is handled"
    ]


def test_a_large_system_is_checked() -> None:
    """500 types of 50 services, with ten handlers each and more."""
    classes = [
        type(Event)(f"E{n}", (Event,), {"__annotations__": {"id": str}}, type=f"t.e{n}", key="id")
        for n in range(500)
    ]
    services = {}
    for number in range(50):
        own = classes[number * 10 : number * 10 + 10]
        service = services[f"s{number}"] = Service(f"s{number}", publishes=tuple(own))
        for index in range(number, 500, 50):
            for offset in range(10):

                async def take(event, tx: Transaction): ...  # type: ignore[no-untyped-def]

                kind = classes[(index + offset * 37) % 500]
                service.on(kind, name=f"h{index}-{offset}")(take)
    faults = check(System(services))
    assert {each.code for each in faults} <= {"E01"}


def test_the_command_ends_with_1_for_an_error_alone(tmp_path: Path) -> None:
    def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "oyez", "topology", "--check", *arguments]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)

    good = run(cwd=SHOP)
    assert (good.returncode, good.stdout) == (0, "0 errors, 0 warnings\n"), good.stderr
    toml = '[system]\nname = "till"\n[services.desk]\napp = "desk:service"\n'
    (tmp_path / "oyez.toml").write_text(toml)
    (tmp_path / "desk.py").write_text(
        "from oyez import Event, Service\n"
        'class Sold(Event, type="till.sold", key="item"):\n    item: str\n'
        'service = Service("desk", publishes=(Sold,))\n'
    )
    warned = run(cwd=tmp_path)
    assert warned.returncode == 0
    assert warned.stdout.startswith("E01 warning desk.py:2: nobody handles till.sold")
    assert run("--strict", cwd=tmp_path).returncode == 1
    (tmp_path / "desk.py").write_text(
        "from oyez import Event, Service, Transaction\n"
        'class Sold(Event, type="till.sold", key="item"):\n    item: str\n'
        'service = Service("desk")\n'
        "@service.on(Sold)\nasync def record(event: Sold, tx: Transaction) -> None: ...\n"
    )
    bad = run("--json", cwd=tmp_path)
    assert bad.returncode == 1
    value = json.loads(bad.stdout)
    assert value["ok"] is False
    assert [(each["code"], each["file"]) for each in value["faults"]] == [("E02", "desk.py")]
    github = run("--format", "github", cwd=tmp_path)
    assert github.stdout.startswith("::error file=desk.py,line=5,title=E02::nobody publishes")
    (tmp_path / "oyez.toml").write_text(toml.replace('"till"', '"till"\nexternal = ["till.sold"]'))
    assert run("--strict", cwd=tmp_path).returncode == 0
    assert run("--format", "svg", cwd=tmp_path).returncode == 2
    assert run("--strict", "--live", cwd=tmp_path).returncode == 0
    gone = toml.replace("[system]", '[system]\nbroker = "redis://127.0.0.1:1?deadline=0.2"')
    (tmp_path / "oyez.toml").write_text(gone.replace('"till"', '"till"\nexternal = ["till.sold"]'))
    cut = run("--live", cwd=tmp_path)
    assert (cut.returncode, cut.stdout) == (1, "0 errors, 0 warnings\n")
    assert "broker redis is left out" in cut.stderr
    (tmp_path / "oyez.toml").write_text(toml)
    log = json.loads(run("--format", "sarif", cwd=tmp_path).stdout)
    (result,) = log["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "desk.py"},
        "region": {"startLine": 5},
    }


def test_the_command_records_keyed_state(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "oyez", "topology", "--check", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    def declare(field: str) -> None:
        (tmp_path / "desk.py").write_text(
            "from oyez import Event, Service, State\n"
            'class Sold(Event, type="till.sold", key="item"):\n    item: str\n'
            f'class Count(State, key="item"):\n    {field} = 0\n'
            'service = Service("desk", publishes=(Sold,))\n'
            "@service.on(Sold)\nasync def record(event: Sold, count: Count) -> None: ...\n"
        )

    (tmp_path / "oyez.toml").write_text(
        '[system]\nname = "till"\n[services.desk]\napp = "desk:service"\n'
    )
    declare("sold: int")
    assert run("--record").returncode == 0
    record = tmp_path / "contracts" / "state.json"
    assert json.loads(record.read_text()) == {
        "desk": {"Count": {"version": 1, "fields": {"sold": "integer"}}}
    }
    declare("sales: int")
    bad = run()
    assert (bad.returncode, bad.stdout.count("E20 error")) == (1, 1)
    assert run("--record", "--strict").returncode == 0
    record.write_text("{")
    assert run().returncode == 2
    assert "state.json: Input data was truncated" in run().stderr


def test_as_value_is_json() -> None:
    value = as_value(found(unsaid), {"lost": "no module"})
    assert json.loads(json.dumps(value)) == value
    assert value["ok"] is False


def test_sarif_has_what_its_schema_requires() -> None:
    log = json.loads(json.dumps(sarif(found(unsaid), {"lost": "no module"}, CODES)))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    assert run["tool"]["driver"]["name"] == "oyez"
    assert [each["id"] for each in run["tool"]["driver"]["rules"]] == list(CODES)
    (result,) = run["results"]
    assert (result["ruleId"], result["level"]) == ("E02", "error")
    assert result["message"]["text"].startswith("nobody publishes t.plased")
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    (note,) = invocation["toolExecutionNotifications"]
    assert note["message"]["text"] == "lost can't be imported: no module"
