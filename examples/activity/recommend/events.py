"""The events that Recommend announces, and those of Sessions that it follows."""

from __future__ import annotations

from datetime import datetime

from oyez import Event


class VisitEnded(Event, type="activity.visit.ended", key="person"):
    """What somebody looked at in one visit."""

    person: str
    end: datetime
    items: list[str]


class VisitsErased(Event, type="activity.visits.erased", key="person"):
    """All visits of a person are to be forgotten."""

    person: str


class SeenTogether(Event, type="activity.item.seen-together", key="item"):
    """An item was looked at in a visit, with others: the visit in the order of the item."""

    item: str
    others: list[str]
    at: datetime


class CompanionsFound(Event, type="activity.companions.found", key="item"):
    """The 50 items that were most often seen with this one."""

    item: str
    visits: float
    """Visits with the item, each of which counts half after 60 days; so do the companions."""
    companions: dict[str, float]


class ModelTrained(Event, type="activity.model.trained", key="version"):
    """A model of the night: the items that are most like each item, by its factors."""

    version: str
    similar: dict[str, dict[str, float]]
