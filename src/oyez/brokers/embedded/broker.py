"""The embedded broker, an `oyez.ports.Broker`, and the waking of its readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

from oyez.ambient import Ambient
from oyez.brokers.embedded.log import Grown, Log
from oyez.brokers.embedded.options import EmbeddedOptions
from oyez.brokers.embedded.schema import STEPS
from oyez.brokers.embedded.waiting import Waiting
from oyez.brokers.kit.calls import Deadline
from oyez.brokers.kit.streams import Place, Streams, behind, check_count
from oyez.brokers.kit.watch import Look, every, stop
from oyez.errors import (
    BrokerCorrupt,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
)
from oyez.ports import BEGINNING, Batch, Capabilities, Finding, Position, Record
from oyez.sqlite import SqliteFile

T = TypeVar("T")


class EmbeddedBroker:
    """Streams in one file; an `oyez.ports.Broker`."""

    capabilities = Capabilities(durability="power-loss", history=True, processes=True)

    def __init__(
        self, path: Path, ambient: Ambient, options: EmbeddedOptions | None = None
    ) -> None:
        self.options = options or EmbeddedOptions()
        self._ambient = ambient
        self._file = SqliteFile(path, steps=STEPS)
        self._path = path
        self._streams: Streams[list[int]] = Streams()
        self._log = Log(path, self.options)
        self._places: dict[int, Place] = {}
        self._ends: dict[int, Position] = {}
        self._waiting = Waiting()
        self._look = Look(self._refresh, f"look {path.name}")
        self._poller: asyncio.Task[None] | None = None

    async def open(self) -> None:
        if self._poller is not None:
            return
        try:
            await self._file.open()
        except StoreError as error:
            raise _as_broker_error(error) from error
        self._file.on_ring(self._look.soon, own=False)
        await self._refresh()
        self._poller = asyncio.create_task(
            every(self._ambient, self.options.poll, self._poll), name=f"poll {self._path.name}"
        )

    async def close(self) -> None:
        await stop(self._poller)
        await self._look.stop()
        self._poller = None
        await self._file.close()

    async def publish(self, records: Sequence[Record]) -> None:
        if not records:
            return
        missing = {record.stream for record in records} - self._streams.known.keys()
        if missing:
            await self._make(missing, self.options.partitions)
        packed = self._log.pack(records, self._streams.known)
        append = partial(self._log.append, packed, self._ambient.now())
        self._grow(await self._call(self._file.write(append, ring=True)))

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        place = (stream, partition)
        deleted = BEGINNING
        while True:
            identity = self._identity(place)
            end = BEGINNING if identity is None else self._ends[identity]
            if identity is None or end <= after or end <= deleted:
                batch = await self._waiting.wait(place, after)
            else:
                fetch = partial(self._log.fetch, place, identity, after)
                batch = await self._call(self._file.read(fetch))
                if batch is None:  # everything up to the end was deleted by retention
                    deleted = end
            if batch is not None:
                after = batch.records[-1].position
                yield batch

    async def streams(self) -> Mapping[str, int]:
        await self._refresh()
        return {stream: len(places) for stream, places in self._streams.known.items()}

    async def create(self, stream: str, partitions: int) -> None:
        check_count(stream, (await self._make((stream,), partitions))[stream], partitions)

    async def ends(self, stream: str) -> Sequence[Position]:
        places = await self._partitions(stream)
        sql = "select last from partition where id = ?"
        return await self._call(
            self._file.read(lambda c: [c.execute(sql, (place,)).get for place in places])
        )

    async def starts(self, stream: str) -> Sequence[Position]:
        starts = partial(self._log.starts, await self._partitions(stream))
        return await self._call(self._file.read(starts))

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        return behind(await self.ends(stream), positions)

    async def inspect(self) -> Sequence[Finding]:
        return await self._call(self._file.inspect())

    def handled(self, stream: str, partition: int, position: Position) -> None:
        pass

    def on_streams(self, callback: Callable[[], None]) -> None:
        self._streams.listen(callback)

    # -- the known streams and their ends, on the event loop --------------------------------------

    async def _make(self, streams: Collection[str], partitions: int) -> dict[str, int]:
        make = partial(self._log.make, streams, partitions)
        counts = await self._call(self._file.write(make, ring=True))
        await self._refresh()
        return counts

    async def _partitions(self, stream: str) -> Sequence[int]:
        """Return the ids of a stream's partitions, in their order: an index might hide some."""
        if stream not in self._streams.known:
            await self._refresh()
        return self._streams.known.get(stream, ())

    def _identity(self, place: Place) -> int | None:
        stream, partition = place
        known = self._streams.known.get(stream, ())
        return known[partition] if partition < len(known) else None

    async def _refresh(self) -> None:
        waiting = [
            (waiter, identity)
            for waiter in self._waiting
            if (identity := self._identity(waiter.place)) is not None
        ]
        look = partial(self._log.look, self._ends, waiting)
        looked = await self._call(self._file.read(look))
        if looked.named:
            self._places.update(looked.named)
            ids: dict[str, list[int]] = {}
            for identity, (stream, _) in sorted(self._places.items(), key=itemgetter(1)):
                ids.setdefault(stream, []).append(identity)
            for identity in looked.named:
                self._ends.setdefault(identity, BEGINNING)
            self._streams.replace(ids)
        for waiter, batch in looked.answers:
            waiter.wake(batch)
        self._grow(looked.grown)

    def _grow(self, grown: Grown) -> None:
        for identity, last in grown:
            if last > self._ends[identity]:
                self._ends[identity] = last
                self._waiting.wake(self._places[identity])

    async def _poll(self) -> None:
        await self._refresh()
        await self._keep_house()

    async def _keep_house(self) -> None:
        now = self._ambient.now()
        sql = "select due from housekeeping"
        if await self._call(self._file.read(lambda c: c.execute(sql).get)) > now:
            return
        while await self._call(self._file.write(partial(self._log.delete_old, now))):
            await self._ambient.sleep(0.05)  # appends may run between two rounds

    async def _call(self, answer: Awaitable[T]) -> T:
        try:
            async with Deadline(self.options.deadline, self._path):
                return await answer
        except StoreError as error:
            raise _as_broker_error(error) from error


def _as_broker_error(error: StoreError) -> BrokerError:
    if isinstance(error, StoreCorrupt):
        return BrokerCorrupt(str(error))
    if isinstance(error, StoreUnavailable):
        return BrokerUnavailable(str(error))
    return BrokerRefused(str(error))
