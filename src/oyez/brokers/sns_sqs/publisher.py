"""Publishing to one partition's topic, in order.

One batch is on its way at a time, with one message for each key in it, which holds as many of that
key's records as fit. So a message that SNS takes can't overtake one of its key that it refused.
What may have reached SNS is sent again under the same deduplication id until its fate is known,
even when nobody waits any more: only then does anything else follow it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from oyez.ambient import Ambient
from oyez.brokers.kit.calls import Pauses
from oyez.brokers.kit.watch import stop
from oyez.brokers.sns_sqs.connection import ATTEMPT, Aws, Missing
from oyez.brokers.sns_sqs.wire import CONTENT_TYPE, LIMIT, OVERHEAD, group_of, join
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable

MESSAGES = 10
"""Messages in one batch, at most."""
TOGETHER = 256
"""Records in one message, at most."""


class Call:
    """One publish: how many of its records are not confirmed, and what went wrong."""

    def __init__(self) -> None:
        self.unconfirmed = 0
        self.confirmed = 0
        self.error: BrokerError | None = None
        self.trouble: BrokerUnavailable | None = None
        """Why the last attempt failed that is being made again."""
        self.given_up = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def confirm(self, count: int) -> None:
        """So many more are durable."""
        self.unconfirmed -= count
        self.confirmed += count
        if self.unconfirmed == 0 and not self._done.done():
            self._done.set_result(None)

    def fail(self, error: BrokerError) -> None:
        """It can't succeed: nothing more of it is sent."""
        self.given_up = True
        self.error = self.error or error
        if not self._done.done():
            self._done.set_result(None)

    async def wait(self, seconds: float, where: str) -> None:
        """Until all is confirmed. Raises BrokerError, also when nothing was for so many seconds."""
        try:
            while not self._done.done():
                before = self.confirmed
                await asyncio.wait([self._done], timeout=seconds)
                if not self._done.done() and self.confirmed == before:
                    raise self.trouble or BrokerUnavailable(
                        f"{where} confirmed nothing within {seconds:g} s"
                    )
        finally:
            self.given_up = True
        if self.error is not None:
            raise self.error


class _Message:
    """Records of one key on their way together; never altered, so that it can be sent again."""

    def __init__(self, group: str, entries: list[tuple[Call, bytes]], identity: str) -> None:
        self.calls = [call for call, _ in entries]
        kind, body = join([text for _, text in entries])
        self.request = {
            "Message": body,
            "MessageGroupId": group,
            "MessageDeduplicationId": identity,
            "MessageAttributes": {CONTENT_TYPE: {"DataType": "String", "StringValue": kind}},
        }


class Topic:
    """One partition's topic."""

    def __init__(
        self, aws: Aws, ambient: Ambient, arn: str, mend: Callable[[], Awaitable[object]]
    ) -> None:
        """``mend`` makes the stream's topics again when they were deleted."""
        self._aws = aws
        self._ambient = ambient
        self._arn = arn
        self._mend = mend
        self._waiting: dict[str | None, deque[tuple[Call, str, bytes]]] = {}
        self._task: asyncio.Task[None] | None = None

    def send(self, call: Call, key: str | None, identity: str, text: bytes) -> None:
        """Send an encoded record behind those of its key; ``identity`` spreads those without."""
        call.unconfirmed += 1
        self._waiting.setdefault(key, deque()).append((call, identity, text))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"publish to {self._arn}")

    def drop(self, call: Call) -> None:
        """Forget what is not on its way of a publish that nobody waits for any more."""
        for key, waiting in list(self._waiting.items()):
            left = deque(each for each in waiting if each[0] is not call)
            if left:
                self._waiting[key] = left
            else:
                del self._waiting[key]

    async def close(self) -> None:
        """Send nothing more."""
        await stop(self._task)

    async def _run(self) -> None:
        await asyncio.sleep(0)  # what the same publish still adds goes with it
        while messages := self._next():
            pauses = Pauses(self._ambient)
            while messages:
                messages, trouble = await self._attempt(messages)
                if trouble is None:
                    continue
                waiting = [call for each in self._waiting.values() for call, _, _ in each]
                for call in (*waiting, *(call for message in messages for call in message.calls)):
                    call.trouble = trouble
                await pauses.wait()

    def _next(self) -> list[_Message]:
        messages: list[_Message] = []
        room = LIMIT
        for key in list(self._waiting):
            entries: list[tuple[Call, bytes]] = []
            waiting = self._waiting[key]
            group = None if key is None else group_of(key)
            size = OVERHEAD
            while waiting and len(entries) < TOGETHER:
                call, identity, text = waiting[0]
                if not call.given_up:
                    if size + len(text) + 1 > room and (entries or messages):
                        break
                    size += len(text) + 1
                    entries.append((call, text))
                    group = group or group_of(identity)
                waiting.popleft()
            if entries:
                messages.append(_Message(group or "", entries, self._ambient.new_id()))
                room -= size
            if not waiting:
                del self._waiting[key]
            elif not entries:
                break  # the next one has no room any more
            if len(messages) == MESSAGES:
                break
        return messages

    async def _attempt(
        self, messages: list[_Message]
    ) -> tuple[list[_Message], BrokerUnavailable | None]:
        """Send them; what is to be sent again, and why."""
        entries = [{"Id": str(number), **each.request} for number, each in enumerate(messages)]
        try:
            answer = await self._aws.call(
                "sns",
                "publish_batch",
                ATTEMPT,
                TopicArn=self._arn,
                PublishBatchRequestEntries=entries,
            )
        except Missing as error:
            try:
                await self._mend()
            except BrokerError as refused:
                return messages, BrokerUnavailable(str(refused))
            return messages, BrokerUnavailable(str(error))
        except BrokerUnavailable as error:
            return messages, error
        except BrokerRefused as error:
            _fail(messages, error)
            return [], None
        for each in answer.get("Successful", ()):
            for call in messages[int(each["Id"])].calls:
                call.confirm(1)
        again: list[_Message] = []
        codes: set[str] = set()
        failed: list[dict[str, Any]] = answer.get("Failed", [])
        for each in failed:
            message, code = messages[int(each["Id"])], each["Code"]
            if each.get("SenderFault"):
                text = f"SNS refused a record: {code}: {each.get('Message', '')}"
                _fail([message], BrokerRefused(text))
            else:
                again.append(message)
                codes.add(code)
        if not again:
            return [], None
        return again, BrokerUnavailable(f"SNS did not take some records: {', '.join(codes)}")


def _fail(messages: list[_Message], error: BrokerError) -> None:
    for message in messages:
        for call in message.calls:
            call.fail(error)
