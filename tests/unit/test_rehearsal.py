"""Safe handlers called again in transactions that are rolled back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oyez import Context, Event, Service, Transaction
from oyez.ports import Changes
from oyez.runtime.rehearsal import Rehearsal, Unlike
from oyez.runtime.reports import Reports
from oyez.signals import EventDead, Signals
from oyez.stores.sqlite import SqliteStore
from oyez.testing import System, running


class Placed(Event, type="test.placed", key="order"):
    order: str
    cents: int = 0


class Billed(Event, type="test.billed", key="order"):
    order: str
    cents: int = 0


class Thanked(Event, type="test.thanked", key="order"):
    order: str


def till(work: Callable[[Placed, Transaction], Any], *, thanks: bool = False) -> Service:
    service = Service("till", migrations="migrations")

    @service.on(Placed, replay="safe")
    async def bill(event: Placed, tx: Transaction, context: Context) -> Billed | None:
        assert not context.replayed
        tx.execute(
            "insert into bill (name) values (:name) on conflict do nothing", name=event.order
        )
        return work(event, tx)

    if thanks:

        @service.on(Placed)
        async def thank(event: Placed, tx: Transaction) -> Thanked:
            return Thanked(order=event.order)

    return service


def same(event: Placed, tx: Transaction) -> Billed:
    return Billed(order=event.order, cents=event.cents)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_bill.sql").write_text(
        "create table bill (name text primary key not null)"
    )
    return tmp_path


class Room:
    """A rehearsal of new code beside a running service, and what it found."""

    def __init__(self, system: System, rehearsal: Rehearsal, signals: list[Any]) -> None:
        self.system = system
        self.rehearsal = rehearsal
        self.signals = signals

    async def perform(self) -> list[Unlike]:
        """Rehearse all that is on the broker."""
        logs = self.system.broker.logs
        own = [record for log in logs.get("test.till", []) for record in log]
        await self.rehearsal.remember(own)
        records = [record for stream in list(logs) for log in logs[stream] for record in log]
        return [each for record in records for each in await self.rehearsal.perform(record)]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Events compared, events left out, announcements that are the same."""
        return self.rehearsal.events, self.rehearsal.left_out, self.rehearsal.same


@asynccontextmanager
async def rehearsing(system: System, code: Service, folder: Path) -> AsyncIterator[Room]:
    process = system.processes["till"]
    found: list[Any] = []
    signals = Signals()
    signals.listen(found.append)
    scratch = SqliteStore(folder / "scratch.db", system.ambient, inline=True, durable=False)
    await scratch.open()
    chosen = [handler for handler in code.handlers if handler.replay == "safe"]
    rehearsal = Rehearsal(
        chosen,
        code.handlers,
        system="test",
        service="till",
        broker=system.broker,
        live=process.store,
        scratch=scratch,
        ambient=system.ambient,
        reports=Reports("till", signals),
        provided={},
    )
    await rehearsal.prepare()
    try:
        yield Room(system, rehearsal, found)
    finally:
        rehearsal.close()
        await scratch.close()


async def test_the_same_code_announces_the_same(folder: Path) -> None:
    async with running(till(same), root=folder) as system:
        for number in range(5):
            await system.publish(Placed(order=str(number), cents=number))
        await system.settled()
        (record, *_) = [r for log in system.broker.logs["test.outside"] for r in log]
        await system.broker.publish([record])  # as a relay does after a crash
        await system.settled()
        process = system.processes["till"]
        await process.store.begin().commit(Changes(writes=[("delete from bill", [{}])]))
        async with rehearsing(system, till(same), folder) as room:
            assert await room.perform() == []
            assert room.counts == (5, 0, 5)
        assert await system.fetch("till", "select * from bill") == []
        assert len(system.announced(Billed)) == 5


async def test_changed_code_is_found_event_by_event(folder: Path) -> None:
    def other(event: Placed, tx: Transaction) -> Billed | None:
        if event.order == "2":
            return None
        if event.order == "3":
            tx.publish(Billed(order="extra"))
        return Billed(order=event.order, cents=event.cents + (event.order == "1"))

    async with running(till(same), root=folder) as system:
        causes = [await system.publish(Placed(order=str(n), cents=n)) for n in range(5)]
        await system.settled()
        async with rehearsing(system, till(other), folder) as room:
            found = {each.what: each for each in await room.perform()}
            assert found == {
                "changed": Unlike(
                    kind="test.billed",
                    key="1",
                    what="changed",
                    fields={"cents": (1, 2)},
                    event_id=causes[1],
                ),
                "missing": Unlike(kind="test.billed", key="2", what="missing", event_id=causes[2]),
                "added": Unlike(kind="test.billed", key="extra", what="added", event_id=causes[3]),
            }
            assert room.counts == (5, 0, 3)


async def test_what_other_handlers_announce_is_not_compared(folder: Path) -> None:
    async with running(till(same, thanks=True), root=folder) as system:
        await system.publish(Placed(order="1"))
        await system.settled()
        assert len(system.announced(Thanked)) == 1
        async with rehearsing(system, till(same, thanks=True), folder) as room:
            assert await room.perform() == []
            assert room.counts == (1, 0, 1)


async def test_events_of_which_nothing_is_known_are_left_out(folder: Path) -> None:
    def later(event: Placed, tx: Transaction) -> None:
        tx.publish(Billed(order=event.order), delay=900.0 if event.order == "1" else None)

    async with running(till(later), root=folder) as system:
        await system.publish(Placed(order="1"))
        await system.publish(Placed(order="2"))
        await system.settled()
        async with rehearsing(system, till(later), folder) as room:
            assert await room.perform() == []
            assert room.counts == (1, 1, 1)
        async with rehearsing(system, till(later), folder) as room:
            room.rehearsal.since = system.ambient.now() + 1.0  # all before it may be deleted
            assert await room.perform() == []
            assert room.counts == (0, 2, 0)


async def test_a_handler_that_fails_is_reported_and_nothing_is_stored(folder: Path) -> None:
    def fail(event: Placed, tx: Transaction) -> None:
        if event.order == "1":
            raise ValueError("no")
        tx.execute("insert into bill (name) values (null)" if event.order == "3" else "select 1")

    async with running(till(lambda event, tx: None), root=folder) as system:
        for order in ("1", "2", "3"):
            await system.publish(Placed(order=order))
        await system.settled()
        sizes = "select (select count(*) from oyez_inbox) as i, (select count(*) from bill) as b"
        before = await system.fetch("till", sizes)
        async with rehearsing(system, till(fail), folder) as room:
            assert await room.perform() == []
            failed = [s for s in room.signals if isinstance(s, EventDead)]
            assert sorted(msgspec.structs.asdict(s)["handler"] for s in failed) == ["bill"] * 2
            assert room.counts == (1, 0, 0)
        assert await system.fetch("till", sizes) == before
        assert await system.dead("till") == []
