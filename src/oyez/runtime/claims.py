"""Which replica owns which partition: claims with an epoch, in the service's own store.

Each process incarnation keeps a lease in ``oyez_replica``; its claims in ``oyez_cursor`` hold as
long as that lease. A sweep claims what has no living owner, up to a fair share, and gives up what
is beyond it. Taking a partition raises its epoch, and every commit checks owner and epoch: a paused
process that wakes after another took over can't commit (fencing).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from oyez import tables
from oyez.errors import BrokerError
from oyez.ports import Claim, Row
from oyez.runtime.lane import Lane
from oyez.runtime.parked import ParkedEvents
from oyez.runtime.relay import Relay
from oyez.runtime.workbench import Bell, Workbench
from oyez.signals import Claimed, Released
from oyez.tables import OUTBOX
from oyez.transaction import Origin

SWEEP = 0.5
"""Seconds between two sweeps when nothing rings."""
CRASHES = 2
"""A position at which so many owners died is passed with care; see `oyez.runtime.lane`."""

READER = ""
"""The reader whose partitions are claimed here: the service itself."""

Place = tuple[str, int]
_NO_ORIGIN = Origin()
_RELAY: Place = (OUTBOX, 0)


class Claims:
    """The partitions, and perhaps the relay, that this process owns."""

    def __init__(
        self,
        bench: Workbench,
        lanes: dict[Place, Lane],
        parked: ParkedEvents,
        work: Bell,
        grace: float,
        make_lane: Callable[..., Lane] = Lane,
    ) -> None:
        """``lanes`` is filled and emptied here and read by others; ``grace`` is in seconds."""
        self.lanes = lanes
        self.relay: Relay | None = None
        self.swept = bench.ambient.monotonic()
        """On the monotonic clock, when the last round ended."""
        self.adrift: dict[Place, float] = {}
        """Partitions that the last round found unread, and since when on the monotonic clock."""
        self._bench = bench
        self._parked = parked
        self._work = work
        self._grace = grace
        self._make_lane = make_lane
        self._bell = Bell(bench.ambient)
        self._streams: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to sweep."""
        self._task = asyncio.create_task(self._run(), name="claims")

    def ring(self) -> None:
        """Streams or replicas may have changed: sweep soon."""
        self._bell.ring()

    async def stop(self) -> None:
        """Take no more; finish and save every lane, then the relay."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for lane in list(self.lanes.values()):
            await lane.stop()
        if self.relay is not None:
            await self.relay.stop()

    def kill(self) -> None:
        """End everything at once."""
        for lane in self.lanes.values():
            lane.kill()
        if self.relay is not None:
            self.relay.kill()

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self.sweep()
                failures = 0
            except Exception as error:  # noqa: BLE001 - claims outlive every error
                self._bench.trouble("claims", error)
                failures += 1
                await self._bench.backoff(failures)
                continue
            await self._bell.wait(SWEEP)

    async def sweep(self) -> None:
        """One round: drop what was lost, save what moved, give up the surplus, take the rest.

        The relay is not part of the share: whoever finds it free takes it.
        """
        bench = self._bench
        wanted = await self._wanted()
        await bench.store.bury()
        now = bench.ambient.now()
        alive = [row["owner"] for row in await bench.store.fetch(tables.LIVING, {"now": now})]
        rows = await bench.store.fetch(tables.CURSORS, {"reader": READER})
        cursors = {(row["stream"], row["partition"]): row for row in rows}
        await self._drop_lost(cursors)
        for lane in list(self.lanes.values()):
            if lane.idle:
                await lane.save()
        share = _share(len(wanted), alive, bench.owner)
        if len(self.lanes) > share and _someone_lacks(wanted, cursors, alive):
            for place in sorted(self.lanes)[share:]:
                await self._release(place)
        # What is claimed in our own name and not held was lost on its way: it is claimed again.
        taken_by_others = {
            place for place, row in cursors.items() if row["owner"] in {*alive} - {bench.owner}
        }
        free = [place for place in wanted if place not in taken_by_others | self.lanes.keys()]
        since = bench.ambient.monotonic()
        self.adrift = {place: self.adrift.get(place, since) for place in free}
        taken = free[: max(0, share - len(self.lanes))]
        if self.relay is None and _RELAY not in taken_by_others:
            taken.append(_RELAY)
        if bench.owner in alive:
            await self._take(taken, now)
        self.swept = bench.ambient.monotonic()

    async def _wanted(self) -> list[Place]:
        bench = self._bench
        try:
            self._streams = dict(await bench.broker.streams())
        except BrokerError as error:
            bench.trouble("claims", error)  # what was known still holds; the outbox needs no broker
        return [
            (stream, partition)
            for stream, partitions in sorted(self._streams.items())
            if bench.reads(stream)
            for partition in range(partitions)
        ]

    def _held(self) -> set[Place]:
        held = set(self.lanes)
        if self.relay is not None:
            held.add(_RELAY)
        return held

    async def _drop_lost(self, cursors: dict[Place, Row]) -> None:
        for place in self._held():
            row = cursors.get(place)
            part = self.relay if place[0] == OUTBOX else self.lanes[place]
            if part is None:
                continue
            claim = part.claim
            holds = row is not None and (row["owner"], row["epoch"]) == (claim.owner, claim.epoch)
            if part.fenced or not holds:
                part.fenced = True
                part.kill()
                self._forget(place)

    def _forget(self, place: Place) -> None:
        if place[0] == OUTBOX:
            self.relay = None
            return
        claim = self.lanes.pop(place).claim
        self._bench.signals.emit(
            Released(
                service=self._bench.service,
                stream=claim.stream,
                partition=claim.partition,
                epoch=claim.epoch,
            )
        )

    async def _take(self, places: list[Place], now: float) -> None:
        bench = self._bench
        if not places:
            return
        unit = bench.unit(None)
        tx = unit.transaction(_NO_ORIGIN)
        taken: list[tuple[Place, Row]] = []
        try:
            tx.execute(tables.FORGET_REPLICAS, then=now - 60.0)
            for stream, partition in places:
                cursor = {"stream": stream, "partition": partition, "reader": READER}
                tx.execute(tables.ADD_CURSOR, **cursor)
                row = await tx.fetch_one(tables.CLAIM, **cursor, owner=bench.owner, now=now)
                if row is not None:
                    taken.append(((stream, partition), row))
            await unit.commit()
        finally:
            await unit.rollback()
        for place, row in taken:
            await self._begin(place, row)

    async def _begin(self, place: Place, row: Row) -> None:
        bench = self._bench
        stream, partition = place
        claim = Claim(stream=stream, partition=partition, owner=bench.owner, epoch=row["epoch"])
        if stream == OUTBOX:
            self.relay = Relay(bench, claim)
            self.relay.start()
            return
        rows = await bench.store.fetch(
            tables.BLOCKED, {"stream": stream, "partition": partition, "reader": claim.reader}
        )
        lane = self.lanes[place] = self._make_lane(
            bench,
            claim,
            row["position"],
            blocked={r["chain"]: r["parked"] for r in rows if r["chain"] is not None},
            parked=sum(r["parked"] for r in rows),
            careful=row["crashes"] >= CRASHES,
            suspects=row["crashes"] > 0,
            work=self._work,
        )
        lane.start()
        if rows:
            self._work.ring()
        bench.signals.emit(
            Claimed(service=bench.service, stream=stream, partition=partition, epoch=claim.epoch)
        )

    async def _release(self, place: Place) -> None:
        bench = self._bench
        lane = self.lanes[place]
        await lane.stop()
        await self._parked.drain(*place, self._grace)
        self._forget(place)
        unit = bench.unit(None)
        unit.transaction(_NO_ORIGIN).execute(
            tables.RELEASE,
            stream=lane.claim.stream,
            partition=lane.claim.partition,
            reader=lane.claim.reader,
            owner=lane.claim.owner,
            epoch=lane.claim.epoch,
        )
        await unit.commit()


def _share(units: int, alive: list[str], owner: str) -> int:
    """How many of so many units are this owner's: as equal as whole numbers allow."""
    if owner not in alive:
        return units
    return units // len(alive) + (alive.index(owner) < units % len(alive))


def _someone_lacks(wanted: list[Place], cursors: dict[Place, Row], alive: list[str]) -> bool:
    owners = [(cursors.get(place) or {}).get("owner") for place in wanted]
    return any(owners.count(owner) < len(wanted) // len(alive) for owner in alive)
