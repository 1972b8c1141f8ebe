"""One step on the way of a request: each wraps what comes after it, for the routes that use it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from oyez.config import Route
from oyez.gateway.exchange import Exchange

Answer = Callable[[Exchange], Awaitable[None]]
"""It answers a request, or raises :class:`Refusal`.

It waits for nothing itself, and returns what to await; that is `UNDERWAY` for an exchange that is
``unawaited`` and goes on by itself. A step that has to wait returns a coroutine.
"""


class Step(Protocol):
    """A step that requests of some routes take."""

    def before(self, route: Route, onward: Answer) -> Answer:
        """Return what answers the requests of a route: this step, and then ``onward``.

        It is called once for a route, at the start. A route that does not use the step is answered
        by ``onward`` itself, and so pays nothing for it.
        """
        ...


class Part(Protocol):
    """What goes on besides requests, as long as the gateway runs."""

    async def open(self) -> None:
        """Begin."""
        ...

    async def close(self) -> None:
        """End. Safe to call twice, and without `open`."""
        ...


def walk(steps: Iterable[Step], route: Route, last: Answer) -> Answer:
    """Return what answers the requests of a route: its steps in their order, and then ``last``."""
    answer = last
    for step in reversed(list(steps)):
        answer = step.before(route, answer)
    return answer
