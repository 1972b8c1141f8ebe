"""Counts ticks, each for a while that no other replica shortens."""

from __future__ import annotations

import time

from oyez import Event, Service, Transaction

WORK = 0.02
"""Seconds of a replica's time that a tick takes, whatever its partition."""


class Tick(Event, type="counter.tick", key="clock"):
    """A clock has ticked."""

    clock: str
    number: int


service = Service("counter", migrations="migrations", publishes=(Tick,))


@service.on(Tick)
async def count(event: Tick, tx: Transaction) -> None:
    """Write the tick down."""
    # It holds up the whole process, as work on a CPU would, but leaves the machine's to others.
    time.sleep(WORK)  # noqa: ASYNC251
    tx.execute(
        "insert into counted (clock, number) values (:clock, :number)",
        clock=event.clock,
        number=event.number,
    )
