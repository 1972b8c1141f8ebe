"""Reads one partition by position, and waits for new entries of any partition."""

from __future__ import annotations

import asyncio
from typing import Any

from oyez.ambient import Ambient
from oyez.background import lasting
from oyez.brokers.kit.calls import Pauses
from oyez.brokers.kit.heads import Heads
from oyez.brokers.kit.streams import Place
from oyez.brokers.kit.watch import stop
from oyez.brokers.redis.connection import Connection, Link
from oyez.brokers.redis.options import RedisOptions
from oyez.brokers.redis.partition import look
from oyez.brokers.redis.wire import decode, id_of, key_of
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable
from oyez.ports import BEGINNING, Batch, Position, Record


class Reader:
    """A call of `Broker.read`: its position, and the number of entries up to it."""

    def __init__(
        self,
        connection: Connection,
        arrivals: Arrivals,
        ambient: Ambient,
        options: RedisOptions,
        group: str,
        place: Place,
        after: Position,
    ) -> None:
        self._connection = connection
        self._arrivals = arrivals
        self._options = options
        self._group = group
        self._place = place
        self._key = key_of(*place)
        self._position = after
        self._verified = False
        self._entries_read: int | None = None
        self._count = 16
        self._last: list[Position] = []
        self._pauses = Pauses(ambient)

    async def next(self) -> Batch:
        """Return the next records, at least one. Raises BrokerRefused."""
        while True:
            try:
                batch = await self._fetch()
                self._pauses.failures = 0
            except BrokerUnavailable:
                self._verified = False
                await self._pauses.wait()
                continue
            if batch is not None:
                return batch
            await self._arrivals.wait(self._key, self._position)

    async def _fetch(self) -> Batch | None:
        missed, restarted = 0, False
        if not self._verified:
            (info,) = await look(self._connection, [self._key], self._group)
            restarted = self._position > info.last > BEGINNING
            if restarted:
                self._position = BEGINNING
            else:
                missed = info.missed(self._position)
            self._entries_read = info.entries_before(max(self._position, info.start))
            self._verified = True
        after = f"({id_of(self._position)}"
        command = ("XRANGE", self._key, after, "+", "COUNT", self._count)
        (entries,) = await self._connection.call([command])
        if not entries:
            # Reported with the first record, so that it is not lost when there is none yet.
            self._verified = not (missed or restarted)
            return None
        stream, partition = self._place
        records = [decode(entry, stream, partition) for entry in entries]
        self._advance(records)
        return Batch(records, missed, restarted)

    def _advance(self, records: list[Record]) -> None:
        """Move past these records, and adapt the next number to their size."""
        self._last = [record.position for record in records]
        self._position = self._last[-1]
        if self._entries_read is not None:
            self._entries_read += len(records)
        largest = max(len(record.data or b"") for record in records)
        fit = self._options.batch_bytes // (largest + 1024)
        self._count = max(1, min(self._options.batch, fit, self._count * 2))

    def entries_up_to(self, position: Position) -> int | None:
        """Return the number of entries ever added up to one of the last batch; None if unknown."""
        if self._entries_read is None or position not in self._last:
            return None
        return self._entries_read - len(self._last) + 1 + self._last.index(position)


class Arrivals:
    """The wait for new entries of all partitions on one connection, by a blocking XREAD."""

    def __init__(self, connection: Connection, ambient: Ambient, block: float) -> None:
        """Create it; ``block`` is the longest wait of one XREAD, in seconds."""
        self._connection = connection
        self._ambient = ambient
        self._block = block
        self._positions: dict[bytes, Position] = {}
        self._heads: Heads[bytes] = Heads()
        self._changed = asyncio.Event()
        self._client: int | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start waiting for the readers."""
        self._tasks = [
            asyncio.create_task(lasting(work, job, self._ambient), name=work)
            for work, job in (("redis arrivals", self._run), ("redis unblock", self._unblock))
        ]

    async def stop(self) -> None:
        """Stop waiting."""
        await stop(*self._tasks)

    async def wait(self, key: bytes, position: Position) -> None:
        """Wait until there may be an entry after the position."""
        if self._positions.get(key) != position:
            self._heads.wake(key)  # a reader at another position reads again
            self._positions[key] = position
            self._changed.set()
        await self._heads.wait(key)

    def _wake(self, key: bytes) -> None:
        self._positions.pop(key, None)
        self._heads.wake(key)

    async def _run(self) -> None:
        pauses = Pauses(self._ambient)
        while True:
            try:
                await self._listen(pauses)
            except BrokerError:
                for key in list(self._positions):
                    self._wake(key)  # each reader retries by itself, and reports
                await pauses.wait()

    async def _listen(self, pauses: Pauses) -> None:
        """Listen until the link fails."""
        link = await self._connection.link()
        try:
            self._client = await self._ask(link, "CLIENT", "ID")
            pauses.failures = 0
            while True:
                if not self._positions:
                    self._changed.clear()
                    await self._changed.wait()
                self._changed.clear()
                keys, positions = list(self._positions), self._positions.values()
                found = await self._ask(
                    link, "XREAD", "COUNT", 1, "BLOCK", int(self._block * 1000),
                    "STREAMS", *keys, *map(id_of, positions), silence=self._block,
                )  # fmt: skip
                for key, _ in found or ():
                    self._wake(key)
        finally:
            self._client = None
            await link.disconnect(nowait=True)

    async def _ask(self, link: Link, *command: str | bytes | int, silence: float = 0.0) -> Any:
        async def exchange() -> Any:
            await link.send_command(*command)
            return await link.read_response(timeout=None)

        return await self._connection.guarded(exchange(), silence=silence)

    async def _unblock(self) -> None:
        """End the blocking call when there is one more partition to wait for."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(0)  # readers that become idle together are added together
            client = self._client
            if client is None or not self._changed.is_set():
                await self._ambient.sleep(0.01)
                continue
            try:
                await self._connection.call([("CLIENT", "UNBLOCK", client)])
            except BrokerRefused:
                self._block = 0.05  # not permitted: poll often instead
            except BrokerError:
                pass
            await self._ambient.sleep(0.001)
