"""JetStream as an `oyez.ports.Broker`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from oyez.ambient import Ambient
from oyez.brokers.kit.calls import Deadline
from oyez.brokers.kit.streams import Streams, check_count, partitions_of, too_large
from oyez.brokers.kit.watch import every, stop
from oyez.brokers.nats.connection import Connection
from oyez.brokers.nats.inspection import judge
from oyez.brokers.nats.jetstream import SECOND, JetStream, StreamInfo, name_of
from oyez.brokers.nats.options import NatsOptions
from oyez.brokers.nats.publisher import Message, Publisher
from oyez.brokers.nats.reader import Reader
from oyez.brokers.nats.wire import encode
from oyez.endpoint import Endpoint
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable
from oyez.ports import Batch, Capabilities, Finding, Position, Record

ROOM = 4_096
"""Bytes of the server's message limit that are reserved for the protocol's own headers."""


class NatsBroker:
    """Streams on JetStream; an `oyez.ports.Broker`."""

    def __init__(
        self, endpoint: Endpoint, ambient: Ambient, options: NatsOptions, group: str = ""
    ) -> None:
        """``group`` is not used: JetStream's consumers count only what they delivered."""
        if endpoint.path:
            raise endpoint.error(f"expected nothing after the hosts, found /{endpoint.path}")
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
        self._streams: Streams[StreamInfo] = Streams()
        self._publishers: dict[str, Publisher] = {}
        self._watching: asyncio.Task[None] | None = None
        self._checked = False

    async def open(self) -> None:
        self._connection.open()
        if self._watching is None:
            self._watching = asyncio.create_task(
                every(self._ambient, self.options.poll, self._look), name="nats streams"
            )
        async with Deadline(self.options.deadline, self._connection.url):
            await self._check()
            await self.streams()

    async def close(self) -> None:
        watching, self._watching = self._watching, None
        await stop(watching)
        for publisher in self._publishers.values():
            await publisher.close()
        self._publishers.clear()
        await self._connection.close()

    async def publish(self, records: Sequence[Record]) -> None:
        async with Deadline(self.options.deadline, self._connection.url):
            most = (await self._connection.link()).info.max_payload - ROOM // 2
            counts = {}
            for stream in {record.stream for record in records}:
                info = self._streams.known.get(stream)
                if info is None:
                    info = await self._make(stream, self.options.partitions)
                counts[stream] = info.partitions
            messages: dict[str, list[Message]] = {}
            for record, index in zip(records, partitions_of(records, counts), strict=True):
                encoded = _message(record, index, most)
                messages.setdefault(record.stream, []).append(encoded)
            await asyncio.gather(*(self._publisher(name).add(messages[name]) for name in messages))

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
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
        pass  # records stay for other readers

    async def streams(self) -> Mapping[str, int]:
        found = await self._jetstream.streams(self._streams.known)
        self._streams.replace(found)
        return {stream: info.partitions for stream, info in found.items()}

    async def create(self, stream: str, partitions: int) -> None:
        check_count(stream, (await self._make(stream, partitions)).partitions, partitions)

    async def ends(self, stream: str) -> Sequence[Position]:
        info = await self._jetstream.info(stream)
        if info is None:
            return []
        last = await self._jetstream.last(info) if info.state.messages else {}
        return [last.get(partition, info.start) for partition in range(info.partitions)]

    async def starts(self, stream: str) -> Sequence[Position]:
        info = await self._jetstream.info(stream)
        return [] if info is None else [info.start] * info.partitions

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        info = await self._jetstream.info(stream)
        if info is None:
            return {}
        if not info.config.allow_direct:
            raise BrokerRefused(
                f"stream {info.config.name} does not report its lag: nats stream edit "
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
        await self.streams()
        link = await self._connection.link()
        durable = self.capabilities.durability == "power-loss"
        return judge(self._streams.known.values(), self.options, link.info, durable=durable)

    def on_streams(self, callback: Callable[[], None]) -> None:
        self._streams.listen(callback)

    # -- streams -----------------------------------------------------------------------------------

    async def _look(self) -> None:
        if not self._checked:
            await self._check()
        await self.streams()

    async def _existing(self, stream: str, partition: int) -> StreamInfo:
        """Wait until the stream exists with that partition; return its state."""
        while True:
            changed = self._streams.changed
            info = await self._jetstream.info(stream)
            if info is not None and partition < info.partitions:
                return info
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.options.poll):
                    await changed.wait()

    async def _make(self, stream: str, partitions: int) -> StreamInfo:
        """Create the stream unless it exists; return its state."""
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
        self._streams.add(stream, info)
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
                self._streams.known[stream],
                self.options.deadline,
            )
        return found

    # -- the server's setup ------------------------------------------------------------------------

    async def _check(self) -> None:
        """Query the capabilities of the server. Raises BrokerRefused when they are insufficient."""
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
        """Return whether the server reports it, which it does to users of the system account."""
        try:
            _, answer = await self._jetstream.request("$SYS.REQ.SERVER.PING.JSZ", {})
            return msgspec.json.decode(answer, type=_Report).data.config.sync_always
        except (BrokerError, msgspec.MsgspecError):
            return False


def _message(record: Record, partition: int, most: int) -> Message:
    """Return the message of a record. Raises BrokerRefused above ``most`` bytes."""
    header, data = encode(record), record.data or b""
    size = len(header) + len(data)
    if size > most:
        raise too_large(record.stream, size, most, "raise the servers' max_payload")
    return f"{record.stream}.{partition}", header, data


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
