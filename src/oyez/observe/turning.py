"""How late the event loop turns: what blocks it delays every handler, request and heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

EVERY = 0.5
"""Seconds between two timers."""


class Turning:
    """A timer on the running event loop that tells how late it fires."""

    def __init__(self, turned: Callable[[float], None]) -> None:
        """``turned`` is called with seconds."""
        self._turned = turned
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start on the running event loop."""
        self._set(asyncio.get_running_loop())

    def stop(self) -> None:
        """Stop. Safe when never started and when called twice."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + EVERY
        self._timer = loop.call_at(due, self._fire, loop, due)

    def _fire(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._turned(max(0.0, loop.time() - due))
        self._set(loop)
