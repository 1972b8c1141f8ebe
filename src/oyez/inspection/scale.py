"""How many replicas a service needs, as its store and its broker tell."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

import msgspec

from oyez.errors import BrokerUnavailable
from oyez.inspection.installation import read_leases
from oyez.inspection.lag import PartitionLag, ServiceLag, measure
from oyez.ports import Broker, Position
from oyez.project import Project
from oyez.scaling.meter import Look, Meter, Place, Seen
from oyez.scaling.rule import Decision, Limits, decide
from oyez.service import Service

SEARCH = 0.5
"""Seconds to find the oldest events of all partitions."""
ANSWER = 2.0
"""Seconds for a replica to answer."""
_SUM = re.compile(r"^oyez_batch_(events|seconds)_sum(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas a service needs, and what of. Rates are per second; None is unknown."""

    service: str
    wanted: int
    why: str
    replicas: int
    """The living processes."""
    lag: int
    """Records that wait in its streams; parked events do not count."""
    oldest_seconds: float | None
    """How old the oldest of them is that has a handler."""
    inflow: float | None
    """Records that arrive."""
    total: float
    """Records that all replicas handle."""
    rate: float | None
    """Records that one replica handles when it has enough to do."""
    partitions: int
    partitions_with_lag: int
    """Those whose lag lasts."""


class Gauge:
    """Tells of one service how many replicas it needs, from one look to the next.

    It counts records by positions in the store, so for all replicas at once and on every broker
    with a history; whoever looks need not be one of them.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._meter = Meter()
        self._decision: Decision | None = None
        self._positions: dict[Place, Position] = {}
        self._one = asyncio.Lock()

    async def look(
        self, lag: ServiceLag, broker: Broker, at: float, now: float, *, failing: float = 0.0
    ) -> Scale:
        """Return what the service needs, of its lag at ``at``, on a clock that does not go back.

        ``now`` is that in seconds since 1970, ``failing`` the share of handlers' calls that failed
        since the last look. Raises BrokerError, also where the lag of a partition is unknown: that
        is never 0.
        """
        partitions = {
            (each.stream, each.partition): each
            for each in lag.partitions
            if not each.stream.startswith("oyez:")  # places of Oyez's own are no streams
        }
        async with self._one:
            handled = await self._handled(broker, partitions)
            look = Look(
                at=at,
                replicas=len(lag.replicas),
                partitions={
                    place: Seen(
                        lag=_known(lag.service, each),
                        owner=each.owner if each.alive else None,
                        handled=handled.get(place),
                    )
                    for place, each in partitions.items()
                },
                failing=failing,
            )
            self._positions = {place: each.position for place, each in partitions.items()}
            measured = self._meter.note(look)
            past = self._decision.past if self._decision is not None else None
            self._decision = decide(measured, self._limits, past)
        oldest = min((e.oldest for e in partitions.values() if e.oldest is not None), default=None)
        known = all(each.oldest_known for each in partitions.values())
        age = None if oldest is None else round(max(0.0, now - oldest), 3)
        return Scale(
            service=lag.service,
            wanted=self._decision.wanted,
            why=self._decision.why,
            replicas=measured.replicas,
            lag=measured.lag,
            oldest_seconds=0.0 if age is None and known else age,
            inflow=_rounded(measured.inflow),
            total=round(measured.total, 3),
            rate=_rounded(measured.rate),
            partitions=measured.partitions,
            partitions_with_lag=measured.behind,
        )

    async def _handled(
        self, broker: Broker, partitions: Mapping[Place, PartitionLag]
    ) -> dict[Place, int]:
        """Return the records that were handled since the last look, where the broker can tell.

        Positions are not numbers of records on every broker, so it is asked what follows the one
        that was reached then.
        """
        if not broker.capabilities.history:
            return {}
        found: dict[Place, int] = {}
        moved: dict[str, dict[int, Position]] = {}
        for place, each in partitions.items():
            before = self._positions.get(place)
            if before == each.position:
                found[place] = 0
            elif before is not None:
                moved.setdefault(place[0], {})[place[1]] = before
        for stream, positions in moved.items():
            for partition, behind in (await broker.lag(stream, positions)).items():
                if (place := (stream, partition)) in partitions:
                    found[place] = max(0, behind - (partitions[place].lag or 0))
        return found


class Outside:
    """Looks at a service from outside of its processes, also when none runs."""

    def __init__(self, project: Project, name: str, service: Service | None = None) -> None:
        """Without the code, ``service``, the oldest event is unknown."""
        self._project = project
        self._name = name
        self._service = service
        self._gauge = Gauge(project.settings(name).limits)

    async def look(self) -> Scale:
        """Return what it needs. Raises NotCreated before it has run, StoreError, BrokerError."""
        project, name = self._project, self._name
        system, ambient = project.config.system.name, project.ambient
        async with project.opened_broker(name) as broker, project.opened_store(name) as store:
            now, at = ambient.now(), ambient.monotonic()
            lag = await measure(system, name, self._service, broker, store, now, within=SEARCH)
            return await self._gauge.look(lag, broker, at, now)


class MeasuredRate(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica of a service handles a second, as those that run have measured it."""

    rate: float
    replicas: int
    """The replicas that told."""
    how: str
    """How it was measured, in words."""


async def measure_rate(project: Project, name: str) -> MeasuredRate | None:
    """Return what a replica of a service handles, of what those that run tell; None if nothing.

    Of replicas that were busy lately, their rate then; else what they have handled since they
    started, over the time that it took. Raises NotCreated and StoreError.
    """
    import httpx

    from oyez.http_client import Client

    async with project.opened_store(name) as store:
        leases = await read_leases(store, project.ambient.now())
    rates: list[float] = []
    events = seconds = 0.0
    headers = {"Authorization": f"Bearer {project.token()}", "Accept": "text/plain"}
    told = 0
    async with Client(headers=headers, timeout=ANSWER, trust_env=False) as client:
        for lease in leases:
            try:
                scale = await client.get(f"http://{lease.admin}/oyez/scale")
                metrics = await client.get(f"http://{lease.admin}/metrics")
            except (httpx.HTTPError, httpx.InvalidURL):
                continue
            if scale.status_code == 200:
                busy = msgspec.json.decode(scale.content, type=Scale).rate
                rates += [] if busy is None else [busy]
            sums = dict(_SUM.findall(metrics.text))
            events += float(sums.get("events", 0))
            seconds += float(sums.get("seconds", 0))
            told += 1
    if rates:
        how = "of a busy replica, lately"
        return MeasuredRate(rate=sum(rates) / len(rates), replicas=len(rates), how=how)
    if not events or not seconds:
        return None
    how = f"{events:.0f} events in {seconds:.1f} s of batches, one after the other: at least that"
    return MeasuredRate(rate=events / seconds, replicas=told, how=how)


def _known(service: str, partition: PartitionLag) -> int:
    if partition.lag is None:
        place = f"{partition.stream}[{partition.partition}]"
        raise BrokerUnavailable(f"the lag of {service} on {place} is not known")
    return partition.lag


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 3)
