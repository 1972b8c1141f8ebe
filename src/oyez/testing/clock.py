"""A virtual clock, which only the test advances, and repeatable random numbers."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from math import inf
from types import TracebackType

from oyez.ambient import Timeout, Uuid7

START = 1_800_000_000.0
"""The wall-clock time, in seconds since 1970, at which a virtual clock begins."""


class VirtualAmbient:
    """An `oyez.ambient.Ambient` whose clock stands still until it is advanced.

    Two with one ``seed`` give the same identifiers and the same chance in the same order.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self._ids = Uuid7(self._random)
        self._elapsed = self._set = 0.0
        self._timers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return START + self._elapsed + self._set

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        await self._timer(seconds)

    def timeout(self, seconds: float | None) -> Timeout:
        return _Timeout(self, seconds)

    def poll(self, seconds: float, *, due: float = inf, replicas: bool = False) -> float:
        return min(seconds, due)

    def new_id(self) -> str:
        return self._ids.next(self.now())

    def chance(self) -> float:
        return self._random.random()

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    async def advance(self, seconds: float) -> None:
        """Let so many seconds pass: each timer goes off at its time, and what it starts runs."""
        end = self._elapsed + seconds
        await quiescent()
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            if timer.done():
                continue
            self._elapsed = max(self._elapsed, due)
            timer.set_result(None)
            await quiescent()
        self._elapsed = end
        await quiescent()

    def set_back(self, seconds: float) -> None:
        """Set the wall clock back, as an operator or NTP does; the monotonic one goes on."""
        self._set -= seconds

    def _timer(self, seconds: float) -> asyncio.Future[None]:
        timer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._timers, (self._elapsed + seconds, next(self._order), timer))
        return timer


class _Timeout:
    """As ``asyncio.timeout``, on the virtual clock."""

    def __init__(self, ambient: VirtualAmbient, seconds: float | None) -> None:
        self._ambient = ambient
        self._seconds = seconds
        self._timer: asyncio.Future[None] | None = None
        self._expired = False
        self._left = False

    async def __aenter__(self) -> _Timeout:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        if self._seconds is not None:
            self._timer = self._ambient._timer(max(self._seconds, 0.0))
            self._timer.add_done_callback(self._expire)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._left = True
        # As asyncio.timeout: a cancellation by others is passed on.
        mine = self._expired and self._task.uncancel() <= self._cancelling
        if mine and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error

    def expired(self) -> bool:
        return self._expired

    def _expire(self, timer: asyncio.Future[None]) -> None:
        # The timer may have gone off just before the block ended, and its callback still run.
        if not timer.cancelled() and not self._left:
            self._expired = True
            self._task.cancel()


async def quiescent() -> None:
    """Wait until no other callback is ready to run on the event loop."""
    ready = getattr(asyncio.get_running_loop(), "_ready", None)
    if ready is None:  # another loop than asyncio's own: yield many times instead
        for _ in range(500):
            await asyncio.sleep(0)
        return
    while True:
        await asyncio.sleep(0)
        if not ready:
            return
