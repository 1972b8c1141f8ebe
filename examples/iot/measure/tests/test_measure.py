"""Measure alone: windows by the time of the readings, in any order that is not too late."""

from __future__ import annotations

from itertools import permutations

import pytest

from measure.events import MinuteMeasured, ReadingAccepted, ReadingLate, TenMeasured
from measure.service import percentile, service
from oyez.testing import Running, System


async def read(system: System, number: int, second: float, celsius: float, sensor: int = 1) -> None:
    where = {"site_id": "s", "sensor_id": f"s.{sensor}", "number": number}
    at = system.ambient.now() // 60 * 60 - 600 + second
    await system.publish(ReadingAccepted(**where, measured_at=at, celsius=celsius))
    await system.settled()


@pytest.mark.parametrize("order", list(permutations(((1, 20.0), (4, 22.5), (9, 21.0)))))
async def test_the_order_changes_nothing(
    running: Running, order: tuple[tuple[float, float], ...]
) -> None:
    async with running(service) as system:
        for number, (second, celsius) in enumerate(order):
            await read(system, number, second, celsius)
        await system.advance(80.0)
        (ten,) = system.announced(TenMeasured)
        assert (ten.readings, ten.mean, ten.highest) == (3, 63.5 / 3, 22.5)
        (minute,) = system.announced(MinuteMeasured)
        assert (minute.readings, minute.median, minute.p95) == (3, 21.0, 22.5)
        assert (minute.start, minute.heard) == (ten.start, ["s.1"])


async def test_each_key_has_its_own_clock(running: Running) -> None:
    async with running(service) as system:
        await read(system, 1, 30, 20.0, sensor=1)
        await read(system, 1, 200, 20.0, sensor=2)
        await read(system, 2, 25, 21.0, sensor=1)
        late = [
            (event.sensor_id, event.number, event.size) for event in system.announced(ReadingLate)
        ]
        assert late == [("s.1", 2, 60)]
        await system.advance(80.0)
        assert sum(event.readings for event in system.announced(TenMeasured)) == 3
        assert sum(event.readings for event in system.announced(MinuteMeasured)) == 2


@pytest.mark.parametrize(("share", "celsius"), [(0.0, 0.1), (0.5, 5.0), (0.95, 9.5), (1.0, 10.0)])
def test_percentiles_of_a_hundred(share: float, celsius: float) -> None:
    assert percentile(dict.fromkeys(range(1, 101), 1), share) == celsius
