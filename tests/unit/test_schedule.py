"""Schedules: their times, their declaration, and that each tick is handled once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from oyez import Event, Service, State, Tick, Transaction
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import DeclarationError
from oyez.partitioning import partition_of
from oyez.ports import Changes
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.schedule import COUNTED, EVERY, Missed, Schedule, schedule
from oyez.signals import EventRetried, Signals
from oyez.stores.sqlite import SqliteStore
from oyez.tables import PLACES, TIMERS
from oyez.testing import VirtualAmbient, running
from oyez.testing.clock import START
from oyez.timers import arm

PRAGUE, NEW_YORK = "Europe/Prague", "America/New_York"
LORD_HOWE, SAO_PAULO = "Australia/Lord_Howe", "America/Sao_Paulo"

CASES = [
    # The hour from 2 to 3 comes twice.
    ("30 2 * * *", PRAGUE, "2026-10-24T12:00", ["10-25 02:30+02", "10-26 02:30+01"]),
    ("0 2 * * *", PRAGUE, "2026-10-24T12:00", ["10-25 02:00+02", "10-26 02:00+01"]),
    ("59 2 * * *", PRAGUE, "2026-10-24T12:00", ["10-25 02:59+02", "10-26 02:59+01"]),
    ("0 3 * * *", PRAGUE, "2026-10-24T12:00", ["10-25 03:00+01", "10-26 03:00+01"]),
    (
        "0 * * * *",
        PRAGUE,
        "2026-10-25T00:30",
        ["10-25 01:00+02", "10-25 02:00+02", "10-25 02:00+01", "10-25 03:00+01"],
    ),
    (
        "*/30 * * * *",
        PRAGUE,
        "2026-10-25T01:40",
        ["10-25 02:00+02", "10-25 02:30+02", "10-25 02:00+01", "10-25 02:30+01", "10-25 03:00+01"],
    ),
    (
        "30 * * * *",
        PRAGUE,
        "2026-10-25T00:40",
        ["10-25 01:30+02", "10-25 02:30+02", "10-25 02:30+01", "10-25 03:30+01"],
    ),
    (
        "*/30 2 * * *",
        PRAGUE,
        "2026-10-24T12:00",
        ["10-25 02:00+02", "10-25 02:30+02", "10-25 02:00+01", "10-25 02:30+01", "10-26 02:00+01"],
    ),
    (
        "30 2,3 * * *",
        PRAGUE,
        "2026-10-24T12:00",
        ["10-25 02:30+02", "10-25 03:30+01", "10-26 02:30+01"],
    ),
    ("30 2 25 10 *", PRAGUE, "2026-10-24T12:00", ["10-25 02:30+02", "10-25 02:30+02"]),
    (
        "30 1-3 * * *",
        PRAGUE,
        "2026-10-25T00:00",
        ["10-25 01:30+02", "10-25 02:30+02", "10-25 03:30+01", "10-26 01:30+01"],
    ),
    (
        "30 */2 * * *",
        PRAGUE,
        "2026-10-25T00:00",
        ["10-25 00:30+02", "10-25 02:30+02", "10-25 02:30+01", "10-25 04:30+01"],
    ),
    ("30 2 * * *", PRAGUE, "2026-10-25T02:45", ["10-26 02:30+01"]),
    # The hour from 2 to 3 does not come.
    ("30 2 * * *", PRAGUE, "2026-03-28T12:00", ["03-29 03:00+02", "03-30 02:30+02"]),
    ("0 2 * * *", PRAGUE, "2026-03-28T12:00", ["03-29 03:00+02", "03-30 02:00+02"]),
    ("0 3 * * *", PRAGUE, "2026-03-28T12:00", ["03-29 03:00+02", "03-30 03:00+02"]),
    (
        "0 * * * *",
        PRAGUE,
        "2026-03-29T00:30",
        ["03-29 01:00+01", "03-29 03:00+02", "03-29 04:00+02"],
    ),
    (
        "*/30 * * * *",
        PRAGUE,
        "2026-03-29T01:10",
        ["03-29 01:30+01", "03-29 03:00+02", "03-29 03:30+02"],
    ),
    ("*/30 2 * * *", PRAGUE, "2026-03-28T12:00", ["03-30 02:00+02", "03-30 02:30+02"]),
    (
        "15,45 2 * * *",
        PRAGUE,
        "2026-03-28T12:00",
        ["03-29 03:00+02", "03-30 02:15+02", "03-30 02:45+02"],
    ),
    ("30 2 29 3 *", PRAGUE, "2026-03-28T12:00", ["03-29 03:00+02"]),
    (
        "30 1-3 * * *",
        PRAGUE,
        "2026-03-29T00:00",
        ["03-29 01:30+01", "03-29 03:00+02", "03-29 03:30+02", "03-30 01:30+02"],
    ),
    ("30 2 * * 0", PRAGUE, "2026-03-28T12:00", ["03-29 03:00+02", "04-05 02:30+02"]),
    # Other days, another hour.
    ("30 2 * * *", NEW_YORK, "2026-03-07T12:00", ["03-08 03:00-04", "03-09 02:30-04"]),
    ("0 2 * * *", NEW_YORK, "2026-03-07T12:00", ["03-08 03:00-04", "03-09 02:00-04"]),
    ("30 1 * * *", NEW_YORK, "2026-10-31T12:00", ["11-01 01:30-04", "11-02 01:30-05"]),
    (
        "0 * * * *",
        NEW_YORK,
        "2026-11-01T00:30",
        ["11-01 01:00-04", "11-01 01:00-05", "11-01 02:00-05"],
    ),
    (
        "*/15 1 * * *",
        NEW_YORK,
        "2026-11-01T01:20",
        ["11-01 01:30-04", "11-01 01:45-04", "11-01 01:00-05", "11-01 01:15-05", "11-01 01:30-05"],
    ),
    ("0 12 * * 1-5", NEW_YORK, "2026-10-30T13:00", ["11-02 12:00-05", "11-03 12:00-05"]),
    # By half an hour.
    ("45 1 * * *", LORD_HOWE, "2026-04-04T12:00", ["04-05 01:45+11", "04-06 01:45+10:30"]),
    ("15 2 * * *", LORD_HOWE, "2026-10-03T12:00", ["10-04 02:30+11", "10-05 02:15+11"]),
    ("0 2 * * *", LORD_HOWE, "2026-10-03T12:00", ["10-04 02:30+11", "10-05 02:00+11"]),
    ("30 2 * * *", LORD_HOWE, "2026-10-03T12:00", ["10-04 02:30+11", "10-05 02:30+11"]),
    (
        "*/15 * * * *",
        LORD_HOWE,
        "2026-04-05T01:40",
        ["04-05 01:45+11", "04-05 01:30+10:30", "04-05 01:45+10:30", "04-05 02:00+10:30"],
    ),
    (
        "*/15 * * * *",
        LORD_HOWE,
        "2026-10-04T01:40",
        ["10-04 01:45+10:30", "10-04 02:30+11", "10-04 02:45+11"],
    ),
    (
        "0 * * * *",
        LORD_HOWE,
        "2026-04-05T00:30",
        ["04-05 01:00+11", "04-05 02:00+10:30", "04-05 03:00+10:30"],
    ),
    # At midnight, and since 2019 never.
    ("0 0 * * *", SAO_PAULO, "2018-11-03T12:00", ["11-04 01:00-02", "11-05 00:00-02"]),
    ("30 0 * * *", SAO_PAULO, "2018-11-03T12:00", ["11-04 01:00-02", "11-05 00:30-02"]),
    ("30 23 * * *", SAO_PAULO, "2019-02-16T12:00", ["02-16 23:30-02", "02-17 23:30-03"]),
    (
        "0 * * * *",
        SAO_PAULO,
        "2018-11-03T22:30",
        ["11-03 23:00-03", "11-04 01:00-02", "11-04 02:00-02"],
    ),
    ("0 0 * * *", SAO_PAULO, "2026-10-17T12:00", ["10-18 00:00-03", "10-19 00:00-03"]),
    # Without a change.
    ("0 6 29 2 *", "UTC", "2026-01-01T00:00", ["02-29 06:00+00"]),
    ("0 0 L * *", "UTC", "2026-02-01T00:00", ["02-28 00:00+00", "03-31 00:00+00"]),
    ("0 0 * * 5#2", "UTC", "2026-11-01T00:00", ["11-13 00:00+00", "12-11 00:00+00"]),
]


class Report(Event, type="test.report"):
    at: str


class Runs(State):
    count: int = 0


def times(cron: str | None = None, **options: Any) -> Schedule:
    options = {"seconds": None, "tz": None, "missed": "once", **options}
    return schedule("jobs.nightly", "nightly", cron, **options)


class TestTimes:
    """Fixed times are made up for when a change of clocks skips them, and never come twice."""

    @pytest.mark.parametrize(("cron", "tz", "start", "expected"), CASES)
    def test_changes_of_clocks(self, cron: str, tz: str, start: str, expected: list[str]) -> None:
        zone, one = ZoneInfo(tz), times(cron, tz=tz)
        time = datetime.fromisoformat(start).replace(tzinfo=zone).timestamp()
        found, before = [], None
        for _ in expected:
            time = one.following(time)
            local = datetime.fromtimestamp(time, zone)
            found.append(f"{local:%m-%d %H:%M}{local.isoformat()[-6:].removesuffix(':00')}")
            if before is not None:
                assert one.preceding(time) == before
            before = time
        assert found == expected

    def test_in_the_second_of_two_equal_hours_the_first_is_over(self) -> None:
        zone = ZoneInfo(PRAGUE)
        time = datetime(2026, 10, 25, 2, 10, fold=1, tzinfo=zone)
        following = times("30 2 * * *", tz=PRAGUE).following(time.timestamp())
        assert datetime.fromtimestamp(following, zone) == datetime(2026, 10, 26, 2, 30, tzinfo=zone)

    def test_intervals_are_counted_from_1970(self) -> None:
        one = times(seconds=30)
        assert [one.following(time) for time in (0.0, 29.9, 30.0)] == [30.0, 30.0, 60.0]
        assert [one.preceding(time) for time in (30.0, 30.1, 60.0)] == [0.0, 30.0, 30.0]


class TestMissed:
    """What becomes of ticks that nobody was there for."""

    @pytest.mark.parametrize(
        ("missed", "late", "expected"),
        [
            ("once", 10.0, (0, -3600, 0, 3600)),
            ("once", 3 * 3600.0 + 10, (10800, -3600, 3, 14400)),
            ("skip", 10.0, (0, -3600, 0, 3600)),
            ("skip", 3 * 3600.0 + 10, (10800, 7200, 0, 14400)),
            ("skip", 3 * 3600.0 + 61, (None, None, None, 14400)),
            ("all", 3 * 3600.0 + 10, (0, -3600, 0, 3600)),
        ],
    )
    def test_a_tick_that_is_late(
        self, missed: Missed, late: float, expected: tuple[int | None, ...]
    ) -> None:
        firing = times("0 * * * *", missed=missed).fire(START, START + late)
        tick = firing.tick
        found = (
            (None, None, None)
            if tick is None
            else (
                tick.scheduled.timestamp() - START,
                tick.previous.timestamp() - START,
                tick.missed,
            )
        )
        assert (*found, firing.next - START) == expected

    def test_very_many_are_not_counted(self) -> None:
        firing = times("* * * * *").fire(START, START + 86_400.0 * 30 + 1)
        assert firing.tick is not None
        assert firing.tick.missed == COUNTED
        assert firing.tick.scheduled.timestamp() == START + 86_400.0 * 30
        assert firing.next == START + 86_400.0 * 30 + 60


class TestDeclaration:
    """Wrong ones are refused, with the remedy."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "expected either an expression"),
            ({"cron": "0 6 * * *", "seconds": 5}, "expected either an expression"),
            ({"cron": "0 0 6 * * *"}, "a field of seconds is not read"),
            ({"cron": "@reboot"}, "nicknames are not read"),
            ({"cron": "@daily"}, "nicknames are not read"),
            ({"cron": "0 25 * * *"}, "Bad hour"),
            ({"cron": "often"}, "Wrong number of fields"),
            ({"cron": "0 0 30 2 *"}, "Bad day-of-month"),
            ({"cron": "0 6 * * *", "tz": "Europe/Berln"}, "tz='Europe/Berln' is not known"),
            ({"cron": "0 6 * * *", "tz": "../etc"}, "is not known"),
            ({"seconds": 0.5}, "seconds: expected 1 to"),
            ({"seconds": float("nan")}, "seconds: expected 1 to"),
            ({"seconds": 30, "tz": PRAGUE}, "leave it out beside seconds"),
            ({"seconds": 30, "missed": "never"}, "missed: expected"),
        ],
    )
    def test_what_is_wrong_is_told(self, arguments: dict[str, Any], message: str) -> None:
        service = Service("jobs")

        async def nightly(tick: Tick, tx: Transaction) -> None: ...

        with pytest.raises(DeclarationError, match=message) as caught:
            service.every(**arguments)(nightly)
        assert "nightly" in str(caught.value)
        assert service.handlers == []

    def test_ticks_are_made_by_schedules_alone(self) -> None:
        with pytest.raises(DeclarationError, match=r"@service\.every"):
            Service("jobs").on(Tick)

    def test_names_are_unique(self) -> None:
        service = Service("jobs")

        async def nightly(tick: Tick, tx: Transaction) -> None: ...

        service.every(seconds=30)(nightly)
        with pytest.raises(DeclarationError, match="two handlers named nightly"):
            service.every(seconds=60)(nightly)


class TestRunning:
    """In one process, on the virtual clock, which begins at 08:00 UTC."""

    async def test_a_handler_runs_at_its_times_and_announces(self) -> None:
        service, ticks = Service("jobs"), list[Tick]()

        @service.every("*/5 * * * *", tz=PRAGUE)
        async def often(tick: Tick, runs: Runs, tx: Transaction) -> Report:
            runs.count += 1
            ticks.append(tick)
            return Report(at=f"{tick.scheduled:%H:%M}")

        async with running(service) as system:
            await system.settled()
            await system.advance(299.0)
            assert ticks == []
            await system.advance(601.0)
            assert [event.at for event in system.announced(Report)] == ["08:05", "08:10", "08:15"]
            start = datetime.fromtimestamp(START, UTC)
            five = timedelta(minutes=5)
            assert ticks[0] == Tick(name="often", scheduled=start + five, previous=start)
            assert ticks[1].previous == ticks[0].scheduled
            runs = await service.read(Runs, "often")
            assert runs is not None
            assert runs.count == 3
            rows = await system.fetch("jobs", "select event_id from oyez_inbox order by seq")
            assert rows[0] == {"event_id": "often@2027-01-15T08:05:00Z"}

    async def test_a_handler_that_fails_is_retried(self) -> None:
        service, attempts = Service("jobs"), list[Tick]()

        @service.every(seconds=60)
        async def often(tick: Tick) -> None:
            attempts.append(tick)
            if len(attempts) == 1:
                raise ValueError

        async with running(service) as system:
            await system.settled()
            await system.advance(70.0)
            assert len(attempts) == 2
            assert attempts[0] == attempts[1]
            assert len([s for s in system.signals if isinstance(s, EventRetried)]) == 1

    async def test_a_clock_that_is_set_back_repeats_no_tick_and_delays_none(self) -> None:
        service, ticks = Service("jobs"), list[float]()

        @service.every(seconds=60)
        async def often(tick: Tick) -> None:
            ticks.append(tick.scheduled.timestamp() - START)

        async with running(service) as system:
            await system.settled()
            await system.advance(200.0)
            system.ambient.set_back(120.0)
            await system.advance(200.0)
            assert ticks == [60.0, 120.0, 180.0, 240.0]

    async def test_a_record_from_a_broker_is_no_tick(self) -> None:
        service, ticks = Service("jobs"), list[Tick]()

        @service.every("0 0 1 1 *")
        async def yearly(tick: Tick) -> None:
            ticks.append(tick)

        async with running(service) as system:
            now = datetime.fromtimestamp(START, UTC)
            await system.publish(Tick(name="yearly", scheduled=now, previous=now))
            await system.settled()
            assert ticks == []


def jobs(ticks: list[Tick], cron: str = "* * * * *", **options: Any) -> Service:
    service = Service("jobs")

    @service.every(cron, **options)
    async def often(tick: Tick) -> None:
        ticks.append(tick)

    return service


class Replicas:
    """Processes of one service on one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ambient = VirtualAmbient()
        self.broker = MemoryBroker(self.ambient, partitions=1)
        self.alive: list[ServiceProcess] = []

    async def start(self, service: Service) -> ServiceProcess:
        process = ServiceProcess(
            service,
            ProcessSettings(system="test", partitions=1),
            broker=self.broker,
            store=SqliteStore(self.path, self.ambient, inline=True, durable=False),
            ambient=self.ambient,
            signals=Signals(),
        )
        await process.start()
        self.alive.append(process)
        return process

    async def kill(self, process: ServiceProcess) -> None:
        """As by a signal: its lease is found to be without a process."""
        self.alive.remove(process)
        await process.kill()
        await process.store.leave(process.owner)

    async def rows(self) -> list[tuple[str, str, float]]:
        sql = "select key, name, due from oyez_timer where kind = :kind order by key"
        found = await self.alive[0].store.fetch(sql, {"kind": EVERY})
        return [(row["key"], row["name"], row["due"] - START) for row in found]


@asynccontextmanager
async def replicas(path: Path) -> AsyncIterator[Replicas]:
    made = Replicas(path / "jobs.db")
    try:
        yield made
    finally:
        for process in made.alive:
            await process.drain()


@pytest.mark.timeout(240)
async def test_ticks_are_once_over_replicas_of_which_one_dies_each_minute(tmp_path: Path) -> None:
    """Two hours: 120 ticks, each seen once and in order, whoever owned the place."""
    ticks: list[Tick] = []
    async with replicas(tmp_path) as three:
        for _ in range(3):
            await three.start(jobs(ticks))
        for minute in range(120):
            await three.ambient.advance(60.0)
            if minute % 4 == 3:  # the owner of the schedule's place among them
                place = (TIMERS, partition_of("often", PLACES))
                victim = next((p for p in three.alive if place in p.lanes), three.alive[0])
            else:
                victim = three.alive[minute % 3]
            await three.kill(victim)
            await three.start(jobs(ticks))
        await three.ambient.advance(10.0)
    seen = [tick.scheduled.timestamp() - START for tick in ticks]
    assert seen == [60.0 * (n + 1) for n in range(120)]
    assert [tick.missed for tick in ticks] == [0] * 120


@pytest.mark.parametrize(("missed", "expected"), [("once", [4]), ("skip", []), ("all", [0] * 5)])
async def test_after_a_pause_of_all_processes(
    tmp_path: Path, missed: Missed, expected: list[int]
) -> None:
    ticks: list[Tick] = []
    async with replicas(tmp_path) as some:
        first = await some.start(jobs(ticks, "0 * * * *", missed=missed))
        await some.ambient.advance(10.0)
        some.alive.clear()
        await first.drain()
        await some.ambient.advance(5 * 3600.0 + 300.0)
        await some.start(jobs(ticks, "0 * * * *", missed=missed))
        await some.ambient.advance(20.0)
        assert [tick.missed for tick in ticks] == expected
        assert [row[2] for row in await some.rows()] == [6 * 3600.0]


async def test_a_changed_schedule_begins_anew(tmp_path: Path) -> None:
    async with replicas(tmp_path) as some:
        old = await some.start(jobs([], "0 * * * *"))
        await some.ambient.advance(10.0)
        assert await some.rows() == [("often", "0 * * * * UTC", 3600.0)]
        await some.start(jobs([], "30 * * * *"))
        some.alive.remove(old)
        await old.drain()
        await some.ambient.advance(10.0)
        assert await some.rows() == [("often", "30 * * * * UTC", 1800.0)]


async def test_a_removed_schedule_is_deleted_by_the_newest_process_alone(tmp_path: Path) -> None:
    """An older one may not know it yet."""
    async with replicas(tmp_path) as some:
        old = await some.start(jobs([], "0 * * * *"))
        await some.ambient.advance(10.0)
        await some.start(jobs([], "0 * * * *"))
        await some.ambient.advance(10.0)
        owned = {part for stream, part in old.lanes if stream == TIMERS}
        name = next(n for n in "abcdefgh" if partition_of(n, PLACES) in owned)
        writes = arm(EVERY, name, "0 6 * * * UTC", START + 90_000.0, START)
        await old.store.begin().commit(Changes(writes=writes))
        some.ambient.set_back(5.0)  # the owner of the place looks at its schedules again
        await some.ambient.advance(10.0)
        assert [row[0] for row in await some.rows()] == [name, "often"]
        some.alive.remove(old)
        await old.drain()
        await some.ambient.advance(10.0)
        assert [row[0] for row in await some.rows()] == ["often"]
