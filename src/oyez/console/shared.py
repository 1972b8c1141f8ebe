"""Measurements of a process that many may ask for at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from starlette.requests import Request

from oyez.runtime.process import ServiceProcess

T = TypeVar("T")

FRESH = 1.0
"""Seconds for which a measurement answers everybody who asks."""


class Shared(Generic[T]):
    """A measurement that everybody who asks within `FRESH` shares."""

    def __init__(self, process: ServiceProcess, measure: Callable[[], Coroutine[Any, Any, T]]):
        self._process = process
        self._measure = measure
        self._newest: tuple[float, asyncio.Task[T]] | None = None

    async def answer(self, _: Request) -> T:
        """Return the newest measurement, or measure anew."""
        now = self._process.ambient.monotonic()
        if self._newest is None or now - self._newest[0] > FRESH:
            self._newest = now, asyncio.create_task(self._measure(), name="measure")
        return await asyncio.shield(self._newest[1])
