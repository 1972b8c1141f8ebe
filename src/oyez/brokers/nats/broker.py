"""The broker on JetStream: streams, positions, and what is wrong with a server's setup."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from oyez.ambient import Ambient
from oyez.brokers.nats import message
from oyez.brokers.nats.jetstream import (
    SECOND,
    JetStream,
    StreamConfig,
    StreamInfo,
    name_of,
    within,
)
from oyez.brokers.nats.link import Connection, ServerInfo
from oyez.brokers.nats.publisher import Message, Publisher
from oyez.brokers.nats.reader import Reader
from oyez.endpoint import (
    BatchBytes,
    Count,
    Endpoint,
    Partitions,
    Retention,
    Seconds,
    Tls,
    limits,
)
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable
from oyez.partitioning import partition_of, partition_without_key
from oyez.ports import Batch, Capabilities, Finding, Position, Record

ROOM = 4_096
"""Bytes of the server's largest message that are left for what the protocol adds to a record."""


class NatsOptions(Tls, frozen=True, kw_only=True):
    """How the NATS broker behaves."""

    partitions: Partitions = 8
    """How many a stream gets that is made by its first record."""
    retention: Retention = 7 * 86_400.0
    """Records older than this many seconds are deleted, in streams that we make."""
    replicas: Annotated[int, limits(1, 5)] = 1
    """Servers that keep a copy of each stream that we make: 3 in a cluster."""
    sync: Literal["", "always"] = ""
    """Say ``always`` when the servers run with ``sync_interval: always``; they tell it to few."""
    batch: Count = 256
    """Records in one batch, at most."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """Bytes that one reader holds, about; one record may exceed it alone."""
    deadline: Seconds = 10.0
    """Seconds after which a call gives up with BrokerUnavailable."""
    poll: Seconds = 1.0
    """Seconds between two looks for streams that others made."""
    tls: bool = False
    """Encrypt the connection, as the server offers it in its greeting."""
    tls_first: bool = False
    """Encrypt before the server's greeting (its option ``handshake_first``)."""


class NatsBroker:
    """Streams on JetStream; the face is `oyez.ports.Broker`."""

    def __init__(
        self, endpoint: Endpoint, ambient: Ambient, options: NatsOptions, group: str = ""
    ) -> None:
        """``group`` is shown nowhere: JetStream's consumers count only what they delivered."""
        if endpoint.path:
            raise endpoint.error(f"expected nothing behind the hosts, found /{endpoint.path}")
        self.options = options
        self.capabilities = _capabilities(options.sync == "always", 1_048_576)
        encrypted = options.tls or options.tls_first or options.cafile or options.certfile
        self._ambient = ambient
        self._connection = Connection(
            endpoint,
            ambient,
            tls=options.context if encrypted else None,
            first=options.tls_first,
            deadline=options.deadline,
        )
        self._jetstream = JetStream(self._connection, options.deadline)
        self._streams: dict[str, StreamInfo] = {}
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._publishers: dict[str, Publisher] = {}
        self._watching: asyncio.Task[None] | None = None
        self._checked = False

    async def open(self) -> None:
        """See `Broker.open`."""
        self._connection.open()
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="nats streams")
        async with within(self.options.deadline, self._connection.url):
            await self._check()
            await self.streams()

    async def close(self) -> None:
        """See `Broker.close`."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
        for publisher in self._publishers.values():
            await publisher.close()
        self._publishers.clear()
        await self._connection.close()

    async def publish(self, records: Sequence[Record]) -> None:
        """See `Broker.publish`."""
        async with within(self.options.deadline, self._connection.url):
            messages: dict[str, list[Message]] = {}
            most = (await self._connection.link()).info.max_payload - ROOM // 2
            for record in records:
                info = self._streams.get(record.stream)
                if info is None:
                    info = await self._make(record.stream, self.options.partitions)
                encoded = _encode(record, info.partitions, most)
                messages.setdefault(record.stream, []).append(encoded)
            await asyncio.gather(*(self._publisher(name).add(messages[name]) for name in messages))

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        """See `Broker.read`."""
        reader = Reader(
            self._jetstream,
            self._ambient,
            self._existing,
            stream=stream,
            partition=partition,
            after=after,
            batch=self.options.batch,
            batch_bytes=self.options.batch_bytes,
        )
        try:
            while True:
                yield await reader.next()
        finally:
            reader.stop()

    def handled(self, stream: str, partition: int, position: Position) -> None:
        """See `Broker.handled`."""

    async def streams(self) -> Mapping[str, int]:
        """See `Broker.streams`."""
        found = await self._jetstream.streams(self._streams)
        added = found.keys() - self._streams.keys()
        self._streams = found
        if added:
            self._tell()
        return {stream: info.partitions for stream, info in found.items()}

    async def create(self, stream: str, partitions: int) -> None:
        """See `Broker.create`."""
        found = (await self._make(stream, partitions)).partitions
        if found != partitions:
            raise BrokerRefused(
                f"stream {stream} has {found} partitions, not {partitions}: the number is fixed "
                "when a stream is made; set system.partitions to it or use a new stream"
            )

    async def ends(self, stream: str) -> Sequence[Position]:
        """See `Broker.ends`."""
        info = await self._jetstream.info(stream)
        if info is None:
            return []
        last = await self._jetstream.last(info) if info.state.messages else {}
        return [last.get(partition, info.start) for partition in range(info.partitions)]

    async def starts(self, stream: str) -> Sequence[Position]:
        """See `Broker.starts`."""
        info = await self._jetstream.info(stream)
        return [] if info is None else [info.start] * info.partitions

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        """See `Broker.lag`."""
        info = await self._jetstream.info(stream)
        if info is None:
            return {}
        if not info.config.allow_direct:
            raise BrokerRefused(
                f"stream {info.config.name} does not tell its lag: nats stream edit "
                f"{info.config.name} --allow-direct"
            )
        found: dict[int, int] = {}
        behind: dict[int, Position] = {}
        for partition, position in positions.items():
            place, _ = info.resume(position)
            if partition < info.partitions:
                found[partition] = 0
                if place < info.last:
                    behind[partition] = place
        counts = await asyncio.gather(
            *(self._jetstream.count(stream, p, after) for p, after in behind.items())
        )
        return found | dict(zip(behind, counts, strict=True))

    async def inspect(self) -> Sequence[Finding]:
        """See `Broker.inspect`."""
        await self.streams()
        link = await self._connection.link()
        durable = self.capabilities.durability == "power-loss"
        return _judge(self._streams.values(), self.options, link.info, durable=durable)

    def on_streams(self, callback: Callable[[], None]) -> None:
        """See `Broker.on_streams`."""
        self._listeners.append(callback)

    # -- streams -----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await self._ambient.sleep(self.options.poll)
            try:
                if not self._checked:
                    await self._check()
                await self.streams()
            except BrokerError:
                continue  # whoever reads or publishes meets the same error and reports it

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        for callback in self._listeners:
            callback()

    async def _existing(self, stream: str, partition: int) -> StreamInfo:
        """How the stream stands now, once it exists with that partition."""
        while True:
            changed = self._changed
            info = await self._jetstream.info(stream)
            if info is not None and partition < info.partitions:
                return info
            try:
                async with asyncio.timeout(self.options.poll):
                    await changed.wait()
            except TimeoutError:
                continue

    async def _make(self, stream: str, partitions: int) -> StreamInfo:
        """Make the stream unless it is there; how it stands now."""
        info = await self._jetstream.info(stream)
        if info is None:
            await self._jetstream.make(await self._config(stream, partitions))
            info = await self._jetstream.info(stream)
        if info is None:
            raise BrokerRefused(
                f"{self._connection.url}: the name {name_of(stream)} is taken by a stream whose "
                f"subjects are not {stream}.0 and so on: delete it (nats stream rm "
                f"{name_of(stream)}), or name the system or the service differently"
            )
        added = stream not in self._streams
        self._streams[stream] = info
        if added:
            self._tell()
        return info

    async def _config(self, stream: str, partitions: int) -> dict[str, Any]:
        link = await self._connection.link()
        age = max(int(self.options.retention * SECOND), SECOND)
        config = {
            "name": name_of(stream),
            "subjects": [f"{stream}.{partition}" for partition in range(partitions)],
            "storage": "file",
            "retention": "limits",
            "discard": "old",
            "max_age": age,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msg_size": -1,
            "max_consumers": -1,
            "duplicate_window": min(age, 120 * SECOND),
            "num_replicas": self.options.replicas,
            "first_seq": int(self._ambient.now() * 1_000_000),
            "allow_direct": True,
        }
        if link.info.at_least(2, 12):
            config["allow_atomic"] = True
        return config

    # -- publishing --------------------------------------------------------------------------------

    def _publisher(self, stream: str) -> Publisher:
        found = self._publishers.get(stream)
        if found is None:
            found = self._publishers[stream] = Publisher(
                self._connection,
                self._ambient,
                partial(self._make, stream, self.options.partitions),
                self._streams[stream],
                self.options.deadline,
            )
        return found

    # -- the server's setup ------------------------------------------------------------------------

    async def _check(self) -> None:
        """Learn what the server can do. Raises BrokerRefused when that is too little."""
        link = await self._connection.link()
        info, place = link.info, link.place
        if not info.at_least(2, 10):
            raise BrokerRefused(f"{place} is nats-server {info.version}: use 2.10 or newer")
        try:
            await self._jetstream.ask("INFO")
        except BrokerUnavailable:
            if info.jetstream:
                raise
            raise BrokerRefused(
                f"{place}: JetStream is not enabled: start nats-server with -js, or have a "
                "jetstream block in its configuration"
            ) from None
        durable = self.options.sync == "always" or await self._syncs_always()
        self.capabilities = _capabilities(durable, info.max_payload)
        self._checked = True

    async def _syncs_always(self) -> bool:
        """Whether the server says so: it does to users that may ask the system account."""
        try:
            _, answer = await self._jetstream.request("$SYS.REQ.SERVER.PING.JSZ", {})
            return msgspec.json.decode(answer, type=_Report).data.config.sync_always
        except (BrokerError, msgspec.MsgspecError):
            return False


def _encode(record: Record, partitions: int, most: int) -> Message:
    """Raises BrokerRefused for a record of more than ``most`` bytes."""
    key = record.key
    if key is None:
        index = partition_without_key(record.headers.get("id", ""), partitions)
    else:
        index = partition_of(key, partitions)
    header, data = message.encode(record), record.data or b""
    size = len(header) + len(data)
    if size > most:
        raise BrokerRefused(
            f"a record of {record.stream} takes {size} bytes; {most} are allowed: set "
            "system.claim_check, or raise max_payload in the NATS servers' configuration"
        )
    return f"{record.stream}.{index}", header, data


class _Sync(msgspec.Struct, frozen=True):
    sync_always: bool = False


class _Data(msgspec.Struct, frozen=True):
    config: _Sync = _Sync()


class _Report(msgspec.Struct, frozen=True):
    data: _Data = _Data()


def _capabilities(durable: bool, max_payload: int) -> Capabilities:
    return Capabilities(
        durability="power-loss" if durable else "process-crash",
        history=True,
        processes=True,
        max_bytes=max(1, max_payload - ROOM),
    )


def _judge(
    infos: Iterable[StreamInfo], options: NatsOptions, server: ServerInfo, *, durable: bool
) -> list[Finding]:
    """What loses acknowledged records, or makes them slow or hard to keep."""
    found: list[Finding] = []

    def tell(wrong: bool, what: str, remedy: str, *, grave: bool = True) -> None:
        if wrong:
            found.append(Finding(grave=grave, what=what, remedy=remedy))

    tell(
        not durable,
        "the servers may answer before a record is on disk (unless told otherwise they flush it "
        "within 2 minutes): a power cut loses acknowledged events",
        "set jetstream { sync_interval: always } on every server, then add sync=always to "
        "system.broker",
    )
    tell(
        server.max_payload < 1_048_576,
        f"max_payload is {server.max_payload} bytes: larger events are refused",
        "set max_payload: 1MB on every server, or system.claim_check",
        grave=False,
    )
    tell(
        not server.at_least(2, 12),
        f"nats-server {server.version} has no atomic batches: publishing is slow",
        "upgrade to 2.12 or newer, then nats stream edit NAME --allow-batch",
        grave=False,
    )
    for info in infos:
        found += _judge_stream(info.config, options, clustered=info.clustered)
    return found


def _judge_stream(config: StreamConfig, options: NatsOptions, *, clustered: bool) -> list[Finding]:
    found: list[Finding] = []
    name = config.name
    edit = f"nats stream edit {name}"
    anew = f"make it anew: nats stream rm {name}, once its events are handled"

    def tell(wrong: bool, what: str, remedy: str, *, grave: bool = True) -> None:
        if wrong:
            found.append(Finding(grave=grave, what=f"stream {name} {what}", remedy=remedy))

    tell(config.storage != "file", "is in memory: a restart loses acknowledged events", anew)
    tell(
        config.retention != "limits",
        f"has retention {config.retention}: events go when a consumer has had them",
        anew,
    )
    for limit in ("max_msgs", "max_bytes", "max_msgs_per_subject"):
        most = getattr(config, limit)
        tell(
            most > 0 and config.discard == "old",
            f"has {limit} {most} and drops the oldest events, handled or not",
            f"{edit} --{limit.replace('_', '-')}=-1",
        )
    age = config.max_age / SECOND
    tell(
        0 < age < options.retention - 1,
        f"keeps events for {age:.0f} s, not {options.retention:.0f}",
        f"{edit} --max-age={options.retention:.0f}s",
    )
    tell(
        clustered and config.num_replicas < 2,
        "has one copy in a cluster: losing that server loses acknowledged events",
        f"{edit} --replicas=3, and add replicas=3 to system.broker",
    )
    tell(config.sealed, "is sealed: it takes no events", anew)
    tell(
        config.mirror is not None or bool(config.sources),
        "is filled from another stream: its partitions may not be those of the keys",
        anew,
    )
    tell(
        not config.allow_direct,
        "does not allow direct reads: its lag can't be told",
        f"{edit} --allow-direct",
    )
    tell(
        not config.allow_atomic,
        "does not allow atomic batches: publishing is slow",
        f"{edit} --allow-batch",
        grave=False,
    )
    return found
