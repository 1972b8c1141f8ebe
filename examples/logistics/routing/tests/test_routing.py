"""When a round is planned anew, and which plan counts."""

from __future__ import annotations

from oyez.testing.sagas import given
from routing.events import (
    LegDelayed,
    ParcelDelivered,
    PlanMade,
    PlanWanted,
    RoundBooked,
    Stop,
    TourPlanned,
    VanFailed,
)
from routing.service import PAUSE, Round

STOPS = {f"p{n}": Stop(41.9 + n % 7 / 50, -87.9 + n % 5 / 50, 2, 0) for n in range(20)}
BOOKED = RoundBooked(
    round_id="r", depot="ORD", lat=41.98, lon=-87.9, vans=["a", "b", "c", "d"], stops=STOPS
)
LATE = LegDelayed(parcel_id="p1", round_id="r", ready=3600)


def made(version: int) -> PlanMade:
    return PlanMade(round_id="r", version=version, routes={"a": ["p0"]})


def test_whatever_happens_one_plan_is_wanted_in_a_pause() -> None:
    round_ = given(Round).when(BOOKED).then(says=[PlanWanted], wanted=1)
    round_.when(LATE, VanFailed(round_id="r", van="a")).then(says=[], vans=["b", "c", "d"])
    round_.after(PAUSE - 1).then(says=[])
    round_.after(1).then(says=[PlanWanted], wanted=2)
    assert [each.ready for each in round_.saga.stops.values()][:3] == [0, 3600, 0]
    round_.after(9 * PAUSE).then(says=[])
    round_.when(LATE).then(says=[PlanWanted], wanted=3)


def test_a_stale_plan_is_dropped() -> None:
    round_ = given(Round).when(BOOKED, LATE).after(PAUSE).then(says=[PlanWanted, PlanWanted])
    round_.when(made(1)).then(says=[], version=0)
    round_.when(made(2)).then(says=[TourPlanned], version=2)
    round_.when(made(2)).then(says=[], version=2)


def test_what_is_delivered_is_planned_no_more() -> None:
    done = ParcelDelivered(parcel_id="p0", round_id="r")
    round_ = given(Round).when(BOOKED, done, LATE).after(PAUSE)
    assert [len(each.stops) for each in round_._says] == [20, 19]
    rest = [ParcelDelivered(parcel_id=name, round_id="r") for name in STOPS if name != "p0"]
    round_.when(*rest).then(ends="driven")
