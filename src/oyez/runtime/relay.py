"""The relay publishes the outbox: in order per key, with many rows in a round trip.

One replica of a service runs it at a time (it is claimed like a partition), so the events of a key
reach the broker in commit order. A row is deleted only after the broker acknowledged it, while the
next ones are published. If the relay dies in between, the row is published again with the same
event id.

What this process commits is published from memory (see `oyez.runtime.tail`). The outbox is read
after a start, a pause or a failure, when others have written to it, and for events of later.

Lanes are faster than the relay where little is done in a handler. Once more is announced than
memory holds they give it time, so that the outbox, and with it the time until an event is
published, does not grow for as long as there is something to read.

A row that the broker refuses becomes a dead letter if the broker accepts other rows of its stream;
otherwise the stream is at fault, and all its rows wait. The later rows of its key wait, in order,
until the dead letter is redriven or discarded (see `oyez.runtime.dead`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import inf

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import BrokerRefused, Fenced, RecordRefused, StoreError
from oyez.ports import Announcement, Broker, Changes, Claim, DeadLetter, Parameters, Record, Writes
from oyez.runtime.commits import Commits
from oyez.runtime.loop import Loop
from oyez.runtime.reports import Reports
from oyez.runtime.retry import failure_of
from oyez.runtime.tail import Tail
from oyez.signals import EventDead, EventsPublished

LIMIT = 512
"""The limit of records in one publish."""
PAGE = 4_096
"""The limit of rows in one query of the outbox; the first one is of `LIMIT`."""
LIMIT_BYTES = 4 * 1024 * 1024
"""The limit of bytes of data in one publish (a single record may exceed it)."""
POLL = 0.5
"""Seconds between two queries of the outbox unless the bell rings."""
BUSY = 0.1
"""Seconds from a ring to the next query while there are rows in memory."""
PAUSE = 1.0
"""After so many seconds without a step, another replica may have claimed the outbox."""

PATIENCE = 5.0
"""Seconds that a lane waits, at most, for the relay to catch up before it takes another batch."""

Chain = tuple[str, str]
"""A stream and key, within which events are published in order."""


class Relay:
    """The relay of one service's outbox."""

    def __init__(
        self,
        claim: Claim,
        *,
        broker: Broker,
        commits: Commits,
        ambient: Ambient,
        reports: Reports,
    ) -> None:
        self.claim = claim
        self.fenced = False
        self._broker = broker
        self._commits = commits
        self._store = commits.store
        self._ambient = ambient
        self._reports = reports
        self._loop = Loop("relay", self._step, ambient, reports.trouble)
        self._held: set[Chain] | None = None
        """The chains that wait for a refused event; None until the store was queried."""
        self._tail = Tail()
        self._page = LIMIT
        self._caught_up = asyncio.Event()
        self._caught_up.set()
        self._rang = False
        self._look_at = self._began = ambient.monotonic()
        """When to query the outbox, and when the last step began, on the monotonic clock."""
        self._settling: asyncio.Task[None] | None = None
        """The commit that removes from the outbox what was published last."""

    @property
    def failing_since(self) -> float | None:
        """The time since which publishing fails, on the monotonic clock; None while it works."""
        return self._loop.failing_since

    def start(self) -> None:
        """Start publishing."""
        self._loop.start()

    def ring(self) -> None:
        """Query the outbox soon, for new rows."""
        self._rang = True
        self._look_at = min(self._look_at, self._ambient.monotonic() + BUSY)
        self._loop.ring()

    def add(self, changes: Changes) -> None:
        """Publish what a commit of this process has announced."""
        if changes.stored is not None and changes.announced:
            self._tail.add(changes.stored, changes.announced)
            self._mark()
            self._loop.ring()

    async def room(self) -> None:
        """Wait while more is announced than memory holds, for `PATIENCE` seconds at most.

        It returns at once while publishing fails: then nothing is gained by waiting.
        """
        if self._caught_up.is_set():
            return
        with suppress(TimeoutError):
            async with self._ambient.timeout(PATIENCE):
                await self._caught_up.wait()

    def _mark(self) -> None:
        """Let lanes go on, or have them wait, as it is now."""
        if self._tail.behind and not self._loop.ending and self._loop.failing_since is None:
            self._caught_up.clear()
        else:
            self._caught_up.set()

    async def stop(self) -> None:
        """Finish the current publish and end. Safe when never started and when called twice."""
        await self._loop.stop()
        try:
            await self._settled()
        except StoreError as error:
            self._reports.trouble("relay", error)

    def kill(self) -> None:
        """End at once; rows without acknowledgement remain in the outbox."""
        self._loop.kill()
        self._caught_up.set()
        if self._settling is not None:
            self._settling.cancel()

    async def _step(self) -> float | None:
        try:
            return await self._round()
        except Fenced:
            self.fenced = True
            self._loop.end()
            return None
        except BaseException:
            self._tail.forget()
            self._held = None  # a refusal may be committed, its answer lost
            self._caught_up.set()
            raise
        finally:
            if self._loop.ending:
                self._caught_up.set()

    async def _round(self) -> float | None:
        """Publish some rows, from memory or from the outbox; return as a step does."""
        now = self._ambient.monotonic()
        if now - self._began > PAUSE:
            self._tail.forget()
        self._began = now
        if now < self._look_at and self._held is not None and not self._held:
            first, rows = self._tail.take(LIMIT, LIMIT_BYTES)
            if rows:
                await self._publish(rows, range(first, first + len(rows)))
                self._mark()
                return None
            if not (self._rang or self._tail.gap or self._tail.behind):
                return self._look_at - now
        self._rang = False
        if await self._send():
            self._rang = True  # there may be more
            self._look_at = self._ambient.monotonic() + BUSY
            return None
        self._tail.read()
        self._mark()
        wait = await self._until_due()
        self._look_at = self._ambient.monotonic() + (BUSY if self._rang else wait)
        return wait

    async def _until_due(self) -> float:
        rows = await self._store.fetch(tables.NEXT_ANNOUNCEMENT, {"now": self._ambient.now()})
        due = rows[0]["due"]
        left = inf if due is None else max(due - self._ambient.now(), 0.0)
        return self._ambient.poll(POLL, due=left)

    async def _send(self) -> int:
        """Publish due rows of the outbox; return how many were published, held or refused."""
        await self._settled()
        if self._held is None or self._held:
            await self._look_at_held()
        rows = await self._take()
        if self._held:
            behind = [row for row in rows if _chain(row) in self._held]
            if behind:
                await self._commits.save(Changes(claim=self.claim, writes=_hold(behind)))
                return len(behind)
        for part in _parts(rows):
            self._began = self._ambient.monotonic()
            await self._publish(part, [row.seq for row in part])
            self._tail.passed(max(row.seq for row in part))
            self._mark()
        return len(rows)

    async def _publish(self, rows: list[Announcement], numbers: Sequence[int]) -> None:
        start = self._ambient.monotonic()
        try:
            await publish(
                self._broker, [_record(row) for row in rows], self._reports, self._ambient
            )
        except BrokerRefused:
            await self._settled()
            numbered = [
                msgspec.structs.replace(row, seq=number)
                for row, number in zip(rows, numbers, strict=True)
            ]
            await self._send_one_by_one(numbered, start)
            return
        seconds = self._ambient.monotonic() - start
        await self._settled()
        self._settling = asyncio.create_task(
            self._settle(rows, numbers, seconds), name="relay, published"
        )

    async def _settle(
        self, rows: list[Announcement], numbers: Sequence[int], seconds: float
    ) -> None:
        """Remove published rows from the outbox."""
        await self._commits.save(Changes(claim=self.claim, sent=[*numbers]))
        self._emit(rows, seconds)

    async def _settled(self) -> None:
        """Wait until what was published before is removed. Raises what that commit raised."""
        task, self._settling = self._settling, None
        if task is not None:
            await task

    async def _take(self) -> list[Announcement]:
        """Return what is to be published, in commit order, with delayed events that are due.

        These are marked as taken first, in a commit of its own. Who cancels one, deletes it before
        that commit or not at all, so what was cancelled is never published.
        """
        page = self._page
        rows = await self._store.outbox(0, self._ambient.now(), page)
        # More at once while there is a backlog of small rows: each query is a turn behind others.
        small = sum(len(row.data) for row in rows) < LIMIT_BYTES // 2
        self._page = min(2 * page, PAGE) if small and len(rows) == page else LIMIT
        due: list[Parameters] = [{"seq": row.seq} for row in rows if row.due > 0]
        if not due:
            return rows
        await self._commits.save(Changes(claim=self.claim, writes=[(tables.TAKE, due)]))
        rows = await self._store.outbox(0, self._ambient.now(), page)
        return [row for row in rows if row.due == 0]

    async def _send_one_by_one(self, rows: list[Announcement], start: float) -> None:
        """Publish rows one by one, and make dead letters of the refused ones.

        Raises BrokerRefused when some are refused and their stream may be at fault.
        """
        sent: list[Announcement] = []
        refused: list[tuple[Announcement, BrokerRefused]] = []
        waiting: set[Chain] = set()
        for row in rows:
            chain = _chain(row)
            if chain in waiting:
                continue
            try:
                await publish(self._broker, [_record(row)], self._reports, self._ambient)
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
        now = self._ambient.now()
        writes: Writes = []
        if dead:
            writes.append((tables.REFUSE, [{"seq": row.seq} for row, _ in dead]))
            writes += _hold([row for row, _ in dead])
        letters = [_letter(row, why, now) for row, why in dead]
        await self._commits.save(
            Changes(claim=self.claim, sent=[row.seq for row in sent], writes=writes, dead=letters)
        )
        held = {chain for row, _ in dead if (chain := _chain(row)) is not None}
        self._held = (self._held or set()) | held
        self._emit(sent, self._ambient.monotonic() - start)
        for letter in letters:
            self._reports.emit(
                EventDead(
                    service=self._reports.service,
                    handler=letter.handler,
                    event_id=letter.event_id,
                    type=letter.type,
                    reason=letter.reason,
                )
            )
        if doubtful:
            raise doubtful[0]

    async def _look_at_held(self) -> None:
        """Query the waiting chains, and release those without a refused event."""
        rows = await self._store.fetch(tables.HELD, {})
        self._held = {
            (row["stream"], row["key"]) for row in rows if row["state"] == tables.Outbox.REFUSED
        }
        free: list[Parameters] = [
            {"stream": row["stream"], "key": row["key"]}
            for row in rows
            if row["state"] != tables.Outbox.REFUSED
        ]
        if free:
            await self._commits.save(Changes(claim=self.claim, writes=[(tables.UNHOLD, free)]))

    def _emit(self, rows: list[Announcement], seconds: float) -> None:
        for stream, events in Counter(row.stream for row in rows).items():
            self._reports.emit(
                EventsPublished(
                    service=self._reports.service, stream=stream, events=events, seconds=seconds
                )
            )


async def publish(
    broker: Broker, records: Sequence[Record], reports: Reports, ambient: Ambient
) -> None:
    """Publish records, with spans where they are recorded. Raises what `Broker.publish` raises."""
    tracer = reports.tracer
    if tracer is None:
        await broker.publish(records)
        return
    since = ambient.now()
    try:
        await broker.publish(records)
    except Exception as error:
        tracer.publish(records, since, ambient.now(), failure_of(error))
        raise
    tracer.publish(records, since, ambient.now())


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


def _parts(rows: list[Announcement]) -> Iterator[list[Announcement]]:
    """Yield the rows by as many as one publish may have."""
    part: list[Announcement] = []
    room = LIMIT_BYTES
    for row in rows:
        room -= len(row.data)
        if part and (room < 0 or len(part) == LIMIT):
            yield part
            part, room = [], LIMIT_BYTES - len(row.data)
        part.append(row)
    if part:
        yield part
