"""What customers and clerks of the bank send through the gateway."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from oyez import Event

Cents = Annotated[int, msgspec.Meta(gt=0, le=1_000_000_000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=40)]


class AccountOpened(Event, type="bank.account.opened", key="account"):
    """An account was opened, with what its owner paid in, and may be overdrawn so far."""

    account: Name
    cents: Cents
    overdraft: Annotated[int, msgspec.Meta(ge=0)]


class TransferRequested(Event, type="bank.transfer.requested", key="transfer_id"):
    """A customer wants to send money; ``at`` is when, by the customer's own device."""

    transfer_id: Name
    source: Name
    target: Name
    cents: Cents
    device: Name
    country: Annotated[str, msgspec.Meta(min_length=2, max_length=2)]
    latitude: Annotated[float, msgspec.Meta(ge=-90, le=90)]
    longitude: Annotated[float, msgspec.Meta(ge=-180, le=180)]
    at: datetime


class TransferReviewed(Event, type="bank.transfer.reviewed", key="transfer_id"):
    """The customer was asked, and says whether it was fraud."""

    transfer_id: Name
    fraud: bool
