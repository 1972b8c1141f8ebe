"""Reading one's own writes: tokens that name the events to be applied before a read copy is read.

A token is what the header ``Oyez-After`` of an answer holds: ``source;id;type`` of the last event
of each type that the request published, separated by commas. It names events, not positions, since
an answer is sent before the broker has the event. The type may be left out.

The header ``Oyez-Stale`` says how old an answer may be: by how many seconds what was read lacks an
event that its reader knows of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable
from contextvars import ContextVar
from uuid import UUID

import msgspec

from oyez.errors import InvalidEvent
from oyez.ports import Announcement
from oyez.tables import INBOX_RETENTION

MOST = 16
"""The number of events that a token may name."""

_ENTRY = re.compile(
    r"([^\s\x00-\x1f\x7f;,]{1,500});([^\s\x00-\x1f\x7f;,]{1,200})"
    r"(?:;([^\s\x00-\x1f\x7f;,]{1,200}))?"
)


class Known(msgspec.Struct, frozen=True):
    """An event that a reader knows of. ``type`` is empty where the token does not say."""

    source: str
    id: str
    type: str = ""


stale_here: ContextVar[list[float] | None] = ContextVar("oyez_stale", default=None)
"""A list that takes the ages, in seconds, of what a request reads before it is up to date."""


def token_of(announced: Iterable[Announcement]) -> str:
    """Return the token of published events; empty without any that is published at once."""
    last = {
        one.headers["type"]: f"{one.headers['source']};{one.headers['id']};{one.headers['type']}"
        for one in announced
        if not one.due
    }
    return ", ".join(list(last.values())[-MOST:])


def known_from(token: str) -> list[Known]:
    """Return the events that a token names. Raises InvalidEvent for any other text."""
    entries = [entry.strip() for entry in token.split(",")] if token.strip() else []
    found = [_ENTRY.fullmatch(entry) for entry in entries[: MOST + 1]]
    if len(found) > MOST or not all(found):
        raise InvalidEvent(
            "after",
            f"expected the header Oyez-After of an answer, that is up to {MOST} of "
            "source;event-id;type, separated by commas",
        )
    return [Known(match[1], match[2], match[3] or "") for match in found if match]


def merged(*tokens: str) -> str:
    """Return one token of several, the later ones last: the last event of each source and type.

    Raises InvalidEvent as `known_from` does.
    """
    last: dict[tuple[str, str], Known] = {}
    for event in (each for token in tokens for each in known_from(token)):
        place = (event.source, event.type or event.id)
        last.pop(place, None)
        last[place] = event
    texts = [";".join(filter(None, (each.source, each.id, each.type))) for each in last.values()]
    return ", ".join(texts[-MOST:])


def pending(known: Iterable[Known], types: Container[str], now: float) -> list[Known]:
    """Return those events whose handling an inbox can tell of, where only ``types`` are handled.

    Older events have been handled, and their inbox rows deleted.
    """
    return [
        event
        for event in known
        if (not event.type or event.type in types) and now - _time(event.id) < INBOX_RETENTION
    ]


def age(known: Iterable[Known], now: float) -> float:
    """Return the age in seconds of the oldest of the events, as far as their ids tell; else 0."""
    times = (_time(event.id) for event in known)
    return max((now - time for time in times if time < min(now, math.inf)), default=0.0)


def stale_header(ages: Iterable[float]) -> str:
    """Return the header ``Oyez-Stale``: the greatest of the ages, to a tenth of a second above."""
    return f"{max(0.1, math.ceil(max(ages) * 10) / 10):.1f}"


def _time(event_id: str) -> float:
    """Return the time in a UUIDv7, in seconds since 1970; infinity for any other id."""
    try:
        number = UUID(event_id)
    except ValueError:
        return math.inf
    return (number.int >> 80) / 1000 if number.version == 7 else math.inf
