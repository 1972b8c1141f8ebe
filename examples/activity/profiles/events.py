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


class ItemViewed(Event, type="activity.item.viewed", key="item"):
    """What an item is called."""

    item: str
    title: str


class HourCounted(Event, type="activity.hour.counted", key="item"):
    """How often an item was looked at in an hour."""

    item: str
    end: datetime
    views: int


class CompanionsFound(Event, type="activity.companions.found", key="item"):
    """What is seen together with an item."""

    item: str
    visits: float
    companions: dict[str, float]


class ModelTrained(Event, type="activity.model.trained", key="version"):
    """What is like each item, as a model has learned."""

    version: str
    trained_on: int
    similar: dict[str, dict[str, float]]
