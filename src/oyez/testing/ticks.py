"""A small system in real processes, for suites that kill them: clocks tick, a service counts.

The service `counter` writes down every tick that it handles and announces a tock for it, which it
also hears and writes down. A tick whose key is ``poison`` makes the handler raise as long as the
file ``broken`` exists, one whose key is ``deadly`` makes the process exit, one whose key is
``slow`` waits while ``slow`` exists. Its HTTP side announces a tick for ``POST /NAME/NUMBER``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from oyez import Event, brokers, stores
from oyez.ambient import SystemAmbient
from oyez.envelope import format_time
from oyez.errors import OyezError
from oyez.http_client import Client
from oyez.ports import Broker, Record, Row, Store
from oyez.tables import OUTBOX
from oyez.transaction import Announcer, Origin

DEADLINE = 60.0
"""Seconds that a test waits, at most, for what must come."""

PARTITIONS = 16
"""Of the clocks' stream and of the service's own."""

TOML = """[system]
name = "{name}"
broker = "{broker}"

[services.counter]
app = "counter:service"
store = "{store}"
http = "127.0.0.1:0"
lease = 2.0
grace = 5.0
replicas = 2
"""
SERVICE = """
import asyncio, os
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from oyez import Context, Event, Retry, Service, Transaction

HERE = Path(__file__).parent


class Tick(Event, type="ticks.tick", key="name"):
    name: str
    number: int
    padding: str = ""


class Tock(Event, type="ticks.tock", key="name"):
    name: str
    number: int


async def tick(request):
    async with service.transaction() as tx:
        tx.publish(Tick(**request.path_params))
    return Response(status_code=202)


http = Starlette(routes=[Route("/{name}/{number:int}", tick, methods=["POST"])])
service = Service("counter", migrations="migrations", http=http)
INSERT = "insert into {} (name, number, pid) values (:name, :number, :pid)"


@service.on(Tick, retry=Retry(attempts=3, first=0.05, factor=1.0))
async def count(event: Tick, tx: Transaction, context: Context) -> Tock:
    if event.name == "poison" and (HERE / "broken").exists():
        raise ValueError(f"tick {event.number} is poison")
    if event.name == "deadly" and (HERE / "broken").exists():
        os._exit(66)
    if event.name == "slow":
        (HERE / f"started-{os.getpid()}").touch()
    while event.name == "slow" and (HERE / "slow").exists():
        await asyncio.sleep(0.01)
    row = {"name": event.name, "number": event.number, "pid": os.getpid()}
    tx.execute(INSERT.format("seen"), **row)
    return Tock(name=event.name, number=event.number)


@service.on(Tock)
async def hear(event: Tock, tx: Transaction) -> None:
    row = {"name": event.name, "number": event.number, "pid": os.getpid()}
    tx.execute(INSERT.format("heard"), **row)
"""
TABLE = """create table {table} (
  seq {serial}, name text not null, number integer not null, pid integer not null
);
"""
SERIAL = {
    "sqlite": "integer primary key autoincrement",
    "postgresql": "bigint generated always as identity primary key",
}


class Tick(Event, type="ticks.tick", key="name"):
    """One tick of one clock."""

    name: str
    number: int
    padding: str = ""


class Ticks:
    """The system in a folder, with its replicas as processes."""

    def __init__(
        self,
        root: Path,
        *,
        broker: str = "embedded:.oyez/events.db",
        store: str = "sqlite:.oyez/counter.db",
        outside: str = "",
    ) -> None:
        """``broker`` and ``store`` are URLs; ``outside`` is the clocks' broker, if it is another.

        On a shared server each system has a name of its own, ``ticks`` and something.
        """
        self.root = root
        alone = all(url.startswith("embedded:") for url in (broker, outside or broker))
        self.name = "ticks" if alone else f"ticks-{uuid4().hex[:12]}"
        self.replicas: list[subprocess.Popen[bytes]] = []
        self.stream = f"{self.name}.clock"
        (root / "migrations").mkdir()
        (root / "counter.py").write_text(SERVICE)
        toml = TOML.format(name=self.name, broker=broker, store=store)
        (root / "oyez.toml").write_text(toml)
        serial = SERIAL[store.partition(":")[0]]
        tables = "".join(TABLE.format(table=t, serial=serial) for t in ("seen", "heard"))
        (root / "migrations" / "001_seen.sql").write_text(tables)
        self.ambient = SystemAmbient()
        self.broker: Broker = brokers.connect(outside or broker, self.ambient, root=root)
        self.store: Store = stores.connect(store, self.ambient, root=root)
        self._announcer = Announcer(self.name, "clock", self.ambient)
        self._next: dict[str, int] = {}

    @property
    def environment(self) -> dict[str, str]:
        """For processes of this system."""
        return {**os.environ, "OYEZ_PROJECT": str(self.root), "OYEZ_LOG": "json"}

    async def open(self) -> None:
        """Connect: to the broker to publish, to the service's store to look."""
        await self.broker.open()
        await self.broker.create(self.stream, 8)
        await self.store.open()

    async def close(self) -> None:
        """Stop everything."""
        for replica in self.replicas:
            replica.kill()
            replica.wait()
        await self.broker.close()
        await self.store.close()

    # -- replicas ----------------------------------------------------------------------------------

    def start_replica(self, *command: str) -> subprocess.Popen[bytes]:
        """One more process of the service, or of another ``oyez`` command of this system."""
        log = (self.root / f"replica{len(self.replicas)}.log").open("wb")
        replica = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "oyez", *(command or ("run", "counter"))],
            cwd=self.root,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        self.replicas.append(replica)
        return replica

    async def started(self, count: int = 1) -> list[subprocess.Popen[bytes]]:
        """So many new replicas, once they share every partition there is."""
        added = [self.start_replica() for _ in range(count)]
        await self.shared_by(*(r for r in self.replicas if r.poll() is None))
        return added

    async def shared_by(
        self, *replicas: subprocess.Popen[bytes], seconds: float = DEADLINE
    ) -> None:
        """Return when the replicas own all partitions in equal shares, and no one else does."""
        count = len(replicas)
        shares = sorted(PARTITIONS // count + (n < PARTITIONS % count) for n in range(count))

        async def shared() -> bool:
            owners = await self.owners()
            alike = sorted(owners.values()) == shares
            return alike and owners.keys() == {replica.pid for replica in replicas}

        await until(shared, seconds, self._last_words)

    async def owners(self) -> dict[int, int]:
        """Partitions owned per process id (from the owner's name, host:pid:number)."""
        found: dict[int, int] = {}
        sql = "select owner from oyez_cursor where stream <> :relay and owner is not null"
        for row in await self.query(sql, relay=OUTBOX):
            pid = int(row["owner"].split(":")[1])
            found[pid] = found.get(pid, 0) + 1
        return found

    async def admin(self, path: str) -> httpx.Response:
        """What the admin port of a living replica answers."""
        sql = "select note from oyez_replica order by started desc"
        rows = await self.query(sql)
        async with Client(timeout=10.0) as client:
            return await client.get(f"http://{rows[0]['note']}{path}")

    def http(self) -> str:
        """Where the HTTP side of the newest replica listens, by its log."""
        log = self.root / f"replica{len(self.replicas) - 1}.log"
        for line in log.read_text().splitlines():
            said = json.loads(line)
            if said.get("event") == "started":
                return str(said["http"])
        raise AssertionError(f"the replica has not started: {self._last_words()}")

    async def wind(self, name: str, number: int, address: str) -> None:
        """Have the service itself announce a tick, over its HTTP side."""
        async with Client(timeout=10.0) as client:
            answer = await client.post(f"http://{address}/{name}/{number}")
            answer.raise_for_status()

    # -- clocks ------------------------------------------------------------------------------------

    def ticking(self, *names: str, padding: int = 0) -> list[Record]:
        """The records of the next tick of each of these clocks, not published."""
        records = []
        for name in names:
            number = self._next[name] = self._next.get(name, 0) + 1
            event = Tick(name=name, number=number, padding="x" * padding)
            time_ = format_time(self.ambient.now())
            row = self._announcer.announce(event, Origin(), time_, 0.0, None)
            records.append(
                Record(stream=row.stream, key=row.key, headers=row.headers, data=row.data)
            )
        return records

    async def tick(self, *names: str, padding: int = 0) -> None:
        """The next tick of each of these clocks; tried again while the broker is out of reach."""
        records = self.ticking(*names, padding=padding)

        async def published() -> bool:
            try:
                await self.broker.publish(records)
            except OyezError as error:
                if not error.transient:
                    raise
                return False
            return True

        await until(published, 90.0, self._last_words)

    def ticked(self, name: str) -> int:
        """How often a clock has ticked."""
        return self._next.get(name, 0)

    # -- what the service has done -----------------------------------------------------------------

    async def seen(
        self, name: str | None = None, table: str = "seen"
    ) -> list[tuple[str, int, int]]:
        """(name, number, pid) of every tick handled, in the order of handling."""
        where = "" if name is None else "where name = :name"
        sql = f"select name, number, pid from {table} {where} order by seq"
        parameters = {} if name is None else {"name": name}
        rows = await self.query(sql, **parameters)
        return [(row["name"], row["number"], row["pid"]) for row in rows]

    async def all_seen(self, *names: str, seconds: float = DEADLINE) -> None:
        """Return when every tick of the clocks, and its tock, is written down; once, in order.

        Raises AssertionError for one that came twice or out of order, or when time is up.
        """
        wanted = {name: list(range(1, self.ticked(name) + 1)) for name in names}

        async def complete() -> bool:
            for table in ("seen", "heard"):
                found: dict[str, list[int]] = {name: [] for name in names}
                for name, number, _ in await self.seen(table=table):
                    if name in found:
                        found[name].append(number)
                for name, numbers in found.items():
                    if numbers != wanted[name][: len(numbers)]:
                        dead = await self.query("select key, handler, reason from oyez_dead")
                        raise AssertionError(f"{table}: {name} {numbers}; dead letters: {dead}")
                if found != wanted:
                    return False
            return True

        await until(complete, seconds, self._last_words)

    async def query(self, sql: str, **parameters: Any) -> list[Row]:
        """Rows from the service's store; none while it or the table can't be read."""
        try:
            return await self.store.fetch(sql, parameters)
        except OyezError:
            return []

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """An ``oyez`` command in this system."""
        return subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "oyez", *arguments],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def _last_words(self) -> str:
        """The end of each replica's log, for a test that failed."""
        logs = sorted(self.root.glob("replica*.log"))
        return "\n".join(log.read_text(errors="replace")[-1_500:] for log in logs)


@asynccontextmanager
async def ticking(root: Path, **urls: str) -> AsyncIterator[Ticks]:
    """The system, opened and closed; its folder is emptied first."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    system = Ticks(root, **urls)
    await system.open()
    try:
        yield system
    finally:
        await system.close()


async def until(
    condition: Callable[[], Awaitable[object]],
    seconds: float = DEADLINE,
    why: Callable[[], str] = str,
) -> None:
    """Return when the condition holds; fails after so many seconds, and tells ``why``."""
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, f"not within {seconds} s\n{why()}"
        await asyncio.sleep(0.02)


@contextmanager
def paused(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The process stands still inside the block, and outside any write to a SQLite file.

    One that stands still in the middle of a write has the lock of the file for as long, and the
    test, which writes to the same file, would wait for it.
    """
    end = time.monotonic() + DEADLINE
    try:
        while True:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if not _is_writing(process.pid):
                break
            process.send_signal(signal.SIGCONT)
            time.sleep(0.01)
            assert time.monotonic() < end, "it is always found in the middle of a write"
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def _is_writing(pid: int) -> bool:
    """Whether a process has the lock of a SQLite file's writers, which is a file beside it."""
    held = re.findall(
        rf"FLOCK +ADVISORY +WRITE {pid} \w+:\w+:(\d+) ", Path("/proc/locks").read_text(), re.ASCII
    )
    files = [
        link for link in Path(f"/proc/{pid}/fd").iterdir() if link.readlink().suffix == ".lock"
    ]
    return any(str(link.stat().st_ino) in held for link in files)
