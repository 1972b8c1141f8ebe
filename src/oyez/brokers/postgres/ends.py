"""The known ends of partitions, and the readers that wait for one to grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oyez.brokers.kit.heads import Heads
from oyez.brokers.kit.streams import Place, Streams
from oyez.brokers.kit.watch import Look
from oyez.brokers.postgres.connection import Connection
from oyez.ports import Position

_HEADS = "select stream, partition, id, last from {schema}.ends order by stream, partition"
_MAKE = "select {schema}.make_stream($1, $2)"


class End:
    """The end of a partition, and its id in the tables."""

    __slots__ = ("id", "last")

    def __init__(self, identity: int, last: Position) -> None:
        self.id = identity
        self.last = last


class Ends:
    """The ends of all partitions."""

    def __init__(self, connection: Connection) -> None:
        self.streams: Streams[list[int]] = Streams()
        """The partitions of each stream, by their ids in the tables."""
        self.look = Look(self.refresh, "postgres look")
        """The query of all ends."""
        self._connection = connection
        self._ends: dict[Place, End] = {}
        self._places: dict[int, Place] = {}
        self._heads: Heads[Place] = Heads()

    def get(self, place: Place) -> End | None:
        """Return the end of a partition, None if unknown."""
        return self._ends.get(place)

    async def wait(self, place: Place) -> None:
        """Wait until the partition may have grown."""
        await self._heads.wait(place)

    async def make(self, stream: str, partitions: int) -> None:
        """Create the stream unless it exists. Raises BrokerError."""
        await self._connection.fetch(_MAKE, stream, partitions)
        await self.refresh()

    async def refresh(self, *, patient: bool = True) -> None:
        """Query all ends. Raises BrokerError."""
        before = {end.id: end.last for end in self._ends.values()}
        self._replace(await self._connection.fetch(_HEADS, patient=patient), before)

    def hear(self, payload: str) -> None:
        """Apply a notification of another process."""
        for told in payload.split(","):
            identity, _, last = told.partition(":")
            if not (last.isdecimal() and self.move(int(identity), int(last))):
                self.look.soon()  # a stream was created or deleted
                return

    def move(self, identity: int, last: Position) -> bool:
        """Set the end of a partition unless a later one is known; False if it is unknown."""
        place = self._places.get(identity)
        if place is None:
            return False
        end = self._ends[place]
        if last > end.last:
            end.last = last
            self._heads.wake(place)
        return True

    def _replace(self, rows: list[Any], before: Mapping[int, Position]) -> None:
        """Apply an end from the server; ``before`` is the known end at the time of the query.

        An end less than ``before`` has gone back (a backup was restored); any other may have grown
        since.
        """
        ids: dict[str, list[int]] = {}
        ends: dict[Place, End] = {}
        for stream, partition, identity, last in rows:
            ids.setdefault(stream, []).append(identity)
            place = (stream, partition)
            end = self._ends.get(place)
            if end is None or end.id != identity:
                end = End(identity, last)
                self._heads.wake(place)
            elif last > end.last or last < before.get(identity, 0):
                end.last = last
                self._heads.wake(place)
            ends[place] = end
        self._ends = ends
        if ids != self.streams.known:
            self._places = {end.id: place for place, end in ends.items()}
        self.streams.replace(ids)
