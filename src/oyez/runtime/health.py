"""The liveness, the readiness and the lag of a service process.

Within 30 s, a partition that has events to handle and makes no progress, or that no replica reads,
fails readiness and is reported by a signal, and so in log and metrics; so do timers that are due
and do not fire, and partitions that a view reads. An outbox without progress fails readiness too. A
broker that is out of reach fails readiness alone; liveness fails only when the process itself is
stuck, so that an outage of the broker does not cause restarts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import BrokerError, StoreError
from oyez.ports import Broker, Position, Store
from oyez.runtime.claims import Claims, Place
from oyez.runtime.lane import Lane
from oyez.runtime.loop import Loop
from oyez.runtime.parked import ParkedEvents
from oyez.runtime.rebuild import Rebuild
from oyez.runtime.reports import Reports
from oyez.signals import LagMeasured, Resumed, Stalled
from oyez.tables import TIMERS

LOOK = 5.0
"""Seconds between two checks."""
STALL = 20.0
"""Seconds without progress, with events to handle, after which a partition is stalled."""
STUCK = 120.0
"""Seconds after which a stalled partition fails liveness, with broker and store in reach."""


Seat = tuple[str, str, int]
"""A partition as one reader has it: its reader, empty for the service itself, stream, partition."""


class Health:
    """The health of the process's lanes, parked events and relay."""

    def __init__(
        self,
        owner: str,
        claims: Claims,
        parked: ParkedEvents,
        *,
        broker: Broker,
        store: Store,
        ambient: Ambient,
        reports: Reports,
        views: Sequence[Rebuild] = (),
    ) -> None:
        self._owner = owner
        self._views = views
        self._broker = broker
        self._store = store
        self._ambient = ambient
        self._reports = reports
        self._claims = claims
        self._parked = parked
        self._stalled: dict[Seat, float] = {}
        self._lag: dict[Place, int] = {}
        self._behind_since: dict[Seat, float] = {}
        self._broker_error = ""
        self._store_error = ""
        self._overdue = 0.0
        self._head = -1
        self._refused = 0
        self._head_since = ambient.monotonic()
        self._loop = Loop("health", self._step, ambient, reports.trouble)

    def start(self) -> None:
        """Start checking."""
        self._loop.start()

    def stop(self) -> None:
        """Stop checking. Safe when never started and when called twice."""
        self._loop.kill()

    @property
    def stalled(self) -> list[Seat]:
        """Return partitions with events to handle that make no progress, or have no reader."""
        return sorted(self._stalled)

    def lag(self) -> dict[Place, int | None]:
        """Return the lag of each owned partition; None where the broker did not report it."""
        return {place: self._lag.get(place) for place in sorted(self._lanes()[""])}

    def readiness(self) -> list[str]:
        """Return why the process is not ready; empty when it is."""
        reasons = []
        if self._broker_error:
            reasons.append(f"broker: {self._broker_error}")
        if self._store_error:
            reasons.append(f"store: {self._store_error}")
        now = self._ambient.monotonic()
        for (reader, stream, partition), since in sorted(self._stalled.items()):
            what, remedy = (
                ("has been read by no replica", "see the log for an error of claims")
                if (stream, partition) in self._readers()[reader].adrift
                else (
                    "has made no progress",
                    "see the log for the error, or raise the handler's speed or replicas",
                )
            )
            name = _name((reader, stream, partition))
            reasons.append(f"{name} {what} for {now - since:.0f} s: {remedy}")
        for reader, claims in self._readers().items():
            if now - claims.swept > STALL:
                of = f" of {reader}" if reader else ""
                since = now - claims.swept
                reasons.append(f"claims{of} have not been swept for {since:.0f} s: see the log")
        if self._overdue > STALL:
            reasons.append(f"parked events have been overdue for {self._overdue:.0f} s")
        relay = self._claims.relay
        if relay is not None and relay.failing_since is not None:
            reasons.append(f"outbox not published for {now - relay.failing_since:.0f} s")
        elif self._head >= 0 and now - self._head_since > STALL:
            reasons.append(
                f"the outbox has made no progress for {now - self._head_since:.0f} s: see the log "
                "for an error of the relay"
            )
        return reasons

    def warnings(self) -> list[str]:
        """Return what an operator should handle although the process is ready."""
        if not self._refused:
            return []
        return [
            f"events of the outbox that the broker refused: {self._refused}; later events of their "
            f"keys wait for them: see oyez dead list {self._reports.service}"
        ]

    def liveness(self) -> list[str]:
        """Return why the process should be restarted; empty when it should not."""
        parked = [self._parked, *(view.parked for view in self._views)]
        if self._broker_error or self._store_error or any(each.running for each in parked):
            return []
        now = self._ambient.monotonic()
        return [
            f"{_name(seat)} is stuck"
            for seat, since in sorted(self._stalled.items())
            if now - since > STUCK
        ]

    def report(self) -> dict[str, Any]:
        """Return readiness, stalls and lag as one value for JSON."""
        return {
            "ready": not self.readiness(),
            "reasons": self.readiness(),
            "warnings": self.warnings(),
            "lag": {f"{s}[{p}]": lag for (s, p), lag in self.lag().items()},
        }

    async def look(self) -> None:
        """Check everything once."""
        await self._look_at_broker()
        self._look_at_claims()
        self._look_at_timers()
        now = self._ambient.now()
        try:
            rows = await self._store.fetch(tables.OLDEST_RETRY, {"owner": self._owner})
            due = rows[0]["due"]
            self._overdue = max(0.0, now - due) if due is not None else 0.0
            head = [row["seq"] for row in await self._store.fetch(tables.OUTBOX_HEAD, {"now": now})]
            if head != [self._head]:
                self._head = head[0] if head else -1
                self._head_since = self._ambient.monotonic()
            rows = await self._store.fetch(tables.REFUSALS, {})
            self._refused = rows[0]["events"]
            self._store_error = ""
        except StoreError as error:
            self._store_error = str(error)

    async def _step(self) -> float:
        await self.look()
        return self._ambient.poll(LOOK)

    async def _look_at_broker(self) -> None:
        lanes = self._lanes()
        try:
            await self._broker.streams()
            behind = {reader: await self._behind(each) for reader, each in lanes.items()}
            self._broker_error = ""
        except BrokerError as error:
            self._broker_error = str(error)
            for place in list(self._lag):
                self._measured(place, None)
            return
        for place in [place for place in self._lag if place not in lanes[""]]:
            self._moves(("", *place))
            self._measured(place, None)
        for reader, lags in behind.items():
            for place, lag in lags.items():
                if not reader:
                    self._measured(place, lag, self._age(lanes[""][place], lag))
                self._judge((reader, *place), lanes[reader][place], behind=lag > 0)

    async def _behind(self, lanes: dict[Place, Lane]) -> dict[Place, int]:
        """Return the lag of each partition that the broker tells of."""
        positions: dict[str, dict[int, Position]] = {}
        for (stream, partition), lane in lanes.items():
            positions.setdefault(stream, {})[partition] = lane.position
        return {
            (stream, partition): lag
            for stream, asked in sorted(positions.items())
            for partition, lag in (await self._broker.lag(stream, asked)).items()
            if partition in asked
        }

    def _look_at_timers(self) -> None:
        for timers in self._claims.timers:
            claim = timers.lane.claim
            self._judge(("", claim.stream, claim.partition), timers.lane, behind=timers.behind)

    def _judge(self, seat: Seat, lane: Lane, *, behind: bool) -> None:
        """Note whether a partition that has work, if it is ``behind``, makes progress."""
        if not behind:
            self._moves(seat)
            return
        now = self._ambient.monotonic()
        since = max(self._behind_since.setdefault(seat, now), lane.moved)
        if now - since <= STALL:
            self._moves(seat, behind=True)
        else:
            self._stalls(seat, since)

    def _readers(self) -> dict[str, Claims]:
        """Return the claims of each reader."""
        return {"": self._claims, **{each.kind.name: each.claims for each in self._views}}

    def _lanes(self) -> dict[str, dict[Place, Lane]]:
        """Return the partitions of streams that this process owns, by reader.

        A view does not move where its history is missing: that is told by itself, and no restart
        brings it back.
        """
        found = {"": {p: lane for p, lane in self._claims.lanes.items() if p[0] != TIMERS}}
        for view in self._views:
            found[view.kind.name] = {
                place: lane for place, lane in view.lanes.items() if place not in view.missing
            }
        return found

    def _look_at_claims(self) -> None:
        now = self._ambient.monotonic()
        there: set[Seat] = set()
        for reader, claims in self._readers().items():
            there |= {(reader, *place) for place in claims.lanes.keys() | claims.adrift.keys()}
            for place, since in claims.adrift.items():
                if now - since > STALL:
                    self._stalls((reader, *place), since)
        for view in self._views:
            there -= {(view.kind.name, *place) for place in view.missing}
        for seat in (self._stalled.keys() | self._behind_since.keys()) - there:
            self._moves(seat)

    def _stalls(self, seat: Seat, since: float) -> None:
        if seat not in self._stalled:
            self._stalled[seat] = since
            self._emit(Stalled, seat, seconds=self._ambient.monotonic() - since)

    def _age(self, lane: Lane, lag: int) -> float:
        """Return how old the oldest record is that the lane has not handled.

        Between two batches nothing tells that but the record before it, which is as old at least:
        it counts where the lane was behind before. Else the record came since the last look.
        """
        if not lag:
            return 0.0
        claim = lane.claim
        since = self._behind_since.get(("", claim.stream, claim.partition))
        if lane.reached and (lane.in_hand or since is not None):
            return max(0.0, self._ambient.now() - lane.reached)
        now = self._ambient.monotonic()
        return now - max(lane.moved, now if since is None else since)

    def _measured(self, place: Place, lag: int | None, age: float | None = None) -> None:
        if lag is None:
            self._lag.pop(place, None)
        else:
            self._lag[place] = lag
        stream, partition = place
        self._reports.emit(
            LagMeasured(
                service=self._reports.service,
                stream=stream,
                partition=partition,
                records=lag,
                seconds=age,
            )
        )

    def _moves(self, seat: Seat, *, behind: bool = False) -> None:
        if not behind:
            self._behind_since.pop(seat, None)
        if self._stalled.pop(seat, None) is not None:
            self._emit(Resumed, seat)

    def _emit(self, signal: Any, seat: Seat, **fields: Any) -> None:
        reader, stream, partition = seat
        fields |= {"reader": reader, "stream": stream, "partition": partition}
        self._reports.emit(signal(service=self._reports.service, **fields))


def _name(seat: Seat) -> str:
    reader, stream, partition = seat
    of = f"{reader} of " if reader else ""
    return f"{of}{stream}[{partition}]"
