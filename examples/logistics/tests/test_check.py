"""The checker finds each thing that can be wrong, and nothing where all is right."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product, starmap
from typing import Any, NamedTuple

import pytest
from trial import History

from check import judge
from flights import World
from routing.events import RoundBooked, Stop, TourPlanned
from tracking.events import ParcelDelivered, ParcelMoved, ParcelScanned
from warehouse.events import DockFreed, DockGiven, TaskAssigned, TaskDone

NAMES = ("a", "b", "c")
CAME = ParcelScanned(
    parcel_id="", round_id="r", stage="arrived", at=1060, route="", due=0, lands=400
)
STOPS = {name: Stop(0.0, 0.0, 10, 0) for name in NAMES}
BOOKED = RoundBooked(round_id="r", depot="ORD", lat=0.0, lon=0.0, vans=[], stops=STOPS)
WORLD = World({"r": BOOKED}, dict.fromkeys(NAMES, (CAME, CAME, CAME)))


class Found(NamedTuple):
    """What the board and history have."""

    board: list[dict[str, Any]]
    told: History


def moved(parcel: str, stage: str) -> ParcelMoved:
    return ParcelMoved(parcel_id=parcel, round_id="r", stage=stage, at=0)


def assigned(parcel: str, kind: str) -> TaskAssigned:
    return TaskAssigned(round_id="r", parcel_id=parcel, kind=kind, worker="w")


def done(parcel: str, kind: str) -> TaskDone:
    return TaskDone(round_id="r", parcel_id=parcel, kind=kind)


def given(round_id: str) -> DockGiven:
    return DockGiven(round_id=round_id, depot="ORD")


def freed(round_id: str) -> DockFreed:
    return DockFreed(round_id=round_id, depot="ORD")


def plan(version: int, *routes: list[str], done: tuple[str, ...] = ()) -> TourPlanned:
    made = {f"van-{number}": parcels for number, parcels in enumerate(routes)}
    return TourPlanned(round_id="r", version=version, routes=made, done=[*done])


def right() -> Found:
    tasks = [*product(NAMES, ("pick", "pack", "load"))]
    return Found(
        [{"parcel_id": name, "stage": "delivered", "eta": 1000} for name in NAMES],
        History(
            [
                *(moved(name, stage) for name in NAMES for stage in ("arrived", "delivered")),
                *(ParcelDelivered(parcel_id=name, round_id="r") for name in NAMES),
                *starmap(assigned, tasks),
                *starmap(done, tasks),
                *(
                    given("q"),
                    given("r"),
                    freed("q"),
                    given("s"),
                    freed("r"),
                    freed("s"),
                    freed("s"),
                ),
                *(plan(1, ["a", "b"], ["c"]), plan(3, ["b"], ["c"], done=("a",))),
            ]
        ),
    )


def test_what_is_right_is_right() -> None:
    assert list(judge(*right(), WORLD)) == []


def add(*events: Any) -> Callable[[Found], object]:
    return lambda found: found.told.extend(events)


def drop(event: Any) -> Callable[[Found], object]:
    return lambda found: found.told.remove(event)


def change(number: int, **values: Any) -> Callable[[Found], object]:
    return lambda found: found.board[number].update(values)


def guess(found: Found) -> None:
    for row in found.board:
        row["eta"] = 400


WRONG: dict[str, Callable[[Found], object]] = {
    "parcels on the board: 1 missing: ('b', 'delivered')": lambda found: found.board.pop(1),
    "parcels on the board: 1 unexpected: ('a', 'arrived')": change(0, stage="arrived"),
    "deliveries: 1 unexpected: ('a', 2)": add(ParcelDelivered(parcel_id="a", round_id="r")),
    "moves to the door: 1 unexpected: ('a', 2)": add(
        moved("a", "arrived"), moved("a", "delivered")
    ),
    "tasks assigned: 1 unexpected: (('a', 'pick'), 2)": add(assigned("a", "pick")),
    "tasks done: 1 missing: (('c', 'load'), 1)": drop(done("c", "load")),
    "depots that used more docks than they have: 1 unexpected: ORD": drop(freed("q")),
    "depots with docks in use: 1 unexpected: ORD": add(given("t")),
    "rounds with a stop on two routes: 1 unexpected: r": add(plan(4, ["a", "b"], ["c", "a"])),
    "rounds with a van that carries too much: 1 unexpected: r": add(plan(4, ["a", "b", "c"])),
    "rounds with a stop too few or too many: 1 unexpected: r": add(plan(4, ["a"], done=("b",))),
    "rounds with a version that did not grow: 1 unexpected: r": add(plan(3, ["a", "b"], ["c"])),
    "rounds with no plan: 1 unexpected: r": lambda found: found.told.__delitem__(slice(-2, None)),
    "predictions are off by 11.0, the timetable by 11.0": guess,
}


@pytest.mark.parametrize("problem", WRONG)
def test_what_is_wrong_is_found(problem: str) -> None:
    found = right()
    WRONG[problem](found)
    assert problem in list(judge(*found, WORLD))
