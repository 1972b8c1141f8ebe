"""The events that Sessions announces, and those of Clicks that it follows."""

from __future__ import annotations

from datetime import datetime

from oyez import Event


class OfPerson(Event, key="person"):
    """The base of what is of a person."""

    person: str


class Clicked(OfPerson, type="activity.clicked"):
    """Somebody looked at an item, or bought it."""

    item: str
    at: datetime


class CustomerErased(OfPerson, type="activity.customer.erased"):
    """A person is to be forgotten."""

    at: datetime


class VisitEnded(OfPerson, type="activity.visit.ended"):
    """Half an hour without a click has passed."""

    start: datetime
    end: datetime
    clicks: int
    items: list[str]
    """What was looked at, each item once, the first 100."""


class VisitsErased(OfPerson, type="activity.visits.erased"):
    """All visits of a person are to be forgotten; none of them follows."""


class ItemViewed(Event, type="activity.item.viewed", key="item"):
    """Somebody looked at an item."""

    item: str
    at: datetime


class HourCounted(Event, type="activity.hour.counted", key="item"):
    """How often an item was looked at in an hour; an hour begins every five minutes."""

    item: str
    start: datetime
    end: datetime
    views: int
