"""The board, the tours for drivers, and the page's stream."""

from __future__ import annotations

from map.events import ParcelDelivered, ParcelMoved, RoundBooked, RoundLoaded, TourPlanned
from map.service import Board, Rounds, service
from oyez.testing import Running


async def test_drivers_get_what_is_loaded_until_it_is_delivered(running: Running) -> None:
    stop = {"parcel_id": "p", "lat": 42.0, "lon": -88.0, "weight": 1}
    booked = RoundBooked(round_id="r", depot="ORD", lat=41.98, lon=-87.9, stops=[stop])
    moved = ParcelMoved(parcel_id="p", round_id="r", stage="arrived", at=1)
    plan = [{"van": "a", "parcels": ["p"]}]
    async with running(service) as system, system.http("map") as client:
        assert (await client.get("/parcels/p")).status_code == 404
        await system.publish(booked, service="gateway")
        await system.publish(moved, service="tracking")
        for version in (1, 2):
            tour = TourPlanned(round_id="r", version=version, routes=plan)
            await system.publish(tour, service="routing")
        await system.settled()
        assert (await client.get("/tours")).json() == []
        await system.publish(RoundLoaded(round_id="r"), service="warehouse")
        await system.settled()
        expected = {"round_id": "r", "version": 2, "routes": plan}
        assert (await client.get("/tours")).json() == [expected]
        assert (await client.get("/parcels/p")).json()["stage"] == "arrived"
        done = ParcelMoved(parcel_id="p", round_id="r", stage="delivered", at=2)
        for event in (done, ParcelDelivered(parcel_id="p")):
            await system.publish(event, service="tracking")
        await system.settled()
        assert (await client.get("/tours")).json() == []
        row = await service.read(Board, "p")
        assert (row.stage, row.delivered, row.strayed) == ("delivered", 1, 0)


def test_what_should_not_be_is_counted() -> None:
    row = Board(parcel_id="p", stage="delivered")
    row.moved(ParcelMoved(parcel_id="p", round_id="r", stage="arrived", at=3))
    assert row.strayed == 1
    round_ = Rounds(round_id="r", version=2)
    round_.planned(TourPlanned(round_id="r", version=2, routes=[]))
    assert round_.shrunk == 1
