"""What each customer has ordered: a read copy of the shop's own announcements."""

from __future__ import annotations

from orders.events import OrderCancelled, OrderConfirmed, OrderPlaced, ShipmentReady
from oyez import View, applies


class CustomerOrders(View, table="customer_orders", key="order_id", index=("customer",)):
    """One row for each order."""

    order_id: str
    customer: str = ""
    total_cents: int = 0
    status: str = "placed"

    @applies
    def placed(self, event: OrderPlaced) -> None:
        """Whose it is, and what it costs."""
        self.take(event)

    @applies
    def confirmed(self, event: OrderConfirmed) -> None:
        """Confirmed, unless it has been shipped: that is told on a stream of its own."""
        if self.status == "placed":
            self.status = "confirmed"

    @applies
    def shipped(self, event: ShipmentReady) -> None:
        """The parcel has left."""
        self.status = "shipped"

    @applies
    def cancelled(self, event: OrderCancelled) -> None:
        """It will not be shipped."""
        self.status = "cancelled"
