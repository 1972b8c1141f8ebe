"""Sessions makes visits of clicks, by the time at which they were clicked.

To forget a person travels the same road as what is known of them: it is announced behind the
person's visits, in their stream and under their key, so no visit can come after it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated

from oyez import Personal, Service, Window
from sessions.events import Clicked, CustomerErased, VisitEnded, VisitsErased

SPEED = float(os.environ.get("ACTIVITY_SPEED", "1"))
"""How many times faster than a clock the time of this shop is."""
MOST = 100
"""Items of a visit that count: who looks at a thousand is a program, and makes a million pairs."""

service = Service("sessions")


class Visit(Window, key="person", gap=1_800 / SPEED, late=900 / SPEED):
    """Clicks of a person without half an hour between two of them."""

    clicks: int = 0
    items: Annotated[list[str], Personal] = []
    erased: bool = False
    told: bool = False

    def add(self, event: Clicked | CustomerErased) -> None:
        """Count a click, or forget all of them."""
        if isinstance(event, CustomerErased):
            self.forget()
        elif not self.erased:
            self.clicks += 1
            if event.item not in self.items and len(self.items) < MOST:
                self.items.append(event.item)

    def join(self, other: Visit) -> None:
        """Add a later one that became part of this one."""
        self.clicks += other.clicks
        self.items += [item for item in other.items if item not in self.items]
        self.told |= other.told
        if self.erased or other.erased:
            self.forget()

    def forget(self) -> None:
        """Keep nothing of the person."""
        self.erased, self.clicks, self.items = True, 0, []

    def early(self) -> Iterable[VisitsErased]:
        """Tell at once that the person is forgotten, behind all visits that were told."""
        if self.erased and not self.told:
            self.told = True
            yield VisitsErased(person=self.key)

    def late(self, event: Clicked | CustomerErased) -> VisitsErased | None:
        """A person is forgotten however late that is heard."""
        return VisitsErased(person=self.key) if isinstance(event, CustomerErased) else None

    def close(self) -> VisitEnded | None:
        """Tell the visit."""
        if self.erased:
            return None
        return VisitEnded(
            person=self.key,
            start=self.start,
            end=self.end,
            clicks=self.clicks,
            items=self.items[:MOST],
        )


service.window(Visit, Clicked, CustomerErased, time="at")
