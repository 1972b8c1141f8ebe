"""What a service is to do later: scheduled events, schedules and timers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from oyez import tables
from oyez.errors import OyezError
from oyez.inspection.form import utc_time
from oyez.ports import Changes, Store
from oyez.runtime.audit import Actor, audited
from oyez.schedule import EVERY


class Later(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a service is to do."""

    what: Literal["event", "schedule", "timer"]
    due: float
    """Its time, in seconds since 1970."""
    kind: str
    """The event's type, the schedule's times, or the timer's kind of state."""
    key: str | None
    name: str | None
    """The schedule's or the timer's name, or the event's, with its type before it."""
    id: str | None
    """The event's id; None for others, and for an event of an older version of Oyez."""


async def list_later(store: Store, limit: int = 100) -> tuple[list[Later], bool]:
    """Return what is next, at most ``limit``, and whether there is more. Raises StoreError."""
    asked = {"limit": limit + 1}
    found: list[Later] = []
    for row in await store.fetch(tables.SCHEDULED, asked):
        headers = msgspec.json.decode(row["headers"], type=dict[str, str])
        found.append(
            Later(
                what="event",
                due=row["due"],
                kind=headers.get("type", ""),
                key=row["key"],
                name=row["name"],
                id=row["event_id"],
            )
        )
    for row in await store.fetch(tables.NEXT_TIMERS, asked):
        scheduled = row["kind"] == EVERY
        found.append(
            Later(
                what="schedule" if scheduled else "timer",
                due=row["due"],
                kind=row["name"] if scheduled else row["kind"],
                key=None if scheduled else row["key"],
                name=row["key"] if scheduled else row["name"],
                id=None,
            )
        )
    found.sort(key=lambda each: each.due)
    return found[:limit], len(found) > limit


async def cancel(store: Store, event: str, now: float, *, by: Actor) -> None:
    """Cancel a scheduled event by its id, or by its type and name as ``type/name``.

    Raises OyezError when there is none, and StoreError.
    """
    begun = store.begin()
    try:
        if not await begun.fetch(tables.CANCEL, {"id": event}, []) and not await begun.fetch(
            tables.CANCEL_NAMED, {"name": event}, []
        ):
            raise OyezError(
                f"no event {event} is scheduled: it has been published or cancelled, or is a timer "
                "or schedule, which its code ends; see `oyez schedule list`"
            )
        audit = audited(by, "schedule.cancel", f"event {event}", now)
        await begun.commit(Changes(writes=[audit], time=now))
    finally:
        await begun.rollback()


def as_value(later: Later) -> dict[str, Any]:
    """Return it as a value for JSON."""
    return {**msgspec.structs.asdict(later), "due": utc_time(later.due)}
