"""The relay publishes what was committed: outbox rows, in order per key, many a round trip.

One replica of a service runs it at a time (it is claimed like a partition), so what one service
announces under a key reaches the broker in commit order. A row leaves the outbox only after the
broker confirmed it; one sent twice, because the relay died in between, keeps its event id.

A row that the broker refuses becomes a dead letter, once the broker takes others of its stream:
otherwise the stream is at fault, not the row, and all wait. The later rows of its key wait behind
it, in their order, until it is redriven or discarded (see `oyez.runtime.dead`).
"""

from __future__ import annotations

import asyncio
from collections import Counter

from oyez import tables
from oyez.errors import BrokerRefused, Fenced, RecordRefused
from oyez.ports import Announcement, Changes, Claim, DeadLetter, Parameters, Record, Writes
from oyez.runtime.workbench import Bell, Workbench
from oyez.signals import EventDead, EventsPublished

LIMIT = 512
"""Records sent at once, at most."""
LIMIT_BYTES = 4 * 1024 * 1024
"""Bytes of data sent at once, at most (one record may exceed it alone)."""
POLL = 0.5
"""Seconds between two looks at the outbox when nothing rings."""

Chain = tuple[str, str]
"""Stream and key: what is published in order."""


class Relay:
    """Publishes one service's outbox."""

    def __init__(self, bench: Workbench, claim: Claim) -> None:
        self.claim = claim
        self.fenced = False
        self.failing_since: float | None = None
        """On the monotonic clock, when publishing began to fail; None while it works."""
        self._bench = bench
        self._bell = Bell(bench.ambient)
        self._held: set[Chain] | None = None
        """What waits behind a refused event; None until the store has been asked."""
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
        """Publish what is due; return how many outbox rows were dealt with."""
        bench = self._bench
        if self._held is None or self._held:
            await self._look_at_held()
        rows = _bounded(await bench.store.outbox(0, bench.ambient.now(), LIMIT))
        if self._held:
            behind = [row for row in rows if _chain(row) in self._held]
            if behind:
                await bench.leave(Changes(claim=self.claim, writes=_hold(behind)))
                return len(behind)
        if not rows:
            return 0
        start = bench.ambient.monotonic()
        try:
            await bench.broker.publish([_record(row) for row in rows])
        except BrokerRefused:
            return await self._send_one_by_one(rows, start)
        await bench.leave(Changes(claim=self.claim, sent=[row.seq for row in rows]))
        self._emit(rows, start)
        return len(rows)

    async def _send_one_by_one(self, rows: list[Announcement], start: float) -> int:
        """Find out which rows are refused, and make dead letters of those.

        Raises BrokerRefused when some are refused and it may be their stream's fault.
        """
        bench = self._bench
        sent: list[Announcement] = []
        refused: list[tuple[Announcement, BrokerRefused]] = []
        waiting: set[Chain] = set()
        for row in rows:
            chain = _chain(row)
            if chain in waiting:
                continue
            try:
                await bench.broker.publish([_record(row)])
            except BrokerRefused as error:
                refused.append((row, error))
                if chain is not None:
                    waiting.add(chain)
            else:
                sent.append(row)
        streams = {row.stream for row in sent}
        dead: list[tuple[Announcement, BrokerRefused]] = []
        doubtful: list[BrokerRefused] = []
        for row, why in refused:
            if row.stream in streams or isinstance(why, RecordRefused):
                dead.append((row, why))
            else:
                doubtful.append(why)
        now = bench.ambient.now()
        writes: Writes = []
        if dead:
            writes.append((tables.REFUSE, [{"seq": row.seq} for row, _ in dead]))
            writes += _hold([row for row, _ in dead])
        letters = [_letter(row, why, now) for row, why in dead]
        await bench.leave(
            Changes(claim=self.claim, sent=[row.seq for row in sent], writes=writes, dead=letters)
        )
        held = {chain for row, _ in dead if (chain := _chain(row)) is not None}
        self._held = (self._held or set()) | held
        self._emit(sent, start)
        for letter in letters:
            bench.signals.emit(
                EventDead(
                    service=bench.service,
                    handler=letter.handler,
                    event_id=letter.event_id,
                    type=letter.type,
                    reason=letter.reason,
                )
            )
        if doubtful:
            raise doubtful[0]
        return len(rows)

    async def _look_at_held(self) -> None:
        """Ask what is held, and free what waits behind nothing any more."""
        bench = self._bench
        rows = await bench.store.fetch(tables.HELD, {})
        self._held = {
            (row["stream"], row["key"]) for row in rows if row["state"] == tables.Outbox.REFUSED
        }
        free: list[Parameters] = [
            {"stream": row["stream"], "key": row["key"]}
            for row in rows
            if row["state"] != tables.Outbox.REFUSED
        ]
        if free:
            await bench.leave(Changes(claim=self.claim, writes=[(tables.UNHOLD, free)]))

    def _emit(self, rows: list[Announcement], start: float) -> None:
        bench = self._bench
        seconds = bench.ambient.monotonic() - start
        for stream, events in Counter(row.stream for row in rows).items():
            bench.signals.emit(
                EventsPublished(
                    service=bench.service, stream=stream, events=events, seconds=seconds
                )
            )

    async def _rest(self) -> None:
        now = self._bench.ambient.now()
        rows = await self._bench.store.fetch(tables.NEXT_ANNOUNCEMENT, {"now": now})
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


def _record(row: Announcement) -> Record:
    return Record(stream=row.stream, key=row.key, headers=row.headers, data=row.data)


def _chain(row: Announcement) -> Chain | None:
    return None if row.key is None else (row.stream, row.key)


def _hold(rows: list[Announcement]) -> Writes:
    chains = {chain for row in rows if (chain := _chain(row)) is not None}
    held: list[Parameters] = [{"stream": stream, "key": key} for stream, key in sorted(chains)]
    return [(tables.HOLD, held)] if held else []


def _letter(row: Announcement, error: BrokerRefused, now: float) -> DeadLetter:
    headers = row.headers
    return DeadLetter(
        event_id=headers.get("id", ""),
        source=headers.get("source", ""),
        type=headers.get("type", ""),
        handler=tables.OUTBOX,
        stream=row.stream,
        partition=-1,
        position=row.seq,
        key=row.key,
        reason=f"refused by the broker: {error}",
        traceback="",
        attempts=1,
        history=[],
        headers=headers,
        data=row.data,
        time=now,
    )
