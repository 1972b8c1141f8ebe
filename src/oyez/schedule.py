"""Schedules: handlers that run at times of the calendar or after intervals.

::

    @service.every("0 6 * * *", tz="Europe/Berlin")
    async def nightly(tick: Tick, tx: Transaction) -> ReportDue: ...

A tick is once for a service, whatever the number of its replicas: the next one is a timer (see
`oyez.timers`), and one commit leaves the event of a tick and the timer of the next. Expressions are
read as Debian's cron does: a fixed time that a change of the clocks skips is made up for right
after it, one that comes twice is run once, and ``*`` hours follow elapsed time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from math import floor
from typing import Literal

import msgspec

from oyez.errors import DeclarationError
from oyez.event import Event

EVERY = "oyez:every"
"""The kind of the timers of schedules; their key is the schedule's name."""
COUNTED = 1_000
"""The limit of missed ticks that are counted."""
LATE = 60.0
"""Seconds after which a tick counts as missed even though no later one is due."""

Missed = Literal["once", "skip", "all"]


class Tick(Event, type="oyez.tick", key="name"):
    """The event of a schedule; its times are in UTC.

    It comes from the service itself: a record of this type in a stream is ignored.
    """

    name: str
    """The schedule's name."""
    scheduled: datetime
    """The time of this tick by the schedule; it is handled at this time or later."""
    previous: datetime
    """The time of the tick before, not counting missed ones: the begin of what this one is for."""
    missed: int = 0
    """The number of ticks between the two that were missed, at most `COUNTED`."""


class Firing(msgspec.Struct, frozen=True):
    """What is to be done when a tick is due."""

    tick: Tick | None
    """None where it was missed, and missed ones are skipped."""
    next: float
    """The time of the next tick, in seconds since 1970."""


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """When a handler runs, and what becomes of ticks that no process was there for."""

    name: str
    spec: str
    """Its times as text; a schedule whose text has changed begins anew."""
    missed: Missed
    following: Callable[[float], float]
    """The time of the first tick after a time, in seconds since 1970."""
    preceding: Callable[[float], float]
    """The time of the last tick before a time."""

    def fire(self, due: float, now: float) -> Firing:
        """Return what is to be done at ``now`` about the tick of the time ``due``, and later ones.

        ``once``: one tick stands for all that were missed; ``skip``: they are left out; ``all``:
        each has its turn.
        """
        if self.missed == "all":
            return Firing(self._tick(due, due, 0), self.following(due))
        latest, passed = due, 0
        while passed < COUNTED and (later := self.following(latest)) <= now:
            latest, passed = later, passed + 1
        if passed == COUNTED:
            latest = max(latest, self.preceding(now))
        following = self.following(latest)
        if self.missed == "once":
            return Firing(self._tick(latest, due, passed), following)
        if now - latest > LATE:
            return Firing(None, following)
        return Firing(self._tick(latest, latest, 0), following)

    def _tick(self, scheduled: float, first: float, missed: int) -> Tick:
        return Tick(
            name=self.name,
            scheduled=datetime.fromtimestamp(scheduled, UTC),
            previous=datetime.fromtimestamp(self.preceding(first), UTC),
            missed=missed,
        )


def schedule(
    place: str, name: str, cron: str | None, seconds: float | None, tz: str | None, missed: Missed
) -> Schedule:
    """Return a checked schedule. Raises DeclarationError, which names the function at ``place``."""

    def wrong(problem: str) -> DeclarationError:
        return DeclarationError(f"{place}: @service.every: {problem}")

    if missed not in ("once", "skip", "all"):
        raise wrong(f'missed: expected "once", "skip" or "all", found {missed!r}')
    if (cron is None) == (seconds is None):
        raise wrong('expected either an expression such as "0 6 * * *", or seconds=…')
    if cron is not None:
        spec = f"{' '.join(cron.split())} {tz or 'UTC'}"
        following, preceding = _calendar(cron, _zone(tz or "UTC", wrong), wrong)
    else:
        assert seconds is not None
        if tz is not None:
            raise wrong("tz is for an expression: leave it out beside seconds")
        if not 1 <= seconds <= 366 * 86_400:
            raise wrong(f"seconds: expected 1 to {366 * 86_400}, found {seconds}")
        spec = f"{seconds:g} s"
        following, preceding = _interval(seconds)
    return Schedule(name=name, spec=spec, missed=missed, following=following, preceding=preceding)


def _interval(
    seconds: float,
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Multiples of the interval since 1970, so that all replicas mean the same ones."""

    def following(time: float) -> float:
        return (floor(time / seconds) + 1) * seconds

    def preceding(time: float) -> float:
        last = floor(time / seconds) * seconds
        return last if last < time else last - seconds

    return following, preceding


def _calendar(
    cron: str, zone: tzinfo, wrong: Callable[[str], DeclarationError]
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    from cronsim import CronSim, CronSimError  # few services have times of a calendar

    if cron.strip().startswith("@"):
        raise wrong(f'{cron!r}: nicknames are not read: write the five fields, "0 0 * * *" say')
    if len(cron.split()) == 6:
        raise wrong(f"{cron!r}: a field of seconds is not read: use five fields, or seconds=…")

    def following(time: float) -> float:
        # Of an hour that comes twice, the expression's times are those of the first.
        ticks = CronSim(cron, datetime.fromtimestamp(time, zone))
        return next(found for tick in ticks if (found := tick.timestamp()) > time)

    def preceding(time: float) -> float:
        ticks = CronSim(cron, datetime.fromtimestamp(time, zone), reverse=True)
        return next(found for tick in ticks if (found := tick.timestamp()) < time)

    try:
        following(0.0)
    except CronSimError as error:
        raise wrong(
            f"{cron!r}: {error}: expected minute, hour, day of month, month and day of week"
        ) from error
    except StopIteration:
        raise wrong(f"{cron!r}: there is no such time") from None
    return following, preceding


def _zone(name: str, wrong: Callable[[str], DeclarationError]) -> tzinfo:
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # reads the build's settings when it is imported

    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError) as error:
        raise wrong(
            f"tz={name!r} is not known here: expected a name such as Europe/Berlin; where the "
            "system has no time zones, pip install tzdata"
        ) from error
