"""How late the event loop turns: what blocks it delays every handler, request and heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Turning:
    """A timer on the running event loop that tells how late what is ready gets its turn."""

    def __init__(self, every: float, turned: Callable[[float], None]) -> None:
        """``turned`` is called after ``every`` so many seconds, with seconds."""
        self._every = every
        self._turned = turned
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start on the running event loop."""
        self._set(asyncio.get_running_loop())

    def stop(self) -> None:
        """Stop. Safe when never started and when called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + self._every
        self._timer = loop.call_at(due, self._fire, loop, due)

    def _fire(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        # Behind what is ready, as all others are. uvloop fires timers before that, so those of a
        # loop whose turns take as long as a timer would all be on time.
        loop.call_soon(self._measure, loop, due)

    def _measure(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        if self._timer is not None:
            self._turned(max(0.0, loop.time() - due))
            self._set(loop)
