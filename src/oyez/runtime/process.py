"""One process of one service: started, kept in order, drained."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import BrokerError, ConfigurationError, StoreError, StoreRefused
from oyez.ports import Broker, Changes, Parameters, Store
from oyez.runtime.claims import Claims, Place
from oyez.runtime.dead import INBOX_RETENTION
from oyez.runtime.health import Health
from oyez.runtime.lane import Lane
from oyez.runtime.parked import ParkedEvents
from oyez.runtime.workbench import Bell, Workbench
from oyez.service import Provider, Service
from oyez.signals import Signals, Started, Stopped

DEAD_RETENTION = 90 * 86_400.0
"""Seconds for which dead letters that were redriven or discarded are kept."""
HOUSEKEEPING = 60.0
"""Seconds between two rounds of deleting what is no longer needed."""


class ProcessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one process runs; times in seconds."""

    system: str
    partitions: int = 8
    lease: float = 3.0
    """A process that dies without a word is replaced after this long."""
    grace: float = 10.0
    """What is in flight when the process is told to stop gets this long to finish."""
    root: Path = Path()
    """What migration folders are relative to."""
    broker: str = ""
    """The kind of broker, such as ``kafka``: the positions in a store mean nothing on another."""


class ServiceProcess:
    """Brings a service to life on a broker and a store."""

    def __init__(
        self,
        service: Service,
        settings: ProcessSettings,
        *,
        broker: Broker,
        store: Store,
        ambient: Ambient,
        signals: Signals,
        provide: Mapping[type, object] | None = None,
        threads: Executor | None = None,
        reads: Callable[[str], bool] | None = None,
        make_lane: Callable[..., Lane] = Lane,
    ) -> None:
        """``provide`` replaces what the service's own providers would make, by type.

        ``threads`` and ``reads`` as in `Workbench`, ``make_lane`` makes what reads a partition.
        """
        self.service = service
        self.settings = settings
        self.signals = signals
        host = socket.gethostname()
        self.owner = f"{host}:{os.getpid()}:{ambient.bits(32):08x}"
        self.bench = Workbench(
            service.name,
            settings.system,
            tuple(service.handlers),
            broker=broker,
            store=store,
            ambient=ambient,
            signals=signals,
            owner=self.owner,
            threads=threads,
            reads=reads,
        )
        self.work = Bell(ambient)
        self.lanes: dict[Place, Lane] = {}
        self.parked = ParkedEvents(self.bench, self.lanes, self.work)
        self.claims = Claims(
            self.bench, self.lanes, self.parked, self.work, settings.grace, make_lane
        )
        self.health = Health(self.bench, self.claims, self.parked)
        self.draining = False
        self._provide = dict(provide or {})
        self._resources = AsyncExitStack()
        self._housekeeping: asyncio.Task[None] | None = None
        self._started = False

    async def start(self, *, http: str = "", admin: str = "") -> None:
        """Open broker and store, migrate, and begin to handle.

        ``http`` and ``admin`` are the addresses that listen, for whoever asks. Raises OyezError,
        and leaves nothing running then.
        """
        bench = self.bench
        try:
            await bench.store.open()
            await bench.store.migrate(read_migrations(self.service, self.settings.root))
            await self._check_positions()
            await self._open_broker()
            await self._make_resources()
            await bench.store.keep(self.owner, self.settings.lease, admin)
            bench.store.on_commit(self._committed)
            bench.broker.on_streams(self.claims.ring)
            if self.service.publishes:
                await self._create_stream()
        except BaseException:
            await self._let_go()
            raise
        self.service.bind(bench)
        self._started = True
        self.claims.start()
        self.parked.start()
        self.health.start()
        self._housekeeping = asyncio.create_task(self._keep_house_for_ever(), name="housekeeping")
        self.signals.emit(
            Started(service=self.service.name, owner=self.owner, http=http, admin=admin)
        )

    def stop_soon(self) -> None:
        """Say that the process is about to drain: it is not ready, and long answers end."""
        self.bench.stopping = True

    async def drain(self, grace: float | None = None) -> None:
        """Stop taking, finish what is in flight within ``grace`` seconds, hand over, let go.

        Without ``grace`` it takes the settings'. Safe when never started and when called twice.
        """
        if not self._started or self.draining:
            return
        self.draining = True
        self.stop_soon()
        self.health.stop()
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        now = self.bench.ambient.monotonic
        end = now() + (self.settings.grace if grace is None else grace)
        try:
            async with self.bench.ambient.timeout(end - now()):
                await self.claims.stop()
        except TimeoutError:
            self.claims.kill()
        await self.parked.stop(max(0.0, end - now()))
        self.service.bind(None)
        await self._let_go()
        self.signals.emit(Stopped(service=self.service.name, owner=self.owner))

    async def kill(self) -> None:
        """End as a crash would: nothing is finished, nothing handed over. For tests."""
        self.draining = True
        self.health.stop()
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        self.claims.kill()
        await self.parked.stop(0.0)

    def _committed(self) -> None:
        self.work.ring()
        if self.claims.relay is not None:
            self.claims.relay.ring()

    async def _delete_old(self, sql: str, then: float) -> bool:
        """Delete a bounded number of rows; whether there were any."""
        begun = self.bench.store.begin()
        try:
            deleted = await begun.fetch(sql, {"then": then}, [])
            await begun.commit(Changes(time=self.bench.ambient.now()))
        finally:
            await begun.rollback()
        return bool(deleted)

    async def _check_positions(self) -> None:
        """Refuse a store whose positions are another kind of broker's."""
        kind = self.settings.broker
        if not kind:
            return
        now = self.bench.ambient.now()
        row: Parameters = {"name": tables.POSITIONS, "mark": kind, "now": now}
        begun = self.bench.store.begin()
        try:
            (found,) = await begun.fetch(
                tables.MARK_AND_POSITION, {"name": tables.POSITIONS}, [(tables.MARK, [row])]
            )
            if found["mark"] != kind:
                if found["last"]:
                    raise StoreRefused(
                        f"the store of {self.service.name} holds positions of {found['mark']}, and "
                        f"the broker is {kind}: carry the streams across with a bridge and give "
                        "the service a new store; or, to read the new broker from its beginning, "
                        "run on it `delete from oyez_cursor` and `delete from oyez_migration "
                        f"where name = '{tables.POSITIONS}'`"
                    )
                await begun.fetch(
                    tables.MARK_AND_POSITION,
                    {"name": tables.POSITIONS},
                    [(tables.CHANGE_MARK, [row])],
                )
            await begun.commit(Changes(time=now))
        finally:
            await begun.rollback()

    async def _open_broker(self) -> None:
        try:
            await self.bench.broker.open()
        except BrokerError as error:
            if not error.transient:
                raise
            self.bench.trouble("broker", error)  # requests are answered and buffered meanwhile

    async def _create_stream(self) -> None:
        try:
            await self.bench.broker.create(self.bench.announcer.stream, self.settings.partitions)
        except BrokerError as error:
            if not error.transient:
                raise
            self.bench.trouble("streams", error)  # the first publish makes it

    async def _make_resources(self) -> None:
        made: dict[type, object] = {Service: self.service, **self._provide}
        for provider in self.service.providers:
            if provider.provides not in made:
                value = await self._resources.enter_async_context(_make(provider))
                made[provider.provides] = value
        self.bench.bind(made)

    async def _let_go(self) -> None:
        await self._resources.aclose()
        try:
            await self.bench.store.leave(self.owner)
        except StoreError as error:
            self.bench.trouble("leaving", error)  # the lease runs out by itself
        await self.bench.broker.close()
        await self.bench.store.close()
        self.bench.threads.shutdown(wait=False, cancel_futures=True)

    async def keep_house(self) -> None:
        """Delete what the inbox need not remember any more, and old dead letters that are done."""
        now = self.bench.ambient.now()
        for sql, age in (
            (tables.DELETE_HANDLED, INBOX_RETENTION),
            (tables.DELETE_SETTLED_LETTERS, DEAD_RETENTION),
        ):
            while await self._delete_old(sql, now - age):
                await self.bench.ambient.sleep(0)  # let others write between two rounds

    async def _keep_house_for_ever(self) -> None:
        while True:
            await self.bench.ambient.sleep(HOUSEKEEPING)
            try:
                await self.keep_house()
            except Exception as error:  # noqa: BLE001 - tried again at the next round
                self.bench.trouble("housekeeping", error)


def read_migrations(service: Service, root: Path) -> list[tuple[str, str]]:
    """The service's migrations in order: (file name, SQL).

    Raises ConfigurationError for a folder that is missing or a file whose name has no number.
    """
    if service.migrations is None:
        return []
    folder = root / service.migrations
    if not folder.is_dir():
        raise ConfigurationError(
            f"service {service.name}: migrations: expected a folder, found nothing at {folder}"
        )
    files = sorted(folder.glob("*.sql"))
    numbers: dict[str, str] = {}
    for file in files:
        number = file.name.partition("_")[0]
        if not number.isdigit():
            raise ConfigurationError(f"{file}: expected a name such as 001_orders.sql")
        if number in numbers:
            raise ConfigurationError(f"{file}: has the same number as {numbers[number]}")
        numbers[number] = file.name
    return [(file.name, file.read_text(encoding="utf-8")) for file in files]


@asynccontextmanager
async def _make(provider: Provider) -> AsyncIterator[object]:
    function = provider.function
    if inspect.isasyncgenfunction(function):
        async with asynccontextmanager(function)() as value:
            yield value
    elif inspect.isgeneratorfunction(function):
        with contextmanager(function)() as value:
            yield value
    else:
        value = function()
        yield await value if inspect.isawaitable(value) else value
