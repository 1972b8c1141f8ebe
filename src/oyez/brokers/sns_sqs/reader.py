"""Reading one partition's queue: what is held, for how long, and what becomes of it.

A message that was received is invisible to others for ``visibility`` seconds; as long as this
process lives that is extended, so a reader may take its time and a dead one is replaced soon. A
long poll that runs can't be called back without losing what SQS is about to hand over, so it
belongs to the queue, not to the reader: when the reader has gone meanwhile, what the poll brings is
given back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from itertools import islice
from typing import Any

from oyez.ambient import Ambient
from oyez.background import lasting
from oyez.brokers.kit.calls import Pauses
from oyez.brokers.kit.watch import stop
from oyez.brokers.sns_sqs.connection import ATTEMPT, Aws, Missing
from oyez.brokers.sns_sqs.options import SnsSqsOptions
from oyez.brokers.sns_sqs.wire import decode
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable
from oyez.ports import BEGINNING, Batch, Position, Record

ENTRIES = 10
"""Messages in one request, at most."""
LONGEST = 12 * 3_600.0
"""Seconds that SQS lets a message be invisible, counted from when it was received."""
DELETING = 4
"""Requests to delete at once, at most: far from AWS one after the other is too slow."""
GRACE = 1.0
"""Seconds in which `handled` may still come for what a reader held that has ended."""


class _Held:
    """A message that was received and not deleted."""

    __slots__ = ("last", "receipt", "since", "until")

    def __init__(self, receipt: str, last: Position, since: float, seconds: float) -> None:
        self.receipt = receipt
        self.last = last
        """The position of its last record."""
        self.since = since
        self.until = since + seconds
        """When it becomes visible again, on the monotonic clock; receipts end then."""


class Queue:
    """One partition's queue in the hands of this process."""

    def __init__(
        self,
        aws: Aws,
        ambient: Ambient,
        options: SnsSqsOptions,
        place: tuple[str, int],
        locate: Callable[[bool], Awaitable[str]],
    ) -> None:
        """``locate`` gives the queue's address; its argument says that the last one was deleted."""
        self._aws = aws
        self._ambient = ambient
        self._options = options
        self._place = place
        self._locate = locate
        self._url = ""
        self._reader: object | None = None
        self._position: Position = BEGINNING
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._error: BrokerError | None = None
        self._missed = 0
        self._lost = False
        self._held: deque[_Held] = deque()
        self._handled: deque[_Held] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._receiving: asyncio.Task[None] | None = None
        self._deleting: asyncio.Task[None] | None = None
        self._releasing: asyncio.Task[None] | None = None

    async def read(self, after: Position) -> AsyncGenerator[Batch, None]:
        """See `Broker.read`. A new reader takes the place of the one before."""
        reader = self._reader = object()
        if self._releasing is not None:
            self._releasing.cancel()
        before = self._begin_at(after)
        try:
            await self._give_back(before)
            if self._receiving is None or self._receiving.done():
                work = f"receive {self._place[0]}[{self._place[1]}]"
                receiving = lasting(work, self._receive_on, self._ambient)
                self._receiving = asyncio.create_task(receiving, name=work)
            while True:
                yield await self._next(reader)
        finally:
            if self._reader is reader:
                self._reader = None
                self._room.set()
                self._releasing = asyncio.create_task(self._release_soon())

    def handled(self, position: Position) -> None:
        """Delete what was received up to there, soon."""
        while self._held and self._held[0].last <= position:
            self._handled.append(self._held.popleft())
        self._room.set()
        if self._handled and (self._deleting is None or self._deleting.done()):
            self._deleting = asyncio.create_task(self._delete())

    @property
    def undeleted(self) -> int:
        """Messages that are handled, and that SQS still counts."""
        return len(self._handled)

    async def extend(self) -> None:
        """Keep invisible what is not deleted yet. To be called three times in a visibility."""
        seconds = self._options.visibility
        now = self._ambient.monotonic()
        due = [
            held
            for held in (*self._handled, *self._held)
            if now < held.until < now + seconds * 0.75 and now + seconds < held.since + LONGEST
        ]
        for start in range(0, len(due), ENTRIES):
            some = due[start : start + ENTRIES]
            now = self._ambient.monotonic()
            failed = await self._change(some, seconds)
            for held in some:
                # One that has expired comes again by itself, with a receipt that is good.
                held.until = 0.0 if held in failed else now + seconds

    async def close(self) -> None:
        """Delete what is handled, give back the rest, end everything."""
        await stop(self._receiving)
        await stop(self._releasing)
        with contextlib.suppress(TimeoutError):
            async with self._ambient.timeout(ATTEMPT):
                if self._deleting is not None:
                    await asyncio.wait([self._deleting])
        await stop(self._deleting)
        self._reader = None
        await self._give_back(self._begin_at(self._position))

    async def _next(self, reader: object) -> Batch:
        while True:
            if self._reader is not reader:
                stream, partition = self._place
                raise BrokerRefused(
                    f"{stream}[{partition}] has another reader in this process now; a queue has one"
                )
            if self._records:
                count = min(len(self._records), self._options.batch)
                records = [self._records.popleft() for _ in range(count)]
                self._bytes -= sum(len(record.data or b"") for record in records)
                self._room.set()
                missed, self._missed = self._missed, 0
                return Batch(records, missed)
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            self._arrived.clear()
            self._room.set()
            await self._arrived.wait()

    # -- receiving ---------------------------------------------------------------------------------

    async def _receive_on(self) -> None:
        pauses = Pauses(self._ambient)
        while self._reader is not None:
            await self._wait_for_room()
            try:
                self._url = self._url or await self._locate(self._lost)
                self._lost = False
                await self._receive()
                pauses.failures = 0
                continue
            except Missing:
                self._url = ""
                self._lost = True
                self._missed = 1  # deleted with what was in it
            except BrokerUnavailable:
                pass
            except BrokerError as error:
                self._error = error
                self._arrived.set()
            await pauses.wait()

    async def _wait_for_room(self) -> None:
        while self._reader is not None and self._full():
            self._room.clear()
            await self._room.wait()

    def _full(self) -> bool:
        return (
            self._bytes >= self._options.batch_bytes
            or len(self._records) >= 2 * self._options.batch
        )

    async def _receive(self) -> None:
        options = self._options
        now = self._ambient.monotonic()
        answer = await self._aws.call(
            "sqs",
            "receive_message",
            options.wait + ATTEMPT,
            QueueUrl=self._url,
            MaxNumberOfMessages=ENTRIES,
            WaitTimeSeconds=options.wait,
            VisibilityTimeout=options.visibility,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["MessageGroupId", "SentTimestamp"],
            ReceiveRequestAttemptId=self._ambient.new_id(),
        )
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        if not messages:
            return
        # A long poll hides what it hands over when that arrives, not when it was asked.
        now = max(now, self._ambient.monotonic() - 1.0)
        for message in messages:
            self._take(message, now)
        if self._reader is None:
            await self._give_back(self._begin_at(self._position))
        else:
            self._arrived.set()

    def _take(self, message: dict[str, Any], now: float) -> None:
        stream, partition = self._place
        sent = int(message.get("Attributes", {}).get("SentTimestamp", 0)) / 1000
        for content in decode(message):
            self._position += 1
            self._bytes += len(content.data or b"")
            self._records.append(
                Record(
                    stream=stream,
                    key=content.key,
                    headers=content.headers,
                    data=content.data,
                    partition=partition,
                    position=self._position,
                    time=sent,
                )
            )
        seconds = self._options.visibility
        self._held.append(_Held(message["ReceiptHandle"], self._position, now, seconds))

    # -- giving back and deleting ------------------------------------------------------------------

    def _begin_at(self, position: Position) -> list[_Held]:
        """Forget what is untaken and unhandled, which is returned; count on from there."""
        held, self._held = list(self._held), deque()
        self._records.clear()
        self._bytes = 0
        self._error = None
        self._position = position
        self._arrived.set()
        return held

    async def _release_soon(self) -> None:
        await self._ambient.sleep(GRACE)
        if self._reader is None:
            await self._give_back(self._begin_at(self._position))

    async def _give_back(self, held: Sequence[_Held]) -> None:
        """Let others have these; what fails becomes visible by itself, a little later."""
        now = self._ambient.monotonic()
        held = [each for each in held if each.until > now]
        with contextlib.suppress(BrokerError):
            for start in range(0, len(held), ENTRIES):
                await self._change(held[start : start + ENTRIES], 0)

    async def _change(self, held: Sequence[_Held], seconds: int) -> list[_Held]:
        """Let them be invisible for so long from now; those that SQS knows no more."""
        answer = await self._aws.call(
            "sqs",
            "change_message_visibility_batch",
            ATTEMPT,
            QueueUrl=self._url,
            Entries=[
                {"Id": str(n), "ReceiptHandle": each.receipt, "VisibilityTimeout": seconds}
                for n, each in enumerate(held)
            ],
        )
        failed: list[dict[str, Any]] = answer.get("Failed", [])
        return [held[int(each["Id"])] for each in failed if each.get("SenderFault")]

    async def _delete(self) -> None:
        pauses = Pauses(self._ambient)
        while self._handled:
            some = list(islice(self._handled, ENTRIES * DELETING))
            parts = [some[start : start + ENTRIES] for start in range(0, len(some), ENTRIES)]
            left = [each for part in await asyncio.gather(*map(self._try_to_delete, parts))
                    for each in part]  # fmt: skip
            if len(left) == len(some):
                await pauses.wait()
            else:
                pauses.failures = 0
            now = self._ambient.monotonic()
            for _ in some:
                self._handled.popleft()
            self._handled.extendleft(each for each in reversed(left) if each.until > now)

    async def _try_to_delete(self, some: Sequence[_Held]) -> list[_Held]:
        """Delete these, ten at most; those that may be tried again.

        What SQS refuses to delete has expired: it comes again, and the inbox knows it.
        """
        try:
            answer = await self._aws.call(
                "sqs",
                "delete_message_batch",
                ATTEMPT,
                QueueUrl=self._url,
                Entries=[
                    {"Id": str(n), "ReceiptHandle": each.receipt} for n, each in enumerate(some)
                ],
            )
        except BrokerUnavailable:
            return list(some)
        except BrokerError:
            return []
        failed: list[dict[str, Any]] = answer.get("Failed", [])
        return [some[int(each["Id"])] for each in failed if not each.get("SenderFault")]
