"""Inventory alone: all lines or none, and free + reserved + shipped stays what it was."""

from __future__ import annotations

from inventory.events import (
    Line,
    OrderPlaced,
    Release,
    ShipmentReady,
    StockRejected,
    StockReleased,
    StockReserved,
)
from inventory.service import service
from oyez.testing import Running, System


async def cloaks(system: System) -> tuple[int, int, int]:
    (row,) = await system.fetch(
        "inventory", "select free, reserved, shipped from stock where sku = 'cloak'"
    )
    return row["free"], row["reserved"], row["shipped"]


def placed(order_id: str, quantity: int) -> OrderPlaced:
    lines = [Line(sku="bell", quantity=1), Line(sku="cloak", quantity=quantity)]
    return OrderPlaced(order_id=order_id, lines=lines)


async def test_reserved_then_shipped(running: Running) -> None:
    async with running(service) as system:
        await system.publish(placed("1", 5), service="orders")
        await system.settled()
        assert system.announced(StockReserved) == [StockReserved(order_id="1")]
        assert await cloaks(system) == (20, 5, 0)
        for _ in range(2):
            await system.publish(ShipmentReady(order_id="1"), service="shipping")
        await system.settled()
        assert await cloaks(system) == (20, 0, 5)


async def test_reserved_then_released_once(running: Running) -> None:
    async with running(service) as system:
        await system.publish(placed("1", 5), service="orders")
        for _ in range(2):
            await system.publish(Release(order_id="1"), service="orders")
        await system.settled()
        assert await cloaks(system) == (25, 0, 0)
        assert system.announced(StockReleased) == [StockReleased(order_id="1")] * 2


async def test_what_was_never_reserved_is_released_too(running: Running) -> None:
    """Who asks for it waits for the answer; and it is not reserved afterwards."""
    async with running(service) as system:
        await system.publish(Release(order_id="1"), service="orders")
        await system.settled()
        assert system.announced(StockReleased) == [StockReleased(order_id="1")]
        await system.publish(placed("1", 5), service="orders")
        await system.advance(3_600.0)
        assert await cloaks(system) == (25, 0, 0)
        assert [row["handler"] for row in await system.dead("inventory")] == ["reserve"]


async def test_a_line_that_is_missing_rejects_the_whole_order(running: Running) -> None:
    async with running(service) as system:
        await system.publish(placed("1", 26), service="orders")
        await system.settled()
        assert system.announced(StockRejected) == [StockRejected(order_id="1", sku="cloak")]
        reserved = await system.fetch("inventory", "select sum(reserved) as n from stock")
        assert reserved == [{"n": 0}]


async def test_the_last_pieces_go_to_one_of_many(running: Running) -> None:
    async with running(service) as system:
        for number in range(30):
            await system.publish(placed(str(number), 10), service="orders")
        await system.settled()
        assert len(system.announced(StockReserved)) == 2
        assert len(system.announced(StockRejected)) == 28
        assert await cloaks(system) == (5, 20, 0)
