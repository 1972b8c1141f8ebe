"""What the sensors do: a plan that a seed decides, and the sending of it.

The temperatures are the hours of San Francisco in 2010 (vega-datasets), each site at another hour;
what is the sensor's own is made up. So are the planted faults, which have to be found: heat waves,
sensors that fall silent, readings that come late, twice or broken. Time runs many times as fast as
the clock, and ends now: windows go by the time of the readings and do not mind.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from trial import Gateway

TYPE = "iot.reading.sent"
SENSORS = 10_000
OF_A_SITE = 100
EVERY = 600.0
"""Seconds between two readings of a sensor."""
ROUNDS = 5
"""The readings of a sensor, at least: who falls silent after one is found before the end."""
WAVE = (0, 40, 70, 80, 100, 110, 130, 170)
HEAT = (None, 34.0, 34.0, 29.0, 29.0, 34.0, 34.0, None)
"""A heat wave: seconds, and degrees at them; it dips in between, which ends no alert."""
CHUNK = 2_000
"""Readings that are sent before any later one is."""


class Reading(NamedTuple):
    """A reading on its way: when it sets out, whose it is, its id and its data."""

    sets_out: float
    site: str
    id: str
    data: dict[str, Any]


class Plan(msgspec.Struct):
    """All readings in the order in which they are sent, and what has to be found of them."""

    sites: list[str]
    sensors: int
    readings: list[Reading] = []
    good: set[tuple[str, int]] = set()
    delayed: set[tuple[str, int]] = set()
    waves: dict[str, int] = {}
    silent: set[str] = set()
    repeated: int = 0
    broken: int = 0


def make_plan(events: int, seed: int, end: float) -> Plan:
    """Return a plan of about ``events`` readings that ends at a time, in seconds since 1970."""
    import numpy as np
    from vega_datasets import data

    chance = random.Random(seed)
    hours = (data.sf_temps()["temp"].to_numpy() - 32) / 1.8
    axis = np.arange(len(hours))
    sensors = max(OF_A_SITE, min(SENSORS, events // ROUNDS // OF_A_SITE * OF_A_SITE))
    span = EVERY * max(ROUNDS, events // sensors)
    plan = Plan(sites=[f"site-{n:03}" for n in range(sensors // OF_A_SITE)], sensors=sensors)
    names = [f"{plan.sites[n // OF_A_SITE]}.{n % OF_A_SITE:02}" for n in range(sensors)]
    odd = chance.sample(names, max(2, sensors // 200) + max(2, sensors // 250))
    plan.silent = set(odd[: max(2, sensors // 200)])
    plan.waves = {name: chance.randint(1, 2) for name in odd[len(plan.silent) :]}
    for index, name in enumerate(names):
        hour, own = index // OF_A_SITE * 60, chance.uniform(-1, 1)
        phase, first = chance.uniform(1, EVERY - 1), EVERY + chance.uniform(0, 1000)
        times = [phase + EVERY * each for each in range(round(span / EVERY))]
        if name in plan.silent:
            del times[chance.randint(1, 2) :]
        begins = [first + 400 * each for each in range(plan.waves.get(name, 0))]
        times += [begin + 5.0 * each for begin in begins for each in range(36)]
        for number, at in enumerate(sorted(times), 1):
            celsius = float(np.interp(hour + at / 3600, axis, hours)) + own
            for begin in begins:
                if begin <= at <= begin + WAVE[-1]:
                    heat = [celsius if each is None else each for each in HEAT]
                    celsius = float(np.interp(at - begin, WAVE, heat))
            told = {
                "site_id": plan.sites[index // OF_A_SITE],
                "sensor_id": name,
                "number": number,
                "measured_at": round(end - span + at, 3),
                "celsius": round(celsius + chance.uniform(-0.3, 0.3), 1),
            }
            _spoil(plan, chance, told, at < span - EVERY)
    plan.readings.sort()
    return plan


def _spoil(plan: Plan, chance: random.Random, told: dict[str, Any], early: bool) -> None:
    """Add a reading to the plan, with what may happen to it on its way."""
    name, number, lot = told["sensor_id"], told["number"], chance.random()
    # Only every other reading is lost: two in a row are taken for silence.
    may_fail = number % 2 == 0
    if may_fail and lot > 0.998:
        plan.broken += 1
        told["celsius"] = 999.9
    else:
        plan.good.add((name, number))
    sets_out = told["measured_at"]
    if lot < 0.01:
        sets_out += chance.uniform(0, 8)
    elif lot < 0.014 and may_fail and early:
        sets_out += 190
        plan.delayed.add((name, number))
    reading = Reading(sets_out, told["site_id"], f"{name}-{number}", told)
    plan.readings.append(reading)
    if 0.02 < lot < 0.025:
        again = lot < 0.0225  # else under the same id, of which no service sees the second
        plan.repeated += again
        more = reading._replace(sets_out=sets_out + 4, id=reading.id + "-again" * again)
        plan.readings.append(more)


async def send(
    plan: Plan, gateway: Gateway, publish: Callable[[str, list[bytes]], None] | None
) -> None:
    """Send all readings, in order and each until it is taken.

    ``publish`` sends those of a tenth of the sites, over MQTT.
    """
    turns = asyncio.Semaphore(16)

    async def of(site: str, readings: list[Reading]) -> None:
        if publish is not None and site.endswith("3"):
            lines = [msgspec.json.encode({"id": r.id, "data": r.data}) for r in readings]
            await asyncio.to_thread(publish, site, lines)
            return
        async with turns:
            told = [(TYPE, each.id, each.data) for each in readings]
            await gateway.post(site, told, source=f"/sites/{site}")

    async for part in gateway.parts(plan.readings, CHUNK):
        sites: dict[str, list[Reading]] = defaultdict(list)
        for reading in part:
            sites[reading.site].append(reading)
        await asyncio.gather(*(of(site, each) for site, each in sites.items()))
        gateway.sent(len(part))
