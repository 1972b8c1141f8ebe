"""The event that Trending announces, and that of Clicks that it follows."""

from __future__ import annotations

from datetime import datetime

from oyez import Event


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
