"""Explores a stream that a broker keeps: pages of its events, one event, and what arrives.

Whoever asks may be a service's own process, so all work is bounded: records and bytes that are
looked at, seconds, partitions at once. What a bound cut off is said, and where to go on from.
Nothing that is kept in a claim check is fetched, except for the one event that is shown.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, cast

import msgspec

from oyez.brokers.claim_check import ClaimCheck
from oyez.envelope import Envelope, open_record
from oyez.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    InvalidEvent,
    NotThere,
)
from oyez.event import MAX_DATA
from oyez.inspection import history
from oyez.partitioning import partition_of
from oyez.ports import Batch, Broker, Position, Record

EXAMINED = 8_192
"""Records that one page looks at, over all partitions."""
BYTES = 33_554_432
"""Bytes of records that one page looks at."""
SECONDS = 1.2
"""Seconds after which a page ends where it is."""
PARTITIONS = 64
"""The most partitions that are merged; of a stream with more, one has to be chosen."""
ARRIVED = 100
"""Records that one look at what has arrived takes."""
SHOWN = 65_536
"""Bytes of an event's payload that are shown."""

_AT = re.compile(r"[0-9]{1,6}\.[0-9]{1,19}(_[0-9]{1,6}\.[0-9]{1,19})*")
_LATEST = 253_402_300_799.0  # of the year 9999; a publisher may set any time
_AT_ONCE = 4
_WIDTH = 256
_SPARSE = 64
_DENSE = 1_024
_LEAST = 256
_BEGINNING = 400
_HEADERS = 100

Place = history.Place
At = dict[int, Position]
"""Where to go on, by partition."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which events are looked for; what is empty allows all."""

    type: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """A type; one that ends in ``*`` stands for all that begin so."""
    key: Annotated[str, msgspec.Meta(max_length=512)] = ""
    text: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """What the payload contains."""
    since: float | None = None
    """Seconds since 1970, on the broker's clock."""
    until: float | None = None

    def matches(self, record: Record) -> bool:
        """Return whether a record is one of them."""
        if self.since is not None and record.time < self.since:
            return False
        if self.until is not None and record.time > self.until:
            return False
        if self.text and not self._contained(record.data or b""):
            return False
        if not (self.type or self.key):
            return True
        found = attributes(record)
        kind = found.get("type", "")
        if self.type.endswith("*"):
            if not kind.startswith(self.type[:-1]):
                return False
        elif self.type and kind != self.type:
            return False
        return not self.key or history.key(record, found) == self.key

    def _contained(self, data: bytes) -> bool:
        # JSON holds what is not ASCII as it is, or escaped.
        plain = self.text.encode("utf-8", "replace")
        return plain in data or json.dumps(self.text)[1:-1].encode() in data


def at_text(at: At) -> str:
    """Return where to go on as a text that fits into a URL."""
    return "_".join(f"{number}.{position}" for number, position in sorted(at.items()))


def at_of(text: str) -> At:
    """Return where to go on, from `at_text`. Raises InvalidEvent."""
    if not text:
        return {}
    if not _AT.fullmatch(text):
        raise InvalidEvent("at", "pairs of a partition and a position, such as 0.12_1.7")
    pairs = [pair.partition(".") for pair in text.split("_")]
    return {int(number): min(int(position), 2**63 - 1) for number, _, position in pairs}


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """An event in a list. Texts are cut, and hold no half of a surrogate pair."""

    partition: int
    position: Position
    time: float
    type: str | None
    id: str | None
    key: str | None
    size: int | None
    """Bytes of the record's data; None for a tombstone, which has none."""
    beginning: bytes
    """Of the payload."""
    elsewhere: bool
    """Whether its data is kept in a claim check."""
    flaw: str
    """Why it is no CloudEvent; empty if it is one."""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Events of a stream, in the order that was asked for."""

    partitions: int
    """The number that the stream has."""
    events: tuple[Sighting, ...] = ()
    at: At = {}
    """Where the next page begins; empty at the end."""
    examined: int = 0
    """Records that were looked at."""
    cut: bool = False
    """Whether a bound ended it before all partitions were looked through: the next looks on."""
    choose: bool = False
    """Nothing was read: of so many partitions, one has to be chosen, or a key."""


class Arrivals(msgspec.Struct, frozen=True, kw_only=True):
    """What has arrived in a stream since the last look."""

    events: tuple[Sighting, ...]
    at: At
    """Where the next look begins."""
    dropped: int
    """Records that were not looked at, since there were too many; an estimate on some brokers."""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """One event, whole but for what is too long."""

    sighting: Sighting
    headers: dict[str, str]
    """As the broker keeps them."""
    attributes: dict[str, str]
    """Of CloudEvents, where they stand in the body; empty where headers have them."""
    data: bytes | None
    """The beginning of the payload, `SHOWN` bytes at most."""
    size: int
    """The bytes of the whole payload."""
    dataref: str = ""
    """Where the payload is kept, if not in the broker."""
    unfetched: str = ""
    """Why it was not fetched from there; empty if it was."""


def attributes(record: Record) -> Mapping[str, str]:
    """Return a record's CloudEvents attributes; of one that is too large to be opened, headers."""
    if len(record.data or b"") > MAX_DATA:
        return record.headers
    return history.attributes(record)


async def explore(
    broker: Broker,
    stream: str,
    wanted: Wanted,
    *,
    newest: bool = True,
    partition: int | None = None,
    at: At | None = None,
    limit: int = 50,
) -> Page:
    """Return a page of a stream's events, by time over its partitions, the newest first or last.

    ``at`` is that of the page before. A key is looked for in its own partition alone. Raises
    NotThere, and BrokerError.
    """
    until = asyncio.get_running_loop().time() + SECONDS
    carrier = _carrier(broker)
    count = (await history.streams(carrier)).get(stream)
    if count is None:
        raise NotThere(f"there is no stream {stream!r}")
    chosen = _partitions(count, wanted, partition, at)
    if len(chosen) > PARTITIONS:
        return Page(partitions=count, choose=True)
    starts, ends = await history.extent(carrier, stream)
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int) -> _Scan:
        scan = _Scan(carrier, (stream, number), wanted, limit, len(chosen), until)
        async with room:
            start, end = starts[number], ends[number]
            if newest:
                await scan.backwards(start, min(end, (at or {}).get(number, end)))
            else:
                await scan.forwards(max(start, (at or {}).get(number, start)), end)
        return scan

    scans = await _together(one, [n for n in chosen if n < min(len(ends), len(starts))])
    return _merged(scans, count, newest, limit)


async def arrivals(
    broker: Broker, stream: str, wanted: Wanted, *, partition: int | None = None, at: At
) -> Arrivals:
    """Return what has arrived since ``at``, of which `ARRIVED` records are looked at.

    An empty ``at`` returns nothing but where to begin. Raises NotThere, and BrokerError.
    """
    carrier = _carrier(broker)
    count = (await history.streams(carrier)).get(stream)
    if count is None:
        raise NotThere(f"there is no stream {stream!r}")
    chosen = _partitions(count, wanted, partition, None)
    if len(chosen) > PARTITIONS:
        raise NotThere(f"of {count} partitions, choose one, or a key")
    ends = dict(enumerate(await carrier.ends(stream)))
    now = {number: ends[number] for number in chosen if number in ends}
    if not at:
        return Arrivals(events=(), at=now, dropped=0)
    moved = {number: end for number, end in now.items() if end > at.get(number, 0)}
    waiting = await _waiting(carrier, stream, {n: at.get(n, 0) for n in moved}, moved)
    room = asyncio.Semaphore(_AT_ONCE)
    until = asyncio.get_running_loop().time() + SECONDS

    async def one(number: int) -> _Scan:
        scan = _Scan(carrier, (stream, number), wanted, ARRIVED, 1, until)
        scan.records = max(1, ARRIVED // len(moved))
        async with room:
            await scan.forwards(at.get(number, 0), moved[number])
        return scan

    scans = await _together(one, sorted(moved))
    examined = sum(scan.examined for scan in scans)
    events = heapq.merge(*(scan.hits for scan in scans), key=lambda hit: hit.time)
    return Arrivals(events=tuple(events), at=now, dropped=max(0, sum(waiting.values()) - examined))


async def find(broker: Broker, stream: str, partition: int, position: Position) -> Record:
    """Return the record at a position. Raises NotThere, and BrokerError."""
    starts, ends = await history.extent(broker, stream)
    missing = NotThere(f"{stream}[{partition}] keeps no event at {position}")
    if not 0 <= partition < min(len(ends), len(starts)):
        raise missing
    if not starts[partition] < position <= ends[partition]:
        raise missing
    reader = cast(AsyncGenerator[Batch, None], broker.read(stream, partition, position - 1))
    try:
        async with aclosing(reader), asyncio.timeout(SECONDS):
            record = (await anext(reader)).records[0]
    except TimeoutError:
        raise BrokerUnavailable(f"no record within {SECONDS:g} s") from None
    if record.position != position:
        raise missing
    return record


async def show(broker: Broker, stream: str, partition: int, position: Position) -> Shown:
    """Return one event, with what a claim check keeps of it. Raises NotThere, and BrokerError."""
    record = await find(_carrier(broker), stream, partition, position)
    sighting, dataref, unfetched = sight(record), "", ""
    if sighting.elsewhere:
        dataref = _text(attributes(record).get("dataref", ""), 1_000) or ""
        record, unfetched = await _fetched(broker, record)
    envelope = _opened(record)
    inside = envelope is not None and envelope.data is not record.data
    payload = record.data if envelope is None else envelope.data
    return Shown(
        sighting=sighting,
        headers=_texts(record.headers),
        attributes=_texts(envelope.headers()) if inside and envelope is not None else {},
        data=None if payload is None else payload[:SHOWN],
        size=len(payload or b""),
        dataref=dataref,
        unfetched=unfetched,
    )


async def payload(broker: Broker, stream: str, partition: int, position: Position) -> bytes | None:
    """Return the whole data of a record. Raises NotThere, and BrokerError."""
    record = await find(_carrier(broker), stream, partition, position)
    if _elsewhere(record):
        record, unfetched = await _fetched(broker, record)
        if unfetched:
            raise NotThere(unfetched)
    return record.data


def sight(record: Record) -> Sighting:
    """Return a record as an item of a list."""
    found, flaw, data = attributes(record), "", record.data
    if not _elsewhere(record):
        try:
            envelope = _open(record)
            data = data if envelope is None else envelope.data
        except InvalidEvent as error:
            flaw = _text(str(error), _BEGINNING) or ""
    return Sighting(
        partition=record.partition,
        position=record.position,
        time=min(max(record.time, 0.0), _LATEST),
        type=_text(found.get("type")),
        id=_text(found.get("id")),
        key=_text(history.key(record, found), 512),
        size=None if record.data is None else len(record.data),
        beginning=(data or b"")[:_BEGINNING],
        elsewhere=_elsewhere(record),
        flaw=flaw,
    )


class _Scan:
    """One partition, looked through in either direction until a bound is reached."""

    def __init__(
        self,
        broker: Broker,
        place: Place,
        wanted: Wanted,
        limit: int,
        among: int,
        until: float,
    ) -> None:
        self.partition = place[1]
        self.hits: list[Sighting] = []
        """In the direction of the scan."""
        self.reached: Position = 0
        """Where to go on."""
        self.begun: Position = 0
        self.done = False
        """Whether nothing is left in that direction."""
        self.examined = 0
        self.records = max(_LEAST, EXAMINED // among)
        self._bytes = max(MAX_DATA, BYTES // among)
        self._broker = broker
        self._place = place
        self._wanted = wanted
        self._limit = limit
        self._until = until

    async def forwards(self, after: Position, end: Position) -> None:
        """Look at the records after a position, up to the end."""
        self.begun = self.reached = after
        if self._wanted.since is not None:
            after, _ = await self._search(after, end, self._wanted.since)
            self.reached = after
        until = self._wanted.until
        try:
            async with aclosing(self._records(after, end)) as records:
                async for record in records:
                    if until is not None and record.time > until:
                        self.reached = end
                        break
                    self._look(record, self.hits)
                    self.reached = record.position
                    if len(self.hits) >= self._limit or self._spent:
                        break
        except TimeoutError:
            pass
        self.done = self.reached >= end

    async def backwards(self, start: Position, upto: Position) -> None:
        """Look at the records up to a position, from there to the start.

        A broker reads forwards only, so it is done in windows, the width of which adapts itself to
        how dense the positions are.
        """
        self.begun = self.reached = upto
        if self._wanted.until is not None:
            _, upto = await self._search(start, upto, self._wanted.until + 1e-6)
        since, width = self._wanted.since, _WIDTH
        while upto > start and len(self.hits) < self._limit and not self._spent:
            low = max(start, upto - width)
            try:
                window = await self._window(low, upto)
            except TimeoutError:
                break
            if isinstance(window, int):
                width = max(1, min(width, window - low) // 4)
                continue
            hits, count, oldest = window
            self.hits += reversed(hits)
            upto = low
            if count < _SPARSE:
                width *= 4
            if since is not None and oldest is not None and oldest < since:
                upto = start
        self.reached, self.done = upto, upto <= start
        if len(self.hits) > self._limit:
            del self.hits[self._limit :]
            self.reached, self.done = self.hits[-1].position - 1, False

    @property
    def _spent(self) -> bool:
        late = asyncio.get_running_loop().time() >= self._until
        return late or self.examined >= self.records or self._bytes <= 0

    def _look(self, record: Record, hits: list[Sighting]) -> None:
        self.examined += 1
        self._bytes -= len(record.data or b"")
        if self._wanted.matches(record):
            hits.append(sight(record))

    async def _window(
        self, low: Position, upto: Position
    ) -> tuple[list[Sighting], int, float | None] | Position:
        """Return the hits, the number of records and the oldest time.

        Of a window that holds too many it returns how far it came.
        """
        hits: list[Sighting] = []
        count, oldest = 0, None
        async with aclosing(self._records(low, upto)) as records:
            async for record in records:
                if count >= _DENSE:
                    return record.position
                oldest = record.time if oldest is None else oldest
                count += 1
                self._look(record, hits)
        return hits, count, oldest

    async def _search(
        self, low: Position, high: Position, time: float
    ) -> tuple[Position, Position]:
        """Return bounds between which the first record of that time or later is.

        All up to the lower one are earlier; those behind the upper one are not, as far as the
        broker's clock has not been set back.
        """
        try:
            while high - low > _WIDTH:
                middle = (low + high) // 2
                record = await self._first(middle, high)
                if record is None or record.time >= time:
                    high = middle
                else:
                    low = record.position
        except TimeoutError:
            pass
        return low, high

    async def _first(self, after: Position, end: Position) -> Record | None:
        async with aclosing(self._records(after, end)) as records:
            return await anext(records, None)

    async def _records(self, after: Position, end: Position) -> AsyncGenerator[Record, None]:
        """Yield the records up to the end. Raises TimeoutError when the time is over."""
        if after >= end:
            return
        reader = cast(AsyncGenerator[Batch, None], self._broker.read(*self._place, after))
        async with aclosing(reader):
            while after < end:
                async with asyncio.timeout_at(self._until):
                    batch = await anext(reader)
                for record in batch.records:
                    if record.position > end:
                        return
                    yield record
                after = batch.records[-1].position


def _merged(scans: Sequence[_Scan], count: int, newest: bool, limit: int) -> Page:
    sign = -1 if newest else 1
    merged = heapq.merge(*(scan.hits for scan in scans), key=lambda hit: sign * hit.time)
    events = [hit for hit, _ in zip(merged, range(limit), strict=False)]
    taken: dict[int, list[Sighting]] = {}
    for event in events:
        taken.setdefault(event.partition, []).append(event)
    at: At = {}
    for scan in scans:
        mine = taken.get(scan.partition, [])
        if len(mine) < len(scan.hits):
            last = mine[-1].position if mine else None
            at[scan.partition] = scan.begun if last is None else last - newest
        elif not scan.done:
            at[scan.partition] = scan.reached
    return Page(
        partitions=count,
        events=tuple(events),
        at=at,
        examined=sum(scan.examined for scan in scans),
        cut=any(not scan.done and len(scan.hits) < limit for scan in scans),
    )


def _partitions(count: int, wanted: Wanted, partition: int | None, at: At | None) -> list[int]:
    """Return the partitions to look at."""
    if partition is not None:
        if partition >= count:
            raise NotThere(f"it has no partition {partition}, but 0 to {count - 1}")
        return [partition]
    if wanted.key:
        return [partition_of(wanted.key, count)]
    return [number for number in range(count) if at is None or not at or number in at]


async def _waiting(
    broker: Broker, stream: str, at: At, ends: Mapping[int, Position]
) -> Mapping[int, int]:
    """Return how many records came after these positions; an estimate if the broker can't tell."""
    try:
        return await broker.lag(stream, at)
    except BrokerRefused:
        return {number: end - at[number] for number, end in ends.items()}


async def _together(
    one: Callable[[int], Coroutine[None, None, _Scan]], numbers: Sequence[int]
) -> list[_Scan]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in numbers]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _fetched(broker: Broker, record: Record) -> tuple[Record, str]:
    """Return the record with its data, or why that could not be fetched."""
    if not isinstance(broker, ClaimCheck):
        return record, "system.claim_check names no storage that this service fetches from"
    try:
        found = await find(broker, record.stream, record.partition, record.position)
    except (BrokerError, NotThere) as error:
        return record, str(error)
    if _elsewhere(found):
        return record, "it is gone, or that is no place below system.claim_check"
    return found, ""


def _carrier(broker: Broker) -> Broker:
    """Return the broker whose records say where large data is, without fetching it.

    Raises BrokerRefused for one that keeps no history: there, who reads takes from the service.
    """
    if not broker.capabilities.history:
        raise BrokerRefused("this broker keeps no history: what was handled is gone from it")
    return broker.carrier if isinstance(broker, ClaimCheck) else broker


def _elsewhere(record: Record) -> bool:
    return "dataref" in record.headers and not record.data


def _open(record: Record) -> Envelope | None:
    """Return the event in a record; None in one that is too large. Raises InvalidEvent."""
    if len(record.data or b"") > MAX_DATA:
        return None
    return open_record(record.headers, record.data)


def _opened(record: Record) -> Envelope | None:
    try:
        return _open(record)
    except InvalidEvent:
        return None


def _texts(found: Mapping[str, str]) -> dict[str, str]:
    return {
        _text(name, 100) or "": _text(found[name], 2_000) or ""
        for name, _ in zip(sorted(found), range(_HEADERS), strict=False)
    }


def _text(value: str | None, most: int = 200) -> str | None:
    """Return a text that is cut and can be encoded; bytes that are not UTF-8 stand as escapes."""
    if value is None:
        return None
    text = value[:most].encode("utf-8", "backslashreplace").decode()
    return text if len(value) <= most else f"{text}…"
