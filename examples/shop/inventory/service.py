"""Inventory reserves all lines of an order or none, and lets go of them when the order ends."""

from __future__ import annotations

from inventory.events import (
    OrderPlaced,
    Release,
    ShipmentReady,
    StockRejected,
    StockReleased,
    StockReserved,
)
from oyez import Service, Transaction

service = Service("inventory", migrations="inventory/migrations")


@service.on(OrderPlaced)
async def reserve(event: OrderPlaced, tx: Transaction) -> StockReserved | StockRejected:
    """Reserve every line, or say which article is missing."""
    for line in event.lines:
        stock = await tx.fetch_one("select free from stock where sku = :sku", sku=line.sku)
        if stock is None or stock["free"] < line.quantity:
            tx.execute(
                "insert into reservation values (:order_id, 'rejected')", order_id=event.order_id
            )
            return StockRejected(order_id=event.order_id, sku=line.sku)
    tx.execute("insert into reservation values (:order_id, 'reserved')", order_id=event.order_id)
    for line in event.lines:
        tx.execute(
            """update stock set free = free - :quantity, reserved = reserved + :quantity
              where sku = :sku""",
            sku=line.sku,
            quantity=line.quantity,
        )
        tx.execute(
            "insert into reservation_line values (:order_id, :sku, :quantity)",
            order_id=event.order_id,
            sku=line.sku,
            quantity=line.quantity,
        )
    return StockReserved(order_id=event.order_id)


@service.on(Release)
async def release(event: Release, tx: Transaction) -> StockReleased:
    """What was reserved for the order is free again; say so in any case, as Orders waits for it."""
    # A row for an order that was never reserved keeps a redriven event from doing so afterwards.
    released = await tx.fetch(
        """insert into reservation values (:order_id, 'released')
          on conflict (order_id) do update set state = 'released'
          where reservation.state = 'reserved' returning order_id""",
        order_id=event.order_id,
    )
    if released:
        for line in await _lines(tx, event.order_id):
            tx.execute(
                """update stock set reserved = reserved - :quantity, free = free + :quantity
                  where sku = :sku""",
                **line,
            )
    return StockReleased(order_id=event.order_id)


@service.on(ShipmentReady)
async def ship(event: ShipmentReady, tx: Transaction) -> None:
    """What was reserved for the order has left the house."""
    shipped = await tx.fetch(
        """update reservation set state = 'shipped' where order_id = :order_id
          and state = 'reserved' returning order_id""",
        order_id=event.order_id,
    )
    if shipped:
        for line in await _lines(tx, event.order_id):
            tx.execute(
                """update stock set reserved = reserved - :quantity, shipped = shipped + :quantity
                  where sku = :sku""",
                **line,
            )


async def _lines(tx: Transaction, order_id: str) -> list[dict[str, object]]:
    return await tx.fetch(
        "select sku, quantity from reservation_line where order_id = :order_id order by sku",
        order_id=order_id,
    )
