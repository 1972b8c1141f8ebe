"""The reactions of services to events: handled, pending, parked or dead."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from oyez import tables
from oyez.config import BridgeSettings
from oyez.inspection.history import Place
from oyez.ports import BEGINNING, Parameters, Position, Row, Store
from oyez.service import Service
from oyez.tables import Inbox, Letter

_ASKED = 200


class Reaction(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an event in one handler."""

    service: str
    handler: str
    state: str
    """``handled``, ``retrying``, ``waiting`` (after another event of its key), ``due``,
    ``pending`` (the service has not read that far), ``dead`` or ``discarded``."""
    bridge: str | None = None
    """The bridge that has not yet copied a pending event towards the service's broker."""
    seen: float | None = None
    """The time at which it was handled; with several attempts, the start of the first."""
    attempts: int = 0
    """The number of attempts made."""
    due: float | None = None
    error: str | None = None
    outward: bool = False
    """Whether the handler runs outside of the store's transaction, so that it may act elsewhere."""
    letter: int | None = None
    """The number of its newest dead letter."""
    redriven: bool = False
    history: tuple[dict[str, Any], ...] = ()
    """The outcome of each attempt: ``attempt``, ``at`` (seconds since 1970) and ``error``."""


Cursors = Mapping[Place, Position]
"""Positions, by stream and partition."""


class Bridge(NamedTuple):
    """A bridge with its positions."""

    settings: BridgeSettings
    source: str
    """The site of its source."""
    target: str
    """The site of its target."""
    cursors: Cursors


class Stand(NamedTuple):
    """The position of an event on one broker, and its time there (seconds since 1970)."""

    partition: int
    position: Position
    time: float


class Node(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An event during the construction of a journey."""

    id: str
    source: str
    type: str
    key: str | None
    time: float
    correlation: str
    causation: str | None
    stream: str
    places: dict[str, Stand] = {}
    """Its position on each broker, by site."""
    state: str = "published"
    due: float | None = None
    authid: str | None = None
    authtype: str | None = None
    reactions: list[Reaction] = []
    children: list[Node] = []


class Reader(NamedTuple):
    """A service as a reader, for its pending events."""

    system: str
    name: str
    service: Service | None
    """None if its code can't be imported."""
    broker: str
    """The site of its broker."""
    awaited: Callable[[Node], str | None]
    """Returns the bridge that has not yet copied an event towards that broker."""


async def react(reader: Reader, store: Store | None, nodes: Mapping[tuple[str, str], Node]) -> None:
    """Add the service's reactions to each event.

    ``store`` is None if the service never ran; ``nodes`` are by id and source.
    Raises StoreError.
    """
    name = reader.name
    cursors: Cursors = {}
    found: dict[tuple[str, str, str], Reaction] = {}
    if store is not None:
        # Positions first: an event handled meanwhile has an inbox row, so it is not pending.
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
    outward = _outward(reader)
    for node in nodes.values():
        known = {each.handler for each in node.reactions if each.service == name}
        node.reactions += [
            each for each in _pending(reader, node, cursors) if each.handler not in known
        ]
        node.reactions = [
            replace(each, outward=True) if (each.service, each.handler) in outward else each
            for each in node.reactions
        ]


def _outward(reader: Reader) -> set[tuple[str, str]]:
    handlers = () if reader.service is None else reader.service.handlers
    return {(reader.name, each.name) for each in handlers if not each.transactional}


def _pending(reader: Reader, node: Node, cursors: Cursors) -> Iterator[Reaction]:
    """Yield the pending reactions of the service to the event."""
    if reader.service is None:
        return
    place = node.places.get(reader.broker)
    bridge = None
    if place is None:
        bridge = reader.awaited(node)
        if bridge is None:
            return
    elif cursors.get((node.stream, place.partition), BEGINNING) >= place.position:
        return
    for handler in reader.service.handlers:
        if handler.wants(node.type, node.stream, reader.system):
            yield Reaction(
                service=reader.name, handler=handler.name, state="pending", bridge=bridge
            )


def awaited(broker: str, bridges: list[Bridge], node: Node) -> str | None:
    """Return the bridge that has not yet copied an event to this broker or on the way there."""
    targets = [broker]
    for target in targets:  # grows by the brokers before those
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
    """Add a dead letter to the reaction; a redriven one is in the inbox again."""
    if row["state"] == Letter.REDRIVEN:
        return replace(reaction, letter=row["id"], redriven=True)
    return replace(
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
    """Return the positions in a store. Raises StoreError."""
    rows = await store.fetch(tables.CURSORS, {"reader": ""})
    return {(row["stream"], row["partition"]): row["position"] for row in rows}
