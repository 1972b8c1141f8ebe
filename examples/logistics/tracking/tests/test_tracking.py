"""One parcel's scans in every order, twice, and after its delivery."""

from __future__ import annotations

from itertools import permutations

import pytest
from msgspec.structs import replace

from oyez.testing import Running
from tracking.events import (
    EtaPredicted,
    LegDelayed,
    ParcelDelivered,
    ParcelMoved,
    ParcelScanned,
    Stage,
)
from tracking.service import Fact, Journey, Route, service

TIMES: dict[Stage, int] = {"departed": 100, "arrived": 4000, "delivered": 9000}


def scan(stage: Stage, late: int = 0) -> ParcelScanned:
    return ParcelScanned(
        parcel_id="p1", round_id="ORD-1", stage=stage, at=TIMES[stage] + late, route="JFK-ORD",
        due=100, lands=4000,
    )  # fmt: skip


@pytest.mark.parametrize("order", list(permutations(TIMES)))
async def test_every_order_is_one_journey(running: Running, order: tuple[Stage, ...]) -> None:
    async with running(service) as system:
        for stage in order:
            for _ in range(2):
                await system.publish(scan(stage), service="gateway")
            await system.settled()
        known = order[: order.index("delivered") + 1]
        assert await service.read(Journey, "p1") == Journey(times={s: TIMES[s] for s in known})
        moves = [each.stage for each in system.announced(ParcelMoved)]
        assert moves == sorted(moves, key=[*TIMES].index)
        assert moves[-1] == "delivered"
        assert len(system.announced(ParcelDelivered)) == 1


def test_what_is_delivered_never_moves_again() -> None:
    journey = Journey.keyed("p1", times={"delivered": 9000})
    assert [*journey.take(scan("arrived", late=90_000), Route())] == []


def test_half_an_hour_is_told_and_told_once() -> None:
    def delays(journey: Journey, stage: Stage, late: int) -> list[Fact]:
        told = journey.take(scan(stage, late), Route())
        return [each for each in told if isinstance(each, LegDelayed)]

    assert delays(Journey.keyed("p1"), "departed", 1799) == []
    journey = Journey.keyed("p1")
    told = LegDelayed(parcel_id="p1", round_id="ORD-1", ready=5800)
    assert delays(journey, "departed", 1800) == [told]
    assert delays(journey, "arrived", 1900) == []


def test_a_leg_teaches_its_route_once_both_ends_are_known() -> None:
    journey, route = Journey.keyed("p1"), Route(flown=1, lost=100)
    assert EtaPredicted not in map(type, journey.take(scan("arrived", late=300), route))
    assert (route.flown, route.lost) == (1, 100)
    assert EtaPredicted not in map(type, journey.take(scan("departed", late=60), route))
    assert (route.flown, route.lost) == (2, 340)


async def test_a_route_that_loses_time_is_expected_to(running: Running) -> None:
    async with running(service) as system:
        for name, stage, late in (("a", "departed", 0), ("a", "arrived", 300),
                                  ("b", "departed", 60), ("c", "departed", 0)):  # fmt: skip
            event = replace(scan(stage, late), parcel_id=name)
            await system.publish(event, service="gateway")
            await system.settled()
        predicted = [(each.parcel_id, each.eta) for each in system.announced(EtaPredicted)]
        assert predicted == [("a", 4000), ("b", 4360), ("c", 4300)]
        assert await service.read(Route, "JFK-ORD") == Route(flown=1, lost=300)
