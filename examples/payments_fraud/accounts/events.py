"""What Accounts is asked, and what it answers."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from oyez import Command, Event


class AccountOpened(Event, type="bank.account.opened", key="account"):
    """Somebody paid in, and may overdraw so far."""

    account: Annotated[str, Meta(min_length=1, max_length=40)]
    cents: Annotated[int, Meta(gt=0, le=1_000_000_000)]
    overdraft: Annotated[int, Meta(ge=0, le=1_000_000_000)]


class HoldFunds(Command, type="bank.funds.hold", key="transfer_id", to="accounts"):
    """Keep so much of an account's money for a transfer."""

    transfer_id: str
    source: str
    target: str
    cents: int


class ReleaseFunds(Command, type="bank.funds.release", key="transfer_id", to="accounts"):
    """What is held for the transfer is free again."""

    transfer_id: str


class PostTransfer(Command, type="bank.transfer.post", key="transfer_id", to="accounts"):
    """Book what is held."""

    transfer_id: str


class FundsHeld(Event, type="bank.funds.held", key="transfer_id"):
    """The money is held."""

    transfer_id: str


class FundsShort(Event, type="bank.funds.short", key="transfer_id"):
    """Nothing is held, for this ``reason``."""

    transfer_id: str
    reason: str


class FundsReleased(Event, type="bank.funds.released", key="transfer_id"):
    """Nothing is held any more, and nothing will be."""

    transfer_id: str


class TransferPosted(Event, type="bank.transfer.posted", key="transfer_id"):
    """The money has moved."""

    transfer_id: str
