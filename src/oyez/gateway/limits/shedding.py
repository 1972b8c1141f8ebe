"""The step that refuses requests while the event loop lags, so that no queue grows.

A loop that lags for a moment has had a burst, which passes by itself; one that lags from timer to
timer has more to do than it can. The two are told apart as CoDel does (RFC 8289): by whether the
lag has been above its bound all the time, for long enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from oyez.config import Route
from oyez.gateway.exchange import Exchange
from oyez.gateway.limits.concurrency import overloaded
from oyez.gateway.step import Answer
from oyez.logger import Logger
from oyez.turning import Turning

_EVERY = 0.1
_STANDING = 1.0
"""Seconds for which the lag has to be above its bound before requests are refused."""


class Shedding:
    """It refuses those whom nobody knows above the bound, and everybody above twice the bound.

    The gateway's own resources, such as ``/livez``, are no routes, and always answered.
    """

    def __init__(self, bound: float) -> None:
        """``bound`` is in seconds."""
        self.strangers = False
        """Whether requests without a principal, or with an anonymous session, are refused."""
        self.everybody = False
        """Whether all requests are."""
        self._bound = bound
        self._since: float | None = None
        self._turning = Turning(
            _EVERY, lambda late: self.turned(late, asyncio.get_running_loop().time())
        )

    async def open(self) -> None:
        """Begin to measure the running event loop."""
        self._turning.start()

    async def close(self) -> None:
        """Stop. Safe when never opened and when called twice."""
        self._turning.stop()

    def before(self, route: Route, onward: Answer) -> Answer:
        """Refuse requests (503) while the loop lags."""

        def answer(exchange: Exchange) -> Awaitable[None]:
            if self.strangers:
                principal = exchange.principal
                if self.everybody or principal is None or principal.kind == "session":
                    raise overloaded()
            return onward(exchange)

        return answer

    def turned(self, late: float, now: float) -> None:
        """Judge by how late a turn is that is taken now, in seconds of the loop's clock."""
        before = self.strangers
        if late <= self._bound:
            self._since = None
            self.strangers = self.everybody = False
        else:
            self._since = now if self._since is None else self._since
            self.strangers = now - self._since >= _STANDING
            self.everybody = self.strangers and late > 2 * self._bound
        if self.strangers != before:
            what = "refuses requests, its loop lags" if self.strangers else "takes requests again"
            Logger().warning(f"gateway {what}", lag=round(late, 3))
