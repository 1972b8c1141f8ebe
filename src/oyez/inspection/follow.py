"""Follows the events of one stream or of all, on every broker of a system."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import msgspec

from oyez.endpoint import redact
from oyez.errors import BrokerError, OyezError
from oyez.inspection import history
from oyez.inspection.form import payload_json, utc_time
from oyez.inspection.reach import Gap, Reach, reached
from oyez.partitioning import is_own
from oyez.ports import BEGINNING, Batch, Broker, Position, Record
from oyez.project import Project

WAITING = 256
"""The limit of prefetched records."""
AGAIN = 1.0
"""Seconds before a broker that failed is retried."""


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """An event on one broker."""

    broker: str
    """The broker's short name."""
    url: str
    """The broker's URL, without its secrets."""
    record: Record
    attributes: Mapping[str, str]
    """The CloudEvents attributes, in either form; for a record that is no event, its headers."""

    @property
    def key(self) -> str | None:
        """The key that orders the event."""
        return history.key(self.record, self.attributes)


def as_value(arrival: Arrival, *, broker: bool) -> dict[str, Any]:
    """Return the event as a value for JSON; ``broker`` adds its broker."""
    record, found = arrival.record, dict(arrival.attributes)
    return {
        "time": utc_time(record.time),
        "stream": record.stream,
        "partition": record.partition,
        "position": record.position,
        "type": found.get("type"),
        "id": found.get("id"),
        "source": found.get("source"),
        "key": arrival.key,
        "attributes": found,
        **payload_json(record.data),
        **({"broker": arrival.url} if broker else {}),
    }


_Arrived = tuple[str, list[Record] | BrokerError] | Gap
"""The site of a broker, and a record or gap from it."""


class Following:
    """The followed streams, from their ends at the start."""

    def __init__(
        self, project: Project, reach: Reach, *, from_start: bool, prefix: str = ""
    ) -> None:
        """``prefix`` is how the names of streams begin, where all are followed."""
        self._prefix = prefix
        self._project = project
        self._reach = reach
        self._from_start = from_start
        self._queue: asyncio.Queue[_Arrived] = asyncio.Queue(1)
        # Listening comes first, so that a stream created meanwhile is not missed.
        self._followers = {
            site: _Follower(site, project.brokers[site].name, broker, self._queue)
            for site, broker in reach.brokers.items()
        }
        self._chosen: str | None = None
        self._ends: dict[str, dict[history.Place, Position]] = {}

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The brokers that are left out, as gaps."""
        return tuple(self._reach.gaps)

    @property
    def answered(self) -> bool:
        """Whether any broker responded."""
        return bool(self._ends)

    async def arrivals(self) -> AsyncGenerator[Arrival | Gap, None]:
        """Yield every event, for ever; those from before the start in the order of their time.

        A gap is a broker that does not respond at the moment, or events that were deleted. Raises
        BrokerError when it can't continue.
        """
        if self._from_start:
            short: list[history.Place] = []
            kept = [(site, self._reach.brokers[site], ends) for site, ends in self._ends.items()]
            async with aclosing(history.merged(kept, short)) as records:
                async for site, record in records:
                    yield self._arrival(site, record)
            for gap in history.deleted(short):
                yield gap
        async with aclosing(self.batches()) as batches:
            async for found in batches:
                if isinstance(found, Gap):
                    yield found
                    continue
                site, arrived = found
                for record in arrived:
                    yield self._arrival(site, record)

    async def batches(self) -> AsyncGenerator[tuple[str, list[Record]] | Gap, None]:
        """Yield what is published from the start on, each batch with the site of its broker.

        Gaps and errors are as those of `arrivals`.
        """
        tasks = [
            asyncio.create_task(self._followers[site].run(self._wants, ends), name="streams")
            for site, ends in self._ends.items()
        ]
        try:
            while tasks:
                found = await self._queue.get()
                if isinstance(found, Gap):
                    yield found
                    continue
                site, arrived = found
                if isinstance(arrived, BrokerError):
                    raise arrived
                yield site, arrived
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def begin(self, stream: str | None) -> None:
        """Record the present ends of the stream, or of all. Raises OyezError for an unknown one."""

        async def streams(site: str, broker: Broker) -> Collection[str]:
            return await history.streams(broker)

        async def ends(site: str, broker: Broker) -> dict[history.Place, Position]:
            if broker.capabilities.history:
                wanted = [each for each in known[site] if self._wants(each)]
                return await history.ends(broker, wanted)
            if self._from_start:
                raise OyezError(
                    "--from-start: this broker keeps no history, so earlier events can't be shown; "
                    "without it, `oyez tail` follows the events from now on"
                )
            return {}

        known = await self._reach.ask(streams)
        if stream is not None and known:
            self._chosen = _choose(self._project, known.values(), stream)
        self._ends = await self._reach.ask(ends)

    def _wants(self, stream: str) -> bool:
        if self._chosen is not None:
            return stream == self._chosen
        return stream.startswith(self._prefix) and not is_own(stream)

    def _arrival(self, site: str, record: Record) -> Arrival:
        known = self._project.brokers[site]
        return Arrival(
            broker=known.name,
            url=redact(known.url),
            record=record,
            attributes=history.attributes(record),
        )


@asynccontextmanager
async def following(
    project: Project, stream: str | None = None, *, from_start: bool = False
) -> AsyncIterator[Following]:
    """Follow a stream (by its name or its service's), or all, on every broker in reach.

    ``from_start`` begins with the oldest retained event, and leaves out brokers without history.
    Raises OyezError for a stream that no broker has.
    """
    async with reached(project) as reach:
        found = Following(project, reach, from_start=from_start)
        await found.begin(stream)
        yield found


def _choose(project: Project, known: Iterable[Collection[str]], stream: str) -> str:
    streams = {name for each in known for name in each}
    for name in (stream, f"{project.config.system.name}.{stream}"):
        if name in streams:
            return name
    names = ", ".join(sorted(streams)) or "none yet"
    raise OyezError(f"there is no stream {stream!r}; there are: {names}")


class _Follower:
    """The streams of one broker, with a reader for each partition."""

    def __init__(
        self, site: str, name: str, broker: Broker, queue: asyncio.Queue[_Arrived]
    ) -> None:
        self._site = site
        self._name = name
        self._broker = broker
        self._queue = queue
        self._followed: dict[str, list[asyncio.Task[None]]] = {}
        self._added = asyncio.Event()
        broker.on_streams(self._added.set)

    async def run(
        self, wants: Callable[[str], bool], places: Mapping[history.Place, Position]
    ) -> None:
        """Follow the streams that are wanted, from these positions, until cancelled."""
        try:
            await self._watch(wants, places)
        finally:
            tasks = [task for tasks in self._followed.values() for task in tasks]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _watch(
        self, wants: Callable[[str], bool], places: Mapping[history.Place, Position]
    ) -> None:
        while True:
            try:
                for stream, partitions in (await self._broker.streams()).items():
                    if wants(stream) and stream not in self._followed:
                        self._followed[stream] = [
                            asyncio.create_task(
                                self._read(stream, n, places.get((stream, n), BEGINNING))
                            )
                            for n in range(partitions)
                        ]
                await self._added.wait()
                self._added.clear()
            except BrokerError as error:
                await self._pause(f"broker {self._name}", error)

    async def _read(self, stream: str, partition: int, after: Position) -> None:
        while True:
            reader = cast(AsyncGenerator[Batch, None], self._broker.read(stream, partition, after))
            try:
                async for batch in reader:
                    after = batch.records[-1].position
                    for start in range(0, len(batch.records), WAITING):
                        await self._queue.put((self._site, batch.records[start : start + WAITING]))
            except BrokerError as error:
                if not error.transient:
                    await self._queue.put((self._site, error))
                    return
                await self._pause(f"broker {self._name}: {stream}[{partition}]", error)
            finally:
                await reader.aclose()

    async def _pause(self, what: str, error: BrokerError) -> None:
        gap = Gap.of("broker", self._name, error, what)
        await self._queue.put(msgspec.structs.replace(gap, reason=f"{error}; retrying"))
        await asyncio.sleep(AGAIN)
