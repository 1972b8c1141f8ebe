"""What each service made of events, or has yet to make of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from oyez import tables
from oyez.config import BridgeSettings
from oyez.inspection.history import Place
from oyez.ports import BEGINNING, Parameters, Position, Row, Store
from oyez.service import Service
from oyez.tables import Inbox, Letter

_ASKED = 200


class Reaction(msgspec.Struct, frozen=True, kw_only=True):
    """What one handler made of an event."""

    service: str
    handler: str
    state: str
    """``handled``, ``retrying``, ``waiting`` (behind another event of its key), ``due``,
    ``pending`` (the service has not read that far), ``dead`` or ``discarded``."""
    bridge: str | None = None
    """The bridge that has yet to carry a pending event towards the service's broker."""
    seen: float | None = None
    """When it was handled, or where attempts follow each other, when the first one began."""
    attempts: int = 0
    """How many were made."""
    due: float | None = None
    error: str | None = None
    letter: int | None = None
    """The number of its newest dead letter."""
    redriven: bool = False
    history: tuple[dict[str, Any], ...] = ()
    """What became of each attempt: ``attempt``, ``at`` (seconds since 1970) and ``error``."""


Cursors = Mapping[Place, Position]
"""How far someone has read, by stream and partition."""


class Bridge(NamedTuple):
    """A bridge, and how far it has carried."""

    settings: BridgeSettings
    source: str
    """The site of its source."""
    target: str
    """The site of its target."""
    cursors: Cursors


class Stand(NamedTuple):
    """Where an event stands on one broker, and since when (seconds since 1970)."""

    partition: int
    position: Position
    time: float


class Node(msgspec.Struct, kw_only=True):
    """One event while a journey is put together."""

    id: str
    source: str
    type: str
    key: str | None
    time: float
    correlation: str
    causation: str | None
    stream: str
    places: dict[str, Stand] = {}
    """By the site of each broker that has it."""
    state: str = "published"
    due: float | None = None
    reactions: list[Reaction] = []
    children: list[Node] = []


class Reader(NamedTuple):
    """A service as far as it matters for what it has still to read."""

    system: str
    name: str
    service: Service | None
    """None where its code can't be imported."""
    broker: str
    """The site of its broker."""
    bridges: list[Bridge]


async def react(reader: Reader, store: Store | None, nodes: Mapping[tuple[str, str], Node]) -> None:
    """Add to each event what the service made of it, or has yet to make.

    ``store`` is None where the service never ran; ``nodes`` are by id and source.
    Raises StoreError.
    """
    name = reader.name
    cursors: Cursors = {}
    found: dict[tuple[str, str, str], Reaction] = {}
    if store is not None:
        # The position first: an event handled meanwhile then has its row, so it isn't pending.
        cursors = await read_cursors(store)
        async for row in _rows(store, tables.HANDLED_BY, nodes):
            found[row["event_id"], row["source"], row["handler"]] = _inbox(name, row)
        async for row in _rows(store, tables.DEAD_OF, nodes):
            identity = (row["event_id"], row["source"], row["handler"])
            reaction = found.get(identity) or Reaction(
                service=name, handler=row["handler"], state="dead"
            )
            found[identity] = _bury(reaction, row)
    for (event_id, source, _), reaction in found.items():
        node = nodes.get((event_id, source))
        if node is not None:
            node.reactions.append(reaction)
    for node in nodes.values():
        known = {each.handler for each in node.reactions if each.service == name}
        node.reactions += [
            each for each in _pending(reader, node, cursors) if each.handler not in known
        ]


def _pending(reader: Reader, node: Node, cursors: Cursors) -> Iterator[Reaction]:
    """What the service would do with the event, had it read it."""
    if reader.service is None:
        return
    place = node.places.get(reader.broker)
    bridge = None
    if place is None:
        bridge = _awaited(node, reader.broker, reader.bridges)
        if bridge is None:
            return
    elif cursors.get((node.stream, place.partition), BEGINNING) >= place.position:
        return
    for handler in reader.service.handlers:
        if handler.wants(node.type, node.stream, reader.system):
            yield Reaction(
                service=reader.name, handler=handler.name, state="pending", bridge=bridge
            )


def _awaited(node: Node, broker: str, bridges: list[Bridge]) -> str | None:
    """The bridge that has yet to carry the event, to this broker or to one on the way there."""
    targets = [broker]
    for target in targets:  # which grows by the brokers that lie before those
        for bridge in bridges:
            if bridge.target != target or not bridge.settings.carries(node.stream):
                continue
            place = node.places.get(bridge.source)
            if place is None:
                if bridge.source not in targets:
                    targets.append(bridge.source)
            elif bridge.cursors.get((node.stream, place.partition), BEGINNING) < place.position:
                return bridge.settings.name
    return None


async def _rows(
    store: Store, sql: str, nodes: Mapping[tuple[str, str], Node]
) -> AsyncIterator[Row]:
    ids = sorted({identity for identity, _ in nodes})
    for start in range(0, len(ids), _ASKED):
        parameters: Parameters = {
            f"id{index}": each for index, each in enumerate(ids[start : start + _ASKED])
        }
        names = ", ".join(f":{name}" for name in parameters)
        for row in await store.fetch(sql.replace("{ids}", names), parameters):
            yield row


def _inbox(service: str, row: Row) -> Reaction:
    past = msgspec.json.decode(row["history"]) if row["history"] else []
    failed = max(row["attempt"] or 0, len(past))
    state = "handled"
    if row["state"] == Inbox.BEHIND:
        state = "waiting"
    elif row["state"] == Inbox.DUE:
        state = "retrying" if failed else "due"
    return Reaction(
        service=service,
        handler=row["handler"],
        state=state,
        seen=row["seen"],
        attempts=failed + (row["state"] == Inbox.HANDLED),
        due=row["due"],
        error=past[-1].get("error") if past else None,
        history=tuple(past),
    )


def _bury(reaction: Reaction, row: Row) -> Reaction:
    """Add what a dead letter says; a redriven one is told by the inbox, which it went back to."""
    if row["state"] == Letter.REDRIVEN:
        return msgspec.structs.replace(reaction, letter=row["id"], redriven=True)
    return msgspec.structs.replace(
        reaction,
        letter=row["id"],
        state="discarded" if row["state"] == Letter.DISCARDED else "dead",
        seen=row["time"],
        attempts=row["attempts"],
        due=None,
        error=row["reason"],
        history=tuple(msgspec.json.decode(row["history"])),
    )


async def read_cursors(store: Store) -> Cursors:
    """Return how far the store's owner has read. Raises StoreError."""
    rows = await store.fetch(tables.CURSORS, {"reader": ""})
    return {(row["stream"], row["partition"]): row["position"] for row in rows}
