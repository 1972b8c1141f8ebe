"""Redis Streams: each partition is one stream, ``STREAM:P``, read by position.

A record is an entry with the fields ``key``, ``data`` and, for each CloudEvents attribute, ``ce_``
and its name. A producer in another language adds it to partition murmur2(key) mod P, where P
stands in the hash ``oyez:streams``; an entry without ``data`` is a tombstone. The consumer groups
are for display: their last-delivered-id follows what is committed, and ``XINFO GROUPS`` tells the
lag. Reading itself goes by position, so nothing is pending and nothing needs an ``XACK``.

Positions are entry ids: the milliseconds shifted left by 20 bits, and the sequence number.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.connection import BlockingConnectionPool
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from oyez.ambient import Ambient, backoff
from oyez.endpoint import (
    BatchBytes,
    Count,
    Endpoint,
    Partitions,
    Retention,
    Seconds,
    Tls,
    mistrust,
)
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable
from oyez.partitioning import partition_of, partition_without_key
from oyez.ports import BEGINNING, Batch, Capabilities, Finding, Position, Record

STREAMS = "oyez:streams"
"""The hash that holds each stream's number of partitions."""
SEQUENCE_BITS = 20
COUNTED = 10_000
"""Entries behind a position that are counted one by one; beyond, their number is estimated."""
MAX_BYTES = 64 * 1024 * 1024
"""The largest record, well below the 512 MiB that Redis takes for one value."""

T = TypeVar("T")
Entry = tuple[bytes, dict[bytes, bytes]]
Place = tuple[str, int]


class RedisOptions(Tls, frozen=True, kw_only=True):
    """How the Redis broker behaves."""

    partitions: Partitions = 8
    """How many a stream gets that is made by its first record."""
    retention: Retention = 7 * 86_400.0
    """Entries older than this many seconds are trimmed."""
    batch: Count = 256
    """Records in one batch, at most."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """Bytes of data that a reader asks for at once; one record may exceed it alone."""
    deadline: Seconds = 10.0
    """Seconds after which a call gives up with BrokerUnavailable."""
    connections: Count = 8
    """Connections for calls, at most; one more waits for what arrives."""
    block: Seconds = 2.0
    """Seconds that the waiting connection stays silent, at most, while all is well."""
    housekeeping: Seconds = 60.0
    """Seconds between two rounds of trimming."""


class RedisBroker:
    """Streams on one Redis primary; the face is `oyez.ports.Broker`."""

    def __init__(
        self, endpoint: Endpoint, ambient: Ambient, options: RedisOptions, group: str = ""
    ) -> None:
        """``group`` is the consumer group under which `handled` shows what is committed."""
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
        self._pool = _pool(endpoint, options)
        self._arrivals = _Arrivals(self)
        self._streams: dict[str, int] = {}
        self._listeners: list[Callable[[], None]] = []
        self._progress: dict[Place, _Progress] = {}
        self._handled: dict[Place, Position] = {}
        self._housekeeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """See `Broker.open`."""
        if self._housekeeping is None:
            self._housekeeping = asyncio.create_task(self._keep_house(), name="redis housekeeping")
            self._arrivals.start()
        await self._learn_durability()
        await self.streams()

    async def close(self) -> None:
        """See `Broker.close`."""
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            await asyncio.wait([self._housekeeping])
            self._housekeeping = None
            await self._arrivals.stop()
            with contextlib.suppress(BrokerError):
                await self._show_handled()
        await self._pool.disconnect()

    async def publish(self, records: Sequence[Record]) -> None:
        """See `Broker.publish`."""
        commands: list[tuple[str | bytes, ...]] = []
        for record in records:
            partitions = self._streams.get(record.stream) or await self._make(record.stream)
            commands.append(_add(record, partitions))
        if commands:
            await self.call(commands)

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        """See `Broker.read`."""
        progress = self._progress[stream, partition] = _Progress(_key(stream, partition), after)
        failures = 0
        while True:
            try:
                batch = await self._fetch(progress, stream, partition)
                failures = 0
            except BrokerUnavailable:
                failures += 1
                progress.verified = False
                await self._ambient.sleep(backoff(failures, self._ambient.chance()))
                continue
            if batch is None:
                await self._arrivals.wait(progress.key, progress.position)
            else:
                yield batch

    def handled(self, stream: str, partition: int, position: Position) -> None:
        """See `Broker.handled`."""
        if self._group:
            self._handled[stream, partition] = position

    async def streams(self) -> Mapping[str, int]:
        """See `Broker.streams`."""
        (found,) = await self.call([("HGETALL", STREAMS)])
        names, counts = found[::2], found[1::2]
        streams = {name.decode(): int(count) for name, count in zip(names, counts, strict=True)}
        added = streams.keys() != self._streams.keys()
        self._streams = streams
        if added:
            for callback in self._listeners:
                callback()
        return streams

    async def create(self, stream: str, partitions: int) -> None:
        """See `Broker.create`."""
        found = await self._make(stream, partitions)
        if found != partitions:
            raise BrokerRefused(
                f"stream {stream} has {found} partitions, not {partitions}: the number is fixed "
                "when a stream is made; set system.partitions to it or use a new stream"
            )

    async def ends(self, stream: str) -> Sequence[Position]:
        """See `Broker.ends`."""
        return [info.last for info in await self._look(stream)]

    async def starts(self, stream: str) -> Sequence[Position]:
        """See `Broker.starts`."""
        return [info.start for info in await self._look(stream)]

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        """See `Broker.lag`."""
        infos = await self._look(stream)
        asked = {p: at for p, at in positions.items() if p < len(infos)}
        counts = {p: infos[p].behind(at) for p, at in asked.items()}
        unknown = [p for p, count in counts.items() if count is None]
        commands = [
            ("EVAL_RO", _COUNT, 1, _key(stream, p), _id(asked[p]), COUNTED) for p in unknown
        ]
        replies = await self.call(commands, tolerant=True) if commands else []
        for p, reply in zip(unknown, replies, strict=True):
            counted = 0 if isinstance(reply, ResponseError) else int(reply)  # scripts may be denied
            exact = 0 < counted < COUNTED
            counts[p] = counted if exact else max(counted, infos[p].estimate(asked[p]))
        return {p: count for p, count in counts.items() if count is not None}

    async def inspect(self) -> Sequence[Finding]:
        """See `Broker.inspect`."""
        settings = await self._settings()
        (text,) = await self.call([("INFO", "everything")])
        return _judge(settings, _parse_info(text))

    def on_streams(self, callback: Callable[[], None]) -> None:
        """See `Broker.on_streams`."""
        self._listeners.append(callback)

    # -- talking to the server ---------------------------------------------------------------------

    async def call(
        self, commands: Sequence[tuple[str | bytes | int, ...]], *, tolerant: bool = False
    ) -> list[Any]:
        """The replies to commands sent in one round trip, in order.

        Raises BrokerError for the first that failed; ``tolerant`` leaves a refusal in its place.
        """
        return await self._guarded(self._exchange(commands, tolerant=tolerant))

    async def connection(self) -> Connection:
        """A connection of the caller's own."""
        connection = _connection_class(self._endpoint)(**self._pool.connection_kwargs)
        try:
            await self._guarded(connection.connect())  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _exchange(
        self, commands: Sequence[tuple[str | bytes | int, ...]], *, tolerant: bool
    ) -> list[Any]:
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        replies: list[Any] = []
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    replies.append(await connection.read_response(disconnect_on_error=False))
                except ResponseError as error:
                    replies.append(error)
        finally:
            if len(replies) < len(commands):
                # What still comes would be taken for the answers to someone else's commands.
                await connection.disconnect(nowait=True)
            await self._pool.release(connection)
        for reply in replies:
            if isinstance(reply, ResponseError) and not tolerant:
                raise reply
        return replies

    async def _guarded(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.options.deadline):
                return await answer
        except TimeoutError as error:
            raise BrokerUnavailable(
                f"{self._endpoint.url} did not answer within {self.options.deadline:g} s"
            ) from error
        except (RedisError, OSError) as error:
            raise _explain(error, self._endpoint) from error

    # -- reading -----------------------------------------------------------------------------------

    async def _fetch(self, progress: _Progress, stream: str, partition: int) -> Batch | None:
        missed, restarted = 0, False
        if not progress.verified:
            (info,) = await self._infos([progress.key])
            restarted = progress.position > info.last > BEGINNING
            if restarted:
                progress.position = BEGINNING
            else:
                missed = info.missed(progress.position)
            progress.entries_read = info.entries_before(max(progress.position, info.start))
            progress.verified = True
        command = ("XRANGE", progress.key, _after(progress.position), "+", "COUNT", progress.count)
        (entries,) = await self.call([command])
        if not entries:
            # Told with the first record, so that it is not lost when there is none yet.
            progress.verified = not (missed or restarted)
            return None
        records = [_record(entry, stream, partition) for entry in entries]
        progress.advance(records, self.options)
        return Batch(records, missed, restarted)

    async def _look(self, stream: str) -> list[_Info]:
        (partitions,) = await self.call([("HGET", STREAMS, stream)])
        return await self._infos([_key(stream, p) for p in range(int(partitions or 0))])

    async def _infos(self, keys: list[bytes]) -> list[_Info]:
        commands = [(*command, key) for key in keys for command in _LOOK]
        replies = await self.call(commands, tolerant=True)
        for reply in replies:
            if isinstance(reply, ResponseError) and "no such key" not in str(reply):
                raise _explain(reply, self._endpoint)
        group = self._group.encode()
        return [
            _Info(stream, groups, group)
            for stream, groups in zip(replies[::2], replies[1::2], strict=True)
        ]

    # -- streams and housekeeping ------------------------------------------------------------------

    async def _make(self, stream: str, partitions: int = 0) -> int:
        """Make the stream unless it is there; how many partitions it has now."""
        count = partitions or self.options.partitions
        made, found = await self.call(
            [("HSETNX", STREAMS, stream, count), ("HGET", STREAMS, stream)]
        )
        self._streams[stream] = int(found)
        if made:
            for callback in self._listeners:
                callback()
        return int(found)

    async def _keep_house(self) -> None:
        trimmed = self._ambient.monotonic()
        while True:
            await self._ambient.sleep(1.0)
            with contextlib.suppress(BrokerError):  # whoever reads or publishes reports it
                await self.streams()
                await self._show_handled()
                if self._ambient.monotonic() - trimmed > self.options.housekeeping:
                    trimmed = self._ambient.monotonic()
                    await self._trim()

    async def _trim(self) -> None:
        oldest = max(0, int((self._ambient.now() - self.options.retention) * 1000))
        for stream, partitions in self._streams.items():
            keys = [_key(stream, partition) for partition in range(partitions)]
            await self.call([("XTRIM", key, "MINID", "~", f"{oldest}-0") for key in keys])

    async def _show_handled(self) -> None:
        moved, self._handled = self._handled, {}
        commands: list[tuple[str | bytes | int, ...]] = []
        for (stream, partition), position in moved.items():
            key, place = _key(stream, partition), _id(position)
            progress = self._progress.get((stream, partition))
            read = progress.entries_up_to(position) if progress is not None else None
            known = () if read is None else ("ENTRIESREAD", read)
            commands.append(("XGROUP", "CREATE", key, self._group, place))
            commands.append(("XGROUP", "SETID", key, self._group, place, *known))
        if commands:
            try:
                await self.call(commands, tolerant=True)  # the group is there; or the stream is not
            except BrokerError:
                self._handled = {**moved, **self._handled}
                raise

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
        """What persistence and memory are set to; empty where the user may not ask."""
        names = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "cluster-enabled")
        replies = await self.call([("CONFIG", "GET", name) for name in names], tolerant=True)
        found = [reply for reply in replies if not isinstance(reply, ResponseError) and reply]
        settings = {name.decode(): value.decode() for name, value in found}
        if settings.get("cluster-enabled") == "yes":
            raise BrokerRefused(
                f"{self._endpoint.url} is a Redis Cluster, which is not supported: "
                "use a single primary with replicas"
            )
        return settings


class _Progress:
    """How far one reader is, and how many entries that makes."""

    def __init__(self, key: bytes, position: Position) -> None:
        self.key = key
        self.position = position
        self.verified = False
        self.entries_read: int | None = None
        self.count = 16
        self._last: list[Position] = []

    def advance(self, records: list[Record], options: RedisOptions) -> None:
        """Stand behind these records, and ask for as many next as fit by their size."""
        self._last = [record.position for record in records]
        self.position = self._last[-1]
        if self.entries_read is not None:
            self.entries_read += len(records)
        largest = max(len(record.data or b"") for record in records)
        fit = options.batch_bytes // (largest + 1024)
        self.count = max(1, min(options.batch, fit, self.count * 2))

    def entries_up_to(self, position: Position) -> int | None:
        """How many entries the stream ever had up to one of the last batch; None if unknown."""
        if self.entries_read is None or position not in self._last:
            return None
        return self.entries_read - len(self._last) + 1 + self._last.index(position)


class _Info:
    """What Redis tells about one partition and the group on it."""

    def __init__(self, stream: Any, groups: Any, group: bytes) -> None:
        self.last = self.start = BEGINNING
        self.length: int = 0
        self.added: int = 0
        self._shown: Position | None = None
        self._shown_entries: int | None = None
        if isinstance(stream, ResponseError):
            return
        info = _pairs(stream)
        self.last = _position(info[b"last-generated-id"])
        self.length, self.added = info[b"length"], info[b"entries-added"]
        first = info[b"first-entry"]
        if self.added > self.length:
            self.start = _position(first[0]) - 1 if first else self.last
        for each in () if isinstance(groups, ResponseError) else map(_pairs, groups):
            if each[b"name"] == group:
                self._shown = _position(each[b"last-delivered-id"])
                self._shown_entries = each[b"entries-read"]

    def entries_before(self, position: Position) -> int | None:
        """How many entries the stream ever had up to there; None if unknown."""
        if position <= self.start:
            return self.added - self.length
        if position >= self.last:
            return self.added
        return self._shown_entries if position == self._shown else None

    def missed(self, position: Position) -> int:
        """How many entries behind the position are trimmed; at least 1 if any may be."""
        if position >= self.start:
            return 0
        trimmed = self.added - self.length
        if position == BEGINNING:
            return trimmed
        if position == self._shown and self._shown_entries is not None:
            return max(0, trimmed - self._shown_entries)
        return 1

    def behind(self, position: Position) -> int | None:
        """How many entries stand behind the position; None where nobody counted."""
        if position >= self.last:
            return 0
        before = self.entries_before(position)
        return None if before is None else max(1, self.added - before)

    def estimate(self, position: Position) -> int:
        """About how many stand behind the position, if they came at a steady rate."""
        share = (self.last - position) / max(1, self.last - self.start)
        return max(1, min(self.length, round(self.length * share)))


class _Arrivals:
    """Waits for new entries of all partitions on one connection, by a blocking XREAD."""

    def __init__(self, broker: RedisBroker) -> None:
        self._broker = broker
        self._waiting: dict[bytes, tuple[Position, asyncio.Future[None]]] = {}
        self._changed = asyncio.Event()
        self._client: int | None = None
        self._block = broker.options.block
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to wait on behalf of readers."""
        self._tasks = [
            asyncio.create_task(self._run(), name="redis arrivals"),
            asyncio.create_task(self._unblock(), name="redis unblock"),
        ]

    async def stop(self) -> None:
        """Wait no more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def wait(self, key: bytes, position: Position) -> None:
        """Return when there may be an entry behind the position."""
        waiting = self._waiting.get(key)
        if waiting is not None and waiting[0] == position and not waiting[1].done():
            await asyncio.shield(waiting[1])
            return
        future = asyncio.get_running_loop().create_future()
        if waiting is not None and not waiting[1].done():
            waiting[1].set_result(None)  # a second reader at another place: the first looks again
        self._waiting[key] = (position, future)
        self._changed.set()
        await asyncio.shield(future)

    def _wake(self, key: bytes) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None and not waiting[1].done():
            waiting[1].set_result(None)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._listen()
            except BrokerError:
                failures += 1
                ambient = self._broker._ambient
                for key in list(self._waiting):
                    self._wake(key)  # each reader tries for itself, and reports
                await ambient.sleep(backoff(failures, ambient.chance(), most=1.0))
            else:
                failures = 0

    async def _listen(self) -> None:
        """Listen until the connection fails."""
        broker = self._broker
        connection = await broker.connection()
        try:
            self._client = await self._ask(connection, "CLIENT", "ID")
            while True:
                if not self._waiting:
                    self._changed.clear()
                    await self._changed.wait()
                self._changed.clear()
                keys = list(self._waiting)
                ids = [_id(self._waiting[key][0]) for key in keys]
                found = await self._ask(
                    connection, "XREAD", "COUNT", 1, "BLOCK", int(self._block * 1000),
                    "STREAMS", *keys, *ids, timeout=self._block,
                )  # fmt: skip
                for key, _ in found or ():
                    self._wake(key)
        finally:
            self._client = None
            await connection.disconnect(nowait=True)

    async def _ask(
        self, connection: Connection, *command: str | bytes | int, timeout: float = 0.0
    ) -> Any:
        async def exchange() -> Any:
            await connection.send_command(*command)
            return await connection.read_response(timeout=None)

        endpoint, deadline = self._broker._endpoint, self._broker.options.deadline + timeout
        try:
            async with asyncio.timeout(deadline):
                return await exchange()
        except TimeoutError as error:
            raise BrokerUnavailable(f"{endpoint.url} did not answer") from error
        except (RedisError, OSError) as error:
            raise _explain(error, endpoint) from error

    async def _unblock(self) -> None:
        """End the blocking call when there is one more partition to wait for."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(0)  # readers that turn idle together are added together
            client = self._client
            if client is None or not self._changed.is_set():
                await self._broker._ambient.sleep(0.01)
                continue
            try:
                await self._broker.call([("CLIENT", "UNBLOCK", client)])
            except BrokerRefused:
                self._block = 0.05  # not permitted: look around often instead
            except BrokerError:
                pass
            await self._broker._ambient.sleep(0.001)


_COUNT = """local at, most, found = ARGV[1], tonumber(ARGV[2]), 0
repeat
  local entries = redis.call('XRANGE', KEYS[1], '(' .. at, '+', 'COUNT', 500)
  found = found + #entries
  if #entries > 0 then at = entries[#entries][1] end
until #entries < 500 or found >= most
return found"""
_LOOK = (("XINFO", "STREAM"), ("XINFO", "GROUPS"))


def _pool(endpoint: Endpoint, options: RedisOptions) -> BlockingConnectionPool:
    host, port = endpoint.hosts[0]
    settings: dict[str, Any] = {
        "host": host,
        "port": port,
        "db": int(endpoint.path or 0),
        "username": endpoint.user or None,
        "password": endpoint.password,
        "socket_timeout": None,
        "socket_connect_timeout": options.deadline,
        "socket_keepalive": True,
        "protocol": 2,
        "client_name": "oyez",
    }
    if endpoint.scheme == "rediss":
        settings |= {
            "ssl_ca_certs": options.cafile,
            "ssl_certfile": options.certfile,
            "ssl_keyfile": options.keyfile,
            "ssl_check_hostname": True,
        }
    return BlockingConnectionPool(
        max_connections=options.connections,
        timeout=None,
        connection_class=_connection_class(endpoint),
        **settings,
    )


def _connection_class(endpoint: Endpoint) -> type[Connection]:
    return SSLConnection if endpoint.scheme == "rediss" else Connection


def _explain(error: Exception, endpoint: Endpoint) -> BrokerError:
    if told := mistrust(error):
        return BrokerRefused(f"{endpoint.url}: {told}")
    if isinstance(error, AuthenticationError | NoPermissionError):
        return BrokerRefused(f"{endpoint.url}: {error}: check the URL's user and password")
    if isinstance(error, OutOfMemoryError):
        return BrokerUnavailable(f"{endpoint.url} is out of memory: raise maxmemory, or trim")
    passing = isinstance(error, BusyLoadingError | ReadOnlyError)
    if isinstance(error, ResponseError) and not passing:
        return BrokerRefused(f"{endpoint.url}: {error}")
    host, port = endpoint.hosts[0]
    return BrokerUnavailable(f"{endpoint.url}: {host}:{port} is out of reach: {error}")


def _key(stream: str, partition: int) -> bytes:
    return f"{stream}:{partition}".encode()


def _add(record: Record, partitions: int) -> tuple[str | bytes, ...]:
    size = len(record.data or b"") + sum(map(len, record.headers.values()))
    if size > MAX_BYTES:
        raise BrokerRefused(
            f"the record is {size} bytes; {MAX_BYTES} are allowed: set system.claim_check"
        )
    if record.key is None:
        index = partition_without_key(record.headers.get("id", ""), partitions)
    else:
        index = partition_of(record.key, partitions)
    command: list[str | bytes] = ["XADD", _key(record.stream, index), "*"]
    if record.key is not None:
        command += (b"key", record.key)
    for name, value in record.headers.items():
        command += (f"ce_{name}", value)
    if record.data is not None:
        command += (b"data", record.data)
    if len(command) == 3:
        command += (b"empty", b"")  # Redis knows no entry without a field
    return tuple(command)


def _record(entry: tuple[bytes, list[bytes]], stream: str, partition: int) -> Record:
    """A record of any entry; what is not ours comes through as it is, for the lane to judge."""
    place, fields = entry
    headers: dict[str, str] = {}
    key: str | None = None
    data: bytes | None = None
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name == b"data":
            data = value
        elif name == b"key":
            key = value.decode(errors="replace")
        else:
            text = name.decode(errors="replace")
            headers[text.removeprefix("ce_")] = value.decode(errors="replace")
    headers.pop("empty", None) if data is None and key is None and len(headers) == 1 else None
    position = _position(place)
    return Record(
        stream=stream,
        key=key,
        headers=headers,
        data=data,
        partition=partition,
        position=position,
        time=(position >> SEQUENCE_BITS) / 1000,
    )


def _position(place: bytes) -> Position:
    millis, _, sequence = place.partition(b"-")
    return int(millis) << SEQUENCE_BITS | int(sequence)


def _id(position: Position) -> str:
    return f"{position >> SEQUENCE_BITS}-{position & (1 << SEQUENCE_BITS) - 1}"


def _after(position: Position) -> str:
    return f"({_id(position)}"


def _pairs(flat: list[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _parse_info(text: bytes) -> dict[str, str]:
    lines = [line.partition(":") for line in text.decode().splitlines()]
    return {name: value for name, colon, value in lines if colon}


def _judge(settings: Mapping[str, str], info: Mapping[str, str]) -> list[Finding]:
    """What of Redis's settings loses acknowledged records, or makes them hard to keep."""
    found = []

    def tell(wrong: bool, what: str, remedy: str, *, grave: bool = True) -> None:
        if wrong:
            found.append(Finding(grave=grave, what=what, remedy=remedy))

    tell(
        settings.get("appendonly") == "no",
        "appendonly is off: a crash of Redis loses acknowledged events",
        "redis-cli config set appendonly yes, and the same in redis.conf",
    )
    tell(
        settings.get("appendonly") == "yes" and settings.get("appendfsync") != "always",
        f"appendfsync is {settings.get('appendfsync')}: a power cut loses the last second of "
        "acknowledged events",
        "redis-cli config set appendfsync always, and the same in redis.conf",
    )
    tell(
        settings.get("maxmemory", "0") != "0"
        and settings.get("maxmemory-policy", "noeviction") != "noeviction",
        f"maxmemory-policy is {settings.get('maxmemory-policy')}: when memory is short, Redis "
        "deletes whole streams",
        "redis-cli config set maxmemory-policy noeviction, and the same in redis.conf",
    )
    tell(
        info.get("aof_last_write_status", "ok") != "ok",
        "the last write of the append-only file failed",
        "free space on Redis's disk; see its log",
    )
    tell(
        info.get("role") == "slave",
        "this is a replica: it takes no writes",
        "set system.broker to the primary",
    )
    tell(
        not settings,
        "CONFIG GET is not permitted, so the durability can't be told",
        "permit it (ACL +config|get), and see that appendfsync is always",
        grave=False,
    )
    return found
