"""The broker around a broker that stores what is too large for it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from math import inf
from typing import NamedTuple, TypeVar, cast

import msgspec

from oyez.ambient import Ambient
from oyez.brokers.claim_check.options import ClaimCheckOptions
from oyez.brokers.claim_check.storage import CONCURRENT, Storage
from oyez.brokers.kit.calls import Deadline
from oyez.brokers.kit.watch import every, stop
from oyez.brokers.kit.windows import windows
from oyez.ports import Batch, Broker, Capabilities, Finding, Position, Record, weigh

DATAREF = "dataref"
"""The CloudEvents attribute that says where an event's data is."""
WINDOW = 4 * 1024 * 1024
"""Bytes that a reader fetches and holds at once, at most (one record may exceed it alone)."""
HOUSEKEEPING = 600.0
"""Seconds between two rounds in which old data is deleted; about, so that processes take turns."""
FRESH = 3_600.0
"""Seconds for which what this process has stored is not stored again when it is resent."""
REMEMBERED = 1_024
"""Names that are remembered for that, at most."""

_NAME = re.compile(r"([0-9a-f]{2})/([0-9a-f]{62})-([0-9]{1,12})")

T = TypeVar("T")


class Claim(NamedTuple):
    """What a reference of ours says about the data that it stands for."""

    name: str
    digest: str
    length: int


class ClaimCheck:
    """Keeps large data in a storage and lets the broker carry the rest; the face is `Broker`."""

    def __init__(
        self,
        broker: Broker,
        storage: Storage,
        ambient: Ambient,
        options: ClaimCheckOptions | None = None,
    ) -> None:
        self.options = options or ClaimCheckOptions()
        self.capabilities = _unlimited(broker.capabilities)
        self._broker = broker
        self._storage = storage
        self._ambient = ambient
        self._stored: dict[str, float] = {}
        self._housekeeping: asyncio.Task[None] | None = None

    @property
    def carrier(self) -> Broker:
        """The broker around which it stands: its records say where large data is."""
        return self._broker

    async def open(self) -> None:
        """See `Broker.open`. The storage is connected to when it is needed."""
        if self._housekeeping is None:
            self._housekeeping = asyncio.create_task(
                every(self._ambient, self._pause, self._storage.sweep), name="claim check"
            )
        try:
            await self._broker.open()
        finally:
            self.capabilities = _unlimited(self._broker.capabilities)

    async def close(self) -> None:
        task, self._housekeeping = self._housekeeping, None
        await stop(task)
        await self._broker.close()
        await self._storage.close()

    async def publish(self, records: Sequence[Record]) -> None:
        """See `Broker.publish`. Large data is durable in the storage before any record is sent."""
        limit = self._limit()
        large = [n for n, r in enumerate(records) if r.data and weigh(r.headers, r.data) > limit]
        if large:
            stored = await _together(self._store, [records[number] for number in large])
            records = list(records)
            for number, record in zip(large, stored, strict=True):
                records[number] = record
        await self._broker.publish(records)

    async def read(
        self, stream: str, partition: int, after: Position
    ) -> AsyncGenerator[Batch, None]:
        """See `Broker.read`. What can't be had any more comes with its ``dataref`` and no data."""
        # Only a generator can be closed, and every adapter's reader is one.
        reader = cast(AsyncGenerator[Batch, None], self._broker.read(stream, partition, after))
        async with contextlib.aclosing(reader):
            async for batch in reader:
                for part, claims in self._windows(batch):
                    if claims:
                        records = await _together(self._resolve, part.records, claims)
                        yield msgspec.structs.replace(part, records=records)
                    else:
                        yield part

    def handled(self, stream: str, partition: int, position: Position) -> None:
        self._broker.handled(stream, partition, position)

    async def streams(self) -> Mapping[str, int]:
        return await self._broker.streams()

    async def create(self, stream: str, partitions: int) -> None:
        await self._broker.create(stream, partitions)

    async def ends(self, stream: str) -> Sequence[Position]:
        return await self._broker.ends(stream)

    async def starts(self, stream: str) -> Sequence[Position]:
        return await self._broker.starts(stream)

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        return await self._broker.lag(stream, positions)

    async def inspect(self) -> Sequence[Finding]:
        """See `Broker.inspect`; of the storage too."""
        found = await self._broker.inspect()
        return [*found, *await self._within(self._storage.inspect())]

    def on_streams(self, callback: Callable[[], None]) -> None:
        self._broker.on_streams(callback)

    # -- storing ----------------------------------------------------------------------------------

    def _limit(self) -> float:
        """The largest record that goes whole."""
        return min(self._broker.capabilities.max_bytes or inf, self.options.over or inf)

    async def _store(self, record: Record) -> Record:
        data = record.data or b""
        digest = hashlib.sha256(data).hexdigest()
        name = f"{digest[:2]}/{digest[2:]}-{len(data)}"
        now = self._ambient.monotonic()
        if self._stored.get(name, -inf) < now - FRESH:
            await self._within(self._storage.put(name, data))
            self._stored.pop(name, None)  # so that the dict stays in the order of time
            self._stored[name] = now
            if len(self._stored) > REMEMBERED:
                del self._stored[next(iter(self._stored))]
        # Empty, not absent: absent data is a tombstone, which deletes a key where Kafka compacts.
        headers = {**record.headers, DATAREF: self._storage.prefix + name}
        return msgspec.structs.replace(record, headers=headers, data=b"")

    def _pause(self) -> float:
        return HOUSEKEEPING * (0.5 + self._ambient.chance())

    # -- fetching ---------------------------------------------------------------------------------

    def _windows(self, batch: Batch) -> Iterator[tuple[Batch, list[Claim | None]]]:
        """The batch, in parts that may be fetched at once, each with the claims of its records."""
        claims = [self._claim(record) for record in batch.records]
        if not any(claims):
            yield batch, []
            return
        for part in windows([0 if claim is None else claim.length for claim in claims], WINDOW):
            yield _part(batch, part), claims[part]

    def _claim(self, record: Record) -> Claim | None:
        """The claim of a record whose data is in this storage.

        Nothing else is ever asked for: an address that only begins like ours, or names something
        larger than may be, stays in the record, which is a dead letter without data.
        """
        reference = record.headers.get(DATAREF)
        if reference is None or record.data or not reference.startswith(self._storage.prefix):
            return None
        match = _NAME.fullmatch(reference, len(self._storage.prefix))
        if match is None or int(match[3]) > self.options.most:
            return None
        return Claim(match[0], match[1] + match[2], int(match[3]))

    async def _resolve(self, record: Record, claim: Claim | None) -> Record:
        if claim is None:
            return record
        data = await self._within(self._storage.get(claim.name, claim.length))
        if data is None or hashlib.sha256(data).hexdigest() != claim.digest:
            return msgspec.structs.replace(record, data=None)
        headers = {name: value for name, value in record.headers.items() if name != DATAREF}
        return msgspec.structs.replace(record, headers=headers, data=data)

    async def _within(self, answer: Awaitable[T]) -> T:
        where, clock = self._storage.where, self._ambient.timeout
        async with Deadline(self.options.deadline, where, clock):
            return await answer


def _unlimited(capabilities: Capabilities) -> Capabilities:
    return msgspec.structs.replace(capabilities, max_bytes=0)


def _part(batch: Batch, part: slice) -> Batch:
    if part.start:
        return Batch(batch.records[part])
    return msgspec.structs.replace(batch, records=batch.records[part])


async def _together(work: Callable[..., Awaitable[T]], *arguments: Iterable[object]) -> list[T]:
    """As ``map``, a few at a time; raises the first error when all others have ended."""
    gate = asyncio.Semaphore(CONCURRENT)

    async def run(*each: object) -> T:
        async with gate:
            return await work(*each)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(*each)) for each in zip(*arguments, strict=True)]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
