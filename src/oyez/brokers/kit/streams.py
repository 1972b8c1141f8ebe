"""Streams and their partitions: the known ones, the partitions of records, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from oyez.errors import BrokerRefused, RecordRefused
from oyez.partitioning import partition_of, partition_without_key
from oyez.ports import Position, Record

T = TypeVar("T")
Place = tuple[str, int]
"""A stream and the number of a partition of it."""


class Streams(Generic[T]):
    """The known streams, and the callbacks for new ones."""

    def __init__(self) -> None:
        self.known: dict[str, T] = {}
        """The adapter's own value for each stream."""
        self.changed = asyncio.Event()
        """Set, and replaced by a new event, at each change."""
        self._listeners: list[Callable[[], None]] = []

    def listen(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever a stream is added."""
        self._listeners.append(callback)

    def add(self, stream: str, value: T) -> None:
        """Add a stream, or replace its value."""
        self.replace({**self.known, stream: value})

    def replace(self, found: dict[str, T]) -> None:
        """Replace all known streams."""
        before, self.known = self.known, found
        if found == before:
            return
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
        if found.keys() - before.keys():
            for callback in self._listeners:
                callback()


def partitions_of(records: Sequence[Record], counts: Mapping[str, int]) -> list[int]:
    """Return the partition of each record, by the number of partitions of each stream."""
    return [
        partition_without_key(record.headers.get("id", ""), counts[record.stream])
        if record.key is None
        else partition_of(record.key, counts[record.stream])
        for record in records
    ]


def behind(ends: Sequence[Position], positions: Mapping[int, Position]) -> dict[int, int]:
    """Return the lag of each partition where positions have no gaps."""
    return {p: max(0, ends[p] - at) for p, at in positions.items() if 0 <= p < len(ends)}


def check_count(stream: str, found: int, wanted: int) -> None:
    """Refuse a stream that has another number of partitions. Raises BrokerRefused."""
    if found != wanted:
        raise BrokerRefused(
            f"stream {stream} has {found} partitions, not {wanted}: the number is fixed when a "
            "stream is made; set system.partitions to it or use a new stream"
        )


def too_large(stream: str, size: int, most: int, otherwise: str = "") -> RecordRefused:
    """Return the refusal of a record; ``otherwise`` is a remedy besides the claim check."""
    remedy = f", or {otherwise}" if otherwise else ""
    return RecordRefused(
        f"a record of {stream} has {size} bytes; {most} are allowed: set system.claim_check{remedy}"
    )
