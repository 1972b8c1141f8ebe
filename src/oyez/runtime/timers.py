"""Fires the timers of one place: rows of ``oyez_timer`` become parked events of their handlers.

The places `oyez.tables.TIMERS` are claimed and shared like partitions. One fenced commit deletes
the rows that are due and parks an event for each, so a timer fires once, whoever dies, and
`oyez.runtime.parked` runs it. A tick of a schedule is a timer that arms the next in that commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from types import MappingProxyType

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.envelope import JSON, SPECVERSION, format_time
from oyez.errors import Fenced, StoreError
from oyez.event import Event, describe
from oyez.handler import Handler
from oyez.partitioning import partition_of
from oyez.ports import Parked, Row, Writes
from oyez.runtime.backlog import Backlog
from oyez.runtime.batches import PARKED_LIMIT
from oyez.runtime.commits import Commits
from oyez.runtime.handlers import Handlers
from oyez.runtime.lane import Lane
from oyez.runtime.loop import Loop
from oyez.runtime.reports import Reports
from oyez.schedule import EVERY
from oyez.signals import BatchHandled
from oyez.tables import PLACES, TIMERS
from oyez.timers import Timer, arm, disarm_all
from oyez.transaction import Origin, Transaction, UnitOfWork

LIMIT = 512
"""The limit of timers that fire in one commit."""
POLL = 0.5
"""Seconds between two queries, at least, of a place where no timer is known to be due."""
IDLE = 5.0
"""Seconds between two queries, at most."""
SKEW = 1.0
"""Seconds by which clocks of a service's hosts may differ; more is a clock that was set back."""

_NO_ORIGIN = Origin()
_CARRIED = ("correlationid", "traceparent", "tracestate", "authid", "authtype")
"""What the event of a timer takes over from what set it."""


class Timers:
    """The timers of one place, until it is stopped or another process owns the place."""

    def __init__(
        self,
        lane: Lane,
        handlers: Handlers,
        *,
        source: str,
        backlog: Backlog,
        commits: Commits,
        ambient: Ambient,
        reports: Reports,
    ) -> None:
        """``source`` is the service's, which its timers' events come from."""
        self.lane = lane
        self.due: float | None = None
        """The time of the next timer that has a handler here; None without one."""
        self._ticks: dict[str, float] = {}
        """The time of the next tick of each schedule of this place, by its name."""
        self._handlers = handlers
        self._source = source
        self._backlog = backlog
        self._commits = commits
        self._ambient = ambient
        self._reports = reports
        self._loop = Loop(lane.name, self._step, ambient, reports.trouble)
        self._looked = -IDLE
        """The time of the last query, on the monotonic clock."""
        self._held = -IDLE
        """The time at which due timers had to wait for a backlog, if nobody looked since."""
        self._offset: float | None = None
        """The wall clock's lead over the monotonic one at the last step."""
        self._kinds = {f"kind{number}": kind for number, kind in enumerate(handlers.timed)}
        self._next = " union all ".join(tables.NEXT_TIMER.format(kind=name) for name in self._kinds)

    @property
    def behind(self) -> bool:
        """Whether a timer is due, as far as known, or its queries fail."""
        return self._wait() == 0 or self._loop.failing_since is not None

    def start(self) -> None:
        """Start firing."""
        self._loop.start()

    async def stop(self) -> None:
        """Finish the current commit and end. Safe when never started and when called twice."""
        self.lane.leaving = True
        await self._loop.stop()

    def kill(self) -> None:
        """End at once; timers that were not committed fire elsewhere."""
        self.lane.leaving = True
        self._loop.kill()

    def ring(self) -> None:
        """Query within `POLL` seconds: a timer may have been armed."""
        self._loop.ring()

    async def look(self) -> list[str]:
        """Return the kinds that have a due timer, after setting ``due``."""
        now = self._ambient.now()
        start = self._ambient.monotonic()
        asked = {"part": self.lane.claim.partition, **self._kinds}
        rows = await self._commits.store.fetch(self._next, asked) if self._next else []
        times = {row["kind"]: row["due"] for row in rows if row["due"] is not None}
        self._looked, self._held = start, -IDLE
        if self._ticks:
            times[EVERY] = min(self._ticks.values())
        self.due = min(times.values(), default=None)
        return [kind for kind, due in times.items() if due <= now]

    async def _step(self) -> float | None:
        lane = self.lane
        start = self._ambient.monotonic()
        if self._held + POLL > start:
            return self._held + POLL - start
        if self._looked + POLL > start and self._wait() > 0:
            return min(self._looked + POLL - start, self._wait())
        try:
            await self._follow_clock()
            fired = 0
            for kind in await self.look():
                while lane.chains.total >= PARKED_LIMIT and not lane.leaving:
                    await lane.chains.wait(POLL)
                if kind == EVERY:
                    fired += await self._tick()
                else:
                    fired += await self._fire(kind, await self._latest(kind))
        except Fenced:
            lane.lose()
            self._loop.end()
            return None
        except StoreError:
            if lane.doubtful:
                self._loop.end()
            raise
        lane.progress()
        if fired:
            self._reports.emit(
                BatchHandled(
                    service=self._reports.service,
                    stream=TIMERS,
                    partition=lane.claim.partition,
                    events=fired,
                    seconds=self._ambient.monotonic() - start,
                )
            )
            return None
        if self._wait() > 0:
            return self._ambient.poll(IDLE, due=self._wait())
        self._held = start
        return POLL

    def _wait(self) -> float:
        """Return the seconds until the next timer is due."""
        return inf if self.due is None else max(self.due - self._ambient.now(), 0.0)

    # -- firing ------------------------------------------------------------------------------------

    async def _latest(self, kind: str) -> float:
        """Return the time up to which timers of a kind may fire."""
        handler = self._handlers.timed[kind]
        if not handler.waits:
            return inf
        return await self._backlog.handled(handler, self.lane.claim.partition)

    async def _fire(self, kind: str, latest: float) -> int:
        """Fire timers of a kind that are due, and were by ``latest``; return their number."""
        lane = self.lane
        unit = self._commits.unit(lane.claim)
        try:
            tx = unit.transaction(_NO_ORIGIN)
            rows = await tx.fetch(
                tables.TAKE_TIMERS,
                part=lane.claim.partition,
                kind=kind,
                now=min(unit.changes.time, latest),
                limit=max(1, min(LIMIT, PARKED_LIMIT - lane.chains.total)),
            )
            events = await self._timers(tx, kind, rows)
            await self._park(unit, events)
        finally:
            await unit.rollback()
        return len(rows)

    async def _tick(self) -> int:
        """Fire the schedule that is due first and arm its next tick, in one commit."""
        name, due = min(self._ticks.items(), key=lambda each: (each[1], each[0]))
        schedule, handler = self._handlers.schedules[name], self._handlers[name]
        unit = self._commits.unit(self.lane.claim)
        events: list[Parked] = []
        try:
            tx = unit.transaction(_NO_ORIGIN)
            firing = schedule.fire(due, unit.changes.time)
            if firing.tick is not None:
                time = firing.tick.scheduled.isoformat().replace("+00:00", "Z")
                event_id = f"{name}@{time}"
                # After a clock that was set back, its times come again.
                if not await self._seen(tx, handler, [event_id]):
                    events.append(self._event(handler, event_id, name, firing.tick, tx.time))
            writes = arm(EVERY, name, schedule.spec, firing.next, unit.changes.time)
            _execute(tx, writes)
            await self._park(unit, events)
        finally:
            await unit.rollback()
        self._ticks[name] = firing.next
        return 1

    async def _park(self, unit: UnitOfWork, events: list[Parked]) -> None:
        lane = self.lane
        unit.changes.parked = events
        for event in events:
            lane.chains.add(event.chain)
        try:
            await lane.commit(unit, None)
        except BaseException:
            for event in events:
                lane.chains.remove(event.chain)
            raise

    async def _timers(self, tx: Transaction, kind: str, rows: list[Row]) -> list[Parked]:
        handler = self._handlers.timed[kind]
        named = [
            (f"{kind}/{row['key']}/{row['name']}@{format_time(row['due'])}", row) for row in rows
        ]
        seen = await self._seen(tx, handler, [event_id for event_id, _ in named])
        return [
            self._event(
                handler,
                # It was armed again for the same moment, after it had fired.
                f"{event_id}#{tx.new_id()}" if event_id in seen else event_id,
                row["key"],
                Timer(kind=kind, key=row["key"], name=row["name"], due=row["due"]),
                tx.time,
                {name: row[name] for name in _CARRIED if row[name] is not None},
            )
            for event_id, row in sorted(named, key=lambda each: each[1]["due"])
        ]

    async def _seen(self, tx: Transaction, handler: Handler, ids: list[str]) -> set[str]:
        """Return those of the ids that the handler's inbox holds."""
        if not ids:
            return set()
        asked = {f"id{number}": event_id for number, event_id in enumerate(ids)}
        names = ", ".join(f":{name}" for name in asked)
        rows = await tx.fetch(tables.HANDLED_BY.format(ids=names), **asked)
        return {
            row["event_id"]
            for row in rows
            if (row["source"], row["handler"]) == (self._source, handler.name)
        }

    def _event(
        self,
        handler: Handler,
        event_id: str,
        key: str,
        event: Event,
        time: str,
        carried: Mapping[str, str] = MappingProxyType({}),
    ) -> Parked:
        kind = describe(type(event))
        headers = {
            "specversion": SPECVERSION,
            "id": event_id,
            "source": self._source,
            "type": kind.name,
            "time": time,
            "datacontenttype": JSON,
            "dataschema": kind.dataschema,
            "subject": key,
            "partitionkey": key,
            **carried,
        }
        return Parked(
            event_id=event_id,
            source=self._source,
            handler=handler.name,
            stream=TIMERS,
            partition=self.lane.claim.partition,
            position=0,
            chain=key if handler.ordered else None,
            due=0.0,
            attempt=0,
            history=[],
            key=key,
            headers=headers,
            data=msgspec.json.encode(event),
        )

    # -- clocks ------------------------------------------------------------------------------------

    async def _follow_clock(self) -> None:
        """After a clock that was set back, let no timer wait longer than its whole time anew."""
        now = self._ambient.now()
        offset = now - self._ambient.monotonic()
        if self._offset is None or offset < self._offset - SKEW:
            unit = self._commits.unit(self.lane.claim)
            try:
                tx = unit.transaction(_NO_ORIGIN)
                asked = {"part": self.lane.claim.partition, "latest": now + SKEW}
                if await self._commits.store.fetch(tables.AHEAD, asked):
                    tx.execute(tables.SHIFT_TIMERS, **asked, now=now, calendar=EVERY)
                self._ticks = await self._agree(tx, now)
                await unit.commit()
            finally:
                await unit.rollback()
        self._offset = offset

    async def _agree(self, tx: Transaction, now: float) -> dict[str, float]:
        """Make the stored schedules of this place those of the code; return their next ticks.

        A schedule that is unknown here may be of a newer version of the service, so only the newest
        process deletes one.
        """
        part = self.lane.claim.partition
        rows = await self._commits.store.fetch(tables.SCHEDULES, {"part": part, "kind": EVERY})
        stored: dict[str, dict[str, float]] = {}
        for row in rows:
            stored.setdefault(row["key"], {})[row["name"]] = row["due"]
        ticks = {}
        for name, schedule in self._handlers.schedules.items():
            if partition_of(name, PLACES) != part:
                continue
            found = stored.pop(name, {})
            due = schedule.following(now)
            if [*found] == [schedule.spec] and found[schedule.spec] <= due:
                due = found[schedule.spec]
            else:
                _execute(tx, [*disarm_all(EVERY, name), *arm(EVERY, name, schedule.spec, due, now)])
            ticks[name] = due
        if stored:
            newest = await self._commits.store.fetch(tables.NEWEST, {"now": now})
            if newest == [{"owner": self.lane.claim.owner}]:
                for name in stored:
                    _execute(tx, disarm_all(EVERY, name))
        return ticks


def _execute(tx: Transaction, writes: Writes) -> None:
    for sql, sets in writes:
        for parameters in sets:
            tx.execute(sql, **parameters)
