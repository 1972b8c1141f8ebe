"""Reads one partition by position, through a consumer on the server that is never relied on.

The consumer is ordered: it lives in memory, acknowledges nothing and numbers what it delivers. At
any doubt (a number left out, silence, an error, another connection) it is left behind and another
one is made behind the last record that was handed out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from oyez.ambient import Ambient
from oyez.brokers.kit.calls import Pauses
from oyez.brokers.nats.jetstream import (
    DELIVERED,
    SECOND,
    JetStream,
    StreamInfo,
    delivery,
    name_of,
)
from oyez.brokers.nats.link import Link
from oyez.brokers.nats.wire import decode
from oyez.errors import BrokerRefused, BrokerUnavailable
from oyez.ports import BEGINNING, Batch, Position, Record

EXPIRES = 30
"""Seconds that the server keeps a request for records open."""
HEARTBEAT = 3
"""Seconds between two signs of life of an open request; three without one end it."""
INACTIVE = 60
"""Seconds after which the server forgets a consumer that nobody asks."""

Existing = Callable[[str, int], Awaitable[StreamInfo]]
"""How a stream stands now, once it exists with that partition."""

_json = msgspec.json.encode
_ENDS = (
    b"NATS/1.0 408",
    b"NATS/1.0 409 Batch Completed",
    b"NATS/1.0 409 Message Size Exceeds MaxBytes",
)
"""How the server ends a request for records when all is well."""


class Reader:
    """One run of `Broker.read`; `stop` it in the end."""

    def __init__(
        self,
        jetstream: JetStream,
        ambient: Ambient,
        existing: Existing,
        *,
        stream: str,
        partition: int,
        after: Position,
        batch: int,
        batch_bytes: int,
    ) -> None:
        """``batch`` and ``batch_bytes`` bound what is handed out, and what is held besides."""
        self._jetstream = jetstream
        self._ambient = ambient
        self._existing = existing
        self._stream = stream
        self._name = name_of(stream)
        self._partition = partition
        self._batch = batch
        self._batch_bytes = batch_bytes
        self._position = after
        self._pending = 0
        self._time = 0.0
        self._missed = 0
        self._restarted = False
        self._doubts = 0
        self._created = ""
        self._info: StreamInfo | None = None
        self._link: Link | None = None
        self._sid = b""
        self._inbox = ""
        self._consumer = ""
        self._delivered = 0
        self._asked = 0
        self._heard = 0.0
        self._arrived = asyncio.Event()
        self._messages: deque[tuple[Position, int, int, bytes, bytes]] = deque()

    async def next(self) -> Batch:
        """What has arrived, at least one record. Raises BrokerRefused when not permitted."""
        pauses = Pauses(self._ambient)
        while True:
            try:
                if self._link is None:
                    await self._attach()
                    pauses.failures = 0
                if self._messages:
                    await self._look_for_a_gap()
                    return self._take()
                await self._wait()
            except BrokerUnavailable:
                self.stop()
                await pauses.wait()

    def stop(self) -> None:
        """Leave the consumer behind, with what arrived and was not handed out."""
        link, self._link = self._link, None
        if link is not None:
            link.unsubscribe(self._sid)
            if self._consumer:
                link.publish(f"$JS.API.CONSUMER.DELETE.{self._name}.{self._consumer}", b"")
        self._messages.clear()
        self._asked = 0

    # -- the consumer ------------------------------------------------------------------------------

    async def _attach(self) -> None:
        self._info = await self._existing(self._stream, self._partition)
        self._begin(self._info)
        link = self._link = await self._jetstream.connection.link()
        self._sid, self._inbox = link.subscribe(self._receive, self._arrived.set)
        self._consumer = f"oyez-{self._ambient.bits(64):016x}"
        self._delivered = self._pending = 0
        subject = f"{self._stream}.{self._partition}"
        config = {
            "name": self._consumer,
            "deliver_policy": "all",
            "ack_policy": "none",
            "replay_policy": "instant",
            "filter_subject": subject,
            "inactive_threshold": INACTIVE * SECOND,
            "mem_storage": True,
            "num_replicas": 1,
        }
        if self._position > BEGINNING:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": self._position + 1}
        made = await self._jetstream.ask(
            f"CONSUMER.CREATE.{self._name}.{self._consumer}.{subject}",
            {"stream_name": self._name, "config": config, "action": "create"},
        )
        if made is None:
            raise BrokerUnavailable(f"stream {self._stream} was deleted")
        self._request()

    def _begin(self, info: StreamInfo) -> None:
        """Check whether the records after the position are still the same ones."""
        place, restarted = info.resume(self._position)
        if self._position and self._created not in ("", info.created):
            place, restarted = BEGINNING, True
        elif restarted and self._position > info.last and self._doubts < 3:
            self._doubts += 1  # a leader just elected may not know its last records yet
            raise BrokerUnavailable(f"stream {self._stream} ends before {self._position}")
        self._doubts = 0
        self._created = info.created
        self._restarted = self._restarted or restarted
        self._missed = 0 if restarted else info.missed(place)
        self._position = place

    def _request(self) -> None:
        link = self._link
        assert link is not None
        # Were the limit smaller than the next record, nothing would ever come.
        size = max(self._batch_bytes // 2, link.info.max_payload + 65_536)
        body = {
            "batch": self._batch,
            "max_bytes": size,
            "expires": EXPIRES * SECOND,
            "idle_heartbeat": HEARTBEAT * SECOND,
        }
        self._asked = self._batch
        self._heard = self._ambient.monotonic()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._name}.{self._consumer}"
        link.publish(subject, _json(body), self._inbox)

    async def _wait(self) -> None:
        """Until something arrives. Raises BrokerUnavailable when nothing will."""
        self._arrived.clear()
        link = self._link
        assert link is not None
        if link.ended.is_set() or not self._consumer:
            raise BrokerUnavailable(f"{link.place}: the connection ended")
        if not self._asked:
            self._request()
        silent = self._ambient.monotonic() - self._heard
        try:
            async with asyncio.timeout(3 * HEARTBEAT - silent):
                await self._arrived.wait()
        except TimeoutError as error:
            if self._ambient.monotonic() - self._heard >= 3 * HEARTBEAT:
                if self._consumer in link.denied:
                    raise BrokerRefused(link.denied) from error
                raise BrokerUnavailable(f"{link.place}: no heartbeat of a consumer") from error

    def _receive(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        self._heard = self._ambient.monotonic()
        if not self._consumer:
            return
        if reply.startswith(DELIVERED):
            position, number, time, pending = delivery(reply)
            self._delivered += 1
            if number == self._delivered:
                self._asked -= 1
                self._messages.append((position, time, pending, header, payload))
            else:
                self._consumer = ""
        elif not header.startswith(b"NATS/1.0 100"):
            self._asked = 0
            if not header.startswith(_ENDS):
                self._consumer = ""
        else:
            return
        self._arrived.set()

    # -- handing out -------------------------------------------------------------------------------

    async def _look_for_a_gap(self) -> None:
        """Tell when retention has overtaken a reader that lags.

        JetStream passes over what it deleted in silence. A record that was not the last one when it
        came, and is old enough, says that those behind it may be gone.
        """
        info = self._info
        assert info is not None
        if self._pending and self._messages[0][0] != self._position + 1:
            age = info.config.max_age / SECOND
            old = age > 0 and self._ambient.now() - self._time > age / 2
            if old or info.limited:
                self._info = await self._existing(self._stream, self._partition)
                self._missed = self._info.missed(self._position)

    def _take(self) -> Batch:
        messages = self._messages
        records: list[Record] = []
        room = self._batch_bytes
        while messages and len(records) < self._batch and room > 0:
            position, time, pending, header, payload = messages.popleft()
            room -= len(header) + len(payload)
            seconds = time / SECOND
            records.append(
                decode(header, payload, self._stream, self._partition, position, seconds)
            )
            self._position, self._pending, self._time = position, pending, seconds
        batch = Batch(records, self._missed, self._restarted)
        self._missed, self._restarted = 0, False
        if not self._asked and self._consumer and not messages:
            self._request()
        return batch
