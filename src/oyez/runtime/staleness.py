"""How far a reader of streams is behind: the age of the oldest event that it has not handled."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import cast

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.envelope import parse_time
from oyez.errors import BrokerUnavailable, HistoryMissing, InvalidEvent
from oyez.ports import BEGINNING, Batch, Broker, Position, Record, Store
from oyez.runtime.handlers import Handlers

LOOKED_AT = 2_048
"""The limit of records of a partition that are searched for one that the reader handles."""
DEADLINE = 5.0
"""Seconds within which a broker must hand out a record that it says is there."""

Place = tuple[str, int]


class Staleness:
    """Measures one reader of a service, over all partitions, whichever process owns them."""

    def __init__(
        self, reader: str, handlers: Handlers, *, broker: Broker, store: Store, ambient: Ambient
    ) -> None:
        self._reader = reader
        self._handlers = handlers
        self._broker = broker
        self._store = store
        self._ambient = ambient

    async def seconds(self, own: Mapping[Place, Position]) -> float:
        """Return the age in seconds of the oldest event that is not handled, at most; 0 for none.

        ``own`` are positions of this process, which may be ahead of those in the store. Raises
        BrokerError, StoreError, and HistoryMissing for a reader that lacks its beginning.
        """
        positions = {
            (row["stream"], row["partition"]): row["position"]
            for row in await self._store.fetch(tables.CURSORS, {"reader": self._reader})
        }
        for place, position in own.items():
            positions[place] = max(position, positions.get(place, BEGINNING))
        times = await self._parked()
        for stream, partitions in (await self._broker.streams()).items():
            if not self._handlers.read(stream):
                continue
            asked = {p: positions.get((stream, p), BEGINNING) for p in range(partitions)}
            starts = await self._broker.starts(stream)
            for partition, lag in (await self._broker.lag(stream, asked)).items():
                position = asked[partition]
                if position == BEGINNING and (missed := starts[partition]):
                    raise HistoryMissing(
                        f"{self._reader} is not filled: retention has deleted the first {missed} "
                        f"records of {stream}[{partition}]"
                    )
                if lag:
                    times += await self._oldest((stream, partition), position)
        now = self._ambient.now()
        return max(0.0, now - min(times, default=now))

    async def _parked(self) -> list[float]:
        """Return the times of the oldest parked event, if there is one: of parking, and its own."""
        asked = {"reader": self._reader}
        times = [row["oldest"] for row in await self._store.fetch(tables.PARKED, asked)]
        if times:
            for row in await self._store.fetch(tables.FIRST_PARKED, asked):
                times += _time_in(msgspec.json.decode(row["headers"], type=dict[str, str]))
        return times

    async def _oldest(self, place: Place, position: Position) -> list[float]:
        """Return the time of the first record after the position that the reader handles, if any.

        After `LOOKED_AT` others it is the time of the last of those, which is older.
        """
        end = (await self._broker.ends(place[0]))[place[1]]
        looked = 0
        wanted = self._wants(place[0])
        batches = cast(AsyncGenerator[Batch, None], self._broker.read(*place, position))
        async with aclosing(batches):
            while position < end:
                try:
                    async with self._ambient.timeout(DEADLINE):
                        batch = await anext(batches)
                except TimeoutError:
                    raise BrokerUnavailable(
                        f"no record of {place[0]}[{place[1]}] after {position} within "
                        f"{DEADLINE:.0f} s"
                    ) from None
                for record in batch.records:
                    if wanted(record):
                        return [record.time]
                position = batch.records[-1].position
                looked += len(batch.records)
                if looked >= LOOKED_AT:
                    return [batch.records[-1].time]
        return []

    def _wants(self, stream: str) -> Callable[[Record], bool]:
        """Return whether a record is handled; one whose type is in its data alone counts too."""
        types, me = self._handlers.of(stream), self._handlers.service

        def wanted(record: Record) -> bool:
            kind = record.headers.get("type")
            return (kind is None or kind in types) and record.headers.get("recipient", me) == me

        return wanted


def _time_in(headers: Mapping[str, str]) -> list[float]:
    try:
        return [parse_time(headers["time"]).timestamp()]
    except (KeyError, InvalidEvent):
        return []
