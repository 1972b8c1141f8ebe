"""Keyed state: its declaration, its rows, and what handlers make of it."""

import math
from typing import Any

import msgspec
import parts as parts_of
import pytest
from parts import STREAM, Parts, batch, record

from oyez import Context, Event, Retry, Service, State, Transaction, migrates
from oyez.errors import (
    DeclarationError,
    InvalidEvent,
    NewerState,
    StateConflict,
    StateMismatch,
)
from oyez.event import MAX_DATA
from oyez.ports import Changes, Kept
from oyez.signals import EventRetried
from oyez.state import Fold, kind_of
from oyez.testing import running


class Placed(Event, type="test.placed", key="order"):
    order: str
    customer: str = "c"
    number: int = 0


class Paid(Event, type="test.paid", key="order"):
    order: str


class Loose(Event, type="test.loose"):
    number: int = 0


class Total(Event, type="test.total", key="order"):
    order: str
    seen: list[int]


class Order(State, key="order"):
    seen: list[int] = []  # noqa: RUF012 - copied for each
    paid: bool = False


class TestRows:
    """`StateType` and `Fold`, without a store."""

    def test_a_row_survives_with_every_float_and_bytes(self) -> None:
        class Reading(State):
            highest: float = -math.inf
            sketch: bytes = b""
            by_hour: dict[int, float] = {}  # noqa: RUF012 - as above

        kind = kind_of(Reading)
        value = kind.open(Kept(kind="Reading", key="a"))
        assert (value.key, value.highest) == ("a", -math.inf)
        value.sketch = b"\xff\0"
        value.by_hour[3] = math.inf
        row = kind.close(value, Kept(kind="Reading", key="a", version=4))
        assert row is not None
        assert (row.version, row.shape, row.status) == (4, 1, None)
        again = kind.open(row)
        assert again == value
        assert again.key == "a"
        assert kind.close(again, row) is None

    def test_the_field_of_the_key_is_filled(self) -> None:
        class Parcel(State, key="order"):
            order: str
            weight: int = 0

        assert Parcel.keyed("4711", weight=3) == Parcel(order="4711", weight=3)
        kind = kind_of(Parcel)
        row = kind.close(Parcel.keyed("4711"), Kept(kind="Parcel", key="4711"))
        assert row is not None
        assert kind.open(row).order == kind.open(row).key == "4711"

    def test_what_one_event_deletes_is_new_for_the_next(self) -> None:
        kind, fold = kind_of(Order), Fold()
        data = msgspec.msgpack.encode({"seen": [1], "paid": True})
        fold.add([Kept(kind="Order", key="a", version=3, shape=1, data=data)])
        order = fold.of(kind, "a")
        assert order.seen == [1]
        order.delete()
        assert fold.changed() == [Kept(kind="Order", key="a", version=3)]
        again = fold.of(kind, "a")
        assert (again.seen, again.paid) == ([], False)
        (row,) = fold.changed()
        assert (row.version, row.data is None) == (3, False)

    def test_what_was_never_stored_is_not_deleted(self) -> None:
        fold = Fold()
        fold.add([Kept(kind="Order", key="a")])
        fold.of(kind_of(Order), "a").delete()
        assert fold.changed() == []

    def test_rows_that_did_not_change_are_not_written(self) -> None:
        kind, fold = kind_of(Order), Fold()
        data = kind.encode(Order(seen=[1]))
        fold.add([Kept(kind="Order", key=key, version=1, shape=1, data=data) for key in "abc"])
        assert fold.missing([("Order", "a"), ("Order", "z"), ("Order", "z")]) == [("Order", "z")]
        fold.of(kind, "a")
        fold.of(kind, "b").seen.append(2)
        assert [row.key for row in fold.changed()] == ["b"]

    def test_an_older_row_is_migrated_step_by_step(self) -> None:
        class Older(State, name="Account"):
            owner: str = ""

        class Account(State, version=3):
            first: str = ""
            last: str = ""
            open: bool = True

            @migrates(1)
            def _names(old: dict[str, Any]) -> dict[str, Any]:  # noqa: N805
                first, _, last = old["owner"].partition(" ")
                return {"first": first, "last": last}

            @migrates(2)
            def _open(old: dict[str, Any]) -> dict[str, Any]:  # noqa: N805
                return {**old, "open": False}

        row = kind_of(Older).close(Older(owner="Ada Lovelace"), Kept(kind="Account", key="a"))
        assert row is not None
        kind = kind_of(Account)
        account = kind.open(row)
        assert account == Account(first="Ada", last="Lovelace", open=False)
        newer = kind.close(account, row)
        assert newer is not None
        assert newer.shape == 3
        with pytest.raises(NewerState, match="Account a has version 3 and this process knows 1"):
            kind_of(Older).open(newer)

    def test_what_does_not_fit_or_can_not_be_stored_is_told(self) -> None:
        kind = kind_of(Order)
        data = msgspec.msgpack.encode({"seen": ["x"]})
        with pytest.raises(StateMismatch, match=r"Order a does not fit its class: .*seen\[0\]"):
            kind.open(Kept(kind="Order", key="a", version=1, shape=1, data=data))
        row = Kept(kind="Order", key="a")
        for bad, message in (
            (Order.keyed("a", seen=[1 << 70]), "can't be stored"),
            (Order.keyed("a", seen=[10**9] * (MAX_DATA // 5 + 1)), f"at most {MAX_DATA}"),
        ):
            with pytest.raises(StateMismatch, match=message):
                kind.close(bad, row)


class TestDeclared:
    """Wrong declarations name the class and the remedy."""

    @pytest.mark.parametrize(
        ("options", "fields", "message"),
        [
            ({"name": "0"}, {}, "name='0'"),
            ({"version": 0}, {}, "version=0"),
            ({"version": 2}, {}, r"add @migrates\(1\), under a name of its own"),
            ({}, {"left": int}, "field left has no default"),
            ({}, {"key": str}, "field key: Oyez uses this name itself"),
            ({"key": "order"}, {"order": int}, "field order holds the key"),
        ],
    )
    def test_classes(self, options: Any, fields: Any, message: str) -> None:
        with pytest.raises(DeclarationError, match=message) as caught:
            type(State)("Bad", (State,), {"__annotations__": fields, "__module__": "m"}, **options)
        assert str(caught.value).startswith("m.Bad: ")

    def test_migrations(self) -> None:
        with pytest.raises(DeclarationError, match="expected 1 or more"):
            migrates(0)
        with pytest.raises(DeclarationError, match="set version=2"):

            class Bad(State):
                @migrates(1)
                def _one(old: dict[str, Any]) -> dict[str, Any]:  # noqa: N805
                    return old

    def test_only_declared_classes_are_state(self) -> None:
        with pytest.raises(DeclarationError, match="is not keyed state"):
            kind_of(Placed)

    def test_handlers(self) -> None:
        service = Service("desk")

        class Free(State):
            n: int = 0

        class Elsewhere(State, key="place"):
            n: int = 0

        class Other(State, name="Order"):
            n: int = 0

        async def take(event: Placed, order: Order) -> None: ...
        async def twice(event: Placed, one: Order, two: Order) -> None: ...
        async def many(events: list[Placed], order: Order) -> None: ...
        async def loose(event: Loose, free: Free) -> None: ...
        async def lacking(event: Placed, place: Elsewhere) -> None: ...
        async def same(event: Placed, other: Other) -> None: ...
        async def none(event: Placed) -> None: ...

        service.on(Placed)(take)
        for handler, cls, options, message in (
            (twice, Placed, {}, "Order is there twice"),
            (many, Placed, {"batch": True}, "no single key"),
            (loose, Loose, {}, "Loose has no key to find its Free by"),
            (lacking, Placed, {}, "Placed has no field place, by which its Elsewhere is found"),
            (take, Placed, {"by": "odd", "name": "odd"}, "Placed has no field odd"),
            (same, Placed, {}, "two kinds of state named Order"),
            (none, Placed, {"by": "order"}, "no parameter is a State"),
        ):
            with pytest.raises(DeclarationError, match=message):
                service.on(cls, **options)(handler)  # type: ignore[arg-type]
        assert [handler.name for handler in service.handlers] == ["take"]


def counting() -> Service:
    """A service that remembers each order's numbers, and announces them when it is paid."""
    service = Service("desk")

    @service.on(Placed)
    async def place(event: Placed, order: Order) -> None:
        order.seen.append(event.number)

    @service.on(Paid)
    def pay(event: Paid, order: Order) -> Total | None:
        order.paid = True
        return Total(order=order.key, seen=order.seen)

    return service


class TestInProcess:
    """Handlers with state on the whole runtime."""

    async def test_events_of_a_key_change_its_state_in_turn(self) -> None:
        async with running(counting()) as system:
            for number in range(30):
                await system.publish(Placed(order=str(number % 3), number=number))
            for order in "012":
                await system.publish(Paid(order=order))
            await system.settled()
            found = {event.order: event.seen for event in system.announced(Total)}
            assert found == {str(n): list(range(n, 30, 3)) for n in range(3)}
            rows = await system.fetch("desk", "select key, version from oyez_state order by key")
            assert [row["key"] for row in rows] == ["0", "1", "2"]
            service = system.processes["desk"].service
            assert await service.read(Order, "1") == Order(seen=found["1"], paid=True)
            assert await service.read(Order, "9") is None

    async def test_a_failing_event_leaves_no_trace_in_the_state(self) -> None:
        service = Service("desk")
        failures = {"left": 2}

        @service.on(Placed, retry=Retry(first=1.0, jitter=0.0))
        async def place(event: Placed, order: Order) -> Total | None:
            order.seen.append(event.number)
            if event.number == 5 and failures["left"]:
                failures["left"] -= 1
                raise ValueError("not yet")
            return Total(order=order.key, seen=list(order.seen))

        async with running(service) as system:
            for number in range(8):
                await system.publish(Placed(order="a", number=number))
            await system.publish(Placed(order="b", number=9))
            await system.settled()
            assert [e.seen for e in system.announced(Total) if e.order == "b"] == [[9]]
            await system.advance(3600.0)
            assert await service.read(Order, "a") == Order(seen=list(range(8)))
            assert await system.dead("desk") == []

    async def test_the_key_is_a_field_or_a_function_of_the_event(self) -> None:
        service = Service("desk")

        class Customer(State, key="customer"):
            orders: int = 0

        class Parity(State):
            count: int = 0

        @service.on(Placed)
        async def by_state(event: Placed, customer: Customer, tx: Transaction) -> None:
            customer.orders += 1
            tx.execute("create table if not exists t (n integer)")
            assert await tx.fetch("select * from t") == []

        @service.on(Placed, by=lambda event: event.number % 2)
        async def by_function(event: Placed, parity: Parity, context: Context) -> None:
            parity.count += 1

        @service.on(Placed, by="number")
        async def by_field(event: Placed, order: Order) -> None:
            order.seen.append(event.number)

        async with running(service) as system:
            for number in range(7):
                await system.publish(Placed(order=str(number), number=number, customer="c"))
            await system.settled()
            assert await service.read(Customer, "c") == Customer(orders=7)
            assert await service.read(Parity, "1") == Parity(count=3)
            assert await service.read(Order, "6") == Order(seen=[6])
            await system.publish(Placed(order="x", customer="", number=8))
            await system.settled()
            (letter,) = await system.dead("desk")
            assert letter["handler"] == "by_state"
            assert "$.customer: expected 1 to 512 printable characters" in letter["reason"]
            assert await service.read(Parity, "0") == Parity(count=5)

    async def test_a_request_changes_state_too(self) -> None:
        service = counting()
        async with running(service) as system:
            await system.publish(Placed(order="a", number=1))
            await system.settled()
            async with service.transaction() as tx:
                order = await tx.load(Order, "a")
                assert await tx.load(Order, "a") is order
                order.seen.append(2)
                (await tx.load(Order, "b")).paid = True
            with pytest.raises(ValueError, match="never mind"):  # noqa: PT012
                async with service.transaction() as tx:
                    (await tx.load(Order, "a")).delete()
                    raise ValueError("never mind")
            assert await service.read(Order, "a") == Order(seen=[1, 2])
            assert await service.read(Order, "b") == Order(paid=True)

    async def test_what_a_newer_process_wrote_waits_for_one(self) -> None:
        """No attempt is counted, however long the deployment takes."""
        service = counting()
        async with running(service) as system:
            async with service.transaction() as tx:
                (await tx.load(Order, "a")).paid = True
            store = system.processes["desk"].store
            tx_ = store.begin()
            await tx_.fetch("update oyez_state set shape = 2 returning key", {}, [])
            await tx_.commit(Changes())
            await system.publish(Placed(order="a", number=1))
            await system.publish(Placed(order="b", number=1))
            await system.settled()
            for _ in range(20):
                await system.advance(5.0)
            assert await service.read(Order, "b") == Order(seen=[1])
            parked = await system.fetch("desk", "select attempt, history from oyez_inbox")
            assert {(row["attempt"], row["history"]) for row in parked} == {
                (None, None),
                (0, b"[]"),
            }
            tx_ = store.begin()
            await tx_.fetch("update oyez_state set shape = 1 returning key", {}, [])
            await tx_.commit(Changes())
            await system.advance(5.0)
            assert await service.read(Order, "a") == Order(seen=[1], paid=True)


def till() -> Service:
    """What `counting` is, for the events of `parts`."""
    service = Service("desk")

    @service.on(parts_of.Placed)
    async def place(event: parts_of.Placed, order: Order) -> None:
        order.paid = True

    return service


class TestConflicts:
    """Another transaction holds the rows."""

    async def test_they_cost_no_attempt_and_end_alone(self) -> None:
        parts = Parts(till())
        lane = await parts.lane()
        seen: list[Any] = []
        begin = parts.store.begin

        def watched() -> Any:
            tx = begin()
            load = tx.load

            async def noted(keys: Any, *, alone: bool) -> Any:
                seen.append(alone)
                return await load(keys, alone=alone)

            tx.load = noted  # type: ignore[method-assign]
            return tx

        parts.store.begin = watched  # type: ignore[method-assign]
        parts.store.faults.fail("load", StateConflict("later"), times=2)
        await parts.batches(lane).take(batch(record(1, "a"), record(2, "b")))
        assert seen == [False, False, True]
        assert parts.store.waiting == []
        assert sorted(parts.store.contents.state) == [("Order", "a"), ("Order", "b")]
        assert not [signal for signal in parts.heard if isinstance(signal, EventRetried)]

    async def test_a_conflict_that_does_not_end_is_as_a_store_out_of_reach(self) -> None:
        parts = Parts(till())
        lane = await parts.lane()
        parts.store.faults.fail("load", StateConflict("never"), times=3)
        with pytest.raises(StateConflict):
            await parts.batches(lane).take(batch(record(1, "a")))
        assert (parts.store.waiting, lane.position) == ([], 0)
        await parts.batches(lane).take(batch(record(1, "a")))
        assert parts.store.position(STREAM) == 1


def test_a_key_that_is_null_is_named() -> None:
    class Note(Event, type="test.note", key="order"):
        order: str
        place: str | None = None

    service = Service("desk")

    class Place(State, key="place"):
        n: int = 0

    @service.on(Note)
    async def note(event: Note, place: Place) -> None: ...

    (correlation,) = service.handlers[0].states
    with pytest.raises(InvalidEvent, match=r"\$.place: is null, and Place is found by it"):
        correlation.key_of(Note(order="1"), "1")
