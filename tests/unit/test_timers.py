"""Timers: armed with a commit, fired once, by whoever owns their place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from oyez import Context, Event, Retry, Service, State, Transaction
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import StoreUnavailable
from oyez.partitioning import partition_of
from oyez.ports import Changes, Parameters, Row, Writes
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.runtime.timers import POLL
from oyez.signals import BatchHandled, EventRetried, Signals
from oyez.stores.sqlite import SqliteStore
from oyez.tables import PLACES, TIMERS
from oyez.testing import VirtualAmbient, running
from oyez.timers import Timer, arm, disarm


class Placed(Event, type="test.placed", key="order"):
    order: str
    within: float = 60.0


class Paid(Event, type="test.paid", key="order"):
    order: str


class Lapsed(Event, type="test.lapsed", key="order"):
    order: str


class Order(State):
    lapsed: int = 0


def execute(tx: Transaction, writes: Writes) -> None:
    for sql, sets in writes:
        for parameters in sets:
            tx.execute(sql, **parameters)


def make(*, fails: int = 0) -> Service:
    """Orders that lapse, unless they are paid in time; the handler fails so often before."""
    service = Service("orders")
    left = [fails]

    @service.on(Placed)
    async def placed(event: Placed, tx: Transaction, context: Context) -> None:
        now = tx.unit.changes.time
        execute(tx, arm("Order", event.order, "pay", now + event.within, now))

    @service.on(Paid)
    async def paid(event: Paid, tx: Transaction) -> None:
        execute(tx, disarm("Order", event.order, "pay"))

    @service.on(Timer, retry=Retry(first=1.0, jitter=0.0))
    async def lapse(event: Timer, order: Order) -> Lapsed:
        if left[0]:
            left[0] -= 1
            raise ValueError("not now")
        order.lapsed += 1
        return Lapsed(order=event.key)

    return service


async def test_a_timer_fires_once_at_its_time() -> None:
    service = make()
    async with running(service) as system:
        await system.publish(Placed(order="a"))
        await system.settled()
        await system.advance(59.0)
        assert system.announced(Lapsed) == []
        await system.advance(1.0)
        assert system.announced(Lapsed) == [Lapsed(order="a")]
        await system.advance(600.0)
        assert system.announced(Lapsed) == [Lapsed(order="a")]
        order = await service.read(Order, "a")
        assert order is not None
        assert order.lapsed == 1
        (row,) = await system.fetch(
            "orders", "select event_id, source, stream from oyez_inbox where handler = 'lapse'"
        )
        assert row["event_id"] == "Order/a/pay@2027-01-15T08:01:00.000000Z"
        assert (row["source"], row["stream"]) == ("/test/orders", TIMERS)
        (said,) = [s for s in system.signals if isinstance(s, BatchHandled) and s.stream == TIMERS]
        assert (said.partition, said.events) == (partition_of("a", PLACES), 1)


async def test_a_timer_that_is_disarmed_or_set_anew_does_not_fire_at_its_old_time() -> None:
    async with running(make()) as system:
        for order in "abc":
            await system.publish(Placed(order=order))
        await system.settled()
        await system.publish(Paid(order="a"))
        await system.publish(Placed(order="b", within=90.0))
        await system.settled()
        await system.advance(60.0)
        assert system.announced(Lapsed) == [Lapsed(order="c")]
        await system.advance(30.0)
        assert system.announced(Lapsed) == [Lapsed(order="c"), Lapsed(order="b")]
        assert await system.fetch("orders", "select * from oyez_timer") == []


async def test_a_timer_of_a_handler_that_fails_is_retried() -> None:
    async with running(make(fails=2)) as system:
        await system.publish(Placed(order="a", within=0.0))
        await system.settled()
        assert system.announced(Lapsed) == []
        await system.advance(5.0)
        assert system.announced(Lapsed) == [Lapsed(order="a")]
        assert len([s for s in system.signals if isinstance(s, EventRetried)]) == 2


async def test_a_timer_armed_again_for_the_moment_at_which_it_fired_fires_again() -> None:
    service = Service("orders")
    seen: list[float] = []

    @service.on(Timer)
    async def lapse(event: Timer, order: Order, tx: Transaction) -> None:
        seen.append(event.due)
        if len(seen) < 3:
            execute(tx, arm("Order", event.key, event.name, event.due, event.due))

    async with running(service) as system:
        now = system.ambient.now()
        async with service.transaction() as tx:
            execute(tx, arm("Order", "a", "pay", now, now))
        await system.settled()
        assert seen == [now] * 3


async def test_what_a_timer_causes_belongs_to_the_journey_of_its_state() -> None:
    service = make()
    async with running(service) as system:
        now = system.ambient.now()
        async with service.transaction() as tx:
            (await tx.load(Order, "a")).lapsed = 7
        async with service.transaction() as tx:
            tx.execute("update oyez_state set correlationid = 'journey'")
            for order in "ab":
                execute(tx, arm("Order", order, "pay", now + 1.0, now))
        await system.advance(1.0)
        events = {event.key: event for event in system.history()}
        assert events["a"].correlationid == "journey"
        assert events["a"].causationid == "Order/a/pay@2027-01-15T08:00:01.000000Z"
        assert events["b"].correlationid == events["b"].causationid


async def test_after_the_clock_was_set_back_a_timer_waits_no_longer_than_its_time() -> None:
    async with running(make()) as system:
        await system.publish(Placed(order="a"))
        await system.settled()
        await system.advance(30.0)
        system.ambient.set_back(200.0)
        await system.advance(61.0)
        assert system.announced(Lapsed) == [Lapsed(order="a")]
        await system.advance(300.0)
        assert system.announced(Lapsed) == [Lapsed(order="a")]


async def test_timers_of_a_kind_without_a_handler_are_left_and_hold_up_no_others() -> None:
    service = make()
    async with running(service) as system:
        now = system.ambient.now()
        async with service.transaction() as tx:
            for number in range(600):
                execute(tx, arm("Gone", "a", str(number), now, now))
            execute(tx, arm("Order", "a", "pay", now + 1.0, now))
        await system.settled()
        await system.advance(2.0)
        assert system.announced(Lapsed) == [Lapsed(order="a")]
        (row,) = await system.fetch("orders", "select count(*) as n from oyez_timer")
        assert row["n"] == 600


async def test_a_record_from_a_broker_is_no_timer() -> None:
    async with running(make()) as system:
        await system.publish(Timer(kind="Order", key="a", name="pay", due=0.0))
        await system.settled()
        assert system.announced(Lapsed) == []
        assert await system.dead("orders") == []


async def test_a_service_without_timers_claims_no_place_for_them() -> None:
    service = Service("orders")

    @service.on(Placed)
    async def placed(event: Placed, tx: Transaction) -> None: ...

    async with running(service) as system:
        await system.publish(Placed(order="a"))
        await system.settled()
        assert {stream for stream, _ in system.processes["orders"].lanes} == {"test.outside"}


async def test_many_timers_fire_in_bounded_commits_and_stop_while_too_many_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("oyez.runtime.timers.PARKED_LIMIT", 20)
    monkeypatch.setattr("oyez.runtime.timers.LIMIT", 8)
    service = make()
    most = 0
    async with running(service) as system:
        now = system.ambient.now()
        async with service.transaction() as tx:
            for number in range(100):
                execute(tx, arm("Order", "a", f"{number:03}", now + number, now))
        process = system.processes["orders"]

        def watch(signal: Any) -> None:
            nonlocal most
            if isinstance(signal, BatchHandled) and signal.stream == TIMERS:
                (lane,) = [lane for place, lane in process.lanes.items() if lane.chains.total]
                most = max(most, lane.chains.total)

        system.bus.listen(watch)
        await system.ambient.advance(100.0)
        await system.advance(30.0)
        assert len(system.announced(Lapsed)) == 100
        assert 0 < most <= 20


class Fails(SqliteStore):
    """Out of reach for whoever takes timers."""

    failing = False

    async def fetch(self, sql: str, parameters: Parameters) -> list[Row]:
        if self.failing and "oyez_timer" in sql:
            raise StoreUnavailable("for a while")
        return await super().fetch(sql, parameters)


Start = Callable[[Service], Awaitable[ServiceProcess]]


@asynccontextmanager
async def replicas(
    path: Path, ambient: VirtualAmbient, count: int, service: Service | None = None
) -> AsyncIterator[tuple[list[ServiceProcess], Start]]:
    """So many processes of one service on one file, and what starts one more."""
    broker = MemoryBroker(ambient, partitions=4)
    await broker.create("test.outside", 4)
    started: list[ServiceProcess] = []

    async def start(service: Service) -> ServiceProcess:
        process = ServiceProcess(
            service,
            ProcessSettings(system="test"),
            broker=broker,
            store=Fails(path, ambient, inline=True, durable=False),
            ambient=ambient,
            signals=Signals(),
        )
        await process.start()
        started.append(process)
        return process

    for _ in range(count):
        await start(service or make())
    try:
        yield started, start
    finally:
        for process in started:
            if not process.draining:
                await process.drain()


async def test_places_are_shared_like_partitions(tmp_path: Path) -> None:
    ambient = VirtualAmbient()
    async with replicas(tmp_path / "a.db", ambient, 3) as (processes, _):
        await ambient.advance(5.0)
        shares = [len(process.lanes) for process in processes]
        assert sorted(shares) == [6, 7, 7]
        places = [place for process in processes for place in process.lanes]
        assert sorted(places) == sorted(
            [("test.orders", n) for n in range(8)]
            + [("test.outside", n) for n in range(4)]
            + [(TIMERS, n) for n in range(PLACES)]
        )


async def test_places_that_an_older_version_does_not_know_are_not_left_to_it(
    tmp_path: Path,
) -> None:
    """While a deployment replaces replicas one by one; once it is over, shares are equal again."""
    ambient = VirtualAmbient()
    older = Service("orders")

    @older.on(Placed)
    async def placed(event: Placed, tx: Transaction) -> None: ...

    async with replicas(tmp_path / "a.db", ambient, 1, older) as (processes, start):
        await ambient.advance(5.0)
        new = await start(make())
        await ambient.advance(18.0)
        held = {part for stream, part in new.lanes if stream == TIMERS}
        assert held == set(range(PLACES))
        assert new.health.readiness() == []
        before = dict(new.lanes)
        await ambient.advance(20.0)
        assert new.lanes == before
        await processes[0].drain()
        await start(make())
        await ambient.advance(20.0)
        assert [len(process.lanes) for process in processes[1:]] == [10, 10]


async def test_due_timers_that_do_not_fire_fail_readiness(tmp_path: Path) -> None:
    ambient = VirtualAmbient()
    async with replicas(tmp_path / "a.db", ambient, 1) as ((process,), _):
        await ambient.advance(2.0)
        now = ambient.now()
        await process.store.begin().commit(Changes(writes=arm("Order", "a", "pay", now + 3, now)))
        await ambient.advance(1.0)
        assert isinstance(process.store, Fails)
        process.store.failing = True
        await ambient.advance(40.0)
        place = f"{TIMERS}[{partition_of('a', PLACES)}]"
        assert any(
            reason.startswith(f"{place} has made no progress")
            for reason in process.health.readiness()
        )
        process.store.failing = False
        await ambient.advance(70.0)
        assert process.health.readiness() == []
        assert await process.store.fetch("select * from oyez_timer", {}) == []


async def test_what_a_killed_owner_left_fires_once_at_its_heir(tmp_path: Path) -> None:
    """Also what it had fired, and did not handle."""
    ambient = VirtualAmbient()
    path = tmp_path / "a.db"
    async with replicas(path, ambient, 2) as (processes, _):
        await ambient.advance(3.0)
        now = ambient.now()
        writes = [w for n in range(100) for w in arm("Order", str(n), "pay", now + n / 10, now)]
        await processes[1].store.begin().commit(Changes(writes=writes, time=now))
        await ambient.advance(5.0)
        await processes[0].kill()
        await processes[0].store.leave(processes[0].owner)
        await ambient.advance(30.0)
        rows = await processes[1].store.fetch(
            "select key, data from oyez_state where kind = 'Order'", {}
        )
        assert len(rows) == 100
        announced = await processes[1].store.fetch(
            "select count(*) as n from oyez_inbox where handler = 'lapse' and state = 0", {}
        )
        assert announced == [{"n": 100}]
        assert await processes[1].store.fetch("select * from oyez_timer", {}) == []


async def test_a_place_that_another_owns_is_fenced(tmp_path: Path) -> None:
    ambient = VirtualAmbient()
    async with replicas(tmp_path / "a.db", ambient, 1) as ((process,), _):
        await ambient.advance(2.0)
        part = partition_of("a", PLACES)
        lane = process.lanes[TIMERS, part]
        now = ambient.now()
        stolen: Writes = [
            (
                "update oyez_cursor set owner = 'other', epoch = epoch + 1"
                " where stream = :stream and partition = :partition",
                [{"stream": TIMERS, "partition": part}],
            ),
            *arm("Order", "a", "pay", now, now),
        ]
        await process.store.begin().commit(Changes(writes=stolen))
        for timers in process.claims.timers:
            timers.ring()
        await ambient.advance(POLL / 2)
        assert lane.fenced
        rows = await process.store.fetch("select name from oyez_timer", {})
        assert rows == [{"name": "pay"}]
        assert await process.store.fetch("select * from oyez_inbox", {}) == []
