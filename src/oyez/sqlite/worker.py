"""Where SQLite's calls run: on a thread of their own, or on the event loop itself."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

import apsw

from oyez.errors import OyezError

T = TypeVar("T")


class Worker(Protocol):
    """Runs jobs one after the other, in the order in which they were given."""

    def run(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """Run the job and return its result, or its error, in a future of the running loop."""
        ...

    def every(self, seconds: float, job: Callable[[], object]) -> Callable[[], None]:
        """Run the job again and again between the others. Returns what stops it."""
        ...

    def stop(self) -> None:
        """Run what was given so far, and then nothing more."""
        ...


class Thread:
    """Runs jobs on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._timers: list[_Timer] = []
        threading.Thread(target=self._main, name=name, daemon=True).start()

    def run(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """Run the job after those before it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 - belongs to whoever awaits
                _call(loop, _reject, future, error)
            else:
                _call(loop, _resolve, future, result)

        self._jobs.put(work)
        return future

    def every(self, seconds: float, job: Callable[[], object]) -> Callable[[], None]:
        """Run the job again and again, in between. Returns what stops it."""
        timer = _Timer(seconds, job)
        self._timers.append(timer)
        self._jobs.put(lambda: None)  # so that the thread sees the new timer
        return partial(self._timers.remove, timer)

    def stop(self) -> None:
        """End the thread after what it was given."""
        self._timers.clear()
        self._jobs.put(None)

    def _main(self) -> None:
        while True:
            wait = min((timer.due - time.monotonic() for timer in self._timers), default=None)
            try:
                job = self._jobs.get(timeout=None if wait is None else max(wait, 0.0))
            except Empty:
                job = _nothing
            if job is None:
                return
            job()
            for timer in tuple(self._timers):
                if timer.due <= time.monotonic():
                    timer.run()


class Inline:
    """Runs jobs on the event loop itself: each is done when `run` returns."""

    def __init__(self, name: str) -> None:
        pass

    def run(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """Run the job now."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(job())
        except BaseException as error:  # noqa: BLE001 - belongs to whoever awaits
            future.set_exception(error)
        return future

    def every(self, seconds: float, job: Callable[[], object]) -> Callable[[], None]:
        """Return without running it: under a virtual clock nothing needs repeating."""
        return _nothing

    def stop(self) -> None:
        """Do nothing: nothing runs between calls."""


class _Timer:
    def __init__(self, seconds: float, job: Callable[[], object]) -> None:
        self._seconds = seconds
        self._job = job
        self.due = time.monotonic() + seconds

    def run(self) -> None:
        # A tick that fails (disk full, say) is tried again at the next one; whoever depends on it
        # notices by its effect, as with a lease that was not renewed.
        with contextlib.suppress(apsw.Error, OyezError):
            self._job()
        self.due = time.monotonic() + self._seconds


def _nothing() -> None:
    return None


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
        loop.call_soon_threadsafe(function, *args)


def _resolve(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _reject(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
