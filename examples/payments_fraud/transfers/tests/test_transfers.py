"""The saga alone: what it asks when, and that each way leads to an end."""

from __future__ import annotations

from datetime import UTC, datetime

from oyez.testing.sagas import Instance, given
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
from transfers.service import WITHIN, Transfer

REQUESTED = TransferRequested(
    transfer_id="1",
    source="ada",
    target="bob",
    cents=900,
    device="phone",
    country="NL",
    place=(52.4, 4.9),
    at=datetime(2026, 11, 1, 12, 30, tzinfo=UTC),
)
HELD, RELEASED = FundsHeld(transfer_id="1"), FundsReleased(transfer_id="1")
CLEARED, POSTED = TransferCleared(transfer_id="1"), TransferPosted(transfer_id="1")
FLAGGED = TransferFlagged(transfer_id="1", reason="it looks like fraud")


def begun() -> Instance:
    return given(Transfer).when(REQUESTED).then(asks=[HoldFunds], status="running")


def test_money_is_held_looked_at_and_moved() -> None:
    begun().when(HELD).then(asks=[Screen]).when(CLEARED).then(asks=[PostTransfer]).when(
        POSTED
    ).then(
        says=[TransferCompleted(transfer_id="1", country="NL", cents=900, at=REQUESTED.at)],
        ends="completed",
    )


def test_what_is_flagged_is_released_before_it_is_refused() -> None:
    flagged = begun().when(HELD, FLAGGED).then(asks=[Screen, ReleaseFunds], status="undoing")
    flagged.when(RELEASED).then(says=[TransferRefused], ends="refused")


def test_nothing_is_released_where_nothing_was_held() -> None:
    short = FundsShort(transfer_id="1", reason="the money is short")
    begun().when(short).then(asks=[], says=[TransferRefused], ends="refused")


def test_silence_refuses_and_a_late_hold_is_released() -> None:
    silent = begun().after(WITHIN).then(asks=[ReleaseFunds], status="undoing")
    silent.when(HELD).then(asks=[]).when(RELEASED).then(ends="refused")


def test_a_screening_that_dies_refuses() -> None:
    begun().when(HELD).died(Screen).then(asks=[Screen, ReleaseFunds], status="undoing")


def test_a_booking_without_an_answer_is_asked_again_and_never_undone() -> None:
    silent = given(Transfer, done=["hold", "screen"], asked=["post"])
    silent.after(WITHIN).then(asks=[PostTransfer], status="running")
    silent.when(POSTED).then(asks=[], ends="completed")
