"""Runs services inside a test: the real runtime, a memory broker, real SQLite files, no sleeping.

::

    async with running(payments) as system:
        await system.publish(OrderPlaced(order_id="1", total_cents=900))
        await system.settled()
        assert system.announced(PaymentProcessed) == [PaymentProcessed(order_id="1")]
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx

from oyez import tables
from oyez.ambient import Ambient
from oyez.brokers.memory.broker import MemoryBroker
from oyez.contract import decode
from oyez.envelope import Envelope, format_time, open_record
from oyez.event import describe
from oyez.identity import HEADER, NAME_HEADER, Signer, new_key
from oyez.ports import Record, Row
from oyez.principal import Principal
from oyez.runtime.audit import Actor
from oyez.runtime.backfill import Walk
from oyez.runtime.dead import list_dead
from oyez.runtime.http import with_origin
from oyez.runtime.identity import Identities
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.runtime.rebuild import Rebuild
from oyez.service import Service
from oyez.signals import Signal, Signals
from oyez.spans import Tracer
from oyez.stores.sqlite import SqliteStore
from oyez.tables import OUTBOX, PLACES, TIMERS
from oyez.testing.clock import VirtualAmbient, quiescent
from oyez.testing.inline import Inline
from oyez.transaction import Announcer, Origin

E = TypeVar("E")


class NotSettled(AssertionError):
    """The system was still busy at the deadline; the message names the reason."""


class System:
    """Several services that run in this process; made by `running`."""

    def __init__(self, name: str, ambient: VirtualAmbient, broker: MemoryBroker) -> None:
        self.name = name
        self.ambient = ambient
        self.broker = broker
        self.processes: dict[str, ServiceProcess] = {}
        self.bus = Signals()
        """The signals of the services, for tests that listen to calls too."""
        self.signals: list[Signal] = []
        """All signals so far, in order."""

    async def publish(
        self, event: object, *, service: str = "outside", key: str | None = None
    ) -> str:
        """Publish an event as if by ``service``; return its id."""
        announcer = Announcer(self.name, service, self.ambient)
        row = announcer.announce(event, Origin(), format_time(self.ambient.now()), 0.0, key)
        await self.publish_raw(row.headers, row.data, service=service, key=row.key)
        return row.headers["id"]

    async def publish_raw(
        self,
        headers: Mapping[str, str],
        data: bytes | None,
        *,
        service: str = "outside",
        key: str | None = None,
    ) -> None:
        """Publish a record unchanged, even an invalid one."""
        stream = f"{self.name}.{service}"
        await self.broker.publish(
            [Record(stream=stream, key=key, headers=dict(headers), data=data)]
        )

    async def settled(self, deadline: float = 10.0) -> None:
        """Wait until every event is handled and every outbox is empty.

        Events that are due later (a retry, a delayed event) do not count: `advance` the clock.
        Raises NotSettled after ``deadline`` real seconds.
        """
        end = time.monotonic() + deadline
        while True:
            await quiescent()
            busy = await self._busy()
            if not busy:
                return
            if time.monotonic() > end:
                raise NotSettled(f"still busy after {deadline} s: {busy}")
            await asyncio.sleep(0.001)

    async def advance(self, seconds: float) -> None:
        """Advance the clock by virtual seconds, then wait until everything has settled."""
        await self.ambient.advance(seconds)
        await self.settled()

    def announced(self, cls: type[E]) -> list[E]:
        """Return the events of this type on the broker, in the order of their creation."""
        kind = describe(cls)
        return [
            decode(kind, envelope.data, envelope.dataschema)
            for envelope in self.history()
            if envelope.type == kind.name
        ]

    def history(self) -> list[Envelope]:
        """Return every event on the broker, in the order of their creation."""
        records = [record for logs in self.broker.logs.values() for log in logs for record in log]
        return sorted(
            (open_record(r.headers, r.data) for r in records), key=lambda envelope: envelope.id
        )

    async def backfill(self, service: str, cls: type, *, recipient: str) -> int:
        """Walk the service's backfill of this event, as `oyez backfill` does for the recipient.

        Returns the number of announced events.
        """
        process = self.processes[service]
        walk = Walk(
            process.service.backfills[describe(cls).name],
            recipient,
            broker=self.broker,
            store=process.store,
            announcer=process.announcer,
        )
        await walk.begin(by=Actor(who="test", via="command"))
        while await walk.chunk():
            pass
        return walk.walked.announced

    async def fetch(self, service: str, sql: str, /, **parameters: Any) -> list[Row]:
        """Query a service's own store."""
        return await self.processes[service].store.fetch(sql, parameters)

    async def dead(self, service: str) -> list[Row]:
        """Return a service's dead letters."""
        return await list_dead(self.processes[service].store)

    def http(self, service: str, principal: Principal | None = None) -> httpx.AsyncClient:
        """Return a client for a service's HTTP side, without a socket.

        ``principal`` is who sends its requests, as if a gateway had authenticated them.
        """
        process = self.processes[service]
        proven = Identities(self.name, service, self.ambient, self._gateway_keys)
        app = with_origin(process.service.http, process.announcer, proven)

        def signed(request: httpx.Request) -> httpx.Request:
            if principal is not None:
                token = self._signer.sign(principal, service, self.ambient.now())
                request.headers[NAME_HEADER.decode()] = principal.name
                request.headers[HEADER.decode()] = token
            return request

        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url=f"http://{service}", auth=signed
        )

    @cached_property
    def _signer(self) -> Signer:
        return Signer(self.name, new_key())

    async def _gateway_keys(self) -> bytes:
        return self._signer.jwks

    async def _busy(self) -> str:
        streams = await self.broker.streams()
        for name, process in self.processes.items():
            wanted = {(OUTBOX, 0)}
            if process.claims.fires:
                wanted.update((TIMERS, part) for part in range(PLACES))
            for stream, partitions in streams.items():
                if process.reads(stream):
                    wanted.update((stream, partition) for partition in range(partitions))
            held = set(process.lanes)
            if process.claims.relay is not None:
                held.add((OUTBOX, 0))
            if wanted != held:
                process.claims.ring()
                return f"{name} has not claimed {sorted(wanted - held)}"
            for timers in process.claims.timers:
                if kinds := await timers.look():
                    timers.ring()
                    return f"{name} has due timers of {', '.join(kinds)}"
            for (stream, partition), lane in process.lanes.items():
                if stream == TIMERS:
                    continue
                end = (await self.broker.ends(stream))[partition]
                if lane.position < end or not lane.idle:
                    return f"{name} is at {lane.position} of {end} in {stream}[{partition}]"
            for view in process.views.rebuilds:
                waits = await self._behind(name, view, streams)
                if waits:
                    return waits
            if process.parked.running:
                return f"{name} runs {process.parked.running} parked events"
            rows = await process.store.fetch(tables.BUSY, {"now": self.ambient.now()})
            if rows[0]["busy"]:
                return f"{name} has {rows[0]['busy']} events in its outbox or parked and due"
        return ""

    async def _behind(self, name: str, view: Rebuild, streams: Mapping[str, int]) -> str:
        """Return what a view of a service still has to read; empty for nothing."""
        wanted = {
            (stream, partition)
            for stream, partitions in streams.items()
            if view.handlers.read(stream)
            for partition in range(partitions)
        }
        if wanted != view.lanes.keys():
            view.claims.ring()
            return f"{view.kind.name} of {name} has not claimed {sorted(wanted - set(view.lanes))}"
        for (stream, partition), lane in view.lanes.items():
            end = (await self.broker.ends(stream))[partition]
            if (lane.position < end or not lane.idle) and (stream, partition) not in view.missing:
                return f"{lane.name} of {name} is at {lane.position} of {end}"
        return f"{name} runs parked events of a view" if view.parked.running else ""


class Running(Protocol):
    """The type of the pytest fixture `running`, the harness in a project's tests."""

    def __call__(
        self,
        *services: Service,
        system: str = ...,
        root: Path = ...,
        provide: Mapping[type, object] | None = None,
        seed: int = 0,
        partitions: int = 8,
    ) -> AbstractAsyncContextManager[System]:
        """Run services until the block ends; see `oyez.testing.running`.

        ``system`` and ``root`` are by default those of the project.
        """
        ...


@asynccontextmanager
async def running(
    *services: Service,
    system: str = "test",
    root: Path | None = None,
    provide: Mapping[type, object] | None = None,
    seed: int = 0,
    partitions: int = 8,
    tracer: Callable[[str, Ambient], Tracer] | None = None,
) -> AsyncIterator[System]:
    """Run services under a virtual clock until the block ends.

    Migration folders are relative to ``root`` (by default the current folder). ``provide`` replaces
    values of the services' own providers, by type. ``tracer`` returns what records the spans of a
    service. With the same ``seed`` and handlers without
    input or output of their own, two runs have the same history.
    """
    ambient = VirtualAmbient(seed)
    broker = MemoryBroker(ambient, partitions=partitions)
    made = System(system, ambient, broker)
    made.bus.listen(made.signals.append)
    settings = ProcessSettings(system=system, partitions=partitions, root=root or Path())
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oyez-test-")))
        for service in services:
            store = SqliteStore(folder / f"{service.name}.db", ambient, inline=True, durable=False)
            process = ServiceProcess(
                service,
                settings,
                broker=broker,
                store=store,
                ambient=ambient,
                signals=made.bus,
                provide=provide,
                threads=Inline(),
                tracer=None if tracer is None else tracer(service.name, ambient),
            )
            await process.start()
            stack.push_async_callback(process.drain)
            made.processes[service.name] = process
        yield made
