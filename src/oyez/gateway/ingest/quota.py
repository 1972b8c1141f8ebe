"""How much one principal may send: events per second, and bytes per day."""

from __future__ import annotations

from collections import OrderedDict

from oyez.ambient import Ambient
from oyez.config import SenderSettings

REMEMBERED = 10_000
"""The principals whose use is known; of more, the one that sent longest ago begins anew."""
_DAY = 86_400


class Quota:
    """What one principal may still send.

    Events come out of a bucket that holds those of one second, and at least one. A batch may take
    more than is left; then the next one waits until that is made up for, so that batches of any
    size pass, and no more than the rate in the long run.
    """

    def __init__(self, settings: SenderSettings, ambient: Ambient) -> None:
        self._rate = settings.events_per_second
        self._bytes = settings.bytes_per_day
        self._ambient = ambient
        self._left = self._most = max(self._rate or 0.0, 1.0)
        self._filled = ambient.monotonic()
        self._day = 0
        self._used = 0

    def wait(self) -> float:
        """Return the seconds until it may send again; 0 if it may now."""
        self._catch_up()
        seconds = 0.0
        if self._rate is not None and self._left <= 0:
            seconds = (1.0 - self._left) / self._rate
        if self._bytes is not None and self._used >= self._bytes:
            seconds = max(seconds, _DAY - self._ambient.now() % _DAY)
        return seconds

    def use(self, events: int, size: int) -> None:
        """Count events, and the bytes of their data."""
        self._catch_up()
        self._left -= events
        self._used += size

    def _catch_up(self) -> None:
        """Refill the bucket by the time that has passed, and begin the day anew."""
        now = self._ambient.monotonic()
        if self._rate is not None:
            self._left = min(self._most, self._left + (now - self._filled) * self._rate)
        self._filled = now
        day = int(self._ambient.now() // _DAY)
        if day != self._day:
            self._day, self._used = day, 0


class Quotas:
    """The quotas of a sender's principals."""

    def __init__(self, settings: SenderSettings, ambient: Ambient) -> None:
        self._settings = settings
        self._ambient = ambient
        self._limited = settings.events_per_second or settings.bytes_per_day
        self._quotas: OrderedDict[str, Quota] = OrderedDict()

    def of(self, principal: str) -> Quota | None:
        """Return a principal's quota; None if there is no limit."""
        if not self._limited:
            return None
        quota = self._quotas.pop(principal, None) or Quota(self._settings, self._ambient)
        self._quotas[principal] = quota
        if len(self._quotas) > REMEMBERED:
            self._quotas.popitem(last=False)
        return quota
