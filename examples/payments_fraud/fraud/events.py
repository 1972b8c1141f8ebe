"""What Fraud is asked, what it counts, and what it answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from oyez import Command, Event


class Screen(Command, type="bank.transfer.screen", key="transfer_id", to="fraud"):
    """Say whether this looks like fraud."""

    transfer_id: str
    source: str
    cents: int
    device: str
    country: str
    latitude: float
    longitude: float
    at: datetime


class TransferCounted(Event, type="bank.transfer.counted", key="source"):
    """A transfer, with what its device did around that time. In the order of its account."""

    source: str
    transfer: Screen
    burst: int
    """Transfers in a row from the device, no two of them ten minutes apart; with this one."""
    sharing: int
    """Accounts that they were made from."""


class TransferCleared(Event, type="bank.transfer.cleared", key="transfer_id"):
    """It looks like its customer's. The rest is the case: all that led to the decision."""

    transfer_id: str
    counted: TransferCounted
    number: int
    """The transfer's number among those of its account."""
    facts: dict[str, float]
    why: list[str]
    score: float
    model: int
    """The version of the model that was asked; 0 before there was one."""


class TransferFlagged(Event, type="bank.transfer.flagged", key="transfer_id"):
    """It looks like fraud. The rest is the case, as of one that is cleared."""

    transfer_id: str
    counted: TransferCounted
    number: int
    facts: dict[str, float]
    why: list[str]
    score: float
    model: int
    reason: str


class TransferReviewed(Event, type="bank.transfer.reviewed", key="transfer_id"):
    """The customer says whether it was fraud."""

    transfer_id: Annotated[str, Meta(min_length=1, max_length=40)]
    fraud: bool
