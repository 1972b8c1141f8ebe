"""``oyez flow ID``: the journey of an order, from the request that began it, over all services."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import click
import msgspec
from rich.text import Text
from rich.tree import Tree

from oyez.cli import history
from oyez.cli.printing import console, escape, is_terminal, print_json, span, utc_time, warn
from oyez.cli.project import NotCreated, Project, json_option, run_async
from oyez.envelope import parse_time
from oyez.errors import InvalidEvent, OyezError, StoreError
from oyez.ports import BEGINNING, Broker, Parameters, Position, Record, Row, Store
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
    partition: int | None = None
    position: Position | None = None
    state: str = "published"
    """Or ``outbox``: not on the broker yet, or ``delayed``: not before ``due``."""
    due: float | None = None
    reactions: list[Reaction] = []
    children: list[Node] = []


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
    for journey in journeys:
        _print(journey, project.config.system.name, project.ambient.now())
    if cut:
        warn(f"there is more: {JOURNEYS} journeys and {EVENTS} events are shown at most")


async def _trace(
    project: Project, identity: str, services: dict[str, Service]
) -> tuple[list[Journey], bool]:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(project.opened_broker())
        if not broker.capabilities.history:
            raise OyezError(
                f"{project.config.system.broker.partition(':')[0]} keeps no history, so the "
                "journey of what it has delivered can't be told: `oyez dead list` shows what "
                "failed, and the lines that handlers log name the correlation id"
            )
        stores: dict[str, Store] = {}
        for name in project.config.services:
            try:
                stores[name] = await stack.enter_async_context(project.opened_store(name))
            except NotCreated:
                continue  # it never ran
            except StoreError as error:
                warn(f"{name}: {error}")
        search = _Search(identity)
        history.tell(await _look(broker, stores, search.match))
        if not search.found:
            return [], False
        chosen, cut = search.chosen()
        collected = _Collected(chosen)
        await _look(broker, stores, collected.take)
        nodes = collected.nodes
        for name, store in stores.items():
            try:
                await _react(name, store, services.get(name), nodes)
            except StoreError as error:
                warn(f"{name}: {error}")
    journeys = [
        (correlation, _roots([node for node in nodes.values() if node.correlation == correlation]))
        for correlation in chosen
    ]
    return journeys, cut or collected.cut


async def _look(
    broker: Broker, stores: Mapping[str, Store], look: Callable[[Node], None]
) -> list[history.Place]:
    # Outboxes first: what moves from there to the broker meanwhile is seen twice, never missed.
    for store in stores.values():
        after = 0
        while True:
            rows = await store.fetch(_OUTBOX, {"after": after, "limit": _PAGE})
            for row in rows:
                look(_announced(row))
            if len(rows) < _PAGE:
                break
            after = rows[-1]["seq"]
    places = await history.ends(broker, await broker.streams())

    def published(record: Record) -> None:
        look(_published(record))

    return await history.scan(broker, places, published)


def _published(record: Record) -> Node:
    found = history.attributes(record)
    node = _node(found, record.stream, record.time)
    node.partition, node.position = record.partition, record.position
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
    """The events of the chosen journeys, each once, though it may stand on the broker twice."""

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


async def _react(
    name: str, store: Store, service: Service | None, nodes: dict[tuple[str, str], Node]
) -> None:
    # The position first: an event handled meanwhile then has its row, and is not called pending.
    cursors = {
        (row["stream"], row["partition"]): row["position"]
        for row in await store.fetch(_CURSORS, {})
    }
    found: dict[tuple[str, str, str], Reaction] = {}
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
            Reaction(service=name, handler=handler, state="pending")
            for handler in _pending(service, node, cursors)
            if handler not in known
        ]


def _pending(
    service: Service | None, node: Node, cursors: Mapping[history.Place, Position]
) -> Iterator[str]:
    if service is None or node.partition is None or node.position is None:
        return
    if cursors.get((node.stream, node.partition), BEGINNING) >= node.position:
        return
    for handler in service.handlers:
        reads = handler.stream in (None, node.stream)
        if reads and any(kind.name == node.type for kind in handler.events):
            yield handler.name


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


def _print(journey: Journey, system: str, now: float) -> None:
    correlation, roots = journey
    first = min(node.time for node in roots)
    head = Text.assemble((escape(correlation), "bold"), (f"  {utc_time(first)}", "dim"))
    output = console()
    if is_terminal():
        tree = Tree(head, guide_style="dim")
        waiting = [(tree, node) for node in reversed(roots)]
        while waiting:
            parent, node = waiting.pop()
            branch = parent.add(_event(node, system, first, now))
            for reaction in node.reactions:
                branch.add(_reaction(reaction, first, now))
            waiting += [(branch, child) for child in reversed(node.children)]
        output.print(tree)
        return
    output.print(head)
    pending = [(node, 1) for node in reversed(roots)]
    while pending:
        node, depth = pending.pop()
        output.print(Text("  " * depth).append_text(_event(node, system, first, now)))
        for reaction in node.reactions:
            output.print(Text("  " * (depth + 1)).append_text(_reaction(reaction, first, now)))
        pending += [(child, depth + 1) for child in reversed(node.children)]


def _event(node: Node, system: str, first: float, now: float) -> Text:
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
    return text


def _reaction(reaction: Reaction, first: float, now: float) -> Text:
    name = f"{escape(reaction.service)}.{escape(reaction.handler or '(unreadable)')}"
    text = Text.assemble(("→ ", "dim"), name)
    again = ", redriven" if reaction.redriven else ""
    match reaction.state:
        case "handled":
            tries = f" at attempt {reaction.attempts}" if reaction.attempts > 1 else ""
            text.append(f"  handled{tries}{again} {_offset(reaction.seen, first)}", style="green")
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
    return {
        "id": node.id,
        "type": node.type,
        "source": node.source,
        "key": node.key,
        "time": utc_time(node.time),
        "offset": round(node.time - first, 6),
        "causationid": node.causation,
        "stream": node.stream,
        "partition": node.partition,
        "position": node.position,
        "state": node.state,
        "due": utc_time(node.due),
        "handlers": [
            {
                "service": each.service,
                "handler": each.handler,
                "state": each.state,
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
