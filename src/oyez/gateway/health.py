"""Whether a service answers, as its requests tell: a circuit breaker, and a budget of repeats.

The breaker is that of Nygard's "Release It!". It opens after failures in a row, refuses requests
at once for a time that doubles, and lets one through after that, which closes it or not.
"""

from __future__ import annotations

import math
from typing import Literal

from oyez.ambient import Ambient
from oyez.gateway.exchange import Refusal
from oyez.logger import Logger
from oyez.signals import CircuitChanged, Listener

State = Literal["closed", "open", "half-open"]

_FAILURES = 5
_SPAN = 1.0
"""Seconds that the failures in a row take at least: a service that restarts is no failing one."""
_FIRST = 0.5
_LONGEST = 10.0
"""Seconds for which the breaker is open, at first and at most."""
_SHARE = 0.1
"""Requests of which one may be repeated, as a share of all."""
_RESERVE = 10.0
"""Repeats that may be saved up."""


class Health:
    """What is known of one service."""

    def __init__(self, service: str, ambient: Ambient, tell: Listener | None = None) -> None:
        """``tell`` hears of each change, and of the state at first."""
        self.state: State = "closed"
        self.failing = False
        """Whether it has failed since its last answer."""
        self._service = service
        self._ambient = ambient
        self._tell = tell
        self._failures = 0
        self._since = 0.0
        self._opened = 0
        self._until = 0.0
        self._probe: object = None
        self._budget = _RESERVE
        self._told()

    def admit(self, request: object) -> None:
        """Let a request be sent. Raises :class:`Refusal` (503) for one that is not to be.

        The first one after the breaker was open for long enough finds out whether the service is
        back; others are refused until it has.
        """
        if self._budget < _RESERVE:
            self._budget += _SHARE
        if self.state == "closed":
            return
        left = self._until - self._ambient.monotonic()
        if self.state == "half-open" or left > 0:
            raise _refusal(left)
        self._probe = request
        self._become("half-open")

    def well(self) -> None:
        """Tell that the service has begun an answer."""
        self.failing = False
        self._failures = self._opened = 0
        self._probe = None
        if self.state != "closed":
            self._become("closed")

    def failed(self, request: object) -> None:
        """Tell that it could not be reached, broke off, or did not answer a request in time."""
        now = self._ambient.monotonic()
        if not self._failures:
            self._since = now
        self._failures += 1
        self.failing = True
        tripped = self._failures >= _FAILURES and now - self._since >= _SPAN
        if request is self._probe or (self.state == "closed" and tripped):
            pause = min(_FIRST * 2.0**self._opened, _LONGEST)
            self._opened += 1
            self._open(pause)

    def ended(self, request: object) -> None:
        """Tell that a request has ended; if nobody knows how, the next one finds out instead."""
        if request is self._probe:
            self._open(0.0)

    def may_repeat(self) -> bool:
        """Return whether a request may be sent once more, and count it: at most one in ten is."""
        if self.state != "closed" or self._budget < 1:
            return False
        self._budget -= 1
        return True

    def _open(self, pause: float) -> None:
        self._probe = None
        self._until = self._ambient.monotonic() + pause
        self._become("open", seconds=pause)

    def _become(self, state: State, **fields: float) -> None:
        self.state = state
        write = Logger().warning if state == "open" else Logger().info
        write(f"circuit {state}", upstream=self._service, **fields)
        self._told()

    def _told(self) -> None:
        if self._tell is not None:
            change = CircuitChanged(service="gateway", upstream=self._service, state=self.state)
            self._tell(change)


def _refusal(left: float) -> Refusal:
    seconds = max(math.ceil(left), 1)
    detail = "the service does not answer at present"
    return Refusal(503, "service_unavailable", detail, [(b"retry-after", b"%d" % seconds)])
