"""The places of each replica: claims with an epoch, in the service's own store.

A place is a partition of a stream, which is read, or one of those that fire timers. A *runner*
works on each place that this process owns.

Each process has a lease in ``oyez_replica``; its claims in ``oyez_cursor`` are valid as long as the
lease. A sweep claims partitions without a living owner, up to a fair share, and releases those
beyond it. A claim increments the partition's epoch, and every commit checks owner and epoch: a
process that was paused while another took over can't commit (fencing).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import BrokerError
from oyez.ports import Broker, Changes, Claim, Parameters, Row, Writes
from oyez.runtime.commits import Commits
from oyez.runtime.lane import Chains, Lane
from oyez.runtime.loop import Bell, Loop
from oyez.runtime.parked import ParkedEvents
from oyez.runtime.relay import Relay
from oyez.runtime.reports import Reports
from oyez.runtime.timers import Timers
from oyez.signals import Claimed, Released
from oyez.tables import OUTBOX, PLACES, TIMERS
from oyez.transaction import Origin

SWEEP = 0.5
"""Seconds between two sweeps unless the bell rings."""
SOON = 0.1
"""The same while others are about to release what this process lacks of its share."""
ADRIFT = 10.0
"""Seconds after which a place that no replica takes as its share is taken beyond the share.

Another version of the service may not know the place, while both run.
"""
CRASHES = 2
"""What ``crashes`` of `Claims` is for a service; see `Lane`."""

Place = tuple[str, int]
_NO_ORIGIN = Origin()
_RELAY: Place = (OUTBOX, 0)


class Runner(Protocol):
    """The work on one place, until it is stopped or another process owns the place."""

    def start(self) -> None:
        """Start working."""
        ...

    async def stop(self) -> None:
        """Finish the current step and end. Safe when never started and when called twice."""
        ...

    def kill(self) -> None:
        """End at once; uncommitted work is rolled back."""
        ...


class Claims:
    """The partitions that this process owns, and perhaps the relay."""

    def __init__(
        self,
        owner: str,
        lanes: dict[Place, Lane],
        parked: ParkedEvents,
        *,
        reads: Callable[[str], bool],
        reading: Callable[[Lane], Runner],
        timers: Callable[[Lane], Timers] | None,
        broker: Broker,
        commits: Commits,
        ambient: Ambient,
        reports: Reports,
        work: Bell,
        grace: float,
        reader: str = "",
        crashes: int = CRASHES,
    ) -> None:
        """``lanes`` is filled and emptied here and read elsewhere; ``grace`` is in seconds.

        ``reads`` returns whether a stream is read, by its name; ``reading`` and ``timers`` return
        the runner of a lane, the latter None for a service without timers.
        ``reader`` is that of the claims: by default the service itself, which claims the relay as
        well. ``crashes`` is the number of owners that died at one position, from which it is passed
        with care.
        """
        self.lanes = lanes
        self.relay: Relay | None = None
        self.swept = ambient.monotonic()
        """The end of the last sweep, on the monotonic clock."""
        self.adrift: dict[Place, float] = {}
        """Partitions that the last sweep found unread, each with the time since then."""
        self._owner = owner
        self._reader = reader
        self._crashes = crashes
        self._parked = parked
        self._reads = reads
        self._reading = reading
        self._timers = timers
        self._broker = broker
        self._commits = commits
        self._store = commits.store
        self._ambient = ambient
        self._reports = reports
        self._work = work
        self._grace = grace
        self._loop = Loop("claims", self._step, ambient, reports.trouble)
        self._alive: list[str] = []
        self._changed = ambient.monotonic()
        """The time at which the living replicas were found to be others, on the monotonic clock."""
        self._lacks = False
        """Whether the last sweep found fewer places than the share."""
        self._extra: set[Place] = set()
        """Places that were taken beyond the share since the replicas changed."""
        self._streams: dict[str, int] = {}
        self._runners: dict[Place, Runner] = {}

    def start(self) -> None:
        """Start sweeping."""
        self._loop.start()

    def ring(self) -> None:
        """Sweep soon: streams or replicas may have changed."""
        self._loop.ring()

    async def stop(self) -> None:
        """Claim no more; finish and save every lane, then the relay."""
        await self._loop.cancel()
        # Together: each waits for its batch, and none is another's before all of them are released.
        await asyncio.gather(*(runner.stop() for runner in self._runners.values()))
        if self.relay is not None:
            await self.relay.stop()

    def kill(self) -> None:
        """End everything at once."""
        self._loop.kill()
        for runner in self._runners.values():
            runner.kill()
        if self.relay is not None:
            self.relay.kill()

    @property
    def timers(self) -> list[Timers]:
        """The runners of the places of timers that this process owns."""
        return [runner for runner in self._runners.values() if isinstance(runner, Timers)]

    @property
    def fires(self) -> bool:
        """Whether the service has timers."""
        return self._timers is not None

    async def _step(self) -> float:
        await self.sweep()
        recent = self._ambient.monotonic() - self._changed < ADRIFT
        return self._ambient.poll(SOON if self._lacks and recent else SWEEP, replicas=True)

    async def sweep(self) -> None:
        """Drop lost and doubtful claims, release the surplus, claim what is free, save positions.

        The relay is not part of the share: the first process that finds it free claims it.
        """
        wanted = await self._wanted()
        await self._store.bury()
        now = self._ambient.now()
        alive = [row["owner"] for row in await self._store.fetch(tables.LIVING, {"now": now})]
        rows = await self._store.fetch(tables.CURSORS, {"reader": self._reader})
        cursors = {(row["stream"], row["partition"]): row for row in rows}
        await self._drop_lost(cursors)
        if alive != self._alive:
            self._alive, self._extra = alive, set()
            self._changed = self._ambient.monotonic()
        share = _share(len(wanted), alive, self._owner)
        shared = sorted(self.lanes.keys() - self._extra, key=_by_partition)
        if len(shared) > share and _someone_lacks(wanted, cursors, alive):
            await asyncio.gather(*(self._release(place) for place in shared[share:]))
        # A claim in our own name without a lane is one whose answer was lost: claim it again.
        taken_by_others = {
            place for place, row in cursors.items() if row["owner"] in {*alive} - {self._owner}
        }
        free = [place for place in wanted if place not in taken_by_others | self.lanes.keys()]
        since = self._ambient.monotonic()
        self.adrift = {place: self.adrift.get(place, since) for place in free}
        room = max(0, share - len(self.lanes.keys() - self._extra))
        taken = free[:room]
        self._lacks = len(taken) < room
        left = [place for place in free[room:] if since - self.adrift[place] > ADRIFT]
        self._extra.update(left)
        taken += left
        if not self._reader and self.relay is None and _RELAY not in taken_by_others:
            taken.append(_RELAY)
        if self._owner in alive:
            await self._take(taken, now)
        # Last, and together: a place that changes hands waits for nothing else.
        lanes = [lane for lane in self.lanes.values() if lane.idle and lane.unsaved]
        await asyncio.gather(*(lane.save() for lane in lanes))
        self.swept = self._ambient.monotonic()

    async def _wanted(self) -> list[Place]:
        try:
            self._streams = dict(await self._broker.streams())
        except BrokerError as error:
            self._reports.trouble(
                "claims", error
            )  # the known streams are still valid; the outbox needs no broker
        places = [
            (stream, partition)
            for stream, partitions in self._streams.items()
            if self._reads(stream)
            for partition in range(partitions)
        ]
        if self._timers is not None:
            places += [(TIMERS, part) for part in range(PLACES)]
        return sorted(places, key=_by_partition)

    def _held(self) -> set[Place]:
        held = set(self.lanes)
        if self.relay is not None:
            held.add(_RELAY)
        return held

    async def _drop_lost(self, cursors: dict[Place, Row]) -> None:
        for place in self._held():
            row = cursors.get(place)
            part = self.relay if place == _RELAY else self.lanes[place]
            if part is None:
                continue
            claim = part.claim
            holds = row is not None and (row["owner"], row["epoch"]) == (claim.owner, claim.epoch)
            doubtful = isinstance(part, Lane) and part.doubtful
            if part.fenced or doubtful or not holds:
                part.fenced = True
                self._drop(place)

    def _drop(self, place: Place) -> None:
        """End the runner of a place, or the relay, and forget its claim."""
        if place == _RELAY:
            if self.relay is not None:
                self.relay.kill()
            self.relay = None
            return
        self._runners.pop(place).kill()
        claim = self.lanes.pop(place).claim
        self._reports.emit(
            Released(
                service=self._reports.service,
                stream=claim.stream,
                partition=claim.partition,
                epoch=claim.epoch,
            )
        )

    async def _take(self, places: list[Place], now: float) -> None:
        if not places:
            return
        cursors: list[Parameters] = [self._cursor(place) for place in places]
        asked: list[Parameters] = [
            {**cursor, "owner": self._owner, "now": now} for cursor in cursors
        ]
        # Few statements for all of them: on some stores nobody else writes meanwhile.
        before: Writes = [
            (tables.FORGET_REPLICAS, [{"then": now - 60.0}]),
            (tables.ADD_CURSOR, cursors),
            (tables.ACQUIRE, asked),
        ]
        begun = self._store.begin(claims=True)
        try:
            mine = {"reader": self._reader, "owner": self._owner}
            rows = await begun.fetch(tables.ACQUIRED, mine, before)
            await begun.commit(Changes(time=now))
        finally:
            await begun.rollback()
        found = {(row["stream"], row["partition"]): row for row in rows}
        taken = [place for place in places if place in found]
        parked = await asyncio.gather(
            *(self._store.fetch(tables.BLOCKED, self._cursor(place)) for place in taken)
        )
        for place, chains in zip(taken, parked, strict=True):
            self._begin(place, found[place], chains)

    def _cursor(self, place: Place) -> dict[str, str | int]:
        stream, partition = place
        return {"stream": stream, "partition": partition, "reader": self._reader}

    def _begin(self, place: Place, row: Row, parked: list[Row]) -> None:
        stream, partition = place
        claim = Claim(
            stream=stream,
            partition=partition,
            owner=self._owner,
            epoch=row["epoch"],
            reader=self._reader,
        )
        if place == _RELAY:
            self.relay = Relay(
                claim,
                broker=self._broker,
                commits=self._commits,
                ambient=self._ambient,
                reports=self._reports,
            )
            self.relay.start()
            return
        lane = self.lanes[place] = Lane(
            claim,
            row["position"],
            Chains({each["chain"]: each["parked"] for each in parked}, self._ambient),
            broker=self._broker,
            commits=self._commits,
            ambient=self._ambient,
            reports=self._reports,
            work=self._work,
            suspects=row["crashes"] > 0,
            careful=row["crashes"] >= self._crashes,
        )
        if stream == TIMERS and self._timers is not None:
            runner: Runner = self._timers(lane)
        else:
            runner = self._reading(lane)
        self._runners[place] = runner
        runner.start()
        if parked:
            self._work.ring()
        self._reports.emit(
            Claimed(
                service=self._reports.service, stream=stream, partition=partition, epoch=claim.epoch
            )
        )

    async def _release(self, place: Place) -> None:
        lane = self.lanes[place]
        await self._runners[place].stop()
        await self._parked.drain(*place, self._grace)
        self._drop(place)
        unit = self._commits.unit(None)
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
    """Return this owner's share of the units: as equal as whole numbers allow."""
    if owner not in alive:
        return units
    return units // len(alive) + (alive.index(owner) < units % len(alive))


def _someone_lacks(wanted: list[Place], cursors: dict[Place, Row], alive: list[str]) -> bool:
    owners = [(cursors.get(place) or {}).get("owner") for place in wanted]
    return any(owners.count(owner) < len(wanted) // len(alive) for owner in alive)


def _by_partition(place: Place) -> tuple[int, str]:
    """Return the order of shares: a key has one partition number, so mostly one owner."""
    stream, partition = place
    return partition, stream
