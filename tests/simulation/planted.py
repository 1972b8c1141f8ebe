"""Bugs that are planted on purpose, each of a kind that people really make.

Ten and more are in the style of users, in services of their own; as many are in the core, put into
it for the time of a search. Each is a plan and what makes it wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import msgspec

from oyez import After, Context, Event, Retry, Service, State, Transaction, tables
from oyez.ports import Changes
from oyez.runtime.batches import Batches
from oyez.runtime.lane import Chains, Lane
from oyez.runtime.relay import Relay
from oyez.simulation import Sim, outside
from oyez.simulation.stage import Plan
from oyez.stores import sqlite as store

HERE = Path(__file__).parent


class Placed(Event, type="planted.placed", key="order_id"):
    order_id: str
    number: int = 1
    at: float = 0.0


class Cancelled(Event, type="planted.cancelled", key="order_id"):
    order_id: str


class Paid(Event, type="planted.paid", key="order_id"):
    order_id: str
    number: int = 1


class Expired(Event, type="planted.expired", key="order_id"):
    order_id: str


class Bank:
    """The outside: with a key a payment is made once, without one each time."""

    def __init__(self) -> None:
        self.payments: Counter[str] = Counter()
        self.keys: set[str] = set()

    async def pay(self, order_id: str, key: str | None = None) -> None:
        """Pay for an order."""
        if key is not None:
            if key in self.keys:
                return
            self.keys.add(key)
        self.payments[order_id] += 1


TRIES = Retry(attempts=20, first=0.2, factor=2.0, longest=5.0)


def plan(
    *services: Service,
    orders: int = 3,
    twice: bool = False,
    check: Callable[[Sim, list[str]], None] = lambda sim, placed: None,
    events: int = 1,
) -> Plan:
    """Return a plan that places orders and then checks the books."""

    async def scenario(sim: Sim) -> None:
        placed: list[str] = []

        @sim.at_rest
        def books() -> None:
            check(sim, placed)

        for each in range(orders):
            order_id = f"o{each}"
            placed.append(order_id)
            for number in range(1, events + 1):
                event = Placed(order_id=order_id, number=number, at=now(sim))
                await sim.publish(event, service="shop")
                if sim.random.random() < 0.5:
                    await sim.sleep(sim.random.random())
            if twice:
                await sim.publish(Cancelled(order_id=order_id), service="shop")
            await sim.sleep(sim.random.random() * 2)

    return Plan(
        services=services,
        scenario=scenario,
        system="planted",
        root=HERE,
        provide={Bank: outside(Bank)},
    )


def now(sim: Sim) -> float:
    """Return the wall-clock time of a run."""
    return time.time()


def each_paid_once(sim: Sim, placed: list[str]) -> None:
    """Check that each order is paid, and once."""
    assert dict(sim.outside(Bank).payments) == dict.fromkeys(placed, 1)


def table(service: str, sim: Sim) -> list[dict[str, Any]]:
    """Return the service's own table."""
    return sim._run.databases[service].query("select * from own order by name")


# -- in users' style -------------------------------------------------------------------------------


def charge_without_key() -> Plan:
    """A payment is made again when its answer, or the process, is lost."""
    service = Service("pay")

    @service.on(Placed, retry=TRIES)
    async def charge(event: Placed, bank: Bank, after: After) -> Paid:
        await bank.pay(event.order_id)
        return Paid(order_id=event.order_id)

    service.provides(bank)
    return plan(service, check=each_paid_once)


def key_from_uuid4() -> Plan:
    """The key is another one at each attempt."""
    service = Service("pay")

    @service.on(Placed, retry=TRIES)
    async def charge(event: Placed, bank: Bank, after: After) -> Paid:
        await bank.pay(event.order_id, str(uuid4()))
        return Paid(order_id=event.order_id)

    service.provides(bank)
    return plan(service)


def effect_before_row() -> Plan:
    """What happens outside is not undone when the transaction is rolled back."""
    service = Service("pay", migrations="migrations")

    @service.on(Placed, retry=TRIES)
    async def charge(event: Placed, bank: Bank, tx: Transaction) -> Paid:
        await bank.pay(event.order_id)
        tx.execute("insert into own (name, n) values (:name, 1)", name=event.order_id)
        return Paid(order_id=event.order_id)

    service.provides(bank)
    return plan(service, check=each_paid_once)


def read_modify_write() -> Plan:
    """Two handlers read the same number and write the same one more."""
    service = Service("pay", migrations="migrations")

    @service.on(Placed, retry=TRIES)
    async def count(event: Placed, bank: Bank, after: After) -> None:
        rows = await service.fetch("select n from own where name = 'all'")
        await bank.pay(event.order_id, event.order_id)
        sql = """insert into own (name, n) values ('all', :n)
          on conflict (name) do update set n = excluded.n"""
        after.execute(sql, n=rows[0]["n"] + 1 if rows else 1)

    service.provides(bank)

    def check(sim: Sim, placed: list[str]) -> None:
        assert table("pay", sim) == [{"name": "all", "n": len(placed)}]

    return plan(service, orders=6, check=check)


def swallowed_exception() -> Plan:
    """What was not paid counts as paid."""
    service = Service("pay")

    @service.on(Placed, retry=TRIES)
    async def charge(event: Placed, bank: Bank, after: After) -> Paid:
        with contextlib.suppress(Exception):
            await bank.pay(event.order_id, event.order_id)
        return Paid(order_id=event.order_id)

    service.provides(bank)
    return plan(service, check=each_paid_once)


class Order(State, key="order_id"):
    """What is known of an order."""

    placed: bool = False
    paid: bool = False


def late_event_ignored() -> Plan:
    """An event that comes before the one it usually follows is dropped."""
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
        if order.placed:
            order.paid = True

    return plan(pay, ship, check=each_known_as_paid)


def each_known_as_paid(sim: Sim, placed: list[str]) -> None:
    """Check that the state of each order says that it is paid."""
    rows = sim._run.databases["ship"].query("select key, data from oyez_state")
    paid = [row["key"] for row in rows if msgspec.msgpack.decode(row["data"])["paid"]]
    assert sorted(paid) == placed


def compensation_twice() -> Plan:
    """What is given back is given back once more, since nobody looks whether it was."""
    service = Service("stock", migrations="migrations")

    @service.on(Placed)
    async def take(event: Placed, tx: Transaction) -> None:
        tx.execute(add(), n=-1)

    @service.on(Cancelled, retry=TRIES)
    async def release(event: Cancelled, bank: Bank, after: After) -> None:
        async with service.transaction() as tx:
            tx.execute(add(), n=1)
        await bank.pay(event.order_id, event.order_id)

    service.provides(bank)

    def check(sim: Sim, placed: list[str]) -> None:
        assert table("stock", sim) == [{"name": "free", "n": 0}]

    found = plan(service, twice=True, check=check)
    return _allowing(found, "own commit")


def add() -> str:
    """Return the statement that adds to what is free."""
    return """insert into own (name, n) values ('free', :n)
      on conflict (name) do update set n = n + excluded.n"""


def own_commit() -> Plan:
    """A handler commits by itself, apart from what records that the event was handled."""
    service = Service("stock", migrations="migrations")

    @service.on(Placed, retry=TRIES)
    async def take(event: Placed, after: After) -> None:
        async with service.transaction() as tx:
            tx.execute(add(), n=-1)

    return plan(service)


CACHE: dict[str, int] = {}
"""What a restart loses."""


def global_cache() -> Plan:
    """What was seen is kept in a variable of the module."""
    service = Service("pay", migrations="migrations")

    @service.on(Placed)
    async def remember(event: Placed, tx: Transaction) -> None:
        CACHE[event.order_id] = event.number
        tx.execute("insert into own (name, n) values (:name, 1)", name=event.order_id)

    return plan(service)


def wall_clock() -> Plan:
    """At the second attempt it is too late, and the first one has paid."""
    service = Service("pay", migrations="migrations")

    @service.on(Placed, retry=TRIES)
    async def charge(event: Placed, bank: Bank, after: After) -> Paid | Expired:
        if time.time() - event.at > 5.0:
            return Expired(order_id=event.order_id)
        await bank.pay(event.order_id, event.order_id)
        return Paid(order_id=event.order_id)

    service.provides(bank)

    def check(sim: Sim, placed: list[str]) -> None:
        expired = {each.order_id for each in sim.announced(Expired)}
        assert not expired & set(sim.outside(Bank).payments), "paid and expired"

    return plan(service, check=check)


def task_left_behind() -> Plan:
    """What a task does after its handler has returned is lost with the process."""
    service = Service("pay")

    @service.on(Placed)
    async def charge(event: Placed, bank: Bank, tx: Transaction) -> Paid:
        async def later() -> None:
            await asyncio.sleep(0.5)
            await bank.pay(event.order_id, event.order_id)

        tasks.append(asyncio.create_task(later()))
        return Paid(order_id=event.order_id)

    tasks: list[asyncio.Task[None]] = []
    service.provides(bank)
    return plan(service)


def bank() -> Bank:
    raise AssertionError("the simulation provides it")


def _allowing(found: Plan, *names: str) -> Plan:
    inner = found.scenario

    async def scenario(sim: Sim) -> None:
        sim.allow(*names)
        await inner(sim)

    found.scenario = scenario
    return found


USERS: dict[str, Callable[[], Plan]] = {
    each.__name__: each
    for each in (
        charge_without_key,
        key_from_uuid4,
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
}


# -- in the core -----------------------------------------------------------------------------------


def sound() -> Plan:
    """Return a system without a bug of its own, which depends on each promise of the core."""
    pay, book = Service("pay"), Service("book", migrations="migrations")

    @pay.on(Placed, retry=TRIES)
    async def charge(event: Placed, context: Context, bank: Bank, after: After) -> Paid:
        await bank.pay(f"{event.order_id}/{event.number}", context.idempotency_key)
        return Paid(order_id=event.order_id, number=event.number)

    pay.provides(bank)

    @book.on(Placed)
    async def placed(event: Placed, tx: Transaction) -> None:
        tx.execute(COUNT, name=f"placed {event.order_id}")

    @book.on(Paid, retry=TRIES)
    async def paid(event: Paid, tx: Transaction, bank: Bank) -> None:
        await bank.pay(f"seen {event.order_id}/{event.number}", "once")
        tx.execute(COUNT, name=f"paid {event.order_id}")

    book.provides(bank)

    def check(sim: Sim, orders: list[str]) -> None:
        expected = {f"{what} {each}": 4 for what in ("placed", "paid") for each in orders}
        assert {row["name"]: row["n"] for row in table("book", sim)} == expected
        made = {key: n for key, n in sim.outside(Bank).payments.items() if key[:4] != "seen"}
        assert made == {f"{each}/{number}": 1 for each in orders for number in range(1, 5)}

    return plan(pay, book, check=check, events=4)


COUNT = """insert into own (name, n) values (:name, 1)
  on conflict (name) do update set n = n + 1"""

Bug = Callable[[], AbstractContextManager[Any]]


@contextlib.contextmanager
def no_inbox() -> Iterator[None]:
    """What was handled is not looked up, and recorded without a complaint."""

    async def seen(*args: Any) -> set[Any]:
        return set()

    sql = store._HANDLED.replace("insert into", "insert or ignore into")
    with patch.object(store.SqliteStore, "seen", seen), patch.object(store, "_HANDLED", sql):
        yield


@contextlib.contextmanager
def removed_before_published() -> Iterator[None]:
    """The outbox forgets what the broker has not confirmed."""
    publish = Relay._publish

    async def wrong(self: Relay, rows: Any, numbers: Any) -> None:
        await self._settle(rows, numbers, 0.0)
        await publish(self, rows, numbers)

    with patch.object(Relay, "_publish", wrong):
        yield


def no_fence() -> AbstractContextManager[Any]:
    """A replica that lost a partition commits all the same."""
    held = "and owner = :owner and epoch = :epoch"
    return patch.object(
        store, "_FENCE", store._FENCE.replace(held, "and :owner <> '' and :epoch > 0")
    )


@contextlib.contextmanager
def position_first() -> Iterator[None]:
    """The position is stored before the effects are."""
    take = Batches.take

    async def wrong(self: Batches, batch: Any) -> int:
        await self._lane.commit(Changes(claim=self._lane.claim), batch.records[-1].position)
        return await take(self, batch)

    with patch.object(Batches, "take", wrong):
        yield


def chain_not_released() -> AbstractContextManager[Any]:
    """What waits behind a settled event waits for ever."""
    return patch.object(
        store, "_NEXT", store._NEXT.replace(" where seq", " where 1 = 2 and seq", 1)
    )


def chain_overtaken() -> AbstractContextManager[Any]:
    """A later event of a key does not wait for a parked one."""
    return patch.object(Chains, "__contains__", lambda self, chain: False)


@contextlib.contextmanager
def failed_commit_counts() -> Iterator[None]:
    """A commit of which nobody knows how it ended counts as one that was made."""
    commit = Lane.commit

    async def wrong(self: Lane, work: Any, position: Any) -> None:
        from oyez.errors import StoreUnavailable

        try:
            await commit(self, work, position)
        except StoreUnavailable:
            if position is not None:
                self.position = max(self.position, position)

    with patch.object(Lane, "commit", wrong):
        yield


def retry_forgets() -> AbstractContextManager[Any]:
    """An event that is to be tried again counts as handled."""
    return patch.object(store, "_RETRIED", store._RETRIED.replace("set due", "set state = 0, due"))


@contextlib.contextmanager
def outbox_reversed() -> Iterator[None]:
    """What is read from the outbox is published the other way round."""
    take = Relay._take

    async def wrong(self: Relay) -> Any:
        return (await take(self))[::-1]

    with patch.object(Relay, "_take", wrong):
        yield


def the_dead_keep_their_lease() -> AbstractContextManager[Any]:
    """Nobody takes over from a replica that died."""
    return patch.object(tables, "LIVING", tables.LIVING.replace("until > :now", ":now > 0"))


@contextlib.contextmanager
def gaps_removed() -> Iterator[None]:
    """With what was published, rows between are removed from the outbox."""
    with patch.object(store, "_runs", lambda numbers: [(1, max(numbers) + 1)]):
        yield


CORE: dict[str, Bug] = {
    each.__name__: each
    for each in (
        no_inbox,
        removed_before_published,
        no_fence,
        position_first,
        chain_not_released,
        chain_overtaken,
        failed_commit_counts,
        retry_forgets,
        outbox_reversed,
        the_dead_keep_their_lease,
        gaps_removed,
    )
}
