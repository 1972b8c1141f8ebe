"""A broker in the memory of one process, for tests and simulations. Nothing outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import msgspec

from oyez.ambient import Ambient
from oyez.errors import BrokerRefused, BrokerUnavailable
from oyez.partitioning import partition_of, partition_without_key
from oyez.ports import BEGINNING, Batch, Capabilities, Finding, Position, Record

BATCH = 256
"""Records in one batch, at most."""


class MemoryBroker:
    """Streams as lists; the face is `oyez.ports.Broker`."""

    capabilities = Capabilities(durability="volatile", history=True, processes=False)

    def __init__(self, ambient: Ambient, *, partitions: int = 8) -> None:
        """``partitions``: how many a stream gets that is made by its first record."""
        self._ambient = ambient
        self._partitions = partitions
        self.logs: dict[str, list[list[Record]]] = {}
        """Every record, by stream and partition, for tests to look at."""
        self._arrival = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._down = False

    async def open(self) -> None:
        """See `Broker.open`."""

    async def close(self) -> None:
        """See `Broker.close`."""

    def interrupt(self, down: bool) -> None:
        """Be out of reach until called again with False: what a test does to a real server."""
        self._down = down
        self._ring()

    async def publish(self, records: Sequence[Record]) -> None:
        """See `Broker.publish`."""
        self._check()
        now = self._ambient.now()
        for record in records:
            if record.stream not in self.logs:
                await self.create(record.stream, self._partitions)
            logs = self.logs[record.stream]
            if record.key is None:
                index = partition_without_key(record.headers.get("id", ""), len(logs))
            else:
                index = partition_of(record.key, len(logs))
            log = logs[index]
            placed = msgspec.structs.replace(
                record, partition=index, position=len(log) + 1, time=now
            )
            log.append(placed)
        self._ring()

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        """See `Broker.read`."""
        while True:
            log = self.logs[stream][partition] if stream in self.logs else []
            if len(log) > after and not self._down:
                records = log[after : after + BATCH]
                after = records[-1].position
                yield Batch(records)
            else:
                await self._arrival.wait()

    async def streams(self) -> Mapping[str, int]:
        """See `Broker.streams`."""
        self._check()
        return {stream: len(logs) for stream, logs in self.logs.items()}

    async def create(self, stream: str, partitions: int) -> None:
        """See `Broker.create`."""
        self._check()
        logs = self.logs.get(stream)
        if logs is None:
            self.logs[stream] = [[] for _ in range(partitions)]
            for callback in self._listeners:
                callback()
        elif len(logs) != partitions:
            raise BrokerRefused(
                f"stream {stream} has {len(logs)} partitions, not {partitions}: the number is "
                "fixed when a stream is made"
            )

    async def ends(self, stream: str) -> Sequence[Position]:
        """See `Broker.ends`."""
        self._check()
        return [len(log) if log else BEGINNING for log in self.logs.get(stream, [])]

    async def starts(self, stream: str) -> Sequence[Position]:
        """See `Broker.starts`."""
        self._check()
        return [BEGINNING for _ in self.logs.get(stream, [])]

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        """See `Broker.lag`."""
        ends = await self.ends(stream)
        return {p: max(0, ends[p] - at) for p, at in positions.items() if p < len(ends)}

    async def inspect(self) -> Sequence[Finding]:
        """See `Broker.inspect`."""
        return [
            Finding(
                grave=True,
                what="events live in the memory of one process and end with it",
                remedy='set system.broker to "embedded:.oyez/events.db" or to a server',
            )
        ]

    def handled(self, stream: str, partition: int, position: Position) -> None:
        """See `Broker.handled`."""

    def on_streams(self, callback: Callable[[], None]) -> None:
        """See `Broker.on_streams`."""
        self._listeners.append(callback)

    def _ring(self) -> None:
        self._arrival.set()
        self._arrival = asyncio.Event()

    def _check(self) -> None:
        if self._down:
            raise BrokerUnavailable("the memory broker was interrupted by a test")
