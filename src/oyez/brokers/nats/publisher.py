"""Publishes records to one stream: waiting records form a batch, and batches follow each other.

A resend after a failure must not store the second record of a key before the first. So each
partition has one record in flight at a time, or all are one atomic batch, which is stored in order
or not at all: whichever was faster by the last round trips.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

import msgspec

from oyez.ambient import Ambient
from oyez.brokers.kit.calls import Deadline, Pauses
from oyez.brokers.kit.watch import stop
from oyez.brokers.nats.connection import Connection
from oyez.brokers.nats.jetstream import (
    NO_BATCHES,
    PATIENCE,
    TOO_MANY_BATCHES,
    Acknowledgement,
    StreamInfo,
    decode_acknowledgement,
)
from oyez.brokers.nats.link import NO_RESPONDERS, Link
from oyez.errors import BrokerError, BrokerUnavailable

BATCH = 512
"""The limit of records in one atomic batch; the server accepts 1,000 by default."""
BATCH_BYTES = 1024 * 1024
"""The approximate limit of bytes in one batch; a single record may exceed it."""
COST = 0.015
"""The approximate seconds that a batch takes a server longer than one record."""

Message = tuple[str, bytes, bytes]
"""Subject, header without its last line, payload."""


class Publisher:
    """The publisher of one stream."""

    def __init__(
        self,
        connection: Connection,
        ambient: Ambient,
        made: Callable[[], Awaitable[StreamInfo]],
        info: StreamInfo,
        deadline: float,
    ) -> None:
        """``made`` creates the stream, described by ``info``, again if it was deleted."""
        self._connection = connection
        self._ambient = ambient
        self._made = made
        self._info = info
        self._deadline = deadline
        self._posts: deque[_Post] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._batches = info.config.allow_atomic
        self._last_batch = 0
        self._nonce = f"{ambient.bits(96):024x}"
        self._trip = 0.001
        """The recent seconds from a record to its acknowledgement."""

    def add(self, messages: Sequence[Message]) -> asyncio.Future[None]:
        """Return a future that is done when all are stored; cancel it to drop unsent records."""
        post = _Post(messages)
        self._posts.append(post)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_all(), name="nats publisher")
        return post.done

    async def close(self) -> None:
        """Drop unsent records."""
        await stop(self._sending)

    async def _send_all(self) -> None:
        owners: list[_Post] = []
        try:
            while self._posts:
                batch, owners = self._next()
                if not batch:
                    continue
                try:
                    await self._store(batch)
                except BrokerError as error:
                    for post in owners:
                        post.fail(error)
                else:
                    for post in owners:
                        post.confirm()
        finally:
            for post in (*owners, *self._posts):
                post.fail(BrokerUnavailable(f"{self._connection.url} is closed"))

    def _next(self) -> tuple[list[Message], list[_Post]]:
        """Return as many messages as fit, with their posts; finished posts leave the queue."""
        batch: list[Message] = []
        owners: list[_Post] = []
        room = BATCH_BYTES
        while self._posts and len(batch) < BATCH and room > 0:
            post = self._posts[0]
            taken = post.sent
            if not post.done.done():
                owners.append(post)
                for message in islice(post.messages, taken, taken + BATCH - len(batch)):
                    batch.append(message)
                    post.sent += 1
                    room -= len(message[1]) + len(message[2])
                    if room <= 0:
                        break
            if post.done.done() or post.sent == len(post.messages):
                self._posts.popleft()
        return batch, owners

    # -- one batch ---------------------------------------------------------------------------------

    async def _store(self, batch: list[Message]) -> None:
        """Send the batch and wait until it is stored. Raises BrokerError."""
        pauses = Pauses(self._ambient)
        made = False
        patience: float | None = self._deadline * PATIENCE
        chains = _chains(batch)
        together = self._batches and (max(map(len, chains)) - 1) * self._trip > COST
        async with Deadline(self._deadline, self._connection.url):
            while True:
                link = await self._connection.link()
                try:
                    if together:
                        answer = await self._exchange(link, batch, patience)
                    else:
                        answer = await self._one_by_one(link, chains, patience)
                except TimeoutError:
                    patience = None
                    continue
                if answer is None:
                    if made:
                        raise BrokerUnavailable(f"{link.place}: {batch[0][0]} has no stream now")
                    made = True
                    await self._make_again()
                    continue
                error = answer.error
                if error is None:
                    return
                if error.err_code == NO_BATCHES:
                    together = self._batches = False
                elif error.err_code == TOO_MANY_BATCHES:
                    await pauses.wait()
                else:
                    raise error.explain(f"{self._info.stream} at {link.place}")

    async def _make_again(self) -> None:
        partitions = self._info.partitions
        self._info = await self._made()
        self._batches = self._info.config.allow_atomic
        if self._info.partitions != partitions:
            raise BrokerUnavailable(
                f"stream {self._info.stream} was created again with {self._info.partitions} "
                f"partitions instead of {partitions}"
            )

    async def _exchange(
        self, link: Link, batch: list[Message], patience: float | None
    ) -> Acknowledgement | None:
        """Send one message or one atomic batch; return the acknowledgement, None without a stream.

        Raises TimeoutError after ``patience`` seconds.
        """
        reply, answer = link.expect(batch[-1][0])
        start = self._ambient.monotonic()
        try:
            async with asyncio.timeout(patience):
                link.send(self._encode(batch, reply))
                header, payload = await answer
        finally:
            link.forget(reply)
        took = self._ambient.monotonic() - start
        if len(batch) == 1:
            self._trip += 0.2 * (took - self._trip)
        else:
            self._trip = min(self._trip, took)
        if header.startswith(NO_RESPONDERS):
            return None
        try:
            told = decode_acknowledgement(payload)
        except msgspec.MsgspecError:
            told = Acknowledgement()
        if told.error is None and told.stream != self._info.config.name:
            raise BrokerUnavailable(
                f"{link.place}: {batch[-1][0]} was answered by {told.stream or 'someone else'}, "
                f"not by the stream {self._info.config.name}"
            )
        return told

    async def _one_by_one(
        self, link: Link, chains: Sequence[deque[Message]], patience: float | None
    ) -> Acknowledgement | None:
        """Do the same for messages in sequence; stored ones are removed from their chain."""

        async def send(chain: deque[Message]) -> Acknowledgement | None:
            told: Acknowledgement | None = Acknowledgement()
            while chain:
                told = await self._exchange(link, [chain[0]], patience)
                if told is None or told.error is not None:
                    break
                chain.popleft()
            return told

        if len(chains) == 1:
            return await send(chains[0])
        # Wait for all, so that none still sends when the next attempt or batch begins.
        answers = await asyncio.gather(*map(send, chains), return_exceptions=True)
        told: Acknowledgement | None = Acknowledgement()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            if answer is None or answer.error is not None:
                told = answer
        return told

    def _encode(self, batch: list[Message], reply: str) -> list[bytes]:
        if len(batch) == 1:
            return _publish(*batch[0], reply, "\r\n")
        self._last_batch += 1
        mark = f"Nats-Batch-Id: {self._nonce}{self._last_batch:x}\r\nNats-Batch-Sequence: "
        parts: list[bytes] = []
        for number, message in enumerate(batch[:-1], 1):
            parts += _publish(*message, "", f"{mark}{number}\r\n\r\n")
        end = f"{mark}{len(batch)}\r\nNats-Batch-Commit: 1\r\n\r\n"
        return parts + _publish(*batch[-1], reply, end)


def _chains(batch: list[Message]) -> list[deque[Message]]:
    """Return the messages of each partition."""
    chains: dict[str, deque[Message]] = {}
    for message in batch:
        chains.setdefault(message[0], deque()).append(message)
    return list(chains.values())


def _publish(subject: str, header: bytes, payload: bytes, reply: str, end: str) -> list[bytes]:
    size = len(header) + len(end)
    line = f"HPUB {subject} {reply} {size} {size + len(payload)}\r\n"
    return [line.encode(), header, end.encode(), payload, b"\r\n"]


class _Post:
    """The messages of one call for the stream."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.sent = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def confirm(self) -> None:
        if self.sent == len(self.messages) and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BrokerError) -> None:
        if not self.done.done():
            self.done.set_exception(error)
