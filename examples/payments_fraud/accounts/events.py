"""What Accounts is asked, and what it answers."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from oyez import Command, Event


class AccountOpened(Event, type="bank.account.opened", key="account"):
    """Somebody paid in."""

    account: Annotated[str, Meta(min_length=1, max_length=40)]
    cents: Annotated[int, Meta(gt=0, le=1_000_000_000)]


class OfTransfer(Event, key="transfer_id"):
    """What is about one transfer."""

    transfer_id: str


class HoldFunds(OfTransfer, Command, type="bank.funds.hold", to="accounts"):
    """Keep so much of an account's money for a transfer."""

    source: str
    target: str
    cents: int


class ReleaseFunds(OfTransfer, Command, type="bank.funds.release", to="accounts"):
    """What is held for the transfer is free again."""


class PostTransfer(OfTransfer, Command, type="bank.transfer.post", to="accounts"):
    """Book what is held."""


class FundsHeld(OfTransfer, type="bank.funds.held"):
    """The money is held."""


class FundsShort(OfTransfer, type="bank.funds.short"):
    """Nothing is held, for this ``reason``."""

    reason: str


class FundsReleased(OfTransfer, type="bank.funds.released"):
    """Nothing is held any more, and nothing will be."""


class TransferPosted(OfTransfer, type="bank.transfer.posted"):
    """The money has moved."""
