"""The wait for a partition to grow."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Heads(Generic[K]):
    """The readers that wait for records after the head of a partition, by its key."""

    def __init__(self) -> None:
        self._waiting: dict[K, asyncio.Future[None]] = {}

    async def wait(self, place: K) -> None:
        """Wait until the partition may have grown."""
        waiting = self._waiting.get(place)
        if waiting is None or waiting.done():
            waiting = self._waiting[place] = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiting)

    def wake(self, place: K) -> None:
        """Wake the readers of a partition."""
        waiting = self._waiting.pop(place, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def wake_all(self) -> None:
        """Wake every reader."""
        for place in list(self._waiting):
            self.wake(place)
