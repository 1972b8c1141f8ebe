"""Appending: calls that wait while an append is under way go together into the next."""

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
"""Records in one append, at most."""
WINDOW_BYTES = 4 * 1024 * 1024
"""Bytes in one append, at most (one record may exceed it alone)."""
TELLING = 200
"""Partitions in one notification, at most; PostgreSQL takes 8,000 bytes."""

_APPEND = "select {schema}.append($1, $2, $3, $4, $5, $6)"
_TELL = "select pg_notify($1, told) from unnest($2::text[]) told"


class Publisher:
    """What is on its way to the tables, and the word of it to other processes."""

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
        """Return when nothing is appended any more."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def close(self) -> None:
        """Tell no more."""
        await self._telling.stop()

    async def _run(self) -> None:
        while self._queue:
            entries = self._take()
            try:
                await self._append([row for entry in entries for row in entry.rows])
            except BrokerRefused as error:
                # One of them is at fault: the others should not fail with it.
                if len(entries) == 1:
                    entries[0].fail(error)
                else:
                    await self._each(entries)
            except BaseException as error:  # noqa: BLE001 - it is the callers'
                for entry in entries:
                    entry.fail(error)
            else:
                for entry in entries:
                    entry.succeed()

    def _take(self) -> list[_Call]:
        """The waiting appends that go together."""
        taken: list[_Call] = []
        count = size = 0
        while self._queue:
            entry = self._queue[0]
            count += len(entry.rows)
            size += entry.size
            if taken and (count > WINDOW or size > WINDOW_BYTES):
                break
            self._queue.popleft()
            if not entry.done.done():  # else its caller has given up while it waited
                taken.append(entry)
        return taken

    async def _each(self, entries: list[_Call]) -> None:
        for entry in entries:
            try:
                await self._append(entry.rows)
            except BaseException as error:  # noqa: BLE001 - it is the caller's
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
            await self._ends.refresh()  # a stream was deleted, and its partitions are no more

    async def _tell(self) -> None:
        """Tell the other processes where partitions end now; who is not told looks by itself."""
        moved, self._moved = list(self._moved.items()), {}
        told = [
            ",".join(f"{identity}:{last}" for identity, last in moved[i : i + TELLING])
            for i in range(0, len(moved), TELLING)
        ]
        await self._connection.fetch(_TELL, self._connection.channel, told, patient=False)


class _Call:
    """Records of one call, and whoever waits for them."""

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
