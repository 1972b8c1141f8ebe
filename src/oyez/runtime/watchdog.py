"""Ends a process whose event loop is blocked for ever by a handler.

No timeout can fire while a handler that never awaits blocks the event loop, and the lease is
renewed on a thread, so the process would keep its partitions and handle nothing. A thread looks
whether the loop turns. It reports the stack of a loop that does not, and ends the process when the
handler's timeout and the grace are over: the death is counted, and the event is isolated as any
other that ends its process (see `oyez.runtime.parked`).
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable

from oyez.errors import OyezError
from oyez.runtime.calls import Calls
from oyez.runtime.reports import Reports

LOOK = 0.5
"""Seconds between two checks of the loop."""
REPORT = 5.0
"""Seconds without a turn of the loop after which its stack is reported."""
STATUS = 70
"""The exit code of the process: EX_SOFTWARE of sysexits.h."""
FRAMES = 12
"""The number of innermost frames of the stack that are reported."""


class Watchdog:
    """The watchdog of the event loop of a service process."""

    def __init__(
        self,
        calls: Calls,
        reports: Reports,
        grace: float,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        """``grace``: seconds after a handler's timeout; ``end`` ends the process with a status."""
        self._calls = calls
        self._reports = reports
        self._grace = grace
        self._end = end
        self._turns = 0
        self._stopped = threading.Event()
        self._beat: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start to watch the running event loop."""
        self._loop_thread = threading.get_ident()
        self._turn(asyncio.get_running_loop())
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching. Safe when never started and when called twice."""
        self._stopped.set()
        if self._beat is not None:
            self._beat.cancel()

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turns += 1
        self._beat = loop.call_later(LOOK, self._turn, loop)

    def _watch(self) -> None:
        seen, looks = -1, 0
        # Checks are counted, not seconds: while the whole process is paused, none is made.
        while not self._stopped.wait(LOOK):
            if self._turns != seen:
                seen, looks = self._turns, 0
                continue
            looks += 1
            blocked = looks * LOOK
            handler = self._calls.current
            who = "" if handler is None else f" in {handler.service}.{handler.name}"
            if looks == int(REPORT / LOOK):
                self._report(f"the event loop has stood still{who} for {blocked:.0f} s")
            if handler is None or handler.timeout is None:
                continue
            if blocked >= handler.timeout + self._grace:
                self._report(
                    f"the event loop stood still{who} for {blocked:.0f} s, longer than its timeout "
                    "and the grace: the process ends; do not block in an async handler, or write "
                    "it as a plain def, which runs on a thread"
                )
                self._end(STATUS)

    def _report(self, what: str) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        stack = "".join(traceback.format_stack(frame)[-FRAMES:]) if frame is not None else ""
        self._reports.trouble("watchdog", OyezError(f"{what}\n{stack}".rstrip()))
