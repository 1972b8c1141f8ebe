"""The step that bounds how many requests are at work, with a short queue before it.

The bounds are numbers that are configured. One that follows the measured time of answers, such as
the gradient of Netflix's concurrency-limits, would take a slow service for a full one.
"""

from __future__ import annotations

import asyncio
from collections import deque

from oyez.config import GatewaySettings, Route
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.step import Answer

_PATIENCE = 1.0
"""Seconds for which a request waits in a queue, at the most."""


def overloaded() -> Refusal:
    """Return the refusal of a request that there is no room for."""
    detail = "too many requests at the same time"
    return Refusal(503, "overloaded", detail, [(b"retry-after", b"1")])


class Room:
    """Places for requests at work, and a queue of as many that wait for one, first come first."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._free = places
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def full(self) -> bool:
        """Whether one that enters has to wait."""
        return self._free == 0

    async def enter(self) -> None:
        """Take a place, as soon as there is one. Raises :class:`Refusal` if the queue is full."""
        if self._free:
            self._free -= 1
            return
        if len(self._queue) >= self._places:
            raise overloaded()
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.leave()  # it was given a place in the very turn in which it gave up
            elif place in self._queue:
                self._queue.remove(place)
            raise

    def leave(self) -> None:
        """Give the place to the one that waits longest, or leave it free."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1


class Concurrency:
    """The rooms of the routes, and that of all of them."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._all = None if settings.concurrency is None else Room(settings.concurrency)

    def before(self, route: Route, onward: Answer) -> Answer:
        """Let so many requests go on at once; others wait for a second, or are refused (503).

        A body is read before its request takes a place, so that a slow client holds none.
        """
        own = None if route.concurrency is None else Room(route.concurrency)
        answer = onward
        if self._all is not None:
            answer = _within(self._all, answer)
        if own is not None:
            answer = _within(own, answer)
        return answer


def _within(room: Room, onward: Answer) -> Answer:
    async def answer(exchange: Exchange) -> None:
        await exchange.body()
        if room.full:
            exchange.within(_PATIENCE, overloaded())
        await room.enter()
        try:
            await onward(exchange)
        finally:
            room.leave()

    return answer
