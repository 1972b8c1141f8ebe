"""The relay: what it sends and when, and what it does with events that the broker refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from parts import BY, Parts, because

from oyez import Event, Service, tables
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import (
    BrokerRefused,
    BrokerUnavailable,
    NotRedriven,
    RecordRefused,
    StoreUnavailable,
)
from oyez.ports import Announcement, Changes, Record
from oyez.runtime.dead import discard, list_dead, redrive, show_dead
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.runtime.relay import LIMIT, LIMIT_BYTES, PAGE, PATIENCE
from oyez.runtime.tail import MOST_BYTES
from oyez.signals import EventDead, EventsPublished, Signal, Signals, Trouble
from oyez.stores.sqlite import SqliteStore
from oyez.testing import VirtualAmbient

PASS = 30.0
"""Seconds in which the relay and health have looked, on the virtual clock."""


LARGE = 1024 * 1024


class Placed(Event, type="shop.placed", key="order"):
    order: str
    number: int


class Picky(MemoryBroker):
    """A broker that refuses the events of some (order, number), alone and in company."""

    def refuse(self, *orders: tuple[str, int], kind: type[BrokerRefused] = BrokerRefused) -> None:
        self._refused = {*orders}
        self._kind = kind

    async def publish(self, records: Sequence[Record]) -> None:
        if any(_order(record) in self._refused for record in records):
            raise self._kind("a header is too long: shorten it")
        await super().publish(records)


class Till:
    """A service that announces what the broker refuses."""

    def __init__(self, root: Path) -> None:
        self.ambient = VirtualAmbient()
        self.broker = Picky(self.ambient, partitions=1)
        self.broker.refuse()
        self.store = SqliteStore(root / "till.db", self.ambient, inline=True, durable=False)
        self.service = Service("till", publishes=(Placed,))
        self.dead: list[EventDead] = []
        signals = Signals()
        signals.listen(self._hear)
        self.process = ServiceProcess(
            self.service,
            # One partition shows the order in which everything was published.
            ProcessSettings(system="shop", broker="memory", partitions=1),
            broker=self.broker,
            store=self.store,
            ambient=self.ambient,
            signals=signals,
        )

    def _hear(self, signal: Signal) -> None:
        if isinstance(signal, EventDead):
            self.dead.append(signal)

    async def place(self, *orders: tuple[str, int]) -> None:
        async with self.service.transaction() as tx:
            for order, number in orders:
                tx.publish(Placed(order=order, number=number))

    async def published(self) -> list[tuple[str, int]]:
        await self.ambient.advance(PASS)
        return [_order(record) for log in self.broker.logs["shop.till"] for record in log]

    async def letters(self) -> list[int]:
        return [row["id"] for row in await list_dead(self.store)]


@asynccontextmanager
async def till(root: Path) -> AsyncIterator[Till]:
    system = Till(root)
    await system.process.start()
    try:
        yield system
    finally:
        await system.process.drain()


async def test_a_refused_event_is_dead_and_holds_its_key_alone(tmp_path: Path) -> None:
    """Later events of its key wait; the others go on; readiness and a signal say so (G3, G4)."""
    async with till(tmp_path) as system:
        system.broker.refuse(("a", 2))
        await system.place(("a", 1), ("a", 2), ("b", 1), ("a", 3))
        await system.place(("a", 4), ("b", 2))
        assert await system.published() == [("a", 1), ("b", 1), ("b", 2)]
        (letter,) = await list_dead(system.store)
        assert letter["handler"] == tables.OUTBOX
        assert (letter["stream"], letter["key"]) == ("shop.till", "a")
        assert letter["reason"] == "refused by the broker: a header is too long: shorten it"
        (signal,) = system.dead
        assert (signal.handler, signal.event_id) == (tables.OUTBOX, letter["event_id"])
        assert system.process.health.readiness() == []
        (warning,) = system.process.health.warnings()
        assert "refused: 1" in warning
        assert "oyez dead list till" in warning


async def test_a_redriven_event_is_published_before_what_waited_behind_it(tmp_path: Path) -> None:
    async with till(tmp_path) as system:
        system.broker.refuse(("a", 2))
        await system.place(("a", 1), ("a", 2), ("a", 3), ("b", 1))
        await system.published()
        await system.place(("a", 4))
        await system.published()
        (letter,) = await system.letters()
        system.broker.refuse()
        await redrive(system.store, letter, system.ambient, by=BY)
        published = await system.published()
        assert [order for order in published if order[0] == "a"] == [("a", n) for n in (1, 2, 3, 4)]
        assert await system.letters() == []
        assert system.process.health.warnings() == []
        with pytest.raises(NotRedriven, match="was redriven already"):
            await redrive(system.store, letter, system.ambient, by=BY)


async def test_a_redriven_event_that_is_refused_again_is_dead_again(tmp_path: Path) -> None:
    async with till(tmp_path) as system:
        system.broker.refuse(("a", 1), kind=RecordRefused)
        await system.place(("a", 1), ("a", 2))
        assert await system.published() == []
        (letter,) = await system.letters()
        await redrive(system.store, letter, system.ambient, by=BY)
        assert await system.published() == []
        (again,) = await system.letters()
        assert again != letter
        row = await show_dead(system.store, again)
        assert row is not None
        data = msgspec.json.encode({"order": "a", "number": 7})
        await redrive(system.store, again, system.ambient, by=BY, data=data)
        assert await system.published() == [("a", 7), ("a", 2)]


async def test_what_waited_behind_a_discarded_event_is_published(tmp_path: Path) -> None:
    async with till(tmp_path) as system:
        system.broker.refuse(("a", 1))
        await system.place(("a", 1), ("a", 2), ("b", 1))
        assert await system.published() == [("b", 1)]
        (letter,) = await system.letters()
        with pytest.raises(NotRedriven, match="leave out --handler"):
            await redrive(system.store, letter, system.ambient, by=BY, handler="other")
        await discard(system.store, letter, system.ambient, by=because("placed twice"))
        assert await system.published() == [("b", 1), ("a", 2)]


async def test_a_stream_that_is_refused_whole_loses_nothing_to_dead_letters(tmp_path: Path) -> None:
    """A right that is missing is no fault of the events: they wait, and readiness says so."""
    async with till(tmp_path) as system:
        orders = [("a", 1), ("b", 1), ("c", 1)]
        system.broker.refuse(*orders)
        await system.place(*orders)
        assert await system.published() == []
        assert await system.letters() == []
        assert any("outbox not published" in why for why in system.process.health.readiness())
        system.broker.refuse()
        await system.ambient.advance(PASS)
        assert await system.published() == orders


async def test_another_relay_keeps_the_key_held(tmp_path: Path) -> None:
    """The hold is in the store, not in the process that made it."""
    async with till(tmp_path) as system:
        system.broker.refuse(("a", 1))
        await system.place(("a", 1), ("b", 1))
        await system.published()
    async with till(tmp_path) as system:
        await system.place(("a", 2), ("b", 2))
        assert await system.published() == [("b", 2)]
        (letter,) = await system.letters()
        await redrive(system.store, letter, system.ambient, by=BY)
        assert await system.published() == [("b", 2), ("a", 1), ("a", 2)]


class Sender(Parts):
    """A relay on fakes, and an outbox whose rows a test names."""

    async def start(self) -> None:
        self.outgoing = await self.relay()
        self.store.on_commit(self.outgoing.ring)
        self.outgoing.start()
        await self.ambient.advance(0.0)

    async def announce(
        self,
        *ids: str,
        key: str | None = "a",
        due: float = 0.0,
        data: bytes = b"{}",
        told: bool = False,
    ) -> None:
        """Announce events; ``told``: as a commit of this process, of which the relay is told."""
        rows = [
            Announcement(stream="shop.desk", key=key, headers={"id": one}, data=data, due=due)
            for one in ids
        ]
        changes = Changes(announced=rows, told=told)
        await self.store.begin().commit(changes)
        if told:
            self.outgoing.add(changes)
        await self.ambient.advance(0.0)

    async def has_room(self) -> bool:
        """Whether a lane may take another batch at once."""
        waiting = asyncio.ensure_future(self.outgoing.room())
        await self.ambient.advance(0.0)
        done = waiting.done()
        waiting.cancel()
        return done

    @property
    def published(self) -> list[str]:
        (log,) = self.broker.logs.get("shop.desk", [[]])
        return [record.headers["id"] for record in log]

    @property
    def left(self) -> list[str]:
        return [row["headers"]["id"] for row in self.store.announced]

    @property
    def sizes(self) -> list[int]:
        """How many rows left the outbox with each commit."""
        return [len(changes.sent) for changes in self.store.commits if changes.sent]


async def sending() -> Sender:
    sender = Sender()
    await sender.start()
    return sender


async def test_what_is_announced_is_published_in_order_and_leaves_the_outbox() -> None:
    sender = await sending()
    await sender.announce("1", "2", "3")
    await sender.announce("4", key=None)
    assert sender.published == ["1", "2", "3", "4"]
    assert sender.left == []
    told = sender.signals(EventsPublished)
    assert [(signal.stream, signal.events) for signal in told] == [
        ("shop.desk", 3),
        ("shop.desk", 1),
    ]
    await sender.outgoing.stop()
    await sender.outgoing.stop()


async def test_what_is_announced_while_the_broker_is_away_goes_when_it_is_back() -> None:
    sender = await sending()
    sender.broker.interrupt(True)
    await sender.announce("1", "2")
    await sender.ambient.advance(60.0)
    assert sender.left == ["1", "2"]
    assert sender.outgoing.failing_since is not None
    assert all(trouble.part == "relay" for trouble in sender.signals(Trouble))
    sender.broker.interrupt(False)
    await sender.announce("3")
    await sender.ambient.advance(5.0)
    assert sender.published == ["1", "2", "3"]
    assert sender.outgoing.failing_since is None
    await sender.outgoing.stop()


@pytest.mark.parametrize("late", [False, True])
async def test_what_is_sent_twice_keeps_its_ids(late: bool) -> None:
    """The store failed after the broker confirmed, or the broker had it all and did not say so."""
    sender = await sending()
    if late:
        sender.broker.faults.fail("publish", BrokerUnavailable("no answer"), late=True)
    else:
        sender.store.faults.fail(
            "commit", StoreUnavailable("full"), when=lambda changes: bool(changes.sent)
        )
    await sender.announce("1", "2")
    assert (sender.published, sender.left) == (["1", "2"], ["1", "2"])
    assert sender.signals(EventsPublished) == []
    await sender.ambient.advance(5.0)
    assert (sender.published, sender.left) == (["1", "2", "1", "2"], [])
    assert len(sender.signals(EventsPublished)) == 1
    await sender.outgoing.stop()


async def test_killed_between_the_broker_and_the_store_another_relay_sends_again() -> None:
    sender = await sending()
    hold = sender.store.faults.hold("commit", when=lambda changes: bool(changes.sent))
    await sender.announce("1", "2")
    assert hold.reached.is_set()
    sender.outgoing.kill()
    await sender.ambient.advance(1.0)
    assert (sender.published, sender.left) == (["1", "2"], ["1", "2"])
    await sender.start()
    assert (sender.published, sender.left) == (["1", "2", "1", "2"], [])
    await sender.outgoing.stop()


async def test_stopped_while_it_sends_it_waits_for_the_answer_and_sends_no_more() -> None:
    sender = await sending()
    hold = sender.broker.faults.hold("publish")
    await sender.announce("1")
    await sender.announce("2")
    stopping = asyncio.ensure_future(sender.outgoing.stop())
    await sender.ambient.advance(5.0)
    assert not stopping.done()
    hold.release.set()
    await stopping
    assert (sender.published, sender.left) == (["1"], ["2"])


async def test_no_more_is_sent_at_once_than_the_limits_allow() -> None:
    """In records and in bytes; one record may exceed them by itself."""
    sender = Sender()
    await sender.announce(*map(str, range(LIMIT + 3)), key=None)
    await sender.start()
    assert sender.sizes == [LIMIT, 3]
    await sender.outgoing.stop()
    sender = Sender()
    await sender.announce("1", "2", data=bytes(LIMIT_BYTES // 2))
    await sender.announce("3", data=bytes(LIMIT_BYTES + 1))
    await sender.announce("4", "5")
    await sender.start()
    assert sender.sizes == [2, 1, 2]
    assert sender.published == ["1", "2", "3", "4", "5"]
    await sender.outgoing.stop()


async def test_a_backlog_is_read_by_ever_more_rows_and_published_by_the_limit() -> None:
    sender = Sender()
    await sender.announce(*map(str, range(8 * LIMIT)), key=None)
    asked: list[int] = []
    read = sender.store.outbox

    async def outbox(after: int, now: float, limit: int) -> list[Announcement]:
        asked.append(limit)
        return await read(after, now, limit)

    sender.store.outbox = outbox  # type: ignore[method-assign]
    await sender.start()
    assert sender.published == [*map(str, range(8 * LIMIT))]
    assert set(sender.sizes) == {LIMIT}
    assert asked[:4] == [LIMIT, 2 * LIMIT, 4 * LIMIT, PAGE]
    await sender.announce("last")
    await sender.ambient.advance(1.0)
    assert asked[-1] == LIMIT
    await sender.outgoing.stop()


async def test_large_rows_are_read_by_the_limit() -> None:
    sender = Sender()
    large = bytes(LIMIT_BYTES // 2 // LIMIT)
    await sender.announce(*map(str, range(2 * LIMIT)), key=None, data=large)
    limits: list[int] = []
    read = sender.store.outbox

    async def outbox(after: int, now: float, limit: int) -> list[Announcement]:
        limits.append(limit)
        return await read(after, now, limit)

    sender.store.outbox = outbox  # type: ignore[method-assign]
    await sender.start()
    assert set(limits) == {LIMIT}
    assert len(sender.published) == 2 * LIMIT
    await sender.outgoing.stop()


async def test_lanes_wait_while_more_is_announced_than_memory_holds() -> None:
    sender = await sending()
    await sender.announce("0", told=True)
    hold = sender.broker.faults.hold("publish")
    await sender.announce("1", told=True)
    fits = [*map(str, range(2, 2 + MOST_BYTES // LARGE))]
    await sender.announce(*fits, told=True, data=bytes(LARGE))
    assert await sender.has_room()
    await sender.announce("more", told=True, data=bytes(LARGE))
    waiting = asyncio.ensure_future(sender.outgoing.room())
    await sender.ambient.advance(1.0)
    assert not waiting.done()
    hold.release.set()
    await sender.ambient.advance(0.0)
    assert waiting.done()
    assert sender.published == ["0", "1", *fits, "more"]
    await sender.outgoing.stop()


@pytest.mark.parametrize("end", ["patience", "failure", "kill"])
async def test_lanes_do_not_wait_for_ever(end: str) -> None:
    """Not for a relay that is slow, nor for one whose broker is away or that has ended."""
    sender = await sending()
    await sender.announce("0", told=True)
    hold = sender.broker.faults.hold("publish")
    await sender.announce("1", told=True)
    for number in range(MOST_BYTES // LARGE + 1):
        await sender.announce(f"more {number}", told=True, data=bytes(LARGE))
    waiting = asyncio.ensure_future(sender.outgoing.room())
    await sender.ambient.advance(PATIENCE - 1.0)
    assert not waiting.done()
    if end == "patience":
        await sender.ambient.advance(1.0)
    elif end == "failure":
        sender.broker.faults.fail("publish", BrokerUnavailable("away"), times=1_000)
        hold.release.set()
        await sender.ambient.advance(0.5)
    else:
        sender.outgoing.kill()
        await sender.ambient.advance(0.0)
    assert waiting.done()
    if end != "patience":
        assert await sender.has_room()
    sender.outgoing.kill()
    hold.release.set()


async def test_a_delayed_event_is_sent_at_its_time() -> None:
    sender = await sending()
    await sender.announce("late", due=sender.ambient.now() + 7.25)
    await sender.announce("early", due=sender.ambient.now() + 3.0)
    await sender.announce("now")
    assert sender.published == ["now"]
    await sender.ambient.advance(7.24)
    assert sender.published == ["now", "early"]
    await sender.ambient.advance(0.01)
    assert sender.published == ["now", "early", "late"]
    await sender.outgoing.stop()


async def test_what_this_process_commits_is_sent_though_the_outbox_can_not_be_read() -> None:
    sender = await sending()
    await sender.announce("1", told=True)
    sender.store.faults.fail("outbox", StoreUnavailable("full"), times=100)
    await sender.announce("2", "3", told=True)
    await sender.announce("4", key=None, told=True)
    assert (sender.published, sender.left) == (["1", "2", "3", "4"], [])
    await sender.ambient.advance(5.0)
    sender.store.faults.mend()
    await sender.announce("5", told=True)
    await sender.ambient.advance(5.0)
    assert (sender.published, sender.left) == (["1", "2", "3", "4", "5"], [])
    await sender.outgoing.stop()


async def test_what_others_committed_before_is_sent_before() -> None:
    sender = await sending()
    await sender.announce("1", told=True)
    hold = sender.broker.faults.hold("publish")
    await sender.announce("2", told=True)
    await sender.announce("3")
    await sender.announce("4", told=True)
    await sender.announce("later", due=sender.ambient.now() + 60.0)
    await sender.announce("5", told=True)
    hold.release.set()
    await sender.ambient.advance(0.0)
    assert (sender.published, sender.left) == (["1", "2", "3", "4", "5"], ["later"])
    await sender.outgoing.stop()


async def test_while_a_window_leaves_the_outbox_one_more_is_published() -> None:
    sender = await sending()
    await sender.announce("1", told=True)
    hold = sender.store.faults.hold("commit", when=lambda changes: bool(changes.sent))
    for number in (2, 3, 4):
        await sender.announce(str(number), told=True)
    assert (sender.published, sender.left) == (["1", "2", "3"], ["2", "3", "4"])
    hold.release.set()
    await sender.ambient.advance(0.0)
    assert (sender.published, sender.left) == (["1", "2", "3", "4"], [])
    await sender.outgoing.stop()


async def test_a_broker_that_was_away_gets_what_is_in_memory_in_order() -> None:
    sender = await sending()
    await sender.announce("1", told=True)
    sender.broker.faults.fail("publish", BrokerUnavailable("no answer"), late=True)
    await sender.announce("2", told=True)
    await sender.announce("3", told=True)
    await sender.ambient.advance(5.0)
    assert (sender.published, sender.left) == (["1", "2", "2", "3"], [])
    await sender.outgoing.stop()


async def test_what_was_held_back_is_sent_before_what_is_in_memory() -> None:
    """More of it than one query returns."""
    sender = await sending()
    await sender.announce("0", told=True)
    sender.broker.faults.fail("publish", RecordRefused("too long"), when=_holds("1"), times=2)
    await sender.announce("1", told=True)
    (letter,) = sender.store.letters
    behind = [str(number) for number in range(2, LIMIT + 10)]
    await sender.announce(*behind, told=True)
    await sender.ambient.advance(1.0)
    assert sender.published == ["0"]
    hold = sender.broker.faults.hold("publish")
    await redrive(sender.store, letter["id"], sender.ambient, by=BY)
    await sender.ambient.advance(1.0)
    await sender.announce("last", told=True)
    hold.release.set()
    await sender.ambient.advance(1.0)
    assert sender.published == ["0", "1", *behind, "last"]
    assert sender.left == []
    await sender.outgoing.stop()


async def test_stopped_it_waits_until_what_it_sent_has_left_the_outbox() -> None:
    sender = await sending()
    hold = sender.store.faults.hold("commit", when=lambda changes: bool(changes.sent))
    await sender.announce("1", told=True)
    stopping = asyncio.ensure_future(sender.outgoing.stop())
    await sender.ambient.advance(1.0)
    assert not stopping.done()
    hold.release.set()
    await stopping
    assert (sender.published, sender.left) == (["1"], [])


async def test_fenced_it_ends_and_another_sends_what_is_left() -> None:
    sender = await sending()
    sender.store.take_over(tables.OUTBOX)
    await sender.announce("1")
    assert sender.outgoing.fenced
    assert sender.left == ["1"]
    await sender.announce("2")
    await sender.ambient.advance(60.0)
    assert sender.published == ["1"]
    await sender.outgoing.stop()


async def test_a_broker_that_goes_away_among_refusals_loses_and_skips_nothing() -> None:
    """What was confirmed one by one is sent again with the rest, in the order of its key."""
    sender = Sender()
    sender.broker.faults.fail("publish", RecordRefused("too long"), when=_holds("2"), times=4)
    sender.broker.faults.fail("publish", BrokerUnavailable("away"), when=_is("b"))
    await sender.announce("1", "2", "3")
    await sender.announce("b", key="b")
    await sender.start()
    assert (sender.published, sender.left) == (["1"], ["1", "2", "3", "b"])
    assert sender.store.letters == []
    await sender.ambient.advance(5.0)
    assert sender.published == ["1", "1", "b"]
    assert sender.left == ["2", "3"]
    (letter,) = sender.store.letters
    assert letter["event_id"] == "2"
    await sender.outgoing.stop()


async def test_a_refusal_that_was_committed_unheard_holds_its_key() -> None:
    sender = Sender()
    sender.broker.faults.fail("publish", RecordRefused("too long"), when=_holds("2"), times=4)
    lost = StoreUnavailable("the connection was lost")
    sender.store.faults.fail("commit", lost, late=True, when=lambda changes: bool(changes.dead))
    await sender.start()
    await sender.announce("1", "2")
    await sender.ambient.advance(5.0)
    await sender.announce("3", told=True)
    await sender.announce("b", key="b", told=True)
    await sender.ambient.advance(5.0)
    assert sender.published == ["1", "b"]
    assert sender.left == ["2", "3"]
    await sender.outgoing.stop()


def _holds(event_id: str) -> object:
    return lambda records: event_id in [record.headers["id"] for record in records]


def _is(event_id: str) -> object:
    return lambda records: [event_id] == [record.headers["id"] for record in records]


def _order(record: Record) -> tuple[str, int]:
    assert record.data is not None
    fields = msgspec.json.decode(record.data)
    return fields["order"], fields["number"]
