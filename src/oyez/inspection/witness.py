"""What one process knows of journeys, from the broker and the store that it has open.

The console asks every process and puts the answers together. Each question is bounded, in time and
in what it returns, and an answer says what was left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from oyez import tables
from oyez.brokers.claim_check import ClaimCheck
from oyez.inspection import history
from oyez.inspection.journey import Collected, Search, look_at_outbox, published, stated
from oyez.inspection.letters import Letter, find_letters
from oyez.inspection.reactions import Cursors, Node, Reaction, Reader, Stand, react, read_cursors
from oyez.inspection.sagas import Instance, InstanceSeen, saga_kinds, sagas_of
from oyez.ports import Broker, Position, Record, Row, Store
from oyez.service import Service

HERE = ""
"""The site of a process's own broker, in the places of the events that it tells of."""
EVENTS = 2_000
"""The limit of events of one journey, and of each kind of rows that a store is searched for."""
FOUND = 20
"""The limit of dead letters and of sagas that are found by an identity."""
KEYS = 50
"""The limit of keys whose sagas are told."""
LOOK = 1.4
"""Seconds for which the history of a broker is searched."""
SKEW = 60.0
"""Seconds by which clocks may differ."""

_VERSION_7 = re.compile(
    r"(?:flow-)?([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
)

Positions = tuple[tuple[str, int, Position], ...]
"""Streams and partitions, each with a position."""


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What the store of a service has of an identity."""

    correlations: dict[str, float]
    """Correlation ids of events that are not settled, each with its newest event's time."""
    letters: tuple[Letter, ...]
    """The newest first."""
    sagas: tuple[Instance, ...]
    cut: bool
    """Whether something was left out."""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What the history of a broker has of an identity, or of a journey."""

    keeps: bool = True
    """False for a broker without history: the rest is empty."""
    correlations: dict[str, float] = {}
    """As in `Known`, of all events."""
    events: tuple[Node, ...] = ()
    ends: Positions = ()
    """What a next look needs not read again."""
    since: float | None = None
    """The time before which events were left out, in seconds since 1970; None if none were."""
    cut: bool = False
    """Whether there are more than `EVENTS`."""
    unread: int = 0
    """Streams that were left out, those of the system last."""


class Recalled(msgspec.Struct, frozen=True, kw_only=True):
    """The events of a journey that a store has: announced, parked, or dead letters."""

    events: tuple[Node, ...]
    cut: bool


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a service in a journey."""

    reactions: tuple[tuple[str, str, tuple[Reaction, ...]], ...]
    """By id and source of each event that it reacts to."""
    sagas: tuple[InstanceSeen, ...]
    """The sagas of the keys of the events."""


async def know(service: Service, store: Store, identity: str) -> Known:
    """Return what a store has of an identity, or of a dead letter's number. Raises StoreError."""
    search = Search(identity)
    whole = await _look(store, search.match)
    letters = await find_letters(service.name, store, identity, limit=FOUND)
    sagas = await sagas_of(service.name, store, saga_kinds(service), [identity])
    return Known(
        correlations=_newest(search),
        letters=tuple(letters),
        sagas=tuple(each.instance for each in sagas[:FOUND]),
        cut=not whole,
    )


async def hear(
    system: str,
    broker: Broker,
    now: float,
    *,
    identity: str = "",
    correlation: str = "",
    after: Positions = (),
) -> Heard:
    """Return what the history has of an identity or of a correlation id, one of both.

    It begins with the newest events and ends after `LOOK` seconds, or where time-ordered ids
    (UUIDs of version 7) tell that nothing can lie before. Raises BrokerError.
    """
    if not broker.capabilities.history:
        return Heard(keeps=False)
    if isinstance(broker, ClaimCheck):
        broker = broker.carrier  # nothing large is fetched to look at headers
    search, collected = Search(identity), Collected([correlation], EVENTS)
    born = _born(identity or correlation, now)

    def look(record: Record) -> None:
        found = history.attributes(record)
        if correlation:
            if correlation in (found.get("correlationid"), found.get("id")):
                collected.take(published(record, HERE))
        elif (
            record.key == identity
            or found.get("id", "").endswith(identity)
            or identity in found.values()
        ):
            search.match(published(record, HERE))

    def floor() -> float:
        return born if search.found or collected.nodes else 0.0

    seen = await history.look_back(
        broker,
        look,
        now=now,
        seconds=LOOK,
        prefix=f"{system}.",
        floor=floor,
        after={(stream, partition): position for stream, partition, position in after},
    )
    return Heard(
        correlations=_newest(search),
        events=tuple(collected.nodes.values()),
        ends=tuple((*place, position) for place, position in seen.ends.items()),
        since=seen.since,
        cut=collected.cut,
        unread=seen.unread,
    )


async def recall(store: Store, correlation: str) -> Recalled:
    """Return the events of a journey that are in a store. Raises StoreError."""
    collected = Collected([correlation], EVENTS)
    whole = await _look(store, collected.take)
    return Recalled(events=tuple(collected.nodes.values()), cut=collected.cut or not whole)


async def take_part(
    system: str,
    service: Service,
    store: Store,
    events: tuple[Node, ...],
    awaited: Mapping[str, str],
) -> Part:
    """Return the reactions of a service to events, and the sagas of their keys.

    The events have their places on the service's broker as `HERE`; ``awaited`` are the bridges that
    have not copied an event yet, by its id. Raises StoreError.
    """
    nodes = {(node.id, node.source): node for node in events[:EVENTS]}

    def bridge(node: Node) -> str | None:
        return awaited.get(node.id)

    await react(Reader(system, service.name, service, HERE, bridge), store, nodes)
    keys = list(dict.fromkeys(node.key for node in nodes.values() if node.key is not None))
    return Part(
        reactions=tuple(
            (node.id, node.source, tuple(node.reactions))
            for node in nodes.values()
            if node.reactions
        ),
        sagas=tuple(await sagas_of(service.name, store, saga_kinds(service), keys[:KEYS])),
    )


async def positions(store: Store) -> Positions:
    """Return how far a service or a bridge has read. Raises StoreError."""
    return tuple((*place, position) for place, position in (await read_cursors(store)).items())


def cursors(told: Positions) -> Cursors:
    """Return positions by stream and partition."""
    return {(stream, partition): position for stream, partition, position in told}


async def _look(store: Store, look: Callable[[Node], None]) -> bool:
    """Pass on the events that a store has whole; return whether those were all."""
    whole = await look_at_outbox(store, look, EVENTS)
    for sql in (tables.WAITING_EVENTS, tables.BURIED_EVENTS):
        rows = await store.fetch(sql, {"limit": EVENTS})
        whole = whole and len(rows) < EVENTS
        for row in rows:
            look(_kept(row))
    return whole


def _kept(row: Row) -> Node:
    headers = msgspec.json.decode(row["headers"], type=dict[str, str])
    node = stated(headers, row["stream"], row["time"])
    if row["stream"] != tables.TIMERS:
        node.places[HERE] = Stand(row["partition"], row["position"], node.time)
    if node.key is None:
        node.key = row["key"]
    return node


def _newest(search: Search) -> dict[str, float]:
    return {correlation: search.found[correlation] for correlation in search.chosen()[0]}


def _born(identity: str, now: float) -> float:
    """Return a time before which no event has this id, or this id in it; 0.0 if unknown."""
    found = _VERSION_7.fullmatch(identity)
    if found is None:
        return 0.0
    return min(int(found[1] + found[2], 16) / 1000, now) - SKEW
