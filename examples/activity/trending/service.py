"""Trending counts the views of each item in the last hour, every five minutes.

A click is told in the order of its person, and this counts by item: so Clicks tells each a second
time, under the item.
"""

from __future__ import annotations

import os

from oyez import Service, Window
from trending.events import HourCounted, ItemViewed

SPEED = float(os.environ.get("ACTIVITY_SPEED", "1"))
"""How many times faster than a clock the time of this shop is."""
LEAST = 2
"""Views that are told: most items are looked at once in an hour, which is no trend."""

service = Service("trending")


class Hour(Window, key="item", size=3_600 / SPEED, step=300 / SPEED, late=900 / SPEED):
    """The views of an item in one hour."""

    views: int = 0

    def add(self, event: ItemViewed) -> None:
        """Count one."""
        self.views += 1

    def close(self) -> HourCounted | None:
        """Tell it, if it is more than one."""
        if self.views < LEAST:
            return None
        return HourCounted(item=self.key, start=self.start, end=self.end, views=self.views)


service.window(Hour, ItemViewed, time="at")
