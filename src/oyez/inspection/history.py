"""Reads the records of a broker from the beginning up to their ends at the start."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

from oyez.envelope import STRUCTURED, open_record
from oyez.errors import InvalidEvent
from oyez.inspection.reach import Gap
from oyez.ports import BEGINNING, Batch, Broker, Position, Record

QUIET = 2.0
"""Seconds without a record after which the rest of a partition counts as deleted by retention."""
AT_ONCE = 16
"""The limit of partitions read concurrently, each with one batch in memory."""

T = TypeVar("T")

Place = tuple[str, int]


async def ends(broker: Broker, streams: Iterable[str]) -> dict[Place, Position]:
    """Return the present end of each partition of the streams."""
    return {
        (stream, partition): end
        for stream in streams
        for partition, end in enumerate(await broker.ends(stream))
    }


async def read(
    broker: Broker,
    place: Place,
    end: Position,
    after: Position = BEGINNING,
    *,
    short: list[Place] | None = None,
    starts: Sequence[Position] | None = None,
) -> AsyncGenerator[Batch, None]:
    """Yield one partition's batches after ``after``; the last one may extend beyond ``end``.

    It ends early, and adds the partition to ``short``, if retention has deleted the last records,
    which brokers don't report. ``starts`` are those of the stream, where the caller knows them.
    """
    stream, partition = place
    if starts is None:
        starts = await broker.starts(stream)
    after = max(after, starts[partition]) if partition < len(starts) else end
    if after >= end:
        return
    reader = cast(AsyncGenerator[Batch, None], broker.read(*place, after))
    try:
        while after < end:
            async with asyncio.timeout(QUIET):
                batch = await anext(reader)
            after = batch.records[-1].position
            yield batch
    except TimeoutError:
        if short is not None:
            short.append(place)
    finally:
        await reader.aclose()


async def scan(
    broker: Broker, places: Mapping[Place, Position], look: Callable[[Record], None]
) -> list[Place]:
    """Pass on every record up to the ends in ``places``: in order within a partition, not across.

    Returns the partitions that ended early, for `deleted`. Raises BrokerError.
    """
    room = asyncio.Semaphore(AT_ONCE)
    short: list[Place] = []

    async def one(place: Place, end: Position) -> None:
        async with room:
            async for batch in read(broker, place, end, short=short):
                for record in batch.records:
                    if record.position <= end:
                        look(record)

    try:
        async with asyncio.TaskGroup() as readers:
            for place, end in places.items():
                readers.create_task(one(place, end))
    except ExceptionGroup as group:
        # The readers of one broker fail alike, so one of their errors is enough.
        raise group.exceptions[0] from None
    return short


async def merged(
    kept: Sequence[tuple[T, Broker, Mapping[Place, Position]]], short: list[Place]
) -> AsyncGenerator[tuple[T, Record], None]:
    """Yield every record of the brokers up to the ends, by time; one batch a partition in memory.

    Each comes with the value before its broker in ``kept``. ``short`` as in `read`.
    """
    chosen = [
        (mark, broker, place, end)
        for mark, broker, places in kept
        for place, end in places.items()
        if end > BEGINNING
    ]
    sources = [_records(broker, place, end, short) for _, broker, place, end in chosen]
    heads = await asyncio.gather(*(anext(source, None) for source in sources))
    heap = [(head.time, index, head) for index, head in enumerate(heads) if head is not None]
    heapq.heapify(heap)
    try:
        while heap:
            _, index, record = heap[0]
            yield chosen[index][0], record
            following = await anext(sources[index], None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following.time, index, following))
    finally:
        for source in sources:
            await source.aclose()


async def _records(
    broker: Broker, place: Place, end: Position, short: list[Place]
) -> AsyncGenerator[Record, None]:
    batches = read(broker, place, end, short=short)
    try:
        async for batch in batches:
            for record in batch.records:
                if record.position <= end:
                    yield record
    finally:
        await batches.aclose()


def deleted(short: Sequence[Place]) -> list[Gap]:
    """Return the gap for partitions whose last records were deleted, if there are any."""
    if not short:
        return []
    streams = ", ".join(sorted({stream for stream, _ in short}))
    effect = f"{len(short)} partitions of {streams} returned no record up to their end"
    return [
        Gap(
            part="stream",
            name=streams,
            cause="failed",
            effect=f"{effect} within {QUIET:.0f} s",
            reason="retention has deleted these",
        )
    ]


def attributes(record: Record) -> Mapping[str, str]:
    """Return a record's CloudEvents attributes in either form; for an invalid one, its headers."""
    headers = record.headers
    kind = headers.get("datacontenttype") or headers.get("content-type") or ""
    if kind.startswith(STRUCTURED):
        try:
            return open_record(headers, record.data).headers()
        except InvalidEvent:
            pass
    return headers
