"""The journey of an order: its events with their times and handlers, over all services."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import msgspec

from oyez import tables
from oyez.endpoint import redact
from oyez.envelope import parse_time
from oyez.errors import InvalidEvent, NotCreated, OyezError
from oyez.inspection import history
from oyez.inspection.form import utc_time
from oyez.inspection.reach import Gap, Reach, imported, reached
from oyez.inspection.reactions import (
    Bridge,
    Cursors,
    Node,
    Reaction,
    Reader,
    Stand,
    awaited,
    react,
    read_cursors,
)
from oyez.ports import Broker, Position, Record, Row, Store
from oyez.project import Project
from oyez.service import Service
from oyez.tables import Outbox

JOURNEYS = 50
"""The limit of journeys shown, the newest ones; a key may have many."""
EVENTS = 5_000
"""The limit of events kept in memory and shown, the first ones of each journey."""
DEEPEST = 60
"""The depth at which deeper events are shown too; their causation id still names the cause."""

_PAGE = 500
_ID_END = re.compile(r"[0-9a-f-]{8,36}")


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """The position of an event on one broker, and its time there."""

    broker: str
    """The broker's short name."""
    url: str
    """The broker's URL, without its secrets."""
    partition: int
    position: Position
    time: float


class JourneyEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a journey."""

    id: str
    source: str
    type: str
    key: str | None
    time: float
    causation: str | None
    """The id of the event that caused it."""
    stream: str
    places: tuple[Location, ...]
    """Its position on each broker: first the publisher's broker, then copies by time."""
    state: str
    """``published``; or not on the broker yet: ``outbox``, ``delayed`` (not before ``due``),
    ``refused`` (a dead letter of the outbox) or ``held`` (after a refused event of its key)."""
    due: float | None
    reactions: tuple[Reaction, ...]
    events: tuple[JourneyEvent, ...]
    """The events it caused, by time; those deeper than `DEEPEST` are siblings."""
    authid: str | None = None
    """Who began it, as it says."""
    authtype: str | None = None
    """How that is known, as it says."""


class Journey(msgspec.Struct, frozen=True, kw_only=True):
    """The events of one correlation id."""

    correlation: str
    events: tuple[JourneyEvent, ...]
    """The events without a cause among them, by time; at least one."""

    @property
    def began(self) -> float:
        """The time of the first event, in seconds since 1970."""
        return min(event.time for event in self.events)

    @property
    def by(self) -> str | None:
        """Who began it, as its first event says; None where that says nothing."""
        return min(self.events, key=lambda event: event.time).authid


class Journeys(msgspec.Struct, frozen=True, kw_only=True):
    """The journeys of an identity."""

    identity: str
    journeys: tuple[Journey, ...]
    """The newest last."""
    cut: bool
    """Whether there is more than `JOURNEYS` and `EVENTS` allow."""
    answered: bool
    """Whether any broker could be read."""
    gaps: tuple[Gap, ...]
    """The parts of the system that could not be inspected."""


async def trace(project: Project, identity: str) -> Journeys:
    """Return the journeys of ``identity``; empty for an unknown one.

    It is a correlation id, an event id (or the end of one, 8 characters or more) or a subject.
    """
    services, gaps = imported(project, (), ", so its unhandled events are unknown")
    async with reached(project) as reach:
        await reach.ask(_check_history(project))
        story = _Story(project, identity, services, reach, gaps)
        journeys = await story.tell() if reach.brokers else ()
    return Journeys(
        identity=identity,
        journeys=journeys,
        cut=story.cut,
        answered=bool(reach.brokers),
        gaps=(*gaps, *reach.gaps),
    )


def _check_history(project: Project) -> Callable[[str, Broker], Awaitable[None]]:
    async def check(site: str, broker: Broker) -> None:
        if not broker.capabilities.history:
            kind = project.brokers[site].url.partition(":")[0]
            raise OyezError(
                f"{kind} keeps no history, so the journeys of delivered events are unknown: "
                "`oyez dead list` shows failed events, and the log lines of handlers have the "
                "correlation id"
            )

    return check


class _Story:
    """The construction of journeys from brokers and stores."""

    def __init__(
        self,
        project: Project,
        identity: str,
        services: Mapping[str, Service],
        reach: Reach,
        gaps: list[Gap],
    ) -> None:
        """Parts that can't be inspected are added to ``gaps``."""
        self.cut = False
        self._project = project
        self._search = Search(identity)
        self._services = services
        self._reach = reach
        self._gaps = gaps
        self._stores: dict[str, Store | None] = {}
        """The open stores; None for a service that never ran; unreadable ones are left out."""

    async def tell(self) -> tuple[Journey, ...]:
        async with AsyncExitStack() as stack:
            for name in self._project.config.services:
                try:
                    opened = self._project.opened_store(name)
                    self._stores[name] = await stack.enter_async_context(opened)
                except NotCreated:
                    self._stores[name] = None
                except OyezError as error:
                    self._miss(name, error)
            self._gaps += history.deleted(await self._look(self._search.match))
            if not self._search.found:
                return ()
            chosen, cut = self._search.chosen()
            # Before the brokers are read again: a record before the bridge's position that is not
            # on the target was there, and was deleted by retention.
            bridges = await self._bridges()
            collected = Collected(chosen)
            await self._look(collected.take)
            self.cut = cut or collected.cut
            nodes = collected.nodes
            for name, store in list(self._stores.items()):
                try:
                    await react(self._reader(name, bridges), store, nodes)
                except OyezError as error:
                    self._miss(name, error)
        found = [assemble(self._project, correlation, nodes) for correlation in chosen]
        return tuple(journey for journey in found if journey is not None)

    def _reader(self, name: str, bridges: list[Bridge]) -> Reader:
        project = self._project
        broker = project.site(project.broker_url(name))
        system = project.config.system.name
        bridged = partial(awaited, broker, bridges)
        return Reader(system, name, self._services.get(name), broker, bridged)

    def _miss(self, service: str, error: OyezError) -> None:
        self._stores.pop(service, None)
        self._gaps.append(Gap.of("store", service, error, service))

    async def _bridges(self) -> list[Bridge]:
        """Return every bridge with known positions."""
        found: list[Bridge] = []
        for name, settings in self._project.config.bridges.items():
            cursors: Cursors = {}
            try:
                async with self._project.opened_bridge_store(name) as store:
                    cursors = await read_cursors(store)
            except NotCreated:
                pass  # it never ran
            except OyezError as error:
                effect = f"the events that bridge {name} has not copied yet are unknown"
                self._gaps.append(Gap.of("bridge", name, error, effect))
                continue
            site = self._project.site
            source, target = site(settings.source), site(settings.target)
            found.append(Bridge(settings, source, target, cursors))
        return found

    async def _look(self, look: Callable[[Node], None]) -> list[history.Place]:
        """Pass on every event; return the partitions that ended early."""
        # Outboxes first: an event published meanwhile is seen twice, never missed.
        for name, store in list(self._stores.items()):
            try:
                if store is not None:
                    await look_at_outbox(store, look)
            except OyezError as error:
                self._miss(name, error)
        short: list[history.Place] = []

        async def scan(site: str, broker: Broker) -> None:
            ends = await history.ends(broker, await history.streams(broker))
            short.extend(await history.scan(broker, ends, lambda r: look(published(r, site))))

        await self._reach.ask(scan)
        return short


async def look_at_outbox(
    store: Store, look: Callable[[Node], None], most: int | None = None
) -> bool:
    """Pass on the events of an outbox, at most ``most``; return whether those were all.

    Raises StoreError.
    """
    after = looked = 0
    while most is None or looked < most:
        rows = await store.fetch(tables.ANNOUNCED, {"after": after, "limit": _PAGE})
        for row in rows:
            look(_announced(row))
        if len(rows) < _PAGE:
            return True
        looked += len(rows)
        after = rows[-1]["seq"]
    return False


def published(record: Record, site: str) -> Node:
    """Return the event of a record, with its place on the broker of this site."""
    found = history.attributes(record)
    node = stated(found, record.stream, record.time)
    node.places[site] = Stand(record.partition, record.position, record.time)
    if node.key is None:
        node.key = record.key
    return node


def _announced(row: Row) -> Node:
    headers = msgspec.json.decode(row["headers"], type=dict[str, str])
    node = stated(headers, row["stream"], row["due"])
    node.state = _WAITS.get(row["state"]) or ("delayed" if row["due"] else "outbox")
    node.due = row["due"] or None
    return node


_WAITS = {Outbox.REFUSED: "refused", Outbox.BEHIND: "held"}


def stated(found: Mapping[str, str], stream: str, otherwise: float) -> Node:
    """Return the event that these attributes state; its time is by default ``otherwise``."""
    identity = found.get("id", "")
    return Node(
        id=identity,
        source=found.get("source", ""),
        type=found.get("type", "?"),
        key=found.get("partitionkey", found.get("subject")),
        time=_moment(found.get("time"), otherwise),
        correlation=found.get("correlationid") or identity,
        causation=found.get("causationid"),
        stream=stream,
        authid=found.get("authid"),
        authtype=found.get("authtype"),
    )


def _moment(text: str | None, otherwise: float) -> float:
    try:
        return otherwise if text is None else parse_time(text).timestamp()
    except (InvalidEvent, ValueError, OverflowError):
        return otherwise


class Search:
    """The search for the correlation ids of an identity, as `trace` defines it."""

    def __init__(self, identity: str) -> None:
        self.found: dict[str, float] = {}
        """The correlation ids found, each with the time of its newest matching event."""
        self._identity = identity
        self._ending = identity if _ID_END.fullmatch(identity) else None

    def match(self, node: Node) -> None:
        """Look at an event."""
        wanted = self._identity
        if (
            wanted in (node.id, node.correlation, node.key)
            or (self._ending is not None and node.id.endswith(self._ending))
        ) and node.correlation:
            self.found[node.correlation] = max(node.time, self.found.get(node.correlation, 0.0))

    def chosen(self) -> tuple[list[str], bool]:
        """Return the newest `JOURNEYS` correlation ids, the newest last, and whether more exist."""
        newest = sorted(self.found, key=lambda correlation: self.found[correlation])
        return newest[-JOURNEYS:], len(newest) > JOURNEYS


class Collected:
    """The events of the chosen journeys, each once, even if brokers have several copies."""

    def __init__(self, chosen: Iterable[str], most: int | None = None) -> None:
        """``most``: the number of events that are kept, by default `EVENTS`."""
        self.nodes: dict[tuple[str, str], Node] = {}
        """By id and source."""
        self.cut = False
        """Whether there were more."""
        self._chosen = frozenset(chosen)
        self._most = EVENTS if most is None else most

    def take(self, node: Node) -> None:
        """Keep an event if it is of a chosen journey."""
        if node.correlation not in self._chosen:
            return
        identity = (node.id, node.source)
        there = self.nodes.get(identity)
        if there is None and len(self.nodes) >= self._most:
            self.cut = True
        elif there is None or there.state != "published":
            self.nodes[identity] = node
        else:
            for site, stand in node.places.items():
                there.places.setdefault(site, stand)


def assemble(
    project: Project, correlation: str, nodes: Mapping[tuple[str, str], Node]
) -> Journey | None:
    """Return the journey of a correlation id from its events, with their reactions; None without.

    ``nodes`` are by id and source, their places by site.
    """
    of = [node for node in nodes.values() if node.correlation == correlation]
    _order_places(project, of)
    events = tuple(_event(project, root) for root in _roots(of))
    return Journey(correlation=correlation, events=events) if events else None


def _order_places(project: Project, nodes: Iterable[Node]) -> None:
    """Put the publisher's broker first, or else the first broker by time."""
    prefix = f"/{project.config.system.name}/"
    homes = {
        f"{prefix}{name}": project.site(project.broker_url(name))
        for name in project.config.services
    }
    for node in nodes:
        home = homes.get(node.source)
        places = sorted(node.places.items(), key=lambda each: (each[0] != home, each[1].time))
        node.places = dict(places)


def _roots(nodes: list[Node]) -> list[Node]:
    """Attach each event to the one that caused it; return those without a cause here."""
    nodes.sort(key=lambda node: (node.time, node.id))
    by_id = {node.id: node for node in nodes}
    caused: dict[str, list[Node]] = {}
    roots: list[Node] = []
    for node in nodes:
        if node.causation is not None and node.causation in by_id and node.causation != node.id:
            caused.setdefault(node.causation, []).append(node)
        else:
            roots.append(node)
    placed: set[int] = set()
    _hang(roots, caused, placed)
    for node in nodes:
        if id(node) not in placed:  # events that claim to have caused each other
            roots.append(node)
            _hang([node], caused, placed)
    return roots


def _hang(roots: list[Node], caused: Mapping[str, list[Node]], placed: set[int]) -> None:
    waiting: list[tuple[Node, Node, int]] = [(root, root, 0) for root in roots]
    placed.update(id(root) for root in roots)
    while waiting:
        node, host, depth = waiting.pop()
        # Below the deepest level, caused events are siblings of their cause.
        under = node if depth < DEEPEST else host
        for child in caused.get(node.id, []):
            if id(child) not in placed:
                placed.add(id(child))
                under.children.append(child)
                waiting.append((child, under, min(depth + 1, DEEPEST)))


def _event(project: Project, node: Node) -> JourneyEvent:
    known = project.brokers
    places = [
        Location(
            broker=known[site].name,
            url=redact(known[site].url),
            partition=stand.partition,
            position=stand.position,
            time=stand.time,
        )
        for site, stand in node.places.items()
    ]
    return JourneyEvent(
        id=node.id,
        source=node.source,
        type=node.type,
        key=node.key,
        time=node.time,
        causation=node.causation,
        stream=node.stream,
        places=tuple(places),
        state=node.state,
        due=node.due,
        reactions=tuple(node.reactions),
        events=tuple(_event(project, child) for child in node.children),
        authid=node.authid,
        authtype=node.authtype,
    )


def as_value(found: Journeys) -> dict[str, Any]:
    """Return the journeys as a value for JSON; offsets are seconds since each began."""
    return {
        "id": found.identity,
        "cut": found.cut,
        "journeys": [
            {
                "correlationid": journey.correlation,
                "began": utc_time(journey.began),
                "events": [_event_value(event, journey.began) for event in journey.events],
            }
            for journey in found.journeys
        ],
    }


def _event_value(event: JourneyEvent, began: float) -> dict[str, Any]:
    home = event.places[0] if event.places else None
    return {
        "id": event.id,
        "type": event.type,
        "source": event.source,
        "key": event.key,
        "time": utc_time(event.time),
        "offset": round(event.time - began, 6),
        "causationid": event.causation,
        "authid": event.authid,
        "authtype": event.authtype,
        "stream": event.stream,
        "partition": None if home is None else home.partition,
        "position": None if home is None else home.position,
        "places": [
            {"broker": place.url, "partition": place.partition, "position": place.position}
            for place in event.places
        ],
        "state": event.state,
        "due": utc_time(event.due),
        "handlers": [
            {
                "service": each.service,
                "handler": each.handler,
                "state": each.state,
                "bridge": each.bridge,
                "seen": utc_time(each.seen),
                "attempts": each.attempts,
                "due": utc_time(each.due),
                "error": each.error,
                "dead_letter": each.letter,
                "redriven": each.redriven,
                "history": [{**entry, "at": utc_time(entry.get("at"))} for entry in each.history],
            }
            for each in event.reactions
        ],
        "events": [_event_value(child, began) for child in event.events],
    }
