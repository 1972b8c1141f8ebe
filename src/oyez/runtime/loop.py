"""The supervised loop of every part of a process, and the bell that wakes it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from oyez.ambient import Ambient, backoff

Step = Callable[[], Awaitable[float | None]]
"""One round of work; returns the seconds until the next one, or None for at once."""


def was_asked_to_end() -> bool:
    """Return whether the running task was cancelled, and not just something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Bell:
    """A bell that wakes one waiter; a ring without a waiter is kept for the next."""

    def __init__(self, ambient: Ambient) -> None:
        self._ambient = ambient
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake the waiter, or the next one."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Wait for a ring, at most that many seconds."""
        if not self._event.is_set():
            with contextlib.suppress(TimeoutError):
                async with self._ambient.timeout(seconds):
                    await self._event.wait()
        self._event.clear()


class Loop:
    """A loop that repeats a step until it is stopped, whatever the step raises.

    Errors are reported, and the pause grows with each consecutive one. Ringing the bell ends the
    pause between two steps, but not a pause after an error.
    """

    def __init__(
        self,
        name: str,
        step: Step,
        ambient: Ambient,
        report: Callable[[str, Exception], None],
        *,
        bell: Bell | None = None,
        after: float = 0.0,
    ) -> None:
        """``after``: seconds before the first step. ``report`` is called with name and error."""
        self.idle = False
        """Whether cancelling loses no work; set by a step while it waits."""
        self.failing_since: float | None = None
        """The time of the first of the consecutive errors, on the monotonic clock; None without."""
        self.ending = False
        """Whether no further step will begin."""
        self._name = name
        self._step = step
        self._ambient = ambient
        self._report = report
        self._bell = bell or Bell(ambient)
        self._after = after
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to repeat the step."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    def ring(self) -> None:
        """Begin the next step soon."""
        self._bell.ring()

    def end(self) -> None:
        """Begin no further step."""
        self.ending = True

    def kill(self) -> None:
        """Cancel the current step and end. Safe when never started and when called twice."""
        self.ending = True
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        """Finish the current step and end. Safe when never started and when called twice."""
        self.ending = True
        if self._task is None:
            return
        if self.idle:
            self._task.cancel()
        await asyncio.wait([self._task])

    async def cancel(self) -> None:
        """Cancel the current step and wait until it has ended."""
        self.kill()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        failures = 0
        if self._after:
            await self._rest(self._ambient.sleep(self._after))
        while not self.ending:
            try:
                wait = await self._round()
            except Exception as error:  # noqa: BLE001 - a part survives every error and reports it
                self.idle = True
                self._report(self._name, error)
                if self.failing_since is None:
                    self.failing_since = self._ambient.monotonic()
                failures += 1
                await self._rest(self._ambient.sleep(backoff(failures, self._ambient.chance())))
                continue
            failures = 0
            self.failing_since = None
            if wait is not None and not self.ending:
                await self._rest(self._bell.wait(wait))

    async def _round(self) -> float | None:
        try:
            return await self._step()
        except asyncio.CancelledError as error:
            if was_asked_to_end():
                raise
            raise RuntimeError("something that it waited for was cancelled") from error

    async def _rest(self, wait: Awaitable[None]) -> None:
        self.idle = True
        await wait
        self.idle = False
