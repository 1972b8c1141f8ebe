"""Shipping alone: the three facts in every order, and not without one of them."""

from __future__ import annotations

from itertools import permutations

import pytest

from oyez.testing import Running
from shipping.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentProcessed,
    ShipmentReady,
)
from shipping.service import service

FACTS = (OrderPlaced, PaymentProcessed, OrderConfirmed)


@pytest.mark.parametrize("order", list(permutations(FACTS)))
async def test_it_ships_once_after_all_three_in_any_order(
    running: Running, order: tuple[type, ...]
) -> None:
    async with running(service) as system:
        for number, cls in enumerate(order):
            assert system.announced(ShipmentReady) == []
            await system.publish(cls(order_id="1"), service=f"other-{number}")
            await system.settled()
        assert [ready.order_id for ready in system.announced(ShipmentReady)] == ["1"]


@pytest.mark.parametrize("missing", FACTS)
async def test_it_does_not_ship_when_one_is_missing(running: Running, missing: type) -> None:
    async with running(service) as system:
        for cls in FACTS:
            if cls is not missing:
                await system.publish(cls(order_id="1"))
        await system.settled()
        assert system.announced(ShipmentReady) == []


async def test_a_cancelled_parcel_stays(running: Running) -> None:
    async with running(service) as system:
        for cls in (OrderPlaced, OrderCancelled, PaymentProcessed, OrderConfirmed):
            await system.publish(cls(order_id="1"))
        await system.settled()
        assert system.announced(ShipmentReady) == []
