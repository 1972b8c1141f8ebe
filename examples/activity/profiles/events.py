"""The events that the pages are made of."""

from __future__ import annotations

from datetime import datetime

from oyez import Event


class Clicked(Event, type="activity.clicked", key="person"):
    """Somebody looked at an item, or bought it."""

    person: str
    item: str
    kind: str
    at: datetime
    query: str = ""


class CustomerErased(Event, type="activity.customer.erased", key="person"):
    """A person is to be forgotten."""

    person: str


class OfItem(Event, key="item"):
    """The base of what is of an item."""

    item: str


class ItemViewed(OfItem, type="activity.item.viewed"):
    """What an item is called."""

    title: str


class HourCounted(OfItem, type="activity.hour.counted"):
    """How often an item was looked at in an hour."""

    end: datetime
    views: int


class CompanionsFound(OfItem, type="activity.companions.found"):
    """What is seen together with an item."""

    visits: float
    companions: dict[str, float]


class ModelTrained(Event, type="activity.model.trained", key="version"):
    """What is like each item, as a model has learned."""

    version: str
    similar: dict[str, dict[str, float]]
