"""What a transfer's saga hears, asks and tells."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from oyez import Command, Event

Name = Annotated[str, Meta(min_length=1, max_length=40)]
Latitude = Annotated[float, Meta(ge=-90, le=90)]
Longitude = Annotated[float, Meta(ge=-180, le=180)]


class TransferRequested(Event, type="bank.transfer.requested", key="transfer_id"):
    """A customer wants to send money; ``at`` is when, by the customer's own device."""

    transfer_id: Name
    source: Name
    target: Name
    cents: Annotated[int, Meta(gt=0, le=1_000_000_000)]
    device: Name
    country: Annotated[str, Meta(min_length=2, max_length=2)]
    place: tuple[Latitude, Longitude]
    at: datetime


class OfTransfer(Event, key="transfer_id"):
    """What is about one transfer."""

    transfer_id: str


class HoldFunds(OfTransfer, Command, type="bank.funds.hold", to="accounts"):
    """Keep the money."""

    source: str
    target: str
    cents: int


class ReleaseFunds(OfTransfer, Command, type="bank.funds.release", to="accounts"):
    """Keep it no more."""


class Screen(OfTransfer, Command, type="bank.transfer.screen", to="fraud"):
    """Say whether this looks like fraud."""

    source: str
    cents: int
    device: str
    country: str
    place: tuple[float, float]
    at: datetime


class PostTransfer(OfTransfer, Command, type="bank.transfer.post", to="accounts"):
    """Move it."""


class FundsHeld(OfTransfer, type="bank.funds.held"):
    """The money is held."""


class FundsShort(OfTransfer, type="bank.funds.short"):
    """There is not enough."""

    reason: str


class FundsReleased(OfTransfer, type="bank.funds.released"):
    """It is free again."""


class TransferCleared(OfTransfer, type="bank.transfer.cleared"):
    """It looks like its customer's."""


class TransferFlagged(OfTransfer, type="bank.transfer.flagged"):
    """It looks like fraud, for this ``reason``."""

    reason: str


class TransferPosted(OfTransfer, type="bank.transfer.posted"):
    """It is booked."""


class Ended(OfTransfer):
    """A transfer has ended."""

    country: str
    at: datetime


class TransferCompleted(Ended, type="bank.transfer.completed"):
    """The money has moved."""

    cents: int


class TransferRefused(Ended, type="bank.transfer.refused"):
    """The money is where it was, for this ``reason``."""

    reason: str
