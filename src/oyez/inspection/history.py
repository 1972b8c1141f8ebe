"""Reads the records of a broker from the beginning up to their ends at the start."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import TypeVar, cast

import msgspec

from oyez.envelope import STRUCTURED, open_record
from oyez.errors import BrokerUnavailable, InvalidEvent
from oyez.inspection.reach import Gap
from oyez.partitioning import is_own
from oyez.ports import BEGINNING, Batch, Broker, Position, Record

QUIET = 2.0
"""Seconds without a record after which the broker is asked whether retention deleted the rest."""
TURNS = 3
"""How many times as long it may take to return a record that it says it has."""
AT_ONCE = 16
"""The limit of partitions read concurrently, each with one batch in memory."""

STRETCH = 4_096
"""Positions of a partition that `look_back` reads first; then four times as many, and so on."""
STREAMS = 200
"""The most streams that `look_back` reads."""

T = TypeVar("T")

Place = tuple[str, int]


async def streams(broker: Broker) -> dict[str, int]:
    """Return the streams of events, each with its number of partitions."""
    found = await broker.streams()
    return {stream: partitions for stream, partitions in found.items() if not is_own(stream)}


async def ends(broker: Broker, streams: Iterable[str]) -> dict[Place, Position]:
    """Return the present end of each partition of the streams."""
    return {
        (stream, partition): end
        for stream in streams
        for partition, end in enumerate(await broker.ends(stream))
    }


async def extent(broker: Broker, stream: str) -> tuple[Sequence[Position], Sequence[Position]]:
    """Return where each partition of a stream begins, and where it ends at present.

    Both are asked for at once, since a broker may take a while to tell of an empty partition.
    """
    return await asyncio.gather(broker.starts(stream), broker.ends(stream))


async def read(
    broker: Broker,
    place: Place,
    end: Position,
    after: Position = BEGINNING,
    *,
    short: list[Place] | None = None,
    starts: Sequence[Position] | None = None,
    quiet: float = QUIET,
) -> AsyncGenerator[Batch, None]:
    """Yield one partition's batches after ``after``; the last one may extend beyond ``end``.

    It ends early, and adds the partition to ``short``, if retention has deleted the last records,
    which readers aren't told: there is none for ``quiet`` seconds, and the broker retains none, or
    there is none for `TURNS` times as long. ``starts`` are those of the stream, where the caller
    knows them.
    """
    stream, partition = place
    if starts is None:
        starts = await broker.starts(stream)
    after = max(after, starts[partition]) if partition < len(starts) else end
    if after >= end:
        return
    reader = cast(AsyncGenerator[Batch, None], broker.read(*place, after))
    coming: asyncio.Future[Batch] | None = None
    silent = 0
    try:
        while after < end:
            coming = coming or asyncio.ensure_future(anext(reader))
            # No timeout of the read itself: where this process is slow, it would undo a result.
            await asyncio.wait({coming}, timeout=quiet)
            if coming.done():
                batch, coming, silent = coming.result(), None, 0
                after = batch.records[-1].position
                yield batch
                continue
            silent += 1
            starts = await broker.starts(stream)
            if silent == TURNS or partition >= len(starts) or starts[partition] >= end:
                if short is not None:
                    short.append(place)
                return
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})
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


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What `look_back` has passed on."""

    ends: dict[Place, Position]
    """The ends of the partitions when it began."""
    since: float | None
    """The time before which records were left out, in seconds since 1970; None if none were."""
    unread: int
    """Streams that were left out."""


async def look_back(
    broker: Broker,
    look: Callable[[Record], None],
    *,
    now: float,
    seconds: float,
    prefix: str = "",
    streams: int = STREAMS,
    floor: Callable[[], float] = lambda: 0.0,
    after: Mapping[Place, Position] | None = None,
) -> Seen:
    """Pass on the records of a broker for so many seconds, the newest stretch of each partition
    first, and no further back than the time that ``floor`` returns.

    It reads so many streams, those whose name begins with ``prefix`` first. ``after`` leaves out
    what lies before these positions. Raises BrokerError.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    try:
        async with asyncio.timeout_at(deadline):
            found = [each for each in await broker.streams() if not is_own(each)]
            names = sorted(found, key=lambda each: not each.startswith(prefix))
            read_ones = names[:streams]
            extents = await asyncio.gather(*(_bounds(broker, name) for name in read_ones))
    except TimeoutError as error:
        raise BrokerUnavailable(f"its streams were not told within {seconds:g} s") from error
    places = {place: found for each in extents for place, found in each.items()}
    back = _Back(broker, look, seconds / 3, now, places, after or {})
    unread = back.short
    try:
        async with asyncio.timeout_at(deadline):
            await back.go(floor)
    except TimeoutError:
        unread = [*unread, *back.left]
    return Seen(
        ends={place: end for place, (_, end) in places.items()},
        since=max((back.oldest[place] for place in unread), default=None),
        unread=len(names) - len(read_ones),
    )


async def _bounds(broker: Broker, stream: str) -> dict[Place, tuple[Position, Position]]:
    """Return start and end of each partition of a stream."""
    first, last = await extent(broker, stream)
    return {
        (stream, partition): (first[partition] if partition < len(first) else end, end)
        for partition, end in enumerate(last)
    }


class _Back:
    """The way back through partitions, in stretches that become longer."""

    def __init__(
        self,
        broker: Broker,
        look: Callable[[Record], None],
        quiet: float,
        now: float,
        extent: Mapping[Place, tuple[Position, Position]],
        after: Mapping[Place, Position],
    ) -> None:
        self._broker = broker
        self._look = look
        self._quiet = quiet
        self._room = asyncio.Semaphore(AT_ONCE)
        self._first = {
            place: max(first, after.get(place, BEGINNING)) for place, (first, _) in extent.items()
        }
        self.left = {place: end for place, (_, end) in extent.items() if end > self._first[place]}
        """The partitions that are not done, each with the end of its next stretch."""
        self.oldest = dict.fromkeys(extent, now)
        """The time of the oldest record that was passed on of each."""
        self.short: list[Place] = []
        """The partitions of which some records did not come."""

    async def go(self, floor: Callable[[], float]) -> None:
        width = STRETCH
        while self.left:
            try:
                async with asyncio.TaskGroup() as readers:
                    for place, end in self.left.items():
                        readers.create_task(self._stretch(place, end, width))
            except ExceptionGroup as group:
                raise group.exceptions[0] from None
            lowest = floor()
            self.left = {
                place: end - width
                for place, end in self.left.items()
                if end - width > self._first[place]
                and self.oldest[place] >= lowest
                and place not in self.short
            }
            width *= 4

    async def _stretch(self, place: Place, end: Position, width: int) -> None:
        after = max(self._first[place], end - width)
        oldest = self.oldest[place]
        records = read(self._broker, place, end, after, short=self.short, quiet=self._quiet)
        async with self._room, aclosing(records) as batches:
            async for batch in batches:
                for record in batch.records:
                    if record.position <= end:
                        self._look(record)
                        oldest = min(oldest, record.time)
        self.oldest[place] = oldest


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
            effect=f"{effect} within {QUIET * TURNS:.0f} s",
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


def key(record: Record, found: Mapping[str, str]) -> str | None:
    """Return the key that orders an event, which has these attributes."""
    return found.get("partitionkey", found.get("subject", record.key))
