"""Windows: their declaration, how they lie in time, and what they make of any order of events."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oyez import Event, Service
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import DeclarationError, InvalidEvent, NewerState, StateMismatch
from oyez.event import MAX_DATA
from oyez.inspection.lint import check
from oyez.inspection.lint.system import System
from oyez.ports import Batch, Kept, Position, Record
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.state import kind_of, migrates
from oyez.stores.sqlite import SqliteStore
from oyez.testing import VirtualAmbient, running
from oyez.transaction import Announcer, Origin
from oyez.window import FORGET, MAX_OPEN, Window, Windows, event_time, micros, window_type

SECOND = 1_000_000
BERLIN = ZoneInfo("Europe/Berlin")


class Reading(Event, type="test.reading", key="sensor"):
    sensor: str = "s"
    number: int


class Closed(Event, type="test.closed", key="sensor"):
    sensor: str
    start: float
    end: float
    numbers: list[int]


class Told(Event, type="test.told", key="sensor"):
    sensor: str
    start: float
    number: int


class Remembering(Window, size=1, late=0):
    """Remembers the numbers of its events, in their order."""

    numbers: list[int] = []  # noqa: RUF012 - copied for each

    def add(self, event: Reading) -> None:
        self.numbers.append(event.number)

    def close(self) -> Closed:
        return Closed(
            sensor=self.key,
            start=self.start.timestamp(),
            end=self.end.timestamp(),
            numbers=sorted(self.numbers),
        )


class Minute(Remembering, size=60, late=10):
    def late(self, event: Reading) -> Told:
        return Told(sensor=self.key, start=self.start.timestamp(), number=event.number)


class Sliding(Remembering, size=60, step=25, late=10): ...


class Visit(Remembering, gap=30, late=10):
    def join(self, other: Visit) -> None:
        self.numbers += other.numbers


class Day(Remembering, size=86_400, late=7200, tz="Europe/Berlin"): ...


class Week(Remembering, size=7 * 86_400, step=86_400, late=0, tz="Europe/Berlin"): ...


def windows(cls: type[Window], key: str = "s") -> Windows:
    return window_type(cls).open(Kept(kind=cls.__name__, key=key))


def again(value: Windows) -> Windows:
    """The windows as another process finds them in the store."""
    row = value.kind.close(value, Kept(kind=value.kind.name, key=value.key, version=1))
    assert row is not None
    return value.kind.open(row)


def closed(events: Iterable[object]) -> list[tuple[float, float, list[int]]]:
    return [(e.start, e.end, e.numbers) for e in events if isinstance(e, Closed)]


def run(cls: type[Window], times: Iterable[float], *, rest: bool = True) -> list[Any]:
    """Handle events at these times as they happen, then let time pass until all is closed."""
    value, found = windows(cls), []
    for number, time in enumerate(times):
        at = round(time * SECOND)
        found += value.fold(Reading(number=number), at, at)
    while rest and value.opened:
        found += value.close(value.due() or 0)
    return found


class TestSpans:
    """Which windows an event belongs to."""

    @pytest.mark.parametrize(
        ("cls", "times", "expected"),
        [
            (Minute, [0, 59.999999, 60], [(0, 60, [0, 1]), (60, 120, [2])]),
            (Minute, [-61, -60, -1], [(-120, -60, [0]), (-60, 0, [1, 2])]),
            (Minute, [30, 300], [(0, 60, [0]), (300, 360, [1])]),
            (
                Sliding,
                [0, 50, 74],
                [
                    (-50, 10, [0]),
                    (-25, 35, [0]),
                    (0, 60, [0, 1]),
                    (25, 85, [1, 2]),
                    (50, 110, [1, 2]),
                ],
            ),
            (Visit, [0, 29, 58, 88, 200], [(0, 88, [0, 1, 2]), (88, 118, [3]), (200, 230, [4])]),
        ],
    )
    def test_of_a_fixed_length(self, cls: Any, times: Any, expected: Any) -> None:
        assert closed(run(cls, times)) == expected

    def test_an_event_between_two_sessions_makes_them_one(self) -> None:
        found = run(Visit, [100, 131, 133, 135, 129.5])
        assert closed(found) == [(100, 165, [0, 1, 2, 3, 4])]

    @pytest.mark.parametrize(
        ("first", "hours"),
        [
            (datetime(2026, 3, 28, tzinfo=BERLIN), [24, 23, 24]),
            (datetime(2026, 10, 24, tzinfo=BERLIN), [24, 25, 24]),
        ],
    )
    def test_days_are_as_long_as_the_clock_makes_them(
        self, first: datetime, hours: list[int]
    ) -> None:
        begin = first.timestamp()
        ends = [begin + 3600 * sum(hours[: day + 1]) for day in range(3)]
        starts = [begin, *ends[:2]]
        times = [time for pair in zip(starts, ends, strict=True) for time in (pair[0], pair[1] - 1)]
        assert closed(run(Day, times)) == [
            (start, end, [2 * day, 2 * day + 1])
            for day, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]

    def test_an_hour_that_comes_twice_is_in_one_day(self) -> None:
        twice = [datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=fold) for fold in (0, 1)]
        times = [each.timestamp() for each in twice]
        assert times[1] - times[0] == 3600
        ((start, end, numbers),) = closed(run(Day, times))
        assert (end - start, numbers) == (25 * 3600, [0, 1])

    def test_weeks_begin_on_monday_and_windows_tell_local_time(self) -> None:
        class Monday(Window, size=7 * 86_400, late=0, tz="Europe/Berlin"):
            def add(self, event: Reading) -> None:
                assert self.start == datetime(2026, 10, 19, tzinfo=BERLIN)
                assert self.end == datetime(2026, 10, 26, tzinfo=BERLIN)
                assert (self.end.weekday(), self.end.hour) == (0, 0)

            def close(self) -> None: ...

        value = windows(Monday)
        at = micros(datetime(2026, 10, 25, 23, 59, tzinfo=BERLIN))
        value.fold(Reading(number=0), at, at)
        (one,) = value.opened
        assert one.end - one.start == (7 * 24 + 1) * 3600 * SECOND

    def test_a_week_each_day_is_seven_windows(self) -> None:
        at = micros(datetime(2026, 3, 29, 12, tzinfo=BERLIN))
        value = windows(Week)
        value.fold(Reading(number=0), at, at)
        starts = [datetime.fromtimestamp(one.start / SECOND, BERLIN) for one in value.opened]
        assert [start.day for start in starts] == [23, 24, 25, 26, 27, 28, 29]
        assert {start.hour for start in starts} == {0}

    @given(
        st.sampled_from(["Europe/Berlin", "America/Sao_Paulo", "America/Havana", "Pacific/Apia",
                         "Asia/Beirut", "Africa/Cairo", "Australia/Lord_Howe"]),
        st.datetimes(datetime(1980, 1, 1), datetime(2040, 1, 1)),
    )  # fmt: skip
    def test_every_moment_is_in_the_day_that_its_clock_shows(
        self, zone: str, moment: datetime
    ) -> None:
        """Also where midnight is skipped, or comes twice, or a whole day does not exist."""
        known = ZoneInfo(zone)

        class Local(Remembering, size=86_400, late=0, tz=zone): ...

        at = moment.replace(tzinfo=UTC)
        ((start, end),) = window_type(Local).shape.spans(micros(at))
        assert start <= micros(at) < end
        shown = at.astimezone(known).date()
        for inside in (start, end - 1):
            assert datetime.fromtimestamp(inside // SECOND, known).date() == shown
        assert datetime.fromtimestamp(start // SECOND - 1, known).date() < shown
        assert datetime.fromtimestamp(end // SECOND, known).date() > shown


class TestLate:
    """Windows close once; what comes after that is counted."""

    def test_a_window_closes_when_an_event_is_late_enough(self) -> None:
        value = windows(Minute)
        assert value.fold(Reading(number=0), 59 * SECOND, 59 * SECOND) == []
        assert value.fold(Reading(number=1), 70 * SECOND - 1, 70 * SECOND) == []
        assert value.fold(Reading(number=2), 58 * SECOND, 70 * SECOND) == []
        assert closed(value.fold(Reading(number=3), 70 * SECOND, 70 * SECOND)) == [(0, 60, [0, 2])]
        assert value.fold(Reading(number=4), 59 * SECOND, 70 * SECOND) == [
            Told(sensor="s", start=0, number=4)
        ]
        assert value.counts.late == 1
        assert again(value).counts == value.counts
        assert [one.window.numbers for one in value.opened] == [[1, 3]]

    def test_a_window_that_began_after_a_later_one_closes_before_it(self) -> None:
        value = windows(Minute)
        for number, second in enumerate((61, 59)):
            assert value.fold(Reading(number=number), second * SECOND, 61 * SECOND) == []
        value = again(value)
        assert value.due() == 70 * SECOND
        assert closed(value.fold(Reading(number=2), 70 * SECOND, 70 * SECOND)) == [(0, 60, [1])]
        assert closed(value.close(130 * SECOND)) == [(60, 120, [0, 2])]

    def test_an_event_misses_only_the_windows_that_have_closed(self) -> None:
        value = windows(Sliding)
        for number, second in enumerate((50, 72)):
            value.fold(Reading(number=number), second * SECOND, second * SECOND)
        assert [one.start // SECOND for one in value.opened] == [25, 50]
        value.fold(Reading(number=2), 55 * SECOND, 72 * SECOND)
        assert value.counts.late == 1
        assert [one.window.numbers for one in value.opened] == [[0, 1, 2], [0, 1, 2]]

    def test_a_backlog_closes_nothing_early_however_long_it_waited(self) -> None:
        value = windows(Minute)
        value.fold(Reading(number=0), 0, 0)
        year = 365 * 86_400 * SECOND
        assert value.fold(Reading(number=1), 59 * SECOND, year) == []
        assert closed(value.fold(Reading(number=2), 70 * SECOND, year)) == [(0, 60, [0, 1])]
        assert value.counts.late == 0

    def test_events_seldom_set_the_timer(self) -> None:
        """Whether they come as they happen, from a backlog, or make a session longer."""
        hour = 3600 * SECOND

        def armed(cls: Any, times: Iterable[int], behind: int) -> int:
            value, count = windows(cls), 0
            for second in times:
                at = second * SECOND
                now = max(at, behind)
                value.fold(Reading(number=0), at, now)
                set_for = value.arm(fired=False)
                if set_for is not None:
                    count += 1
                    assert set_for >= now
                due = value.due()
                assert due is not None
                assert value.armed <= due + SECOND  # so it closes in time
            return count

        assert armed(Minute, range(0, 600, 2), 0) == 10
        assert armed(Minute, range(0, 600, 2), hour) == 10
        assert armed(Visit, range(0, 600, 2), 0) == 1
        assert armed(Visit, range(0, 600, 2), hour) == 1

    def test_an_idle_key_closes_by_the_clock(self) -> None:
        value = windows(Minute)
        value.fold(Reading(number=0), 50 * SECOND, 1000 * SECOND)
        due = value.due()
        assert due == 1020 * SECOND
        assert value.close(due - 1) == []
        value = again(value)
        assert value.due() == due
        assert closed(value.close(due)) == [(0, 60, [0])]
        assert value.close(due) == []
        assert value.fold(Reading(number=1), 55 * SECOND, due)[0] == Told(
            sensor="s", start=0, number=1
        )

    def test_a_timer_that_is_handled_late_closes_only_what_was_complete_at_its_time(self) -> None:
        value = windows(Minute)
        value.fold(Reading(number=0), 0, 0)
        value.fold(Reading(number=1), 68 * SECOND, 68 * SECOND)
        assert value.close(3600 * SECOND, due=69 * SECOND) == []
        assert (value.newest, value.handled) == (68 * SECOND, 68 * SECOND)
        assert closed(value.close(3600 * SECOND, due=71 * SECOND)) == [(0, 60, [0])]
        assert value.due() == 130 * SECOND
        value.fold(Reading(number=2), 100 * SECOND, 100 * SECOND)
        assert value.close(3600 * SECOND, due=71 * SECOND) == []
        assert value.due() == 130 * SECOND

    def test_a_wrong_clock_closes_nothing(self) -> None:
        value = windows(Minute)
        value.fold(Reading(number=0), 55 * SECOND, 55 * SECOND)
        assert value.fold(Reading(number=1), 10**9 * SECOND, 56 * SECOND) == []
        assert value.counts.clamped == 1
        assert value.watermark == 56 * SECOND
        assert value.fold(Reading(number=2), 57 * SECOND, 57 * SECOND) == []
        assert [one.window.numbers for one in value.opened] == [[0, 2], [1]]
        value.close(55 * SECOND)  # and a clock that was set back, neither
        assert (value.watermark, len(value.opened)) == (56 * SECOND, 2)
        assert value.due() == 55 * SECOND + 60 * SECOND - 66 * SECOND + 10 * SECOND

    def test_the_oldest_closes_where_too_many_are_open(self) -> None:
        class Long(Remembering, size=1, late=1000): ...

        value, found = windows(Long), []
        for second in range(MAX_OPEN + 2):
            found += value.fold(Reading(number=second), second * SECOND, second * SECOND)
        assert closed(found) == [(0, 1, [0]), (1, 2, [1])]
        assert (value.counts.forced, len(value.opened)) == (2, MAX_OPEN)
        value.fold(Reading(number=-1), 0, 99 * SECOND)
        assert value.counts.late == 1

    def test_an_idle_key_is_forgotten_at_last(self) -> None:
        kind, value = window_type(Minute), windows(Minute)
        assert value.due() is None
        assert value.close(0) == []
        value.fold(Reading(number=0), 0, 0)
        value.close(70 * SECOND)
        assert value.due() == FORGET
        row = kind.close(value, Kept(kind="Minute", key="s", version=3))
        assert row is not None
        value.close(FORGET)
        assert value.due() is None
        assert kind.close(value, row) == Kept(kind="Minute", key="s", version=3)
        assert kind.close(value, Kept(kind="Minute", key="s")) is None
        value.fold(Reading(number=1), FORGET, FORGET)
        assert value.due() is not None
        stored = kind.close(value, row)
        assert stored is not None
        assert stored.data is not None

    def test_early_is_told_of_every_window_after_each_event(self) -> None:
        class Alarmed(Remembering, size=60, step=30, late=10):
            def early(self) -> list[Told | None]:
                number = self.numbers[-1]
                told = Told(sensor=self.key, start=self.start.timestamp(), number=number)
                return [told if number > 5 else None]

        value = windows(Alarmed)
        assert value.fold(Reading(number=5), 0, 0) == []
        assert value.fold(Reading(number=6), SECOND, SECOND) == [
            Told(sensor="s", start=-30, number=6),
            Told(sensor="s", start=0, number=6),
        ]

    @pytest.mark.parametrize("at", [125, datetime(1970, 1, 1, 1, 2, 5, tzinfo=BERLIN)])
    def test_methods_can_be_called_by_a_test(self, at: Any) -> None:
        window = Minute.keyed("s", at, numbers=[1])
        window.add(Reading(number=2))
        assert (window.key, window.numbers, window.counts.late) == ("s", [1, 2], 0)
        assert (window.start.timestamp(), window.end.timestamp()) == (120, 180)
        assert window.close().numbers == [1, 2]
        assert Sliding.keyed("s", 125).start.timestamp() == 125
        session = Visit.keyed("s", 125)
        assert (session.start.timestamp(), session.end.timestamp()) == (125, 155)
        day = Day.keyed("s", at)
        assert (day.start.isoformat(), day.end.hour) == ("1970-01-01T00:00:00+01:00", 0)

    def test_what_is_no_event_is_told(self) -> None:
        class Wrong(Remembering, size=60, late=10):
            def early(self) -> Any:
                return 5 if self.numbers == [5] else self.numbers

        for number, word in ((5, "int"), (6, "list")):
            with pytest.raises(TypeError, match=rf"Wrong\.early returned {word}: expected an"):
                windows(Wrong).fold(Reading(number=number), 0, 0)


class TestRows:
    """One row for each key."""

    def test_a_row_survives(self) -> None:
        class Sketch(Remembering, key="sensor", size=60, late=10):
            sensor: str
            highest: float = -math.inf
            sketch: bytes = b"\xff\0"

        value = windows(Sketch, key="4711")
        value.fold(Reading(number=1), 0, 0)
        value.fold(Reading(number=2), 65 * SECOND, 66 * SECOND)
        found = again(value)
        assert (found.newest, found.handled, found.watermark) == (
            65 * SECOND,
            66 * SECOND,
            55 * SECOND,
        )
        assert [one.window for one in found.opened] == [one.window for one in value.opened]
        one = found.opened[1]
        assert (one.window.sensor, one.window.key, one.window.highest) == (
            "4711",
            "4711",
            -math.inf,
        )
        assert one.window.start == datetime(1970, 1, 1, 0, 1, tzinfo=UTC)
        assert one.window.end - one.window.start == timedelta(minutes=1)

    def test_what_did_not_change_is_not_written(self) -> None:
        value = windows(Minute)
        value.fold(Reading(number=1), 0, 0)
        row = value.kind.close(value, Kept(kind="Minute", key="s"))
        assert row is not None
        found = value.kind.open(row)
        found.close(0)
        assert value.kind.close(found, row) is None

    def test_the_windows_of_an_older_version_are_migrated(self) -> None:
        class Counted(Remembering, name="Minute", version=2, size=60, late=10):
            count: int = 0

            @migrates(1)
            def _counts(old: dict[str, Any]) -> dict[str, Any]:  # noqa: N805
                return {**old, "count": len(old["numbers"])}

        value = windows(Minute)
        value.fold(Reading(number=1), 0, 0)
        row = value.kind.close(value, Kept(kind="Minute", key="s"))
        assert row is not None
        newer = window_type(Counted).open(row)
        assert newer.opened[0].window.count == 1
        written = newer.kind.close(newer, row)
        assert written is not None
        assert written.shape == 2
        with pytest.raises(NewerState, match="Minute s has version 2"):
            window_type(Minute).open(written)

    def test_what_is_no_window_or_can_not_be_stored_is_told(self) -> None:
        data = msgspec.msgpack.encode({"numbers": []})
        with pytest.raises(StateMismatch, match=r"Minute s holds no windows: .*another name"):
            window_type(Minute).open(Kept(kind="Minute", key="s", shape=1, data=data))
        for bad, message in (
            ([1 << 70], "Minute s can't be stored"),
            ([10**9] * (MAX_DATA // 5 + 1), f"in 1 open windows; at most {MAX_DATA}"),
        ):
            value = windows(Minute)
            value.fold(Reading(number=1), 0, 0)
            value.opened[0].window.numbers = bad
            with pytest.raises(StateMismatch, match=message):
                value.kind.close(value, Kept(kind="Minute", key="s"))

    def test_windows_of_an_earlier_size_close_at_their_own_end(self) -> None:
        class Longer(Remembering, name="Minute", size=100, late=10): ...

        value = windows(Minute)
        value.fold(Reading(number=1), 0, 0)
        row = value.kind.close(value, Kept(kind="Minute", key="s"))
        assert row is not None
        newer = window_type(Longer).open(row)
        newer.fold(Reading(number=2), 1, 1)
        assert closed(newer.close(1000 * SECOND)) == [(0, 60, [1]), (0, 100, [2])]


class TestTimes:
    """The time of an event."""

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (0, 0),
            (1.5, 1_500_000),
            (-1, -1_000_000),
            (datetime(1970, 1, 1, 1, tzinfo=UTC), 3_600_000_000),
            (datetime(2026, 7, 1, 2, tzinfo=BERLIN), 1_782_864_000_000_000),
        ],
    )
    def test_good(self, value: object, expected: int) -> None:
        assert event_time(value, "$.at") == expected

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (None, "expected a time: a datetime, or a number"),
            ("2026-01-01T00:00:00Z", "expected a time: a datetime, or a number"),
            (True, "expected a time: a datetime, or a number"),
            (datetime(2026, 1, 1), "with its offset from UTC"),
            (math.nan, "years 1000 to 8999"),
            (math.inf, "years 1000 to 8999"),
            (1.7e12, "years 1000 to 8999"),
            (-1.7e11, "years 1000 to 8999"),
            (datetime(1, 1, 1, tzinfo=UTC), "years 1000 to 8999"),
        ],
    )
    def test_bad(self, value: object, message: str) -> None:
        with pytest.raises(InvalidEvent, match=message) as caught:
            event_time(value, "$.at")
        assert caught.value.field == "$.at"


class TestDeclared:
    """Wrong declarations name the class and the remedy."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"late": 1}, "declare either size=…"),
            ({"late": 1, "size": 60, "gap": 5}, "declare either size=…"),
            ({"late": 1, "size": 0}, "size=0: expected 0.001 to"),
            ({"late": 1, "size": 1e9}, "size=1000000000.0: expected"),
            ({"late": 1, "size": math.nan}, "size=nan: expected"),
            ({"late": 1, "size": 60, "step": -1}, "step=-1: expected"),
            ({"late": 1, "size": 60, "step": 61}, "step=61: is more than size=60"),
            ({"late": 1, "size": 65, "step": 1}, "would be in 65 windows"),
            ({"late": 1, "gap": 0}, "gap=0: expected"),
            ({"late": 1, "gap": 60, "step": 6}, "step: is for windows of a size"),
            ({"late": 1, "gap": 60, "tz": "UTC"}, "tz: is for windows of a size"),
            ({"late": 1, "gap": 60}, r"define join\(self, other\)"),
            ({"late": 1, "size": 86_400, "tz": "Europe/Bärlin"}, "expected the name of a time"),
            ({"late": 1, "size": 86_400, "tz": "../etc"}, "expected the name of a time zone"),
            ({"late": 1, "size": 3600, "tz": "UTC"}, "size: with tz windows are whole days"),
            ({"late": 1, "size": 86_400, "step": 43_200, "tz": "UTC"}, "step: with tz windows"),
            ({"size": 60}, "add late=…"),
            ({"size": 60, "late": -1}, "late=-1: expected 0 to"),
            ({"size": 60, "late": 1, "version": 0}, "version=0: expected 1 or more"),
        ],
    )
    def test_keywords(self, options: Any, message: str) -> None:
        with pytest.raises(DeclarationError, match=message) as caught:
            type(Window)("Bad", (Remembering,), {"__module__": "m"}, **options)
        assert str(caught.value).startswith("m.Bad: ")

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({}, r"define add\(self, event\)"),
            ({"add": lambda self, event: None}, r"define close\(self\)"),
            ({"__annotations__": {"start": int}, "start": 0}, "field start: Oyez uses this name"),
            ({"__annotations__": {"left": int}}, "field left has no default"),
        ],
    )
    def test_bodies(self, body: Any, message: str) -> None:
        with pytest.raises(DeclarationError, match=message):
            type(Window)("Bad", (Window,), {"__module__": "m", **body}, size=60, late=1)

    def test_a_window_is_no_state_and_a_state_no_window(self) -> None:
        with pytest.raises(DeclarationError, match="is not keyed state"):
            kind_of(Minute)
        with pytest.raises(DeclarationError, match="is not a window"):
            window_type(Reading)


def batch(cls: type[Window], times: list[int]) -> list[tuple[float, float, list[int]]]:
    """The windows of these times (µs) as one sees them who has all events: the naive way."""
    found: dict[tuple[int, int], list[int]] = {}
    if cls is Visit:
        previous, span = None, (0, 0)
        for at, number in sorted((at, number) for number, at in enumerate(times)):
            if previous is None or at - previous >= 30 * SECOND:
                span = (at, at)
                found[span] = []
            found[span].append(number)
            previous = at
        ends = {span: max(times[n] for n in members) for span, members in found.items()}
        found = {(s[0], ends[s] + 30 * SECOND): members for s, members in found.items()}
    elif cls is Day:
        for number, at in enumerate(times):
            day = datetime.fromtimestamp(at / SECOND, BERLIN).date()
            edges = [datetime(d.year, d.month, d.day, tzinfo=BERLIN)
                     for d in (day, day + timedelta(days=1))]  # fmt: skip
            found.setdefault((micros(edges[0]), micros(edges[1])), []).append(number)
    else:
        step = 60 if cls is Minute else 25
        for start in range(-75, max(times) // SECOND + 1):
            if start % step == 0:
                edge = (start * SECOND, (start + 60) * SECOND)
                members = [n for n, at in enumerate(times) if edge[0] <= at < edge[1]]
                if members:
                    found[edge] = members
    return sorted((s / SECOND, e / SECOND, sorted(members)) for (s, e), members in found.items())


DISORDER = {Minute: 10, Sliding: 10, Visit: 10, Day: 7200}
SPREAD = {Minute: 400, Sliding: 400, Visit: 400, Day: 5 * 86_400}
ORIGIN = {Minute: 0, Sliding: 0, Visit: 0,
          Day: round(datetime(2026, 3, 28, tzinfo=BERLIN).timestamp())}  # fmt: skip


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[type[Window], list[int], list[tuple[int, int, bool]]]:
    """A kind of window, the times of events, and how they arrive: (when, event, after a crash).

    Each event arrives, some of them twice, at most ``late`` after it happened.
    """
    cls = draw(st.sampled_from([Minute, Sliding, Visit, Day]))
    origin, late = ORIGIN[cls] * SECOND, DISORDER[cls] * SECOND
    offsets = st.integers(0, SPREAD[cls] * SECOND)
    round_ones = st.integers(0, SPREAD[cls] // 5).map(lambda fifth: 5 * fifth * SECOND)
    times = draw(st.lists(st.one_of(offsets, round_ones), min_size=1, max_size=25))
    times = [origin + time for time in times]
    delays = st.one_of(st.integers(0, late), st.sampled_from([0, late]))
    arrivals = []
    for number, at in enumerate(times):
        copies = draw(st.lists(st.tuples(delays, st.booleans()), min_size=1, max_size=2))
        arrivals += [(at + delay, number, crashed) for delay, crashed in copies]
    return cls, times, sorted(arrivals)


def finish(value: Windows) -> list[object]:
    found: list[object] = []
    while value.opened:
        due = value.due()
        assert due is not None
        assert value.close(due - 1) == []
        more = value.close(due)
        assert more
        found += more
    return found


class TestAnyOrder:
    """In any order within ``late``, with duplicates and crashes, the result is the batch's."""

    @given(deliveries())
    def test_as_it_happens_with_timers(self, case: Any) -> None:
        """Each timer fires on time, and what an idle key holds closes within ``late``."""
        cls, times, arrivals = case
        value, found, seen = windows(cls), [], set()
        for now, number, crashed in arrivals:
            while value.opened and (due := value.due()) is not None and due <= now:
                found += value.close(due)
            if number not in seen:
                seen.add(number)
                found += value.fold(Reading(number=number), times[number], now)
                assert all(one.end > value.watermark for one in value.opened)
            if crashed:
                value = again(value)
        last = max(times)
        late = DISORDER[cls] * SECOND
        for one in value.opened:
            due = value.due()
            assert due is not None
            assert due <= max(one.end, last) + 2 * late
        found += finish(value)
        assert sorted(closed(found)) == batch(cls, times)
        assert (value.counts.late, value.counts.clamped, value.counts.forced) == (0, 0, 0)

    @given(deliveries(), st.lists(st.integers(0, 10**13), min_size=50, max_size=50))
    def test_from_a_backlog_at_any_speed(self, case: Any, pauses: list[int]) -> None:
        """No timer fires while it lags, however long it takes."""
        cls, times, arrivals = case
        value, found, seen = windows(cls), [], set()
        now = arrivals[-1][0]
        for (_, number, crashed), pause in zip(arrivals, pauses, strict=False):
            now += pause
            if number not in seen:
                seen.add(number)
                found += value.fold(Reading(number=number), times[number], now)
                assert all(one.end > value.watermark for one in value.opened)
            if crashed:
                value = again(value)
        found += finish(value)
        assert sorted(closed(found)) == batch(cls, times)
        assert (value.counts.late, value.counts.clamped, value.counts.forced) == (0, 0, 0)

    @given(
        st.sampled_from([Minute, Sliding]),
        st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=40),
    )
    def test_in_any_order_at_all_each_event_is_added_or_counted(
        self, cls: Any, arrivals: list[tuple[int, int]]
    ) -> None:
        value, found = windows(cls), []
        belongs = 0
        for number, (at, now) in enumerate(arrivals):
            found += value.fold(Reading(number=number), at, now)
            belongs += len(value.kind.shape.spans(min(at, now + 10 * SECOND)))
        found += finish(value)
        spans = [(start, end) for start, end, _ in closed(found)]
        assert len(spans) == len(set(spans))
        added = sum(len(numbers) for _, _, numbers in closed(found))
        assert added + value.counts.late == belongs


class At(Event, type="test.at", key="sensor"):
    sensor: str
    number: int
    at: float


class Sensor(Window, key="sensor", size=60, late=10):
    numbers: list[int] = []  # noqa: RUF012 - copied for each

    def add(self, event: At) -> None:
        self.numbers.append(event.number)

    def close(self) -> Closed:
        start, end = self.start.timestamp(), self.end.timestamp()
        return Closed(sensor=self.key, start=start, end=end, numbers=sorted(self.numbers))

    def late(self, event: At) -> Told:
        return Told(sensor=self.key, start=self.start.timestamp(), number=event.number)


class Moment(Event, type="test.moment"):
    place: str
    at: datetime | None = None
    text: str = ""


class Named(Window, size=60, late=10, name="Named"):
    def add(self, event: At) -> None: ...
    def close(self) -> None: ...


class TestSubscribed:
    """Wrong subscriptions name the class and the remedy."""

    @pytest.mark.parametrize(
        ("cls", "events", "options", "message"),
        [
            (Sensor, (), {}, "needs at least one event class"),
            (Reading, (At,), {}, "Reading is not a window: subclass oyez.Window"),
            (Named, (Moment,), {}, "Moment has no key to find its Named by"),
            (Sensor, (Reading, Moment), {}, "Moment has no field sensor, by which its Sensor"),
            (Sensor, (Moment,), {"by": "spot"}, "Moment has no field spot, by which its Sensor"),
            (Sensor, (Reading,), {"time": "at"}, "Reading has no field at, the time of its"),
            (Sensor, (Moment,), {"by": "place", "time": "text"}, r"Moment\.text is the time of"),
        ],
    )
    def test_wrongly(self, cls: Any, events: Any, options: Any, message: str) -> None:
        with pytest.raises(DeclarationError, match=message) as caught:
            Service("desk").window(cls, *events, **options)
        assert cls.__qualname__ in str(caught.value)

    def test_streams_that_differ(self) -> None:
        class There(Event, type="test.there", key="sensor", stream="test.elsewhere"):
            sensor: str

        service = Service("desk")
        with pytest.raises(DeclarationError, match="its events name different streams"):
            service.window(Sensor, At, There)
        service.window(Sensor, At, There, stream="test.one")
        assert service.handlers[0].stream == "test.one"

    def test_annotations_that_mean_nothing(self) -> None:
        class Odd(Named, size=60, late=10):
            def close(self) -> Missing: ...  # type: ignore[name-defined]  # noqa: F821

        with pytest.raises(DeclarationError, match=r"Odd\.close can't be resolved.*at the top"):
            Service("desk").window(Odd, At)

    def test_once(self) -> None:
        class Same(Named, size=60, late=10, name="Sensor"): ...

        service = Service("desk")
        service.window(Sensor, At)
        with pytest.raises(DeclarationError, match="two handlers named Sensor"):
            service.window(Same, At)

    def test_what_it_publishes_and_where_it_stands(self) -> None:
        service = Service("desk")
        service.window(Sensor, At, time="at")
        (handler,) = service.handlers
        assert [kind.cls for kind in handler.publishes] == [Closed, Told]
        (fault,) = (
            each
            for each in check(System({"desk": service}, name="shop"))
            if "nobody publishes test.at" in each.text
        )
        assert fault.file == inspect.getsourcefile(Sensor)
        assert fault.line == inspect.getsourcelines(Sensor)[1]


def measuring() -> Service:
    service = Service("desk")
    service.window(Sensor, At, time="at")
    return service


class TestInProcess:
    """Windows on the whole runtime, under a virtual clock."""

    async def test_windows_close_by_events_and_at_last_by_the_clock(self) -> None:
        async with running(measuring()) as system:
            start = system.ambient.now() // 60 * 60 + 60
            await system.advance(start - system.ambient.now())
            for second in range(0, 100, 10):
                for sensor in "ab":
                    event = At(sensor=sensor, number=second, at=start + second)
                    await system.publish(event)
                await system.advance(10.0)
            await system.publish(At(sensor="c", number=1, at=start + 100))
            await system.settled()
            found = {event.sensor: event for event in system.announced(Closed)}
            assert found == {
                sensor: Closed(sensor=sensor, start=start, end=start + 60,
                               numbers=[0, 10, 20, 30, 40, 50])
                for sensor in "ab"
            }  # fmt: skip
            await system.advance(start + 120 + 10 - system.ambient.now() - 0.5)
            assert len(system.announced(Closed)) == 2
            await system.advance(1.5)  # within late + 1 s
            last = {event.sensor: event.numbers for event in system.announced(Closed)[2:]}
            assert last == {"a": [60, 70, 80, 90], "b": [60, 70, 80, 90], "c": [1]}
            await system.publish(At(sensor="c", number=2, at=start + 119))
            await system.settled()
            assert system.announced(Told) == [Told(sensor="c", start=start + 60, number=2)]
            assert await system.dead("desk") == []
            timers = await system.fetch("desk", "select key, due from oyez_timer order by key")
            assert [row["key"] for row in timers] == ["a", "b", "c"]
            assert all(row["due"] > start + FORGET / SECOND for row in timers)

    async def test_an_event_that_comes_twice_counts_once(self) -> None:
        async with running(measuring()) as system:
            now = system.ambient.now()
            await system.publish(At(sensor="a", number=1, at=now))
            await system.settled()
            (envelope,) = [each for each in system.history() if each.type == "test.at"]
            await system.publish_raw(envelope.headers(), envelope.data, key="a")
            await system.advance(120.0)
            assert [event.numbers for event in system.announced(Closed)] == [[1]]

    async def test_the_time_is_that_of_publishing_by_default(self) -> None:
        service = Service("desk")
        service.window(Sensor, At, by=lambda event: event.number)
        async with running(service) as system:
            now = system.ambient.now()
            await system.publish(At(sensor="a", number=7, at=0))
            await system.advance(120.0)
            (event,) = system.announced(Closed)
            assert event.start <= now < event.end
            assert event.sensor == "7"

    async def test_what_has_no_time_becomes_a_dead_letter(self) -> None:
        class Place(Named, size=60, late=10): ...

        service = Service("desk")
        service.window(Place, Moment, time="at", by="place")
        service.window(Named, Moment, by="place")
        async with running(service) as system:
            await system.publish(Moment(place="a"))
            await system.settled()
            await system.publish_raw(
                {"specversion": "1.0", "id": "1", "source": "/x", "type": "test.moment"},
                b'{"place": "b", "at": "2026-07-01T00:00:00Z"}',
            )
            await system.settled()
            letters = {row["handler"]: row["reason"] for row in await system.dead("desk")}
            assert "$.at: expected a time: a datetime" in letters["Place"]
            assert "time: is missing, and its window is found by it" in letters["Named"]


class Slow(MemoryBroker):
    """A memory broker that gives no records of a stream before it is told to."""

    def __init__(self, ambient: VirtualAmbient) -> None:
        super().__init__(ambient)
        self.open_again = asyncio.Event()
        self.open_again.set()

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        async for batch in super().read(stream, partition, after):
            await self.open_again.wait()
            yield batch


class TestRestarted:
    """A process that ends, and another one that begins with the same store."""

    @asynccontextmanager
    async def process(
        self, broker: MemoryBroker, path: Path, *, crash: bool = False
    ) -> AsyncIterator[ServiceProcess]:
        process = ServiceProcess(
            measuring(),
            ProcessSettings(system="test"),
            broker=broker,
            store=SqliteStore(path, self.ambient, inline=True, durable=False),
            ambient=self.ambient,
            signals=Signals(),
        )
        await process.start()
        await self.ambient.advance(2.0)
        yield process
        if crash:
            await process.kill()
            await process.store.leave(process.owner)  # its lease ends
            await process.store.close()
        else:
            await process.drain()

    async def publish(self, broker: MemoryBroker, *events: At) -> None:
        announcer = Announcer("test", "outside", self.ambient)
        for event in events:
            row = announcer.announce(event, Origin(), "2027-01-01T00:00:00Z", 0.0, None)
            await broker.publish(
                [Record(stream="test.outside", key=row.key, headers=row.headers, data=row.data)]
            )

    def closed(self, broker: MemoryBroker) -> list[tuple[str, float, list[int]]]:
        """The windows on the broker: sensor, start in seconds since the first, numbers."""
        found = [
            msgspec.json.decode(record.data or b"", type=Closed)
            for log in broker.logs.get("test.desk", [])
            for record in log
        ]
        return sorted((e.sensor, e.start - self.start, e.numbers) for e in found)

    @pytest.mark.parametrize("crash", [False, True])
    async def test_after_a_downtime_nothing_closes_before_the_backlog_is_handled(
        self, tmp_path: Path, crash: bool
    ) -> None:
        self.ambient = VirtualAmbient()
        broker, path = Slow(self.ambient), tmp_path / "desk.db"
        self.start = start = self.ambient.now() // 60 * 60
        async with self.process(broker, path, crash=crash):
            await self.publish(broker, *(At(sensor=s, number=1, at=start + 5) for s in "ab"))
            await self.ambient.advance(5.0)
        await self.publish(
            broker,
            *(At(sensor="a", number=n, at=start + at) for n, at in ((2, 55), (3, 65), (4, 59))),
        )
        await self.ambient.advance(3600.0)
        assert self.closed(broker) == []
        broker.open_again.clear()
        async with self.process(broker, path):
            await self.ambient.advance(30.0)
            assert ("a", 0, [1]) not in self.closed(broker)
            broker.open_again.set()
            await self.ambient.advance(2.0)
            assert ("b", 0, [1]) in self.closed(broker)
            await self.ambient.advance(90.0)
            assert self.closed(broker) == [("a", 0, [1, 2, 4]), ("a", 60, [3]), ("b", 0, [1])]
