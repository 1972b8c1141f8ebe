"""Orders follows each order from placed to shipped or cancelled, and says so once.

Payments, Inventory and Shipping act on an order by themselves, so the saga asks for nothing on the
way there. It waits for their answers, each within a time, confirms the order, and asks for what has
to be undone if it can't be kept.

With ``SHOP_REVIEW=1`` an order is not confirmed before a fraud check has cleared it or, where it
was flagged, a clerk has approved it. The fraud check is no service of this system: nothing here
asks it or knows it, only the types of what it says.
"""

from __future__ import annotations

import os

from orders.events import (
    CancellationAsked,
    OrderApproved,
    OrderCancelled,
    OrderCleared,
    OrderConfirmed,
    OrderFlagged,
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    PaymentUnavailable,
    PaymentVoided,
    Refund,
    Release,
    ShipmentReady,
    StockRejected,
    StockReleased,
    StockReserved,
)
from orders.history import CustomerOrders
from orders.http import app
from oyez import Context, Saga, Service, Transaction
from oyez.saga import Failed, end, on, starts, step

service = Service(
    "orders",
    http=app,
    migrations="orders/migrations",
    publishes=(OrderPlaced, CancellationAsked, OrderApproved),
)
app.state.service = service
service.view(CustomerOrders)

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
REVIEW = ("review",) if os.environ.get("SHOP_REVIEW") == "1" else ()
"""The step in which an order waits for a fraud check, if there is one."""


@service.saga(allow={"E09": "a review leaves nothing to undo"} if REVIEW else {})
class Fulfilment(Saga, key="order_id", ends=("shipped", "cancelled")):
    """An order on its way.

    What is undone first is what was asked last: the goods are free at once, while a provider that
    is out of reach may take hours to give the money back.
    """

    order_id: str

    @starts
    def placed(self, event: OrderPlaced) -> None:
        """Stock is reserved, and the money charged, at the same time."""

    @step(done=PaymentProcessed, failed=PaymentFailed, within=15 * MINUTE)
    def charge(self) -> None:
        """Payments does so for every order."""

    @charge.undo(done=(PaymentRefunded, PaymentVoided), within=6 * HOUR)
    def refund(self) -> Refund:
        """Give the money back, also where nobody knows whether it was taken."""
        return self.make(Refund)

    @step(done=StockReserved, failed=StockRejected, within=15 * MINUTE, after=())
    def reserve(self) -> None:
        """Inventory does so for every order."""

    @reserve.undo(done=StockReleased, within=15 * MINUTE)
    def release(self) -> Release:
        """Others may have the goods."""
        return self.make(Release)

    if REVIEW:

        @step(done=(OrderCleared, OrderApproved), within=2 * DAY, after=())
        def review(self) -> None:
            """A fraud check looks at every order, and a clerk at those that it flags."""

    @step(done=ShipmentReady, within=2 * DAY, after=(reserve, charge, *REVIEW), pivot=True)
    def ship(self) -> OrderConfirmed:
        """Paid for and in stock: from here on, nothing is undone."""
        return self.make(OrderConfirmed)

    @on(PaymentUnavailable)
    def give_up(self, event: PaymentUnavailable) -> None:
        """Nobody knows whether the money was taken."""
        self.ending("cancelled", "payment_unavailable")

    @on(CancellationAsked)
    def withdraw(self, event: CancellationAsked) -> None:
        """The shop does not want to keep it. Once it is confirmed, that changes nothing."""
        self.ending("cancelled", "withdrawn")

    @end("shipped")
    def shipped(self) -> None:
        """Shipping has said so."""

    @end("cancelled")
    def cancelled(self, why: Failed) -> OrderCancelled:
        """All is undone."""
        reason = "out_of_stock" if why.step == "reserve" else why.reason
        return self.make(OrderCancelled, reason=reason)


Fact = (
    StockReserved
    | StockReleased
    | PaymentProcessed
    | OrderFlagged
    | OrderApproved
    | OrderConfirmed
    | ShipmentReady
    | OrderCancelled
    | PaymentRefunded
    | PaymentVoided
)
STAGES: dict[type, str] = {
    StockReserved: "reserved",
    StockReleased: "released",
    PaymentProcessed: "paid",
    OrderFlagged: "flagged",
    OrderApproved: "approved",
    OrderConfirmed: "confirmed",
    ShipmentReady: "shipped",
    OrderCancelled: "cancelled",
    PaymentRefunded: "refunded",
    PaymentVoided: "voided",
}
_FLAGS = {
    stage: f"update orders set {stage} = 1 where order_id = :order_id"
    for stage in ("reserved", "paid", "flagged", "approved", "confirmed", "shipped", "cancelled")
}
_FLAGS["released"] = "update orders set reserved = 0 where order_id = :order_id"


@service.on(*STAGES)
async def show(event: Fact, tx: Transaction, context: Context) -> None:
    """Write down what happened, for the order's page."""
    stage = STAGES[type(event)]
    if stage in _FLAGS:
        tx.execute(_FLAGS[stage], order_id=event.order_id)
    if isinstance(event, OrderCancelled):
        sql = "update orders set reason = :reason where order_id = :order_id"
        tx.execute(sql, order_id=event.order_id, reason=event.reason)
    tx.execute(
        """insert into order_history (order_id, stage, at) values (:order_id, :stage, :at)
          on conflict (order_id, stage) do nothing""",
        order_id=event.order_id,
        stage=stage,
        at=context.envelope.time or tx.time,
    )
