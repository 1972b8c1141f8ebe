"""The planner: PyVRP, by a seed and a number of iterations, so that it repeats itself.

PyVRP is chosen over OR-Tools, which is general and many times as large: it is made for this one
problem, and knows vans, capacities, and parcels that are not there yet.
"""

from __future__ import annotations

import math
import zlib
from itertools import permutations

from routing.events import PlanWanted, Stop

CAPACITY = 20
"""What a van carries, in the unit of a stop's weight."""
ITERATIONS = 60
SPEED = 8
"""Metres a second."""


def plan(wanted: PlanWanted) -> dict[str, list[str]]:
    """Return the parcels of each van, soonest and shortest. Raises ValueError without any tours."""
    from pyvrp import Model  # its arrays cost a process 150 ms: only where tours are computed
    from pyvrp.stop import MaxIterations

    model, parcels, stops = Model(), list(wanted.stops), list(wanted.stops.values())
    degree = math.tau * 6_371_000 / 360
    narrow = degree * math.cos(math.radians(wanted.lat))
    wheres: list[PlanWanted | Stop] = [wanted, *stops]
    places = [model.add_location(at.lon * narrow, at.lat * degree) for at in wheres]
    depot = model.add_depot(places[0])
    first = min(stop.ready for stop in stops)
    for stop, place in zip(stops, places[1:], strict=True):
        model.add_client(place, delivery=stop.weight, release_time=stop.ready - first)
    for van in wanted.vans:
        model.add_vehicle_type(1, CAPACITY, depot, depot, unit_duration_cost=1, name=van)
    for one, other in permutations(places, 2):
        metres = round(math.dist((one.x, one.y), (other.x, other.y)))
        model.add_edge(one, other, metres, metres // SPEED)
    seed = zlib.crc32(f"{wanted.round_id}/{wanted.version}".encode())
    best = model.solve(MaxIterations(ITERATIONS), seed, collect_stats=False, display=False).best
    if not best.is_feasible():
        raise ValueError(f"{wanted.round_id}: no tours for {len(stops)} stops")
    return {
        wanted.vans[route.vehicle_type()]: [parcels[each.idx] for each in route if each.is_client()]
        for route in best.routes()
    }
