"""Sessions makes visits and hours of clicks, by the time at which they were clicked.

A click is told in the order of its person, and hours count by item: so Clicks tells each a second
time, under the item.

To forget a person travels the same road as what is known of them: it is announced behind the
person's visits, in their stream and under their key, so no visit can come after it.
"""

from __future__ import annotations

import os
from typing import Annotated

from oyez import Personal, Service, Window
from sessions import events

SPEED = float(os.environ.get("ACTIVITY_SPEED", "1"))
"""How many times faster than a clock the time of this shop is."""
MOST = 100
"""Items of a visit that count: who looks at a thousand is a program, and makes a million pairs."""
LEAST = 2
"""Views of an hour that are told: most items are looked at once in one, which is no trend."""

service = Service("sessions")


class Visit(Window, key="person", gap=1_800 / SPEED, late=900 / SPEED):
    """Clicks of a person without half an hour between two of them."""

    clicks: int = 0
    items: Annotated[list[str], Personal] = []
    erased: bool = False

    def add(self, event: events.Clicked | events.CustomerErased) -> None:
        """Count a click, or forget all of them."""
        if isinstance(event, events.CustomerErased):
            self.forget()
        elif not self.erased:
            self.clicks += 1
            if event.item not in self.items and len(self.items) < MOST:
                self.items.append(event.item)

    def join(self, other: Visit) -> None:
        """Add a later one that became part of this one."""
        self.clicks += other.clicks
        self.items = [*dict.fromkeys([*self.items, *other.items])][:MOST]
        if self.erased or other.erased:
            self.forget()

    def forget(self) -> None:
        """Keep nothing of the person."""
        self.erased, self.clicks, self.items = True, 0, []

    def late(self, event: events.Clicked | events.CustomerErased) -> events.VisitsErased | None:
        """A person is forgotten however late that is heard."""
        if isinstance(event, events.CustomerErased):
            return events.VisitsErased(person=self.key)
        return None

    def close(self) -> events.VisitEnded | events.VisitsErased:
        """Tell the visit; or, behind all that were told, that they are to be forgotten."""
        if self.erased:
            return events.VisitsErased(person=self.key)
        return events.VisitEnded(
            person=self.key, start=self.start, end=self.end, clicks=self.clicks, items=self.items
        )


service.window(Visit, events.Clicked, events.CustomerErased, time="at")


class Hour(Window, key="item", size=3_600 / SPEED, step=300 / SPEED, late=900 / SPEED):
    """The views of an item in one hour."""

    views: int = 0

    def add(self, event: events.ItemViewed) -> None:
        """Count one."""
        self.views += 1

    def close(self) -> events.HourCounted | None:
        """Tell it, if it is more than one."""
        if self.views < LEAST:
            return None
        return events.HourCounted(item=self.key, start=self.start, end=self.end, views=self.views)


service.window(Hour, events.ItemViewed, time="at")
