"""Calls to a server that may be silent or down: their deadline, and pauses between attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

from oyez.ambient import Ambient, backoff
from oyez.errors import BrokerUnavailable

MOST = 2.0
"""The longest pause between two attempts, in seconds."""


class Deadline:
    """A deadline of an ``async with`` block: raises BrokerUnavailable, which names the server."""

    __slots__ = ("_seconds", "_timeout", "_where", "trouble")

    def __init__(
        self,
        seconds: float,
        where: object,
        timeout: Callable[[float], AbstractAsyncContextManager[Any]] = asyncio.timeout,
    ) -> None:
        """Create a deadline; ``where`` is the server for people, ``timeout`` the clock in use."""
        self.trouble: object = None
        """The error of the last attempt within the block, which the BrokerUnavailable includes."""
        self._seconds = seconds
        self._where = where
        self._timeout = timeout(seconds)

    async def __aenter__(self) -> Deadline:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError as late:
            raise self._error() from late
        if isinstance(error, TimeoutError):
            raise self._error() from error

    def _error(self) -> BrokerUnavailable:
        why = f": {self.trouble}" if self.trouble else ""
        return BrokerUnavailable(f"{self._where} did not answer within {self._seconds:.3g} s{why}")


class Pauses:
    """Pauses between attempts, which grow with the failures in a row up to `MOST` seconds."""

    __slots__ = ("_ambient", "failures")

    def __init__(self, ambient: Ambient) -> None:
        self.failures = 0
        """Failures in a row; set it to 0 after a success."""
        self._ambient = ambient

    def next(self) -> float:
        """Count one more failure and return the seconds to wait after it."""
        self.failures += 1
        return backoff(self.failures, self._ambient.chance(), most=MOST)

    async def wait(self) -> None:
        """Count one more failure and wait."""
        await self._ambient.sleep(self.next())
