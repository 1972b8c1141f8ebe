"""Which topics, queues and subscriptions there are, and how they come to be."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Iterable
from math import inf
from typing import Any, TypeVar

import msgspec

from oyez.ambient import Ambient
from oyez.brokers.kit.streams import Place, Streams
from oyez.brokers.sns_sqs.connection import Aws, Different, Missing
from oyez.brokers.sns_sqs.options import SnsSqsOptions
from oyez.errors import BrokerRefused, BrokerUnavailable

MARKER = "oyez-"
STREAM = f"{MARKER}stream-"
GROUP = f"{MARKER}group-"
"""How the names of the queues begin that say that a stream or a group exists."""
ONLOOKER = "look-"
"""The prefix of the queues that are created for inspection."""
NAME_TAG = "oyez:name"
PARTITIONS_TAG = "oyez:partitions"
SHORTEST_RETENTION, LONGEST_RETENTION = 60, 14 * 86_400
FORGET = 60.0
"""Seconds for which a stream must be absent from what SQS lists before it counts as deleted."""
AGED = 86_400.0
"""Seconds after which an onlooker has surely gone."""
AT_ONCE = 16
"""Requests at once while something is made."""

_LONGEST_NAME = 68
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")

T = TypeVar("T")


class Topology:
    """What exists, as seen by this process, for one group."""

    def __init__(self, aws: Aws, ambient: Ambient, options: SnsSqsOptions, group: str) -> None:
        self.streams: Streams[int] = Streams()
        """Known streams, each with its number of partitions."""
        self.groups: set[str] = set()
        """Known groups."""
        self.looked = -inf
        """When it was last seen, on the monotonic clock."""
        self._aws = aws
        self._ambient = ambient
        self._options = options
        self._group = group
        self._reader = group or f"{ONLOOKER}{ambient.new_id()[-12:]}"
        self._looked_on: dict[str, str] = {}
        """An onlooker's queues, by the ARN of their subscription."""
        self._markers: dict[str, tuple[str, int]] = {}
        self._subscribed: dict[tuple[str, Place], str] = {}
        self._account = ""
        self._listed = False
        self._absent: dict[str, float] = {}
        self._looks = 0
        self._newest = 0
        self._subscribing = asyncio.Lock()
        self._making: dict[str, asyncio.Lock] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)

    # -- looking -----------------------------------------------------------------------------------

    async def look(self) -> None:
        """Learn what there is, and subscribe the group to what is new. Raises BrokerError."""
        self._looks += 1
        look = self._looks
        found = await self._learn()
        if self._group and self._group not in self.groups:
            if self._listed:  # it was there: somebody deleted everything, or the emulator died
                self._subscribed = {}
            await self._mark(GROUP, self._group, {})
            # Whoever made a stream meanwhile may not have known of the group.
            found = await self._learn()
        self._listed = self._listed or self._group in self.groups
        self.groups.add(self._group)
        async with self._subscribing:
            await self._subscribe_to(found)
        if look > self._newest:
            self._newest = look
            self.looked = self._ambient.monotonic()
            self._now_known(found)

    async def _learn(self) -> dict[str, int]:
        addresses = {_last(address): address for address in await self._addresses()}
        for name, address in addresses.items():
            if name not in self._markers:
                self._markers[name] = await self._read_marker(address)
        for name in self._markers.keys() - addresses.keys():
            del self._markers[name]
        markers = {name: each for name, each in self._markers.items() if each[0]}
        self.groups = {each for name, (each, _) in markers.items() if name.startswith(GROUP)}
        return {each: count for name, (each, count) in markers.items() if name.startswith(STREAM)}

    async def count(self, stream: str) -> int:
        """How many partitions the stream has, which is made if it is unknown."""
        known = self.streams.known.get(stream)
        return known if known is not None else await self.make(stream, self._options.partitions)

    async def queue(self, stream: str, partition: int, *, lost: bool) -> str:
        """The address of the group's queue, once it is there and subscribed.

        Whoever has no group gets queues that `leave` deletes. ``lost``: the one that was there is
        not. Raises BrokerUnavailable while there is no such stream.
        """
        if lost:
            self._forget_queue(stream, partition)
        partitions = self.streams.known.get(stream)
        if partitions is None:
            raise BrokerUnavailable(f"stream {stream} does not exist yet")
        if partition >= partitions:
            raise BrokerRefused(f"stream {stream} has {partitions} partitions, no {partition}")
        return await self._subscribe(self._reader, (stream, partition))

    async def leave(self) -> None:
        """Delete the queues that were made for one who only looked. Raises BrokerError."""
        subscriptions, self._looked_on = self._looked_on, {}

        async def one(subscription: str, address: str) -> None:
            await self._aws.ask("sns", "unsubscribe", SubscriptionArn=subscription)
            await self._aws.ask("sqs", "delete_queue", QueueUrl=address)

        await self._together(one(*each) for each in subscriptions.items())

    async def left(self) -> list[str]:
        """Addresses of queues that were made for onlookers long ago: they were killed."""
        aged: list[str] = []
        for address in await self._addresses(ONLOOKER):
            names = ["CreatedTimestamp"]
            try:
                answer = await self._aws.ask(
                    "sqs", "get_queue_attributes", QueueUrl=address, AttributeNames=names
                )
            except Missing:
                continue
            if float(answer["Attributes"][names[0]]) < self._ambient.now() - AGED:
                aged.append(address)
        return aged

    async def waiting(self, stream: str, partitions: Iterable[int]) -> dict[int, int]:
        """Messages in each of the group's queues; a partition that does not exist is left out."""

        async def one(partition: int) -> tuple[int, int]:
            place = (stream, partition)
            try:
                address = self._subscribed.get((self._group, place))
                if address is None:
                    name = self.queue_name(self._group, place)
                    answer = await self._aws.ask("sqs", "get_queue_url", QueueName=name)
                    address = answer["QueueUrl"]
                answer = await self._aws.ask(
                    "sqs",
                    "get_queue_attributes",
                    QueueUrl=address,
                    AttributeNames=[
                        "ApproximateNumberOfMessages",
                        "ApproximateNumberOfMessagesNotVisible",
                        "ApproximateNumberOfMessagesDelayed",
                    ],
                )
            except Missing as error:
                raise BrokerRefused(
                    f"group {self._group} has no queue for {stream}[{partition}]: "
                    "start one of its replicas, which makes it"
                ) from error
            return partition, sum(int(value) for value in answer["Attributes"].values())

        if stream not in self.streams.known:
            await self.look()
        there = range(self.streams.known.get(stream, 0))
        return dict(await self._together(one(each) for each in partitions if each in there))

    # -- names -------------------------------------------------------------------------------------

    def topic_arn(self, stream: str, partition: int) -> str:
        """Of the topic of one partition."""
        return self._arn("sns", f"{_safe(stream)}__{partition}.fifo")

    def queue_name(self, group: str, place: Place) -> str:
        """Of a group's queue for one partition."""
        stream, partition = place
        return f"{_fit(f'{_safe(group)}__{_safe(stream)}')}__{partition}.fifo"

    def queue_arn(self, group: str, place: Place) -> str:
        """Of a group's queue for one partition."""
        return self._arn("sqs", self.queue_name(group, place))

    def of_system(self, stream: str) -> list[str]:
        """The groups of the stream's system."""
        return sorted(each for each in self.groups if _system(each) == _system(stream))

    def _arn(self, service: str, name: str) -> str:
        return f"arn:{self._aws.partition}:{service}:{self._aws.region}:{self._account}:{name}"

    # -- making ------------------------------------------------------------------------------------

    async def make(self, stream: str, partitions: int) -> int:
        """Make the stream unless it is there; how many partitions it has now."""
        return await self._make(stream, partitions, again=False)

    async def mend(self, stream: str) -> None:
        """Make the topics and subscriptions of a stream anew that were deleted."""
        partitions = self.streams.known.get(stream, self._options.partitions)
        self._forget(stream)
        await self._make(stream, partitions, again=True)

    async def _make(self, stream: str, partitions: int, *, again: bool) -> int:
        if not _NAME.fullmatch(stream):
            raise BrokerRefused(
                f"stream {stream[:40]!r} can't be a topic: allowed are 200 of A-Z a-z 0-9 . _ -"
            )
        async with self._making.setdefault(stream, asyncio.Lock()):
            await self.look()
            if stream in self.streams.known and not again:
                return self.streams.known[stream]
            first = await self._make_topic(stream, 0, partitions)
            answer = await self._aws.ask("sns", "list_tags_for_resource", ResourceArn=first)
            tags = {each["Key"]: each["Value"] for each in answer["Tags"]}
            partitions = int(tags.get(PARTITIONS_TAG, partitions))
            self._account = first.split(":")[4]
            await self._together(self._make_topic(stream, p, partitions) for p in range(partitions))
            await self._together(
                self._subscribe(group, (stream, p))
                for group in self.of_system(stream)
                for p in range(partitions)
            )
            await self._mark(STREAM, stream, {PARTITIONS_TAG: str(partitions)})
            self._looks += 1
            self._newest = self._looks  # a look that began before this may not know the stream
            self._now_known({**self.streams.known, stream: partitions})
            return partitions

    async def _make_topic(self, stream: str, partition: int, partitions: int) -> str:
        name = f"{_safe(stream)}__{partition}.fifo"
        tags = {NAME_TAG: stream, PARTITIONS_TAG: str(partitions)}
        try:
            answer = await self._aws.ask(
                "sns",
                "create_topic",
                Name=name,
                Attributes={
                    "FifoTopic": "true",
                    "ContentBasedDeduplication": "false",
                    "FifoThroughputScope": "MessageGroup",
                },
                Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
            )
        except Different:
            # Someone made it otherwise, perhaps with another number of partitions: its tags tell.
            answer = await self._aws.ask("sns", "create_topic", Name=name)
        return str(answer["TopicArn"])

    async def _subscribe_to(self, streams: dict[str, int]) -> None:
        if self._group:
            await self._together(
                self._subscribe(self._group, (stream, partition))
                for stream, partitions in streams.items()
                if _system(stream) == _system(self._group)
                for partition in range(partitions)
            )

    async def _subscribe(self, group: str, place: Place) -> str:
        """The address of the group's queue, which is made and subscribed unless that is known."""
        known = self._subscribed.get((group, place))
        if known is not None:
            return known
        topic, queue = self.topic_arn(*place), self.queue_arn(group, place)
        retention = int(min(max(self._options.retention, SHORTEST_RETENTION), LONGEST_RETENTION))
        if group.startswith(ONLOOKER):
            retention = SHORTEST_RETENTION
        attributes = {
            "FifoQueue": "true",
            "ContentBasedDeduplication": "false",
            "DeduplicationScope": "messageGroup",
            "FifoThroughputLimit": "perMessageGroupId",
            "MessageRetentionPeriod": str(retention),
            "Policy": _policy(topic, queue),
        }
        address = await self._make_queue(self.queue_name(group, place), attributes, {})
        try:
            answer = await self._aws.ask(
                "sns",
                "subscribe",
                TopicArn=topic,
                Protocol="sqs",
                Endpoint=queue,
                Attributes={"RawMessageDelivery": "true"},
                ReturnSubscriptionArn=True,
            )
        except Different:
            pass  # subscribed in another way: `inspect` says what is wrong with that
        except Missing as error:
            raise BrokerUnavailable(str(error)) from error
        else:
            if group.startswith(ONLOOKER):
                self._looked_on[answer["SubscriptionArn"]] = address
        self._subscribed[group, place] = address
        return address

    async def _make_queue(self, name: str, attributes: dict[str, str], tags: dict[str, str]) -> str:
        try:
            answer = await self._aws.ask(
                "sqs", "create_queue", QueueName=name, Attributes=attributes, tags=tags
            )
        except Different:
            answer = await self._aws.ask("sqs", "get_queue_url", QueueName=name)
        return str(answer["QueueUrl"])

    async def _mark(self, kind: str, name: str, tags: dict[str, str]) -> None:
        tags = {NAME_TAG: name, **tags}
        address = await self._make_queue(f"{kind}{_fit(_safe(name))}", {}, tags)
        self._learn_account(address)

    async def _addresses(self, prefix: str = MARKER) -> list[str]:
        found: list[str] = []
        more: dict[str, Any] = {}
        while True:
            answer = await self._aws.ask(
                "sqs", "list_queues", QueueNamePrefix=prefix, MaxResults=1_000, **more
            )
            found += answer.get("QueueUrls", [])
            if "NextToken" not in answer:
                return found
            more = {"NextToken": answer["NextToken"]}

    async def _read_marker(self, address: str) -> tuple[str, int]:
        self._learn_account(address)
        try:
            answer = await self._aws.ask("sqs", "list_queue_tags", QueueUrl=address)
        except Missing:
            return "", 0
        tags = answer.get("Tags", {})
        count = tags.get(PARTITIONS_TAG, "")
        if not (count.isdigit() or address.rpartition("/")[2].startswith(GROUP)):
            return "", 0  # someone else's queue under a name like ours
        return tags.get(NAME_TAG, ""), int(count or 0)

    def _learn_account(self, address: str) -> None:
        self._account = address.rstrip("/").split("/")[-2]

    def _now_known(self, streams: dict[str, int]) -> None:
        """Lists of queues lag behind: what was known stays so until it is absent for long."""
        now = self._ambient.monotonic()
        known = self.streams.known
        absent = known.keys() - streams.keys()
        self._absent = {stream: self._absent.get(stream, now) for stream in absent}
        kept = {each: known[each] for each in absent if now < self._absent[each] + FORGET}
        for stream in absent - kept.keys():
            self._forget(stream)
        self.streams.replace({**kept, **streams})

    def _forget_queue(self, stream: str, partition: int) -> None:
        self._subscribed.pop((self._reader, (stream, partition)), None)

    def _forget(self, stream: str) -> None:
        self._subscribed = {
            each: address for each, address in self._subscribed.items() if each[1][0] != stream
        }

    async def _together(self, calls: Iterable[Awaitable[T]]) -> list[T]:
        async def one(call: Awaitable[T]) -> T:
            async with self._gate:
                return await call

        results = await asyncio.gather(*map(one, calls), return_exceptions=True)
        answers: list[T] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            answers.append(result)
        return answers


def _policy(topic: str, queue: str) -> str:
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue,
        "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
    }
    return msgspec.json.encode({"Version": "2012-10-17", "Statement": [statement]}).decode()


def _safe(name: str) -> str:
    """The name in letters that AWS allows. Distinct for the names that Oyez allows."""
    plain = name.replace(".", "_")
    if "_" in name:
        plain = f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return plain


def _fit(name: str) -> str:
    """The name, shortened to what leaves room for the rest of a queue's name."""
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 13]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _system(name: str) -> str:
    return name.rpartition(".")[0]


def _last(address: str) -> str:
    return address.rstrip("/").rpartition("/")[2]
