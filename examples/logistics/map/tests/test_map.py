"""The board, the tours for drivers, and the page's stream."""

from __future__ import annotations

import msgspec

from map.events import EtaPredicted, ParcelMoved, RoundBooked, RoundLoaded, TourPlanned
from map.service import board, service
from oyez.testing import Running


async def test_drivers_get_what_is_loaded_until_it_is_delivered(running: Running) -> None:
    stops = {"p": {"lat": 42.0, "lon": -88.0, "weight": 1}}
    booked = RoundBooked(round_id="r", depot="ORD", lat=41.98, lon=-87.9, stops=stops)
    moved = ParcelMoved(parcel_id="p", round_id="r", stage="arrived", at=1)
    plan = {"a": ["p"]}
    async with running(service) as system, system.http("map") as client:
        assert (await client.get("/parcels/p")).status_code == 404
        await system.publish(EtaPredicted(parcel_id="p", round_id="r", eta=7), service="tracking")
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
        row = {"parcel_id": "p", "round_id": "r", "stage": "arrived", "at": 1, "eta": 7}
        assert (await client.get("/parcels/p")).json() == row
        done = ParcelMoved(parcel_id="p", round_id="r", stage="delivered", at=2)
        await system.publish(done, service="tracking")
        await system.settled()
        assert (await client.get("/tours")).json() == []
        assert (await client.get("/parcels/p")).json()["stage"] == "delivered"


async def test_the_page_is_sent_the_whole_picture(running: Running) -> None:
    booked = RoundBooked(round_id="r", depot="ORD", lat=41.98, lon=-87.9, stops={})
    async with running(service) as system:
        await system.publish(booked, service="gateway")
        for name, stage in (("p", "arrived"), ("q", "delivered")):
            moved = ParcelMoved(parcel_id=name, round_id="r", stage=stage, at=1)
            await system.publish(moved, service="tracking")
        tour = TourPlanned(round_id="r", version=2, routes={"a": ["p"]})
        await system.publish(tour, service="routing")
        await system.settled()
        shown = msgspec.json.decode(msgspec.json.encode(await board()))
        place = {"lat": 41.98, "lon": -87.9}
        assert shown == {
            "stages": {"arrived": 1, "delivered": 1},
            "depots": [{"depot": "ORD", **place, "parcels": 2, "delivered": 1}],
            "tours": [{"round_id": "r", **place, "version": 2, "stops": {}, "routes": tour.routes}],
        }
