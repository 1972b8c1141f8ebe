"""The lint of sagas: for each rule a faulty twin of one system, and nothing else."""

from typing import Any

import pytest

from oyez import Command, Event, Saga, Service, Transaction
from oyez.inspection.lint import check
from oyez.inspection.lint.keyed import Recorded
from oyez.inspection.lint.shapes import Shape
from oyez.inspection.lint.system import Fault, System
from oyez.saga import Failed, end, on, starts, step

LONG = 1_000.0
ENDS = ("t.shipped", "t.cancelled")


class Placed(Event, type="t.placed", key="order"):
    order: str


class Reserve(Command, type="t.reserve", key="order", to="inventory"):
    order: str


class Reserved(Event, type="t.reserved", key="order"):
    order: str


class Rejected(Event, type="t.rejected", key="order"):
    order: str


class Release(Command, type="t.release", key="order", to="inventory"):
    order: str


class ReleaseItem(Command, type="t.release", key="item", to="inventory"):
    order: str
    item: str = ""


class Released(Event, type="t.released", key="order"):
    order: str


class Send(Command, type="t.send", key="order", to="shipping"):
    order: str


class Sent(Event, type="t.sent", key="order"):
    order: str


class SentByNumber(Event, type="t.sent", key="order"):
    order: int


class Shipped(Event, type="t.shipped", key="order"):
    order: str


class Cancelled(Event, type="t.cancelled", key="order"):
    order: str


def fulfilment(
    *,
    within: float = LONG,
    undone: bool = True,
    changes: bool = True,
    release: type = Release,
    sent: type = Sent,
    pivot: bool = True,
    ends: tuple[str, ...] = ("shipped", "cancelled"),
) -> type[Saga]:
    class Fulfilment(Saga, key="order", ends=ends):
        order: str = ""

        @starts
        def placed(self, event: Placed) -> None: ...

        @step(done=Reserved, failed=Rejected, within=within, changes=changes)
        def reserve(self) -> Reserve: ...

        if undone:

            @reserve.undo(done=Released, within=LONG)
            def let_go(self) -> release: ...  # type: ignore[valid-type]

        @step(done=sent, within=LONG, pivot=pivot)
        def send(self) -> Send: ...

        @end("shipped")
        def shipped(self) -> Shipped: ...

        @end("cancelled")
        def cancelled(self, why: Failed) -> Cancelled: ...

    return Fulfilment


class Late(Saga, key="order", ends=("shipped", "cancelled")):
    @starts
    def placed(self, event: Placed) -> None: ...

    @step(done=Sent, within=LONG, pivot=True)
    def send(self) -> Send: ...

    @step(done=Reserved, failed=Rejected, within=LONG)
    def reserve(self) -> Reserve: ...

    @reserve.undo(done=Released, within=LONG)
    def let_go(self) -> Release: ...

    @end("shipped")
    def shipped(self) -> Shipped: ...

    @end("cancelled")
    def cancelled(self, why: Failed) -> Cancelled: ...


def shop(
    saga: type[Saga] | None = None,
    *,
    order: str = "key",
    answers: Any = Released,
    allow: dict[str, str] | None = None,
) -> dict[str, Service]:
    """Three services and a saga, by default without a fault."""
    orders = Service("orders", publishes=(Placed,))
    orders.saga(saga or fulfilment(), allow=allow)
    inventory = Service("inventory")

    @inventory.on(Reserve)
    async def reserve(event: Reserve, tx: Transaction) -> Reserved | Rejected: ...

    @inventory.on(Release, order=order)
    async def release(event: Release, tx: Transaction) -> answers: ...

    shipping = Service("shipping")

    @shipping.on(Send)
    async def send(event: Send, tx: Transaction) -> Sent: ...

    return {each.name: each for each in (orders, inventory, shipping)}


TWINS: dict[str, dict[str, Service]] = {
    "E08": shop(order="none"),
    "E09": shop(Late),
    "E10": shop(fulfilment(within=60)),
    "E11": shop(answers=None),
    "E12": shop(fulfilment(ends=("shipped", "cancelled", "lost"))),
}


def found(services: dict[str, Service], recorded: Recorded | None = None) -> list[Fault]:
    return check(System(services, external=ENDS, recorded=recorded))


def test_a_saga_without_a_fault_has_none() -> None:
    assert found(shop()) == []


@pytest.mark.parametrize("code", TWINS)
def test_each_twin_breaks_its_own_rule_alone(code: str) -> None:
    (fault,) = found(TWINS[code])
    assert (fault.code, fault.level, fault.file) == (code, "error", __file__)
    assert fault.line > 0
    assert fault.remedy


def test_a_saga_may_be_permitted_to_break_a_rule() -> None:
    services = shop(fulfilment(within=60), allow={"E10": "a person is asked"})
    assert found(services) == []
    (unused,) = found(shop(allow={"E10": "a person is asked"}))
    assert (unused.code, unused.level) == ("E00", "warning")


def test_faults_name_what_is_wrong() -> None:
    assert [each.text for services in TWINS.values() for each in found(services)] == [
        "inventory.release handles t.release in any order, so that in Fulfilment an undo may "
        "overtake what it undoes",
        "Late.reserve can be undone, and comes after the pivot send",
        "Fulfilment.reserve waits 60 s for its answer, and inventory.reserve may take 158 s with "
        "all its attempts",
        "Fulfilment.let_go waits for t.released, which inventory does not publish",
        "Fulfilment never reaches its end lost",
    ]


def test_an_undo_has_the_key_of_what_it_undoes() -> None:
    services = shop(fulfilment(release=ReleaseItem))
    texts = {each.code: each.text for each in found(services)}
    assert texts["E08"] == (
        "Fulfilment.let_go asks t.release by item, and Fulfilment.reserve t.reserve by order: the "
        "undo may overtake what it undoes"
    )


def test_a_step_before_another_can_be_undone() -> None:
    texts = {each.code: each.text for each in found(shop(fulfilment(undone=False)))}
    assert texts["E09"] == "Fulfilment.reserve can't be undone when send fails"
    asking = found(shop(fulfilment(undone=False, changes=False)))
    assert "E09" not in {each.code for each in asking}
    assert found(shop(fulfilment(pivot=False))) == []  # after the last step nothing can fail


def test_an_answer_that_nobody_was_asked_for_is_published_by_somebody() -> None:
    class Waiting(Saga, key="order", ends=("shipped", "cancelled")):
        @starts
        def placed(self, event: Placed) -> None: ...

        @step(done=Sent, within=LONG)
        def approval(self) -> None: ...

    (fault,) = check_alone(Waiting, Placed)
    assert fault.text == "Waiting.approval waits for t.sent, which nobody publishes"
    assert check_alone(Waiting, Placed, Sent) == []


def test_a_handler_that_may_not_answer_is_a_warning() -> None:
    (fault,) = found(shop(answers=Released | None))
    assert (fault.code, fault.level) == ("E11", "warning")
    assert fault.text == (
        "inventory.release may return None, and Fulfilment.let_go waits for its answer"
    )


def test_a_saga_without_steps_is_ended_by_a_method() -> None:
    class Watch(Saga, key="order", ends=("shipped", "cancelled")):
        @starts
        def placed(self, event: Placed) -> None: ...

        @on(Sent)
        def sent(self, event: Sent) -> None: ...

    class Ended(Saga, key="order", ends=("shipped", "cancelled")):
        @starts
        def placed(self, event: Placed) -> None: ...

        @on(Sent)
        def sent(self, event: Sent) -> Shipped | Cancelled | None:
            self.ending("shipped")
            return None

    assert [each.text for each in check_alone(Watch, Placed, Sent)] == [
        "Watch has no step, and no method of it ends it"
    ]
    assert [each.text for each in check_alone(Ended, Placed, Sent)] == [
        "Ended never reaches its end cancelled"
    ]


def check_alone(saga: type[Saga], *published: type) -> list[Fault]:
    orders = Service("orders", publishes=published)
    orders.saga(saga)
    return check(System({"orders": orders}, external=ENDS))


def test_events_find_one_instance_by_one_type() -> None:
    faults = {each.code: each for each in found(shop(fulfilment(sent=SentByNumber)))}
    assert faults.keys() == {"E13", "E18"}  # what shipping publishes is a text
    assert {each.file for each in faults.values()} == {__file__}
    assert "t.sent.order, which is integer" in faults["E13"].text


def test_a_step_that_is_gone_strands_what_has_begun() -> None:
    shape = Shape(1, {"order": "string"}, ("reserve", "send", "wrap"))
    (fault,) = found(shop(), recorded={"orders": {"Fulfilment": shape}})
    assert (fault.code, fault.level) == ("E20", "error")
    assert fault.text.endswith("its step wrap is gone")
