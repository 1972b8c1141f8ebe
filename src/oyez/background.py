"""Work that goes on beside, which nobody waits for: whatever it meets, it goes on.

A task that ends by an error which nobody foresaw is silent about it, and what it did is done no
more: readers that it should wake wait for ever. So it is said, and begun again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from oyez.ambient import Ambient, backoff
from oyez.logger import Logger

Job = Callable[[], Awaitable[object]]

STEADY = 5.0
"""Seconds after which work that fails again has not failed in a row."""


async def lasting(what: str, job: Job, ambient: Ambient) -> None:
    """Run a job until it returns: when it raises, log that and begin it again after a pause.

    ``what`` is the work, for the log.
    """
    failures = 0
    while True:
        began = ambient.monotonic()
        try:
            await job()
        except Exception:  # noqa: BLE001 - a fault of ours or of a driver, that nobody waits for
            unforeseen(what)
        else:
            return
        failures = 1 if ambient.monotonic() - began > STEADY else failures + 1
        await ambient.sleep(backoff(failures, ambient.chance()))


def unforeseen(what: str) -> None:
    """Log the exception that is being handled, which is no reason to end: it goes on."""
    Logger().exception("unforeseen error, goes on", work=what)
