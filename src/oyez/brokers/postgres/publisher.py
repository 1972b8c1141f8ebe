"""Appends records: calls during an append are combined into the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from oyez.brokers.kit.calls import Deadline
from oyez.brokers.kit.watch import Look
from oyez.brokers.kit.windows import windows
from oyez.brokers.postgres.connection import Connection
from oyez.brokers.postgres.ends import Ends
from oyez.brokers.postgres.options import PostgresOptions
from oyez.brokers.postgres.wire import Row, arrays, encode
from oyez.errors import BrokerRefused
from oyez.ports import Position, Record

WINDOW = 1_024
"""The limit of records in one append."""
WINDOW_BYTES = 4 * 1024 * 1024
"""The limit of bytes in one append (a single record may exceed it)."""
TELLING = 200
"""The limit of partitions in one notification, which PostgreSQL limits to 8,000 bytes."""

_APPEND = "select {schema}.append($1, $2, $3, $4, $5, $6)"
_TELL = "select pg_notify($1, told) from unnest($2::text[]) told"


class Publisher:
    """The pending appends, and the notifications of other processes."""

    def __init__(self, connection: Connection, ends: Ends, options: PostgresOptions) -> None:
        self._connection = connection
        self._ends = ends
        self._options = options
        self._queue: deque[_Call] = deque()
        self._running: asyncio.Task[None] | None = None
        self._moved: dict[int, Position] = {}
        self._telling = Look(self._tell, "postgres notify")

    async def publish(self, records: Sequence[Record]) -> None:
        rows = [encode(record) for record in records]
        for window in windows([row[0] for row in rows], WINDOW_BYTES, WINDOW):
            call = _Call(rows[window], asyncio.get_running_loop().create_future())
            self._queue.append(call)
            if self._running is None or self._running.done():
                self._running = asyncio.create_task(self._run(), name="postgres append")
            async with Deadline(self._options.deadline, self._connection.server.name):
                await call.done

    async def finish(self) -> None:
        """Wait until no append is running."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def close(self) -> None:
        """Stop notifying."""
        await self._telling.stop()

    async def _run(self) -> None:
        while self._queue:
            entries = self._take()
            try:
                await self._append([row for entry in entries for row in entry.rows])
            except BrokerRefused as error:
                # One of them is at fault: the others must not fail with it.
                if len(entries) == 1:
                    entries[0].fail(error)
                else:
                    await self._each(entries)
            except BaseException as error:  # noqa: BLE001 - passed on to the callers
                for entry in entries:
                    entry.fail(error)
            else:
                for entry in entries:
                    entry.succeed()

    def _take(self) -> list[_Call]:
        """Return the waiting appends to combine."""
        taken: list[_Call] = []
        count = size = 0
        while self._queue:
            entry = self._queue[0]
            count += len(entry.rows)
            size += entry.size
            if taken and (count > WINDOW or size > WINDOW_BYTES):
                break
            self._queue.popleft()
            if not entry.done.done():  # otherwise its caller gave up while it waited
                taken.append(entry)
        return taken

    async def _each(self, entries: list[_Call]) -> None:
        for entry in entries:
            try:
                await self._append(entry.rows)
            except BaseException as error:  # noqa: BLE001 - passed on to the caller
                entry.fail(error)
            else:
                entry.succeed()

    async def _append(self, rows: list[Row]) -> None:
        while rows:
            for stream in {row[1].stream for row in rows} - self._ends.streams.known.keys():
                await self._ends.make(stream, self._options.partitions)
            counts, parameters = arrays(rows, self._ends.streams.known)
            sql, places = _APPEND, list(counts)
            ((ends,),) = await self._connection.fetch(sql, places, *parameters, share=1.0)
            if ends is not None:
                moved = {
                    place: end + counts[place] for place, end in zip(places, ends, strict=True)
                }
                for place, last in moved.items():
                    self._ends.move(place, last)
                if self._options.listen != "poll":
                    self._moved |= moved
                    self._telling.soon()
                return
            await self._ends.refresh()  # a stream was deleted with its partitions

    async def _tell(self) -> None:
        """Notify other processes of the new ends; a process that misses it polls."""
        moved, self._moved = list(self._moved.items()), {}
        told = [
            ",".join(f"{identity}:{last}" for identity, last in moved[i : i + TELLING])
            for i in range(0, len(moved), TELLING)
        ]
        await self._connection.fetch(_TELL, self._connection.channel, told, patient=False)


class _Call:
    """The records of one call, and the future of its caller."""

    __slots__ = ("done", "rows", "size")

    def __init__(self, rows: list[Row], done: asyncio.Future[None]) -> None:
        self.rows = rows
        self.size = sum(row[0] for row in rows)
        self.done = done

    def succeed(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)
