"""Measures what no signal tells: how a broker and a store answer, and what waits in the store.

It looks seldom, and counts only so far, so that a million rows cost no more than some thousands.
A number that could not be read is unknown, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.envelope import parse_time
from oyez.errors import BrokerError, InvalidEvent, StoreError
from oyez.handler import Handler
from oyez.ports import Broker, Row, Store
from oyez.runtime.loop import Loop
from oyez.runtime.reports import Reports
from oyez.saga import SagaType
from oyez.signals import BrokerMeasured, EventsLate, StoreMeasured
from oyez.window import WindowType

ROUND = 15.0
"""Seconds between two looks."""


class Measuring:
    """The measurements of one service process."""

    def __init__(
        self,
        handlers: Iterable[Handler],
        stream: str,
        *,
        broker: Broker,
        store: Store,
        ambient: Ambient,
        reports: Reports,
    ) -> None:
        """``stream`` is the one whose ends the broker is asked for."""
        kinds = {state.kind.name: state.kind for each in handlers for state in each.states}
        self._sagas = [kind.name for kind in kinds.values() if isinstance(kind, SagaType)]
        self._windows = [kind for kind in kinds.values() if isinstance(kind, WindowType)]
        self._stream = stream
        self._broker = broker
        self._store = store
        self._ambient = ambient
        self._reports = reports
        self._late: dict[str, int] = {}
        self._loop = Loop("measuring", self._step, ambient, reports.trouble)

    def start(self) -> None:
        """Start to look."""
        self._loop.start()

    def stop(self) -> None:
        """Look no more. Safe when never started and when called twice."""
        self._loop.kill()

    async def look(self) -> None:
        """Measure everything once."""
        self._tell_late()
        await self._look_at_broker()
        await self._look_at_store()

    async def _step(self) -> float:
        if self._reports.heard:
            await self.look()
        return self._ambient.poll(ROUND)

    def _tell_late(self) -> None:
        for kind in self._windows:
            first = kind.name not in self._late
            events = kind.tally.late - self._late.get(kind.name, 0)
            self._late[kind.name] = kind.tally.late
            if events or first:
                self._reports.emit(
                    EventsLate(service=self._reports.service, window=kind.name, events=events)
                )

    async def _look_at_broker(self) -> None:
        began = self._ambient.monotonic()
        seconds: float | None = None
        try:
            await self._broker.ends(self._stream)
            seconds = self._ambient.monotonic() - began
        except BrokerError:
            pass  # health tells of it
        self._reports.emit(BrokerMeasured(service=self._reports.service, seconds=seconds))

    async def _look_at_store(self) -> None:
        service, now = self._reports.service, self._ambient.now()
        began = self._ambient.monotonic()
        try:
            (row,) = await self._store.fetch(tables.WAITING, {"now": now})
            seconds = self._ambient.monotonic() - began
            head = await self._store.fetch(tables.OUTBOX_FIRST, {"now": now})
            stuck: dict[str, int] = {}
            for saga in self._sagas:
                (found,) = await self._store.fetch(tables.STUCK, {"kind": saga})
                stuck[saga] = found["sagas"]
        except StoreError:
            self._reports.emit(StoreMeasured(service=service, seconds=None))
            return
        times = [time for each in head if (time := _announced(each)) is not None]
        if row["late"] is not None:
            times.append(row["late"])
        self._reports.emit(
            StoreMeasured(
                service=service,
                seconds=seconds,
                outbox=row["outbox"],
                outbox_seconds=max((now - time for time in times), default=0.0),
                refused=row["refused"],
                parked=row["parked"],
                parked_seconds=0.0 if row["oldest"] is None else max(0.0, now - row["oldest"]),
                dead=row["dead"],
                stuck=stuck,
            )
        )


def _announced(row: Row) -> float | None:
    """Return the time of an event of the outbox, in seconds since 1970; None if it has none."""
    headers = msgspec.json.decode(row["headers"], type=dict[str, str])
    try:
        return parse_time(headers.get("time", "")).timestamp()
    except InvalidEvent:
        return None
