"""Routing computes tours outside of a transaction, and takes the result only if it is the newest.

A plan takes a while. What happens meanwhile is not lost: it wants a plan of a higher version, and
the answer to the older one is dropped. However much happens, a plan is wanted at most once in a
`PAUSE`, by a timer.
"""

from __future__ import annotations

import asyncio
import os

from msgspec.structs import replace

from oyez import Saga, Service
from oyez.saga import on, starts, timer
from routing import events
from routing.planner import plan

service = Service("routing")

PAUSE = 2.0 if os.environ.get("LOGISTICS_HURRY") else 600.0
"""Seconds between two plans of one round, at least."""


@service.saga
class Round(Saga, key="round_id", ends=("driven",)):
    """A round from its booking to its last door."""

    lat: float = 0.0
    lon: float = 0.0
    vans: list[str] = []
    stops: dict[str, events.Stop] = {}
    done: list[str] = []
    wanted: int = 0
    """The version of the newest plan that was asked for."""
    version: int = 0
    """That of the plan that is driven."""
    rests: bool = False
    changed: bool = False

    @starts
    def booked(self, event: events.RoundBooked) -> events.PlanWanted | None:
        """Plan by what was booked."""
        self.take(event)
        return self.plan()

    @on(events.LegDelayed)
    def late(self, event: events.LegDelayed) -> events.PlanWanted | None:
        """A parcel is not there when it was to leave."""
        self.stops[event.parcel_id] = replace(self.stops[event.parcel_id], ready=event.ready)
        return self.plan()

    @on(events.VanFailed)
    def failed(self, event: events.VanFailed) -> events.PlanWanted | None:
        """Others take what it has."""
        self.vans = [each for each in self.vans if each != event.van]
        return self.plan()

    @on(events.ParcelDelivered)
    def delivered(self, event: events.ParcelDelivered) -> None:
        """One door less."""
        self.done.append(event.parcel_id)
        if len(self.done) == len(self.stops):
            self.ending("driven")

    @timer("rest")
    def rested(self) -> events.PlanWanted | None:
        """Plan what has changed meanwhile."""
        self.rests = False
        return self.plan() if self.changed else None

    @on(events.PlanMade)
    def made(self, event: events.PlanMade) -> events.TourPlanned | None:
        """Drive it, unless a newer one was asked for."""
        if event.version < self.wanted or event.version <= self.version:
            return None
        self.version = event.version
        return self.make(events.TourPlanned, routes=event.routes)

    def plan(self) -> events.PlanWanted | None:
        """Ask for a plan of what is left, now or when the pause is over."""
        self.changed = self.rests
        left = {name: stop for name, stop in self.stops.items() if name not in self.done}
        if self.rests or not left:
            return None
        self.rests = True
        self.wanted += 1
        self.after("rest", PAUSE)
        return self.make(events.PlanWanted, version=self.wanted, stops=left)


@service.on(events.PlanWanted, timeout=120.0, concurrency=1)
async def compute(event: events.PlanWanted) -> events.PlanMade:
    """Compute the tours on a thread: nothing else of this process waits for it."""
    routes = await asyncio.to_thread(plan, event)
    return events.PlanMade(round_id=event.round_id, version=event.version, routes=routes)
