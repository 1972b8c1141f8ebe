"""Parked events: how they run, and which of them may have killed a partition's last owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import parts
import pytest
from fakes import ITEM
from parts import STREAM, Parts

from oyez import After, Context, Event, Retry, Service, State, Transaction, tables
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import StateConflict, StoreUnavailable
from oyez.ports import Changes, Parked, Record
from oyez.runtime.dead import list_dead
from oyez.runtime.execution import DIED
from oyez.runtime.lane import Lane
from oyez.runtime.parked import DEATHS
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import HandlerCalled, HandlerTimed, Signals, Trouble
from oyez.stores.sqlite import SqliteStore
from oyez.tables import TIMERS
from oyez.testing import VirtualAmbient
from oyez.timers import Timer

TOGETHER: dict[str, Any] = {"attempt": 1, "at": 0.0, "error": DIED, "alone": False}
ALONE: dict[str, Any] = {**TOGETHER, "alone": True}
LATER = [{**ALONE, "at": 10.0 * number} for number in range(DEATHS)]
_DIED = """insert into oyez_cursor (stream, partition, position, owner, epoch)
 values ('shop.till', 0, 9, 'a process that died', 1)"""


class Placed(Event, type="shop.placed", key="order"):
    order: str


class Told(Event, type="desk.told", key="order"):
    order: str


class Desk:
    """A service whose partition was left by a process that died."""

    def __init__(self, root: Path) -> None:
        self.ambient = VirtualAmbient()
        self.store = SqliteStore(root / "desk.db", self.ambient, inline=True, durable=False)
        self.broker = MemoryBroker(self.ambient, partitions=1)
        self.handled: list[str] = []
        self.service = Service("desk")
        self.service.on(Placed)(self._take())

    def _take(self) -> Any:
        async def take(event: Placed, tx: Transaction) -> None:
            if event.order == "bad":
                raise ValueError("no")
            self.handled.append(event.order)

        return take

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ServiceProcess]:
        """Run until the block ends."""
        await self.broker.create("shop.till", 1)
        process = ServiceProcess(
            self.service,
            ProcessSettings(system="shop", broker="memory"),
            broker=self.broker,
            store=self.store,
            ambient=self.ambient,
            signals=Signals(),
        )
        await process.start()
        try:
            yield process
        finally:
            await process.drain()

    async def run(self, **parked: list[dict[str, Any]]) -> None:
        """Run for a minute with these events parked, each with what became of it so far."""
        await self.store.open()
        events = [_parked(order, history) for order, history in parked.items()]
        await self.store.begin().commit(Changes(writes=[(_DIED, [{}])], parked=events))
        async with self.running():
            await self.ambient.advance(60.0)
            self.letters = await list_dead(self.store)


async def test_an_event_that_died_with_others_is_not_guilty(tmp_path: Path) -> None:
    """A death counts against an event only if it ran without other suspects (G4)."""
    desk = Desk(tmp_path)
    await desk.run(a=[TOGETHER] * 9, b=[TOGETHER, *LATER[1:]], c=[])
    assert sorted(desk.handled) == ["a", "b", "c"]
    assert desk.letters == []


async def test_an_event_that_died_alone_three_times_is_dead(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.run(a=[TOGETHER, *LATER], b=[])
    assert desk.handled == ["b"]
    (letter,) = desk.letters
    assert letter["event_id"] == "a"
    assert letter["reason"].startswith(f"{DIED}, 3 times")
    assert letter["attempts"] == 4


async def test_deaths_within_a_moment_are_one(tmp_path: Path) -> None:
    """What kills several replicas so soon one after the other is not the event (G4)."""
    desk = Desk(tmp_path)
    soon = [{**ALONE, "at": at} for at in (5.0, 5.1, 5.3, 5.9)]
    await desk.run(a=soon, b=[*soon, LATER[1]], c=[*soon, *LATER[1:]])
    assert sorted(desk.handled) == ["a", "b"]
    (letter,) = desk.letters
    assert letter["reason"].startswith(f"{DIED}, 3 times")


async def test_deaths_do_not_use_up_the_attempts_of_an_event_that_fails(tmp_path: Path) -> None:
    """Its attempts are those that ended; the history shows the others too."""
    desk = Desk(tmp_path)
    await desk.run(bad=[TOGETHER, ALONE])
    (letter,) = desk.letters
    assert letter["reason"] == "failed 5 of 5 attempts: ValueError: no"
    assert letter["attempts"] == 7


async def test_a_clock_that_is_set_back_holds_up_no_parked_event(tmp_path: Path) -> None:
    """What is parked for now runs now, and a retry waits no longer than its policy says (G5)."""
    desk = Desk(tmp_path)
    calls: list[tuple[str, int]] = []

    @desk.service.on(Placed, name="send", retry=Retry(attempts=3, first=10.0, longest=30.0))
    async def send(event: Placed, context: Context) -> None:
        calls.append((event.order, context.attempt))
        if event.order == "late" and context.attempt == 1:
            raise ValueError("not yet")

    async with desk.running() as process:
        await desk.broker.publish([_record("late")])
        await desk.ambient.advance(1.0)
        assert calls == [("late", 1)]
        desk.ambient.set_back(7_200.0)
        await desk.broker.publish([_record("now")])
        await desk.ambient.advance(1.0)
        assert ("now", 1) in calls
        await desk.ambient.advance(40.0)
        assert calls.count(("late", 2)) == 1
        assert process.health.readiness() == []


def _record(order: str) -> Record:
    parked = _parked(order, [])
    return Record(stream="shop.till", key=order, headers=parked.headers, data=parked.data)


class Work(Parts):
    """A service with a handler beside the lane; each call lasts until a test lets it go on."""

    def __init__(self, concurrency: int = 32) -> None:
        self.calls: list[str] = []
        self.ended: list[str] = []
        self.held: dict[str, asyncio.Event] = {}
        self.most = 0
        self.seen: dict[str, list[Any]] = {}
        service = Service("desk")

        @service.on(parts.Placed, concurrency=concurrency, timeout=None, retry=Retry(jitter=0.0))
        async def take(event: parts.Placed) -> None:
            self.calls.append(event.order)
            self.most = max(self.most, len(self.calls) - len(self.ended))
            row = next(row for row in self.store.waiting if row["key"] == event.order)
            self.seen[event.order] = row["history"]
            if event.order in self.held:
                await self.held[event.order].wait()
            self.ended.append(event.order)

        super().__init__(service)

    async def run(self, *events: Parked, **lane: Any) -> Lane:
        """Begin with these events parked."""
        await self.park(*events)
        one = await self.lane(**lane)
        self.parked.start()
        await self.ambient.advance(0.0)
        return one

    async def end(self) -> None:
        """Stop, and cancel what runs."""
        stopping = asyncio.ensure_future(self.parked.stop(0.0))
        await self.ambient.advance(0.0)
        await stopping

    def hold(self, *orders: str) -> None:
        """Let the calls of these orders wait."""
        self.held.update((order, asyncio.Event()) for order in orders)

    async def release(self, *orders: str) -> None:
        for order in orders:
            self.held.pop(order).set()
        await self.ambient.advance(0.0)


def _events(orders: str) -> list[Parked]:
    """One event of each order, numbered, and each order a chain."""
    return [parts.parked(f"e{n}", order) for n, order in enumerate(orders, 1)]


async def test_no_more_run_at_once_than_the_handler_allows() -> None:
    work = Work(concurrency=2)
    work.hold(*"abcde")
    await work.run(*_events("abcde"))
    assert work.calls == ["a", "b"]
    await work.ambient.advance(60.0)
    assert work.parked.running == 2
    await work.release("b")
    assert work.calls == ["a", "b", "c"]
    await work.release("a", "c", "d", "e")
    assert work.calls == list("abcde")
    assert work.most == 2
    assert work.store.waiting == []
    await work.end()


async def test_what_is_overdue_waits_for_room_behind_what_runs() -> None:
    """The store's answer does not hold what runs: others have been due for longer."""
    work = Work(concurrency=2)
    work.hold(*"abc")
    lane = await work.run(parts.parked("e1", "a", due=work.ambient.now()))
    late = [parts.parked("e2", "b", due=1.0), parts.parked("e3", "c", due=2.0)]
    await lane.commit(Changes(claim=lane.claim, parked=late), None)
    await work.ambient.advance(5.0)
    assert work.calls == ["a", "b"]
    await work.release("a", "b", "c")
    assert work.calls == ["a", "b", "c"]
    await work.end()


async def test_an_event_that_ends_while_the_store_is_asked_is_not_called_again() -> None:
    """The store's answer still holds it."""
    work = Work()
    work.hold("a")
    await work.run(*_events("a"))
    hold = work.store.faults.hold("due", late=True)
    await work.ambient.advance(2.0)
    assert hold.reached.is_set()
    await work.release("a")
    assert work.ended == ["a"]
    hold.release.set()
    await work.ambient.advance(5.0)
    assert work.calls == ["a"]
    await work.end()


async def test_one_chain_runs_in_order_and_chains_do_not_wait_for_each_other() -> None:
    work = Work()
    work.hold("a")
    lane = await work.run(*_events("aab"))
    await work.ambient.advance(5.0)
    assert work.calls == ["a", "b"]
    await work.release("a")
    assert work.calls == ["a", "b", "a"]
    assert lane.chains.total == 0
    await work.end()


async def test_an_event_runs_when_it_is_due_and_when_it_is_parked_later() -> None:
    work = Work()
    late = parts.parked("e1", due=work.ambient.now() + 7.5)
    lane = await work.run(late)
    await work.ambient.advance(7.4)
    assert work.calls == []
    await work.ambient.advance(0.1)
    assert work.calls == ["a"]
    await lane.commit(Changes(claim=lane.claim, parked=_events("xb")[1:]), None)
    await work.ambient.advance(0.0)
    assert work.calls == ["a", "b"]
    await work.end()


async def test_what_waits_for_a_handler_that_is_gone_is_dead_and_frees_its_chain() -> None:
    work = Work()
    lane = await work.run(parts.parked("e1", handler="gone"), parts.parked("e2"))
    await work.ambient.advance(2.0)
    (letter,) = work.store.letters
    assert (letter["event_id"], letter["handler"]) == ("e1", "gone")
    assert "desk has no handler gone: redrive it to another" in letter["reason"]
    assert work.calls == ["a"]
    assert lane.chains.total == 0
    await work.end()


async def test_drained_a_partition_s_events_get_the_time_they_are_given() -> None:
    """What ends in it is done; what does not is cancelled and stays parked; others go on."""
    work = Work()
    work.hold(*"abc")
    await work.lane(1)
    lane = await work.run(*_events("ab"), parts.parked("e3", "c", partition=1))
    lane.leaving = True
    draining = asyncio.ensure_future(work.parked.drain(STREAM, 0, 5.0))
    await work.ambient.advance(4.0)
    await work.release("a")
    assert not draining.done()
    await work.ambient.advance(1.0)
    assert draining.done()
    assert [row["event_id"] for row in work.store.waiting] == ["e2", "e3"]
    assert work.parked.running == 1
    await work.ambient.advance(5.0)
    assert work.calls == ["a", "b", "c"], "a partition that is given up begins nothing"
    await work.end()
    assert work.parked.running == 0


async def test_stopped_it_begins_nothing_and_gives_what_runs_its_time() -> None:
    work = Work(concurrency=1)
    work.hold("a")
    await work.run(*_events("ab"))
    stopping = asyncio.ensure_future(work.parked.stop(5.0))
    await work.ambient.advance(1.0)
    await work.release("a")
    await work.ambient.advance(60.0)
    assert stopping.done()
    assert work.ended == ["a"]
    assert [row["event_id"] for row in work.store.waiting] == ["e2"]


async def test_an_event_that_was_settled_by_another_is_left_alone() -> None:
    """Its own attempt leaves nothing, and nothing is reported."""
    work = Work()
    work.hold("a")
    lane = await work.run(*_events("a"))
    (other,) = await work.store.due("me", "take", work.ambient.now(), 1)
    await work.store.begin().commit(Changes(claim=lane.claim, settled=[other]))
    await work.release("a")
    await work.ambient.advance(60.0)
    assert work.calls == ["a"]
    assert work.heard == []
    await work.end()


async def test_fenced_the_lane_begins_nothing_more() -> None:
    work = Work(concurrency=1)
    work.hold("a")
    lane = await work.run(*_events("ab"))
    work.store.take_over(STREAM)
    await work.release("a")
    await work.ambient.advance(60.0)
    assert lane.fenced
    assert work.calls == ["a"]
    assert len(work.store.waiting) == 2
    await work.end()


async def test_a_store_that_is_down_is_reported_and_the_event_runs_again() -> None:
    work = Work()
    down = StoreUnavailable("disk full")
    work.store.faults.fail("due", down)
    work.store.faults.fail("commit", down, when=lambda changes: bool(changes.settled))
    lane = await work.run(*_events("a"))
    await work.ambient.advance(0.2)
    assert work.ended == ["a"]
    assert len(work.store.waiting) == 1
    await work.ambient.advance(5.0)
    assert work.ended == ["a", "a"]
    assert (work.store.waiting, lane.chains.total) == ([], 0)
    assert [trouble.error for trouble in work.signals(Trouble)] == ["disk full"] * 2
    await work.end()


async def test_an_attempt_that_the_store_could_not_settle_is_no_death() -> None:
    """The process lives: however often the store fails, the event is not what kills it."""
    work = Work()
    work.store.faults.fail(
        "commit", StoreUnavailable("full"), times=9, when=lambda changes: bool(changes.settled)
    )
    await work.run(*_events("a"), suspects=True)
    await work.ambient.advance(60.0)
    assert work.calls == ["a"] * 10
    assert work.store.letters == []
    assert work.store.waiting == []
    assert len(work.seen["a"]) == 1
    await work.end()


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_what_waits_for_its_turn_is_still_suspect(concurrency: int) -> None:
    """While a handler is busy nobody knows what else is due; each attempt is recorded."""
    work = Work(concurrency=concurrency)
    work.hold(*"abc")
    lane = await work.run(*_events("abcd"), suspects=True)
    await work.ambient.advance(5.0)
    await work.release("a", "b", "c")
    await work.ambient.advance(5.0)
    assert work.ended == list("abcd")
    assert {order: [entry["error"] for entry in seen] for order, seen in work.seen.items()} == {
        order: [DIED] for order in "abcd"
    }
    assert not lane.suspects, "nothing is left that could have killed the last owner"
    await work.end()


async def test_of_large_events_no_more_are_read_than_run() -> None:
    office = Office(concurrency=2)
    padding = " " * 6_000_000
    large = [
        parts.parked(f"e{n}", order, data=f'{{"order": "{order}"{padding}}}'.encode())
        for n, order in enumerate("abcdefgh", 1)
    ]
    lane = await office.run(large[0])
    assert office.written == ["a"]
    office.held = {order: asyncio.Event() for order in "bcdefgh"}
    asked: list[int] = []
    due = office.store.due

    async def note(owner: str, handler: str, now: float, limit: int) -> list[Parked]:
        asked.append(limit)
        return await due(owner, handler, now, limit)

    office.store.due = note  # type: ignore[method-assign]
    await lane.commit(Changes(claim=lane.claim, parked=large[1:]), None)
    await office.ambient.advance(2.0)
    assert asked == [2]
    for event in office.held.values():
        event.set()
    await office.ambient.advance(2.0)
    assert office.written == list("abcdefgh")
    await office.end()


async def test_a_partition_is_suspect_until_its_first_batch_is_parked() -> None:
    """Nothing is due before that, and still each attempt is recorded."""
    office = Office()
    lane = await office.run(careful=True)
    await office.ambient.advance(5.0)
    assert lane.suspects
    await office.batches(lane).take(parts.batch(parts.record(1, "a"), parts.record(2, "b")))
    await office.ambient.advance(0.0)
    began = [one.retried for one in office.store.commits if one.retried]
    assert [event.history[-1]["error"] for event in began[0]] == [DIED, DIED]
    assert office.written == ["a", "b"]
    await office.ambient.advance(5.0)
    assert not lane.suspects
    await office.end()


def _parked(order: str, history: list[dict[str, Any]]) -> Parked:
    headers = {
        "specversion": "1.0",
        "id": order,
        "source": "/shop/till",
        "type": "shop.placed",
        "subject": order,
    }
    return Parked(
        event_id=order,
        source="/shop/till",
        handler="take",
        stream="shop.till",
        partition=0,
        position=9,
        chain=order,
        due=0.0,
        attempt=0,
        history=list(history),
        key=order,
        headers=headers,
        data=b'{"order":"%s"}' % order.encode(),
    )


# -- commits that events share ---------------------------------------------------------------------


class Office(Parts):
    """A service whose handler leaves a write and an event to the commit at its end."""

    def __init__(self, concurrency: int = 32) -> None:
        self.calls: list[str] = []
        self.held: dict[str, asyncio.Event] = {}
        self.bad: set[str] = set()
        """Orders that write what the order ``a`` does, which breaks a constraint."""
        service = Service("desk", publishes=(Told,))

        @service.on(parts.Placed, concurrency=concurrency, retry=Retry(jitter=0.0))
        async def take(event: parts.Placed, after: After) -> Told:
            self.calls.append(event.order)
            if event.order in self.held:
                await self.held[event.order].wait()
            after.execute(ITEM, id="a" if event.order in self.bad else event.order)
            return Told(order=event.order)

        super().__init__(service)

    async def run(self, *events: Parked, **lane: Any) -> Lane:
        """Begin with these events parked."""
        await self.park(*events)
        one = await self.lane(**lane)
        self.parked.start()
        await self.ambient.advance(0.0)
        return one

    async def end(self) -> None:
        """Stop, and cancel what runs."""
        stopping = asyncio.ensure_future(self.parked.stop(0.0))
        await self.ambient.advance(0.0)
        await stopping

    @property
    def settling(self) -> list[list[str]]:
        """The events that each commit settled, by id."""
        return [[e.event_id for e in one.settled] for one in self.store.commits if one.settled]

    @property
    def written(self) -> list[str]:
        """What handlers wrote, in order of the ids."""
        return sorted(parameters["id"] for _, parameters in self.store.written)

    @property
    def told(self) -> list[str]:
        """The orders of the announced events."""
        return sorted(row["key"] for row in self.store.announced)


async def test_events_that_end_together_share_a_commit() -> None:
    office = Office()
    lane = await office.run(*_events("abcd"))
    assert [sorted(group) for group in office.settling] == [["e1", "e2", "e3", "e4"]]
    assert office.written == office.told == list("abcd")
    assert office.store.waiting == []
    assert lane.chains.total == 0
    await office.end()


async def test_those_that_end_during_a_commit_are_the_next_one() -> None:
    office = Office()
    office.held = {"a": asyncio.Event(), "b": asyncio.Event(), "c": asyncio.Event()}
    hold = office.store.faults.hold("commit", when=lambda changes: bool(changes.settled))
    await office.run(*_events("abcd"))
    assert hold.reached.is_set()
    for event in office.held.values():
        event.set()
        await office.ambient.advance(0.0)
    assert office.settling == []
    hold.release.set()
    await office.ambient.advance(0.0)
    assert office.settling == [["e4"], ["e1", "e2", "e3"]]
    await office.end()


async def test_one_that_can_not_be_committed_takes_no_other_along() -> None:
    """Two of eight break a constraint; all others' effects are there once, theirs are not."""
    office = Office()
    office.bad = {"c", "g"}
    await office.run(*_events("abcdefgh"))
    assert office.written == office.told == list("abdefh")
    waiting = {row["key"]: row for row in office.store.waiting}
    assert {key: row["attempt"] for key, row in waiting.items()} == {"c": 1, "g": 1}
    assert all("item a is there" in row["history"][0]["error"] for row in waiting.values())
    assert sorted(office.calls) == list("abcdefgh"), "nothing is called again for that"
    office.bad = set()
    await office.ambient.advance(1.0)
    assert office.written == office.told == list("abcdefgh")
    assert office.store.waiting == []
    await office.end()


async def test_one_that_was_settled_meanwhile_takes_no_other_along() -> None:
    office = Office()
    office.held = {order: asyncio.Event() for order in "abc"}
    lane = await office.run(*_events("abc"))
    other = next(e for e in await office.store.due("me", "take", 1e12, 9) if e.key == "b")
    await office.store.begin().commit(Changes(claim=lane.claim, settled=[other]))
    for event in office.held.values():
        event.set()
    await office.ambient.advance(1.0)
    assert office.written == office.told == ["a", "c"]
    assert {type(signal) for signal in office.heard} == {HandlerTimed}
    await office.end()


async def test_a_fenced_commit_leaves_all_its_events_as_they_were() -> None:
    office = Office()
    office.held = {order: asyncio.Event() for order in "abc"}
    lane = await office.run(*_events("abc"))
    office.store.take_over(STREAM)
    for event in office.held.values():
        event.set()
    await office.ambient.advance(60.0)
    assert lane.fenced
    assert (office.written, office.told) == ([], [])
    assert len(office.store.waiting) == 3
    assert sorted(office.calls) == list("abc")
    await office.end()


async def test_a_store_that_is_down_is_reported_once_for_a_shared_commit() -> None:
    office = Office()
    down = StoreUnavailable("disk full")
    office.store.faults.fail("commit", down, when=lambda changes: bool(changes.settled))
    await office.run(*_events("abcd"))
    await office.ambient.advance(5.0)
    assert office.written == office.told == list("abcd")
    assert sorted(office.calls) == list("aabbccdd")
    assert [trouble.error for trouble in office.signals(Trouble)] == ["disk full"]
    await office.end()


async def test_calls_that_wait_are_no_more_than_allowed_until_they_are_committed() -> None:
    """What they did outside would be done again if the process died before."""
    office = Office(concurrency=2)
    office.held = {order: asyncio.Event() for order in "abcd"}
    hold = office.store.faults.hold("commit", when=lambda changes: bool(changes.settled))
    await office.run(*_events("abcd"))
    assert office.calls == ["a", "b"]
    for event in office.held.values():
        event.set()
    await office.ambient.advance(5.0)
    assert hold.reached.is_set()
    assert office.calls == ["a", "b"]
    hold.release.set()
    await office.ambient.advance(1.0)
    assert office.calls == list("abcd")
    await office.end()


async def test_calls_that_return_at_once_need_no_place() -> None:
    office = Office(concurrency=1)
    hold = office.store.faults.hold("commit", when=lambda changes: bool(changes.settled))
    await office.run(*_events("abcdef"))
    assert office.calls == list("abcdef")
    hold.release.set()
    await office.ambient.advance(0.0)
    assert office.written == list("abcdef")
    await office.end()


async def test_attempts_that_may_kill_the_process_are_recorded_together_before_they_begin() -> None:
    office = Office()
    began: list[tuple[list[str], list[str]]] = []

    def note(changes: Changes) -> bool:
        if changes.retried:
            began.append((sorted(e.event_id for e in changes.retried), [*office.calls]))
        return False

    office.store.faults.fail("commit", ValueError(), when=note)
    await office.run(*_events("abcd"), suspects=True)
    assert began == [(["e1", "e2", "e3", "e4"], [])]
    assert sorted(office.calls) == list("abcd")
    assert [sorted(group) for group in office.settling] == [["e1", "e2", "e3", "e4"]]
    await office.end()


@pytest.mark.parametrize("late", [True, False])
async def test_a_store_that_fails_as_an_attempt_is_recorded_is_no_death(late: bool) -> None:
    """Also where the record was made and its answer lost, again and again: the process lives."""
    office = Office()
    office.store.faults.fail(
        "commit",
        StoreUnavailable("lost"),
        times=DEATHS + 2,
        late=late,
        when=lambda changes: bool(changes.retried),
    )
    died = {"attempt": 1, "at": 0.0, "error": DIED, "alone": True}
    await office.run(parts.parked("e1", history=[died]), suspects=True)
    await office.ambient.advance(60.0)
    assert office.written == ["a"]
    assert [letter for one in office.store.commits for letter in one.dead] == []
    await office.end()


async def test_suspects_beyond_the_concurrency_are_recorded_and_wait_for_their_turn() -> None:
    office = Office(concurrency=2)
    office.held = {order: asyncio.Event() for order in "abcdef"}
    await office.run(*_events("abcdef"), suspects=True)
    assert [row["history"][0]["error"] for row in office.store.waiting] == [DIED] * 6
    assert office.calls == ["a", "b"]
    office.held["a"].set()
    await office.ambient.advance(0.0)
    assert office.calls == ["a", "b", "c"]
    await office.end()
    assert office.calls == ["a", "b", "c"]
    assert office.written == ["a"]


async def test_events_that_fail_together_share_the_commit_of_their_retries() -> None:
    office = Office()
    parked = [parts.parked(f"e{n}", data=b'{"order": 7}') for n in (1,)]
    parked += [parts.parked(f"e{n}", order, data=b"{}") for n, order in enumerate("bcd", 2)]
    await office.run(*parked)
    letters = [[letter.event_id for letter in one.dead] for one in office.store.commits if one.dead]
    assert [sorted(group) for group in letters] == [["e1", "e2", "e3", "e4"]]
    assert office.store.waiting == []
    await office.end()


async def test_what_was_read_before_the_partition_changed_hands_does_not_run() -> None:
    """It came back meanwhile: what was read may be older than what the store has."""
    office = Office(concurrency=1)
    office.held = {"a": asyncio.Event()}
    await office.run(*_events("abc"))
    assert office.calls == ["a"]
    (stale,) = [e for e in await office.store.due("me", "take", 1e12, 9) if e.key == "b"]
    office.store.take_over(STREAM)
    office.store.take_over(STREAM, owner="me")
    lane = await office.lane()
    stale.attempt, stale.due = 3, office.ambient.now() + 10.0
    await lane.commit(Changes(claim=lane.claim, retried=[stale]), None)
    down = StoreUnavailable("full")  # so that nobody notices in time
    office.store.faults.fail("commit", down, when=lambda changes: bool(changes.settled))
    office.held.pop("a").set()
    await office.ambient.advance(5.0)
    assert sorted(office.calls) == ["a", "a", "c"]
    assert [row["attempt"] for row in office.store.waiting] == [3]
    await office.ambient.advance(10.0)
    assert office.store.waiting == []
    assert office.written == list("abc")
    await office.end()


async def test_stopped_it_waits_for_the_commit_that_has_begun() -> None:
    office = Office()
    hold = office.store.faults.hold("commit", when=lambda changes: bool(changes.settled))
    await office.run(*_events("ab"))
    stopping = asyncio.ensure_future(office.parked.stop(0.0))
    await office.ambient.advance(1.0)
    assert not stopping.done()
    hold.release.set()
    await office.ambient.advance(0.0)
    assert stopping.done()
    assert office.written == office.told == ["a", "b"]
    assert office.store.waiting == []


async def test_a_later_event_takes_the_place_of_one_of_its_name_in_the_same_commit() -> None:
    service = Service("desk", publishes=(Told,))

    @service.on(parts.Placed)
    async def take(event: parts.Placed, after: After) -> None:
        after.publish(Told(order=event.order), delay=60.0, name="reminder")

    desk = Parts(service)
    await desk.park(*_events("ab"))
    await desk.lane()
    desk.parked.start()
    await desk.ambient.advance(0.0)
    assert [row["key"] for row in desk.store.announced] == ["b"]
    (settled,) = [one.announced for one in desk.store.commits if one.settled]
    assert len(settled) == 1
    stopping = asyncio.ensure_future(desk.parked.stop(0.0))
    await desk.ambient.advance(0.0)
    await stopping


async def test_an_event_alone_costs_one_look_and_no_other() -> None:
    """Nothing stands behind it, and all that was due was read."""
    office = Office()
    lane = await office.run()
    asked: list[str] = []

    def note(statement: str) -> bool:
        asked.append(statement)
        return False

    await office.ambient.advance(0.5)
    for call in ("fetch", "due"):
        office.store.faults.fail(call, ValueError(), when=note)
    await lane.commit(Changes(claim=lane.claim, parked=_events("a")), None)
    await office.ambient.advance(0.1)
    assert office.written == ["a"]
    assert asked == [tables.PARKED_TIMES, "take"]
    await office.end()


# -- timers, which run together --------------------------------------------------------------------


class Count(State):
    fired: int = 0


class Fired(Event, type="desk.fired", key="name"):
    name: str


class Clock(Parts):
    """A service whose handler counts the timers of each key."""

    def __init__(self, **about: Any) -> None:
        self.calls: list[str] = []
        self.bad: set[str] = set()
        """Keys whose timers fail."""
        service = Service("desk", publishes=(Fired,))

        @service.on(Timer, retry=Retry(jitter=0.0))
        async def take(event: Timer, count: Count) -> Fired:
            self.calls.append(event.key)
            if event.key in self.bad:
                raise ValueError("no")
            count.fired += 1
            return Fired(name=event.key)

        super().__init__(service, **about)

    async def run(self, *events: Parked, places: int = 1, **lane: Any) -> list[Lane]:
        """Begin with these timers parked, in so many places."""
        await self.park(*events)
        lanes = [await self.lane(number, stream=TIMERS, **lane) for number in range(places)]
        self.parked.start()
        await self.ambient.advance(0.0)
        return lanes

    async def end(self) -> None:
        """Stop, and cancel what runs."""
        stopping = asyncio.ensure_future(self.parked.stop(0.0))
        await self.ambient.advance(0.0)
        await stopping

    @property
    def settling(self) -> list[str]:
        """The keys of the timers that each commit settled."""
        commits = self.store.commits
        return ["".join(str(e.key) for e in one.settled) for one in commits if one.settled]

    @property
    def fired(self) -> dict[str, int]:
        """How often the timer of each key has had its effect."""
        decode = msgspec.msgpack.decode
        state = self.store.contents.state
        return {key: decode(row.data)["fired"] for (_, key), row in state.items() if row.data}

    @property
    def told(self) -> list[str]:
        """The keys of the announced events."""
        return [row["key"] for row in self.store.announced]


def _timers(keys: str, place: int = 0, **changed: Any) -> list[Parked]:
    """Timers that are due, each numbered and in the chain of its key."""
    return [
        parts.parked(
            f"t{place}{number}",
            key,
            stream=TIMERS,
            partition=place,
            position=0,
            headers={**parts.headers(f"t{place}{number}", key), "type": "oyez.timer"},
            data=msgspec.json.encode(Timer(kind="Count", key=key, name="end", due=1.0)),
            **changed,
        )
        for number, key in enumerate(keys)
    ]


async def test_timers_that_are_due_together_run_in_one_transaction() -> None:
    clock = Clock(calls=True)
    (lane,) = await clock.run(*_timers("abcd"))
    assert clock.settling == ["abcd"]
    assert clock.calls == clock.told == list("abcd")
    assert clock.fired == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert clock.store.waiting == []
    assert lane.chains.total == clock.parked.running == 0
    (timed,) = clock.signals(HandlerTimed)
    assert (timed.handler, timed.outcome, len(timed.seconds)) == ("take", "done", 4)
    told = [(call.event_id, call.outcome) for call in clock.signals(HandlerCalled)]
    assert told == [(f"t0{number}", "done") for number in range(4)]
    await clock.end()


async def test_each_place_has_a_transaction_of_its_own() -> None:
    """It is what a commit is fenced by."""
    clock = Clock()
    await clock.run(*_timers("abc"), *_timers("xyz", place=1), places=2)
    assert sorted(clock.settling) == ["abc", "xyz"]
    assert [one.claim.partition for one in clock.store.commits if one.claim and one.settled] == (
        [0, 1] if clock.settling[0] == "abc" else [1, 0]
    )
    await clock.end()


async def test_no_more_run_together_than_share_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oyez.runtime.parked.LIMIT", 3)
    clock = Clock()
    await clock.run(*_timers("abcdefgh"))
    assert sorted(map(len, clock.settling)) == [2, 3, 3]
    assert clock.told == list("abcdefgh")
    await clock.end()


async def test_timers_of_one_key_run_in_their_order() -> None:
    clock = Clock()
    (lane,) = await clock.run(*_timers("aabab"))
    await clock.ambient.advance(0.0)
    assert clock.settling == ["ab", "ab", "a"]
    assert clock.fired == {"a": 3, "b": 2}
    assert lane.chains.total == 0
    await clock.end()


async def test_a_timer_that_fails_takes_no_other_along() -> None:
    """None of the effects of a transaction that failed stays; each then runs alone."""
    clock = Clock()
    clock.bad = {"c"}
    (lane,) = await clock.run(*_timers("abcd"))
    assert clock.calls == [*"abc", *"abcd"]
    assert sorted(clock.settling) == ["a", "b", "d"]
    assert clock.fired == {"a": 1, "b": 1, "d": 1}
    assert sorted(clock.told) == ["a", "b", "d"]
    (row,) = clock.store.waiting
    assert (row["key"], row["attempt"]) == ("c", 1)
    assert [signal.outcome for signal in clock.signals(HandlerTimed)].count("done") == 3
    clock.bad = set()
    await clock.ambient.advance(5.0)
    assert clock.fired["c"] == 1
    assert clock.store.waiting == []
    assert lane.chains.total == clock.parked.running == 0
    await clock.end()


async def test_a_timer_that_failed_joins_no_others_when_it_is_due_again() -> None:
    clock = Clock()
    failed: dict[str, Any] = {"attempt": 1, "at": 0.0, "error": "ValueError: no"}
    events = _timers("axbyc")
    for event in (events[1], events[3]):
        event.due, event.attempt, event.history = 1.0, 1, [failed]
    await clock.run(*events)
    assert sorted(clock.settling) == ["abc", "x", "y"]
    await clock.end()


async def test_more_fail_than_the_handler_may_be_called_at_once() -> None:
    """Those that have to run alone wait for each other's places, and all get one."""
    keys = [chr(0x100 + number) for number in range(50)]
    clock = Clock()
    clock.bad = {keys[-1]}
    (lane,) = await clock.run(*_timers("".join(keys)))
    await clock.ambient.advance(1.0)
    assert clock.fired == dict.fromkeys(keys[:-1], 1)
    clock.bad = set()
    await clock.ambient.advance(5.0)
    assert clock.fired == dict.fromkeys(keys, 1)
    assert lane.chains.total == 0
    await clock.end()


async def test_a_timer_that_was_settled_meanwhile_takes_no_other_along() -> None:
    clock = Clock()
    hold = clock.store.faults.hold("load")
    (lane,) = await clock.run(*_timers("abc"))
    await hold.reached.wait()
    other = next(e for e in await clock.store.due("me", "take", 1e12, 9) if e.key == "b")
    await clock.store.begin().commit(Changes(claim=lane.claim, settled=[other]))
    hold.release.set()
    await clock.ambient.advance(1.0)
    assert clock.fired == {"a": 1, "c": 1}
    assert sorted(clock.told) == ["a", "c"]
    assert clock.signals(Trouble) == []
    await clock.end()


@pytest.mark.parametrize("times", [1, 2, 3, 4])
async def test_timers_run_once_however_often_others_have_their_rows(times: int) -> None:
    """In the end they run alone: as a transaction, and if need be each of them."""
    clock = Clock()
    clock.store.faults.fail("load", StateConflict("busy"), times=times)
    await clock.run(*_timers("abc"))
    await clock.ambient.advance(5.0)
    assert clock.fired == {"a": 1, "b": 1, "c": 1}
    assert len(clock.told) == 3
    assert clock.store.loads[:3] == [(3, False), (3, False), (3, True)][: times + 1]
    assert len(clock.settling) == (1 if times < 3 else 3)
    assert clock.store.waiting == []
    await clock.end()


async def test_timers_of_a_place_that_another_has_taken_stay_as_they_were() -> None:
    clock = Clock()
    hold = clock.store.faults.hold("load")
    (lane,) = await clock.run(*_timers("abc"))
    await hold.reached.wait()
    clock.store.take_over(TIMERS)
    hold.release.set()
    await clock.ambient.advance(60.0)
    assert lane.fenced
    assert (clock.fired, clock.told, clock.calls) == ({}, [], list("abc"))
    assert len(clock.store.waiting) == 3
    await clock.end()


@pytest.mark.parametrize("late", [False, True])
async def test_a_store_that_is_down_leaves_the_timers_for_later(late: bool) -> None:
    """Also where the commit has worked and nobody knows: no timer fires twice."""
    clock = Clock()
    down = StoreUnavailable("disk full")
    clock.store.faults.fail("commit", down, when=lambda one: bool(one.settled), late=late)
    await clock.run(*_timers("abcd"))
    assert [trouble.error for trouble in clock.signals(Trouble)] == ["disk full"]
    await clock.ambient.advance(5.0)
    assert clock.fired == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert clock.told == list("abcd")
    assert len(clock.signals(Trouble)) == 1
    await clock.end()


async def test_timers_that_may_kill_the_process_run_apart() -> None:
    """Each attempt is recorded before it begins, so that the deadly one is found (G4)."""
    clock = Clock()
    (lane,) = await clock.run(*_timers("abc"), suspects=True)
    began = [[e.key for e in one.retried] for one in clock.store.commits if one.retried]
    assert began == [["a", "b", "c"]]
    assert clock.store.loads == [(1, False)] * 3
    assert clock.fired == {"a": 1, "b": 1, "c": 1}
    await clock.ambient.advance(5.0)
    assert not lane.suspects
    await clock.end()


async def test_stopped_timers_that_have_not_ended_are_left_as_they_were() -> None:
    clock = Clock()
    hold = clock.store.faults.hold("load")
    (lane,) = await clock.run(*_timers("abc"))
    await hold.reached.wait()
    assert clock.parked.running == 3
    await clock.end()
    assert (clock.fired, clock.told, clock.calls) == ({}, [], [])
    assert len(clock.store.waiting) == lane.chains.total == 3
    assert clock.parked.running == 0
