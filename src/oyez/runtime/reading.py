"""Reads one partition from its lane's position, and passes the records to a consumer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol, cast

from oyez.ambient import Ambient
from oyez.errors import BrokerRefused, Fenced
from oyez.ports import Batch, Broker
from oyez.runtime.lane import Lane
from oyez.runtime.loop import Loop
from oyez.runtime.reports import Reports
from oyez.signals import BatchHandled, EventsMissed


class Consumer(Protocol):
    """The consumer of the records of one partition."""

    async def take(self, batch: Batch) -> int:
        """Handle a batch and move the lane's position; return the number of relevant records.

        Raises Fenced when another process owns the partition. After any other error the batch is
        read again, by a new lane if this one is doubtful.
        """
        ...


class Reading:
    """The reading of one partition, until it is stopped or its lane may take no more."""

    def __init__(
        self,
        lane: Lane,
        consumer: Consumer,
        *,
        broker: Broker,
        ambient: Ambient,
        reports: Reports,
        room: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``room``, if given, is awaited before each batch."""
        self.lane = lane
        self._consumer = consumer
        self._broker = broker
        self._ambient = ambient
        self._reports = reports
        self._room = room
        self._loop = Loop(lane.name, self._step, ambient, reports.trouble)
        self._batches: AsyncGenerator[Batch, None] | None = None

    def start(self) -> None:
        """Start reading."""
        self._loop.start()

    async def stop(self) -> None:
        """Finish the current batch, store the position and end.

        Safe when never started and when called twice.
        """
        self.lane.leaving = True
        await self._loop.stop()
        await self._close()
        if not self.lane.fenced:
            await self.lane.save()

    def kill(self) -> None:
        """End at once; uncommitted work is rolled back."""
        self.lane.leaving = True
        self._loop.kill()

    async def _step(self) -> None:
        """Read one batch and pass it to the consumer."""
        claim, lane = self.lane.claim, self.lane
        if self._batches is None:
            self._batches = cast(
                AsyncGenerator[Batch, None],
                self._broker.read(claim.stream, claim.partition, lane.position),
            )
        try:
            lane.idle = self._loop.idle = True
            if self._room is not None:
                await self._room()
            batch = await anext(self._batches)
            lane.idle = self._loop.idle = False
            start = self._ambient.monotonic()
            lane.reached, lane.in_hand = batch.records[0].time, True
            self._look_for_gaps(batch)
            events = await self._consumer.take(batch)
            lane.reached = batch.records[-1].time
        except Fenced:
            await self._close()
            lane.lose()
            self._loop.end()
            return
        except BaseException:
            await self._close()
            lane.idle = True
            if lane.doubtful:
                self._loop.end()
            raise
        finally:
            lane.in_hand = False
        lane.progress()
        if events:
            self._reports.emit(
                BatchHandled(
                    service=self._reports.service,
                    stream=claim.stream,
                    partition=claim.partition,
                    events=events,
                    seconds=self._ambient.monotonic() - start,
                )
            )

    async def _close(self) -> None:
        batches, self._batches = self._batches, None
        if batches is not None:
            await batches.aclose()

    def _look_for_gaps(self, batch: Batch) -> None:
        lane, claim = self.lane, self.lane.claim
        if batch.restarted:
            self._reports.trouble(
                lane.name,
                BrokerRefused(
                    "the stream was deleted and created again: records after position "
                    f"{lane.position} are lost; the new one is read from its beginning"
                ),
            )
            lane.restart()
        if batch.missed:
            self._reports.emit(
                EventsMissed(
                    service=self._reports.service,
                    stream=claim.stream,
                    partition=claim.partition,
                    events=batch.missed,
                )
            )
