"""Warehouse assigns each task once, and gives a dock to each round that is packed, in turn.

Two kinds of state, found by two fields of the events: a round knows its tasks, a depot its docks.
A saga holds them together: a dock that is not used in time is freed for others, and the round asks
anew. Now and then a gate jams when vans are loaded first (`jams`), so that this happens.
"""

from __future__ import annotations

import os
import zlib

from oyez import Saga, Service, State, Transaction, View, applies
from oyez.saga import Failed, end, starts, step
from warehouse import events

service = Service("warehouse", migrations="warehouse/migrations")

DOCKS = 2
"""Docks of each depot."""
HANDS = 6
"""Workers of each round."""
WITHIN = 10.0 if os.environ.get("LOGISTICS_HURRY") else 600.0
"""Seconds that a round may wait for a dock, and then keep it."""


class Round(State, key="round_id"):
    """The tasks of a round."""

    depot: str = ""
    parcels: int = 0
    workers: dict[str, str] = {}
    """By task."""
    done: dict[str, list[str]] = {}
    """The parcels, by kind of task."""
    packed: bool = False
    loading: bool = False

    def assign(self, parcel: str, kind: str) -> list[events.TaskAssigned]:
        """Give the task to a worker, unless somebody has it."""
        task = f"{parcel}/{kind}"
        if task in self.workers:
            return []
        worker = self.workers[task] = f"{self.key}#{len(self.workers) % HANDS}"
        return [events.TaskAssigned(task_id=task, round_id=self.key, worker=worker)]

    def pack(self) -> list[events.RoundPacked]:
        """Tell that all parcels are packed, once."""
        if self.packed or not self.parcels or len(self.done.get("pack", ())) < self.parcels:
            return []
        self.packed = True
        return [events.RoundPacked(round_id=self.key, depot=self.depot, attempt=0)]

    def load(self) -> list[events.VansLoaded]:
        """Answer who wants it loaded, if it is."""
        if not self.loading or len(self.done.get("load", ())) < self.parcels:
            return []
        self.loading = False
        return [events.VansLoaded(round_id=self.key)]


class Docks(State, key="depot"):
    """The docks of a depot: who has one, and who waits, the first one first."""

    used: dict[str, int] = {}
    waiting: list[str] = []
    changes: int = 0

    def give(self, tx: Transaction) -> list[events.DockGiven]:
        """Give what is free to those who wait."""
        given = []
        while self.waiting and len(self.used) < DOCKS:
            round_id = self.waiting.pop(0)
            dock = self.used[round_id] = min({*range(DOCKS)} - {*self.used.values()})
            self._log(tx, round_id, +1)
            given.append(events.DockGiven(round_id=round_id, dock=dock))
        return given

    def free(self, tx: Transaction, round_id: str) -> list[events.DockGiven]:
        """Take back what a round has or waits for, and give it to others."""
        if round_id in self.waiting:
            self.waiting.remove(round_id)
        if self.used.pop(round_id, None) is not None:
            self._log(tx, round_id, -1)
        return self.give(tx)

    def _log(self, tx: Transaction, round_id: str, change: int) -> None:
        self.changes += 1
        sql = "insert into dock_log values (:depot, :number, :round_id, :change)"
        tx.execute(sql, depot=self.key, number=self.changes, round_id=round_id, change=change)


def jams(round_id: str) -> bool:
    """Whether the gate jams when this round is loaded first: for one round of 16."""
    return zlib.crc32(round_id.encode()) % 16 == 0


@service.on(events.RoundBooked)
async def booked(event: events.RoundBooked, known: Round) -> list[events.RoundPacked]:
    """The number of its parcels is known: perhaps after the last of them was packed."""
    known.depot, known.parcels = event.depot, len(event.stops)
    return known.pack()


@service.on(events.ParcelMoved)
async def arrived(event: events.ParcelMoved, known: Round) -> list[events.TaskAssigned]:
    """What has come to the depot is picked."""
    return known.assign(event.parcel_id, "pick") if event.stage == "arrived" else []


ENDS = {"E14": "a parcel has three tasks, and each is assigned once"}


@service.on(events.TaskAssigned, allow=ENDS)
async def work(event: events.TaskAssigned) -> events.TaskDone:
    """A worker does it."""
    return events.TaskDone(task_id=event.task_id, round_id=event.round_id)


@service.on(events.TaskDone)
async def worked(
    event: events.TaskDone, known: Round
) -> list[events.TaskAssigned] | list[events.RoundPacked] | list[events.VansLoaded]:
    """What is picked is packed; the last one that is packed, or loaded, is the round's."""
    parcel, _, kind = event.task_id.rpartition("/")
    known.done.setdefault(kind, []).append(parcel)
    if kind == "pick":
        return known.assign(parcel, "pack")
    return known.pack() if kind == "pack" else known.load()


@service.on(events.LoadVans)
async def load(
    event: events.LoadVans, known: Round
) -> list[events.TaskAssigned | events.VansLoaded]:
    """Have the parcels loaded; asked again, answer for what is loaded already."""
    known.loading = event.attempt > 0 or not jams(known.key)
    tasks = [each for parcel in known.done["pack"] for each in known.assign(parcel, "load")]
    return [*tasks, *known.load()]


@service.on(events.WantDock)
async def want(event: events.WantDock, docks: Docks, tx: Transaction) -> list[events.DockGiven]:
    """Give a dock, now or when it is the round's turn."""
    if event.round_id in docks.used:
        return [events.DockGiven(round_id=event.round_id, dock=docks.used[event.round_id])]
    if event.round_id not in docks.waiting:
        docks.waiting.append(event.round_id)
    return docks.give(tx)


@service.on(events.FreeDock)
async def give_back(
    event: events.FreeDock, docks: Docks, tx: Transaction
) -> list[events.DockFreed | events.DockGiven]:
    """Free the dock; answered also where there was none."""
    return [events.DockFreed(round_id=event.round_id), *docks.free(tx, event.round_id)]


@service.on(events.RoundLoaded)
async def leave(event: events.RoundLoaded, docks: Docks, tx: Transaction) -> list[events.DockGiven]:
    """The vans leave, and the next may come."""
    return docks.free(tx, event.round_id)


@service.saga
class Loading(Saga, key="round_id", ends=("loaded", "put_off"), restart=True):
    """A round at the docks."""

    depot: str = ""
    attempt: int = 0

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
        return self.make(events.RoundPacked, attempt=self.attempt + 1)


@service.view
class Tasks(View, table="task", key="task_id"):
    """Who has done what, and how often it was assigned: once."""

    task_id: str
    worker: str = ""
    assigned: int = 0
    done: int = 0

    @applies
    def given(self, event: events.TaskAssigned) -> None:
        """To a worker."""
        self.worker = event.worker
        self.assigned += 1

    @applies
    def finished(self, event: events.TaskDone) -> None:
        """By the worker."""
        self.done += 1
