"""Up to when a service has handled what was published: what the timers of windows wait for.

A window that closes by the clock must not miss an event that waits in a stream, as after a
downtime. A stream that is never quiet has always events to come, so it is not asked whether any
are left: the end of a partition is noted with the time, and once the service has passed that end,
it has handled all that was published until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, inf

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import BrokerError
from oyez.handler import Handler
from oyez.ports import BEGINNING, Broker, Position, Store
from oyez.runtime.lane import Lane

READER = ""
"""The reader of the positions: the service itself."""

Place = tuple[str, int]


class Mark(msgspec.Struct):
    """What is known of one partition."""

    handled: float = -inf
    """All that was published before this time is handled."""
    end: Position = BEGINNING
    at: float = -inf
    """The time at which ``end`` was the end."""


class Backlog:
    """The partitions of the streams that handlers read, with the time up to which they did."""

    def __init__(
        self,
        system: str,
        lanes: Mapping[Place, Lane],
        broker: Broker,
        store: Store,
        ambient: Ambient,
    ) -> None:
        """``lanes`` are those of this process; of others, the positions are in the store."""
        self._system = system
        self._lanes = lanes
        self._broker = broker
        self._store = store
        self._ambient = ambient
        self._marks: dict[Place, Mark] = {}

    async def handled(self, handler: Handler, part: int) -> float:
        """Return up to when all events of a place of timers are handled, in seconds since 1970.

        They are those whose key has its timers there (`oyez.tables.TIMERS`), in all streams that
        the handler reads; where the streams have another number of partitions than there are
        places, more. An event that waits for its retry counts as handled. A broker without history
        has no end to compare with: the time is infinite there.
        """
        if not self._broker.capabilities.history:
            return inf
        now = self._ambient.now()
        try:
            streams = await self._broker.streams()
            places = [
                (stream, partition)
                for stream, partitions in streams.items()
                if handler.subscribes(stream, self._system)
                for partition in range(partitions)
                if (partition - part) % gcd(partitions, tables.PLACES) == 0
            ]
            await self._look(places, now)
        except BrokerError:
            return -inf  # who knows what waits there
        return min((self._marks[place].handled for place in places), default=now)

    async def _look(self, places: list[Place], now: float) -> None:
        streams = dict.fromkeys(stream for stream, _ in places)
        # Ends first: a position that is read before an end may belong to another time.
        ends = {stream: await self._broker.ends(stream) for stream in streams}
        positions = await self._positions(places)
        for place in places:
            stream, partition = place
            end = ends[stream][partition]
            position = positions.get(place, BEGINNING)
            if position < end:
                position = max(position, (await self._broker.starts(stream))[partition])
            mark = self._marks.setdefault(place, Mark())
            if position >= end:
                mark.handled = now
            elif position >= mark.end:
                mark.handled = max(mark.handled, mark.at)
            else:
                continue
            mark.end, mark.at = end, now

    async def _positions(self, places: list[Place]) -> dict[Place, Position]:
        own = {place: self._lanes[place].position for place in places if place in self._lanes}
        if len(own) == len(places):
            return own
        rows = await self._store.fetch(tables.CURSORS, {"reader": READER})
        return {(row["stream"], row["partition"]): row["position"] for row in rows} | own
