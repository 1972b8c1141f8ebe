"""What stands on a broker: its records from the beginning up to where it ended when asked."""

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
"""Seconds without a record after which a partition's rest counts as deleted by retention."""
AT_ONCE = 16
"""Partitions that are read at once, each with one batch in memory."""

T = TypeVar("T")

Place = tuple[str, int]


async def ends(broker: Broker, streams: Iterable[str]) -> dict[Place, Position]:
    """Return where each partition of the streams ends now."""
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
) -> AsyncGenerator[Batch, None]:
    """Give one partition's batches behind ``after``; the last one may reach beyond ``end``.

    It ends early, and adds the place to ``short``, where retention has deleted the last records: a
    broker says nothing of those.
    """
    stream, partition = place
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
    """Show every record up to the ends in ``places``: in order within a partition, not across.

    Returns the places that ended early, for `deleted`. Raises BrokerError.
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
        # One broker's readers fail alike, so one of their errors tells all.
        raise group.exceptions[0] from None
    return short


async def merged(
    kept: Sequence[tuple[T, Broker, Mapping[Place, Position]]], short: list[Place]
) -> AsyncGenerator[tuple[T, Record], None]:
    """Give every record of the brokers up to the ends, by time; one batch a partition in memory.

    Each comes with what stands before its broker in ``kept``. ``short`` as in `read`.
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
    """Return the gap that partitions leave whose last records are gone, if there are any."""
    if not short:
        return []
    streams = ", ".join(sorted({stream for stream, _ in short}))
    effect = f"{len(short)} partitions of {streams} gave no record up to their end"
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
    """Return a record's CloudEvents attributes in either form; of a broken one, its headers."""
    headers = record.headers
    kind = headers.get("datacontenttype") or headers.get("content-type") or ""
    if kind.startswith(STRUCTURED):
        try:
            return open_record(headers, record.data).headers()
        except InvalidEvent:
            pass
    return headers
