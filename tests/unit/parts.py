"""The parts of a running service, put together on fakes and a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

import msgspec
from fakes import FakeBroker, FakeStore

from oyez import Event, Service, tables
from oyez.ports import Batch, Changes, Claim, Parked, Record
from oyez.runtime.audit import Actor
from oyez.runtime.batches import Batches
from oyez.runtime.calls import Calls
from oyez.runtime.claims import Place
from oyez.runtime.commits import Commits
from oyez.runtime.execution import Execution
from oyez.runtime.handlers import Handlers
from oyez.runtime.lane import Chains, Lane
from oyez.runtime.loop import Bell
from oyez.runtime.parked import ParkedEvents
from oyez.runtime.reading import Reading
from oyez.runtime.relay import Relay
from oyez.runtime.reports import Reports
from oyez.signals import Signal, Signals
from oyez.testing import VirtualAmbient
from oyez.transaction import Announcer

STREAM = "shop.till"
OWNER = "me"
BY = Actor(who="ann@desk", via="command", why="a test")
"""Who acts in a test."""
S = TypeVar("S", bound=Signal)


def because(why: str) -> Actor:
    """The same, for a reason."""
    return msgspec.structs.replace(BY, why=why)


class Placed(Event, type="shop.placed", key="order"):
    order: str


class Inline(Executor):
    """Runs plain ``def`` handlers where they are."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - as a thread pool does
            future.set_exception(error)
        return future


class Parts:
    """What one service's process is made of; the lanes are those that a test takes."""

    def __init__(
        self, service: Service | None = None, *, calls: bool = False, history: bool = True
    ) -> None:
        """``calls``: listen to calls of handlers, too. ``history``: see `Capabilities`."""
        self.service = service or Service("desk")
        self.ambient = VirtualAmbient()
        self.broker = FakeBroker(self.ambient, history=history)
        self.store = FakeStore()
        self.heard: list[Signal] = []
        signals = Signals()
        signals.listen(self.heard.append, calls=calls)
        self.reports = Reports(self.service.name, signals)
        self.commits = Commits(
            self.store, Announcer("shop", self.service.name, self.ambient), self.ambient
        )
        self.handlers = Handlers("shop", self.service.name, self.service.handlers)
        self.handlers.bind({})
        self.execution = Execution(
            Calls(self.handlers, self.ambient, Inline()), self.commits, self.ambient, self.reports
        )
        self.work = Bell(self.ambient)
        self.lanes: dict[Place, Lane] = {}
        self.parked = ParkedEvents(
            OWNER,
            self.handlers,
            self.execution,
            self.lanes,
            store=self.store,
            ambient=self.ambient,
            reports=self.reports,
            work=self.work,
        )

    def signals(self, kind: type[S]) -> list[S]:
        """What was said of that kind."""
        return [signal for signal in self.heard if isinstance(signal, kind)]

    async def claim(self, stream: str = STREAM, partition: int = 0) -> Claim:
        """Claim a partition."""
        place = {"stream": stream, "partition": partition, "reader": ""}
        asked = {**place, "owner": OWNER, "now": self.ambient.now()}
        begun = self.store.begin()
        (row,) = await begun.fetch(tables.CLAIM, asked, [(tables.ADD_CURSOR, [place])])
        await begun.commit(Changes())
        return Claim(stream=stream, partition=partition, owner=OWNER, epoch=row["epoch"])

    async def lane(
        self,
        partition: int = 0,
        *,
        stream: str = STREAM,
        parked: int = 0,
        suspects: bool = False,
        careful: bool = False,
    ) -> Lane:
        """Claim a partition and begin a lane. ``parked``: how many it counts beyond its rows."""
        claim = await self.claim(stream, partition)
        asked = {"stream": stream, "partition": partition, "reader": ""}
        rows = await self.store.fetch(tables.BLOCKED, asked)
        counts = {row["chain"]: row["parked"] for row in rows}
        if parked:
            counts[None] = counts.get(None, 0) + parked
        lane = self.lanes[stream, partition] = Lane(
            claim,
            self.store.position(stream, partition),
            Chains(counts, self.ambient),
            broker=self.broker,
            commits=self.commits,
            ambient=self.ambient,
            reports=self.reports,
            work=self.work,
            suspects=suspects,
            careful=careful,
        )
        return lane

    def batches(self, lane: Lane) -> Batches:
        """What takes the records of a lane."""
        return Batches(
            lane,
            self.handlers,
            self.execution,
            broker=self.broker,
            commits=self.commits,
            ambient=self.ambient,
            reports=self.reports,
        )

    def reading(self, lane: Lane) -> Reading:
        """What reads a lane."""
        return Reading(
            lane,
            self.batches(lane),
            broker=self.broker,
            ambient=self.ambient,
            reports=self.reports,
        )

    async def relay(self) -> Relay:
        """Claim the outbox."""
        return Relay(
            await self.claim(tables.OUTBOX),
            broker=self.broker,
            commits=self.commits,
            ambient=self.ambient,
            reports=self.reports,
        )

    async def park(self, *events: Parked) -> None:
        """Park events before their lane begins."""
        await self.store.begin().commit(Changes(parked=list(events), time=self.ambient.now()))


def record(position: int, order: str = "a", **changed: Any) -> Record:
    """An event as it is read; its id is ``e`` and the position."""
    return msgspec.structs.replace(
        Record(
            stream=STREAM,
            key=order,
            headers=headers(f"e{position}", order),
            data=msgspec.json.encode({"order": order}),
            partition=0,
            position=position,
        ),
        **changed,
    )


def headers(event_id: str, order: str) -> dict[str, str]:
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": "/shop/till",
        "type": "shop.placed",
        "subject": order,
        "partitionkey": order,
    }


def batch(*records: Record, **about: Any) -> Batch:
    return Batch(list(records), **about)


def parked(event_id: str, order: str = "a", **changed: Any) -> Parked:
    """An event that waits for the handler ``take`` and is due."""
    return msgspec.structs.replace(
        Parked(
            event_id=event_id,
            source="/shop/till",
            handler="take",
            stream=STREAM,
            partition=0,
            position=1,
            chain=order,
            due=0.0,
            attempt=0,
            history=[],
            key=order,
            headers=headers(event_id, order),
            data=msgspec.json.encode({"order": order}),
        ),
        **changed,
    )
