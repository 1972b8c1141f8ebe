"""A transfer, from the request to one of its two ends: completed, or refused.

The fraud check is a step and not a listener: a listener would find the theft when the money is
gone. It comes after the hold, so that nobody spends the money twice while it thinks, and before the
pivot, the booking, which can't be undone.
"""

from __future__ import annotations

from datetime import UTC, datetime

from oyez import Saga, Service
from oyez.saga import Failed, end, starts, step
from transfers.events import (
    FundsHeld,
    FundsReleased,
    FundsShort,
    HoldFunds,
    PostTransfer,
    ReleaseFunds,
    Screen,
    TransferCleared,
    TransferCompleted,
    TransferFlagged,
    TransferPosted,
    TransferRefused,
    TransferRequested,
)

WITHIN = 300.0
"""Seconds for an answer: longer than the five attempts of its handler take, at 30 s each."""

service = Service("transfers")


@service.saga(
    allow={
        "E09": "looking at a transfer changes nothing that would have to be undone",
        "E10": "the window that takes Screen calls nobody, so it can't hang",
    }
)
class Transfer(Saga, key="transfer_id", ends=("completed", "refused")):
    """Where one transfer stands."""

    transfer_id: str = ""
    source: str = ""
    target: str = ""
    cents: int = 0
    device: str = ""
    country: str = ""
    latitude: float = 0.0
    longitude: float = 0.0
    at: datetime = datetime(1970, 1, 1, tzinfo=UTC)

    @starts
    def requested(self, event: TransferRequested) -> None:
        """It begins."""
        self.take(event)

    @step(done=FundsHeld, failed=FundsShort, within=WITHIN)
    def hold(self) -> HoldFunds:
        """First nobody else may spend the money."""
        return self.make(HoldFunds)

    @hold.undo(done=FundsReleased, within=WITHIN)
    def release(self) -> ReleaseFunds:
        """What is refused moves nowhere."""
        return self.make(ReleaseFunds)

    @step(done=TransferCleared, failed=TransferFlagged, within=WITHIN)
    def screen(self) -> Screen:
        """Then it is looked at."""
        return self.make(Screen)

    @step(done=TransferPosted, within=WITHIN, pivot=True)
    def post(self) -> PostTransfer:
        """Then it is booked."""
        return self.make(PostTransfer)

    @end("completed")
    def completed(self) -> TransferCompleted:
        """The money has moved."""
        return self.make(TransferCompleted, slot=self.slot())

    @end("refused")
    def refused(self, why: Failed) -> TransferRefused:
        """The money is where it was."""
        return self.make(TransferRefused, slot=self.slot(), reason=why.reason)

    def slot(self) -> str:
        """Return the minute and the country of the transfer."""
        return f"{self.at.astimezone(UTC):%Y-%m-%dT%H:%M} {self.country}"
