"""How transfers end, as far as Analytics counts it."""

from __future__ import annotations

from oyez import Event


class TransferCompleted(Event, type="bank.transfer.completed", key="transfer_id"):
    """The money has moved; ``slot`` is the minute and the country."""

    transfer_id: str
    slot: str
    cents: int


class TransferRefused(Event, type="bank.transfer.refused", key="transfer_id"):
    """The money is where it was."""

    transfer_id: str
    slot: str
    cents: int
