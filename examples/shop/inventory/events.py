"""The events that Inventory announces, and those of others that it follows."""

from __future__ import annotations

import msgspec

from oyez import Command, Event


class Line(msgspec.Struct, frozen=True):
    """So many pieces of one article."""

    sku: str
    quantity: int


class OrderPlaced(Event, type="shop.order.placed", key="order_id"):
    """Goods are wanted."""

    order_id: str
    lines: list[Line]


class Release(Command, type="shop.stock.release", key="order_id", to="inventory"):
    """The goods are not wanted any more."""

    order_id: str


class ShipmentReady(Event, type="shop.shipment.ready", key="order_id"):
    """The goods have left."""

    order_id: str


class StockReserved(Event, type="shop.stock.reserved", key="order_id"):
    """Every line of the order is reserved."""

    order_id: str


class StockReleased(Event, type="shop.stock.released", key="order_id"):
    """Nothing is reserved for the order, and nothing will be."""

    order_id: str


class StockRejected(Event, type="shop.stock.rejected", key="order_id"):
    """Nothing is reserved: ``sku`` is not in stock in the quantity wanted."""

    order_id: str
    sku: str
