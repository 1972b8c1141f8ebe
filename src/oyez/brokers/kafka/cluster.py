"""What is asked of a cluster as a whole: its topics, their offsets and configuration."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from time import monotonic
from typing import Any, TypeVar, cast

import msgspec
from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.admin._metadata import ClusterMetadata, TopicMetadata
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic

from oyez.brokers.kafka.connection import cause, client_settings, explain
from oyez.brokers.kafka.options import REPLICAS, KafkaOptions
from oyez.brokers.kafka.reader import UNKNOWN, last_positions
from oyez.brokers.kit.streams import Place
from oyez.endpoint import Endpoint
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable
from oyez.ports import Position

T = TypeVar("T")

_FIRST_TRY = 0.25  # seconds that one request for metadata is given, doubling with each
_LAST_TRY = 2.0
_PATIENCE = 1.5  # seconds after which a cluster none of whose brokers answers is given up on
_MOVING = UNKNOWN | {
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
}
"""The errors of a partition that has just been made, or gets another leader."""

_GROUPLESS = {KafkaError.GROUP_ID_NOT_FOUND, KafkaError.GROUP_AUTHORIZATION_FAILED}
_COORDINATING = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}
"""The errors of a group whose coordinator is being found."""


class Topic(msgspec.Struct, frozen=True):
    """How a topic stands."""

    partitions: int
    replicas: int
    """Copies of the partition that has the fewest."""
    behind: int
    """Partitions with a replica that is not in sync."""
    offline: int
    """Partitions without a leader."""
    config: Mapping[str, str]
    """What is in force for it, by Kafka's names; empty where the user may not ask."""


class Cluster:
    """An administrator's client and a few threads, since some of its calls block."""

    def __init__(self, endpoint: Endpoint, options: KafkaOptions) -> None:
        """Raises KafkaException for settings that can't work."""
        self.settings = client_settings(endpoint, options)
        """For other clients of the same cluster. Holds the password."""
        self.brokers = 0
        """How many answered for themselves last."""
        self._endpoint = endpoint
        self._options = options
        self._troubles: dict[int, KafkaError] = {}
        self._closing = False
        settings: dict[str, Any] = {**self.settings, "error_cb": self._hear}
        self._admin = AdminClient(settings)
        self._committer: Consumer | None = None
        self._committed: list[KafkaError | None] = []
        self._committing = Lock()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="kafka cluster")

    async def close(self) -> None:
        """Let go of everything."""
        self._closing = True
        await self._block(self._forget)
        self._threads.shutdown()

    # -- topics ------------------------------------------------------------------------------------

    async def topics(self, *, hasty: bool = False) -> dict[str, TopicMetadata]:
        """Every topic that is not internal. ``hasty`` gives up early when no broker answers."""
        found = await self._metadata(None, hasty=hasty)
        return {
            name: topic
            for name, topic in found.topics.items()
            if not name.startswith("__") and topic.error is None
        }

    async def partitions(self, stream: str) -> int:
        """How many the topic has; 0 when there is no such topic."""
        topic = (await self._metadata(stream)).topics.get(stream)
        if topic is None or (topic.error is not None and topic.error.code() in UNKNOWN):
            return 0
        if topic.error is not None:
            raise explain(topic.error, self._endpoint)
        return len(topic.partitions)

    async def create(self, stream: str, partitions: int) -> int:
        """Make the topic unless it is there; how many partitions it has now."""
        await self._metadata(stream)
        new = NewTopic(
            stream,
            num_partitions=partitions,
            replication_factor=self.replication,
            config=self._new_config(),
        )
        (made,) = self._admin.create_topics([new], request_timeout=self._options.deadline).values()
        try:
            await self._answer(made)
        except KafkaException as error:
            if cause(error).code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise explain(cause(error), self._endpoint) from error
        while True:
            # Brokers hear of it one after the other, and each partition has to find a leader.
            topic = (await self._metadata(stream)).topics[stream]
            if topic.error is None and all(p.leader >= 0 for p in topic.partitions.values()):
                await self.ends(stream, topic.partitions)
                return len(topic.partitions)
            await asyncio.sleep(0.02)

    async def ids(self, streams: Sequence[str]) -> dict[str, str]:
        """What tells a topic from another of the same name, made later."""
        if not streams:
            return {}
        asked = self._admin.describe_topics(
            TopicCollection(list(streams)), request_timeout=self._options.deadline
        )
        found = await self._answers(asked)
        return {name: str(topic.topic_id) for name, topic in found.items()}

    async def describe(self, topics: Mapping[str, TopicMetadata]) -> dict[str, Topic]:
        """How these topics stand."""
        configs = await self.configs(list(topics))
        described = {}
        for name, topic in topics.items():
            partitions = topic.partitions.values()
            described[name] = Topic(
                partitions=len(partitions),
                replicas=min((len(p.replicas) for p in partitions), default=0),
                behind=sum(len(p.isrs) < len(p.replicas) for p in partitions),
                offline=sum(p.leader < 0 for p in partitions),
                config=configs.get(name, {}),
            )
        return described

    async def configs(self, streams: Sequence[str]) -> dict[str, dict[str, str]]:
        """The configuration of these topics; one that the user may not ask for is left out."""
        if not streams:
            return {}
        asked = self._admin.describe_configs(
            [ConfigResource(ResourceType.TOPIC, stream) for stream in streams],
            request_timeout=self._options.deadline,
        )
        found = await self._answers(
            {resource.name: answer for resource, answer in asked.items()},
            absent=UNKNOWN | {KafkaError.TOPIC_AUTHORIZATION_FAILED},
        )
        return {
            stream: {name: str(entry.value) for name, entry in config.items()}
            for stream, config in found.items()
        }

    # -- offsets -----------------------------------------------------------------------------------

    async def starts(self, stream: str, partitions: Iterable[int]) -> list[Position]:
        """The first offset that is kept of each partition."""
        return await self._offsets(stream, partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    async def ends(self, stream: str, partitions: Iterable[int]) -> list[Position]:
        """The offset behind the last one that may be read of each partition."""
        return await self._offsets(stream, partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    async def last_positions(
        self, places: Mapping[Place, tuple[int, int]]
    ) -> dict[Place, Position]:
        """See `oyez.brokers.kafka.reader.last_positions`."""
        look = partial(
            last_positions, self.settings, self._options, places, lambda: not self._closing
        )
        try:
            return await self._block(look)
        except TimeoutError as error:
            raise self._silent() from error
        except KafkaException as error:
            raise explain(cause(error), self._endpoint) from error

    async def commit(self, group: str, positions: Mapping[Place, Position]) -> None:
        """Show a consumer group's positions."""
        offsets = [TopicPartition(*place, position) for place, position in positions.items()]
        error = await self._block(partial(self._commit, group, offsets))
        if error is not None:
            raise explain(error, self._endpoint)

    def _commit(self, group: str, offsets: list[TopicPartition]) -> KafkaError | None:
        # By a consumer that joins nothing, not by the administrator: the latter's calls to a
        # group's coordinator abort the process when that broker dies (librdkafka#5397).
        with self._committing:
            if self._committer is None:
                own = {"group.id": group, "enable.auto.commit": False, "on_commit": self._told}
                self._committer = Consumer({**self.settings, **own})
            self._committed.clear()
            self._committer.commit(offsets=offsets, asynchronous=True)
            end = monotonic() + self._options.deadline
            while not self._committed and monotonic() < end:
                self._committer.poll(0.05)
            return self._committed[0] if self._committed else KafkaError(KafkaError._TIMED_OUT)

    def _told(self, error: KafkaError | None, _: list[TopicPartition]) -> None:
        self._committed.append(error)

    async def members(self, group: str) -> int:
        """How many consumers have joined the group; 0 when the user may not ask."""
        absent = _GROUPLESS | _COORDINATING
        while True:
            asked = self._admin.describe_consumer_groups(
                [group], request_timeout=self._options.deadline
            )
            refusals: set[int] = set()
            found = await self._answers(asked, absent=absent, left_out=refusals)
            if not refusals & _COORDINATING:
                return sum(len(described.members) for described in found.values())
            await asyncio.sleep(0.1)

    async def _offsets(
        self, stream: str, partitions: Iterable[int], spec: OffsetSpec | None
    ) -> list[Position]:
        found: dict[int, Position] = {}
        wanted = set(partitions)
        while missing := wanted - found.keys():
            asked = self._admin.list_offsets(
                {
                    TopicPartition(stream, partition): cast(OffsetSpec, spec)
                    for partition in missing
                },
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=self._options.deadline,
            )
            answers = await self._answers(
                {place.partition: answer for place, answer in asked.items()}, absent=_MOVING
            )
            found.update({partition: answer.offset for partition, answer in answers.items()})
            if len(answers) < len(missing):
                await asyncio.sleep(0.05)
        return [found[partition] for partition in sorted(found)]

    # -- what new topics get -----------------------------------------------------------------------

    @property
    def replication(self) -> int:
        """Replicas of new topics."""
        return self._options.replication_factor or max(1, min(REPLICAS, self.brokers))

    @property
    def insync(self) -> int:
        """How many of them must have a record of a new topic before it is confirmed."""
        return self._options.min_insync_replicas or (2 if self.replication >= REPLICAS else 1)

    def _new_config(self) -> dict[str, str]:
        config = {
            "cleanup.policy": "delete",
            "retention.ms": str(round(self._options.retention * 1000)),
            "max.message.bytes": str(self._options.max_message_bytes),
            "min.insync.replicas": str(self.insync),
            "unclean.leader.election.enable": "false",
        }
        if self.insync < 2:
            config["flush.messages"] = "1"  # no second machine has it: the disk must
        return config

    # -- calling the driver ------------------------------------------------------------------------

    async def _metadata(self, stream: str | None, *, hasty: bool = False) -> ClusterMetadata:
        try:
            found = await self._block(partial(self._ask_metadata, stream, hasty))
        except KafkaException as error:
            raise self._silent(cause(error)) from error
        self.brokers = len(found.brokers)
        return found

    def _ask_metadata(self, stream: str | None, hasty: bool) -> ClusterMetadata:
        """In short tries, so that what the driver complains of meanwhile ends it early."""
        begun = monotonic()
        patience = _FIRST_TRY
        self._troubles.clear()
        while True:
            try:
                return (
                    self._admin.list_topics(timeout=patience)
                    if stream is None
                    else self._admin.list_topics(stream, timeout=patience)
                )
            except KafkaException:
                self._admin.poll(0)
                spent = monotonic() - begun
                refused = any(
                    isinstance(explain(error, self._endpoint), BrokerRefused)
                    for error in list(self._troubles.values())
                )
                down = hasty and KafkaError._ALL_BROKERS_DOWN in self._troubles
                if (
                    refused
                    or self._closing
                    or spent >= (_PATIENCE if down else self._options.deadline)
                ):
                    raise
                patience = min(2 * patience, _LAST_TRY, self._options.deadline - spent + 0.05)

    async def _answers(
        self,
        asked: Mapping[Any, concurrent.futures.Future[T]],
        absent: Collection[int] = frozenset(UNKNOWN),
        left_out: set[int] | None = None,
    ) -> dict[Any, T]:
        """The answers that there are; an error in ``absent`` leaves one out, and is added there."""
        found: dict[Any, T] = {}
        failure: BaseException | None = None
        for name, answer in asked.items():
            try:
                found[name] = await self._answer(answer)
            except KafkaException as error:
                if cause(error).code() not in absent:
                    failure = failure or error
                elif left_out is not None:
                    left_out.add(cause(error).code())
        if isinstance(failure, KafkaException):
            raise self._silent(cause(failure)) from failure
        return found

    async def _answer(self, answer: concurrent.futures.Future[T]) -> T:
        # Shielded: the driver still fills in the future of a call that was cancelled.
        async with asyncio.timeout(self._options.deadline + 1.0):
            return await asyncio.shield(asyncio.wrap_future(answer))

    def _forget(self) -> None:
        if self._committer is not None:
            self._committer.close()
        del self._admin  # its threads end before this returns

    async def _block(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _hear(self, error: KafkaError) -> None:
        self._troubles[error.code()] = error

    def _silent(self, error: KafkaError | None = None) -> BrokerError:
        """The error, or what the driver complained of meanwhile where that says more."""
        troubles = [
            explain(trouble, self._endpoint)
            for code, trouble in list(self._troubles.items())
            if code != KafkaError._ALL_BROKERS_DOWN
        ]
        for trouble in troubles:
            if isinstance(trouble, BrokerRefused):
                return trouble
        vague = error is None or error.code() in (KafkaError._TRANSPORT, KafkaError._TIMED_OUT)
        if vague and troubles:
            return troubles[-1]
        if error is not None:
            return explain(error, self._endpoint)
        return BrokerUnavailable(f"{self._endpoint.url} did not answer in time")
