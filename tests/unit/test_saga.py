"""Sagas: what each event does to an instance, case by case, and how they are declared."""

import re
from typing import Any

import msgspec
import pytest

from oyez import Command, Event, InvalidEvent
from oyez.errors import DeclarationError, OyezError
from oyez.ports import Kept
from oyez.saga import (
    Failed,
    Saga,
    Stage,
    Status,
    Step,
    end,
    on,
    saga_kind,
    starts,
    step,
    timer,
)
from oyez.saga_transition import AGAIN, EARLY_EVENTS, START, STEP, abort, resolve, retry
from oyez.state import Fold, kind_of, migrates
from oyez.testing.sagas import Instance, given


class OrderPlaced(Event, type="shop.placed", key="order"):
    order: str = "1"
    cents: int = 900


class Reserve(Command, type="shop.reserve", key="order", to="inventory"):
    order: str


class Reserved(Event, type="shop.reserved", key="order"):
    order: str = "1"


class Rejected(Event, type="shop.rejected", key="order"):
    order: str = "1"
    reason: str = "sold out"


class Release(Command, type="shop.release", key="order", to="inventory"):
    order: str


class Released(Event, type="shop.released", key="order"):
    order: str = "1"


class Charge(Command, type="shop.charge", key="order", to="payments"):
    order: str
    cents: int


class Paid(Event, type="shop.paid", key="order"):
    order: str = "1"
    payment: str = "p1"


class Declined(Event, type="shop.declined", key="order"):
    order: str = "1"


class Refund(Command, type="shop.refund", key="order", to="payments"):
    order: str
    payment: str


class Refunded(Event, type="shop.refunded", key="order"):
    order: str = "1"


class Ship(Command, type="shop.ship", key="order", to="shipping"):
    order: str


class Shipped(Event, type="shop.shipped", key="order"):
    order: str = "1"


class Lost(Event, type="shop.lost", key="order"):
    order: str = "1"


class Cancel(Event, type="shop.cancel", key="order"):
    order: str = "1"


class Asked(Event, type="shop.asked", key="order"):
    order: str = "1"


class Nudge(Event, type="shop.nudge", key="order"):
    order: str


class Done(Event, type="shop.done", key="order"):
    order: str


class Cancelled(Event, type="shop.cancelled", key="order"):
    order: str
    reason: str


class Fulfilment(Saga, key="order", ends=("shipped", "cancelled")):
    order: str = ""
    cents: int = 0
    payment: str = ""
    asked: int = 0

    @starts
    def placed(self, event: OrderPlaced) -> None:
        self.take(event)

    @step(done=Reserved, failed=Rejected, within=60)
    def reserve(self) -> Reserve:
        return self.make(Reserve)

    @reserve.undo(done=Released, within=60)
    def release(self) -> Release:
        return self.make(Release)

    @step(done=Paid, failed=Declined, within=900, after=())
    def charge(self) -> Charge:
        return self.make(Charge)

    @charge.undo(done=Refunded, within=300)
    def refund(self) -> Refund:
        return self.make(Refund)

    @on(Paid)
    def paid(self, event: Paid) -> None:
        self.payment = event.payment

    @step(done=Shipped, failed=Lost, within=3600, after=(reserve, "charge"), pivot=True)
    def ship(self) -> Ship:
        return self.make(Ship)

    @on(Asked)
    def nudged(self, event: Asked) -> Nudge:
        self.asked += 1
        self.after("nudge", 100.0 * self.asked)
        return self.make(Nudge)

    @timer("nudge")
    def again(self) -> list[Nudge]:
        return [self.make(Nudge)]

    @on(Cancel)
    def stop(self, event: Cancel) -> None:
        self.cancel("nudge")
        self.ending("cancelled", "changed their mind")

    @end("shipped")
    def shipped(self) -> Done:
        return self.make(Done)

    @end("cancelled")
    def cancelled(self, why: Failed) -> Cancelled:
        return self.make(Cancelled, reason=f"{why.step}: {why.reason}")


def running() -> Instance:
    """An instance that has just started."""
    return given(Fulfilment).when(OrderPlaced()).then(asks=[Reserve, Charge], status="running")


def waiting() -> Instance:
    """An instance that waits for nothing but its shipment."""
    return given(Fulfilment, done=["reserve", "charge"], asked=["ship"])


class TestForward:
    def test_steps_are_asked_once_those_before_them_are_done(self) -> None:
        order = running()
        order.when(Reserved()).then(asks=[], status="running")
        order.when(Paid(payment="p7")).then(asks=[Ship(order="1")], payment="p7")
        order.when(Shipped()).then(asks=[], says=[Done(order="1")], status="ended", ends="shipped")
        assert order.timers == {}

    def test_an_answer_may_come_before_its_step_is_asked(self) -> None:
        order = running().when(Shipped(), Paid()).then(asks=[], status="running")
        order.when(Reserved()).then(asks=[], ends="shipped")

    def test_a_command_expires_when_its_answer_is_no_longer_waited_for_but_an_undo_never(
        self,
    ) -> None:
        order = running()
        outputs = retry(saga_kind(Fulfilment), order.saga, order.now)
        assert [each.expires for each in outputs.events] == [order.now + 60, order.now + 900]
        outputs = abort(saga_kind(Fulfilment), order.saga, "", order.now)
        assert [(type(each.event), each.expires) for each in outputs.events] == [(Refund, None)]

    def test_what_it_publishes_is_known(self) -> None:
        assert {each.name for each in saga_kind(Fulfilment).publishes} == {
            "shop.reserve", "shop.release", "shop.charge", "shop.refund", "shop.ship",
            "shop.nudge", "shop.done", "shop.cancelled",
        }  # fmt: skip


class TestBeforeTheStart:
    def test_events_wait_and_are_handled_in_their_order_after_the_start(self) -> None:
        order = given(Fulfilment).when(Paid(payment="early"), Reserved())
        order.then(asks=[], status="waiting")
        order.when(OrderPlaced()).then(asks=[Ship], status="running", payment="early")
        assert [name.partition("#")[0] for name in order.timers] == [STEP + "ship"]

    def test_without_a_start_they_become_dead_letters(self) -> None:
        order = given(Fulfilment).when(Paid(), Reserved()).after(86_399).then(dead=[])
        order.after(1).then(dead=["shop.paid", "shop.reserved"])
        assert vars(order.saga)["deleted"]

    def test_no_more_than_some_of_them_wait(self) -> None:
        order = given(Fulfilment).when(*[Asked()] * EARLY_EVENTS).then(dead=[])
        order.when(Asked()).then(dead=["shop.asked"], status="waiting")

    def test_nor_more_than_some_bytes(self) -> None:
        order = given(Fulfilment).when(*[Paid(payment="x" * 100_000)] * 2).then(dead=[])
        order.when(Paid(payment="x" * 100_000)).then(dead=["shop.paid"])

    def test_one_that_can_no_longer_be_read_is_a_dead_letter_and_the_start_succeeds(self) -> None:
        order = given(Fulfilment).when(Paid())
        order.saga.progress.early[0].data = b"{"
        order.when(OrderPlaced()).then(dead=["shop.paid"], asks=[Reserve, Charge])

    def test_a_timer_starts_nothing(self) -> None:
        order = given(Fulfilment)
        order.timers = {STEP + "reserve#0": order.now, "nudge#0": order.now, START: order.now}
        order.after(1).then(asks=[], says=[])
        assert order.saga.progress.status is Status.NEW

    def test_a_second_start_is_only_noted(self) -> None:
        running().when(OrderPlaced(cents=1)).then(asks=[], cents=900)


class TestAfterTheEnd:
    def test_events_are_only_noted(self) -> None:
        order = given(Fulfilment, done=["reserve", "charge"], asked=["ship"]).when(Shipped())
        order.then(ends="shipped")
        order.when(Declined(), OrderPlaced(), Cancel()).after(10_000)
        order.then(asks=[], says=[], status="ended", ends="shipped")

    def test_with_restart_a_start_begins_anew(self) -> None:
        class Again(Saga, key="order", ends=("done", "undone"), restart=True):
            cents: int = 0

            @starts
            def placed(self, event: OrderPlaced) -> None:
                self.cents += event.cents

            @step(done=Reserved, within=60)
            def reserve(self) -> Reserve:
                return self.make(Reserve)

        order = given(Again).when(OrderPlaced(), Reserved()).then(ends="done", cents=900)
        order.when(OrderPlaced(cents=5)).then(asks=[Reserve], status="running", cents=5, ends="")
        assert order.saga.progress.transitions == 3


class TestUndoing:
    def test_a_step_that_failed_is_not_undone_but_the_others_are(self) -> None:
        order = running().when(Reserved(), Declined()).then(asks=[Release], status="undoing")
        order.when(Released()).then(
            says=[Cancelled(order="1", reason="charge: shop.declined")], ends="cancelled"
        )

    def test_it_is_done_in_reverse_order_each_after_the_answer_of_the_former(self) -> None:
        order = given(Fulfilment, done=["reserve", "charge"], asked=["ship"])
        order.when(Lost()).then(asks=[Refund], status="undoing")
        order.when(Refunded()).then(asks=[Release], status="undoing")
        order.when(Released()).then(asks=[], ends="cancelled")

    def test_after_a_time_out_what_is_unknown_is_undone_too(self) -> None:
        order = given(Fulfilment, done=["reserve"], asked=["charge"]).after(899).then(asks=[])
        order.after(1).then(asks=[Refund], status="undoing")
        order.when(Paid()).then(asks=[], status="undoing")
        order.when(Refunded()).then(asks=[Release])
        order.when(Released()).then(
            says=[Cancelled(order="1", reason="charge: no answer within 900 s")]
        )

    def test_a_late_failure_spares_the_undo(self) -> None:
        order = running().after(60).then(asks=[Refund], status="undoing")
        order.when(Rejected()).when(Refunded()).then(asks=[], ends="cancelled")

    def test_a_dead_command_is_a_time_out_at_once(self) -> None:
        order = running().died(Charge, "no card").then(asks=[Refund], status="undoing")
        order.when(Refunded(), Released()).then(
            asks=[Release],
            says=[Cancelled(order="1", reason="charge: shop.charge became a dead letter: no card")],
        )

    def test_the_death_of_a_command_that_is_not_waited_for_changes_nothing(self) -> None:
        order = running()
        order.saga.progress.steps["charge"].command = "another"
        with pytest.raises(AssertionError, match="waits for no Charge"):
            order.died(Charge)

    def test_what_is_undone_without_being_asked_counts(self) -> None:
        order = given(Fulfilment, done=["reserve", "charge"], asked=["ship"]).when(Lost())
        order.when(Released(), Refunded()).then(asks=[Refund], ends="cancelled")

    def test_an_undo_is_asked_again_with_growing_pauses_and_is_stuck_in_the_end(self) -> None:
        order = given(Fulfilment, done=["reserve"], asked=["charge"]).when(Declined())
        order.then(asks=[Release])
        order.after(60).then(asks=[Release])
        order.after(59).then(asks=[])
        order.after(1).then(asks=[Release])
        order.after(119).then(asks=[])
        order.after(100_000).then(asks=[Release] * (AGAIN - 2), status="stuck")
        order.then(stuck="release was asked 21 times without an answer")
        order.when(Released()).then(ends="cancelled", status="ended")

    def test_an_undo_whose_command_died_is_asked_again_after_a_pause(self) -> None:
        order = given(Fulfilment, done=["reserve"], asked=["charge"]).when(Declined())
        order.then(asks=[Release]).died(Release).then(asks=[])
        order.after(60).then(asks=[Release], status="undoing")

    def test_events_that_are_no_answers_are_only_noted(self) -> None:
        order = given(Fulfilment, done=["reserve"], asked=["charge"]).when(Declined()).then()
        order.when(Asked(), Reserved(), Declined()).then(asks=[], says=[], asked=0)

    def test_a_step_without_an_undo_is_left_as_it_is(self) -> None:
        class Plain(Saga, key="order", ends=("done", "undone")):
            @starts
            def placed(self, event: OrderPlaced) -> None:
                """Nothing."""

            @step(done=Reserved, within=60)
            def reserve(self) -> Reserve:
                return self.make(Reserve)

            @step(done=Paid, failed=Declined, within=60)
            def charge(self) -> None:
                """Nobody is asked: others react to the order by themselves."""

        order = given(Plain).when(OrderPlaced()).then(asks=[Reserve])
        order.when(Reserved(), Declined()).then(asks=[], says=[], ends="undone")


class TestPivot:
    def test_unanswered_it_is_asked_again_then_stuck_but_never_undone(self) -> None:
        order = given(Fulfilment, done=["reserve", "charge"], asked=["ship"])
        order.after(3600).then(asks=[Ship], status="running")
        order.after(200_000).then(asks=[Ship] * (AGAIN - 1), status="stuck", stuck="ship was asked")
        order.when(Shipped()).then(asks=[], ends="shipped")

    def test_a_dead_command_of_it_is_asked_again_after_a_pause(self) -> None:
        order = given(Fulfilment, done=["reserve", "charge"], asked=["ship"]).died(Ship)
        order.then(asks=[]).after(60).then(asks=[Ship], status="running")

    def test_while_it_is_asked_a_failure_beside_it_waits_for_its_answer(self) -> None:
        order = given(Beside).when(OrderPlaced()).then(asks=[Ship, Charge])
        order.when(Declined()).then(asks=[], status="running")
        order.when(Lost()).then(asks=[], status="ended", ends="undone")

    def test_once_it_is_done_a_failure_beside_it_is_stuck(self) -> None:
        order = (
            given(Beside)
            .when(OrderPlaced(), Declined(), Shipped())
            .then(status="stuck", stuck="charge failed (shop.declined) after ship")
        )
        retry(saga_kind(Beside), order.saga, order.now)
        order.when(Paid()).then(ends="done")

    def test_once_it_is_done_steps_are_asked_until_they_answer(self) -> None:
        order = given(Beside).when(OrderPlaced(), Shipped()).then(asks=[Ship, Charge])
        order.after(60).then(asks=[Charge], status="running").when(Paid()).then(ends="done")

    def test_an_end_that_undoes_comes_too_late_after_it(self) -> None:
        class Late(Saga, key="order", ends=("done", "undone")):
            @starts
            def placed(self, event: OrderPlaced) -> None:
                """Nothing."""

            @step(done=Shipped, within=60, pivot=True)
            def ship(self) -> Ship:
                return self.make(Ship)

            @step(done=Paid, within=60)
            def charge(self) -> None:
                """Nobody is asked."""

            @on(Cancel)
            def stop(self, event: Cancel) -> None:
                self.ending("undone")

        order = given(Late, done=["ship"], asked=["charge"]).when(Cancel())
        order.then(status="running").when(Paid()).then(ends="done")


class Beside(Saga, key="order", ends=("done", "undone")):
    cents: int = 0

    @starts
    def placed(self, event: OrderPlaced) -> None:
        self.take(event)

    @step(done=Shipped, failed=Lost, within=60, pivot=True)
    def ship(self) -> Ship:
        return self.make(Ship)

    @step(done=Paid, failed=Declined, within=60, after=())
    def charge(self) -> Charge:
        return self.make(Charge)


class TestTimersAndEndings:
    def test_a_timer_calls_its_method_once(self) -> None:
        order = waiting().when(Asked()).then(says=[Nudge]).after(99).then(says=[])
        order.after(1000).then(says=[Nudge])

    def test_set_again_it_is_the_later_one(self) -> None:
        order = waiting().when(Asked(), Asked()).then(says=[Nudge, Nudge])
        order.after(199).then(says=[])
        order.after(1).then(says=[Nudge], asked=2)

    def test_one_that_fired_before_it_was_set_again_does_not_count(self) -> None:
        order = waiting().when(Asked()).then()
        order.saga.progress.timers["nudge"] = "nudge#7"
        order.after(100).then(says=[])

    def test_an_ending_that_undoes(self) -> None:
        order = running().when(Asked(), Paid(), Cancel()).then(asks=[Refund], status="undoing")
        order.when(Refunded(), Released()).then(
            says=[Cancelled(order="1", reason=": changed their mind")], ends="cancelled"
        )

    def test_an_ending_that_does_not(self) -> None:
        class Brief(Saga, key="order", ends=("over",)):
            @starts
            def placed(self, event: OrderPlaced) -> None:
                self.after("bell", 5)

            @timer("bell")
            def bell(self) -> Nudge:
                self.ending("over")
                return self.make(Nudge)

        given(Brief).when(OrderPlaced()).after(5).then(says=[Nudge], ends="over", status="ended")

    def test_a_mistake_in_a_method_says_what_to_do(self) -> None:
        class Wrong(Saga, key="order", ends=("over",)):
            @starts
            def placed(self, event: OrderPlaced) -> None:
                self.after("nothing", 5)

            @on(Asked)
            def asked(self, event: Asked) -> None:
                self.ending("nowhere")

            @on(Paid)
            def paid(self, event: Paid) -> Charge:
                return self.make(Charge)

            @on(Declined)
            def declined(self, event: Declined) -> Ship:
                return Ship(order="2")

            @on(Lost)
            def lost(self, event: Lost) -> None:
                self.take(event)

        with pytest.raises(DeclarationError, match=r"after\('nothing'\): add a method with @timer"):
            given(Wrong).when(OrderPlaced())
        with pytest.raises(DeclarationError, match=r"ending\('nowhere'\): its ends are over"):
            _started(Wrong, Asked())
        with pytest.raises(InvalidEvent, match=r"\$\.cents: .*Wrong can't make Charge"):
            _started(Wrong, Paid())
        with pytest.raises(InvalidEvent, match=r"\$\.order: .* so it needs the key '1'"):
            _started(Wrong, Declined())
        with pytest.raises(DeclarationError, match=r"take\(Lost\): it has no field"):
            _started(Wrong, Lost())
        with pytest.raises(DeclarationError, match=r"cancel\(\) can be called in a method"):
            Fulfilment.keyed("1").cancel("nudge")


def _started(cls: type[Saga], event: object) -> None:
    order = given(cls)
    order.saga.progress.phase = Status.RUNNING
    order.when(event)


class TestDeploys:
    """Rows that another version of the class has written."""

    def test_a_step_that_is_no_longer_declared_is_stuck_until_it_is_resolved(self) -> None:
        order = given(Fulfilment, done=["reserve"], asked=["charge"])
        steps = order.saga.progress.steps
        steps["pack"] = steps.pop("charge")
        order.when(Paid()).then(status="stuck", stuck="does not declare the step pack any more")
        resolve(saga_kind(Fulfilment), order.saga, "pack", done=True, why="seen", now=order.now)
        order.when(Shipped()).then(ends="shipped")

    def test_a_row_comes_back_with_fields_and_progress(self) -> None:
        kind = saga_kind(Fulfilment)
        order = running()
        row = kind.close(order.saga, Kept(kind="Fulfilment", key="1", version=3))
        assert row is not None
        assert (row.version, row.shape, row.status, row.step) == (
            3,
            1,
            "running",
            "reserve, charge",
        )
        assert (row.started, row.ended) == (order.now, None)
        again = kind.open(row)
        assert again == order.saga
        assert msgspec.to_builtins(again.progress) == msgspec.to_builtins(order.saga.progress)
        assert kind.close(again, row) is None
        again.delete()
        deleted = kind.close(again, row)
        assert deleted is not None
        assert deleted.data is None

    def test_fields_migrate_and_progress_stays(self) -> None:
        class First(Saga, name="Same", ends=("over",)):
            total: int = 0

            @starts
            def placed(self, event: OrderPlaced) -> None:
                self.total = event.cents

        class Second(Saga, name="Same", version=2, ends=("over",)):
            sum: int = 0

            @migrates(1)
            def _(old: dict[str, Any]) -> dict[str, Any]:  # noqa: N805 - not a method
                return {"sum": old["total"]}

            @starts
            def placed(self, event: OrderPlaced) -> None:
                """Nothing."""

        order = given(First).when(OrderPlaced())
        row = saga_kind(First).close(order.saga, Kept(kind="Same", key="1"))
        assert row is not None
        again = saga_kind(Second).open(row)
        assert (again.sum, again.progress.status) == (900, "running")

    def test_an_instance_that_nothing_happened_to_has_no_row(self) -> None:
        fold = Fold()
        fold.add([Kept(kind="Fulfilment", key="1")])
        fold.of(kind_of(Fulfilment), "1")
        assert fold.changed() == []


class TestOperators:
    KIND = saga_kind(Fulfilment)

    def test_retry_asks_again_and_frees(self) -> None:
        order = given(Fulfilment, done=["reserve"], asked=["charge"]).when(Declined())
        order.after(200_000).then(status="stuck")
        outputs = retry(self.KIND, order.saga, order.now)
        assert [type(each.event) for each in outputs.events] == [Release]
        assert list(outputs.timers.values()) == [None, order.now + 60]
        order.then(status="undoing").when(Released()).then(ends="cancelled")

    def test_retry_asks_a_step_that_failed_after_the_pivot(self) -> None:
        order = given(Beside).when(OrderPlaced(), Shipped(), Declined()).then(status="stuck")
        outputs = retry(saga_kind(Beside), order.saga, order.now)
        assert [type(each.event) for each in outputs.events] == [Charge]

    def test_abort_undoes(self) -> None:
        order = given(Fulfilment, done=["reserve", "charge"], asked=[])
        outputs = abort(self.KIND, order.saga, "by hand", order.now)
        assert [type(each.event) for each in outputs.events] == [Refund]
        order.when(Refunded(), Released()).then(
            says=[Cancelled(order="1", reason=": by hand")], ends="cancelled"
        )

    def test_resolve_stands_for_an_answer(self) -> None:
        order = given(Fulfilment, done=["reserve", "charge"], asked=["ship"])
        resolve(self.KIND, order.saga, "ship", done=False, why="no van", now=order.now)
        order.then(status="undoing")
        resolve(self.KIND, order.saga, "charge", done=False, why="paid back", now=order.now)
        resolve(self.KIND, order.saga, "reserve", done=False, why="put back", now=order.now)
        order.then(ends="cancelled")

    def test_what_makes_no_sense_is_refused(self) -> None:
        order = given(Fulfilment, done=["reserve", "charge"], asked=["ship"])
        with pytest.raises(OyezError, match=r"Fulfilment 1 can't be undone: ship was asked"):
            abort(self.KIND, order.saga, "", order.now)
        with pytest.raises(OyezError, match="has not asked pack; it has asked: reserve, charge, s"):
            resolve(self.KIND, order.saga, "pack", done=True, why="", now=order.now)
        with pytest.raises(OyezError, match="charge is done already"):
            resolve(self.KIND, order.saga, "charge", done=True, why="", now=order.now)
        order.when(Lost())
        with pytest.raises(OyezError, match="is being undone already"):
            abort(self.KIND, order.saga, "", order.now)
        with pytest.raises(OyezError, match="is being undone: resolve charge as undone"):
            resolve(self.KIND, order.saga, "charge", done=True, why="", now=order.now)
        order.when(Refunded(), Released())
        with pytest.raises(OyezError, match="Fulfilment 1 is ended: there is nothing to do"):
            retry(self.KIND, order.saga, order.now)
        idle = given(Fulfilment, done=["reserve", "charge"])
        with pytest.raises(OyezError, match="waits for nothing that can be asked again"):
            retry(self.KIND, idle.saga, idle.now)


def body(**members: object) -> dict[str, object]:
    """The body of a saga's class that is right but for these members."""

    def begin(self: Any, event: OrderPlaced) -> None: ...

    def first(self: Any) -> Reserve: ...

    right = {"begin": starts(begin), "first": step(done=Reserved, within=1)(first)}
    return {key: value for key, value in {**right, **members}.items() if value is not None}


def act(self: Any) -> None: ...


def act_on(self: Any, event: Any) -> None: ...


async def wait(self: Any) -> None: ...


class Bare(Command, type="shop.bare", to="desk"):
    order: str = ""


class Loose(Event, type="shop.loose"):
    number: int = 0


def bare(self: Any) -> Bare: ...


def pair(*, pivot: bool, within: float | None) -> tuple[Step, object]:
    made = step(done=Reserved, within=1, pivot=pivot)(act)
    return made, made.undo(done=Released, within=within)(act)


PIVOT, UNDO = pair(pivot=True, within=1)
ASKS = step(done=Reserved, within=1, changes=False)(act)
TAKEN, UNTIMED = pair(pivot=False, within=None)

WRONG: list[tuple[str, dict[str, object], dict[str, Any]]] = [
    (r"Wrong: nothing starts it: add a method with @starts", body(begin=None), {}),
    (r"Wrong.begin: annotate its one parameter", body(begin=starts(act_on)), {}),
    (r"Wrong.first: add done=", body(first=step(within=1)(act)), {}),
    (r"Wrong.first: add within=", body(first=step(done=Reserved)(act)), {}),
    (r"Wrong.first: add within=", body(first=step(done=Reserved, within=-1)(act)), {}),
    (r"first: expected no parameter", body(first=step(done=Reserved, within=1)(act_on)), {}),
    (r"first: shop.bare has no key", body(first=step(done=Reserved, within=1)(bare)), {}),
    (r"first: shop.ship is a command", body(first=step(done=Ship, within=1)(act)), {}),
    (r"first: .* is not an event", body(first=step(done=int, within=1)(act)), {}),
    (
        r"second: shop.reserved answers first already",
        body(second=step(done=Reserved, within=1)(act)),
        {},
    ),
    (
        r"second: after: there is no step 'third'",
        body(second=step(done=Paid, within=1, after=("third",))(act)),
        {},
    ),
    (
        r"after: \w+ after \w+ after \w+, so none can begin",
        body(
            second=step(done=Paid, within=1, after=("third",))(act),
            third=step(done=Lost, within=1, after=("second",))(act),
        ),
        {},
    ),
    (r"first: a pivot can't be undone", body(first=PIVOT, undo=UNDO), {}),
    (
        r"first: what changes nothing has no undo: remove changes=False, or its undo",
        body(first=ASKS, undo=ASKS.undo(done=Released, within=1)(act)),
        {},
    ),
    (r"undo: add within=", body(first=TAKEN, undo=UNTIMED), {}),
    (r"bell: @timer\('oyez:x'\): expected a letter", body(bell=timer("oyez:x")(act)), {}),
    (r"@timer\('x'\) is there twice", body(a=timer("x")(act), b=timer("x")(act)), {}),
    (r"bell: expected no parameter but self", body(bell=timer("x")(act_on)), {}),
    (r"bell: a saga waits for nothing", body(bell=timer("x")(wait)), {}),
    (r"say: expected self and the event", body(say=on(Paid)(act)), {}),
    (r"say: shop.placed has a method already", body(say=on(OrderPlaced)(act_on)), {}),
    (r"over: @end\('x'\): add it to ends=", body(over=end("x")(act)), {}),
    (r"Wrong: it has no end: add ends=", body(), {"ends": ()}),
    (r"no end is that of a saga that was undone", body(), {"ends": ("done",)}),
    (r"Wrong: wait=0: expected seconds", body(), {"wait": 0}),
    (r"Wrong: Loose has no field order", body(say=on(Loose)(act_on)), {"key": "order"}),
    (r"Loose has no key to find its Wrong by", body(say=on(Loose)(act_on)), {}),
    (r"field after: Oyez uses this name", body(after=0, __annotations__={"after": int}), {}),
]


@pytest.mark.parametrize(("message", "members", "options"), WRONG, ids=[each[0] for each in WRONG])
def test_a_wrong_declaration_names_class_place_and_remedy(
    message: str, members: dict[str, object], options: dict[str, Any]
) -> None:
    with pytest.raises(DeclarationError, match=message):
        type(Saga)(
            "Wrong", (Saga,), {"__module__": "m", **members}, **{"ends": ("a", "b"), **options}
        )


def test_a_saga_is_no_base_and_another_class_is_no_saga() -> None:
    with pytest.raises(DeclarationError, match="a saga is no base of another"):

        class More(Fulfilment):
            pass

    for cls in (Saga, Reserved):
        with pytest.raises(DeclarationError, match=r"is not a saga: subclass oyez\.Saga"):
            saga_kind(cls)


def test_a_failed_expectation_tells_what_happened() -> None:
    order = given(Fulfilment).when(OrderPlaced(), Declined())
    told = "Fulfilment 1 asked [Reserve, Charge, Release], not [Reserve]; what happened:\n"
    with pytest.raises(AssertionError, match=re.escape(told)) as caught:
        order.then(asks=[Reserve])
    assert "  Declined: charge is failed; asks shop.release" in str(caught.value)
    for wrong in (
        {"status": "ended"}, {"ends": "shipped"}, {"stuck": "x"}, {"dead": ["x"]}, {"cents": 1},
        {"says": [Nudge(order="1")]},
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="Fulfilment 1 "):
            order.then(**wrong)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="Reserved is of 2, and this Fulfilment of 1"):
        order.when(Reserved(order="2"))
    with pytest.raises(AssertionError, match="has no step pack; it has: reserve, charge, ship"):
        given(Fulfilment, asked=["pack"])
    assert order.saga.progress.steps["charge"].stage is Stage.FAILED
