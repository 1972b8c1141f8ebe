"""The parked events of a service: what waits in its store, for whom, for what, and until when."""

from __future__ import annotations

import msgspec

from oyez import tables
from oyez.ports import Position, Row, Store


class ParkedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that waits for one handler. Times are in seconds since 1970."""

    seq: int
    """Its row in the service's store."""
    event_id: str
    type: str
    key: str | None
    handler: str
    reader: str
    """Empty for the service itself, else the one that waits: a view's version, or a replay."""
    stream: str
    partition: int
    position: Position
    since: float
    """When it was parked first."""
    due: float | None
    """The earliest time of its next attempt; None while it waits for the event before it."""
    behind: str | None
    """The id of the event that is handled before it, as it has the same key; None for none."""
    attempts: int
    """The number of attempts made."""
    error: str
    """The error of the last one; empty before the first."""


async def read_parked(
    store: Store, *, after: int = 0, limit: int = 100
) -> tuple[list[ParkedEvent], bool]:
    """Return parked events after a row, in their order, and whether there are more.

    Raises StoreError.
    """
    rows = await store.fetch(tables.PARKED_EVENTS, {"after": after, "limit": limit + 1})
    return [_event(row) for row in rows[:limit]], len(rows) > limit


def _event(row: Row) -> ParkedEvent:
    headers = msgspec.json.decode(row["headers"], type=dict[str, str])
    history = msgspec.json.decode(row["history"])
    waits = row["state"] == tables.Inbox.BEHIND
    return ParkedEvent(
        seq=row["seq"],
        event_id=row["event_id"],
        type=headers.get("type", ""),
        key=row["key"],
        handler=row["handler"],
        reader=row["reader"],
        stream=row["stream"],
        partition=row["partition"],
        position=row["position"],
        since=row["seen"],
        due=None if waits else row["due"] or row["seen"],
        behind=row["first"] if waits else None,
        attempts=row["attempt"],
        error=str(history[-1].get("error", "")) if history else "",
    )
