"""The events that Clicks announces: a person is a pseudonym in them, and a search is sealed."""

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
    """What was searched for, sealed by the key of the person; empty for nothing."""


class ItemViewed(Event, type="activity.item.viewed", key="item"):
    """The same, in the order of the item and without the person."""

    item: str
    title: str
    at: datetime


class CustomerErased(Event, type="activity.customer.erased", key="person"):
    """A person is to be forgotten; the key that opens what is sealed is gone already."""

    person: str
    at: datetime
