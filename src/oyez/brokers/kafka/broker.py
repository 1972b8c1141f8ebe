"""The face of Kafka: `oyez.ports.Broker` over a cluster, a publisher and fetchers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException

from oyez.ambient import Ambient
from oyez.brokers.kafka.cluster import Cluster
from oyez.brokers.kafka.connection import cause, explain
from oyez.brokers.kafka.inspection import judge
from oyez.brokers.kafka.options import KafkaOptions
from oyez.brokers.kafka.publisher import BATCH_BYTES, Publisher
from oyez.brokers.kafka.reader import UNKNOWN, Fetcher, Interrupted, Interruption, Reading
from oyez.brokers.kafka.wire import FRAMING, Outgoing, encode, size
from oyez.brokers.kit.calls import Deadline, Pauses
from oyez.brokers.kit.progress import Progress
from oyez.brokers.kit.streams import Place, Streams, check_count, partitions_of, too_large
from oyez.brokers.kit.watch import Rounds, every, stop
from oyez.brokers.kit.windows import windows
from oyez.endpoint import Endpoint
from oyez.errors import BrokerError, BrokerUnavailable
from oyez.ports import BEGINNING, Batch, Capabilities, Finding, Position, Record

WINDOW = 1024
"""Records that one call has on their way at once, at most."""
WINDOW_BYTES = 8 * 1024 * 1024
"""Bytes of data in them, at most (one record may exceed it alone)."""
WINDOWS = 8
"""Calls that have a window on its way at once, at most; others wait."""
SEARCHES = 2
"""Searches for the last records of a stream at once, at most: each has a thread and a consumer."""
GOODBYE = 2.0
"""Seconds that closing waits, at most, to show what was handled."""

T = TypeVar("T")


class KafkaBroker:
    """Streams on a Kafka cluster; the face is `oyez.ports.Broker`."""

    def __init__(
        self, endpoint: Endpoint, ambient: Ambient, options: KafkaOptions, group: str = ""
    ) -> None:
        """``group`` is the consumer group under which `handled` shows what is committed."""
        if endpoint.path:
            raise endpoint.error(f"expected nothing after the hosts, found {endpoint.path!r}")
        self.options = options
        self.capabilities = _capabilities("process-crash", options.max_message_bytes)
        self._endpoint = endpoint
        self._ambient = ambient
        self._group = group
        self._opened: Cluster | None = None
        self._watching: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()
        self._streams: Streams[int] = Streams()
        self._limits: dict[str, int] = {}
        self._ids: dict[str, str] = {}
        self._begun: dict[Place, str] = {}
        self._ends: dict[Place, tuple[int, Position]] = {}
        self._asked_ends = Rounds(self._exact_ends)
        self._searching = asyncio.Semaphore(SEARCHES)
        self._progress = Progress(self._show)
        self._learnt = False
        self._publisher: Publisher | None = None
        self._batch_bytes = BATCH_BYTES
        self._room = asyncio.Semaphore(WINDOWS)
        self._fetchers: list[Fetcher] = []
        self._ending: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        if self._opened is not None:
            return
        try:
            self._opened = Cluster(self._endpoint, self.options)
        except KafkaException as error:
            raise explain(cause(error), self._endpoint) from error
        look = every(self._ambient, self.options.poll, self._look_on)
        self._watching = asyncio.create_task(look, name="kafka streams")
        try:
            await self._look(hasty=True)
            await self._learn()
        except BrokerUnavailable:
            raise
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        cluster = self._opened
        if cluster is None:
            return
        watching, self._watching = self._watching, None
        await stop(watching)
        await self._asked_ends.stop()
        with contextlib.suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(min(GOODBYE, self.options.deadline)):
                await self._progress.show()
        if self._publisher is not None:
            self._discard(self._publisher)
        for fetcher in self._fetchers:
            fetcher.interrupt(BrokerUnavailable(f"{self._endpoint.url} was closed"))
            self._end(fetcher.close())
        self._fetchers.clear()
        while self._ending:
            await asyncio.wait(self._ending)
        self._opened = None
        await cluster.close()

    async def publish(self, records: Sequence[Record]) -> None:
        counts, limits = {}, {}
        for stream in {record.stream for record in records}:
            counts[stream] = self._streams.known.get(stream) or await self._make(stream)
            limits[stream] = self._limits.get(stream) or await self._limit(stream)
        messages = []
        for record, partition in zip(records, partitions_of(records, counts), strict=True):
            found, most = size(record), limits[record.stream] - FRAMING
            if found > most:
                raise too_large(record.stream, found, most, "raise the topic's max.message.bytes")
            messages.append(encode(record, partition))
        for window in windows([len(data or b"") for _, data, *_ in messages], WINDOW_BYTES, WINDOW):
            await self._send(messages[window])

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        place = (stream, partition)
        begun = self._begun.get(place)
        missed, restarted = 0, False
        pauses = Pauses(self._ambient)
        while True:
            try:
                identity = await self._existing(place)
                if after > BEGINNING and begun not in (None, identity):
                    after, missed, restarted = BEGINNING, 0, True
                begun = identity
                self._begun.setdefault(place, identity)
                reading = self._begin(place, after)
                try:
                    while True:
                        records = await reading.take(self.options.batch)
                        pauses.failures = 0
                        after = records[-1].position
                        self._begun[place] = identity
                        batch = Batch(records, missed, restarted)
                        missed, restarted = 0, False
                        yield batch
                finally:
                    self._end_reading(reading)
            except Interrupted as interrupted:
                if interrupted.why is Interruption.OUT_OF_RANGE:
                    with contextlib.suppress(BrokerUnavailable):
                        low, high = await self._bounds(place)
                        if after > high:
                            after, missed, restarted = BEGINNING, 0, True
                        if after < low:
                            after, missed = low, missed + low - after
                            continue
            except BrokerUnavailable:
                if self._opened is None:
                    raise
            await pauses.wait()

    def handled(self, stream: str, partition: int, position: Position) -> None:
        if self._group:
            self._progress.handled[stream, partition] = position

    async def streams(self) -> Mapping[str, int]:
        await self._timed(self._look())
        return dict(self._streams.known)

    async def create(self, stream: str, partitions: int) -> None:
        check_count(stream, await self._make(stream, partitions), partitions)

    async def ends(self, stream: str) -> Sequence[Position]:
        return await self._timed(self._asked_ends.ask(stream))

    async def starts(self, stream: str) -> Sequence[Position]:

        async def look() -> Sequence[Position]:
            partitions = range(await self._cluster.partitions(stream))
            return await self._cluster.starts(stream, partitions)

        return await self._timed(look())

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        return await self._timed(self._behind(stream, positions))

    async def inspect(self) -> Sequence[Finding]:
        return await self._timed(self._inspect())

    def on_streams(self, callback: Callable[[], None]) -> None:
        self._streams.listen(callback)

    # -- publishing --------------------------------------------------------------------------------

    async def _send(self, window: Sequence[Outgoing]) -> None:
        publisher: Publisher | None = None
        try:
            async with asyncio.timeout(self.options.deadline), self._room:
                publisher = self._current_publisher()
                error = await publisher.send(window)
        except TimeoutError:
            error = KafkaError(KafkaError._TIMED_OUT, "no confirmation within the deadline")
            error = (publisher.trouble if publisher is not None else None) or error
        except KafkaException as failure:
            error = cause(failure)
        if error is None:
            return
        if publisher is not None:
            self._discard(publisher)
        if error.code() in UNKNOWN:
            for topic, *_ in window:  # deleted meanwhile: the next attempt creates it
                self._streams.known.pop(topic, None)
        raise self._explain(error)

    def _current_publisher(self) -> Publisher:
        publisher = self._publisher
        if publisher is not None and publisher.batch_bytes > self._batch_bytes:
            self._discard(publisher)
        if self._publisher is None:
            self._publisher = Publisher(self._cluster.settings, self.options, self._batch_bytes)
        return self._publisher

    def _discard(self, publisher: Publisher) -> None:
        if self._publisher is publisher:
            self._publisher = None
        if not publisher.discarded:
            publisher.discard()
            self._end(publisher.close())

    async def _make(self, stream: str, partitions: int = 0) -> int:
        """Make the stream unless it is there; how many partitions it has now."""

        async def make() -> int:
            async with self._looking:
                found = await self._cluster.partitions(stream)
                if not found:
                    found = await self._cluster.create(
                        stream, partitions or self.options.partitions
                    )
                if self._streams.known.get(stream) != found:
                    await self._identify([stream] if stream in self._ids else [])
                    self._know({**self._streams.known, stream: found})
                return found

        return await self._timed(make())

    async def _limit(self, stream: str) -> int:
        """The topic's ``max.message.bytes``."""
        configs = await self._timed(self._cluster.configs([stream]))
        limit = int(configs.get(stream, {}).get("max.message.bytes", BATCH_BYTES))
        self._limits[stream] = limit
        self._batch_bytes = min(self._batch_bytes, limit)  # the driver does not split a message set
        return limit

    # -- reading -----------------------------------------------------------------------------------

    async def _existing(self, place: Place) -> str:
        """Wait until the partition exists; which topic it is of."""
        stream, partition = place
        while self._streams.known.get(stream, 0) <= partition:
            await self._streams.changed.wait()
        if stream not in self._ids:
            self._ids.update(await self._timed(self._cluster.ids([stream])))
        if stream not in self._ids:
            raise BrokerUnavailable(f"{self._endpoint.url}: topic {stream} was deleted meanwhile")
        return self._ids[stream]

    def _begin(self, place: Place, after: Position) -> Reading:
        """Have a fetcher fetch the place; a second reader of it needs a second fetcher."""
        for fetcher in self._fetchers:
            if place not in fetcher.readings and not fetcher.ended:
                return fetcher.begin(place, after)
        try:
            fetcher = Fetcher(self._cluster.settings, self.options, self._explain)
        except KafkaException as error:
            raise self._explain(cause(error)) from error
        self._fetchers.append(fetcher)
        return fetcher.begin(place, after)

    def _end_reading(self, reading: Reading) -> None:
        for fetcher in self._fetchers:
            fetcher.end(reading)
        # The first is kept: it will be wanted again.
        spare = [f for f in self._fetchers[1:] if not f.readings]
        ended = [f for f in self._fetchers if f.ended]
        for fetcher in {*spare, *ended}:
            self._fetchers.remove(fetcher)
            self._end(fetcher.close())

    async def _bounds(self, place: Place) -> tuple[Position, Position]:
        stream, partition = place

        async def look() -> tuple[Position, Position]:
            (low,) = await self._cluster.starts(stream, [partition])
            (high,) = await self._cluster.ends(stream, [partition])
            return low, high

        return await self._timed(look())

    # -- streams and positions ---------------------------------------------------------------------

    async def _look_on(self) -> None:
        await self._look()
        if not self._learnt:
            await self._learn()
            self._learnt = True
        await self._progress.show()

    async def _look(self, *, hasty: bool = False) -> None:
        """Find out which topics there are, and whether one that is read was made anew."""
        async with self._looking:
            topics = await self._cluster.topics(hasty=hasty)
            await self._identify([stream for stream in self._ids if stream in topics])
            self._know({name: len(topic.partitions) for name, topic in topics.items()})

    async def _identify(self, streams: Sequence[str]) -> None:
        """End the readings of those among these streams that were deleted and made anew."""
        ids = await self._cluster.ids(streams)
        remade = {stream for stream, identity in ids.items() if self._ids[stream] != identity}
        self._ids.update(ids)
        for fetcher in self._fetchers:
            for (stream, _), reading in fetcher.readings.items():
                if stream in remade:
                    reading.interrupt(Interruption.REMADE)
                    reading.wake()

    def _know(self, streams: dict[str, int]) -> None:
        if streams != self._streams.known:
            self._limits = {each: most for each, most in self._limits.items() if each in streams}
            self._ends = {place: end for place, end in self._ends.items() if place[0] in streams}
            self._streams.replace(streams)

    async def _exact_ends(self, stream: str) -> list[Position]:
        partitions = range(await self._cluster.partitions(stream))
        if not partitions:
            return []
        highs = await self._cluster.ends(stream, partitions)
        found = await self._last_positions(stream, dict(enumerate(highs)))
        return [found[partition] for partition in partitions]

    async def _last_positions(self, stream: str, highs: Mapping[int, int]) -> dict[int, Position]:
        """The position of the last record before each of these offsets."""
        async with self._searching:
            found = {p: end for p in highs if (end := self._known_end((stream, p), highs[p])) >= 0}
            unknown = sorted(highs.keys() - found.keys())
            if not unknown:
                return found
            lows = dict(zip(unknown, await self._cluster.starts(stream, unknown), strict=True))
            places = {(stream, p): (low, highs[p]) for p, low in lows.items() if low < highs[p]}
            positions = await self._cluster.last_positions(places) if places else {}
            for partition, low in lows.items():
                # What was deleted meanwhile ends where what is left begins.
                found[partition] = positions.get((stream, partition), low)
                self._ends[stream, partition] = (highs[partition], found[partition])
        return found

    def _known_end(self, place: Place, high: int) -> Position:
        """The position of the last record before this offset, if it is known; else -1."""
        before, position = self._ends.get(place, (-1, -1))
        return position if before == high else -1

    async def _behind(self, stream: str, positions: Mapping[int, Position]) -> dict[int, int]:
        count = await self._cluster.partitions(stream)
        asked = sorted(p for p in positions if p < count)
        if not asked:
            return {}
        highs = dict(zip(asked, await self._cluster.ends(stream, asked), strict=True))
        lag = {p: max(0, highs[p] - positions[p]) for p in asked}
        unsure = {}
        for partition in (p for p in asked if lag[p]):
            at, high = positions[partition], highs[partition]
            readings = [f.readings.get((stream, partition)) for f in self._fetchers]
            reading = next((r for r in readings if r is not None), None)
            if reading is not None and reading.seen > at:
                continue
            if reading is not None and reading.reached is not None and reading.reached >= high:
                lag[partition] = 0
            else:
                unsure[partition] = high
        if unsure:
            # What stands there may be no record but the marker of a transaction.
            ends = await self._last_positions(stream, unsure)
            lag.update({p: max(0, ends[p] - positions[p]) for p in unsure})
        return lag

    async def _show(self, moved: Mapping[Place, Position]) -> None:
        known = {place: at for place, at in moved.items() if place[0] in self._streams.known}
        if known:
            await self._cluster.commit(self._group, known)

    # -- what the cluster is set to ----------------------------------------------------------------

    async def _learn(self) -> None:
        """Find out what an acknowledged record survives, and how large it may be."""
        options, cluster = self.options, self._cluster
        replicas, insync, flushed = cluster.replication, cluster.insync, cluster.insync < 2
        limit = options.max_message_bytes
        own = self._group
        if own in self._streams.known:
            (topic,) = (await cluster.describe({own: (await cluster.topics())[own]})).values()
            replicas = topic.replicas
            insync = min(replicas, int(topic.config.get("min.insync.replicas", 1)))
            flushed = topic.config.get("flush.messages") == "1"
            limit = int(topic.config.get("max.message.bytes", limit))
        durability = "power-loss" if insync > 1 or flushed else "process-crash"
        if options.acks != "all" and replicas > 1:
            durability = "volatile"
        self.capabilities = _capabilities(durability, limit)

    async def _inspect(self) -> list[Finding]:
        cluster, options = self._cluster, self.options
        topics = await cluster.describe(await cluster.topics())
        clear = (
            self._endpoint.user is not None
            and options.sasl_mechanism == "PLAIN"
            and not options.tls
        )
        findings = judge(topics, options, brokers=cluster.brokers, clear_password=clear)
        if self._group and await cluster.members(self._group):
            findings.append(
                Finding(
                    grave=False,
                    what=f"another program is a member of the consumer group {self._group}: the "
                    "group's offsets do not show what this service has handled",
                    remedy="give that program another group.id",
                )
            )
        return findings

    # -- all calls ---------------------------------------------------------------------------------

    @property
    def _cluster(self) -> Cluster:
        if self._opened is None:
            raise BrokerUnavailable(f"{self._endpoint.url} is not open")
        return self._opened

    async def _timed(self, answer: Awaitable[T]) -> T:
        async with Deadline(self.options.deadline + 0.5, self._endpoint.url):
            return await answer

    def _explain(self, error: KafkaError) -> BrokerError:
        return explain(error, self._endpoint)

    def _end(self, closing: Awaitable[None]) -> None:
        async def finish() -> None:
            await closing

        task = asyncio.create_task(finish(), name="kafka end")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _capabilities(durability: str, limit: int) -> Capabilities:
    return Capabilities(
        durability=durability, history=True, processes=True, max_bytes=limit - FRAMING
    )
