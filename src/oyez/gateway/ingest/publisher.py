"""Publishes the events of many requests together, and says when they are durable."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from oyez.ambient import Ambient
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable, InvalidEvent
from oyez.logger import Logger
from oyez.ports import Broker, Record, weigh
from oyez.signals import EventsPublished, Listener
from oyez.spans import Failure, Tracer

LIMIT = 512
"""The limit of records in one publish."""
LIMIT_BYTES = 4 * 1024 * 1024
"""The limit of bytes of data in one publish (a single record may exceed it)."""


class _Waiting(NamedTuple):
    """The records of one request, and what its task waits for."""

    records: Sequence[Record]
    done: asyncio.Future[None]


class Publisher:
    """Publishes to a broker, one batch after the other, in the order in which requests came.

    What arrives while a batch is under way is the next batch: the more requests there are, the
    fewer round trips each of them costs. Nothing is kept here beyond the requests that wait, whose
    bodies are bounded together.
    """

    def __init__(
        self,
        broker: Broker,
        ambient: Ambient,
        *,
        sender: str,
        tell: Listener | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """``sender`` is the name under which it tells of what was published."""
        self._broker = broker
        self._ambient = ambient
        self._sender = sender
        self._tell = tell
        self._tracer = tracer
        self._waiting: deque[_Waiting] = deque()
        self._singly = 0
        """How many requests are to be published each by itself."""
        self._task: asyncio.Task[None] | None = None
        self._log = Logger(service=sender)

    async def open(self) -> None:
        """Connect; a broker that is out of reach is connected to later.

        Raises BrokerRefused.
        """
        try:
            await self._broker.open()
        except BrokerUnavailable as error:
            self._log.warning("broker unavailable", error=f"{error}")

    async def close(self) -> None:
        """Give up what is not published yet, and disconnect.

        Safe when never opened and when called twice.
        """
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._broker.close()

    def check(self, record: Record) -> None:
        """Raise InvalidEvent for a record that is too large for the broker."""
        limit = self._broker.capabilities.max_bytes
        if limit and (size := weigh(record.headers, record.data)) > limit:
            raise InvalidEvent(
                "data", f"with the attributes it is {size} bytes; at most {limit} are allowed"
            )

    async def publish(self, records: Sequence[Record]) -> None:
        """Return when all are durable on the broker.

        Raises BrokerUnavailable, and BrokerRefused if it does not accept one of them. Then any of
        them may be published nevertheless; who sends them again does so with the same ids.
        """
        if not records:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(records, done))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name=f"{self._sender}, publishing")
        await done

    async def _work(self) -> None:
        try:
            while taken := self._take():
                await self._send(taken)
        finally:
            self._task = None
            self._fail(BrokerUnavailable("the publisher has ended"))

    def _take(self) -> list[_Waiting]:
        """Return what is published next: whole requests."""
        taken: list[_Waiting] = []
        count, most = 0, LIMIT
        if self._singly:
            self._singly, most = self._singly - 1, 1
        while self._waiting and count < most:
            each = self._waiting.popleft()
            if not each.done.done():  # else its client is gone, or its time over
                taken.append(each)
                count += len(each.records)
        return taken

    async def _send(self, taken: Sequence[_Waiting]) -> None:
        try:
            for part in _parts(record for each in taken for record in each.records):
                await self._publish(part)
        except BrokerRefused as error:
            if len(taken) == 1:
                _settle(taken, error)
            else:  # one by one, so that only those are refused that deserve it
                self._waiting.extendleft(reversed(taken))
                self._singly = len(taken)
        except BrokerError as error:
            # The others would wait for the same in vain, each as long as these.
            _settle(taken, error)
            self._fail(error)
        except BaseException:
            _settle(taken, BrokerUnavailable("the publisher has ended"))
            raise
        else:
            _settle(taken)

    def _fail(self, error: BrokerError) -> None:
        """Let all that wait have this error."""
        _settle(self._waiting, error)
        self._waiting.clear()

    async def _publish(self, records: Sequence[Record]) -> None:
        clock = self._ambient.now
        since, began = clock(), self._ambient.monotonic()
        try:
            await self._broker.publish(records)
        except BrokerError as error:
            self._log.warning("not published", events=len(records), error=f"{error}")
            if self._tracer is not None:
                failure = Failure(type(error).__name__)
                self._tracer.publish(records, since, clock(), failure)
            raise
        if self._tracer is not None:
            self._tracer.publish(records, since, clock())
        if self._tell is not None:
            seconds = self._ambient.monotonic() - began
            for stream, count in Counter(record.stream for record in records).items():
                self._tell(
                    EventsPublished(
                        service=self._sender, stream=stream, events=count, seconds=seconds
                    )
                )


def _settle(waiting: Iterable[_Waiting], error: BrokerError | None = None) -> None:
    for each in waiting:
        if each.done.done():
            continue
        if error is None:
            each.done.set_result(None)
        else:
            each.done.set_exception(error)


def _parts(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield the records by as many as one publish may have."""
    rest = iter(records)
    while part := list(islice(rest, LIMIT)):
        size = 0
        start = 0
        for index, record in enumerate(part):
            size += len(record.data or b"")
            if size > LIMIT_BYTES and index > start:
                yield part[start:index]
                start, size = index, len(record.data or b"")
        yield part[start:]
