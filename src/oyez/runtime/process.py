"""The process of a service: started, supervised, drained."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import BrokerError, MigrationsDue, OyezError, StoreRefused
from oyez.ports import Broker, Changes, Parameters, Store
from oyez.runtime.audit import Actor
from oyez.runtime.backlog import Backlog
from oyez.runtime.batches import Batches
from oyez.runtime.calls import THREADS, Calls
from oyez.runtime.claims import Claims, Place
from oyez.runtime.commits import Commits
from oyez.runtime.execution import Execution
from oyez.runtime.handlers import Handlers
from oyez.runtime.health import Health
from oyez.runtime.housekeeping import Housekeeping
from oyez.runtime.lane import Lane
from oyez.runtime.loop import Bell
from oyez.runtime.measuring import Measuring
from oyez.runtime.migrations import due, migrate
from oyez.runtime.parked import ParkedEvents
from oyez.runtime.reading import Consumer, Reading
from oyez.runtime.redrive import handlers_of, redrive_letters
from oyez.runtime.reports import Reports
from oyez.runtime.timers import Timers
from oyez.runtime.views import Views
from oyez.runtime.watch import Follower, Watch
from oyez.runtime.watchdog import Watchdog
from oyez.scaling.rule import Limits
from oyez.service import Provider, Service
from oyez.signals import Committed, Signals, Started, Stopped
from oyez.spans import Tracer
from oyez.transaction import Announcer
from oyez.view import ViewType

LEAVE = 2.0
"""Seconds for each of the last steps of a process, when its grace is over."""


class ProcessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a process; times in seconds."""

    system: str
    partitions: int = 8
    lease: float = 3.0
    """The lease: after this time another replica takes over from a process that died."""
    grace: float = 10.0
    """The time that work in flight has to finish when the process stops."""
    root: Path = Path()
    """The folder that migration folders are relative to."""
    migrate: bool = True
    """Whether the start makes the changes that the store needs; else it is refused if it does."""
    broker: str = ""
    """The kind of broker, such as ``kafka``: positions in a store are valid for that kind alone."""
    scaling: Limits = Limits()
    """What the number of replicas is held to, by whoever starts and stops them."""


class ServiceProcess:
    """A process that runs a service on a broker and a store."""

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
        consumer: Callable[[Lane], Consumer] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """``provide`` replaces values of the service's own providers, by type.

        ``threads`` runs plain ``def`` handlers; by default a pool of `THREADS`. ``reads`` returns
        whether a stream is read, by its name, and ``consumer`` the consumer of a lane's records;
        by default both are the service's handlers. ``tracer`` records its spans.
        """
        self.service = service
        self.settings = settings
        self.broker = broker
        self.store = store
        self.ambient = ambient
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{ambient.bits(32):08x}"
        self.leaving = False
        self.stopping = False
        self.draining = False
        self.reports = Reports(service.name, signals, tracer)
        self.announcer = Announcer(
            settings.system, service.name, ambient, lambda: broker.capabilities.max_bytes, tracer
        )
        history = broker.capabilities.history
        self.handlers = Handlers(
            settings.system, service.name, service.handlers if history else service.subscriptions
        )
        self.reads = reads or self.handlers.read
        """Returns whether a stream is read, by its name."""
        self.lanes: dict[Place, Lane] = {}
        self._threads = threads or ThreadPoolExecutor(
            THREADS, thread_name_prefix=f"{service.name}-handler"
        )
        self.watch = Watch(store, ambient, self.owner)
        self._backlog = Backlog(settings.system, self.lanes, broker, store, ambient)
        self.commits = Commits(store, self.announcer, ambient, self.committed)
        calls = Calls(self.handlers, ambient, self._threads)
        self.watchdog = Watchdog(calls, self.reports, settings.grace)
        """Not started here: a test's clock does not turn by itself."""
        self._execution = Execution(calls, self.commits, ambient, self.reports)
        self._work = Bell(ambient)
        self.parked = ParkedEvents(
            self.owner,
            self.handlers,
            self._execution,
            self.lanes,
            store=store,
            ambient=ambient,
            reports=self.reports,
            work=self._work,
        )
        self.claims = Claims(
            self.owner,
            self.lanes,
            self.parked,
            reads=self.reads,
            reading=partial(self._reading, consumer or self._batches),
            timers=self._timers if self.handlers.timed or self.handlers.schedules else None,
            broker=broker,
            commits=self.commits,
            ambient=ambient,
            reports=self.reports,
            work=self._work,
            grace=settings.grace,
        )
        self.views = Views(
            service.views,
            self.owner,
            system=settings.system,
            calls=lambda handlers: Calls(handlers, ambient, self._threads),
            broker=broker,
            commits=self.commits,
            ambient=ambient,
            reports=self.reports,
            grace=settings.grace,
            lanes=self.lanes,
            alone=not service.handlers,
        )
        self.health = Health(
            self.owner,
            self.claims,
            self.parked,
            broker=broker,
            store=store,
            ambient=ambient,
            reports=self.reports,
            views=self.views.rebuilds,
        )
        self.measuring = Measuring(
            service.handlers,
            self.announcer.stream,
            broker=broker,
            store=store,
            ambient=ambient,
            reports=self.reports,
        )
        self.housekeeping = Housekeeping(store, ambient, self.reports)
        self._provide = dict(provide or {})
        self._resources = AsyncExitStack()
        self._leased = False
        self._started = False

    async def start(self, *, http: str = "", admin: str = "") -> None:
        """Open broker and store, migrate, and start handling events.

        ``http`` and ``admin`` are the addresses that listen, for the signal and the replica's
        note. When it raises OyezError, nothing is left running.
        """
        # Each may wait for a server, or check a file.
        broker = asyncio.create_task(self._open_broker(), name="open broker")
        try:
            await self._open_store()
            await self.views.prepare()
            await self._check_positions()
            await broker
            self.views.check()
            await self._make_resources()
            self.store.on_commit(self._committed)
            self.store.on_leave(self.claims.ring)
            self.broker.on_streams(self.claims.ring)
            for view in self.views.rebuilds:
                self.broker.on_streams(view.claims.ring)
                self.store.on_leave(view.claims.ring)
            if self.service.publishes:
                await self._create_stream()
            # Last of all: from then on the other replicas leave this one its share.
            self._leased = True
            await self.store.keep(self.owner, self.settings.lease, admin)
        except BaseException:
            broker.cancel()
            await asyncio.gather(broker, return_exceptions=True)
            await self._let_go()
            raise
        self.service.attach(self)
        self._started = True
        self.claims.start()
        self.parked.start()
        self.views.start()
        self.health.start()
        self.measuring.start()
        self.housekeeping.start()
        self.reports.emit(
            Started(service=self.service.name, owner=self.owner, http=http, admin=admin)
        )

    def readiness(self) -> list[str]:
        """Return why the process is not ready; empty when it is."""
        reasons = [*self.health.readiness(), *self.views.problems()]
        if self.leaving or self.stopping:
            reasons.append("draining")
        return reasons

    def leave(self) -> None:
        """Announce that the process will drain: it is no longer ready, and works on as before."""
        self.leaving = True

    def stop_soon(self) -> None:
        """Announce the drain: the process is no longer ready, and endless HTTP responses end."""
        self.stopping = True
        self.watch.close()

    async def drain(self, grace: float | None = None) -> None:
        """Stop reading, finish work in flight within ``grace`` seconds, release all claims, close.

        ``grace`` is by default that of the settings. Safe when never started and when called
        twice.
        """
        if not self._started or self.draining:
            return
        self.draining = True
        self.stop_soon()
        self.health.stop()
        self.measuring.stop()
        self.housekeeping.stop()
        now = self.ambient.monotonic
        end = now() + (self.settings.grace if grace is None else grace)
        try:
            async with self.ambient.timeout(end - now()):
                await self.claims.stop()
                await self.views.stop()
        except TimeoutError:
            self.claims.kill()
            self.views.kill()
        for parked in (self.parked.stop, self.views.end_parked):
            left = end - now()
            await self._within(max(0.0, left) + LEAVE, "parked events", parked(left))
        self.service.detach(self)
        await self._let_go(max(0.0, end - now()) + LEAVE)
        self.reports.emit(Stopped(service=self.service.name, owner=self.owner))

    async def kill(self) -> None:
        """End as in a crash: nothing is finished, no claim released. For tests."""
        self.draining = True
        self.watch.close()
        self.health.stop()
        self.measuring.stop()
        self.housekeeping.stop()
        self.claims.kill()
        self.views.kill()
        await self.parked.stop(0.0)
        await self.views.end_parked(0.0)

    def _committed(self) -> None:
        self.watch.ring()
        self._work.ring()
        self.views.ring()
        if self.claims.relay is not None:
            self.claims.relay.ring()
        for timers in self.claims.timers:
            timers.ring()

    async def _check_positions(self) -> None:
        """Refuse a store whose positions belong to another kind of broker."""
        kind = self.settings.broker
        if not kind:
            return
        now = self.ambient.now()
        row: Parameters = {"name": tables.POSITIONS, "mark": kind, "now": now}
        begun = self.store.begin()
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
                        f"run on it: {tables.FORGET_POSITIONS}"
                    )
                await begun.fetch(
                    tables.MARK_AND_POSITION,
                    {"name": tables.POSITIONS},
                    [(tables.CHANGE_MARK, [row])],
                )
            await begun.commit(Changes(time=now))
        finally:
            await begun.rollback()

    async def _open_store(self) -> None:
        name, root = self.service.name, self.settings.root
        if self.settings.migrate:
            await migrate(self.store, self.service, root, self.ambient)
        elif changes := await due(self.store, self.service, root):
            raise MigrationsDue(
                f"the store of {name} lacks {', '.join(map(str, changes))}: run `oyez migrate "
                f"{name}` first, as a user who may change its tables"
            )

    async def _open_broker(self) -> None:
        try:
            await self.broker.open()
        except BrokerError as error:
            if not error.transient:
                raise
            self.reports.trouble("broker", error)  # HTTP works; events wait in the outbox

    async def _create_stream(self) -> None:
        try:
            await self.broker.create(self.announcer.stream, self.settings.partitions)
        except BrokerError as error:
            if not error.transient:
                raise
            self.reports.trouble("streams", error)  # the first publish creates it

    async def _make_resources(self) -> None:
        self.handlers.bind(await provided(self.service, self._provide, self._resources))

    async def _let_go(self, patience: float = LEAVE) -> None:
        """Leave, clean up what the service provides within ``patience`` seconds, and close."""
        # Each may wait for a server, or for a file that another process has locked. The lease
        # expires by itself. Others may take over at once, whatever the service's own cleanup does.
        if self._leased:
            await self._within(LEAVE, "leaving", self.store.leave(self.owner))
        await self._within(patience, "cleanup", self._resources.aclose())
        await self._within(LEAVE, "broker", self.broker.close())
        await self._within(LEAVE, "store", self.store.close())
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _within(self, seconds: float, part: str, work: Awaitable[object]) -> None:
        """Wait for the end of the work no longer than that; report what it met instead."""
        limit = self.ambient.timeout(seconds)
        try:
            async with limit:
                await work
        except Exception as error:  # noqa: BLE001 - what the service provides may raise anything
            late = OyezError(f"not done within {seconds:.0f} s: left as it is")
            self.reports.unfinished(part, late if limit.expired() else error)

    def committed(self, changes: Changes) -> None:
        self.watch.ring()
        if changes.seconds:
            self.reports.emit(Committed(service=self.service.name, seconds=changes.seconds))
        if self.claims.relay is not None:
            self.claims.relay.add(changes)

    def changes(self, every: float | None) -> AsyncIterator[None]:
        return Follower(self.watch, every)

    async def wait(self, seconds: float) -> None:
        await self.watch.wait(seconds)

    async def staleness(self, kind: ViewType, version: int) -> float:
        return await self.views.staleness(kind, version)

    async def redrive(self, letters: Sequence[int], who: str, why: str) -> int:
        settled = await redrive_letters(
            self.store,
            letters,
            self.ambient,
            by=Actor(who=who, via="service", why=why),
            handlers=handlers_of(self.service),
        )
        return settled.done

    def _reading(self, consumer: Callable[[Lane], Consumer], lane: Lane) -> Reading:
        return Reading(
            lane,
            consumer(lane),
            broker=self.broker,
            ambient=self.ambient,
            reports=self.reports,
            room=self._room,
        )

    async def _room(self) -> None:
        if self.claims.relay is not None:
            await self.claims.relay.room()

    def _timers(self, lane: Lane) -> Timers:
        return Timers(
            lane,
            self.handlers,
            source=self.announcer.source,
            backlog=self._backlog,
            commits=self.commits,
            ambient=self.ambient,
            reports=self.reports,
        )

    def _batches(self, lane: Lane) -> Batches:
        return Batches(
            lane,
            self.handlers,
            self._execution,
            broker=self.broker,
            commits=self.commits,
            ambient=self.ambient,
            reports=self.reports,
        )


async def provided(
    service: Service, given: Mapping[type, object], resources: AsyncExitStack
) -> dict[type, object]:
    """Return what the service provides to its handlers, by type; ``given`` replaces some of it.

    It is cleaned up when ``resources`` are closed.
    """
    made: dict[type, object] = {Service: service, **given}
    for provider in service.providers:
        if provider.provides not in made:
            made[provider.provides] = await resources.enter_async_context(_make(provider))
    return made


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
