"""Lets a view begin behind what retention has deleted, where a backfill stands for it.

A backfill stands for what was published up to the ends that its owner's stream had when it began.
The view begins there if all that came afterwards is still in the stream: then what the backfill
has announced is what was true at that moment, and every later change comes behind it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from oyez import tables
from oyez.errors import ConfigurationError, HistoryMissing, OyezError
from oyez.handler import Handler
from oyez.inspection.drift import kind_of
from oyez.ports import BEGINNING, Broker, Changes, Position, Store, Writes
from oyez.project import Project
from oyez.runtime.audit import Actor, audited
from oyez.runtime.backfill import Walked, walked_for
from oyez.runtime.views import Begun, begun_mark, versions_in
from oyez.view import ViewType

_PAGE = 1_000

Place = tuple[str, int]


async def begin(project: Project, service: str, view: str, *, by: Actor) -> dict[Place, Position]:
    """Let the version of a view in the code begin where backfills for its service did.

    Returns the partitions with their new positions; none where nothing is missing. Running
    replicas take them over within seconds. Raises HistoryMissing, which says what to do, where no
    finished backfill stands for what is missing; ConfigurationError, BrokerError and StoreError.
    """
    code = project.service(project.settings(service).name)
    kind = kind_of(code, view)
    handler = code.views[kind]
    async with project.opened_store(service) as store, project.opened_broker(service) as broker:
        known = versions_in(await store.fetch(tables.VIEW_MARKS, {})).get(view)
        if known is None or kind.version not in known.tables:
            raise ConfigurationError(
                f"version {kind.version} of {view} has no table yet: start {service} first, "
                "or build it with `oyez view build`"
            )
        missing = await lost(project, handler, kind, store, broker)
        if not missing:
            return {}
        begins: dict[Place, Position] = {}
        until: dict[str, list[Position]] = {}
        for stream in sorted({stream for stream, _ in missing}):
            walked = await _stands_for(project, service, handler, stream, missing)
            for (of, partition), count in missing.items():
                if of == stream:
                    begins[of, partition] = _position(walked, of, partition, count)
            until[stream] = list(await broker.ends(stream))
        await _save(store, kind, begins, until, project.ambient.now(), by)
    return begins


async def lost(
    project: Project, handler: Handler, kind: ViewType, store: Store, broker: Broker
) -> dict[Place, int]:
    """Return the partitions that were never read and lack their first records, with the number."""
    read = {
        (row["stream"], row["partition"])
        for row in await store.fetch(tables.CURSORS, {"reader": kind.name})
        if row["position"] != BEGINNING
    }
    return {
        (stream, partition): start
        for stream in await broker.streams()
        if handler.subscribes(stream, project.config.system.name)
        for partition, start in enumerate(await broker.starts(stream))
        if start and (stream, partition) not in read
    }


async def _stands_for(
    project: Project,
    service: str,
    handler: Handler,
    stream: str,
    missing: Mapping[Place, int],
) -> Walked:
    """Return the finished backfills of a stream as one: all that its owner offers to the view."""
    count = sum(records for (of, _), records in missing.items() if of == stream)
    gone = f"retention has deleted the first {count} records of {stream}"
    owner = stream.removeprefix(f"{project.config.system.name}.")
    if owner not in project.config.services:
        raise HistoryMissing(
            f"{gone}, and no service of {project.config.path} publishes there, which could "
            "announce them anew"
        )
    if project.site(project.broker_url(owner)) != project.site(project.broker_url(service)):
        raise HistoryMissing(
            f"{gone}, and {owner} publishes on another broker, whose positions are others: move "
            f"the view to a service on that one"
        )
    wanted = {event.name for event in handler.events}
    code, _ = project.services(owner)
    offered = {event for each in code.values() for event in each.backfills}
    async with project.opened_store(owner) as store:
        walked = await walked_for(store, service)
        needed = (offered or set(walked)) & wanted
        if not needed:
            raise HistoryMissing(
                f"{gone}, and {owner} offers no backfill of an event that the view applies: "
                "declare one there with @service.backfill"
            )
        for event in sorted(needed):
            if event not in walked or not walked[event].done:
                raise HistoryMissing(
                    f"{gone}: let `oyez backfill {owner} {event} --for {service}` end first"
                )
        waiting = await _waiting(store, service, needed)
    if waiting:
        raise OyezError(
            f"{waiting} events of the backfill wait in the outbox of {owner}: try again when it "
            "has published them; see `oyez lag`"
        )
    begins = zip(*(walked[event].begins for event in needed), strict=False)
    return Walked(begins=[min(each) for each in begins], done=True)


async def _waiting(store: Store, recipient: str, types: set[str]) -> int:
    """Return the number of events in the outbox that are addressed to the recipient."""
    after = waiting = 0
    while True:
        page = await store.fetch(tables.ANNOUNCED, {"after": after, "limit": _PAGE})
        for row in page:
            headers = msgspec.json.decode(row["headers"], type=dict[str, str])
            waiting += headers.get("recipient") == recipient and headers["type"] in types
        if len(page) < _PAGE:
            return waiting
        after = page[-1]["seq"]


def _position(walked: Walked, stream: str, partition: int, missing: int) -> Position:
    """Return where the backfill began. Raises HistoryMissing where that is deleted by now."""
    begins = walked.begins
    position = begins[partition] if partition < len(begins) else BEGINNING
    if position < missing:
        raise HistoryMissing(
            f"retention has deleted records of {stream}[{partition}] that came after the backfill "
            f"began, up to {missing}, where it began at {position}: run the backfill again"
        )
    return position


async def _save(
    store: Store,
    kind: ViewType,
    begins: Mapping[Place, Position],
    until: Mapping[str, list[Position]],
    now: float,
    by: Actor,
) -> None:
    after = {"partitions": len(begins), "version": kind.version}
    writes: Writes = [audited(by, "view.begin", f"view {kind.view}", now, after=after)]
    for (stream, partition), position in begins.items():
        cursor = {"stream": stream, "partition": partition, "reader": kind.name}
        writes.append((tables.ADD_CURSOR, [cursor]))
        writes.append((tables.BEGIN_AT, [{**cursor, "position": position}]))
    mark = msgspec.json.encode(Begun(until=dict(until))).decode()
    writes.append((tables.SET_MARK, [{"name": begun_mark(kind.name), "mark": mark, "now": now}]))
    await store.begin().commit(Changes(writes=writes, time=now))
