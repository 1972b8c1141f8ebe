"""The bugs of users in `planted`, each mended as a user would mend it, so that it stays clean."""

from __future__ import annotations

import time
from collections.abc import Callable

from planted import (
    COUNT,
    TRIES,
    Bank,
    Cancelled,
    Expired,
    Order,
    Paid,
    Placed,
    add,
    bank,
    each_known_as_paid,
    each_paid_once,
    plan,
    table,
)

from oyez import After, Context, Event, Service, Transaction
from oyez.simulation import Sim
from oyez.simulation.stage import Plan


class Accepted(Event, type="planted.accepted", key="order_id"):
    order_id: str


def charge_without_key() -> Plan:
    """With a key the payment is made once, however often it is asked for."""
    service = Service("pay")

    @service.on(Placed, retry=TRIES)
    async def charge(event: Placed, bank: Bank, context: Context, after: After) -> Paid:
        await bank.pay(event.order_id, context.idempotency_key)
        return Paid(order_id=event.order_id)

    service.provides(bank)
    return plan(service, check=each_paid_once)


def effect_before_row() -> Plan:
    """The row is written after the payment, which has a key: both are repeated or none."""
    service = Service("pay", migrations="migrations")

    @service.on(Placed, retry=TRIES)
    async def charge(event: Placed, bank: Bank, context: Context, after: After) -> Paid:
        await bank.pay(event.order_id, context.idempotency_key)
        after.execute("insert into own (name, n) values (:name, 1)", name=event.order_id)
        return Paid(order_id=event.order_id)

    service.provides(bank)

    def check(sim: Sim, placed: list[str]) -> None:
        each_paid_once(sim, placed)
        assert table("pay", sim) == [{"name": each, "n": 1} for each in placed]

    return plan(service, check=check)


def read_modify_write() -> Plan:
    """The database adds."""
    service = Service("pay", migrations="migrations")

    @service.on(Placed, retry=TRIES)
    async def count(event: Placed, bank: Bank, after: After) -> None:
        await bank.pay(event.order_id, event.order_id)
        after.execute(COUNT, name="all")

    service.provides(bank)

    def check(sim: Sim, placed: list[str]) -> None:
        assert table("pay", sim) == [{"name": "all", "n": len(placed)}]

    return plan(service, orders=6, check=check)


def swallowed_exception() -> Plan:
    """What fails is raised, and tried again."""
    service = Service("pay")

    @service.on(Placed, retry=TRIES)
    async def charge(event: Placed, bank: Bank, after: After) -> Paid:
        await bank.pay(event.order_id, event.order_id)
        return Paid(order_id=event.order_id)

    service.provides(bank)
    return plan(service, check=each_paid_once)


def late_event_ignored() -> Plan:
    """Each event is kept, whichever comes first."""
    pay, ship = Service("pay"), Service("ship")

    @pay.on(Placed, retry=TRIES)
    async def charge(event: Placed, bank: Bank, after: After) -> Paid:
        await bank.pay(event.order_id, event.order_id)
        return Paid(order_id=event.order_id)

    pay.provides(bank)

    @ship.on(Placed)
    async def placed(event: Placed, order: Order) -> None:
        order.placed = True

    @ship.on(Paid)
    async def paid(event: Paid, order: Order) -> None:
        order.paid = True

    return plan(pay, ship, check=each_known_as_paid)


def compensation_twice() -> Plan:
    """What is given back is committed together with the event that asked for it."""
    service = Service("stock", migrations="migrations")

    @service.on(Placed)
    async def take(event: Placed, tx: Transaction) -> None:
        tx.execute(add(), n=-1)

    @service.on(Cancelled, retry=TRIES)
    async def release(event: Cancelled, bank: Bank, after: After) -> None:
        await bank.pay(event.order_id, event.order_id)
        after.execute(add(), n=1)

    service.provides(bank)

    def check(sim: Sim, placed: list[str]) -> None:
        assert table("stock", sim) == [{"name": "free", "n": 0}]

    return plan(service, twice=True, check=check)


def own_commit() -> Plan:
    """The handler's own transaction is the only one."""
    service = Service("stock", migrations="migrations")

    @service.on(Placed, retry=TRIES)
    async def take(event: Placed, tx: Transaction) -> None:
        tx.execute(add(), n=-1)

    def check(sim: Sim, placed: list[str]) -> None:
        assert table("stock", sim) == [{"name": "free", "n": -len(placed)}]

    return plan(service, check=check)


def global_cache() -> Plan:
    """What was seen is in the store."""
    service = Service("pay", migrations="migrations")

    @service.on(Placed)
    async def remember(event: Placed, tx: Transaction) -> None:
        tx.execute("insert into own (name, n) values (:name, 1)", name=event.order_id)

    return plan(service)


def wall_clock() -> Plan:
    """The decision is an event, and so is made once; what follows from it asks no clock."""
    service = Service("pay", migrations="migrations")

    @service.on(Placed)
    async def decide(event: Placed, tx: Transaction) -> Accepted | Expired:
        if time.time() - event.at > 5.0:
            return Expired(order_id=event.order_id)
        return Accepted(order_id=event.order_id)

    @service.on(Accepted, retry=TRIES)
    async def charge(event: Accepted, bank: Bank, after: After) -> Paid:
        await bank.pay(event.order_id, event.order_id)
        return Paid(order_id=event.order_id)

    service.provides(bank)

    def check(sim: Sim, placed: list[str]) -> None:
        expired = {each.order_id for each in sim.announced(Expired)}
        paid = set(sim.outside(Bank).payments)
        assert not expired & paid, "paid and expired"
        assert expired | paid == set(placed)

    return plan(service, check=check)


def task_left_behind() -> Plan:
    """The handler awaits what it has begun."""
    service = Service("pay")

    @service.on(Placed, retry=TRIES)
    async def charge(event: Placed, bank: Bank, after: After) -> Paid:
        await bank.pay(event.order_id, event.order_id)
        return Paid(order_id=event.order_id)

    service.provides(bank)
    return plan(service, check=each_paid_once)


MENDED: dict[str, Callable[[], Plan]] = {
    each.__name__: each
    for each in (
        charge_without_key,
        effect_before_row,
        read_modify_write,
        swallowed_exception,
        late_event_ignored,
        compensation_twice,
        own_commit,
        global_cache,
        wall_clock,
        task_left_behind,
    )
} | {"key_from_uuid4": charge_without_key}
