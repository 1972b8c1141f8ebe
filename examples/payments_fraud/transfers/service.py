"""A transfer, from the request to one of its two ends: completed, or refused.

The fraud check is a step and not a listener: a listener would find the theft when the money is
gone. It comes after the hold, so that nobody spends the money twice while it thinks, and before the
pivot, the booking, which can't be undone.
"""

from __future__ import annotations

from datetime import UTC, datetime

from oyez import Saga, Service
from oyez.saga import Failed, end, starts, step
from transfers import events

WITHIN = 300.0
"""Seconds for an answer: longer than the five attempts of its handler take, at 30 s each."""

service = Service("transfers")


@service.saga(allow={"E10": "the window that takes Screen calls nobody, so it can't hang"})
class Transfer(Saga, key="transfer_id", ends=("completed", "refused")):
    """Where one transfer stands."""

    source: str = ""
    target: str = ""
    cents: int = 0
    device: str = ""
    country: str = ""
    place: tuple[float, float] = (0.0, 0.0)
    at: datetime = datetime(1970, 1, 1, tzinfo=UTC)

    @starts
    def requested(self, event: events.TransferRequested) -> None:
        """It begins."""
        self.take(event)

    @step(done=events.FundsHeld, failed=events.FundsShort, within=WITHIN)
    def hold(self) -> events.HoldFunds:
        """First nobody else may spend the money."""
        return self.make(events.HoldFunds)

    @hold.undo(done=events.FundsReleased, within=WITHIN)
    def release(self) -> events.ReleaseFunds:
        """What is refused moves nowhere."""
        return self.make(events.ReleaseFunds)

    @step(done=events.TransferCleared, failed=events.TransferFlagged, within=WITHIN, changes=False)
    def screen(self) -> events.Screen:
        """Then it is looked at."""
        return self.make(events.Screen)

    @step(done=events.TransferPosted, within=WITHIN, pivot=True)
    def post(self) -> events.PostTransfer:
        """Then it is booked."""
        return self.make(events.PostTransfer)

    @end("completed")
    def completed(self) -> events.TransferCompleted:
        """The money has moved."""
        return self.make(events.TransferCompleted)

    @end("refused")
    def refused(self, why: Failed) -> events.TransferRefused:
        """The money is where it was."""
        return self.make(events.TransferRefused, reason=why.reason)
