"""The readers that wait for their partition to grow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from oyez.brokers.kit.streams import Place
from oyez.ports import Batch, Position


class Waiter:
    """A reader that waits for the records of a partition after a position."""

    __slots__ = ("_answer", "after", "place")

    def __init__(self, place: Place, after: Position) -> None:
        self.place = place
        self.after = after
        self._answer: asyncio.Future[Batch | None] = asyncio.get_running_loop().create_future()

    def wake(self, batch: Batch | None = None) -> None:
        """End its wait, with the batch if that was fetched on the way. Safe when it has ended."""
        if not self._answer.done():
            self._answer.set_result(batch)

    async def answer(self) -> Batch | None:
        """Wait until woken."""
        return await self._answer


class Waiting:
    """All waiters, by partition."""

    def __init__(self) -> None:
        self._by_place: dict[Place, list[Waiter]] = {}

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for waiters in self._by_place.values() for waiter in waiters)

    async def wait(self, place: Place, after: Position) -> Batch | None:
        """Wait until the partition may have grown; return what came after, if it is at hand."""
        waiter = Waiter(place, after)
        waiters = self._by_place.setdefault(place, [])
        waiters.append(waiter)
        try:
            return await waiter.answer()
        finally:
            waiters.remove(waiter)
            if not waiters:
                self._by_place.pop(place, None)

    def wake(self, place: Place) -> None:
        """Wake the waiters of a partition."""
        for waiter in self._by_place.get(place, ()):
            waiter.wake()
