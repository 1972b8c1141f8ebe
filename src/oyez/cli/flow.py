"""``oyez flow ID``: the journey of an order, from the request that began it, over all services."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import click
import msgspec
from rich.text import Text
from rich.tree import Tree

from oyez.cli.invocation import ask_brokers, json_option, opened_brokers, run_async
from oyez.cli.printing import console, is_terminal, print_json, warn
from oyez.config import BridgeSettings
from oyez.endpoint import redact
from oyez.envelope import parse_time
from oyez.errors import InvalidEvent, OyezError, StoreError
from oyez.inspection import history
from oyez.inspection.form import escape, span, utc_time
from oyez.ports import BEGINNING, Broker, Parameters, Position, Record, Row, Store
from oyez.project import NotCreated, Project
from oyez.service import Service

JOURNEYS = 50
"""Journeys that are shown, the newest; a key may have many."""
EVENTS = 5_000
"""Events that are kept in memory and shown, the first of each journey."""
DEEPEST = 60
"""Deeper events stand at this depth; their causation id still tells what led to them."""

_ASKED = 200
_PAGE = 500
_ID_END = re.compile(r"[0-9a-f-]{8,36}")
_OUTBOX = """select seq, due, stream, headers from oyez_outbox where seq > :after
 order by seq limit :limit"""
_INBOX = """select event_id, source, handler, seen, state, position, due, attempt, history
 from oyez_inbox where event_id in ({ids})"""
_DEAD = """select id, event_id, source, handler, reason, attempts, time, state, note, history
 from oyez_dead where event_id in ({ids}) order by id"""
_CURSORS = "select stream, partition, position from oyez_cursor"


class Reaction(msgspec.Struct, kw_only=True):
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
    history: list[dict[str, Any]] = []


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where an event stands on one broker, and since when."""

    partition: int
    position: Position
    time: float


class Node(msgspec.Struct, kw_only=True):
    """One event of a journey."""

    id: str
    source: str
    type: str
    key: str | None
    time: float
    correlation: str
    causation: str | None
    stream: str
    places: dict[str, Place] = {}
    """By the URL of each broker that has it: first where it was announced, then copies by time."""
    state: str = "published"
    """Or ``outbox``: not on the broker yet, or ``delayed``: not before ``due``."""
    due: float | None = None
    reactions: list[Reaction] = []
    children: list[Node] = []


Cursors = Mapping[history.Place, Position]
"""How far someone has read, by stream and partition."""
Bridges = list[tuple[BridgeSettings, Cursors]]

Journey = tuple[str, list[Node]]
"""A correlation id and the events that began what it names."""


@click.command("flow")
@click.argument("identity", metavar="ID")
@json_option
def command(identity: str, as_json: bool) -> None:
    """Show the journey that ID belongs to, as a tree: what happened, when, and what came of it.

    ID is a correlation id, an event id (or its last 8 characters, as `oyez tail` shows), or a
    subject, such as an order's id.
    """
    project = Project.open()
    services, failed = project.services()
    for name, reason in failed.items():
        warn(f"{name} can't be imported, so what it has not handled yet is unknown: {reason}")
    journeys, cut = run_async(_trace(project, identity, services))
    if not journeys:
        days = project.config.system.retention_days
        raise OyezError(
            f"nothing is known of {identity!r}: expected a correlation id, an event id or a "
            f"subject of the last {days:g} days; `oyez tail --from-start` lists them"
        )
    if as_json:
        print_json(_as_value(identity, journeys, cut))
        return
    names = {place: each.name for place, each in project.brokers.items()}
    for journey in journeys:
        _print(
            journey,
            project.config.system.name,
            names if len(names) > 1 else {},
            project.ambient.now(),
        )
    if cut:
        warn(f"there is more: {JOURNEYS} journeys and {EVENTS} events are shown at most")


async def _trace(
    project: Project, identity: str, services: dict[str, Service]
) -> tuple[list[Journey], bool]:
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(opened_brokers(project))
        brokers = await _with_history(project, opened)
        stores: dict[str, Store | None] = {}
        for name in project.config.services:
            try:
                stores[name] = await stack.enter_async_context(project.opened_store(name))
            except NotCreated:
                stores[name] = None  # it never ran
            except StoreError as error:
                warn(f"{name}: {error}")
        search = _Search(identity)
        brokers, short = await _look(project, brokers, stores, search.match)
        for gap in history.deleted(short):
            warn(str(gap))
        if not search.found:
            return [], False
        chosen, cut = search.chosen()
        # Before the brokers are looked at again: what a bridge had passed by then and is not on
        # the other side has been there, and retention has deleted it.
        bridges = await _bridges(project)
        collected = _Collected(chosen)
        await _look(project, brokers, stores, collected.take)
        nodes = collected.nodes
        _order_places(project, nodes)
        system = project.config.system.name
        for name, store in stores.items():
            reader = _Reader(
                system, name, services.get(name), project.place(project.broker_url(name)), bridges
            )
            try:
                await _react(reader, store, nodes)
            except StoreError as error:
                warn(f"{name}: {error}")
    journeys = [
        (correlation, _roots([node for node in nodes.values() if node.correlation == correlation]))
        for correlation in chosen
    ]
    return journeys, cut or collected.cut


async def _with_history(project: Project, opened: Mapping[str, Broker]) -> dict[str, Broker]:
    async def check(url: str) -> Broker:
        if not opened[url].capabilities.history:
            raise OyezError(
                f"{url.partition(':')[0]} keeps no history, so the "
                "journey of what it has delivered can't be told: `oyez dead list` shows what "
                "failed, and the lines that handlers log name the correlation id"
            )
        return opened[url]

    return await ask_brokers(project, opened, check)


async def _bridges(project: Project) -> Bridges:
    """Every bridge of which it is known how far it has carried."""
    found: Bridges = []
    for name, settings in project.config.bridges.items():
        cursors: Cursors = {}
        try:
            async with project.opened_bridge_store(name) as store:
                cursors = await _cursors(store)
        except NotCreated:
            pass  # it never ran
        except StoreError as error:
            warn(f"what bridge {name} has not carried over yet can't be told: {error}")
            continue
        found.append((settings, cursors))
    return found


async def _cursors(store: Store) -> Cursors:
    rows = await store.fetch(_CURSORS, {})
    return {(row["stream"], row["partition"]): row["position"] for row in rows}


async def _look(
    project: Project,
    brokers: Mapping[str, Broker],
    stores: Mapping[str, Store | None],
    look: Callable[[Node], None],
) -> tuple[dict[str, Broker], list[history.Place]]:
    """Show every event; the brokers that could be read, and the places that ended early."""
    # Outboxes first: what moves from there to the broker meanwhile is seen twice, never missed.
    for store in stores.values():
        if store is not None:
            await _look_at_outbox(store, look)
    short: list[history.Place] = []

    async def scan(url: str) -> Broker:
        broker = brokers[url]
        places = await history.ends(broker, await broker.streams())
        short.extend(await history.scan(broker, places, lambda r: look(_published(r, url))))
        return broker

    return await ask_brokers(project, brokers, scan), short


async def _look_at_outbox(store: Store, look: Callable[[Node], None]) -> None:
    after = 0
    while True:
        rows = await store.fetch(_OUTBOX, {"after": after, "limit": _PAGE})
        for row in rows:
            look(_announced(row))
        if len(rows) < _PAGE:
            return
        after = rows[-1]["seq"]


def _published(record: Record, url: str) -> Node:
    found = history.attributes(record)
    node = _node(found, record.stream, record.time)
    node.places[url] = Place(partition=record.partition, position=record.position, time=record.time)
    if node.key is None:
        node.key = record.key
    return node


def _announced(row: Row) -> Node:
    headers = msgspec.json.decode(row["headers"], type=dict[str, str])
    node = _node(headers, row["stream"], row["due"])
    node.state = "delayed" if row["due"] else "outbox"
    node.due = row["due"] or None
    return node


def _node(found: Mapping[str, str], stream: str, otherwise: float) -> Node:
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
    )


def _moment(text: str | None, otherwise: float) -> float:
    try:
        return otherwise if text is None else parse_time(text).timestamp()
    except (InvalidEvent, ValueError, OverflowError):
        return otherwise


class _Search:
    """Finds the correlation ids that something called ``identity`` belongs to."""

    def __init__(self, identity: str) -> None:
        self.found: dict[str, float] = {}
        """Each with the time of the newest event that matched."""
        self._identity = identity
        self._ending = identity if _ID_END.fullmatch(identity) else None

    def match(self, node: Node) -> None:
        wanted = self._identity
        if (
            wanted in (node.id, node.correlation, node.key)
            or (self._ending is not None and node.id.endswith(self._ending))
        ) and node.correlation:
            self.found[node.correlation] = max(node.time, self.found.get(node.correlation, 0.0))

    def chosen(self) -> tuple[list[str], bool]:
        newest = sorted(self.found, key=lambda correlation: self.found[correlation])
        return newest[-JOURNEYS:], len(newest) > JOURNEYS


class _Collected:
    """The events of the chosen journeys, each once, though it may stand on brokers many times."""

    def __init__(self, chosen: list[str]) -> None:
        self.nodes: dict[tuple[str, str], Node] = {}
        self.cut = False
        self._chosen = frozenset(chosen)

    def take(self, node: Node) -> None:
        if node.correlation not in self._chosen:
            return
        identity = (node.id, node.source)
        there = self.nodes.get(identity)
        if there is None and len(self.nodes) >= EVENTS:
            self.cut = True
        elif there is None or there.state != "published":
            self.nodes[identity] = node
        else:
            for url, place in node.places.items():
                there.places.setdefault(url, place)


def _order_places(project: Project, nodes: Mapping[tuple[str, str], Node]) -> None:
    """Put the publisher's broker first, or else the one that had the event first."""
    prefix = f"/{project.config.system.name}/"
    homes = {
        f"{prefix}{name}": project.place(project.broker_url(name))
        for name in project.config.services
    }
    for node in nodes.values():
        home = homes.get(node.source)
        places = sorted(node.places.items(), key=lambda each: (each[0] != home, each[1].time))
        node.places = dict(places)


class _Reader(NamedTuple):
    """A service as far as it matters for what it has still to read."""

    system: str
    name: str
    service: Service | None
    broker: str
    bridges: Bridges


async def _react(reader: _Reader, store: Store | None, nodes: dict[tuple[str, str], Node]) -> None:
    name = reader.name
    cursors: Cursors = {}
    found: dict[tuple[str, str, str], Reaction] = {}
    if store is not None:
        # The position first: an event handled meanwhile then has its row, so it isn't pending.
        cursors = await _cursors(store)
        async for row in _rows(store, _INBOX, nodes):
            found[row["event_id"], row["source"], row["handler"]] = _inbox(name, row)
        async for row in _rows(store, _DEAD, nodes):
            identity = (row["event_id"], row["source"], row["handler"])
            reaction = found.setdefault(
                identity, Reaction(service=name, handler=row["handler"], state="dead")
            )
            _bury(reaction, row)
    for (event_id, source, _), reaction in found.items():
        node = nodes.get((event_id, source))
        if node is not None:
            node.reactions.append(reaction)
    for node in nodes.values():
        known = {each.handler for each in node.reactions if each.service == name}
        node.reactions += [
            each for each in _pending(reader, node, cursors) if each.handler not in known
        ]


def _pending(reader: _Reader, node: Node, cursors: Cursors) -> Iterator[Reaction]:
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


def _awaited(node: Node, broker: str, bridges: Bridges) -> str | None:
    """The bridge that has yet to carry the event, to this broker or to one on the way there."""
    targets = [broker]
    for target in targets:  # which grows by the brokers that lie before those
        for bridge, cursors in bridges:
            if bridge.target != target or not bridge.carries(node.stream):
                continue
            place = node.places.get(bridge.source)
            if place is None:
                if bridge.source not in targets:
                    targets.append(bridge.source)
            elif cursors.get((node.stream, place.partition), BEGINNING) < place.position:
                return bridge.name
    return None


async def _rows(store: Store, sql: str, nodes: dict[tuple[str, str], Node]) -> AsyncIterator[Row]:
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
    failed = row["attempt"] or 0
    state = "handled"
    if row["state"] == 1:
        state = "waiting"
    elif row["state"] == 2:
        state = "retrying" if failed else "due"
    return Reaction(
        service=service,
        handler=row["handler"],
        state=state,
        seen=row["seen"],
        attempts=failed + (row["state"] == 0),
        due=row["due"],
        error=past[-1].get("error") if past else None,
        history=past,
    )


def _bury(reaction: Reaction, row: Row) -> None:
    """Add what a dead letter says; a redriven one is told by the inbox, which it went back to."""
    reaction.letter = row["id"]
    if row["state"] == "redriven":
        reaction.redriven = True
        return
    reaction.state = "discarded" if row["state"] == "discarded" else "dead"
    reaction.seen = row["time"]
    reaction.attempts = row["attempts"]
    reaction.due = None
    reaction.error = row["reason"]
    reaction.history = msgspec.json.decode(row["history"])


def _roots(nodes: list[Node]) -> list[Node]:
    """Hang each event under the one that caused it; those that none here caused are returned."""
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
        # Below the deepest level, what an event caused stands beside it.
        under = node if depth < DEEPEST else host
        for child in caused.get(node.id, []):
            if id(child) not in placed:
                placed.add(id(child))
                under.children.append(child)
                waiting.append((child, under, min(depth + 1, DEEPEST)))


# -- printing --------------------------------------------------------------------------------------


def _print(journey: Journey, system: str, brokers: Mapping[str, str], now: float) -> None:
    """``brokers``: names to tell where an event is, by URL; none where that is plain."""
    correlation, roots = journey
    first = min(node.time for node in roots)
    head = Text.assemble((escape(correlation), "bold"), (f"  {utc_time(first)}", "dim"))
    output = console()
    if is_terminal():
        tree = Tree(head, guide_style="dim")
        waiting = [(tree, node) for node in reversed(roots)]
        while waiting:
            parent, node = waiting.pop()
            branch = parent.add(_event(node, system, brokers, first, now))
            for reaction in node.reactions:
                branch.add(_reaction(reaction, first, now))
            waiting += [(branch, child) for child in reversed(node.children)]
        output.print(tree)
        return
    output.print(head)
    pending = [(node, 1) for node in reversed(roots)]
    while pending:
        node, depth = pending.pop()
        output.print(Text("  " * depth).append_text(_event(node, system, brokers, first, now)))
        for reaction in node.reactions:
            output.print(Text("  " * (depth + 1)).append_text(_reaction(reaction, first, now)))
        pending += [(child, depth + 1) for child in reversed(node.children)]


def _event(node: Node, system: str, brokers: Mapping[str, str], first: float, now: float) -> Text:
    text = Text.assemble(
        (f"{_offset(node.time, first)} ", "cyan"),
        (escape(node.type), "bold"),
        f"  {escape(node.source.removeprefix(f'/{system}/'))}",
        (f"  {'-' if node.key is None else escape(node.key)}", ""),
        (f"  {escape(node.id)[-8:]}", "dim"),
    )
    if node.state == "outbox":
        text.append("  in the outbox, not published yet", style="yellow")
    elif node.state == "delayed":
        text.append(f"  delayed, {_until(node.due, now)}", style="yellow")
    elif brokers:
        text.append(f"  on {', '.join(brokers[url] for url in node.places)}", style="dim")
    return text


def _reaction(reaction: Reaction, first: float, now: float) -> Text:
    name = f"{escape(reaction.service)}.{escape(reaction.handler or '(unreadable)')}"
    text = Text.assemble(("→ ", "dim"), name)
    again = ", redriven" if reaction.redriven else ""
    match reaction.state:
        case "handled":
            tries = f" at attempt {reaction.attempts}" if reaction.attempts > 1 else ""
            text.append(f"  handled{tries}{again} {_offset(reaction.seen, first)}", style="green")
        case "pending" if reaction.bridge is not None:
            text.append(f"  not carried over yet (bridge {reaction.bridge})", style="yellow")
        case "pending":
            text.append("  not read yet", style="yellow")
        case "waiting":
            text.append("  waits behind an earlier event of its key", style="yellow")
        case "due":
            text.append(f"  about to run{again}", style="yellow")
        case "retrying":
            text.append(
                f"  failed {reaction.attempts}x{again}, next attempt {_until(reaction.due, now)}: "
                f"{escape(reaction.error or '?')}",
                style="yellow",
            )
        case _:
            text.append(
                f"  {reaction.state}{again}, dead letter {reaction.letter}: "
                f"{escape(reaction.error or '?')}",
                style="bold red" if reaction.state == "dead" else "dim",
            )
    return text


def _offset(moment: float | None, first: float) -> str:
    if moment is None:
        return "?"
    return f"{'-' if moment < first else '+'}{span(abs(moment - first))}"


def _until(due: float | None, now: float) -> str:
    if due is None:
        return "soon"
    return f"in {span(due - now)}" if due > now else "due"


def _as_value(identity: str, journeys: list[Journey], cut: bool) -> dict[str, Any]:
    return {
        "id": identity,
        "cut": cut,
        "journeys": [
            {
                "correlationid": correlation,
                "began": utc_time(min(node.time for node in roots)),
                "events": [_node_value(node, min(n.time for n in roots)) for node in roots],
            }
            for correlation, roots in journeys
        ],
    }


def _node_value(node: Node, first: float) -> dict[str, Any]:
    home = next(iter(node.places.values()), None)
    return {
        "id": node.id,
        "type": node.type,
        "source": node.source,
        "key": node.key,
        "time": utc_time(node.time),
        "offset": round(node.time - first, 6),
        "causationid": node.causation,
        "stream": node.stream,
        "partition": None if home is None else home.partition,
        "position": None if home is None else home.position,
        "places": [
            {"broker": redact(url), "partition": place.partition, "position": place.position}
            for url, place in node.places.items()
        ],
        "state": node.state,
        "due": utc_time(node.due),
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
            for each in node.reactions
        ],
        "events": [_node_value(child, first) for child in node.children],
    }
