"""A journey as rows: a tree of events and of who handled them, each with its stretch of time."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from oyez.inspection.holder import walk
from oyez.inspection.journey import Journey, JourneyEvent
from oyez.inspection.reactions import Reaction

SHOWN = 200
"""Events of a journey that are drawn."""
WIDTH = 1000.0
"""The length of the time line, to which all places on it belong."""
DEEPEST = 8
"""The depth at which rows are no longer indented."""

_LEAST = 3.0
_SETTLED = ("handled", "dead", "discarded")
_UNPUBLISHED = ("outbox", "held", "refused")


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time."""

    kind: str
    """``wait`` until it was handled, ``parked`` between attempts, ``later`` until it is due."""
    x: float
    width: float


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A moment."""

    kind: str
    """``event`` announced, ``done`` handled, ``failed`` attempt, ``dead`` given up."""
    x: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """An event, or a reaction to it."""

    depth: int
    event: JourneyEvent
    reaction: Reaction | None
    at: float | None
    """Seconds after the journey began at which this happened; None for what has not."""
    took: float | None
    """Seconds that a reaction has waited, or did wait."""
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of a journey on one axis."""

    rows: tuple[Row, ...]
    began: float
    seconds: float
    """The length of the axis."""
    key: str | None
    """The key of its first event."""
    by: str | None
    """Who began it."""
    events: int
    left_out: int
    """Events beyond `SHOWN`."""


def timeline(journey: Journey, now: float) -> Timeline:
    """Return the rows of a journey. Its axis goes on until now if something in it waits."""
    began = journey.began
    moments = [began, *(moment for event in walk(journey.events) for moment in _moments(event))]
    if any(_waits(event) for event in walk(journey.events)):
        moments.append(now)
    axis = _Axis(began, max(moments) - began, now)
    rows: list[Row] = []
    drawn = events = 0
    for depth, event in _deep(journey.events, 0):
        events += 1
        if events > SHOWN:
            continue
        drawn += 1
        rows.append(axis.event(depth, event))
        rows += [axis.reaction(depth + 1, event, each) for each in event.reactions]
    return Timeline(
        rows=tuple(rows),
        began=began,
        seconds=axis.seconds,
        key=journey.events[0].key,
        by=journey.by,
        events=events,
        left_out=events - drawn,
    )


def _deep(events: tuple[JourneyEvent, ...], depth: int) -> Iterator[tuple[int, JourneyEvent]]:
    for event in events:
        yield min(depth, DEEPEST), event
        yield from _deep(event.events, depth + 1)


def _waits(event: JourneyEvent) -> bool:
    return event.state in _UNPUBLISHED or any(
        reaction.state not in _SETTLED for reaction in event.reactions
    )


def _moments(event: JourneyEvent) -> Iterator[float]:
    yield event.time
    for place in event.places:
        yield place.time
    if event.due:
        yield event.due
    for reaction in event.reactions:
        yield from (moment for moment in (reaction.seen, reaction.due) if moment)
        yield from _failures(reaction)


def _failures(reaction: Reaction) -> list[float]:
    times = [attempt.get("at") for attempt in reaction.history]
    return [float(time) for time in times if isinstance(time, int | float)]


class _Axis:
    def __init__(self, began: float, seconds: float, now: float) -> None:
        self.seconds = max(seconds, 0.001)
        self._began = began
        self._now = now

    def event(self, depth: int, event: JourneyEvent) -> Row:
        bars: list[Bar] = []
        if event.due:
            bars.append(self._bar("later", event.time, event.due))
        elif event.state in _UNPUBLISHED:
            bars.append(self._bar("parked", event.time, self._now))
        elif event.places:
            bars.append(self._bar("wait", event.time, event.places[-1].time))
        return Row(
            depth=depth,
            event=event,
            reaction=None,
            at=event.time - self._began,
            took=None,
            bars=tuple(bars),
            marks=(self._mark("event", event.time),),
        )

    def reaction(self, depth: int, event: JourneyEvent, reaction: Reaction) -> Row:
        arrived = max(event.time, min((place.time for place in event.places), default=event.time))
        failures = _failures(reaction)
        settled = reaction.state in _SETTLED
        ended = reaction.seen if settled and reaction.seen is not None else self._now
        first = min([*failures, ended])
        bars = [self._bar("wait", arrived, first)]
        if failures or reaction.state == "waiting":
            bars.append(self._bar("parked", first if failures else arrived, ended))
        marks = [self._mark("failed", each) for each in failures]
        if settled:
            marks.append(self._mark("done" if reaction.state == "handled" else "dead", ended))
        elif reaction.due and reaction.due > self._now:
            bars.append(self._bar("later", ended, reaction.due))
        return Row(
            depth=min(depth, DEEPEST),
            event=event,
            reaction=reaction,
            at=ended - self._began if settled else None,
            took=max(0.0, ended - arrived),
            bars=tuple(bars),
            marks=tuple(marks),
        )

    def _bar(self, kind: str, start: float, end: float) -> Bar:
        x = self._x(start)
        return Bar(kind=kind, x=x, width=max(self._x(end) - x, 0.0))

    def _mark(self, kind: str, moment: float) -> Mark:
        return Mark(kind=kind, x=min(self._x(moment), WIDTH - _LEAST))

    def _x(self, moment: float) -> float:
        share = (moment - self._began) / self.seconds
        return round(WIDTH * min(max(share, 0.0), 1.0), 1)
