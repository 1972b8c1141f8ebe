"""Sagas in a running service: rows, commands, timers, dead letters and logs."""

from __future__ import annotations

import msgspec
import pytest
from parts import BY
from test_saga import (
    Asked,
    Cancelled,
    Charge,
    Done,
    Fulfilment,
    Nudge,
    OrderPlaced,
    Paid,
    Refund,
    Refunded,
    Rejected,
    Release,
    Released,
    Reserve,
    Reserved,
    Ship,
    Shipped,
)

from oyez import Context, Event, Retry, Service, Transaction
from oyez.errors import DeclarationError
from oyez.ports import Row
from oyez.runtime.dead import redrive
from oyez.runtime.housekeeping import SAGA_RETENTION
from oyez.saga import CommandDied, Failed, Saga, end, on, starts, step, timer
from oyez.testing import System, running


def orders() -> Service:
    service = Service("orders", publishes=(OrderPlaced,))
    service.saga(Fulfilment)
    return service


class Others:
    """The services that the saga asks, and what they do."""

    def __init__(self) -> None:
        self.inventory = Service("inventory")
        self.payments = Service("payments")
        self.shipping = Service("shipping")
        self.all = (self.inventory, self.payments, self.shipping)
        self.silent: set[type] = set()
        """The commands that are not answered."""
        self.deadly: set[type] = set()
        """The commands that fail."""
        self.heard: list[type] = []
        self.expiry: list[str | None] = []

        def answer(service: Service, command: type, answer: type) -> None:
            async def handle(event: object, tx: Transaction, context: Context) -> object:
                self.heard.append(command)
                self.expiry.append(context.envelope.expires)
                if command in self.deadly:
                    raise ValueError("no way")
                return None if command in self.silent else answer()

            handle.__annotations__ = {
                "event": command, "tx": Transaction, "context": Context, "return": answer,
            }  # fmt: skip
            service.on(command, name=command.__name__, retry=Retry(attempts=1))(handle)

        answer(self.inventory, Reserve, Reserved)
        answer(self.inventory, Release, Released)
        answer(self.payments, Charge, Paid)
        answer(self.payments, Refund, Refunded)
        answer(self.shipping, Ship, Shipped)


async def sagas(system: System) -> list[Row]:
    return await system.fetch("orders", "select * from oyez_saga")


async def effects(system: System) -> list[str]:
    rows = await system.fetch(
        "orders", "select * from oyez_saga_log where kind = 'Fulfilment' order by key, version"
    )
    return [
        effect for row in rows for effect in msgspec.json.decode(row["outputs"], type=list[str])
    ]


async def test_all_steps_are_asked_and_answered() -> None:
    service, others = orders(), Others()
    async with running(service, *others.all) as system:
        began = system.ambient.now()
        async with service.transaction() as tx:
            started = tx.publish(OrderPlaced())
        await system.settled()
        assert others.heard[2:] == [Ship]
        assert set(others.heard[:2]) == {Reserve, Charge}
        assert None not in others.expiry
        assert system.announced(Done) == [Done(order="1")]
        (row,) = await sagas(system)
        assert (row["kind"], row["key"], row["status"]) == ("Fulfilment", "1", "ended")
        assert (row["step"], row["correlationid"]) == ("", started)
        assert row["ended"] >= row["started"] >= began
        assert {each.correlationid for each in system.history()} == {started}
        (ship,) = [each for each in system.history() if each.type == "shop.ship"]
        assert ship.causationid in {
            each.id for each in system.history() if each.type in ("shop.paid", "shop.reserved")
        }
        assert (ship.recipient, ship.subject) == ("shipping", "1")
        assert await system.fetch("orders", "select * from oyez_timer") == []
        state = await service.read(Fulfilment, "1")
        assert state is not None
        assert (state.cents, state.progress.end) == (900, "shipped")
        log = await effects(system)
        assert log[0] == "starts"
        assert log[-2:] == ["ends as shipped", "says shop.done"]


class Quick(Saga, key="order", ends=("paid", "cancelled")):
    """A saga that does not wait long."""

    order: str = ""
    cents: int = 0
    payment: str = ""

    @starts
    def placed(self, event: OrderPlaced) -> None:
        self.take(event)

    @step(done=Reserved, within=300)
    def reserve(self) -> Reserve:
        return self.make(Reserve)

    @reserve.undo(done=Released, within=5)
    def release(self) -> Release:
        return self.make(Release)

    @step(done=Paid, within=5)
    def charge(self) -> Charge:
        return self.make(Charge)

    @charge.undo(done=Refunded, within=5)
    def refund(self) -> Refund:
        return self.make(Refund)

    @on(Asked)
    def remind(self, event: Asked) -> None:
        self.after("bell", 2)

    @timer("bell")
    def bell(self) -> Nudge:
        return self.make(Nudge)

    @end("cancelled")
    def cancelled(self, why: Failed) -> Cancelled:
        return self.make(Cancelled, reason=f"{why.step}: {why.reason}")


def quick() -> Service:
    service = Service("orders")
    service.saga(Quick)
    return service


async def test_a_step_without_an_answer_is_undone_when_its_time_is_over() -> None:
    service, others = quick(), Others()
    others.silent = {Charge}
    async with running(service, others.inventory, others.payments) as system:
        await system.publish(OrderPlaced())
        await system.settled()
        await system.advance(4)
        assert others.heard == [Reserve, Charge]
        await system.advance(2)
        assert others.heard == [Reserve, Charge, Refund, Release]
        assert others.expiry[2:] == [None, None]
        (told,) = system.announced(Cancelled)
        assert told.reason == "charge: no answer within 5 s"


async def test_a_dead_command_is_undone_at_once_and_nobody_else_hears_of_it() -> None:
    service, others = orders(), Others()
    others.deadly = {Charge}
    spy = Service("spy")
    seen: list[CommandDied] = []

    @spy.on(CommandDied)
    async def died(event: CommandDied, tx: Transaction) -> None:
        seen.append(event)

    async with running(service, spy, *others.all) as system:
        await system.publish(OrderPlaced())
        await system.settled()
        assert [each for each in others.heard if each in (Refund, Release)] == [Refund, Release]
        (told,) = system.announced(Cancelled)
        assert "shop.charge became a dead letter: failed 1 of 1 attempts: ValueError" in told.reason
        (letter,) = await system.dead("payments")
        (event,) = system.announced(CommandDied)
        assert (event.command_id, event.key) == (letter["event_id"], "1")
        assert seen == []


async def test_whatever_a_command_died_of_its_letter_is_written() -> None:
    payments = Service("payments")

    @payments.on(Charge, retry=Retry(attempts=1))
    async def charge(event: Charge, tx: Transaction) -> None:
        raise ValueError("\x7f \ud800")

    async with running(payments) as system:
        for number, (key, source) in enumerate(
            (("1", "orders"), ("a\xa0b", "orders"), ("2", "elsewhere/orders"))
        ):
            headers = {
                "specversion": "1.0", "id": f"c{number}", "source": f"/{system.name}/{source}",
                "type": "shop.charge", "subject": key, "recipient": "payments",
            }  # fmt: skip
            data = msgspec.json.encode({"order": key, "cents": 1})
            await system.publish_raw(headers, data, key=key)
        await system.settled()
        assert len(await system.dead("payments")) == 3
        (died,) = system.announced(CommandDied)
        assert died.command_id == "c0"
        assert died.reason.endswith("ValueError: ? ?")


async def test_an_undo_is_asked_until_it_is_answered() -> None:
    service, others = quick(), Others()
    others.silent = {Charge, Refund}
    async with running(service, others.inventory, others.payments) as system:
        await system.publish(OrderPlaced())
        await system.settled()
        await system.advance(6)
        (row,) = await sagas(system)
        assert (row["status"], row["step"]) == ("undoing", "charge")
        others.silent = set()
        await system.advance(6)
        assert others.heard == [Reserve, Charge, Refund, Refund, Release]
        assert len(system.announced(Cancelled)) == 1


async def test_events_that_come_first_wait_in_the_row() -> None:
    service = orders()
    async with running(service) as system:
        await system.publish(Paid(payment="p9"), service="payments")
        await system.publish(Reserved(), service="inventory")
        await system.settled()
        (row,) = await sagas(system)
        assert row["status"] == "waiting"
        await system.publish(OrderPlaced())
        await system.settled()
        assert system.announced(Ship) == [Ship(order="1")]
        assert system.announced(Charge) == system.announced(Reserve) == []


class Brief(Saga, key="order", ends=("over",), wait=5):
    """A saga that is given up soon."""

    payment: str = ""

    @starts
    def placed(self, event: OrderPlaced) -> None:
        """Nothing."""

    @on(Paid)
    def paid(self, event: Paid) -> None:
        self.take(event)


async def test_without_a_start_they_are_dead_letters_that_can_be_redriven() -> None:
    service = Service("orders")
    service.saga(Brief)
    async with running(service) as system:
        paid = await system.publish(Paid(payment="p9"), service="payments")
        await system.settled()
        await system.advance(6)
        (letter,) = await system.dead("orders")
        assert (letter["event_id"], letter["handler"]) == (paid, "Brief")
        assert letter["reason"] == "no Brief was started for 1"
        assert await sagas(system) == []
        assert await system.fetch("orders", "select * from oyez_saga_log") == []
        await system.publish(OrderPlaced())
        await redrive(system.processes["orders"].store, letter["id"], system.ambient, by=BY)
        await system.settled()
        state = await service.read(Brief, "1")
        assert state is not None
        assert state.payment == "p9"


async def test_its_own_timers_call_its_methods() -> None:
    async with running(quick()) as system:
        await system.publish(OrderPlaced())
        await system.publish(Asked())
        await system.settled()
        await system.advance(1)
        assert system.announced(Nudge) == []
        await system.advance(2)
        assert system.announced(Nudge) == [Nudge(order="1")]


async def test_ended_rows_and_their_logs_are_kept_for_some_days() -> None:
    service, others = orders(), Others()
    async with running(service, *others.all) as system:
        await system.publish(OrderPlaced())
        await system.publish(OrderPlaced(order="2"))
        await system.publish(Rejected(order="2"), service="elsewhere")
        await system.settled()
        keep = system.processes["orders"].housekeeping.keep
        await keep()
        assert len(await sagas(system)) == 2
        async with service.transaction() as tx:
            tx.execute(
                "update oyez_state set ended = ended - :age where key = '1'", age=SAGA_RETENTION
            )
        await system.advance(1)
        await keep()
        (row,) = await sagas(system)
        assert row["key"] == "2"
        keys = {each["key"] for each in await system.fetch("orders", "select * from oyez_saga_log")}
        assert keys == {"2"}


def test_two_of_one_name_are_refused() -> None:
    service = orders()
    with pytest.raises(DeclarationError, match="two handlers named Fulfilment"):
        service.saga(Fulfilment)


def test_its_events_are_declared() -> None:
    service = orders()
    (handler,) = service.handlers
    assert {"shop.charge", "shop.done"} <= {kind.name for kind in service.publishes}
    assert {"shop.paid", "oyez.timer", "oyez.command.died"} <= {
        kind.name for kind in handler.events
    }
    assert issubclass(CommandDied, Event)
