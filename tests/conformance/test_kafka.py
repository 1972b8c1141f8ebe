"""Kafka, held to the suite and to its own traps."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.brokers.kafka import cluster, publisher
from oyez.brokers.kafka.cluster import Topic
from oyez.brokers.kafka.connection import client_settings
from oyez.brokers.kafka.inspection import judge
from oyez.brokers.kafka.options import KafkaOptions
from oyez.brokers.kafka.publisher import Publisher
from oyez.brokers.kafka.reader import Fetcher, last_positions
from oyez.endpoint import Endpoint
from oyez.envelope import open_record
from oyez.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    InvalidEvent,
)
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Batch, Broker, Position, Record
from oyez.testing.broker_suite import Factory, ServerBrokerSuite
from oyez.testing.proxy import Proxy
from servers import ROOT, Server, server

DEADLINE = 60.0


class TestKafka(ServerBrokerSuite):
    row = "kafka"

    @pytest.fixture(autouse=True)
    def _kafka(self) -> None:
        self.kafka = server("kafka")

    def server(self, tmp_path: Path) -> Server:
        return self.kafka

    def make(self, tmp_path: Path) -> Factory:
        return lambda: connect(self.kafka.url, SystemAmbient(), root=tmp_path, group="suite.group")

    def url(self, tmp_path: Path) -> str:
        return self.kafka.url

    def proxy(self, tmp_path: Path) -> Proxy:
        return self.kafka.proxy()

    def make_through(self, tmp_path: Path, proxy: Proxy) -> Factory:
        url = proxy.through(self.kafka.url) + "?deadline=3"
        return lambda: connect(url, SystemAmbient(), root=tmp_path, group="suite.group")


# -- other programs on the same cluster ------------------------------------------------------------


class TestOtherWriters:
    async def test_binary_mode_of_a_plain_producer_is_opened(self, kafka: Server) -> None:
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", b"1"),
            ("ce_source", b"/legacy"),
            ("ce_type", b"shop.order.placed"),
            ("ce_subject", "Jürgen".encode()),
            ("content-type", b"application/json"),
            ("ce_partitionkey", None),
            ("x-b3-traceid", b"of the transport"),
        ]
        async with _broker(kafka) as broker:
            stream = await _stream(broker)
            await _produce(kafka, stream, value=b"{}", key=b"k", headers=headers)
            (record,) = await _take(broker, stream, 1)
        envelope = open_record(record.headers, record.data)
        assert (envelope.id, envelope.subject, envelope.data) == ("1", "Jürgen", b"{}")
        assert envelope.extensions == {}
        assert (record.key, record.position) == ("k", 1)
        assert abs(record.time - time.time()) < 60

    async def test_structured_mode_of_a_plain_producer_is_opened(self, kafka: Server) -> None:
        body = {"specversion": "1.0", "id": "2", "source": "/l", "type": "a", "data": {"n": 1}}
        headers = [("content-type", b"application/cloudevents+json; charset=UTF-8"), ("x", b"y")]
        async with _broker(kafka) as broker:
            stream = await _stream(broker)
            await _produce(kafka, stream, value=json.dumps(body).encode(), headers=headers)
            (record,) = await _take(broker, stream, 1)
        assert open_record(record.headers, record.data).id == "2"
        assert record.key is None

    async def test_what_is_no_event_comes_as_it_is(self, kafka: Server) -> None:
        """Never raised at the reader, never skipped: the lane makes a dead letter of it."""
        async with _broker(kafka) as broker:
            warm = await _stream(broker)
            await broker.publish([_record(warm, n) for n in range(100)])
            await _take(broker, warm, 100)
            stream = await _stream(broker)
            await _produce(kafka, stream, value=None, key=b"tombstone")
            await _produce(kafka, stream, value=b"\xff\x00", key=b"\xff\xfe")
            await _produce(
                kafka, stream, value=b"", key=b"", headers=[("name", b"\xff"), ("n", b"")]
            )
            await _produce_unnamed(kafka, stream)
            await _produce(kafka, stream, value=b"last")
            found = await _take(broker, stream, 5)
        assert [(r.key, r.headers, r.data) for r in found] == [
            ("tombstone", {}, None),
            ("\\xff\\xfe", {}, b"\xff\x00"),
            ("", {"name": "\\xff", "n": ""}, b""),
            (None, {}, b"unnamed"),
            (None, {}, b"last"),
        ]
        for record in found:
            with pytest.raises(InvalidEvent):
                open_record(record.headers, record.data)

    async def test_a_plain_consumer_reads_binary_mode(self, kafka: Server) -> None:
        headers = {"id": "7", "subject": "北京", "datacontenttype": "application/json"}
        async with _broker(kafka) as broker:
            stream = await _stream(broker)
            await broker.publish([Record(stream=stream, key="k", headers=headers, data=b"{}")])
            message = await asyncio.to_thread(_consume, kafka, stream)
        assert (message.key(), message.value()) == (b"k", b"{}")
        assert message.headers() == [
            ("ce_id", b"7"),
            ("ce_subject", "北京".encode()),
            ("content-type", b"application/json"),
        ]


class TestTransactions:
    """What a transactional producer writes last to a partition is the marker of its commit."""

    async def test_the_end_is_the_last_record_not_the_marker(self, kafka: Server) -> None:
        async with _broker(kafka) as reader, _broker(kafka) as other:
            stream = await _stream(reader)
            with _transactional(kafka) as producer:
                for _ in range(3):
                    await asyncio.to_thread(_transaction, producer, stream, 2, commit=True)
                await asyncio.to_thread(_transaction, producer, stream, 40, commit=False)
            found = await _take(reader, stream, 6)
            assert [r.position for r in found] == [1, 2, 4, 5, 7, 8]
            assert list(await reader.ends(stream)) == [8]
            for broker in (reader, other):
                assert await broker.lag(stream, {0: 8}) == {0: 0}
                assert (await broker.lag(stream, {0: 7}))[0] > 0

    async def test_a_reader_at_the_end_has_no_lag_while_it_waits(self, kafka: Server) -> None:
        async with _broker(kafka) as broker:
            stream = await _stream(broker)
            batches = broker.read(stream, 0, BEGINNING)
            with _transactional(kafka) as producer:
                for turn in range(3):
                    await asyncio.to_thread(_transaction, producer, stream, 1, commit=True)
                    position = (await anext(batches)).records[-1].position
                    assert position == 2 * turn + 1
                    assert await broker.lag(stream, {0: position}) == {0: 0}
            await batches.aclose()

    async def test_a_partition_with_nothing_but_markers_has_no_record(self, kafka: Server) -> None:
        async with _broker(kafka) as broker:
            stream = await _stream(broker)
            with _transactional(kafka) as producer:
                await asyncio.to_thread(_transaction, producer, stream, 5, commit=False)
            assert list(await broker.ends(stream)) == [BEGINNING]
            assert await broker.lag(stream, {0: BEGINNING}) == {0: 0}

    async def test_an_open_transaction_is_waited_for(self, kafka: Server) -> None:
        async with _broker(kafka) as broker:
            stream = await _stream(broker)
            await broker.publish([_record(stream, 0)])
            with _transactional(kafka) as producer:
                producer.begin_transaction()
                producer.produce(stream, b"1", partition=0)
                await asyncio.to_thread(producer.flush, 10)
                await broker.publish([_record(stream, 2)])
                assert list(await broker.ends(stream)) == [1]
                assert await broker.lag(stream, {0: 1}) == {0: 0}
                reading = asyncio.ensure_future(_take(broker, stream, 3))
                await asyncio.to_thread(producer.commit_transaction, 10)
                assert [r.data for r in await reading] == [b"0", b"1", b"2"]


class TestGroupOffsets:
    async def test_kafkas_own_tool_shows_what_was_handled(self, kafka: Server) -> None:
        group = f"suite.{uuid4().hex}"
        async with _broker(kafka, group=group) as broker:
            stream = await _stream(broker)
            await broker.publish([_record(stream, n) for n in range(10)])
            await _take(broker, stream, 10)
            for position in range(1, 8):
                broker.handled(stream, 0, position)
        shown = await asyncio.to_thread(
            _tool, "consumer-groups", "--describe", "--group", group, "--offsets"
        )
        (line,) = [line.split() for line in shown.splitlines() if stream in line]
        assert line[:6] == [group, stream, "0", "7", "10", "3"]

    async def test_it_is_shown_while_it_runs_and_never_decides(self, kafka: Server) -> None:
        group = f"suite.{uuid4().hex}"
        async with _broker(kafka, group=group) as broker:
            stream = await _stream(broker)
            await broker.publish([_record(stream, n) for n in range(5)])
            broker.handled(stream, 0, 3)
            await _until(lambda: _committed(kafka, group, stream), 3)
            broker.handled(stream, 0, 5)
            await _until(lambda: _committed(kafka, group, stream), 5)
            assert len(await _take(broker, stream, 5)) == 5

    async def test_a_member_of_the_group_is_told_of(self, kafka: Server) -> None:
        group = f"suite.{uuid4().hex}"
        async with _broker(kafka, group=group) as broker:
            stream = await _stream(broker)
            assert not any(group in finding.what for finding in await broker.inspect())
            settings = {"bootstrap.servers": f"{kafka.host}:{kafka.port}", "group.id": group}
            intruder = Consumer(settings)
            intruder.subscribe([stream])
            try:
                await asyncio.to_thread(_join, intruder)
                (finding,) = [f for f in await broker.inspect() if group in f.what]
                assert not finding.grave
                broker.handled(stream, 0, 1)  # refused by Kafka; nobody is troubled by it
            finally:
                await asyncio.to_thread(intruder.close)


# -- what retention and deletion do ----------------------------------------------------------------


class TestGaps:
    async def test_deleted_records_are_counted(self, kafka: Server) -> None:
        async with _broker(kafka) as broker:
            stream = await _stream(broker)
            await broker.publish([_record(stream, n) for n in range(10)])
            await asyncio.to_thread(_delete_records, kafka, stream, 6)
            assert list(await broker.starts(stream)) == [6]
            assert list(await broker.ends(stream)) == [10]
            for after, missed in ((0, 6), (4, 2), (6, 0), (8, 0)):
                batch = await _first(broker, stream, after)
                assert (batch.missed, batch.restarted) == (missed, False)
                assert batch.records[0].position == max(after, 6) + 1

    async def test_a_partition_that_was_emptied(self, kafka: Server) -> None:
        async with _broker(kafka) as broker:
            stream = await _stream(broker)
            await broker.publish([_record(stream, n) for n in range(4)])
            await asyncio.to_thread(_delete_records, kafka, stream, 4)
            assert list(await broker.starts(stream)) == list(await broker.ends(stream)) == [4]
            assert await broker.lag(stream, {0: 4}) == {0: 0}
            reading = asyncio.ensure_future(_first(broker, stream, 1))
            await broker.publish([_record(stream, 4)])
            batch = await reading
            assert (batch.missed, _numbers(batch.records)) == (3, [4])

    async def test_a_stream_made_anew_is_read_from_its_beginning(self, kafka: Server) -> None:
        """Whether the reader waits meanwhile, or asks for a position that is no more."""
        async with _broker(kafka) as broker, _broker(kafka) as other:
            stream = await _stream(broker)
            await broker.publish([_record(stream, n) for n in range(5)])
            batches = broker.read(stream, 0, BEGINNING)
            found: list[int] = []
            while len(found) < 5:
                found += _numbers((await anext(batches)).records)
            await asyncio.to_thread(_delete_topic, kafka, stream)
            await _gone(other, stream)
            await other.create(stream, 1)
            await other.publish([_record(stream, n) for n in (10, 11)])
            async with asyncio.timeout(DEADLINE):
                batch = await anext(batches)
            assert batch.restarted
            assert (batch.missed, _numbers(batch.records)[0]) == (0, 10)
            await batches.aclose()
            batch = await _first(other, stream, 5)
            assert (batch.restarted, _numbers(batch.records)[0]) == (True, 10)
            batch = await _first(other, stream, 1)
            assert (batch.restarted, _numbers(batch.records)) == (False, [11])

    async def test_a_longer_stream_made_anew_is_known_by_its_identity(self, kafka: Server) -> None:
        async with _broker(kafka) as broker:
            stream = await _stream(broker)
            await broker.publish([_record(stream, n) for n in range(3)])
            assert len(await _take(broker, stream, 3)) == 3
            await asyncio.to_thread(_delete_topic, kafka, stream)
            await _gone(broker, stream)
            await broker.create(stream, 1)
            await _retry(lambda: broker.publish([_record(stream, n) for n in range(10, 20)]))
            batch = await _first(broker, stream, 3)
            assert (batch.restarted, _numbers(batch.records)[0]) == (True, 10)


# -- publishing ------------------------------------------------------------------------------------


class TestPublishing:
    async def test_too_large_is_refused_before_anything_is_sent(self, kafka: Server) -> None:
        async with _broker(kafka) as broker:
            stream = await _stream(broker)
            limit = broker.capabilities.max_bytes
            fits, too_large = _record(stream, 1, limit - 64), _record(stream, 2, limit + 1)
            with pytest.raises(BrokerRefused, match=rf"{limit}.*claim_check"):
                await broker.publish([fits, too_large])
            assert list(await broker.ends(stream)) == [BEGINNING]
            await broker.publish([fits])
            assert list(await broker.ends(stream)) == [1]

    async def test_a_topic_of_small_messages_takes_many(self, kafka: Server) -> None:
        """The driver puts records together as far as the smallest topic allows, not its own."""
        async with _broker(kafka) as broker:
            wide, narrow = await _stream(broker), f"suite.{uuid4().hex}"
            await broker.publish([_record(wide, n, 10_000) for n in range(50)])
            await asyncio.to_thread(_create_topic, kafka, narrow, {"max.message.bytes": "30000"})
            await broker.publish([_record(narrow, n, 10_000) for n in range(50)])
            assert _numbers(await _take(broker, narrow, 50)) == list(range(50))
            with pytest.raises(BrokerRefused, match=rf"of {narrow} has .*max\.message\.bytes"):
                await broker.publish([_record(narrow, 1, 30_000)])

    async def test_a_failed_call_that_is_repeated_keeps_its_order(self, kafka: Server) -> None:
        """Whatever of it had arrived: nothing comes before what stood before it."""
        async with _broker(kafka) as direct, kafka.proxy() as proxy:
            stream = await _stream(direct)
            async with _broker(kafka, proxy.through(kafka.url) + "?deadline=1") as broker:
                await _published(broker, [_record(stream, 0)])
                failures = 0
                for start in range(1, 5_001, 1_000):
                    records = [_record(stream, n) for n in range(start, start + 1_000)]
                    publishing = asyncio.ensure_future(broker.publish(records))
                    await asyncio.sleep(0.003 * (start % 7))
                    proxy.stall()
                    while True:
                        try:
                            await publishing
                            break
                        except BrokerUnavailable:
                            failures += 1
                        proxy.restore()
                        publishing = asyncio.ensure_future(broker.publish(records))
                    proxy.restore()
                assert failures > 0
            ends = await direct.ends(stream)
            numbers = _numbers(await _take(direct, stream, ends[0]))
        assert list(dict.fromkeys(numbers)) == list(range(5_001))

    async def test_a_fatal_error_ends_what_is_on_its_way_and_no_thread(
        self, kafka: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Fatal(Producer):  # type: ignore[misc]
            raised = 0

            def poll(self, timeout: float) -> int:
                served: int = super().poll(timeout)
                if len(self) and Fatal.raised < 3:
                    Fatal.raised += 1
                    raise KafkaException(KafkaError(KafkaError._FATAL, "as if it were"))
                return served

        async with _broker(kafka) as direct, kafka.proxy() as proxy:
            stream = await _stream(direct)
            async with _broker(kafka, proxy.through(kafka.url)) as broker:
                await broker.publish([_record(stream, 0)])
                monkeypatch.setattr(publisher, "Producer", Fatal)
                broker._discard(broker._publisher)
                proxy.stall()
                async with asyncio.timeout(DEADLINE):
                    with pytest.raises(BrokerUnavailable):
                        await broker.publish([_record(stream, 1)])
                proxy.restore()
                monkeypatch.undo()
                await broker.publish([_record(stream, 2)])
        assert Fatal.raised
        assert not [thread for thread in threading.enumerate() if "kafka" in thread.name]

    async def test_a_name_that_kafka_does_not_take_is_refused(self, kafka: Server) -> None:
        async with _broker(kafka) as broker:
            with pytest.raises(BrokerRefused):
                await broker.create("no spaces, please", 1)


# -- connections, threads, settings ----------------------------------------------------------------


class TestHousehold:
    async def test_many_partitions_share_connections_and_closing_leaves_none(
        self, kafka: Server
    ) -> None:
        before = _sockets()
        async with _broker(kafka) as broker:
            streams = [await _stream(broker, 8) for _ in range(5)]
            reading = [
                asyncio.ensure_future(_first(broker, stream, BEGINNING, partition))
                for stream in streams
                for partition in range(8)
            ]
            keys = {partition_of(str(n), 8): str(n) for n in range(200)}
            await broker.publish(
                [
                    Record(stream=stream, key=key, headers={"id": key}, data=b"")
                    for stream in streams
                    for key in keys.values()
                ]
            )
            async with asyncio.timeout(DEADLINE):
                batches = await asyncio.gather(*reading)
            assert [b.records[0].partition for b in batches] == [*range(8)] * 5
            assert _sockets() - before <= 6
        assert _sockets() == before
        assert not [thread for thread in threading.enumerate() if "kafka" in thread.name]

    async def test_many_who_ask_for_the_ends_cost_few_consumers(
        self, kafka: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        searches: list[object] = []

        def counted(settings: Any, options: Any, places: Any, going_on: Any) -> Any:
            searches.append(places)
            return last_positions(settings, options, places, going_on)

        monkeypatch.setattr(cluster, "last_positions", counted)
        async with _broker(kafka) as broker:
            stream = await _stream(broker, 8)
            records = [
                Record(stream=stream, key=f"{n}", headers={"id": f"{n}"}, data=b"")
                for n in range(40)
            ]
            await broker.publish(records)
            found = await asyncio.gather(*(broker.ends(stream) for _ in range(40)))
            assert sum(found[0]) == len(records)
            assert all(each == found[0] for each in found)
            await broker.publish(records[:1])
            assert sum(await broker.ends(stream)) == len(records) + 1
        assert len(searches) == 2

    async def test_a_second_reader_of_a_place_costs_a_consumer_until_it_ends(
        self, kafka: Server
    ) -> None:
        async with _broker(kafka) as broker:
            stream = await _stream(broker)
            await broker.publish([_record(stream, 0)])
            readers = [broker.read(stream, 0, BEGINNING) for _ in range(3)]
            for reader in readers:
                assert _numbers((await anext(reader)).records) == [0]
            assert len(_fetching()) == 3
            for reader in readers:
                await reader.aclose()
            async with asyncio.timeout(DEADLINE):
                while len(_fetching()) > 1:
                    await asyncio.sleep(0.01)

    async def test_a_reader_does_not_wait_for_a_thread_that_has_died(
        self, kafka: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with _broker(kafka) as broker:
            stream = await _stream(broker)
            await broker.publish([_record(stream, 0)])
            with monkeypatch.context() as patch:
                patch.setattr("oyez.brokers.kafka.reader.Reading.add", lambda *_: 1 / 0)
                with pytest.raises(BrokerRefused, match="ZeroDivisionError"):
                    await _take(broker, stream, 1)
            assert _numbers(await _take(broker, stream, 1)) == [0]

    async def test_tls_where_the_server_has_none_is_told(self, kafka: Server) -> None:
        broker = _connect(kafka, f"{kafka.url}?tls=true&deadline=3")
        with pytest.raises(BrokerError, match=str(kafka.port)):
            await broker.open()
        await broker.close()

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("kafka://h/db", "expected nothing after the hosts"),
            ("kafka://h?acks=0", "acks"),
            ("kafka://h?sasl_mechanism=GSSAPI", "sasl_mechanism"),
            ("kafka://h?linger_ms=5", "did you mean linger"),
        ],
    )
    def test_impossible_options_are_named(self, url: str, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            connect(url, SystemAmbient(), root=Path())

    @pytest.mark.parametrize(
        "options",
        [
            "batch_bytes=1000&deadline=0.001&linger=0&max_message_bytes=1",
            f"batch_bytes={2**28}&deadline=600&linger=900&max_message_bytes=1000000000",
        ],
    )
    async def test_the_driver_takes_what_the_options_may_be(self, options: str) -> None:
        endpoint = Endpoint(f"kafka://127.0.0.1:1?{options}", port=9092)
        found = endpoint.options(KafkaOptions)
        settings = client_settings(endpoint, found)
        fetcher = Fetcher(settings, found, lambda error: BrokerUnavailable(error.str()))
        publisher = Publisher(settings, found)
        await fetcher.close()
        await publisher.close()

    async def test_a_missing_certificate_is_named(self, kafka: Server, tmp_path: Path) -> None:
        broker = _connect(kafka, f"{kafka.url}?tls=true&cafile={tmp_path}/none.pem")
        with pytest.raises(ConfigurationError, match=r"none\.pem"):
            await broker.open()
        await broker.close()

    async def test_the_password_is_shown_nowhere(self, kafka: Server) -> None:
        url = f"kafka://user:hunter2@{kafka.host}:{kafka.port}?deadline=1"
        broker = _connect(kafka, url)
        with pytest.raises(BrokerError) as error:
            await broker.open()
        assert "hunter2" not in f"{error.value} {error.value!r} {broker!r} {broker.__dict__}"
        await broker.close()


class TestInspection:
    async def test_topics_made_here_are_sound(self, kafka: Server) -> None:
        async with _broker(kafka) as broker:
            stream = await _stream(broker, 8)
            assert broker.capabilities.durability == "power-loss"
            assert [f for f in await broker.inspect() if stream in f.what] == []

    async def test_each_way_to_lose_events_is_told_with_its_remedy(self, kafka: Server) -> None:
        stream = f"suite.{uuid4().hex}"
        config = {
            "cleanup.policy": "compact,delete",
            "retention.ms": "3600000",
            "retention.bytes": "1000000",
            "unclean.leader.election.enable": "true",
            "flush.messages": "1000",
            "max.message.bytes": "100000",
        }
        await asyncio.to_thread(_create_topic, kafka, stream, config)
        try:
            async with _broker(kafka, kafka.url + "?acks=1", group=stream) as broker:
                assert broker.capabilities.durability == "process-crash"
                assert broker.capabilities.max_bytes < 100_000
                findings = await broker.inspect()
        finally:
            await asyncio.to_thread(_delete_topic, kafka, stream)
        ours = {f.remedy.rpartition(" ")[2]: f.grave for f in findings if stream in f.what}
        assert ours == {
            "flush.messages=1": True,
            "unclean.leader.election.enable=false": True,
            "cleanup.policy=delete": True,
            "retention.ms=604800000": True,
            "retention.bytes=-1": False,
            "max.message.bytes=2097152": False,
            "partitions": False,
        }
        assert any("acks is 1" in f.what and f.grave for f in findings)

    def test_a_cluster_of_three_is_judged_by_its_replicas(self) -> None:
        sound = {"min.insync.replicas": "2", "retention.ms": "-1"}
        topics = {
            "sound": Topic(8, 3, 0, 0, sound),
            "alone": Topic(8, 1, 0, 0, sound | {"flush.messages": "1"}),
            "hasty": Topic(8, 3, 0, 0, sound | {"min.insync.replicas": "1"}),
            "behind": Topic(8, 3, 2, 1, sound),
        }
        found = judge(topics, KafkaOptions(), brokers=3, clear_password=False)
        graves = {(f.what.split()[1].rstrip(":"), f.what.split(": ")[1].split()[0]) for f in found}
        assert graves == {
            ("alone", "replication.factor"),
            ("hasty", "min.insync.replicas"),
            ("behind", "2"),
            ("behind", "1"),
        }
        assert all(finding.grave for finding in found)


# -- for the tests above ---------------------------------------------------------------------------


@pytest.fixture(name="kafka")
def _kafka() -> Server:
    return server("kafka")


def _connect(kafka: Server, url: str | None = None, group: str = "") -> Broker:
    return connect(url or kafka.url, SystemAmbient(), root=Path(), group=group)


@asynccontextmanager
async def _broker(
    kafka: Server, url: str | None = None, *, group: str = ""
) -> AsyncIterator[Broker]:
    broker = _connect(kafka, url, group)
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def _stream(broker: Broker, partitions: int = 1) -> str:
    stream = f"suite.{uuid4().hex}"
    await broker.create(stream, partitions)
    return stream


async def _published(broker: Broker, records: Sequence[Record]) -> None:
    """Publish, again and again: a first one has to connect, which may take its whole second."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await broker.publish(records)
            except BrokerUnavailable:
                pass


def _record(stream: str, number: int, length: int = 0) -> Record:
    data = str(number).encode() if not length else b"x" * length
    return Record(stream=stream, key="one", headers={"id": str(number)}, data=data)


def _numbers(records: Sequence[Record]) -> list[int]:
    return [int(record.headers["id"]) for record in records]


async def _first(broker: Broker, stream: str, after: Position, partition: int = 0) -> Batch:
    batches = broker.read(stream, partition, after)
    try:
        async with asyncio.timeout(DEADLINE):
            return await anext(batches)
    finally:
        await batches.aclose()


async def _take(broker: Broker, stream: str, count: int) -> list[Record]:
    found: list[Record] = []
    batches = broker.read(stream, 0, BEGINNING)
    try:
        async with asyncio.timeout(DEADLINE):
            while len(found) < count:
                found += (await anext(batches)).records
    finally:
        await batches.aclose()
    return found


async def _retry(call: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await call()
            except BrokerUnavailable:
                await asyncio.sleep(0.05)


async def _until(value: Callable[[], int], wanted: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while await asyncio.to_thread(value) != wanted:
            await asyncio.sleep(0.05)


async def _gone(broker: Broker, stream: str) -> None:
    async with asyncio.timeout(DEADLINE):
        while stream in await broker.streams():
            await asyncio.sleep(0.05)


def _sockets() -> int:
    return sum(
        os.readlink(entry).startswith("socket:")
        for entry in Path("/proc/self/fd").iterdir()
        if entry.is_symlink()
    )


def _fetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kafka fetcher"]


# -- plain clients of the driver -------------------------------------------------------------------


def _settings(kafka: Server, **more: Any) -> dict[str, Any]:
    return {"bootstrap.servers": f"{kafka.host}:{kafka.port}", "log_level": 0, **more}


async def _produce(kafka: Server, stream: str, **message: Any) -> None:
    producer = Producer(_settings(kafka))
    producer.produce(stream, partition=0, **message)
    assert await asyncio.to_thread(producer.flush, DEADLINE) == 0


async def _produce_unnamed(kafka: Server, stream: str) -> None:
    """With a header whose name is not UTF-8, which the driver itself can't write."""
    if shutil.which("kcat") is None:
        pytest.skip("kcat is not installed: scripts/system-packages")
    place = ("-b", f"{kafka.host}:{kafka.port}", "-t", stream, "-p", "0")
    command = ["kcat", "-P", *place, "-H", b"\xff\xfe=1", "-H", "ce_id=3"]
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
    await process.communicate(b"unnamed")
    assert process.returncode == 0


def _consume(kafka: Server, stream: str) -> Message:
    consumer = Consumer(_settings(kafka, **{"group.id": "plain"}))
    try:
        consumer.assign([TopicPartition(stream, 0, 0)])
        message = consumer.poll(DEADLINE)
        assert message is not None
        return message
    finally:
        consumer.close()


@contextmanager
def _transactional(kafka: Server) -> Iterator[Producer]:
    producer = Producer(_settings(kafka, **{"transactional.id": uuid4().hex}))
    producer.init_transactions(DEADLINE)
    yield producer
    producer.flush(DEADLINE)


def _transaction(producer: Producer, stream: str, count: int, *, commit: bool) -> None:
    producer.begin_transaction()
    for number in range(count):
        producer.produce(stream, str(number).encode(), partition=0)
    producer.flush(DEADLINE)
    end = producer.commit_transaction if commit else producer.abort_transaction
    end(DEADLINE)


def _tool(*arguments: str) -> str:
    command = [ROOT / "scripts" / "services", "kafka-tool", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _committed(kafka: Server, group: str, stream: str) -> int:
    consumer = Consumer(_settings(kafka, **{"group.id": group}))
    try:
        (place,) = consumer.committed([TopicPartition(stream, 0)], DEADLINE)
        return place.offset
    finally:
        consumer.close()


def _join(consumer: Consumer) -> None:
    until = time.monotonic() + DEADLINE
    while not consumer.assignment():
        assert time.monotonic() < until
        consumer.poll(0.1)


def _admin(kafka: Server) -> AdminClient:
    return AdminClient(_settings(kafka))


def _create_topic(kafka: Server, stream: str, config: dict[str, str]) -> None:
    new = NewTopic(stream, num_partitions=1, replication_factor=1, config=config)
    admin = _admin(kafka)  # the futures of one that is let go of fail
    for made in admin.create_topics([new]).values():
        made.result(DEADLINE)


def _delete_topic(kafka: Server, stream: str) -> None:
    admin = _admin(kafka)
    for deleted in admin.delete_topics([stream]).values():
        deleted.result(DEADLINE)


def _delete_records(kafka: Server, stream: str, before: int) -> None:
    admin = _admin(kafka)
    for deleted in admin.delete_records([TopicPartition(stream, 0, before)]).values():
        deleted.result(DEADLINE)
