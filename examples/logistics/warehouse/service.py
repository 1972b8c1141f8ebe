"""Warehouse assigns each task once, and gives a dock to each round that is packed, in turn.

Two kinds of state, found by two fields of the events: a round knows its tasks, a depot its docks.
A saga holds them together: a dock that is not used in time is freed for others, and the round asks
anew. Now and then a gate jams when vans are loaded first, so that this happens.
"""

from __future__ import annotations

import os
import zlib

from oyez import Saga, Service, State
from oyez.saga import Failed, end, starts, step
from warehouse import events

service = Service("warehouse")

DOCKS = 2
"""Docks of each depot."""
HANDS = 6
"""Workers of each round."""
JAMS = 16
"""Of so many rounds, the gate jams for one."""
WITHIN = 10.0 if os.environ.get("LOGISTICS_HURRY") else 600.0
"""Seconds that a round may wait for a dock, and then keep it."""
News = events.TaskAssigned | events.RoundPacked | events.VansLoaded


class Round(State, key="round_id"):
    """The tasks of a round: by kind, the parcels of those assigned, and how many are done."""

    depot: str = ""
    parcels: int = 0
    assigned: dict[str, list[str]] = {}
    done: dict[str, int] = {}
    jammed: bool = False

    def assign(self, kind: str, *parcels: str) -> list[News]:
        """Give each of these parcels to a worker, but for those that somebody has already."""
        assigned = self.assigned.setdefault(kind, [])
        new = [each for each in parcels if each not in assigned]
        task = {"round_id": self.key, "kind": kind}
        told: list[News] = [
            events.TaskAssigned(**task, parcel_id=each, worker=f"{self.key}#{number % HANDS}")
            for number, each in enumerate(new, len(assigned))
        ]
        assigned += new
        return told

    def all_done(self, kind: str) -> list[News]:
        """Tell that all parcels are packed, or loaded, once they are."""
        if not self.parcels or self.done.get(kind, 0) < self.parcels:
            return []
        if kind == "load":
            return [events.VansLoaded(round_id=self.key)]
        return [events.RoundPacked(round_id=self.key, depot=self.depot)]


class Docks(State, key="depot"):
    """The rounds that have a dock of a depot, and those that wait, the first one first."""

    used: list[str] = []
    waiting: list[str] = []

    def give(self) -> list[events.DockGiven]:
        """Give what is free to those who wait."""
        free = DOCKS - len(self.used)
        turn, self.waiting = self.waiting[:free], self.waiting[free:]
        self.used += turn
        return [events.DockGiven(round_id=each, depot=self.key) for each in turn]


@service.on(events.RoundBooked)
async def booked(event: events.RoundBooked, known: Round) -> list[News]:
    """The number of its parcels is known: perhaps after the last of them was packed."""
    known.depot, known.parcels = event.depot, len(event.stops)
    return known.all_done("pack")


@service.on(events.ParcelMoved)
async def arrived(event: events.ParcelMoved, known: Round) -> list[News]:
    """What has come to the depot is picked."""
    return known.assign("pick", event.parcel_id) if event.stage == "arrived" else []


ENDS = {"E14": "a parcel has three tasks, and each is assigned once"}


@service.on(events.TaskAssigned, allow=ENDS)
async def work(event: events.TaskAssigned) -> events.TaskDone:
    """A worker does it."""
    return events.TaskDone(round_id=event.round_id, parcel_id=event.parcel_id, kind=event.kind)


@service.on(events.TaskDone)
async def worked(event: events.TaskDone, known: Round) -> list[News]:
    """What is picked is packed; the last one that is packed, or loaded, is the round's."""
    known.done[event.kind] = known.done.get(event.kind, 0) + 1
    if event.kind == "pick":
        return known.assign("pack", event.parcel_id)
    return known.all_done(event.kind)


@service.on(events.LoadVans)
async def load(event: events.LoadVans, known: Round) -> list[News]:
    """Have the parcels loaded, unless the gate jams; tell at once when they are already."""
    if not known.jammed and zlib.crc32(known.key.encode()) % JAMS == 0:
        known.jammed = True
        return []
    return known.assign("load", *known.assigned["pack"]) or known.all_done("load")


@service.on(events.WantDock)
async def want(event: events.WantDock, docks: Docks) -> list[events.DockGiven]:
    """Give a dock, now or when it is the round's turn."""
    if event.round_id not in (*docks.used, *docks.waiting):
        docks.waiting.append(event.round_id)
    return docks.give()


@service.on(events.FreeDock, events.RoundLoaded)
async def free(
    event: events.FreeDock | events.RoundLoaded, docks: Docks
) -> list[events.DockFreed | events.DockGiven]:
    """Others may have the dock: the vans leave, or it took too long."""
    docks.used = [each for each in docks.used if each != event.round_id]
    docks.waiting = [each for each in docks.waiting if each != event.round_id]
    return [events.DockFreed(round_id=event.round_id, depot=docks.key), *docks.give()]


@service.saga
class Loading(Saga, key="round_id", ends=("loaded", "put_off"), restart=True):
    """A round at the docks."""

    depot: str = ""

    @starts
    def packed(self, event: events.RoundPacked) -> None:
        """It waits for a dock."""
        self.take(event)

    @step(done=events.DockGiven, within=WITHIN)
    def dock(self) -> events.WantDock:
        """Wait for the round's turn."""
        return self.make(events.WantDock)

    @dock.undo(done=events.DockFreed, within=WITHIN)
    def release(self) -> events.FreeDock:
        """Others may have it."""
        return self.make(events.FreeDock)

    @step(done=events.VansLoaded, within=WITHIN)
    def load(self) -> events.LoadVans:
        """Load at the dock, as long as it is the round's."""
        return self.make(events.LoadVans)

    @end("loaded")
    def loaded(self) -> events.RoundLoaded:
        """The dock is freed by this, too."""
        return self.make(events.RoundLoaded)

    @end("put_off")
    def put_off(self, why: Failed) -> events.RoundPacked:
        """It took too long: the round asks anew, behind those that wait."""
        return self.make(events.RoundPacked)
