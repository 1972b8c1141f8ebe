"""Rules on a system that runs: what its brokers and stores hold, against its declarations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack

import msgspec

from oyez import tables
from oyez.errors import NotCreated, OyezError
from oyez.handler import Handler
from oyez.inspection import history
from oyez.inspection.history import Place
from oyez.inspection.lint.system import Found, System, fault, permitting, stored_by
from oyez.inspection.reach import Gap, reached
from oyez.ports import BEGINNING, Broker, Position, Store
from oyez.project import Project
from oyez.service import Service

INTERNAL = "oyez:"
"""How the kinds of timers begin that are no service's own."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What the store of one service holds."""

    positions: Mapping[str, Mapping[Place, Position]] = {}
    """By reader: the service itself, which is empty, and its views."""
    parked: tuple[str, ...] = ()
    """The handlers that events are parked for."""
    timers: tuple[str, ...] = ()
    """The kinds that timers are set for."""
    versions: Mapping[str, int] = {}
    """The newest version of the rows of each kind of keyed state."""
    stuck: tuple[tuple[str, int, str], ...] = ()
    """Kinds of sagas that are stuck, each with their number and the key of one."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker and the store of one service hold."""

    replicas: int
    partitions: Mapping[str, int] = {}
    """The partitions of every stream of its broker; empty if that is out of reach."""
    starts: Mapping[Place, Position] = {}
    """After which position all records are retained."""
    stored: Kept | None = None
    """None if its store is out of reach."""


async def look(
    project: Project, services: Mapping[str, Service]
) -> tuple[dict[str, Standing], list[Gap]]:
    """Return how the services stand, and what is out of reach. Nothing is created or changed."""
    found: dict[str, Standing] = {}
    async with reached(project) as reach:
        partitions = await reach.ask(lambda site, broker: history.streams(broker))
        starts = await reach.ask(lambda site, broker: _starts(broker, partitions[site]))
        gaps = [gap for gap in reach.gaps if gap.cause != "not-created"]
        for name, service in services.items():
            readers = ["", *(view.name for view in service.views)]
            site = project.site(project.broker_url(name))
            found[name] = Standing(
                replicas=project.settings(name).replicas.most,
                partitions=partitions.get(site, {}),
                starts=starts.get(site, {}),
                stored=await _stored(project, name, readers, gaps),
            )
    return found, gaps


async def _starts(broker: Broker, streams: Iterable[str]) -> dict[Place, Position]:
    if not broker.capabilities.history:
        return {}
    return {
        (stream, partition): start
        for stream in streams
        for partition, start in enumerate(await broker.starts(stream))
    }


async def _stored(
    project: Project, name: str, readers: Iterable[str], gaps: list[Gap]
) -> Kept | None:
    async with AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(project.opened_store(name))
            return await _read(store, readers)
        except NotCreated:
            return Kept()
        except OyezError as error:
            gaps.append(Gap.of("store", name, error, f"the store of {name} is left out"))
            return None


async def _read(store: Store, readers: Iterable[str]) -> Kept:
    positions = {}
    for reader in readers:
        cursors = await store.fetch(tables.CURSORS, {"reader": reader})
        places = {(row["stream"], row["partition"]): row["position"] for row in cursors}
        positions[reader] = places
    stuck = await store.fetch(tables.STUCK_SAGAS, {})
    return Kept(
        positions=positions,
        parked=tuple(r["handler"] for r in await store.fetch(tables.PARKED_HANDLERS, {})),
        timers=tuple(row["kind"] for row in await store.fetch(tables.TIMER_KINDS, {})),
        versions={r["kind"]: r["version"] for r in await store.fetch(tables.KIND_VERSIONS, {})},
        stuck=tuple((row["kind"], row["sagas"], row["key"]) for row in stuck),
    )


# -- the rules -------------------------------------------------------------------------------------


def check_live(system: System, standing: Mapping[str, Standing]) -> Found:
    """Yield the faults of services as they stand."""
    for name, service in system.services.items():
        for rule in _RULES:
            yield from rule(system, service, standing[name])


def _history_gone(system: System, service: Service, standing: Standing) -> Found:
    if standing.stored is None:
        return
    views = {kind.name: [handler] for kind, handler in service.views.items()}
    for reader, handlers in {"": service.handlers, **views}.items():
        positions = standing.stored.positions.get(reader, {})
        who = f"{service.name}.{reader}" if reader else service.name
        for stream in sorted(standing.partitions):
            readers = [each for each in handlers if _reads(system, each, stream)]
            lost = [
                partition
                for (of, partition), start in standing.starts.items()
                if of == stream
                and start > BEGINNING
                and positions.get((stream, partition), BEGINNING) == BEGINNING
            ]
            if readers and lost:
                yield (
                    fault(
                        "E21",
                        "error",
                        readers[0],
                        f"{who} has yet to read {stream} from the beginning, and the first events "
                        f"of {len(lost)} partitions are deleted",
                        "bring what they told into its store, and permit this from then on; let a "
                        "view begin after `oyez backfill`, with `oyez view begin`; or "
                        "raise system.retention_days before it is needed",
                    ),
                    permitting(readers, "E21"),
                )


def _uneven(system: System, service: Service, standing: Standing) -> Found:
    for kind in stored_by(service):
        users = kind.users
        counts = {
            stream: count
            for stream, count in standing.partitions.items()
            if any(_reads(system, handler, stream) for handler in users)
        }
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{stream} {count}" for stream, count in sorted(counts.items()))
            yield (
                fault(
                    "E22",
                    "warning",
                    users[0],
                    f"{kind.name} of {service.name} is changed from streams of different numbers "
                    f"of partitions ({listed}), so by several replicas in turn",
                    "create them alike: what shares a key is then in reach of one replica",
                ),
                permitting(users, "E22"),
            )


def _idle_replicas(system: System, service: Service, standing: Standing) -> Found:
    counts = [
        count for stream, count in standing.partitions.items() if _readers(system, service, stream)
    ]
    if counts and standing.replicas > sum(counts):
        yield (
            fault(
                "E22",
                "warning",
                service.handlers[0],
                f"{service.name} has {standing.replicas} replicas for {sum(counts)} partitions",
                f"lower services.{service.name}.replicas: a partition has one reader",
            ),
            permitting(service.handlers, "E22"),
        )


def _orphans(system: System, service: Service, standing: Standing) -> Found:
    stored = standing.stored or Kept()
    handlers = {handler.name for handler in service.subscriptions}
    for name in sorted(set(stored.parked) - handlers):
        if name.startswith("view:"):
            continue  # of an earlier version, which goes with its table
        yield (
            fault(
                "E23",
                "error",
                None,
                f"events are parked for {service.name}.{name}, which is no handler any more",
                f'give its successor @service.on(…, name="{name}"), or restore it until they are '
                "handled",
            ),
            None,
        )
    for kind in sorted(set(stored.timers) - service.kinds.keys()):
        if not kind.startswith(INTERNAL):
            yield (
                fault(
                    "E23",
                    "error",
                    None,
                    f"timers of {service.name} are set for {kind}, which no handler has any more",
                    f'give its successor name="{kind}", or restore it until they have fired',
                ),
                None,
            )


def _newer(system: System, service: Service, standing: Standing) -> Found:
    versions = standing.stored.versions if standing.stored is not None else {}
    for kind in stored_by(service):
        version = versions.get(kind.name, 0)
        if version > kind.version:
            yield (
                fault(
                    "E20",
                    "error",
                    kind.cls,
                    f"{kind.name} of {service.name} has version {kind.version}, and the store "
                    f"holds rows of version {version}, whose events wait",
                    f"deploy what declares version {version} again: it made them",
                ),
                permitting(kind.users, "E20"),
            )


def _stuck(system: System, service: Service, standing: Standing) -> Found:
    for kind, number, key in standing.stored.stuck if standing.stored is not None else ():
        yield (
            fault(
                "E23",
                "error",
                getattr(service.kinds.get(kind), "cls", None),
                f"{number} of {kind} in {service.name} are stuck, such as {key}",
                f"oyez saga show {key}",
            ),
            None,
        )


_RULES: tuple[Callable[[System, Service, Standing], Found], ...] = (
    _history_gone,
    _uneven,
    _idle_replicas,
    _orphans,
    _newer,
    _stuck,
)


def _readers(system: System, service: Service, stream: str) -> list[Handler]:
    return [each for each in service.subscriptions if _reads(system, each, stream)]


def _reads(system: System, handler: Handler, stream: str) -> bool:
    """Return whether events for the handler may be in a stream: one of its own publishers."""
    owner = system.services.get(stream.removeprefix(f"{system.name}."))
    if owner is None or not handler.subscribes(stream, system.name):
        return handler.subscribes(stream, system.name)
    return bool({kind.name for kind in owner.publishes} & {kind.name for kind in handler.events})
