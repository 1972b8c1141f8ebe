"""The events of flows, as the gateway has read them from the brokers.

The events of flows that are begun while it reads are kept as they arrive, whichever replica began
them. Of an older flow, or one that has left memory, it looks through the history when somebody
asks: one look at a time, and those who ask meanwhile share the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, Protocol

import msgspec

from oyez.ambient import Ambient
from oyez.envelope import STRUCTURED, format_time, open_record
from oyez.errors import InvalidEvent, OyezError
from oyez.gateway.exchange import FLOW, Refusal
from oyez.gateway.flows.ident import Begun, made_at
from oyez.logger import Logger
from oyez.ports import Record

MOST = 30_000
"""Events and flows in memory; above it, the flows that came first are left to the history."""
MOST_OF_ONE = 256
"""Events of one flow."""
LARGEST = 65_536
"""Bytes of an event's data of which fields are shown."""
LOOK = 3.0
"""Seconds for which the history is looked through."""
AGAIN = 5.0
"""Seconds before a history that did not tell is looked through again."""
SKEW = 10.0
"""Seconds by which clocks may differ."""

_LONGEST = 2_048
"""Characters of an event's attributes together, and of a field that is shown."""
_LONGEST_TIME = 40
_LOOKED_AT = 64
"""Flows that are looked at for one to leave out; those that are watched become the last."""

_Take = Callable[[Record], None]


class Records(Protocol):
    """The records of a system's brokers."""

    async def follow(self, begun: Callable[[], None], take: _Take) -> None:
        """Pass on every record from now on, for ever, whatever happens to the brokers.

        ``begun`` is called when none that is published from then on will be missed; called again,
        some may have been missed before.
        """
        ...

    async def look_back(self, take: _Take, since: float, seconds: float) -> float:
        """Pass on what the brokers keep since a time, the newest first, for so many seconds.

        Return the time since which that was everything. Raises OyezError.
        """
        ...


class FlowEvent(msgspec.Struct, frozen=True):
    """An event of a flow, as far as it may be told."""

    type: str
    id: str
    source: str
    subject: str | None
    time: str
    at: float
    """When the broker had it, in seconds since 1970."""
    fields: Mapping[str, Any]
    """Those fields of its data that some route shows."""

    @property
    def digest(self) -> bytes:
        """What names it in the id of a message: three bytes."""
        return hashlib.sha256(f"{self.source}\n{self.id}".encode()).digest()[:3]


class Flow:
    """The events of one flow that are known here."""

    def __init__(self, made: float, *, whole: bool) -> None:
        self.made = made
        self.whole = whole
        """Whether these are all that were published."""
        self.cut = False
        """Whether it has had more than `MOST_OF_ONE`."""
        self.looked = -math.inf
        """When the history was last looked through for it, on the monotonic clock."""
        self.events: dict[tuple[str, str], FlowEvent] = {}
        """By source and id, as they arrived."""

    def ordered(self) -> list[FlowEvent]:
        """Return its events by time."""
        return sorted(self.events.values(), key=lambda event: (event.at, event.id))


class Index:
    """The events of flows, and who waits for more."""

    def __init__(
        self, ambient: Ambient, records: Records, *, show: frozenset[str], watchers: int
    ) -> None:
        """``show``: the fields of data that are kept. ``watchers``: how many may wait."""
        self.draining = False
        """Whether those who wait are to end."""
        self._ambient = ambient
        self._records = records
        self._show = show
        self._most = watchers
        self._flows: dict[str, Flow] = {}
        self._kept = 0
        self._era = 0
        """How often the reading has begun."""
        self._since = math.inf
        """What was begun after that time, is whole in memory."""
        self._wanted: dict[str, Flow] = {}
        self._looking = asyncio.Lock()
        self._rested = -math.inf
        """From when on the history may be looked through again, on the monotonic clock: as long
        after a look as that took, since others have work, too."""
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self.watchers = 0
        """How many wait."""

    async def read(self) -> None:
        """Read the events of flows, for ever."""
        await self._records.follow(self._begun, self._take)

    def drain(self) -> None:
        """Wake all who wait, to end."""
        self.draining = True
        self._wake_all()

    async def find(self, begun: Begun) -> Flow:
        """Return what is known of a flow, after a look through the history if that may tell more.

        It is not ``whole`` where the brokers are out of reach, or have not kept it.
        """
        flow = self._flows.get(begun.correlation)
        if flow is None:
            flow = Flow(begun.made, whole=begun.made > self._since)
        if not flow.whole:
            await self._look_back(begun.correlation, flow)
            flow = self._flows.get(begun.correlation, flow)
        return flow

    @contextlib.contextmanager
    def watching(self, begun: Begun) -> Iterator[asyncio.Event]:
        """Return what is set when there may be more to tell of a flow, or it is to end.

        Raises :class:`Refusal` (503) where too many watch.
        """
        if self.watchers >= self._most:
            detail = "too many clients follow flows"
            raise Refusal(503, "busy", detail, [(b"retry-after", b"5")])
        changed = asyncio.Event()
        of = self._watchers.setdefault(begun.correlation, set())
        of.add(changed)
        self.watchers += 1
        try:
            yield changed
        finally:
            self.watchers -= 1
            of.discard(changed)
            if not of:
                self._watchers.pop(begun.correlation, None)

    def _begun(self) -> None:
        """Begin anew: nothing before is known to be whole."""
        self._era += 1
        self._flows.clear()
        self._kept = 0
        self._since = self._ambient.now() + SKEW
        self._wake_all()

    def _take(self, record: Record) -> None:
        found = _attributes(record)
        if found is None:
            return
        attributes, data = found
        correlation = attributes["correlationid"]
        flow = self._flows.get(correlation) or self._wanted.get(correlation)
        if flow is None:
            made = made_at(correlation)
            if made is None:
                return
            flow = Flow(made, whole=made > self._since)
        self._add(correlation, flow, _event(record, attributes, data, self._show))

    def _take_old(self, asked: Mapping[str, Flow], record: Record) -> None:
        found = _attributes(record)
        if found is None:
            return
        attributes, data = found
        flow = asked.get(attributes["correlationid"])
        if flow is not None:
            event = _event(record, attributes, data, self._show)
            self._add(attributes["correlationid"], flow, event)

    def _add(self, correlation: str, flow: Flow, event: FlowEvent | None) -> None:
        if event is None or (event.source, event.id) in flow.events:
            return
        if len(flow.events) >= MOST_OF_ONE:
            flow.cut = True
            return
        flow.events[event.source, event.id] = event
        if self._flows.get(correlation) is flow:
            self._kept += 1
        else:
            self._keep(correlation, flow)
        for changed in self._watchers.get(correlation, ()):
            changed.set()

    def _keep(self, correlation: str, flow: Flow) -> None:
        """Keep a flow in memory, and leave out those that came first, unless somebody watches."""
        if self._flows.get(correlation) is flow:
            return
        self._flows[correlation] = flow
        self._kept += 1 + len(flow.events)
        if self._kept <= MOST:
            return
        for name in list(islice(self._flows, _LOOKED_AT)):
            first = self._flows.pop(name)
            if name == correlation or name in self._watchers or name in self._wanted:
                self._flows[name] = first  # as the last one
                continue
            self._kept -= 1 + len(first.events)
            self._since = max(self._since, first.made)
            if self._kept <= MOST:
                return

    async def _look_back(self, correlation: str, flow: Flow) -> None:
        self._wanted.setdefault(correlation, flow)
        try:
            async with self._looking:
                # Who asked for the same flow may have left.
                flow = self._flows.get(correlation) or self._wanted.setdefault(correlation, flow)
                now = self._ambient.monotonic()
                if flow.whole or now - flow.looked < AGAIN:
                    return
                if now < self._rested:
                    await self._ambient.sleep(self._rested - now)
                await self._look({**self._wanted, correlation: flow})
        finally:
            self._wanted.pop(correlation, None)

    async def _look(self, asked: Mapping[str, Flow]) -> None:
        began, era = self._ambient.monotonic(), self._era
        since = min(flow.made for flow in asked.values()) - SKEW
        try:
            take = partial(self._take_old, asked)
            reached = await self._records.look_back(take, since, LOOK)
        except OyezError as error:
            Logger().warning("flows not looked up", reason=str(error))
            reached = math.inf
        ended = self._ambient.monotonic()
        self._rested = ended + (ended - began)
        for correlation, flow in asked.items():
            flow.looked = ended
            if era == self._era:  # else events may have been missed since
                flow.whole = flow.whole or reached + SKEW <= flow.made
            self._keep(correlation, flow)

    def _wake_all(self) -> None:
        for of in self._watchers.values():
            for changed in of:
                changed.set()


def _attributes(record: Record) -> tuple[Mapping[str, str], bytes] | None:
    """Return the attributes and the data of a record that is of a flow; None for any other."""
    headers = record.headers
    correlation = headers.get("correlationid")
    if correlation is not None:
        return (headers, record.data or b"") if correlation.startswith(FLOW) else None
    kind = headers.get("datacontenttype") or headers.get("content-type") or ""
    if not kind.startswith(STRUCTURED):
        return None
    try:
        opened = open_record(headers, record.data)
    except InvalidEvent:
        return None
    if opened.correlationid is None or not opened.correlationid.startswith(FLOW):
        return None
    return opened.headers(), opened.data


def _event(
    record: Record, found: Mapping[str, str], data: bytes, show: frozenset[str]
) -> FlowEvent | None:
    """Return what may be told of a record; None if it is no event, or has absurd attributes."""
    kind, identity, source = found.get("type"), found.get("id"), found.get("source")
    subject, time = found.get("subject"), found.get("time")
    if not kind or not identity or not source:
        return None
    if len(kind) + len(identity) + len(source) + len(subject or "") > _LONGEST:
        return None
    return FlowEvent(
        type=sys.intern(kind),
        id=identity,
        source=sys.intern(source),
        subject=subject,
        time=time if time and len(time) <= _LONGEST_TIME else format_time(record.time),
        at=record.time,
        fields=_shown(data, show) if show and 0 < len(data) <= LARGEST else _NO_FIELDS,
    )


def _shown(data: bytes, show: frozenset[str]) -> Mapping[str, Any]:
    try:
        decoded = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _NO_FIELDS
    if not isinstance(decoded, dict):
        return _NO_FIELDS
    return {name: value for name, value in decoded.items() if name in show and _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST
    return value is None or isinstance(value, int | float)


_NO_FIELDS: Mapping[str, Any] = {}
