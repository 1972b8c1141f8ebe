"""Schedules and timers of real processes that are killed: each fires once, none is lost."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from oyez.tables import PLACES
from servers import server

TOML = """
[system]
name = "late"

[services.jobs]
app = "jobs:service"
store = "{store}"
lease = 1.0
"""
JOBS = """
import json, os
from oyez import Event, Service, State, Tick, Transaction
from oyez.timers import Timer, arm

class Counted(Event, type="late.counted", key="name"):
    name: str

class Reminded(Event, type="late.reminded", key="name"):
    name: str

class Count(State):
    fired: int = 0

service = Service("jobs", migrations="migrations")

def note(*fields):
    with open("notes", "a") as file:
        file.write(json.dumps([*fields, os.getpid()]) + "\\n")

@service.every(seconds=1, missed="all")
async def tick(tick: Tick, tx: Transaction) -> Counted:
    now = tx.unit.changes.time
    name = str(int(tick.scheduled.timestamp()))
    for sql, sets in arm("Count", name, "soon", now + 0.5, now):
        for each in sets:
            tx.execute(sql, **each)
    tx.execute("insert into run (name) values (:name)", name=name)
    tx.publish(Reminded(name=name), delay=0.5)
    note("tick", name)
    return Counted(name=name)

@service.on(Reminded)
async def reminded(event: Reminded) -> None:
    note("reminder", event.name)

@service.on(Timer)
async def fired(event: Timer, count: Count) -> None:
    count.fired += 1
    note("timer", event.key)
"""
WAITING = int(os.environ.get("OYEZ_TEST_WAITING", "20000"))
"""The number of events of later, and of timers, that wait in the store."""
MOST = 256 * 1024
"""KiB that a service may need at most, whatever waits."""
FILL = """
insert into oyez_outbox (due, stream, key, headers, data)
 select {due}, 'late.jobs', 'k' || n, {headers}, {data} from {numbers};
insert into oyez_timer (kind, key, name, due, part, armed)
 select 'Count', 'k' || n, 'soon', {due}, n % {places}, {now} from {numbers};
"""
RUNS = 8
"""The number of ticks, at least, that come between two kills."""


class Late:
    """The project and its processes."""

    def __init__(self, root: Path, store: str) -> None:
        self.root = root
        self.store = store
        (root / "oyez.toml").write_text(TOML.format(store=store))
        (root / "jobs.py").write_text(JOBS)
        (root / "migrations").mkdir()
        (root / "migrations" / "001_run.sql").write_text(
            "create table run (name varchar(40) primary key);"
        )
        (root / "notes").touch()
        self.environment = {**os.environ, "OYEZ_PROJECT": str(root)}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start one more replica."""
        with (self.root / f"log{len(self.processes)}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "oyez", "run", "jobs"],
                cwd=self.root,
                env=self.environment,
                stderr=log,
            )
        self.processes.append(process)

    def fill(self, count: int) -> None:
        """Have so many events and timers wait in the store, for a week or longer."""
        headers = json.dumps({"id": str(uuid4()), "source": "/late/jobs", "type": "late.reminded"})
        values = {"due": time.time() + 7 * 86400, "now": time.time(), "places": PLACES}
        texts = {
            "headers": headers.encode().hex(),
            "data": json.dumps({"name": "n" * 80}).encode().hex(),
        }
        if self.store.startswith("sqlite"):
            numbers = f"""(with recursive r(n) as
              (select 1 union all select n + 1 from r where n < {count}) select n from r)"""
            blobs = {name: f"x'{text}'" for name, text in texts.items()}
            with closing(sqlite3.connect(self.root / "jobs.db")) as connection:
                connection.executescript(FILL.format(numbers=numbers, **values, **blobs))
        else:
            numbers = f"generate_series(1, {count}) as r(n)"
            blobs = {name: f"decode('{text}', 'hex')" for name, text in texts.items()}
            asyncio.run(self._execute(FILL.format(numbers=numbers, **values, **blobs)))

    async def _execute(self, sql: str) -> None:
        url, _, schema = self.store.partition("?schema=")
        connection = await asyncpg.connect(url, server_settings={"search_path": schema})
        try:
            await connection.execute(sql, timeout=300)
        finally:
            await connection.close()

    def dead(self) -> str:
        """What `oyez dead list` says."""
        command = [sys.executable, "-m", "oyez", "dead", "list", "jobs"]
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    def notes(self, what: str) -> list[tuple[str, int]]:
        """The names that were noted, each with the process that did."""
        lines = (self.root / "notes").read_text().splitlines()
        return [(name, pid) for kind, name, pid in map(json.loads, lines) if kind == what]

    def stop(self) -> None:
        """Let every process drain."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)
        self.processes.clear()


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Return when the condition holds; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)  # between two looks at a condition with a deadline


@pytest.fixture(params=["sqlite", "postgresql"])
def late(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Late]:
    store = "sqlite:jobs.db"
    if request.param == "postgresql":
        store = f"{server('postgresql').url}?schema=late_{uuid4().hex[:12]}"
    made = Late(tmp_path, store)
    try:
        yield made
    finally:
        made.stop()


def test_ticks_and_timers_survive_kill_9(late: Late) -> None:
    """The owner of the schedule is killed, three times; a tick in flight may run again, once."""
    for _ in range(3):
        late.start()
    for _ in range(3):
        seen = len(late.notes("tick"))
        until(lambda seen=seen: len(late.notes("tick")) >= seen + RUNS)  # type: ignore[misc]
        owner = late.notes("tick")[-1][1]
        (victim,) = [each for each in late.processes if each.pid == owner]
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        late.processes.remove(victim)
        late.start()
    seen = len(late.notes("tick"))
    until(lambda: len(late.notes("tick")) >= seen + RUNS)
    until(lambda: late.notes("timer")[-1:] and len(late.notes("timer")) >= seen)
    late.stop()
    ticks = [int(name) for name, _ in late.notes("tick")]
    first, last = min(ticks), max(ticks)
    assert sorted(set(ticks)) == list(range(first, last + 1))
    assert len(ticks) <= last - first + 1 + 3
    assert late.dead() == "no dead letters\n"  # the second of two effects would break a key
    timers = {int(name) for name, _ in late.notes("timer")}
    assert timers >= set(range(first, last - 3))


@pytest.mark.timeout(900)
def test_what_waits_for_later_takes_no_memory_and_holds_nothing_up(late: Late) -> None:
    late.start()
    until(lambda: late.notes("tick"))
    late.stop()
    late.fill(WAITING)
    late.start()
    seen = {what: len(late.notes(what)) for what in ("tick", "timer", "reminder")}
    until(lambda: all(len(late.notes(what)) >= count + RUNS for what, count in seen.items()), 300)
    status = Path(f"/proc/{late.processes[0].pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    print(f"{WAITING} wait: at most {int(found[1]) / 1024:.0f} MiB")
    assert int(found[1]) < MOST
    assert late.dead() == "no dead letters\n"
