"""Tasks that are assigned once, docks that are shared, and a dock that is given back in time."""

from __future__ import annotations

from collections import Counter

import pytest

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
from warehouse.service import DOCKS, WITHIN, Docks, Loading, jams, service

PACKED = RoundPacked(round_id="r", depot="ORD", attempt=0)
GIVEN = DockGiven(round_id="r", dock=0)


def test_a_round_that_is_loaded_frees_its_dock_by_leaving() -> None:
    given(Loading).when(PACKED, GIVEN, VansLoaded(round_id="r")).then(
        asks=[WantDock, LoadVans], says=[RoundLoaded], ends="loaded"
    )


@pytest.mark.parametrize("before", [(), (GIVEN,)])
def test_too_long_a_wait_gives_back_the_dock_and_asks_anew(before: tuple[DockGiven, ...]) -> None:
    waits = given(Loading).when(PACKED, *before).then(asks=[WantDock, LoadVans][: 1 + len(before)])
    waits.after(WITHIN).then(asks=[FreeDock], says=[], status="undoing")
    again = RoundPacked(round_id="r", depot="ORD", attempt=1)
    waits.when(DockFreed(round_id="r")).then(says=[again], ends="put_off")
    waits.when(again).then(asks=[WantDock], attempt=1, status="running")


async def book(system: System, round_id: str, parcels: list[str]) -> None:
    booked = RoundBooked(round_id=round_id, depot="ORD", stops=[*parcels])
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
        tasks = Counter(each.task_id for each in system.announced(TaskAssigned))
        assert len(tasks) == 8 * 3 * 3
        assert {*tasks.values()} == {1}
        rows = await system.fetch("warehouse", "select change from dock_log order by number")
        used = 0
        for row in rows:
            used += row["change"]
            assert 0 <= used <= DOCKS
        assert used == 0
        assert await service.read(Docks, "ORD") == Docks(changes=len(rows))


async def test_docks_are_given_in_turn_to_those_who_still_wait(running: Running) -> None:
    async with running(service) as system:

        async def ask(command: type[WantDock | FreeDock], round_id: str) -> list[tuple[str, int]]:
            await system.publish(command(round_id=round_id, depot="ORD"), service="warehouse")
            await system.settled()
            return [(each.round_id, each.dock) for each in system.announced(DockGiven)]

        for name in "abcd":
            first = await ask(WantDock, name)
        assert first == [("a", 0), ("b", 1)]
        assert await ask(FreeDock, "c") == first
        assert await ask(FreeDock, "a") == [*first, ("d", 0)]
        assert await ask(WantDock, "d") == [*first, ("d", 0), ("d", 0)]
        assert [each.round_id for each in system.announced(DockFreed)] == ["c", "a"]


async def test_a_gate_that_jams_costs_a_time_out(running: Running) -> None:
    name = next(f"r{number}" for number in range(99) if jams(f"r{number}"))
    async with running(service) as system:
        await book(system, name, ["p"])
        await system.settled()
        assert system.announced(RoundLoaded) == []
        await system.advance(WITHIN)
        assert [each.round_id for each in system.announced(RoundLoaded)] == [name]
        assert len(system.announced(DockGiven)) == 2
