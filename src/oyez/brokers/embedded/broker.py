"""The embedded broker, an `oyez.ports.Broker`, and the waking of its readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import apsw

from oyez.ambient import Ambient
from oyez.brokers.embedded.log import STEPS, Log, encode
from oyez.brokers.embedded.options import EmbeddedOptions
from oyez.brokers.kit.calls import Deadline
from oyez.brokers.kit.heads import Heads
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
        self._log = Log(path, self.options, self._streams)
        self._ends: dict[Place, Position] = {}
        self._heads: Heads[Place] = Heads()
        self._look = Look(self._refresh, f"look {path.name}")
        self._poller: asyncio.Task[None] | None = None

    async def open(self) -> None:
        if self._poller is not None:
            return
        try:
            await self._file.open()
        except StoreError as error:
            raise _as_broker_error(error) from error
        self._file.on_ring(self._look.soon)
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
        append = partial(self._log.append, records, [encode(record.headers) for record in records])
        await self._call(self._file.write(partial(append, self._ambient.now()), ring=True))

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        place = (stream, partition)
        while True:
            if self._ends.get(place, BEGINNING) > after:
                batch = await self._call(self._file.read(partial(self._log.fetch, place, after)))
                if batch is not None:
                    after = batch.records[-1].position
                    yield batch
                    continue
                # Everything up to the head was deleted by retention.
                self._ends.pop(place, None)
            await self._heads.wait(place)

    async def streams(self) -> Mapping[str, int]:
        await self._refresh()
        return {stream: len(places) for stream, places in self._streams.known.items()}

    async def create(self, stream: str, partitions: int) -> None:

        def make(connection: apsw.Connection) -> int:
            sql = "select count(*) from partition where stream = ?"
            found: int = connection.execute(sql, (stream,)).get
            return found or len(self._log.make(connection, stream, partitions))

        check_count(stream, await self._call(self._file.write(make, ring=True)), partitions)

    async def ends(self, stream: str) -> Sequence[Position]:
        sql = "select last from partition where stream = ? order by partition"
        return await self._call(
            self._file.read(lambda c: [last for (last,) in c.execute(sql, (stream,))])
        )

    async def starts(self, stream: str) -> Sequence[Position]:
        sql = """select coalesce(
            (select min(position) - 1 from record where partition = partition.id), last)
          from partition where stream = ? order by partition"""
        return await self._call(
            self._file.read(lambda c: [start for (start,) in c.execute(sql, (stream,))])
        )

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        return behind(await self.ends(stream), positions)

    async def inspect(self) -> Sequence[Finding]:
        return await self._call(self._file.inspect())

    def handled(self, stream: str, partition: int, position: Position) -> None:
        pass

    def on_streams(self, callback: Callable[[], None]) -> None:
        self._streams.listen(callback)

    # -- waking readers, on the event loop --------------------------------------------------------

    async def _refresh(self) -> None:
        sql = "select id, stream, partition, last from partition order by stream, partition"
        rows = await self._call(self._file.read(lambda c: list(c.execute(sql))))
        ids: dict[str, list[int]] = {}
        for identity, stream, partition, last in rows:
            ids.setdefault(stream, []).append(identity)
            place = (stream, partition)
            if last > self._ends.get(place, BEGINNING):
                self._ends[place] = last
                self._heads.wake(place)
        self._streams.replace(ids)

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
