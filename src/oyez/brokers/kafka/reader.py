"""One consumer, on one thread, for the readers of many partitions.

It is assigned partitions at explicit offsets and is no member of any group. A reader that does not
take what came for it has its partition paused; the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, auto
from time import monotonic
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from oyez.brokers.kafka.connection import cause
from oyez.brokers.kafka.options import KafkaOptions
from oyez.brokers.kafka.wire import WEIGHT, decode
from oyez.brokers.kit.streams import Place
from oyez.errors import BrokerCorrupt, BrokerError, BrokerRefused, BrokerUnavailable
from oyez.ports import Position, Record

_AT_ONCE = 512
_IDLE = 0.05  # seconds: how late a new reader is heard of while nothing arrives
_EAGER = 0.01  # and how late it is noticed that a paused one has room again
_FETCH_WAIT = 100  # milliseconds: a new partition waits for the fetch that is under way
_GALLOP = 16


class Interruption(Enum):
    """The end of a reading; the reader then determines from where to go on."""

    OUT_OF_RANGE = auto()
    """The offset is not in the partition's log (any more)."""
    LOST = auto()
    """The cluster does not know the partition."""
    REMADE = auto()
    """The topic is not the one that the reading began in."""


class Interrupted(Exception):
    """A reading ended. ``why`` tells how to go on."""

    def __init__(self, why: Interruption) -> None:
        super().__init__(why.name)
        self.why = why


class Reading:
    """Prefetched messages after an offset, filled by a fetcher's thread, read by one reader."""

    def __init__(self, place: Place, offset: int) -> None:
        self.place = place
        self.seen: Position = offset
        """The last record that came, or where the reading began."""
        self.reached: Position | None = None
        """An end of the partition up to which everything has come."""
        self.paused = False
        self._messages: deque[Message] = deque()
        self._interruption: Interruption | BrokerError | None = None
        self._arrived = asyncio.Event()
        # Each is written by one thread only, so neither needs a lock.
        self._received = 0
        self._taken = 0

    @property
    def held(self) -> int:
        """Bytes that came and were not taken, roughly."""
        return self._received - self._taken

    async def take(self, most: int) -> list[Record]:
        """The next records, at least one. Raises Interrupted, or BrokerError, behind the last."""
        messages = self._messages
        while not messages:
            if isinstance(self._interruption, BrokerError):
                raise self._interruption
            if self._interruption is not None:
                raise Interrupted(self._interruption)
            self._arrived.clear()
            await self._arrived.wait()
        stream, partition = self.place
        records, taken = list[Record](), 0
        for _ in range(min(most, len(messages))):
            # Each is dropped once it is decoded: what the driver made for its headers is freed
            # before it makes the next one's, so that the garbage collector finds nothing to do.
            message = messages.popleft()
            taken += len(message) + WEIGHT
            records.append(decode(message, stream, partition))
        self._taken += taken
        return records

    def add(self, message: Message) -> None:
        """From the thread: one more, unless it was interrupted; `wake` has to follow."""
        position = (message.offset() or 0) + 1
        if self._interruption is None and position > self.seen:
            self._received += len(message) + WEIGHT
            self.seen = position
            self._messages.append(message)

    def interrupt(self, why: Interruption | BrokerError) -> None:
        """Nothing follows what has come so far; `wake` has to follow."""
        if self._interruption is None:
            self._interruption = why

    def wake(self) -> None:
        """On the event loop: something was added, or it was interrupted."""
        self._arrived.set()


class Fetcher:
    """A consumer and its thread."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        options: KafkaOptions,
        explain: Callable[[KafkaError], BrokerError],
    ) -> None:
        """Raises KafkaException for settings that can't work."""
        self.readings: dict[Place, Reading] = {}
        """Those that have begun and not ended; only one of a place fits into one consumer."""
        self.ended = False
        self._explain = explain
        self._limit = options.batch_bytes
        self._loop = asyncio.get_running_loop()
        self._commands: deque[tuple[bool, Reading]] = deque()
        self._work = threading.Event()
        self._gone = self._loop.create_future()
        consumer = Consumer(_settings(settings, options))
        self._thread = threading.Thread(
            target=self._run, args=(consumer,), name="kafka fetcher", daemon=True
        )
        self._thread.start()

    def begin(self, place: Place, offset: int) -> Reading:
        """Begin to fetch from an offset on."""
        reading = self.readings[place] = Reading(place, offset)
        self._commands.append((True, reading))
        self._work.set()
        if self.ended:  # it may have died just now, too early to have seen this command
            reading.interrupt(BrokerUnavailable("the Kafka consumer has ended"))
        return reading

    def end(self, reading: Reading) -> None:
        """Fetch no more of it; does not wait."""
        if self.readings.get(reading.place) is reading:
            del self.readings[reading.place]
            self._commands.append((False, reading))
            self._work.set()

    def interrupt(self, why: BrokerError) -> None:
        """End every reading."""
        for reading in self.readings.values():
            reading.interrupt(why)
            reading.wake()

    async def close(self) -> None:
        """Return when nothing of it runs any more."""
        self.ended = True
        self._work.set()
        await asyncio.shield(self._gone)
        self._thread.join()

    # -- on the thread -----------------------------------------------------------------------------

    def _run(self, consumer: Consumer) -> None:
        active: dict[Place, Reading] = {}
        try:
            while not self.ended:
                if active or self._commands:
                    self._turn(consumer, active)
                else:
                    self._work.wait()
                    self._work.clear()
        except KafkaException as error:
            self._die(active.values(), self._explain(cause(error)))
        except Exception as error:  # noqa: BLE001 - no reader may wait for a thread that has died
            self._die(active.values(), BrokerRefused(f"the Kafka consumer failed: {error!r}"))
        finally:
            consumer.close()
            self._call(_settle, self._gone)

    def _turn(self, consumer: Consumer, active: dict[Place, Reading]) -> None:
        while self._commands:
            begins, reading = self._commands.popleft()
            if begins:
                active[reading.place] = reading
                consumer.incremental_assign([TopicPartition(*reading.place, reading.seen)])
            else:
                del active[reading.place]
                consumer.incremental_unassign([TopicPartition(*reading.place)])
        paused = self._pause(consumer, active.values())
        first = consumer.poll(_EAGER if paused else _IDLE)
        if first is not None:
            self._sort([first, *consumer.consume(_AT_ONCE, 0)], active)

    def _pause(self, consumer: Consumer, readings: Iterable[Reading]) -> bool:
        """Pause those that hold enough, resume those with room; whether any is paused."""
        paused = False
        for reading in readings:
            if reading.paused and reading.held <= self._limit // 2:
                consumer.resume([TopicPartition(*reading.place)])
                reading.paused = False
            elif not reading.paused and reading.held > self._limit:
                consumer.pause([TopicPartition(*reading.place)])
                reading.paused = True
            paused = paused or reading.paused
        return paused

    def _sort(self, messages: Sequence[Message], active: Mapping[Place, Reading]) -> None:
        touched: set[Reading] = set()
        reading: Reading | None = None
        for message in messages:  # they come in runs of one partition
            place = (message.topic() or "", message.partition() or 0)
            if reading is None or place != reading.place:
                reading = active.get(place)
                if reading is None:
                    continue
                touched.add(reading)
            error = message.error()
            if error is None:
                reading.add(message)
            else:
                self._judge(reading, error, message)
        if touched:
            self._call(_wake, touched)

    def _judge(self, reading: Reading, error: KafkaError, message: Message) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            reading.reached = message.offset()
        elif code == KafkaError._AUTO_OFFSET_RESET:
            reading.interrupt(Interruption.OUT_OF_RANGE)
        elif code in UNKNOWN:
            reading.interrupt(Interruption.LOST)
        elif code in (KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION):
            stream, partition = reading.place
            reading.interrupt(
                BrokerCorrupt(
                    f"{stream}[{partition}] behind position {reading.seen}: {error.str()}: the "
                    "broker's disk is damaged; move the partition to a sound replica"
                )
            )
        elif not error.retriable():
            reading.interrupt(self._explain(error))

    def _die(self, readings: Iterable[Reading], why: BrokerError) -> None:
        self.ended = True
        for reading in {*readings, *(reading for _, reading in list(self._commands))}:
            reading.interrupt(why)
            self._call(reading.wake)

    def _call(self, *call: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(*call)


UNKNOWN = {
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError.INCONSISTENT_TOPIC_ID,
}
"""The errors of a topic or partition that the cluster does not know."""


def last_positions(
    settings: Mapping[str, Any],
    options: KafkaOptions,
    places: Mapping[Place, tuple[int, int]],
    going_on: Callable[[], bool],
) -> dict[Place, Position]:
    """The position of each place's last record between two offsets; the first if there is none.

    The end of a Kafka partition can be taken by what is no record: a transaction's marker, aborted
    records, what compaction removed. Blocks. Raises KafkaException, TimeoutError.
    """
    until = monotonic() + options.deadline
    found: dict[Place, Position] = {}
    consumer = Consumer(_settings(settings, options))
    try:
        back = 1
        while len(found) < len(places):
            starts = {
                place: max(low, high - back)
                for place, (low, high) in places.items()
                if place not in found
            }
            consumer.assign([TopicPartition(*place, start) for place, start in starts.items()])
            unfinished = set(starts)
            while unfinished:
                if monotonic() > until or not going_on():
                    raise TimeoutError
                first = consumer.poll(_IDLE)
                for message in () if first is None else (first, *consumer.consume(_AT_ONCE, 0)):
                    _note(message, places, found, unfinished)
            for place, start in starts.items():
                if start == places[place][0]:
                    found.setdefault(place, start)
            back *= _GALLOP
    finally:
        consumer.close()
    return found


def _note(
    message: Message,
    places: Mapping[Place, tuple[int, int]],
    found: dict[Place, Position],
    unfinished: set[Place],
) -> None:
    place = (message.topic() or "", message.partition() or 0)
    error = message.error()
    if place not in unfinished or (error is not None and error.retriable()):
        return
    offset = message.offset() or 0
    high = places[place][1]
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    if error is None and offset < high:
        found[place] = offset + 1
    if error is not None or offset >= high - 1:
        unfinished.discard(place)


def _settings(settings: Mapping[str, Any], options: KafkaOptions) -> dict[str, Any]:
    return {
        **settings,
        "group.id": "oyez",  # the driver wants one; nothing is committed under it
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "check.crcs": True,
        "fetch.wait.max.ms": _FETCH_WAIT,
        "fetch.error.backoff.ms": 100,
        "fetch.queue.backoff.ms": 10,
        "fetch.max.bytes": max(1, 2 * options.batch_bytes),
        "fetch.message.max.bytes": min(1024 * 1024, options.batch_bytes),
        "message.max.bytes": min(1_000_000, 2 * options.batch_bytes),
        "receive.message.max.bytes": 1_000_000_000,
        "queued.min.messages": 10_000,
        "queued.max.messages.kbytes": max(1, 4 * options.batch_bytes // 1024),
    }


def _wake(readings: Iterable[Reading]) -> None:
    for reading in readings:
        reading.wake()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
