"""One parcel's scans in every order, twice, and after its delivery."""

from __future__ import annotations

from itertools import permutations

import pytest

from oyez.testing import Running
from tracking.events import (
    LegDelayed,
    LegSeen,
    ParcelDelivered,
    ParcelMoved,
    ParcelScanned,
    Stage,
)
from tracking.service import Journey, service

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
        assert await service.read(Journey, "p1") == Journey(times={s: TIMES[s] for s in order})
        moves = [each.stage for each in system.announced(ParcelMoved)]
        assert moves == sorted(moves, key=[*TIMES].index)
        assert moves[-1] == "delivered"
        assert len(system.announced(ParcelDelivered)) == 1


def test_what_is_delivered_never_moves_again() -> None:
    journey = Journey.keyed("p1", times={"delivered": 9000})
    facts = journey.take(scan("arrived", late=90_000))
    assert (facts, journey.stage) == ([], "delivered")


def test_half_an_hour_is_told_and_told_once() -> None:
    journey = Journey.keyed("p1")
    assert LegDelayed not in map(type, journey.take(scan("departed", late=1799)))
    journey = Journey.keyed("p1")
    told = [each for each in journey.take(scan("departed", late=1800)) if type(each) is LegDelayed]
    assert told == [LegDelayed(parcel_id="p1", round_id="ORD-1", ready=5800)]
    assert LegDelayed not in map(type, journey.take(scan("arrived", late=1900)))


def test_a_leg_is_known_when_both_ends_are() -> None:
    journey = Journey.keyed("p1")
    journey.take(scan("arrived"))
    (leg,) = journey.take(scan("departed", late=60))
    assert leg == LegSeen(parcel_id="p1", route="JFK-ORD", lands=4000, late=60, landed=4000)
