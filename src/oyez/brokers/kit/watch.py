"""Background work of an adapter: periodic jobs, and queries on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from oyez.ambient import Ambient
from oyez.background import Job, unforeseen
from oyez.errors import BrokerError, BrokerUnavailable

T = TypeVar("T")


async def every(ambient: Ambient, seconds: float | Callable[[], float], job: Job) -> None:
    """Repeat a job for ever, each time after a pause.

    A BrokerError is ignored: readers and publishers get the same error and report it. Any other is
    logged, once for as long as it is the same.
    """
    logged = ""
    while True:
        await ambient.sleep(seconds if isinstance(seconds, int | float) else seconds())
        try:
            await job()
        except BrokerError:
            pass
        except Exception as error:  # noqa: BLE001 - what it does is done by nobody else
            if repr(error) != logged:
                unforeseen(_name())
            logged = repr(error)
        else:
            logged = ""


async def stop(*tasks: asyncio.Task[None] | None) -> None:
    """Cancel tasks and return when they have ended. Safe for those that have, and for None."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)


class Look:
    """A query of the broker: one at a time, and one more if it was requested meanwhile.

    A BrokerError is ignored: readers and publishers get the same error and report it. Any other is
    logged.
    """

    def __init__(self, look: Job, name: str) -> None:
        self._look = look
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def soon(self) -> None:
        """Request a query; never waits."""
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Make no query until `soon`."""
        await stop(self._task)

    async def _run(self) -> None:
        while self._again:
            self._again = False
            try:
                await self._look()
            except BrokerError:
                pass
            except Exception:  # noqa: BLE001 - what was requested meanwhile is still to be done
                unforeseen(self._name)


class Rounds(Generic[T]):
    """A query about one thing or another, of which one is under way however many ask.

    All who ask while one about the same thing is under way share the next: its answer is from after
    they asked. So queries that take long do not pile up, each too late for who asked.
    """

    def __init__(self, query: Callable[[str], Awaitable[T]]) -> None:
        self._query = query
        self._begun: dict[str, asyncio.Task[T]] = {}
        self._next: dict[str, asyncio.Task[T]] = {}

    async def ask(self, about: str) -> T:
        """Return what the query answers, or raise what it does, and BrokerUnavailable after `stop`.

        It goes on when who asked gives up, since others may wait for it.
        """
        task = self._next.get(about)
        if task is None or task.done():
            task = self._next[about] = asyncio.create_task(self._run(about), name=f"ask {about}")
            task.add_done_callback(_heard)
        await asyncio.wait([task])
        if task.cancelled():
            raise BrokerUnavailable("the broker was closed meanwhile")
        return task.result()

    async def stop(self) -> None:
        """End all that is under way."""
        tasks = {*self._begun.values(), *self._next.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, about: str) -> T:
        before = self._begun.get(about)
        if before is not None:
            await asyncio.wait([before])
        self._begun[about] = self._next.pop(about)
        try:
            return await self._query(about)
        finally:
            del self._begun[about]


def _heard(task: asyncio.Task[Any]) -> None:
    """Of a query that nobody waits for any more, the error is nobody's."""
    if not task.cancelled():
        task.exception()


def _name() -> str:
    task = asyncio.current_task()
    return "" if task is None else task.get_name()
