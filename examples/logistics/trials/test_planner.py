"""What PyVRP makes of a round, and that a round is planned anew."""

from __future__ import annotations

import pytest

from oyez.testing import Running
from routing.events import PlanWanted, RoundBooked, Stop, TourPlanned, VanFailed
from routing.planner import CAPACITY, plan
from routing.service import PAUSE, service

STOPS = {f"p{n}": Stop(41.9 + n % 7 / 50, -87.9 + n % 5 / 50, 2, 0) for n in range(20)}
BOOKED = RoundBooked(
    round_id="r", depot="ORD", lat=41.98, lon=-87.9, vans=["a", "b", "c", "d"], stops=STOPS
)


async def test_tours_visit_each_stop_once_and_carry_what_they_can(running: Running) -> None:
    async with running(service) as system:
        await system.publish(BOOKED, service="gateway")
        await system.settled()
        await system.publish(VanFailed(round_id="r", van="a"), service="gateway")
        await system.settled()
        await system.advance(PAUSE)
        first, second = system.announced(TourPlanned)
        assert (first.version, second.version) == (1, 2)
        for tour in (first, second):
            stops = [parcel for parcels in tour.routes.values() for parcel in parcels]
            assert sorted(stops) == sorted(STOPS)
            assert max(map(len, tour.routes.values())) * 2 <= CAPACITY
        assert "a" not in second.routes


def test_a_plan_repeats_itself_and_one_that_can_not_be_is_refused() -> None:
    wanted = PlanWanted(
        round_id="r", version=1, lat=41.98, lon=-87.9, vans=BOOKED.vans, stops=STOPS
    )
    assert plan(wanted) == plan(wanted)
    alone = PlanWanted(round_id="r", version=1, lat=41.98, lon=-87.9, vans=["a"], stops=STOPS)
    with pytest.raises(ValueError, match="r: no tours for 20 stops"):
        plan(alone)
