"""Runs plain ``def`` handlers on the event loop, so that no thread makes a run unrepeatable."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import ParamSpec, TypeVar, cast

from oyez.runtime.calls import Begun

P = ParamSpec("P")
T = TypeVar("T")


class Inline(Executor):
    """An executor that runs plain ``def`` handlers on the event loop, in a repeatable order."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run the call at once; return a future that is already done."""
        future: Future[T] = Future()
        work = partial(fn, *args, **kwargs)
        try:
            if "oyez.sqlalchemy" in sys.modules:
                _begin_in_greenlet(work, future)
            else:
                future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - passed on to the waiter
            future.set_exception(error)
        return future


def _begin_in_greenlet(work: Callable[[], T], future: Future[T]) -> None:
    """Run work that may use a SQLAlchemy session: while it waits for the store, the loop runs.

    Work that does not wait ends before this returns, as without a greenlet.
    """
    from sqlalchemy.util import greenlet_spawn

    coroutine = greenlet_spawn(work)
    try:
        first = coroutine.send(None)
    except StopIteration as stop:
        future.set_result(stop.value)
        return

    async def rest() -> T:
        return cast(T, await Begun(coroutine, first))

    def end(task: asyncio.Task[T]) -> None:
        if future.cancelled():
            return
        if task.cancelled():
            future.cancel()
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    task = asyncio.create_task(rest())
    task.add_done_callback(end)
    future.add_done_callback(lambda future: task.cancel() if future.cancelled() else None)
