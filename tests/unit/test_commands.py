"""Commands: for one service alone, and for a limited time."""

from __future__ import annotations

import msgspec
import pytest
from parts import BY

from oyez import Command, Event, InvalidEvent, Service, Transaction
from oyez.envelope import STRUCTURED
from oyez.errors import NotRedriven
from oyez.runtime.dead import redrive
from oyez.testing import System, running


class Charge(Command, type="test.charge", key="order", to="payments"):
    order: str


class Paid(Event, type="test.paid", key="order"):
    order: str


def desk(name: str) -> tuple[Service, list[str]]:
    """A service that answers `Charge`, and the orders that it was asked for."""
    service = Service(name)
    asked: list[str] = []

    @service.on(Charge)
    async def charge(event: Charge, tx: Transaction) -> Paid:
        asked.append(event.order)
        return Paid(order=event.order)

    return service, asked


async def test_only_the_service_that_is_asked_gets_a_command() -> None:
    orders = Service("orders", publishes=(Charge,))
    payments, asked = desk("payments")
    spy, seen = desk("spy")
    async with running(orders, payments, spy) as system:
        async with orders.transaction() as tx:
            tx.publish(Charge(order="1"))
        # In structured form the recipient is not among the headers.
        body = {
            "specversion": "1.0",
            "id": "e1",
            "source": "/elsewhere",
            "type": "test.charge",
            "subject": "2",
            "recipient": "payments",
            "data": {"order": "2"},
        }
        headers = {"datacontenttype": STRUCTURED}
        await system.publish_raw(headers, msgspec.json.encode(body), key="2")
        await system.settled()
        assert sorted(asked) == ["1", "2"]
        assert seen == []
        (command,) = [each for each in system.history() if each.source.endswith("/orders")]
        assert (command.recipient, command.expires) == ("payments", None)


async def dead_charge(system: System, orders: Service) -> int:
    """Publish a command that is handled after its time; return the id of its dead letter."""
    async with orders.transaction() as tx:
        tx.publish(Charge(order="1"), expires=60, delay=90)
    await system.advance(91)
    (row,) = await system.dead("payments")
    assert row["reason"].startswith("permanent: Expired: expired at ")
    assert "redrive it with --old" in row["reason"]
    return int(row["id"])


async def test_a_command_that_has_expired_is_not_run_but_a_dead_letter() -> None:
    orders = Service("orders", publishes=(Charge,))
    payments, asked = desk("payments")
    async with running(orders, payments) as system:
        letter = await dead_charge(system, orders)
        assert asked == []
        store = system.processes["payments"].store
        with pytest.raises(NotRedriven, match=r"a command that expired at .* use --old"):
            await redrive(store, letter, system.ambient, by=BY)
        await redrive(store, letter, system.ambient, by=BY, old=True)
        await system.settled()
        assert asked == ["1"]


async def test_in_time_it_is_run() -> None:
    orders = Service("orders", publishes=(Charge,))
    payments, asked = desk("payments")
    async with running(orders, payments) as system:
        async with orders.transaction() as tx:
            tx.publish(Charge(order="1"), expires=60)
        await system.settled()
        assert asked == ["1"]


async def test_only_a_command_expires_and_not_in_the_past() -> None:
    orders = Service("orders", publishes=(Charge, Paid))
    async with running(orders), orders.transaction() as tx:
        with pytest.raises(InvalidEvent, match="expires: is for a Command"):
            tx.publish(Paid(order="1"), expires=60)
        with pytest.raises(InvalidEvent, match=r"expires: expected up to \d+ seconds above 0"):
            tx.publish(Charge(order="1"), expires=0)
