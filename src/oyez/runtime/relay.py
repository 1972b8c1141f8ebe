"""The relay publishes what was committed: outbox rows, in order per key, many a round trip.

One replica of a service runs it at a time (it is claimed like a partition), so what one service
announces under a key reaches the broker in commit order. A row leaves the outbox only after the
broker confirmed it; one sent twice, because the relay died in between, keeps its event id.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from oyez.errors import Fenced
from oyez.ports import Announcement, Changes, Claim, Record
from oyez.runtime.workbench import Bell, Workbench
from oyez.signals import EventsPublished

OUTBOX = "oyez:outbox"
"""The name under which the relay is claimed, where partitions have their stream's."""
LIMIT = 512
"""Records sent at once, at most."""
LIMIT_BYTES = 4 * 1024 * 1024
"""Bytes of data sent at once, at most (one record may exceed it alone)."""
POLL = 0.5
"""Seconds between two looks at the outbox when nothing rings."""

_NEXT_DUE = "select min(due) as due from oyez_outbox where due > :now"


class Relay:
    """Publishes one service's outbox."""

    def __init__(self, bench: Workbench, claim: Claim) -> None:
        self.claim = claim
        self.fenced = False
        self.failing_since: float | None = None
        """On the monotonic clock, when publishing began to fail; None while it works."""
        self._bench = bench
        self._bell = Bell(bench.ambient)
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._idle = False

    def start(self) -> None:
        """Begin to publish."""
        self._task = asyncio.create_task(self._run(), name="relay")

    def ring(self) -> None:
        """There may be something new in the outbox."""
        self._bell.ring()

    async def stop(self) -> None:
        """Finish what is being sent and end. Safe when never started and when called twice."""
        self._stopping = True
        self._bell.ring()
        if self._task is None:
            return
        if self._idle:
            self._task.cancel()
        await asyncio.wait([self._task])

    def kill(self) -> None:
        """End at once; what was not confirmed stays in the outbox."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        bench = self._bench
        failures = 0
        while not self._stopping:
            try:
                sent = await self._send()
                failures = 0
                self.failing_since = None
                if not sent:
                    await self._rest()
            except Fenced:
                self.fenced = True
                return
            except Exception as error:  # noqa: BLE001 - the relay outlives every error
                bench.trouble("relay", error)
                if self.failing_since is None:
                    self.failing_since = bench.ambient.monotonic()
                failures += 1
                self._idle = True
                await bench.backoff(failures)
                self._idle = False

    async def _send(self) -> int:
        bench = self._bench
        rows = _bounded(await bench.store.outbox(0, bench.ambient.now(), LIMIT))
        if not rows:
            return 0
        start = bench.ambient.monotonic()
        await bench.broker.publish(
            [
                Record(stream=row.stream, key=row.key, headers=row.headers, data=row.data)
                for row in rows
            ]
        )
        await bench.leave(Changes(claim=self.claim, sent=[row.seq for row in rows]))
        seconds = bench.ambient.monotonic() - start
        for stream, events in Counter(row.stream for row in rows).items():
            bench.signals.emit(
                EventsPublished(
                    service=bench.service, stream=stream, events=events, seconds=seconds
                )
            )
        return len(rows)

    async def _rest(self) -> None:
        now = self._bench.ambient.now()
        rows = await self._bench.store.fetch(_NEXT_DUE, {"now": now})
        due = rows[0]["due"]
        self._idle = True
        await self._bell.wait(POLL if due is None else min(POLL, max(due - now, 0.0)))
        self._idle = False


def _bounded(rows: list[Announcement]) -> list[Announcement]:
    room = LIMIT_BYTES
    for index, row in enumerate(rows):
        room -= len(row.data)
        if room < 0 and index:
            return rows[:index]
    return rows
