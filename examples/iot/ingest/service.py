"""Ingest judges each reading, and announces those that are new and can be true.

What no class can say is judged here rather than at the gateway, which refuses a request as a whole:
one broken sensor would hold up its site for ever.
"""

from __future__ import annotations

from datetime import datetime

from msgspec.structs import asdict

from ingest.events import ReadingAccepted, ReadingSent
from oyez import Context, Service, State, Transaction

service = Service("ingest", migrations="ingest/migrations")

LOWEST, HIGHEST = -60.0, 90.0
"""What the sensors can measure, in degrees Celsius."""
AHEAD = 60.0
"""Seconds that a sensor's clock may be ahead."""
SPAN = 63
"""Of so many numbers of a sensor it is known which have come: they fit into one integer."""

_ACCEPT = """insert into reading
 values (:sensor_id, :number, :site_id, :measured_at, :celsius, :sent_at, :accepted_at)"""
_REFUSE = "insert into refused values (:event, :sensor_id, :number, :why)"


class Device(State, key="sensor_id"):
    """The newest number of a sensor, and which of the ``SPAN`` up to it have come, as bits."""

    newest: int = 0
    come: int = 0

    def first(self, number: int) -> bool:
        """Return whether a number comes for the first time; one that is too old does not."""
        ahead = number - self.newest
        if ahead > 0:
            # Never shifted by what a stranger says: a shift by 2**53 takes all memory there is.
            kept = self.come << ahead if ahead < SPAN else 0
            self.newest, self.come = number, (kept | 1) & ((1 << SPAN) - 1)
            return True
        if -ahead >= SPAN or self.come >> -ahead & 1:
            return False
        self.come |= 1 << -ahead
        return True


@service.on(ReadingSent)
async def take(
    event: ReadingSent, device: Device, tx: Transaction, context: Context
) -> ReadingAccepted | None:
    """Accept a reading, or write down why not."""
    sent, told = context.envelope, asdict(event)
    why = fault(event, context.authid, datetime.fromisoformat(tx.time).timestamp())
    if why is None and device.first(event.number):
        tx.execute(_ACCEPT, **told, sent_at=sent.time, accepted_at=tx.time)
        return ReadingAccepted(**told)
    row = {"sensor_id": event.sensor_id, "number": event.number, "why": why or "repeated"}
    tx.execute(_REFUSE, **row, event=f"{sent.source} {sent.id}")
    return None


def fault(event: ReadingSent, sender: str | None, now: float) -> str | None:
    """Return what is wrong with a reading, or None; ``sender`` is whom the gateway knows."""
    if sender not in (f"key:{event.site_id}", "key:mqtt"):
        return "another site's"
    if not event.sensor_id.startswith(f"{event.site_id}."):
        return "not of this site"
    if not LOWEST <= event.celsius <= HIGHEST:
        return "can't be measured"
    return "of the future" if event.measured_at > now + AHEAD else None
