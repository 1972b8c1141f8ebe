"""How transfers end, as far as Analytics counts it."""

from __future__ import annotations

from datetime import datetime

from oyez import Event


class Ended(Event, key="transfer_id"):
    """A transfer has ended."""

    transfer_id: str
    country: str
    at: datetime


class TransferCompleted(Ended, type="bank.transfer.completed"):
    """The money has moved."""

    cents: int


class TransferRefused(Ended, type="bank.transfer.refused"):
    """The money is where it was."""
