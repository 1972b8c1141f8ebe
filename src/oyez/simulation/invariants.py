"""What must hold of every system, without a line of code of its users."""

from __future__ import annotations

import asyncio
import inspect
import sysconfig
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import oyez
from oyez.ports import Changes
from oyez.runtime.handlers import Handlers
from oyez.schedule import EVERY
from oyez.simulation.checks import Check, fault_now
from oyez.simulation.loop import actor
from oyez.simulation.stage import Stage
from oyez.simulation.store import describe
from oyez.simulation.variables import Globals
from oyez.simulation.world import Node
from oyez.spans import here
from oyez.tables import Inbox
from oyez.transaction import Transaction

_PENDING = f"""select
 (select count(*) from oyez_outbox where due <= :now) as outbox,
 (select count(*) from oyez_outbox where due > :now) as later,
 (select count(*) from oyez_timer where kind <> '{EVERY}') as timers,
 (select count(*) from oyez_inbox where state > {Inbox.HANDLED:d}) as parked"""
_OTHERS = (f"{Path(oyez.__file__).parent}/", sysconfig.get_paths()["purelib"])


class Invariants:
    """The built-in checks of one run."""

    def __init__(self, run: Stage, allowed: Set[str], always: Sequence[Check]) -> None:
        """``allowed`` and ``always`` are those of the `Sim`, filled by the scenario."""
        self.failures: list[str] = []
        """What did not hold, so far."""
        self._run = run
        self._allowed = allowed
        self._always = always
        self._order: dict[tuple[str, str, str, int, str], int] = {}
        self._announced: dict[str, str] = {}
        """The events that were announced in a commit, by id, each with its type."""
        self._rows: dict[tuple[str, str], list[tuple[int, str]]] = {}
        """The outbox rows of each stream and key, each with its event's id."""
        self._left: list[tuple[asyncio.Task[Any], Transaction, Node]] = []
        self._handlers = {
            each.name: Handlers(run.plan.system, each.name, each.handlers)
            for each in run.plan.services
        }
        self._root = f"{run.plan.root.resolve()}/"
        run.loop.created = self._created

    # -- while it runs -----------------------------------------------------------------------------

    def committed(self, node: Node | None, changes: Changes) -> None:
        """Look at a commit that took effect."""
        if node is None:
            return
        run = self._run
        if changes.handled or changes.settled or changes.announced or changes.dead:
            run.world.tell(node.name, f"commit of {describe(changes)}")
        for number, each in enumerate(changes.announced):
            if not each.due:
                self._announced[each.headers["id"]] = each.headers["type"]
                if changes.stored is not None and each.key is not None:
                    rows = self._rows.setdefault((each.stream, each.key), [])
                    rows.append((changes.stored + number, each.headers["id"]))
        claim = changes.claim
        if claim is not None:
            epochs = run.databases[node.service].epochs
            if claim.epoch < epochs.get((claim.stream, claim.partition, claim.reader), 0):
                self.failures.append(
                    f"a replica of {node.service} committed for {claim.stream}[{claim.partition}], "
                    "which another had taken over"
                )
        doing = here.get()
        inside = isinstance(doing, Transaction) and doing.cause is not None
        if claim is None and inside and "own commit" not in self._allowed:
            self.failures.append(
                f"a handler of {node.service} commits a transaction of its own: when it is "
                "repeated, that is done twice; take a Transaction or an After as a parameter"
            )
        if claim is None or not claim.reader:
            done = [(event_id, handler) for event_id, _, handler in changes.handled]
            done += [(each.event_id, each.handler) for each in changes.settled]
            for event_id, handler in done:
                self._look_at_order(node.service, handler, event_id)
                self._look_at_tasks(node.service, handler, event_id)
        for check in self._always:
            if why := fault_now(check):
                self.failures.append(why)

    def _look_at_order(self, service: str, name: str, event_id: str) -> None:
        place = self._run.log.places.get(event_id)
        handlers = self._handlers[service]
        if place is None or name not in handlers or "order" in self._allowed:
            return
        stream, partition, position, key = place
        if key is None or not handlers[name].ordered:
            return
        last = self._order.get((service, name, stream, partition, key), 0)
        if position < last:
            self.failures.append(
                f"{service}.{name} handled events of key {key} out of their order in {stream}"
            )
        self._order[service, name, stream, partition, key] = max(position, last)

    def _created(self, task: asyncio.Task[Any]) -> None:
        doing = here.get()
        if not isinstance(doing, Transaction) or doing.cause is None:
            return
        coroutine = task.get_coro()
        if inspect.iscoroutine(coroutine):
            file = coroutine.cr_code.co_filename
            if file.startswith(self._root) and not file.startswith(_OTHERS):
                node = _node()
                if node is not None:
                    self._left.append((task, doing, node))

    def _look_at_tasks(self, service: str, name: str, event_id: str) -> None:
        for task, doing, node in self._left:
            if node.service == service and doing.cause == event_id and not task.done():
                if "tasks" in self._allowed or node.dead:
                    continue
                self.failures.append(
                    f"{service}.{name} has left a task behind ({task.get_coro().__qualname__}): "  # type: ignore[union-attr]
                    "a crash after the commit loses what it does; await it, or publish an event"
                )

    # -- at rest -----------------------------------------------------------------------------------

    def busy(self) -> tuple[str, bool]:
        """Return what has still to be done, and whether anything is due later."""
        run = self._run
        later = False
        for name, database in run.databases.items():
            (row,) = database.query(_PENDING, {"now": run.ambient.now()})
            later = later or bool(row["later"] or row["timers"])
            if row["outbox"]:
                return f"{name} has {row['outbox']} events in its outbox", later
            if row["parked"]:
                return f"{name} has {row['parked']} parked events", later
        missing = self._unhandled()
        return (missing[0] if missing else ""), later

    def at_rest(self) -> None:
        """Look at everything once."""
        run = self._run
        published = run.log.places.keys()
        for event_id, kind in self._announced.items():
            if event_id not in published:
                self.failures.append(f"{kind} {event_id[-8:]} was announced and never published")
        self.failures += self._unhandled()
        for (stream, key), rows in self._rows.items():
            places = [run.log.places[each] for _, each in sorted(rows) if each in published]
            positions = [position for _, _, position, _ in places]
            if positions != sorted(positions) and "order" not in self._allowed:
                self.failures.append(f"events of key {key} were published out of order in {stream}")
        if "dead" not in self._allowed:
            for name, database in run.databases.items():
                for row in database.query(
                    "select type, handler, reason from oyez_dead where state = 'dead'"
                ):
                    where = row["handler"] or "an unreadable event"
                    self.failures.append(
                        f"{name} gave up on {row['type']} ({where}): {row['reason']}"
                    )

    def at_end(self, variables: Globals) -> None:
        """Look at what a process would have lost when it died."""
        run = self._run
        if "arguments" not in self._allowed:
            self.failures += run.calls.repeated[:1]
        for name in variables.changed():
            if name not in self._allowed:
                self.failures.append(
                    f"{name} was changed while events were handled: a restart loses it, and other "
                    "replicas don't see it; keep it in a State or in the store"
                )

    def _unhandled(self) -> list[str]:
        run = self._run
        found = []
        for name, handlers in self._handlers.items():
            database = run.databases[name]
            done = {
                (row["event_id"], row["handler"])
                for row in database.query(
                    "select event_id, handler from oyez_inbox where reader = ''"
                    " union select event_id, handler from oyez_dead"
                )
            }
            for stream, partitions in run.log.logs.items():
                table = handlers.of(stream)
                if not table:
                    continue
                for log in partitions:
                    for record in log:
                        headers = record.headers
                        if headers.get("recipient", name) != name:
                            continue
                        event_id = headers.get("id", "")
                        for handler in table.get(headers.get("type", ""), ()):
                            if (event_id, handler.name) in done or (event_id, "") in done:
                                continue
                            found.append(
                                f"{name}.{handler.name} has not handled {headers.get('type')} "
                                f"{event_id[-8:]} of key {record.key}"
                            )
        return found


def _node() -> Node | None:
    found = actor.get()
    return found if isinstance(found, Node) else None
