"""The lag of services: positions and owners of partitions, and waiting events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec

from oyez import tables
from oyez.envelope import parse_time
from oyez.errors import BrokerError, InvalidEvent, NotCreated, OyezError
from oyez.inspection import history
from oyez.inspection.form import utc_time
from oyez.inspection.reach import Gap, imported
from oyez.ports import BEGINNING, Broker, Position, Row, Store
from oyez.project import Project
from oyez.service import Service
from oyez.timers import MADE_HERE

LOOKED_AT = 2_048
"""The limit of records after a position that are searched for one with a handler."""


class PartitionLag(msgspec.Struct, frozen=True, kw_only=True):
    """A partition as read by one service. None stands for an unknown value.

    Of a place of `oyez.tables.TIMERS`, ``lag`` is the number of timers that are due.
    """

    stream: str
    partition: int
    owner: str | None
    """The process that owns it; None without an owner."""
    alive: bool
    epoch: int
    position: Position
    end: Position | None
    lag: int | None
    oldest: float | None
    """The time of the first record after the position that has a handler."""
    oldest_known: bool
    """Whether ``oldest`` None means that there is none."""
    parked: int
    dead: int
    oldest_id: str | None = None
    """The id of that record's event, if it has one."""


class ServiceLag(msgspec.Struct, frozen=True, kw_only=True):
    """One service: its partitions and its outbox."""

    service: str
    replicas: dict[str, str]
    """Living processes, each with the address of its admin port."""
    partitions: tuple[PartitionLag, ...]
    outbox: int
    outbox_later: int
    """The number of these that are delayed."""
    outbox_refused: int
    """The number of these that the broker refused; they are dead letters too."""
    outbox_oldest: float | None
    outbox_owner: str | None
    outbox_alive: bool
    parked_oldest: float | None

    @property
    def lag(self) -> int | None:
        """The sum of its partitions' lags; None if one is unknown."""
        lags = [each.lag for each in self.partitions]
        known = [lag for lag in lags if lag is not None]
        return sum(known) if len(known) == len(lags) else None

    @property
    def parked(self) -> int:
        """The number of parked events."""
        return sum(each.parked for each in self.partitions)

    @property
    def dead(self) -> int:
        """The number of dead letters that are neither redriven nor discarded."""
        return self.outbox_refused + sum(each.dead for each in self.partitions)

    @property
    def oldest_known(self) -> bool:
        """Whether ``oldest`` None means that nothing waits."""
        return all(each.oldest_known for each in self.partitions)

    @property
    def oldest(self) -> float | None:
        """The time of the oldest unhandled event."""
        times = [each.oldest for each in self.partitions] + [self.parked_oldest]
        return min((time for time in times if time is not None), default=None)


class SystemLag(msgspec.Struct, frozen=True, kw_only=True):
    """Several services of a system."""

    services: tuple[ServiceLag, ...]
    not_created: tuple[str, ...]
    """Services that have not run yet."""
    gaps: tuple[Gap, ...]
    """Services that could not be imported, and brokers and stores that could not be read."""
    at: float
    """The time of the measurement, in seconds since 1970."""


async def measure_all(project: Project, names: Iterable[str]) -> SystemLag:
    """Return the lag of each of the services."""
    chosen = list(names)
    services, gaps = imported(project, chosen, ", so its oldest event is unknown")
    measured: list[ServiceLag] = []
    missing: list[str] = []
    for name in chosen:
        async with AsyncExitStack() as stack:
            broker: Broker | None = None
            try:
                broker = await stack.enter_async_context(project.opened_broker(name))
            except OyezError as error:
                _miss(project, name, error, gaps)
            try:
                store = await stack.enter_async_context(project.opened_store(name))
                service = services.get(name)
                system, now = project.config.system.name, project.ambient.now()
                try:
                    measured.append(await measure(system, name, service, broker, store, now))
                except BrokerError as error:
                    _miss(project, name, error, gaps)
                    measured.append(await measure(system, name, service, None, store, now))
            except NotCreated:
                missing.append(name)
            except OyezError as error:
                gaps.append(Gap.of("store", name, error, name))
    return SystemLag(
        services=tuple(measured),
        not_created=tuple(missing),
        gaps=tuple(gaps),
        at=project.ambient.now(),
    )


def _miss(project: Project, service: str, error: OyezError, gaps: list[Gap]) -> None:
    name = project.brokers[project.site(project.broker_url(service))].name
    gap = Gap.of("broker", name, error, "broker")
    if gap not in gaps:  # services share brokers
        gaps.append(gap)


async def measure(
    system: str,
    name: str,
    service: Service | None,
    broker: Broker | None,
    store: Store,
    now: float,
    *,
    within: float | None = None,
) -> ServiceLag:
    """Return the lag of a service, as of ``now``, on a broker and a store that are open.

    Without the service's code or its broker, the values that depend on them are unknown; and so is
    the oldest event of a partition that is not found ``within`` so many seconds, while those with
    the greatest lag are looked at first. Raises StoreError and BrokerError.
    """
    # Positions first: with an end read before a position, the lag could be below zero.
    cursors: dict[history.Place, Row] = {
        (row["stream"], row["partition"]): row
        for row in await store.fetch(tables.CURSORS, {"reader": ""})
    }
    replicas = {
        row["owner"]: row["note"]
        for row in await store.fetch(tables.REPLICAS, {})
        if row["until"] > now
    }
    relay = cursors.pop((tables.OUTBOX, 0), None)
    parked = {
        (r["stream"], r["partition"]): r for r in await store.fetch(tables.PARKED, {"reader": ""})
    }
    dead = {
        (r["stream"], r["partition"]): r["letters"]
        for r in await store.fetch(tables.DEAD_BY_PARTITION, {})
    }
    ends = await _ends(system, service, broker, cursors)
    places: list[history.Place] = sorted({*cursors, *(ends or {}), *parked, *dead})
    overdue = {r["part"]: r for r in await store.fetch(tables.OVERDUE_TIMERS, {"now": now})}

    behind = await _behind(broker, [place for place in places if place in (ends or {})], cursors)
    search = _Search(system, service, broker, within)
    oldest_of = await search.all(places, cursors, ends or {}, behind)

    def one(place: history.Place) -> PartitionLag:
        row: Row = cursors.get(place) or {"position": 0, "owner": None, "epoch": 0}
        end = None if ends is None else ends.get(place)
        if place[0] == tables.TIMERS:
            timers = overdue.get(place[1], {"timers": 0, "oldest": None})
            lag, oldest, known = timers["timers"], timers["oldest"], True
            event = None
        else:
            lag = behind.get(place)
            oldest, event, known = oldest_of[place]
        return PartitionLag(
            stream=place[0],
            partition=place[1],
            owner=row["owner"],
            alive=row["owner"] in replicas,
            epoch=row["epoch"],
            position=row["position"],
            end=end,
            lag=lag,
            oldest=oldest,
            oldest_known=known,
            parked=parked[place]["events"] if place in parked else 0,
            dead=dead.get(place, 0),
            oldest_id=event,
        )

    partitions = tuple(map(one, places))
    (outbox,) = await store.fetch(tables.OUTBOX_SIZE, {"now": now})
    return ServiceLag(
        service=name,
        replicas=replicas,
        partitions=partitions,
        outbox=outbox["events"],
        outbox_later=outbox["later"] or 0,
        outbox_refused=outbox["refused"] or 0,
        outbox_oldest=await _oldest_announced(store, now),
        outbox_owner=relay["owner"] if relay else None,
        outbox_alive=relay is not None and relay["owner"] in replicas,
        parked_oldest=min((row["oldest"] for row in parked.values()), default=None),
    )


async def _ends(
    system: str, service: Service | None, broker: Broker | None, cursors: dict[Any, Row]
) -> dict[history.Place, Position | None] | None:
    """Return the ends of the partitions that the service reads or has read.

    None without a broker; each is None on a broker without history.
    """
    if broker is None:
        return None
    wanted = {stream for stream, _ in cursors if stream != tables.TIMERS}
    streams = await broker.streams()
    for handler in service.handlers if service is not None else ():
        wanted.update(stream for stream in streams if handler.subscribes(stream, system))
    if not broker.capabilities.history:
        return {(stream, p): None for stream in wanted for p in range(streams.get(stream, 0))}
    return dict(await history.ends(broker, sorted(wanted)))


async def _behind(
    broker: Broker | None, places: Iterable[history.Place], cursors: dict[Any, Row]
) -> dict[history.Place, int]:
    """Return the lag of each partition, asking once for each stream."""
    asked: dict[str, dict[int, Position]] = {}
    for stream, partition in places:
        row = cursors.get((stream, partition))
        asked.setdefault(stream, {})[partition] = row["position"] if row else BEGINNING
    if broker is None:
        return {}
    return {
        (stream, partition): lag
        for stream, positions in asked.items()
        for partition, lag in (await broker.lag(stream, positions)).items()
    }


_Oldest = tuple[float | None, str | None, bool]
"""The time and the event id of the oldest, and whether it is known that there is no other."""
_UNKNOWN: _Oldest = (None, None, False)


class _Search:
    """The search for the oldest event with a handler, in the partitions of one service."""

    def __init__(
        self, system: str, service: Service | None, broker: Broker | None, within: float | None
    ) -> None:
        """``within`` is the number of seconds that it may take; None for no limit."""
        self._system = system
        self._service = service
        self._broker = broker
        self._end = None if within is None else asyncio.get_running_loop().time() + within
        self._room = asyncio.Semaphore(history.AT_ONCE)

    async def all(
        self,
        places: Iterable[history.Place],
        cursors: Mapping[Any, Row],
        ends: Mapping[history.Place, Position | None],
        behind: Mapping[history.Place, int],
    ) -> dict[history.Place, _Oldest]:
        """Return what is found in each place but those of timers."""
        found: dict[history.Place, _Oldest] = {}
        waiting: list[tuple[history.Place, Position, Position]] = []
        for place in sorted(places, key=lambda place: -behind.get(place, 0)):
            position = cursors[place]["position"] if place in cursors else BEGINNING
            end = ends.get(place)
            found[place] = (None, None, end is not None and end <= position)
            if end is not None and end > position and place[0] != tables.TIMERS:
                waiting.append((place, position, end))
        if self._service is None or self._broker is None:
            return found
        starts = {
            stream: await self._broker.starts(stream)
            for stream in {place[0] for place, _, _ in waiting}
        }
        asks = [self._one(*each, starts[each[0][0]]) for each in waiting]
        for (place, _, _), oldest in zip(waiting, await asyncio.gather(*asks), strict=True):
            found[place] = oldest
        return found

    async def _one(
        self,
        place: history.Place,
        position: Position,
        end: Position,
        starts: Sequence[Position],
    ) -> _Oldest:
        try:
            async with self._room, asyncio.timeout_at(self._end):
                return await self._oldest(place, position, end, starts)
        except TimeoutError:
            return _UNKNOWN

    async def _oldest(
        self,
        place: history.Place,
        position: Position,
        end: Position,
        starts: Sequence[Position],
    ) -> _Oldest:
        service, broker = self._service, self._broker
        if service is None or broker is None:
            return _UNKNOWN
        readers = [each for each in service.handlers if each.subscribes(place[0], self._system)]
        wanted = {kind.name for handler in readers for kind in handler.events} - MADE_HERE
        looked = 0
        reached = position
        async with aclosing(history.read(broker, place, end, position, starts=starts)) as batches:
            async for batch in batches:
                for record in batch.records:
                    attributes = history.attributes(record)
                    if attributes.get("type") in wanted:
                        return record.time, attributes.get("id"), True
                reached = batch.records[-1].position
                looked += len(batch.records)
                if looked >= LOOKED_AT:
                    break
        return None, None, reached >= end


async def _oldest_announced(store: Store, now: float) -> float | None:
    for row in await store.fetch(tables.OLDEST_ANNOUNCED, {"now": now}):
        headers = msgspec.json.decode(row["headers"], type=dict[str, str])
        try:
            made = parse_time(headers.get("time", "")).timestamp()
        except InvalidEvent:
            return float(row["due"]) or None
        return max(made, float(row["due"]))
    return None


def as_value(lag: SystemLag) -> dict[str, Any]:
    """Return the services as a value for JSON."""
    return {
        "services": [service_as_value(each, lag.at) for each in lag.services],
        "not_created": list(lag.not_created),
    }


def service_as_value(lag: ServiceLag, now: float) -> dict[str, Any]:
    """Return one service as a value for JSON; ages are seconds, as of ``now``."""
    return {
        "service": lag.service,
        "replicas": [{"owner": owner, "admin": note} for owner, note in lag.replicas.items()],
        "lag": lag.lag,
        "parked": lag.parked,
        "dead": lag.dead,
        "oldest_age": _age(lag.oldest, now),
        "oldest_at": utc_time(lag.oldest),
        "oldest_known": lag.oldest_known,
        "outbox": {
            "events": lag.outbox,
            "later": lag.outbox_later,
            "refused": lag.outbox_refused,
            "oldest_age": _age(lag.outbox_oldest, now),
            "owner": lag.outbox_owner,
            "alive": lag.outbox_alive,
        },
        "partitions": [
            {
                "stream": each.stream,
                "partition": each.partition,
                "owner": each.owner,
                "alive": each.alive,
                "epoch": each.epoch,
                "position": each.position,
                "end": each.end,
                "lag": each.lag,
                "oldest_age": _age(each.oldest, now),
                "oldest_known": each.oldest_known,
                "parked": each.parked,
                "dead": each.dead,
            }
            for each in lag.partitions
        ],
    }


def _age(then: float | None, now: float) -> float | None:
    return None if then is None else round(max(0.0, now - then), 3)
