"""The events that Sessions announces, and those of Clicks that it follows."""

from __future__ import annotations

from datetime import datetime

from oyez import Event


class Clicked(Event, type="activity.clicked", key="person"):
    """Somebody looked at an item, or bought it."""

    person: str
    item: str
    at: datetime


class CustomerErased(Event, type="activity.customer.erased", key="person"):
    """A person is to be forgotten."""

    person: str
    at: datetime


class VisitEnded(Event, type="activity.visit.ended", key="person"):
    """Half an hour without a click has passed."""

    person: str
    start: datetime
    end: datetime
    clicks: int
    items: list[str]
    """What was looked at, each item once, the first 100."""


class VisitsErased(Event, type="activity.visits.erased", key="person"):
    """All visits of a person are to be forgotten; none of them follows."""

    person: str
