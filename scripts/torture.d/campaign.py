"""One run: the shop in a folder of its own with a witness, customers, a journal, and faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from checker import DRAINS, judge
from customers import Customers
from evidence import JOURNAL, WITNESS, Evidence, at_rest, backlog, gather
from faults import Fault
from grounds import Disk, Ground, Servers
from journal import Journal
from shop import Shop, copy_shop

from oyez.config import load
from oyez.errors import BrokerUnavailable, StoreUnavailable
from oyez.project import Project
from oyez.testing.proxy import Proxy

if TYPE_CHECKING:
    import asyncpg

HERE = Path(__file__).resolve().parent
EVERY = 1.0
"""Seconds between two samples of what the processes use."""
RETURNS = 60.0
"""Seconds within which a process that was killed has to be there again."""
STARTS = 10.0
"""Seconds for which it is then waited for, while it starts."""
CROWD = 100
"""Open orders and notices that are due from which on nobody new orders, for as long."""
LOOK = 0.2
"""Seconds between two looks at whether everything is settled."""


class Run:
    """A shop that runs, and what may be done to it."""

    def __init__(self, ground: Ground, shop: Shop, journal: Journal, seed: int) -> None:
        self.ground = ground
        self.shop = shop
        self.journal = journal
        self.seed = seed
        self.chance = random.Random(seed)
        # Past the proxies: what looks on is not to be harmed.
        self.project = Project(load(shop.root, {**os.environ, **ground.environment}))
        self.customers = Customers(shop.url, journal, self.chance, f"torture-{seed}")
        self._trading: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self.looking = asyncio.Lock()
        """Held while the tool itself has files of the shop open, other than at its end."""
        self._held: set[str] = set()
        self._released = asyncio.Condition()
        self._database: asyncpg.Connection | None = None
        self._asked = asyncio.Lock()

    @property
    def servers(self) -> Servers:
        """The servers that are this run's own."""
        return self.ground.servers

    @property
    def links(self) -> Mapping[str, Proxy]:
        """The proxies on the ways of the shop, by what they lead to."""
        return self.ground.links

    @property
    def disk(self) -> Disk | None:
        """The file system that may be harmed, if there is one."""
        return self.ground.disk

    def trade(self, pace: float) -> None:
        """Let customers order from now on, ``pace`` orders a second."""
        self._over = asyncio.Event()
        self._trading = asyncio.create_task(self.customers.trade(pace, self._over))

    async def fire(self, fault: Fault) -> None:
        """Fire a fault, unless the customers have failed meanwhile."""
        if self._trading is not None and self._trading.done():
            self._trading.result()
        await fault.fire(self)

    async def drain(self) -> Evidence:
        """Let the customers finish, and wait until all is settled; what there is then."""
        self.journal.write("calm")
        calm = time.monotonic()
        self._over.set()
        self.customers.welcome.set()
        if self._trading is not None:
            await self._trading
        while (seconds := time.monotonic() - calm) <= DRAINS + LOOK:
            if await self._is_settled():
                self.journal.write("drained", seconds=seconds)
                await asyncio.sleep(2 * EVERY)  # what the processes use at rest is sampled, too
                break
            await asyncio.sleep(LOOK)
        await asyncio.to_thread(self.stop)
        return await gather(self.ground.folder, self.project)

    def pid(self, process: str) -> int:
        """Return the number of the process that now runs under a name."""
        self.shop.refresh()
        return self.shop.pids[process]

    def processes(self, services: Iterable[str]) -> list[str]:
        """Return the names of the processes of services, which may have several."""
        self.shop.refresh()
        wanted = set(services)
        return [name for name in sorted(self.shop.pids) if name.partition(".")[0] in wanted]

    @asynccontextmanager
    async def held(self, names: Sequence[str]) -> AsyncIterator[str]:
        """Choose one of these, and keep other lanes from it: no two strike at one thing at once.

        It waits until one is free.
        """
        async with self._released:
            await self._released.wait_for(lambda: not self._held.issuperset(names))
            name = self.chance.choice([name for name in names if name not in self._held])
            self._held.add(name)
        try:
            yield name
        finally:
            async with self._released:
                self._held.discard(name)
                self._released.notify_all()

    async def respawned(self, process: str, pid: int) -> None:
        """Return when the supervisor has started another in the place of ``pid``."""
        end = time.monotonic() + RETURNS
        while self.pid(process) == pid:
            if time.monotonic() > end:
                raise TimeoutError(f"{process} is not there again within {RETURNS:.0f} s")
            await asyncio.sleep(0.02)

    async def started(self, process: str) -> None:
        """Return when a process that was spawned says that it has started, or is late."""
        end = time.monotonic() + STARTS
        while time.monotonic() < end:
            self.shop.refresh()
            if process in self.shop.ready:
                return
            await asyncio.sleep(0.02)

    async def gone(self, pid: int) -> None:
        """Return when a process has ended."""
        while _used(pid) is not None:
            await asyncio.sleep(0.02)

    async def settled(self) -> None:
        """Return when every order has ended, and nothing waits to be announced or handled."""
        end = time.monotonic() + DRAINS
        while not await self._is_settled():
            if time.monotonic() > end:
                raise TimeoutError(f"not settled within {DRAINS:.0f} s")
            await asyncio.sleep(0.05)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection to the server of the stores, for one question at a time."""
        async with self._asked:
            if self._database is None or self._database.is_closed():
                import asyncpg

                url = self.project.settings("orders").store.partition("?")[0]
                self._database = await asyncpg.connect(url)
            yield self._database

    def stop(self) -> None:
        """Stop the shop, if it runs."""
        self.shop.stop()

    async def close(self) -> None:
        """Let go of everything."""
        if self._trading is not None:
            self._trading.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._trading
        await self.customers.close()
        if self._database is not None:
            await self._database.close()

    async def let_in(self) -> None:
        """Keep customers out while the shop has a backlog, for ever.

        Else it would grow from fault to fault, and what is left at the end would tell of the load.
        """
        while True:
            async with self.looking:
                try:
                    crowded = await backlog(self.project) > CROWD
                except (StoreUnavailable, sqlite3.Error):
                    crowded = True  # a server is on its way up
            (self.customers.welcome.clear if crowded else self.customers.welcome.set)()
            await asyncio.sleep(EVERY)

    async def sample(self) -> None:
        """Write down what each process uses, for ever."""
        while True:
            self.shop.refresh()
            for process, pid in self.shop.pids.items():
                used = _used(pid)
                if used is not None:
                    self.journal.write("sample", process=process, pid=pid, **used)
            await asyncio.sleep(EVERY)

    async def _is_settled(self) -> bool:
        """Whether nothing more comes of itself: a short question, and only then all evidence."""
        try:
            if not await at_rest(self.project):
                return False
            return not _open(await gather(self.ground.folder, self.project))
        except (BrokerUnavailable, StoreUnavailable):
            return False  # a server is on its way up


def _open(evidence: Evidence) -> bool:
    """Whether something may still come of itself."""
    waiting = ("lost", "stuck", "unbalanced")
    return any(
        problem.harm in waiting and problem.rule != "settled_in_time"
        for problem in judge(evidence).problems
    )


@asynccontextmanager
async def running(
    ground: Ground, *, seed: int, replicas: Mapping[str, int] | None = None
) -> AsyncIterator[Run]:
    """A run on this ground, whose shop is up; it is stopped afterwards."""
    environment = ground.environment | ground.through
    shop = join(
        copy_shop(
            ground.place,
            replicas=dict(replicas or {}),
            environment=environment,
            log=ground.folder / "dev.log",
        ),
        (replicas or {}).get(WITNESS, 1),
    )
    await ground.link_to_provider(shop)
    with Journal(ground.folder / JOURNAL) as journal:
        journal.write("run", seed=seed, broker=ground.broker, store=ground.store)
        run = Run(ground, shop, journal, seed)
        await asyncio.to_thread(shop.start)
        if ground.disk is not None:
            ground.disk.flush()
        besides = [asyncio.create_task(run.sample()), asyncio.create_task(run.let_in())]
        try:
            yield run
        finally:
            for task in besides:
                task.cancel()
            await run.close()
            await asyncio.to_thread(run.stop)


def join(shop: Shop, replicas: int = 1) -> Shop:
    """Have the witness join a shop that is not started yet, in so many replicas."""
    shutil.copytree(
        HERE / "witness", shop.root / WITNESS, ignore=shutil.ignore_patterns("__pycache__")
    )
    toml = shop.root / "oyez.toml"
    service = f'[services.{WITNESS}]\napp = "{WITNESS}.service:service"\nreplicas = {replicas}\n'
    toml.write_text(f"{toml.read_text()}\n{service}")
    shop.command = [sys.executable, str(HERE / "supervise.py")]
    # A gateway that was killed leaves its request to the next after a second.
    shop.environment["OYEZ_GATEWAY_IDEMPOTENCY_LEASE"] = "1"
    return shop


def _used(pid: int) -> dict[str, int] | None:
    """Bytes of memory, descriptors and threads of a process; None if it has ended."""
    place = Path(f"/proc/{pid}")
    try:
        pages = int((place / "statm").read_text().split()[1])
        return {
            "rss": pages * os.sysconf("SC_PAGE_SIZE"),
            "descriptors": len(os.listdir(place / "fd")),
            "threads": len(os.listdir(place / "task")),
        }
    except OSError:
        return None
