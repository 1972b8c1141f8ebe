"""Desk takes orders, and its saga follows each until its money is booked."""

from __future__ import annotations

import asyncio

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from oyez import Command, Event, Saga, Service, Transaction
from oyez.saga import Failed, end, starts, step

YEAR = 365 * 86_400.0


class OrderPlaced(Event, type="books.order.placed", key="order_id"):
    order_id: str
    cents: int


class Charge(Command, type="books.order.charge", key="order_id", to="till"):
    order_id: str
    cents: int


class Charged(Event, type="books.order.charged", key="order_id"):
    order_id: str
    cents: int


class Booked(Event, type="books.order.booked", key="order_id"):
    order_id: str


class OrderClosed(Event, type="books.order.closed", key="order_id"):
    order_id: str
    cents: int


async def place(request: Request) -> Response:
    """``POST /orders/FIRST/COUNT``: so many orders, each a transaction of its own."""
    first, count = (int(request.path_params[name]) for name in ("first", "count"))
    numbers = range(first, first + count)
    await asyncio.gather(*(_place(f"{number:06}", 100 + number) for number in numbers))
    return JSONResponse({"placed": count}, status_code=202)


async def _place(order_id: str, cents: int) -> None:
    async with service.transaction() as tx:
        tx.execute("insert into placed values (:order_id, :cents)", order_id=order_id, cents=cents)
        tx.publish(OrderPlaced(order_id=order_id, cents=cents))


service = Service(
    "desk",
    http=Starlette(routes=[Route("/orders/{first:int}/{count:int}", place, methods=["POST"])]),
    migrations="desk/migrations",
    publishes=(OrderPlaced,),
)


@service.saga
class Sale(Saga, key="order_id", ends=("closed", "cancelled")):
    """An order is charged, then booked."""

    order_id: str = ""
    cents: int = 0

    @starts
    def placed(self, event: OrderPlaced) -> None:
        self.take(event)

    @step(done=Charged, within=YEAR)
    def charge(self) -> Charge:
        return self.make(Charge)

    @step(done=Booked, within=YEAR, after=(charge,), pivot=True)
    def book(self) -> None:
        """Ledger does so for every charge."""

    @end("closed")
    def closed(self) -> OrderClosed:
        return self.make(OrderClosed)

    @end("cancelled")
    def cancelled(self, why: Failed) -> None:
        """Nothing declines: an order that ends here is missing in the books."""


@service.on(OrderClosed)
def close(event: OrderClosed, tx: Transaction) -> None:
    """A second close of an order would fail, and be a dead letter."""
    tx.execute(
        "insert into closed values (:order_id, :cents)", order_id=event.order_id, cents=event.cents
    )
