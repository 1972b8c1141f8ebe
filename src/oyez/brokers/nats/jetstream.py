"""The part of JetStream's API in use: streams, their state, and the last positions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from oyez.brokers.kit.calls import Deadline
from oyez.brokers.nats.connection import Connection
from oyez.brokers.nats.link import NO_RESPONDERS, Link
from oyez.brokers.nats.wire import last_value
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable
from oyez.ports import BEGINNING, Position

SECOND = 1_000_000_000
"""In nanoseconds, JetStream's unit."""
NOT_FOUND = 10_059
NAME_IN_USE = 10_058
TOO_MANY_BATCHES = 10_210
NO_BATCHES = 10_174
INCOMPLETE_BATCH = 10_176
PATIENCE = 0.3
"""The share of a deadline after which a request is repeated: a dying leader loses requests."""
DELIVERED = b"$JS.ACK."
"""The prefix of the reply subject of a delivered record."""

_PASSING = (INCOMPLETE_BATCH, 10_002)
"""Errors that are transient although their code blames the request."""
_REMEDIES = {
    10_002: "raise the account's JetStream limits, or keep events for less long",
    10_023: "free space for JetStream, or raise max_file_store",
    10_039: "enable JetStream for this account, or use another user in system.broker",
    10_054: "set system.claim_check, or raise the stream's max_msg_size",
    10_065: "find it with nats stream ls --subjects; delete it, or name the system differently",
    10_074: "leave replicas out of system.broker, or have a cluster",
    10_199: "raise max_batch_size in the servers' limits to 512",
}

_STREAM = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


class ApiError(msgspec.Struct, frozen=True):
    """The error of a request."""

    code: int = 500
    err_code: int = 0
    description: str = ""

    def explain(self, what: str) -> BrokerError:
        """Return it as a BrokerError; ``what`` names the request."""
        remedy = _REMEDIES.get(self.err_code)
        text = f"{what}: {self.description}" + (f": {remedy}" if remedy else "")
        if self.code >= 500 or self.code in (408, 429) or self.err_code in _PASSING:
            return BrokerUnavailable(text)
        return BrokerRefused(text)


class Answer(msgspec.Struct, frozen=True):
    """The common part of all responses."""

    error: ApiError | None = None


class Acknowledgement(msgspec.Struct, frozen=True):
    """The acknowledgement of a record, or of a batch."""

    stream: str = ""
    seq: int = 0
    error: ApiError | None = None


class StreamConfig(msgspec.Struct, frozen=True):
    """The configuration of a stream."""

    name: str
    subjects: list[str] = []
    storage: str = "file"
    retention: str = "limits"
    discard: str = "old"
    num_replicas: int = 1
    max_age: int = 0
    max_msgs: int = -1
    max_bytes: int = -1
    max_msg_size: int = -1
    max_msgs_per_subject: int = -1
    first_seq: int = 0
    allow_direct: bool = False
    allow_atomic: bool = False
    sealed: bool = False
    mirror: dict[str, Any] | None = None
    sources: list[Any] | None = None


class StreamState(msgspec.Struct, frozen=True):
    """The state of a stream."""

    messages: int = 0
    first_seq: int = 0
    last_seq: int = 0


class StreamInfo(msgspec.Struct, frozen=True):
    """A stream, of Oyez or not."""

    config: StreamConfig
    state: StreamState
    created: str = ""
    cluster: dict[str, Any] | None = None

    @property
    def clustered(self) -> bool:
        """Whether it is in a cluster, where it could have more copies."""
        return self.cluster is not None and "name" in self.cluster

    @property
    def stream(self) -> str:
        """Oyez's name of it; empty when its subjects are not those of a stream of Oyez."""
        subjects = self.config.subjects
        if not subjects:
            return ""
        stream, _, _ = subjects[0].rpartition(".")
        ours = sorted(subjects) == sorted(f"{stream}.{p}" for p in range(len(subjects)))
        return stream if ours and stream.replace(".", "_") == self.config.name else ""

    @property
    def partitions(self) -> int:
        """The number of partitions of a stream of Oyez."""
        return len(self.config.subjects)

    @property
    def last(self) -> Position:
        """The position of the last record of all partitions."""
        return self.state.last_seq

    @property
    def start(self) -> Position:
        """The position after which all records are kept: BEGINNING while nothing was deleted."""
        first = self.state.first_seq
        return first - 1 if first > max(self.config.first_seq, 1) else BEGINNING

    @property
    def limited(self) -> bool:
        """Whether records may be deleted before their retention ends."""
        config = self.config
        return max(config.max_msgs, config.max_bytes, config.max_msgs_per_subject) > 0

    def missed(self, position: Position) -> int:
        """Return 1 if records after a position may be deleted, else 0.

        The deleted positions may all have been of other partitions, which is not known.
        """
        return int(position < self.start)

    def resume(self, position: Position) -> tuple[Position, bool]:
        """Return the position to read from, and whether the stream was restarted."""
        beyond = position > self.last
        if position > BEGINNING and (beyond or position < self.config.first_seq - 1):
            return BEGINNING, True
        return position, False


class JetStream:
    """A client of JetStream's API over a connection; every call has a deadline, in seconds."""

    def __init__(self, connection: Connection, deadline: float) -> None:
        self.connection = connection
        self._deadline = deadline

    async def ask(self, what: str, body: object = None) -> bytes | None:
        """Return the response; None when there is no such stream. Raises BrokerError."""
        _, answer = await self.request(f"$JS.API.{what}", body)
        error = decode_answer(answer).error
        if error is None:
            return answer
        if error.err_code == NOT_FOUND:
            return None
        raise error.explain(what)

    async def request(self, subject: str, body: object = None) -> tuple[bytes, bytes]:
        """Return header and payload of the first response. Raises BrokerError."""
        payload = b"" if body is None else _json(body)
        async with Deadline(self._deadline, self.connection.url):
            while True:
                link = await self.connection.link()
                try:
                    async with asyncio.timeout(self._deadline * PATIENCE):
                        header, answer = await link.request(subject, payload)
                    break
                except TimeoutError:
                    continue
        if header.startswith(NO_RESPONDERS):
            raise BrokerUnavailable(f"{link.place}: nobody answers {subject}")
        return header, answer

    async def streams(self, known: Mapping[str, StreamInfo]) -> dict[str, StreamInfo]:
        """Return the streams of Oyez; a ``known`` one whose servers are silent is kept."""
        found: dict[str, StreamInfo] = {}
        silent = {info.config.name: info for info in known.values()}
        count, total = 0, 1
        while count < total:
            page = msgspec.json.decode(
                await self.ask("STREAM.LIST", {"offset": count}) or b"{}", type=_Page
            )
            missing = page.missing or []
            infos = [*(page.streams or []), *(silent[name] for name in missing if name in silent)]
            found |= {info.stream: info for info in infos if info.stream}
            count += max(1, len(page.streams or []) + len(missing))
            total = page.total
        return found

    async def info(self, stream: str) -> StreamInfo | None:
        """Return the state of a stream; None when Oyez has none of that name."""
        answer = await self.ask(f"STREAM.INFO.{name_of(stream)}")
        info = None if answer is None else decode_info(answer)
        return info if info is not None and info.stream == stream else None

    async def make(self, config: Mapping[str, Any]) -> None:
        """Create a stream unless its name is in use. Raises BrokerRefused when that fails."""
        what = f"STREAM.CREATE.{config['name']}"
        _, answer = await self.request(f"$JS.API.{what}", config)
        error = decode_answer(answer).error
        if error is not None and error.err_code != NAME_IN_USE:
            raise error.explain(what)

    async def count(self, stream: str, partition: int, after: Position) -> int:
        """Return the number of records of the partition after a position."""
        header, _ = await self.request(
            f"$JS.API.DIRECT.GET.{name_of(stream)}",
            {"seq": after + 1, "next_by_subj": f"{stream}.{partition}", "batch": 1},
        )
        if header.startswith(b"NATS/1.0 404"):
            return 0
        return int(last_value(header, "Nats-Num-Pending") or 0) + 1

    async def last(self, info: StreamInfo) -> dict[int, Position]:
        """Return the last position of each partition that has a record."""
        async with Deadline(self._deadline, self.connection.url):
            link = await self.connection.link()
            found = _Collector()
            sid, inbox = link.subscribe(found.receive, found.end)
            try:
                return await self._last(info, link, inbox, found)
            finally:
                link.unsubscribe(sid)

    async def _last(
        self, info: StreamInfo, link: Link, inbox: str, found: _Collector
    ) -> dict[int, Position]:
        name = info.config.name
        body = {
            "stream_name": name,
            "config": {
                "deliver_policy": "last_per_subject",
                "filter_subjects": info.config.subjects,
                "ack_policy": "none",
                "headers_only": True,
                "inactive_threshold": 10 * SECOND,
                "mem_storage": True,
                "num_replicas": 1,
            },
        }
        created = await self.ask(f"CONSUMER.CREATE.{name}", body)
        if created is None:
            return {}
        consumer = msgspec.json.decode(created, type=_Consumer)
        if consumer.num_pending:
            wanted = _json({"batch": consumer.num_pending, "expires": 5 * SECOND})
            link.publish(f"$JS.API.CONSUMER.MSG.NEXT.{name}.{consumer.name}", wanted, inbox)
            await found.wait(consumer.num_pending)
        link.publish(f"$JS.API.CONSUMER.DELETE.{name}.{consumer.name}", b"")
        return found.places


class _Collector:
    """A subscriber that collects one message a partition."""

    def __init__(self) -> None:
        self.places: dict[int, Position] = {}
        self._arrived = asyncio.Event()
        self._ended = False

    def receive(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        if reply.startswith(DELIVERED):
            self.places[int(subject.rpartition(b".")[2])] = delivery(reply)[0]
        elif not header.startswith(b"NATS/1.0 100"):
            self._ended = True
        self._arrived.set()

    def end(self) -> None:
        self._ended = True
        self._arrived.set()

    async def wait(self, count: int) -> None:
        while len(self.places) < count:
            if self._ended:
                raise BrokerUnavailable("JetStream did not return the last records")
            self._arrived.clear()
            await self._arrived.wait()


def delivery(reply: bytes) -> tuple[Position, int, int, int]:
    """Parse the reply subject of a delivered record.

    Returns its position, its number among those delivered, its time in ns, the number pending.
    """
    words = reply.split(b".")
    # Newer servers add a domain and an account before.
    position, number, time, pending = words[5:9] if len(words) == 9 else words[7:11]
    return int(position), int(number), int(time), int(pending)


def name_of(stream: str) -> str:
    """Return JetStream's name of a stream. Raises BrokerRefused if it can't be a subject."""
    if not _STREAM.fullmatch(stream) or len(stream) > 200:
        raise BrokerRefused(
            f"NATS can't carry a stream named {stream[:40]!r}: words of letters, digits, - and _ "
            "with a dot between are allowed, 200 characters at most"
        )
    return stream.replace(".", "_")


_json = msgspec.json.encode
decode_info = msgspec.json.Decoder(StreamInfo).decode
decode_answer = msgspec.json.Decoder(Answer).decode
decode_acknowledgement = msgspec.json.Decoder(Acknowledgement).decode


class _Page(msgspec.Struct, frozen=True):
    total: int = 0
    streams: list[StreamInfo] | None = None
    missing: list[str] | None = None


class _Consumer(msgspec.Struct, frozen=True):
    name: str
    num_pending: int = 0
