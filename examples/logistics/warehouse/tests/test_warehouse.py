"""Tasks that are assigned once, docks that are shared, and a dock that is given back in time."""

from __future__ import annotations

import zlib
from collections import Counter

import pytest

from oyez.event import describe
from oyez.testing import Running, System
from oyez.testing.sagas import given
from warehouse.events import (
    DockFreed,
    DockGiven,
    FreeDock,
    LoadVans,
    ParcelMoved,
    RoundBooked,
    RoundLoaded,
    RoundPacked,
    TaskAssigned,
    VansLoaded,
    WantDock,
)
from warehouse.service import DOCKS, JAMS, WITHIN, Docks, Loading, service

PACKED = RoundPacked(round_id="r", depot="ORD")
GIVEN = DockGiven(round_id="r", depot="ORD")


def test_a_round_that_is_loaded_frees_its_dock_by_leaving() -> None:
    given(Loading).when(PACKED, GIVEN, VansLoaded(round_id="r")).then(
        asks=[WantDock, LoadVans], says=[RoundLoaded], ends="loaded"
    )


@pytest.mark.parametrize("before", [(), (GIVEN,)])
def test_too_long_a_wait_gives_back_the_dock_and_asks_anew(before: tuple[DockGiven, ...]) -> None:
    waits = given(Loading).when(PACKED, *before).then(asks=[WantDock, LoadVans][: 1 + len(before)])
    waits.after(WITHIN).then(asks=[FreeDock], says=[], status="undoing")
    waits.when(DockFreed(round_id="r", depot="ORD")).then(says=[PACKED], ends="put_off")
    waits.when(PACKED).then(asks=[WantDock], status="running")


async def book(system: System, round_id: str, parcels: list[str]) -> None:
    booked = RoundBooked(round_id=round_id, depot="ORD", stops=dict.fromkeys(parcels))
    for parcel in parcels:
        moved = ParcelMoved(parcel_id=parcel, round_id=round_id, stage="arrived")
        for _ in range(2):
            await system.publish(moved, service="tracking")
    await system.publish(booked, service="gateway")


async def test_each_task_is_assigned_once_and_the_docks_are_enough(running: Running) -> None:
    rounds = {f"r{n}": [f"r{n}p{p}" for p in range(3)] for n in range(8)}
    async with running(service) as system:
        for name, parcels in rounds.items():
            await book(system, name, parcels)
        await system.settled()
        await system.advance(3 * WITHIN)
        assert {each.round_id for each in system.announced(RoundLoaded)} == rounds.keys()
        tasks = Counter((each.parcel_id, each.kind) for each in system.announced(TaskAssigned))
        assert len(tasks) == 8 * 3 * 3
        assert {*tasks.values()} == {1}
        used, most = set(), 0
        told = [describe(cls) for cls in (DockGiven, DockFreed)]
        for event in system.history():
            if event.type == told[0].name:
                used.add(told[0].decode(event.data).round_id)
            elif event.type == told[1].name:
                used.discard(told[1].decode(event.data).round_id)
            most = max(most, len(used))
        assert (used, most) == (set(), DOCKS)
        assert await service.read(Docks, "ORD") == Docks()


async def test_docks_are_given_in_turn_to_those_who_still_wait(running: Running) -> None:
    async with running(service) as system:

        async def ask(command: type[WantDock | FreeDock], round_id: str) -> list[str]:
            await system.publish(command(round_id=round_id, depot="ORD"), service="warehouse")
            await system.settled()
            return [each.round_id for each in system.announced(DockGiven)]

        for name in "abcd":
            first = await ask(WantDock, name)
        assert first == ["a", "b"]
        assert await ask(FreeDock, "c") == first
        assert await ask(FreeDock, "a") == [*first, "d"]
        assert await ask(WantDock, "d") == [*first, "d"]
        assert [each.round_id for each in system.announced(DockFreed)] == ["c", "a"]


async def test_a_gate_that_jams_costs_a_time_out(running: Running) -> None:
    name = next(name for name in map(str, range(99)) if zlib.crc32(name.encode()) % JAMS == 0)
    async with running(service) as system:
        await book(system, name, ["p"])
        await system.settled()
        assert system.announced(RoundLoaded) == []
        await system.advance(WITHIN)
        assert [each.round_id for each in system.announced(RoundLoaded)] == [name]
        assert len(system.announced(DockGiven)) == 2
