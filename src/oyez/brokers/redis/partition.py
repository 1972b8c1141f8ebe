"""The state of a partition in Redis: its beginning and end, and what is trimmed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from oyez.brokers.redis.connection import Connection
from oyez.brokers.redis.wire import position_of
from oyez.ports import BEGINNING, Position

_LOOK = (("XINFO", "STREAM"), ("XINFO", "GROUPS"))


class Partition:
    """The state of a partition and of one consumer group on it."""

    def __init__(self, stream: Any, groups: Any, group: bytes) -> None:
        self.last = self.start = BEGINNING
        self.length: int = 0
        self.added: int = 0
        self._shown: Position | None = None
        self._shown_entries: int | None = None
        if isinstance(stream, ResponseError):
            return
        info = _pairs(stream)
        self.last = position_of(info[b"last-generated-id"])
        self.length, self.added = info[b"length"], info[b"entries-added"]
        first = info[b"first-entry"]
        if self.added > self.length:
            self.start = position_of(first[0]) - 1 if first else self.last
        for each in () if isinstance(groups, ResponseError) else map(_pairs, groups):
            if each[b"name"] == group:
                self._shown = position_of(each[b"last-delivered-id"])
                self._shown_entries = each[b"entries-read"]

    def entries_before(self, position: Position) -> int | None:
        """Return the number of entries ever added up to the position; None if unknown."""
        if position <= self.start:
            return self.added - self.length
        if position >= self.last:
            return self.added
        return self._shown_entries if position == self._shown else None

    def missed(self, position: Position) -> int:
        """Return the number of trimmed entries after the position; at least 1 if any may be."""
        if position >= self.start:
            return 0
        trimmed = self.added - self.length
        if position == BEGINNING:
            return trimmed
        if position == self._shown and self._shown_entries is not None:
            return max(0, trimmed - self._shown_entries)
        return 1

    def behind(self, position: Position) -> int | None:
        """Return the number of entries after the position; None if it was not counted."""
        if position >= self.last:
            return 0
        before = self.entries_before(position)
        return None if before is None else max(1, self.added - before)

    def estimate(self, position: Position) -> int:
        """Return an estimate of the entries after the position, assuming a steady rate."""
        share = (self.last - position) / max(1, self.last - self.start)
        return max(1, min(self.length, round(self.length * share)))


async def look(connection: Connection, keys: Sequence[bytes], group: str) -> list[Partition]:
    """Return the states of partitions, each with that of a group. Raises BrokerError."""
    commands = [(*command, key) for key in keys for command in _LOOK]
    replies = await connection.call(commands, tolerant=True)
    for reply in replies:
        if isinstance(reply, ResponseError) and "no such key" not in str(reply):
            raise connection.explain(reply)
    return [
        Partition(stream, groups, group.encode())
        for stream, groups in zip(replies[::2], replies[1::2], strict=True)
    ]


def _pairs(flat: list[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
