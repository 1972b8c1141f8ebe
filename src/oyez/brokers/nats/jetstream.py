"""JetStream's API, as far as we use it: streams, their state, and what consumers would know."""

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
"""In nanoseconds, as JetStream counts."""
NOT_FOUND = 10_059
NAME_IN_USE = 10_058
TOO_MANY_BATCHES = 10_210
NO_BATCHES = 10_174
INCOMPLETE_BATCH = 10_176
PATIENCE = 0.3
"""The part of a deadline after which it is asked again: a dying leader takes questions along."""
DELIVERED = b"$JS.ACK."
"""How the reply subject of a delivered record begins."""

_PASSING = (INCOMPLETE_BATCH, 10_002)
"""What passes although its code says that the request is at fault."""
_REMEDIES = {
    10_002: "raise the account's JetStream limits, or keep events for less long",
    10_023: "free space for JetStream, or raise max_file_store",
    10_039: "enable JetStream for this account, or use another user in system.broker",
    10_054: "set system.claim_check, or raise the stream's max_msg_size",
    10_065: "nats stream ls --subjects tells which; delete it, or name the system differently",
    10_074: "leave replicas out of system.broker, or have a cluster",
    10_199: "raise max_batch_size in the servers' limits to 512",
}

_STREAM = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


class ApiError(msgspec.Struct, frozen=True):
    """Why a request failed."""

    code: int = 500
    err_code: int = 0
    description: str = ""

    def explain(self, what: str) -> BrokerError:
        """As an error of ours; ``what`` is what was asked."""
        remedy = _REMEDIES.get(self.err_code)
        text = f"{what}: {self.description}" + (f": {remedy}" if remedy else "")
        if self.code >= 500 or self.code in (408, 429) or self.err_code in _PASSING:
            return BrokerUnavailable(text)
        return BrokerRefused(text)


class Answer(msgspec.Struct, frozen=True):
    """What every answer has."""

    error: ApiError | None = None


class Acknowledgement(msgspec.Struct, frozen=True):
    """That a record, or a batch of them, is stored."""

    stream: str = ""
    seq: int = 0
    error: ApiError | None = None


class StreamConfig(msgspec.Struct, frozen=True):
    """How a stream is set up."""

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
    """What a stream holds."""

    messages: int = 0
    first_seq: int = 0
    last_seq: int = 0


class StreamInfo(msgspec.Struct, frozen=True):
    """A stream, ours or not."""

    config: StreamConfig
    state: StreamState
    created: str = ""
    cluster: dict[str, Any] | None = None

    @property
    def clustered(self) -> bool:
        """Whether it lives in a cluster, where it could have more copies."""
        return self.cluster is not None and "name" in self.cluster

    @property
    def stream(self) -> str:
        """Our name for it; empty when its subjects are not those of a stream of ours."""
        subjects = self.config.subjects
        if not subjects:
            return ""
        stream, _, _ = subjects[0].rpartition(".")
        ours = sorted(subjects) == sorted(f"{stream}.{p}" for p in range(len(subjects)))
        return stream if ours and stream.replace(".", "_") == self.config.name else ""

    @property
    def partitions(self) -> int:
        """How many a stream of ours has."""
        return len(self.config.subjects)

    @property
    def last(self) -> Position:
        """The position of the last record of all partitions."""
        return self.state.last_seq

    @property
    def start(self) -> Position:
        """Behind which everything is kept: BEGINNING while nothing was deleted."""
        first = self.state.first_seq
        return first - 1 if first > max(self.config.first_seq, 1) else BEGINNING

    @property
    def limited(self) -> bool:
        """Whether records are deleted before they are old."""
        config = self.config
        return max(config.max_msgs, config.max_bytes, config.max_msgs_per_subject) > 0

    def missed(self, position: Position) -> int:
        """Whether records behind a position may be gone: 1, or 0 when they are not.

        The positions that are gone may all have been other partitions'; nobody can tell.
        """
        return int(position < self.start)

    def resume(self, position: Position) -> tuple[Position, bool]:
        """Where reading behind a position goes on, and whether that is the beginning anew."""
        beyond = position > self.last
        if position > BEGINNING and (beyond or position < self.config.first_seq - 1):
            return BEGINNING, True
        return position, False


class JetStream:
    """Asks JetStream over a connection; every question has a deadline, in seconds."""

    def __init__(self, connection: Connection, deadline: float) -> None:
        self.connection = connection
        self._deadline = deadline

    async def ask(self, what: str, body: object = None) -> bytes | None:
        """The answer; None when there is no such stream. Raises BrokerError."""
        _, answer = await self.request(f"$JS.API.{what}", body)
        error = decode_answer(answer).error
        if error is None:
            return answer
        if error.err_code == NOT_FOUND:
            return None
        raise error.explain(what)

    async def request(self, subject: str, body: object = None) -> tuple[bytes, bytes]:
        """Header and payload of the first answer. Raises BrokerError."""
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
        """Ours among all streams; one that is ``known`` and whose servers are silent stays."""
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
        """How the stream stands now; None when there is none of ours by that name."""
        answer = await self.ask(f"STREAM.INFO.{name_of(stream)}")
        info = None if answer is None else decode_info(answer)
        return info if info is not None and info.stream == stream else None

    async def make(self, config: Mapping[str, Any]) -> None:
        """Make a stream unless its name is in use. Raises BrokerRefused when it can't be."""
        what = f"STREAM.CREATE.{config['name']}"
        _, answer = await self.request(f"$JS.API.{what}", config)
        error = decode_answer(answer).error
        if error is not None and error.err_code != NAME_IN_USE:
            raise error.explain(what)

    async def count(self, stream: str, partition: int, after: Position) -> int:
        """How many records of the partition stand behind a position."""
        header, _ = await self.request(
            f"$JS.API.DIRECT.GET.{name_of(stream)}",
            {"seq": after + 1, "next_by_subj": f"{stream}.{partition}", "batch": 1},
        )
        if header.startswith(b"NATS/1.0 404"):
            return 0
        return int(last_value(header, "Nats-Num-Pending") or 0) + 1

    async def last(self, info: StreamInfo) -> dict[int, Position]:
        """The last position of each partition that has a record."""
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
    """Takes in one message a partition."""

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
                raise BrokerUnavailable("JetStream did not tell the last records")
            self._arrived.clear()
            await self._arrived.wait()


def delivery(reply: bytes) -> tuple[Position, int, int, int]:
    """What the reply subject of a delivered record says about it.

    Its position, its number among those delivered, its time in ns, how many are pending.
    """
    words = reply.split(b".")
    # Newer servers put a domain and an account in front.
    position, number, time, pending = words[5:9] if len(words) == 9 else words[7:11]
    return int(position), int(number), int(time), int(pending)


def name_of(stream: str) -> str:
    """JetStream's name for a stream. Raises BrokerRefused for one that can't be a subject."""
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
