"""What a landed flight teaches of the next one."""

from __future__ import annotations

from eta.events import EtaPredicted, LegSeen
from eta.service import Prediction, RouteDelay, service
from oyez.testing import Running


def leg(parcel: str, late: int, landed: int) -> LegSeen:
    return LegSeen(parcel_id=parcel, route="JFK-ORD", lands=4000, late=late, landed=landed)


async def test_a_route_that_loses_time_is_expected_to(running: Running) -> None:
    async with running(service) as system:
        for event in (leg("a", 0, 0), leg("a", 0, 4300), leg("b", 60, 4260), leg("c", 100, 0)):
            await system.publish(event, service="tracking")
            await system.settled()
        assert [each.eta for each in system.announced(EtaPredicted)] == [4000, 4000 + 100 + 250]
        assert await service.read(RouteDelay, "JFK-ORD") == RouteDelay(
            route="JFK-ORD", flown=2, lost=500
        )
        row = await service.read(Prediction, "a")
        assert row == Prediction(parcel_id="a", eta=4000, lands=4000, landed=4300)
