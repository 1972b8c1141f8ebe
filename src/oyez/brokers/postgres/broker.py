"""PostgreSQL as an `oyez.ports.Broker`, in one schema of a database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from oyez.ambient import Ambient
from oyez.brokers.kit.progress import Progress
from oyez.brokers.kit.streams import Place, behind, check_count
from oyez.brokers.kit.watch import every, stop
from oyez.brokers.postgres.connection import Connection
from oyez.brokers.postgres.ends import Ends
from oyez.brokers.postgres.options import PostgresOptions
from oyez.brokers.postgres.publisher import Publisher
from oyez.brokers.postgres.reader import Reader
from oyez.brokers.postgres.wire import MAX_BYTES
from oyez.endpoint import Endpoint
from oyez.errors import BrokerError, BrokerUnavailable, StoreError
from oyez.ports import Batch, Capabilities, Finding, Position, Record
from oyez.postgresql import Listener, as_broker_error

DELETING = 1_000
"""The limit of records deleted in one transaction."""

_BOUNDS = "select first, last from {schema}.ends where stream = $1 order by partition"
_PROGRESS = """insert into {schema}.progress
 select $1, place, position, extract(epoch from clock_timestamp())
 from unnest($2::bigint[], $3::bigint[]) told (place, position)
   join {schema}.partition p on p.id = place
 on conflict (consumer, partition)
   do update set position = excluded.position, time = excluded.time"""
_TIDY = """update {schema}.setup set tidied = extract(epoch from clock_timestamp())
 where tidied <= extract(epoch from clock_timestamp()) - $1 returning tidied"""
_NOW = "select extract(epoch from clock_timestamp())::float8"
_OLD = """select p.id from {schema}.partition p
 cross join lateral (select time from {schema}.record r
  where r.partition = p.id and r.position > p.first order by r.position limit 1) oldest
 where oldest.time < $1 order by p.id"""
_FORGET = "select {schema}.forget_records($1, $2, $3)"


class PostgresBroker:
    """Streams in one schema of a database; an `oyez.ports.Broker`."""

    def __init__(
        self, endpoint: Endpoint, ambient: Ambient, options: PostgresOptions, group: str = ""
    ) -> None:
        """``group`` is the consumer whose committed positions `handled` reports."""
        self.options = options
        self._learn("process-crash")
        self._ambient = ambient
        self._group = group
        self._connection = Connection(endpoint, ambient, options, self._learn)
        self._server = self._connection.server
        self._ends = Ends(self._connection)
        self._listener = Listener(
            self._server, self._connection.channel, self._ends.hear, self._ends.look.soon
        )
        self._publisher = Publisher(self._connection, self._ends, options)
        self._progress = Progress(self._show)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        if self._tasks:
            return
        self._connection.closed = False
        try:
            await self._ends.refresh(patient=False)
        except BrokerUnavailable:
            self._start()
            raise
        self._start()

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        self._connection.patient = False
        await self._publisher.finish()
        await self._listener.stop()
        await stop(*tasks)
        await self._publisher.close()
        await self._ends.look.stop()
        with contextlib.suppress(BrokerError):
            await self._progress.show()
        await self._connection.close()

    async def publish(self, records: Sequence[Record]) -> None:
        await self._publisher.publish(records)

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        reader = Reader(self._connection, self._ends, self.options, (stream, partition), after)
        while True:
            yield await reader.next()

    def handled(self, stream: str, partition: int, position: Position) -> None:
        if self._group:
            self._progress.handled[stream, partition] = position

    async def streams(self) -> Mapping[str, int]:
        await self._ends.refresh()
        return {stream: len(ids) for stream, ids in self._ends.streams.known.items()}

    async def create(self, stream: str, partitions: int) -> None:
        await self._ends.make(stream, partitions)
        check_count(stream, len(self._ends.streams.known.get(stream, ())), partitions)

    async def ends(self, stream: str) -> Sequence[Position]:
        return [row["last"] for row in await self._connection.fetch(_BOUNDS, stream)]

    async def starts(self, stream: str) -> Sequence[Position]:
        return [row["first"] for row in await self._connection.fetch(_BOUNDS, stream)]

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        return behind(await self.ends(stream), positions)

    async def inspect(self) -> Sequence[Finding]:
        try:
            return await self._server.inspect()
        except StoreError as error:
            raise as_broker_error(error) from error

    def on_streams(self, callback: Callable[[], None]) -> None:
        self._ends.streams.listen(callback)

    def _learn(self, durability: str) -> None:
        self.capabilities = Capabilities(
            durability=durability, history=True, processes=True, max_bytes=MAX_BYTES
        )

    # -- what runs beside --------------------------------------------------------------------------

    def _start(self) -> None:
        ambient, options = self._ambient, self.options
        jobs = {
            "look": every(ambient, options.poll, self._ends.refresh),
            "show": every(ambient, max(1.0, options.poll), self._progress.show),
            "housekeeping": every(ambient, options.housekeeping, self._tidy),
        }
        self._tasks = [
            asyncio.create_task(job, name=f"postgres {what}") for what, job in jobs.items()
        ]
        self._connection.patient = True
        self._listener.start()

    async def _show(self, moved: Mapping[Place, Position]) -> None:
        streams = self._ends.streams.known
        known = {
            streams[stream][partition]: position
            for (stream, partition), position in moved.items()
            if partition < len(streams.get(stream, ()))
        }
        places, positions = list(known), list(known.values())
        await self._connection.fetch(_PROGRESS, self._group, places, positions)

    async def _tidy(self) -> None:
        if await self._connection.fetch(_TIDY, self.options.housekeeping * 0.9):
            await self._delete_old()

    async def _delete_old(self) -> None:
        fetch = self._connection.fetch
        ((now,),) = await fetch(_NOW)
        horizon = now - self.options.retention
        for (identity,) in await fetch(_OLD, horizon):
            deleted = DELETING
            while deleted == DELETING:
                ((deleted,),) = await fetch(_FORGET, identity, horizon, DELETING)
                await self._ambient.sleep(0.02)  # appends may run between two rounds
