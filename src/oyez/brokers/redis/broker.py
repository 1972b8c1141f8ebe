"""Redis Streams as an `oyez.ports.Broker`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from redis.exceptions import ResponseError

from oyez.ambient import Ambient
from oyez.brokers.kit.progress import Progress
from oyez.brokers.kit.streams import Place, Streams, check_count, partitions_of
from oyez.brokers.kit.watch import every, stop
from oyez.brokers.redis.connection import Connection
from oyez.brokers.redis.inspection import judge, parse_info
from oyez.brokers.redis.options import RedisOptions
from oyez.brokers.redis.partition import Partition, look
from oyez.brokers.redis.reader import Arrivals, Reader
from oyez.brokers.redis.wire import MAX_BYTES, Command, encode, id_of, key_of
from oyez.endpoint import Endpoint
from oyez.errors import BrokerError, BrokerRefused
from oyez.ports import Batch, Capabilities, Finding, Position, Record

STREAMS = "oyez:streams"
"""The hash that holds each stream's number of partitions."""
COUNTED = 10_000
"""The limit of entries after a position that are counted; a larger number is estimated."""

_COUNT = """local at, most, found = ARGV[1], tonumber(ARGV[2]), 0
repeat
  local entries = redis.call('XRANGE', KEYS[1], '(' .. at, '+', 'COUNT', 500)
  found = found + #entries
  if #entries > 0 then at = entries[#entries][1] end
until #entries < 500 or found >= most
return found"""


class RedisBroker:
    """Streams on one Redis primary; an `oyez.ports.Broker`."""

    def __init__(
        self, endpoint: Endpoint, ambient: Ambient, options: RedisOptions, group: str = ""
    ) -> None:
        """``group`` is the consumer group whose committed positions `handled` reports."""
        if len(endpoint.hosts) > 1:
            raise endpoint.error("expected one host: Redis Cluster and Sentinel are not supported")
        if endpoint.path and not endpoint.path.isdigit():
            raise endpoint.error(f"expected the number of a database, found {endpoint.path!r}")
        self.options = options
        self.capabilities = Capabilities(
            durability="process-crash", history=True, processes=True, max_bytes=MAX_BYTES
        )
        self._endpoint = endpoint
        self._ambient = ambient
        self._group = group
        self._connection = Connection(endpoint, options)
        self._arrivals = Arrivals(self._connection, ambient, options.block)
        self._streams: Streams[int] = Streams()
        self._readers: dict[Place, Reader] = {}
        self._progress = Progress(self._show)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(
                    every(self._ambient, self.options.poll, self._look), name="redis streams"
                ),
                asyncio.create_task(
                    every(self._ambient, self.options.housekeeping, self._trim), name="redis trim"
                ),
            ]
            self._arrivals.start()
        await self._learn_durability()
        await self.streams()

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        if tasks:
            await stop(*tasks)
            await self._arrivals.stop()
            with contextlib.suppress(BrokerError):
                await self._progress.show()
        await self._connection.close()

    async def publish(self, records: Sequence[Record]) -> None:
        counts = {}
        for stream in {record.stream for record in records}:
            counts[stream] = self._streams.known.get(stream) or await self._make(stream)
        indexes = partitions_of(records, counts)
        commands = [encode(record, p) for record, p in zip(records, indexes, strict=True)]
        if commands:
            await self._connection.call(commands)

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        place = (stream, partition)
        reader = self._readers[place] = Reader(
            self._connection, self._arrivals, self._ambient, self.options, self._group, place, after
        )
        while True:
            yield await reader.next()

    def handled(self, stream: str, partition: int, position: Position) -> None:
        if self._group:
            self._progress.handled[stream, partition] = position

    async def streams(self) -> Mapping[str, int]:
        (found,) = await self._connection.call([("HGETALL", STREAMS)])
        names, counts = found[::2], found[1::2]
        streams = {name.decode(): int(count) for name, count in zip(names, counts, strict=True)}
        self._streams.replace(streams)
        return streams

    async def create(self, stream: str, partitions: int) -> None:
        check_count(stream, await self._make(stream, partitions), partitions)

    async def ends(self, stream: str) -> Sequence[Position]:
        return [info.last for info in await self._partitions(stream)]

    async def starts(self, stream: str) -> Sequence[Position]:
        return [info.start for info in await self._partitions(stream)]

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        infos = await self._partitions(stream)
        asked = {p: at for p, at in positions.items() if p < len(infos)}
        counts = {p: infos[p].behind(at) for p, at in asked.items()}
        unknown = [p for p, count in counts.items() if count is None]
        commands = [
            ("EVAL_RO", _COUNT, 1, key_of(stream, p), id_of(asked[p]), COUNTED) for p in unknown
        ]
        replies = await self._connection.call(commands, tolerant=True) if commands else []
        for p, reply in zip(unknown, replies, strict=True):
            counted = 0 if isinstance(reply, ResponseError) else int(reply)  # scripts may be denied
            exact = 0 < counted < COUNTED
            counts[p] = counted if exact else max(counted, infos[p].estimate(asked[p]))
        return {p: count for p, count in counts.items() if count is not None}

    async def inspect(self) -> Sequence[Finding]:
        settings = await self._settings()
        (text,) = await self._connection.call([("INFO", "everything")])
        return judge(settings, parse_info(text))

    def on_streams(self, callback: Callable[[], None]) -> None:
        self._streams.listen(callback)

    async def _partitions(self, stream: str) -> list[Partition]:
        (count,) = await self._connection.call([("HGET", STREAMS, stream)])
        keys = [key_of(stream, partition) for partition in range(int(count or 0))]
        return await look(self._connection, keys, self._group)

    # -- streams and housekeeping ------------------------------------------------------------------

    async def _make(self, stream: str, partitions: int = 0) -> int:
        """Create the stream unless it exists; return its number of partitions."""
        count = partitions or self.options.partitions
        _, found = await self._connection.call(
            [("HSETNX", STREAMS, stream, count), ("HGET", STREAMS, stream)]
        )
        self._streams.add(stream, int(found))
        return int(found)

    async def _look(self) -> None:
        await self.streams()
        await self._progress.show()

    async def _trim(self) -> None:
        oldest = max(0, int((self._ambient.now() - self.options.retention) * 1000))
        for stream, partitions in self._streams.known.items():
            keys = [key_of(stream, partition) for partition in range(partitions)]
            await self._connection.call(
                [("XTRIM", key, "MINID", "~", f"{oldest}-0") for key in keys]
            )

    async def _show(self, moved: Mapping[Place, Position]) -> None:
        commands: list[Command] = []
        for place, position in moved.items():
            key, entry = key_of(*place), id_of(position)
            reader = self._readers.get(place)
            read = reader.entries_up_to(position) if reader is not None else None
            known = () if read is None else ("ENTRIESREAD", read)
            commands.append(("XGROUP", "CREATE", key, self._group, entry))
            commands.append(("XGROUP", "SETID", key, self._group, entry, *known))
        # The group may exist, or the stream not.
        await self._connection.call(commands, tolerant=True)

    async def _learn_durability(self) -> None:
        settings = await self._settings()
        durability = "process-crash"
        if settings.get("appendonly") == "no":
            durability = "volatile"
        elif settings.get("appendfsync") == "always":
            durability = "power-loss"
        self.capabilities = Capabilities(
            durability=durability, history=True, processes=True, max_bytes=MAX_BYTES
        )

    async def _settings(self) -> dict[str, str]:
        """Return the settings of persistence and memory; empty without permission."""
        names = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "cluster-enabled")
        replies = await self._connection.call(
            [("CONFIG", "GET", name) for name in names], tolerant=True
        )
        found = [reply for reply in replies if not isinstance(reply, ResponseError) and reply]
        settings = {name.decode(): value.decode() for name, value in found}
        if settings.get("cluster-enabled") == "yes":
            raise BrokerRefused(
                f"{self._endpoint.url} is a Redis Cluster, which is not supported: "
                "use a single primary with replicas"
            )
        return settings
