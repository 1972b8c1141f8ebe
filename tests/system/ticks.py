"""A small system for tests: one service, `counter`, that writes down every tick it handles.

A tick whose key is ``poison`` makes the handler raise as long as the file ``broken`` exists, one
whose key is ``deadly`` makes the process exit, one whose key is ``slow`` waits while ``slow``
exists.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from oyez import Event
from oyez.ambient import SystemAmbient
from oyez.brokers.embedded import EmbeddedBroker
from oyez.envelope import format_time
from oyez.ports import Record
from oyez.transaction import Announcer, Origin

TOML = """[system]
name = "ticks"

[services.counter]
app = "counter:service"
lease = 2.0
grace = 5.0
replicas = 2
"""
SERVICE = """
import asyncio, os
from pathlib import Path
from oyez import Context, Event, Retry, Service, Transaction

HERE = Path(__file__).parent


class Tick(Event, type="ticks.tick", key="name"):
    name: str
    number: int


service = Service("counter", migrations="migrations")


@service.on(Tick, retry=Retry(attempts=3, first=0.05, factor=1.0))
async def count(event: Tick, tx: Transaction, context: Context) -> None:
    if event.name == "poison" and (HERE / "broken").exists():
        raise ValueError(f"tick {event.number} is poison")
    if event.name == "deadly" and (HERE / "broken").exists():
        os._exit(66)
    if event.name == "slow":
        (HERE / f"started-{os.getpid()}").touch()
    while event.name == "slow" and (HERE / "slow").exists():
        await asyncio.sleep(0.01)
    tx.execute(
        "insert into seen (name, number, pid) values (:name, :number, :pid)",
        name=event.name, number=event.number, pid=os.getpid(),
    )
"""
MIGRATION = """create table seen (
  seq integer primary key autoincrement, name text not null, number integer not null,
  pid integer not null
);
"""


class Tick(Event, type="ticks.tick", key="name"):
    """One tick of one clock."""

    name: str
    number: int


class Ticks:
    """The system in a folder, with its replicas as processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "migrations").mkdir()
        (root / "oyez.toml").write_text(TOML)
        (root / "counter.py").write_text(SERVICE)
        (root / "migrations" / "001_seen.sql").write_text(MIGRATION)
        self.replicas: list[subprocess.Popen[bytes]] = []
        self._ambient = SystemAmbient()
        self._announcer = Announcer("ticks", "clock", self._ambient)
        self._broker = EmbeddedBroker(root / ".oyez" / "events.db", self._ambient)
        self._next: dict[str, int] = {}

    @property
    def environment(self) -> dict[str, str]:
        """For processes of this system."""
        return {**os.environ, "OYEZ_PROJECT": str(self.root), "OYEZ_LOG": "json"}

    async def open(self) -> None:
        """Connect to the broker, to publish."""
        await self._broker.open()

    async def close(self) -> None:
        """Stop everything."""
        await self._broker.close()
        for replica in self.replicas:
            replica.kill()
            replica.wait()

    def start_replica(self) -> subprocess.Popen[bytes]:
        """One more process of the service."""
        log = (self.root / f"replica{len(self.replicas)}.log").open("wb")
        replica = subprocess.Popen(
            [sys.executable, "-m", "oyez", "run", "counter"],
            cwd=self.root,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        self.replicas.append(replica)
        return replica

    async def tick(self, *names: str) -> None:
        """The next tick of each of these clocks."""
        records = []
        for name in names:
            number = self._next[name] = self._next.get(name, 0) + 1
            row = self._announcer.announce(
                Tick(name=name, number=number),
                Origin(),
                format_time(self._ambient.now()),
                0.0,
                None,
            )
            records.append(
                Record(stream=row.stream, key=row.key, headers=row.headers, data=row.data)
            )
        await self._broker.publish(records)

    def ticked(self, name: str) -> int:
        """How often a clock has ticked."""
        return self._next.get(name, 0)

    def seen(self, name: str | None = None) -> list[tuple[str, int, int]]:
        """(name, number, pid) of every tick handled, in the order of handling."""
        sql = "select name, number, pid from seen where name = coalesce(?, name) order by seq"
        return self.query(sql, name)

    def owners(self) -> dict[int, int]:
        """Partitions owned per process id (from the owner's name, host:pid:number)."""
        found: dict[int, int] = {}
        sql = "select owner from oyez_cursor where stream = 'ticks.clock' and owner is not null"
        for (owner,) in self.query(sql):
            pid = int(owner.split(":")[1])
            found[pid] = found.get(pid, 0) + 1
        return found

    def query(self, sql: str, *parameters: object) -> list[tuple[object, ...]]:
        """Rows from the service's store; none while it does not exist."""
        path = self.root / ".oyez" / "counter.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(path, timeout=10)) as connection:
            try:
                return connection.execute(sql, parameters).fetchall()
            except sqlite3.OperationalError:
                return []

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """An ``oyez`` command in this system."""
        return subprocess.run(
            [sys.executable, "-m", "oyez", *arguments],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Return when the condition holds; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        _pause()


@contextmanager
def paused(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The process stands still inside the block."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def _pause() -> None:
    # Between two looks at a condition with a deadline, never instead of one.
    time.sleep(0.02)
