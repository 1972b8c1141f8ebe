"""What Fraud is asked, what it counts, and what it answers."""

from __future__ import annotations

from datetime import datetime

from oyez import Command, Event


class Payment(Event, key="transfer_id"):
    """What is known of a transfer; ``place`` is its latitude and its longitude."""

    transfer_id: str
    source: str
    cents: int
    device: str
    country: str
    place: tuple[float, float]
    at: datetime


class Screen(Payment, Command, type="bank.transfer.screen", to="fraud"):
    """Say whether this looks like fraud."""


class TransferCounted(Payment, type="bank.transfer.counted", key="source"):
    """A transfer, with what its device did around that time. In the order of its account."""

    burst: int
    """Transfers in a row from the device, no two of them ten minutes apart; with this one."""
    sharing: int
    """Accounts that they were made from."""


class Case(TransferCounted, key="transfer_id"):
    """A decision, with all that led to it."""

    number: int
    """The transfer's number among those of its account."""
    facts: dict[str, float]
    reason: str
    score: float
    model: int
    """The version of the model that was asked; 0 before there was one."""


class TransferCleared(Case, type="bank.transfer.cleared"):
    """It looks like its customer's."""


class TransferFlagged(Case, type="bank.transfer.flagged"):
    """It looks like fraud."""


class TransferReviewed(Event, type="bank.transfer.reviewed", key="transfer_id"):
    """The customer says whether it was fraud."""

    transfer_id: str
    fraud: bool
