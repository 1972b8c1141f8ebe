"""The memory broker, an `oyez.ports.Broker`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import msgspec

from oyez.ambient import Ambient
from oyez.brokers.kit.heads import Heads
from oyez.brokers.kit.streams import Streams, behind, check_count, partitions_of
from oyez.errors import BrokerUnavailable
from oyez.ports import BEGINNING, Batch, Capabilities, Finding, Position, Record

BATCH = 256
"""The limit of records in one batch."""


class MemoryBroker:
    """Streams as lists; an `oyez.ports.Broker`."""

    capabilities = Capabilities(durability="volatile", history=True, processes=False)

    def __init__(self, ambient: Ambient, *, partitions: int = 8) -> None:
        """``partitions``: the number for a stream that is created by its first record."""
        self._ambient = ambient
        self._partitions = partitions
        self._streams: Streams[list[list[Record]]] = Streams()
        self._heads: Heads[str] = Heads()
        self._down = False

    @property
    def logs(self) -> Mapping[str, list[list[Record]]]:
        """All records, by stream and partition, for tests."""
        return self._streams.known

    async def open(self) -> None:
        pass  # there is nothing to connect to

    async def close(self) -> None:
        pass  # a later `open` still finds the records

    def interrupt(self, down: bool) -> None:
        """Make the broker unavailable until called again with False, for tests."""
        self._down = down
        self._heads.wake_all()

    async def publish(self, records: Sequence[Record]) -> None:
        self._check()
        now = self._ambient.now()
        # In the order of the records, so that a simulation is repeatable.
        streams = dict.fromkeys(record.stream for record in records)
        for stream in streams:
            if stream not in self.logs:
                await self.create(stream, self._partitions)
        logs = self.logs
        counts = {stream: len(logs[stream]) for stream in streams}
        indexes = partitions_of(records, counts)
        replace = msgspec.structs.replace
        for record, index in zip(records, indexes, strict=True):
            log = logs[record.stream][index]
            position = len(log) + 1
            log.append(replace(record, partition=index, position=position, time=now))
        for stream in streams:
            self._heads.wake(stream)

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        while True:
            log = self.logs[stream][partition] if stream in self.logs else []
            if len(log) > after and not self._down:
                records = log[after : after + BATCH]
                after = records[-1].position
                yield Batch(records)
            else:
                await self._heads.wait(stream)

    async def streams(self) -> Mapping[str, int]:
        self._check()
        return {stream: len(logs) for stream, logs in self.logs.items()}

    async def create(self, stream: str, partitions: int) -> None:
        self._check()
        if stream not in self.logs:
            self._streams.add(stream, [[] for _ in range(partitions)])
        check_count(stream, len(self.logs[stream]), partitions)

    async def ends(self, stream: str) -> Sequence[Position]:
        self._check()
        return [len(log) if log else BEGINNING for log in self.logs.get(stream, [])]

    async def starts(self, stream: str) -> Sequence[Position]:
        self._check()
        return [BEGINNING for _ in self.logs.get(stream, [])]

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        return behind(await self.ends(stream), positions)

    async def inspect(self) -> Sequence[Finding]:
        return [
            Finding(
                grave=True,
                what="events live in the memory of one process and end with it",
                remedy='set system.broker to "embedded:.oyez/events.db" or to a server',
            )
        ]

    def handled(self, stream: str, partition: int, position: Position) -> None:
        pass  # records stay for other readers

    def on_streams(self, callback: Callable[[], None]) -> None:
        self._streams.listen(callback)

    def _check(self) -> None:
        if self._down:
            raise BrokerUnavailable("the memory broker was interrupted by a test")
