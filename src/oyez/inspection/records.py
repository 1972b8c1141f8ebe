"""The records of a system's streams on all its brokers, for who watches a few of them for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from oyez.brokers.claim_check import ClaimCheck
from oyez.endpoint import redact
from oyez.errors import BrokerUnavailable, OyezError
from oyez.inspection import history
from oyez.inspection.follow import AGAIN, Following
from oyez.inspection.reach import Gap, Reach, reached
from oyez.logger import Logger
from oyez.ports import Broker, Record
from oyez.project import Project

Take = Callable[[Record], None]
"""It is given records, as brokers carry them: of a large one, only where its data is."""


class BrokerRecords:
    """The records of a system's brokers, from now on and back."""

    def __init__(self, project: Project) -> None:
        """Raises ConfigurationError for a broker whose records can't be read again."""
        for known in project.brokers.values():
            able = project.connect(known.url).capabilities
            if not (able.history and able.processes):
                raise project.config.error(
                    known.setting,
                    "a broker that several processes use and that keeps history, as a route has "
                    "until",
                    f'"{redact(known.url)}"',
                )
        self._project = project
        self._prefix = f"{project.config.system.name}."
        self._reach: Reach | None = None
        self._told = ""

    async def follow(self, begun: Callable[[], None], take: Take) -> None:
        """Pass on every record from now on, for ever, whatever happens to the brokers.

        ``begun`` is called when none that is published from then on will be missed; called again,
        some may have been missed before.
        """
        while True:
            try:
                async with reached(self._project) as reach:
                    await self._follow(reach, begun, take)
            except OyezError as error:
                self._tell(str(error))
            finally:
                self._reach = None
            await self._project.ambient.sleep(AGAIN)

    async def look_back(self, take: Take, since: float, seconds: float) -> float:
        """Pass on what the brokers keep since a time, the newest first, for so many seconds.

        Return the time since which that was everything. Raises OyezError.
        """
        reach = self._reach
        if reach is None:
            raise BrokerUnavailable("the brokers are not all in reach")
        brokers = reach.brokers.values()
        told = (self._look_back(broker, take, since, seconds) for broker in brokers)
        return max(await asyncio.gather(*told))

    async def _look_back(self, broker: Broker, take: Take, since: float, seconds: float) -> float:
        now = self._project.ambient.now()
        found = await history.streams(broker)
        own = [stream for stream in found if stream.startswith(self._prefix)]
        if not own:
            return since
        seen = await history.look_back(
            broker,
            take,
            now=now,
            seconds=seconds,
            prefix=self._prefix,
            streams=min(len(own), history.STREAMS),
            floor=lambda: since,
        )
        if len(own) > history.STREAMS:
            return now
        return since if seen.since is None else max(since, seen.since)

    async def _follow(self, reach: Reach, begun: Callable[[], None], take: Take) -> None:
        """Pass on records until a broker fails for good; at once if one is out of reach."""
        for site, broker in reach.brokers.items():
            if isinstance(broker, ClaimCheck):
                reach.brokers[site] = broker.carrier  # nothing large is fetched
        streams = Following(self._project, reach, from_start=False, prefix=self._prefix)
        await streams.begin(None)
        if reach.gaps:
            if reach.gaps[0].cause != "not-created":  # else the services are about to make it
                self._tell(str(reach.gaps[0]))
            return
        self._reach = reach
        self._told = ""
        begun()
        async with aclosing(streams.batches()) as batches:
            async for found in batches:
                if isinstance(found, Gap):
                    self._tell(str(found))
                    continue
                for record in found[1]:
                    take(record)

    def _tell(self, trouble: str) -> None:
        """Write a line about a trouble, once while it lasts."""
        if trouble != self._told:
            self._told = trouble
            Logger().warning("flows not followed", reason=trouble)
