"""What a transfer's saga hears, asks and tells."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from oyez import Command, Event

Name = Annotated[str, Meta(min_length=1, max_length=40)]


class TransferRequested(Event, type="bank.transfer.requested", key="transfer_id"):
    """A customer wants to send money; ``at`` is when, by the customer's own device."""

    transfer_id: Name
    source: Name
    target: Name
    cents: Annotated[int, Meta(gt=0, le=1_000_000_000)]
    device: Name
    country: Annotated[str, Meta(min_length=2, max_length=2)]
    latitude: Annotated[float, Meta(ge=-90, le=90)]
    longitude: Annotated[float, Meta(ge=-180, le=180)]
    at: datetime


class HoldFunds(Command, type="bank.funds.hold", key="transfer_id", to="accounts"):
    """Keep the money."""

    transfer_id: str
    source: str
    target: str
    cents: int


class ReleaseFunds(Command, type="bank.funds.release", key="transfer_id", to="accounts"):
    """Keep it no more."""

    transfer_id: str


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


class PostTransfer(Command, type="bank.transfer.post", key="transfer_id", to="accounts"):
    """Move it."""

    transfer_id: str


class FundsHeld(Event, type="bank.funds.held", key="transfer_id"):
    """The money is held."""

    transfer_id: str


class FundsShort(Event, type="bank.funds.short", key="transfer_id"):
    """There is not enough."""

    transfer_id: str
    reason: str


class FundsReleased(Event, type="bank.funds.released", key="transfer_id"):
    """It is free again."""

    transfer_id: str


class TransferCleared(Event, type="bank.transfer.cleared", key="transfer_id"):
    """It looks like its customer's."""

    transfer_id: str


class TransferFlagged(Event, type="bank.transfer.flagged", key="transfer_id"):
    """It looks like fraud, for this ``reason``."""

    transfer_id: str
    reason: str


class TransferPosted(Event, type="bank.transfer.posted", key="transfer_id"):
    """It is booked."""

    transfer_id: str


class TransferCompleted(Event, type="bank.transfer.completed", key="transfer_id"):
    """The money has moved."""

    transfer_id: str
    country: str
    cents: int
    at: datetime


class TransferRefused(Event, type="bank.transfer.refused", key="transfer_id"):
    """The money is where it was, for this ``reason``."""

    transfer_id: str
    country: str
    cents: int
    at: datetime
    reason: str
