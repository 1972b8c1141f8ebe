"""Dashboard alone: the last word of each sensor, and the windows that a chart shows."""

from __future__ import annotations

from dashboard.events import (
    AlertCleared,
    AlertRaised,
    MinuteMeasured,
    ReadingAccepted,
    SensorHeard,
    SensorSilent,
    TenMeasured,
)
from dashboard.service import Sensors, fleet, service
from oyez.testing import Running


def test_the_newest_reading_stays() -> None:
    row = Sensors(sensor_id="s.1")
    for at, celsius in ((5.0, 20.0), (9.0, 21.0), (7.0, 30.0)):
        where = {"site_id": "s", "sensor_id": "s.1"}
        row.read(ReadingAccepted(**where, measured_at=at, celsius=celsius))
    assert (row.celsius, row.measured_at, row.readings) == (21.0, 9.0, 3)


async def test_the_page_shows_sites_trouble_and_curves(running: Running) -> None:
    async with running(service) as system:
        for number in (1, 2):
            where = {"site_id": "s", "sensor_id": f"s.{number}"}
            await system.publish(ReadingAccepted(**where, measured_at=1.0, celsius=10.0 * number))
        for start in (20.0, 10.0):
            window = {"start": start, "readings": 1, "mean": 20.0}
            await system.publish(TenMeasured(sensor_id="s.1", highest=20.0, **window))
            await system.publish(MinuteMeasured(site_id="s", median=20.0, p95=20.0, **window))
        await system.publish(AlertRaised(sensor_id="s.1", number=1), service="alerts")
        await system.publish(SensorSilent(sensor_id="s.2"), service="alerts")
        await system.settled()
        shown = await fleet()
        assert (shown["sensors"], shown["readings"]) == (2, 2)
        site = {"site_id": "s", "sensors": 2, "readings": 2, "hot": 1, "silent": 1, "celsius": 15.0}
        assert shown["sites"] == [site]
        assert [each["sensor_id"] for each in shown["trouble"]] == ["s.1", "s.2"]
        async with system.http("dashboard") as client:
            for path in ("sensors/s.1", "sites/s"):
                windows = (await client.get(f"/fleet/{path}")).json()["windows"]
                assert [each["start"] for each in windows] == [10.0, 20.0]
            assert (await client.get("/fleet/tables/x")).status_code == 404
        await system.publish(AlertCleared(sensor_id="s.1"), service="alerts")
        await system.publish(SensorHeard(sensor_id="s.2"), service="alerts")
        await system.settled()
        shown = await fleet()
        (site,) = shown["sites"]
        assert (site["hot"], site["silent"]) == (0, 0)
        # What was too warm stays in sight; what is merely heard again does not.
        assert [(each["sensor_id"], each["hot"]) for each in shown["trouble"]] == [("s.1", 0)]
