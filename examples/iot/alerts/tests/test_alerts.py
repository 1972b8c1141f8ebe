"""Alerts alone: given these windows, when the next comes, then this is told."""

from __future__ import annotations

import pytest

from alerts.events import AlertCleared, AlertRaised, MinuteMeasured, SensorHeard, SensorSilent
from alerts.events import TenMeasured as Ten
from alerts.service import Site, Watch, service
from oyez.testing import Running


@pytest.mark.parametrize(
    ("given", "when", "then"),
    [
        ([], 31, None),
        ([31], 31, AlertRaised),
        ([31, 29], 31, None),
        ([31, 29, 31], 31, AlertRaised),
        ([30], 30, None),
        ([31, 31], 31, None),
        ([31, 31], 29, None),
        ([31, 31, 29, 31], 31, None),  # between the two bounds nothing changes
        ([31, 31], 28, None),
        ([31, 31], 27, AlertCleared),
        ([31, 31, 27], 27, None),
        ([31, 31, 27, 31], 31, AlertRaised),
    ],
)
def test_an_alert_has_two_bounds(given: list[float], when: float, then: type | None) -> None:
    watch = Watch.keyed("s.1")
    for at, mean in enumerate(given):
        watch.judge(float(at), mean)
    told = watch.judge(99.0, when)
    assert (told if told is None else type(told)) is then
    assert told is None or told.at == 99.0


def test_silence_shows_in_what_others_say() -> None:
    site = Site.keyed("s")
    assert list(site.judge(0.0, ["s.1", "s.2"])) == []
    assert list(site.judge(1500.0, ["s.2"])) == []
    assert list(site.judge(1560.0, ["s.2"])) == [SensorSilent(sensor_id="s.1", at=0.0)]
    assert list(site.judge(1620.0, ["s.2"])) == []
    assert list(site.judge(1680.0, ["s.1"])) == [SensorHeard(sensor_id="s.1", at=1680.0)]


async def test_a_crossing_is_kept_once(running: Running) -> None:
    async with running(service) as system:
        for at, mean in enumerate((20, 31, 31, 29, 31, 27, 20, 31, 31)):
            await system.publish(Ten(sensor_id="s.1", start=float(at), mean=mean))
        for at in (0.0, 1560.0):
            heard = ["s.1", "s.2"] if at == 0.0 else ["s.2"]
            await system.publish(MinuteMeasured(site_id="s", start=at, heard=heard))
        await system.settled()
        rows = await system.fetch("alerts", "select number, raised_at, cleared_at from alert")
        assert [tuple(row.values()) for row in rows] == [(1, 2.0, 5.0), (2, 8.0, None)]
        assert [event.at for event in system.announced(AlertRaised)] == [2.0, 8.0]
        assert [event.at for event in system.announced(AlertCleared)] == [5.0]
        silences = await system.fetch("alerts", "select sensor_id, ended_at from silence")
        assert silences == [{"sensor_id": "s.1", "ended_at": None}]
