"""How transfers end, as far as Analytics counts it."""

from __future__ import annotations

from datetime import datetime

from oyez import Event


class TransferCompleted(Event, type="bank.transfer.completed", key="transfer_id"):
    """The money has moved."""

    transfer_id: str
    country: str
    cents: int
    at: datetime


class TransferRefused(Event, type="bank.transfer.refused", key="transfer_id"):
    """The money is where it was."""

    transfer_id: str
    country: str
    at: datetime
