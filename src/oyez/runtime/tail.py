"""The tail of the outbox in memory: what this process has committed and not published yet."""

from __future__ import annotations

from bisect import insort

from oyez.ports import Announcement

MOST = 16_384
"""More rows are left to the outbox alone."""
MOST_BYTES = 16 * 1024 * 1024
"""Rows with more bytes of data are left to the outbox, too."""


class Tail:
    """Rows that follow one another and the last one that was published, so that none is missed.

    Rows have numbers in the order of their commits. So where the next number is in memory, no
    other row is before it in the outbox. Where it is not, another process or a later event has it,
    and the outbox is to be read.
    """

    def __init__(self) -> None:
        self._next: int | None = None
        """The number after that of the last row that was published; None until it is known."""
        self._highest = 0
        """The highest number that was published or, for its key, held back in the outbox."""
        self._left_out = 0
        """The highest number that is in the outbox alone."""
        self._parts: list[tuple[int, list[Announcement]]] = []
        """Rows with consecutive numbers, from the given one, by that."""
        self._count = self._bytes = 0

    @property
    def gap(self) -> bool:
        """Whether there are rows before which others may be in the outbox."""
        return bool(self._parts) and self._parts[0][0] != self._next

    @property
    def behind(self) -> bool:
        """Whether rows were left to the outbox alone, and it was not read up to them."""
        return self._left_out > self._highest

    def add(self, first: int, rows: list[Announcement]) -> None:
        """Add the rows of a commit; they have consecutive numbers."""
        size = _size(rows)
        if self._count + len(rows) > MOST or self._bytes + size > MOST_BYTES:
            self._left_out = max(self._left_out, first + len(rows) - 1)
            return
        insort(self._parts, (first, rows), key=_number)
        self._count += len(rows)
        self._bytes += size
        self._drop()

    def take(self, limit: int, room: int) -> tuple[int, list[Announcement]]:
        """Remove and return the next rows, and the number of the first; none if there is a gap.

        They are at most ``limit``, with at most ``room`` bytes of data unless it is one alone.
        """
        found: list[Announcement] = []
        first = self._next or 0
        while self._parts and not self.gap and len(found) < limit:
            number, rows = self._parts[0]
            fits = 0
            for row in rows[: limit - len(found)]:
                room -= len(row.data)
                if room < 0 and (found or fits):
                    break
                fits += 1
            found += rows[:fits]
            self.passed(number + fits - 1)
            if fits < len(rows):
                break
        return first, found

    def passed(self, number: int) -> None:
        """Remove the rows up to a number, after the outbox was read up to it.

        The number may be lower than an earlier one: then rows between them are in the outbox, such
        as those that were held back, and are to be read before what is in memory.
        """
        self._next = number + 1
        self._highest = max(self._highest, number)
        self._drop()

    def read(self) -> None:
        """Note that the outbox was read to its end: what is left in it is not due."""
        self._left_out = 0

    def _drop(self) -> None:
        following = self._highest + 1
        while self._parts and self._parts[0][0] < following:
            first, rows = self._parts.pop(0)
            left = rows[following - first :]
            self._count -= len(rows) - len(left)
            self._bytes -= _size(rows[: following - first])
            if left:
                self._parts.insert(0, (following, left))

    def forget(self) -> None:
        """Remove all: the outbox is to be read."""
        if self._parts:
            first, rows = self._parts[-1]
            self._left_out = max(self._left_out, first + len(rows) - 1)
        self._next = None
        self._parts.clear()
        self._count = self._bytes = 0


def _size(rows: list[Announcement]) -> int:
    return sum(len(row.data) for row in rows)


def _number(part: tuple[int, list[Announcement]]) -> int:
    return part[0]
