"""SNS and SQS, held to the suite, to the traps of queues, and to limits that emulators skip."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aws import Account
from botocore.exceptions import ClientError

from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.brokers.sns_sqs import wire as messages
from oyez.brokers.sns_sqs.broker import SnsSqsBroker
from oyez.brokers.sns_sqs.connection import Aws
from oyez.brokers.sns_sqs.options import SnsSqsOptions
from oyez.brokers.sns_sqs.reader import Queue
from oyez.endpoint import Endpoint
from oyez.envelope import open_record
from oyez.errors import BrokerRefused, BrokerUnavailable, ConfigurationError, InvalidEvent
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Record
from oyez.testing import VirtualAmbient
from oyez.testing.broker_suite import HEARTBEAT, Factory, ServerBrokerSuite
from oyez.testing.proxy import Proxy
from oyez.testing.ticks import ticking
from servers import Server

GROUP = "suite.reader"
DEADLINE = 60.0
VISIBILITY = 3


class Limits:
    """Every request that adapters make, held to the limits of AWS that moto does not know."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.after: Callable[[str], None] = lambda operation: None
        """May raise what the caller then sees instead of the answer."""
        original = Aws.call

        async def call(
            aws: Aws, service: str, operation: str, seconds: float, /, **parameters: Any
        ) -> dict[str, Any]:
            self._check(operation, parameters)
            self.requests.append((operation, parameters))
            answer = await original(aws, service, operation, seconds, **parameters)
            self.after(operation)
            return answer

        monkeypatch.setattr(Aws, "call", call)

    def of(self, operation: str) -> list[dict[str, Any]]:
        return [parameters for name, parameters in self.requests if name == operation]

    def _check(self, operation: str, parameters: dict[str, Any]) -> None:
        entries = parameters.get("Entries") or parameters.get("PublishBatchRequestEntries") or []
        assert len(entries) <= 10
        assert len({entry["Id"] for entry in entries}) == len(entries)
        assert all(0 <= entry.get("VisibilityTimeout", 0) <= 43_200 for entry in entries)
        if operation.endswith("_batch"):
            assert entries
        if operation == "publish_batch":
            assert sum(map(_size, entries)) <= 262_144
            for entry in entries:
                assert len(entry["MessageAttributes"]) <= 10
                assert entry["Message"]
                assert _ALLOWED.fullmatch(entry["Message"])
                for name in ("MessageGroupId", "MessageDeduplicationId"):
                    assert 1 <= len(entry[name]) <= 128
                    assert all("!" <= char <= "~" for char in entry[name])
        if operation == "create_queue":
            name = parameters["QueueName"]
            assert len(name) <= 80
            assert set(name.removesuffix(".fifo")) <= set(_LETTERS)
            retention = int(parameters["Attributes"].get("MessageRetentionPeriod", 60))
            assert 60 <= retention <= 1_209_600
        if operation == "receive_message":
            assert parameters["MaxNumberOfMessages"] <= 10
            assert parameters["WaitTimeSeconds"] <= 20


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"


def _size(entry: dict[str, Any]) -> int:
    attributes = entry["MessageAttributes"].items()
    return len(entry["Message"].encode()) + sum(
        len(name) + len(each["DataType"]) + len(each["StringValue"]) for name, each in attributes
    )


_ALLOWED = re.compile("[\\t\\n\\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    return Limits(monkeypatch)


@pytest.fixture
def account() -> Account:
    return Account()


class TestSnsSqs(ServerBrokerSuite):
    row = "sns_sqs"

    @pytest.fixture(autouse=True)
    def _account(self, account: Account) -> None:
        self.account = account

    def server(self, tmp_path: Path) -> Server:
        return self.account.server

    def make(self, tmp_path: Path) -> Factory:
        url = self.account.url()
        return lambda: connect(url, SystemAmbient(), root=tmp_path, group=GROUP)

    def url(self, tmp_path: Path) -> str:
        return self.account.url()

    def proxy(self, tmp_path: Path) -> Proxy:
        return self.account.server.proxy()

    def make_through(self, tmp_path: Path, proxy: Proxy) -> Factory:
        url = self.account.url(proxy.through(self.account.endpoint), "wait=1&deadline=3")
        return lambda: connect(url, SystemAmbient(), root=tmp_path, group=GROUP)

    async def test_nor_does_one_with_a_key_each(self, tmp_path: Path) -> None:
        """Of one key SQS gives ten messages at once at most, of many keys whatever fits (G6)."""
        async with self._faulty(tmp_path) as (proxy, broker, direct):
            stream = f"suite.{uuid4().hex}"
            await direct.create(stream, 1)
            data = random.Random(1).randbytes(130_000)
            sent = [_record(stream, f"k{n}", n, data) for n in range(160)]
            batches = broker.read(stream, 0, BEGINNING)
            first = asyncio.ensure_future(anext(batches))
            await direct.publish(sent)
            taken = (await first).records
            ahead = -HEARTBEAT
            async with asyncio.timeout(DEADLINE):
                while proxy.received - ahead >= HEARTBEAT:
                    ahead = proxy.received
                    await asyncio.sleep(1.0)
            assert ahead < 12 * 1_048_576
            broker.handled(stream, 0, taken[-1].position)
            numbers = _numbers(taken)
            async with asyncio.timeout(60.0):
                while len(set(numbers)) < len(sent):
                    batch = await anext(batches)
                    numbers += _numbers(batch.records)
                    broker.handled(stream, 0, batch.records[-1].position)
            await batches.aclose()
        assert sorted(set(numbers)) == list(range(len(sent)))


# -- what a queue is, and is not -------------------------------------------------------------------


async def test_without_a_group_nothing_is_known_of_positions(account: Account) -> None:
    async with opened(account, group="") as broker:
        await broker.create("shop.orders", 1)
        await broker.publish([_record("shop.orders", "k", 1)])
        assert await broker.streams() == {"shop.orders": 1}
        for question in (
            lambda: broker.ends("shop.orders"),
            lambda: broker.starts("shop.orders"),
            lambda: broker.lag("shop.orders", {0: BEGINNING}),
        ):
            with pytest.raises(BrokerRefused, match=r"history|service"):
                await question()


async def test_without_a_group_one_looks_on_and_leaves_no_trace(account: Account) -> None:
    sns, sqs = account.client("sns"), account.client("sqs")
    async with opened(account) as group:
        await group.create("suite.s", 1)
        await group.publish([_record("suite.s", "k", 1)])
        before = len(sns.list_subscriptions()["Subscriptions"])
        async with opened(account, group="") as onlooker:
            batches = onlooker.read("suite.s", 0, BEGINNING)
            first = asyncio.ensure_future(anext(batches))
            await _until(lambda: len(sns.list_subscriptions()["Subscriptions"]) > before)
            for number in range(2, 5):
                await group.publish([_record("suite.s", "k", number)])
            found = _numbers((await first).records)
            async with asyncio.timeout(DEADLINE):
                while len(found) < 3:
                    found += _numbers((await anext(batches)).records)
            assert found == [2, 3, 4]
            await batches.aclose()
        assert "QueueUrls" not in sqs.list_queues(QueueNamePrefix="look-")
        assert len(sns.list_subscriptions()["Subscriptions"]) == before
        assert await _take(group, "suite.s", 0, 4) == [1, 2, 3, 4]


async def test_inspect_names_what_a_killed_onlooker_left(account: Account) -> None:
    sqs = account.client("sqs")
    sqs.create_queue(QueueName="look-1__suite_s__0.fifo", Attributes={"FifoQueue": "true"})
    async with opened(account) as broker:
        assert not any("killed" in each.what for each in await broker.inspect())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("oyez.brokers.sns_sqs.topology.AGED", -60.0)
            assert any("killed" in each.what for each in await broker.inspect())


# -- commands on a broker without history ----------------------------------------------------------


async def test_tail_follows_live(account: Account, tmp_path: Path) -> None:
    async with ticking(tmp_path / "ticks", broker=account.url()) as ticks:
        tail = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "oyez", "tail", "clock", "--json"),
            env=ticks.environment,
            stdout=PIPE,
        )
        assert tail.stdout is not None
        line = asyncio.ensure_future(tail.stdout.readline())
        async with asyncio.timeout(2 * DEADLINE):
            while not line.done():
                await ticks.tick("clock-0")
                await asyncio.wait([line], timeout=0.2)
        assert json.loads(line.result())["key"] == "clock-0"
        tail.send_signal(signal.SIGINT)
        await asyncio.wait_for(tail.communicate(), DEADLINE)
        assert tail.returncode == 0
        assert "QueueUrls" not in account.client("sqs").list_queues(QueueNamePrefix="look-")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("flow", "order-1"), ("keeps no history", "oyez dead list", "correlation id")),
        (("tail", "--from-start"), ("keeps no history", "from now on")),
    ],
)
async def test_what_needs_history_says_where_else_to_look(
    account: Account, tmp_path: Path, command: tuple[str, ...], words: tuple[str, ...]
) -> None:
    async with ticking(tmp_path / "ticks", broker=account.url()) as ticks:
        said = await asyncio.to_thread(ticks.run, *command)
    assert (said.returncode, said.stdout) == (1, "")
    assert all(word in said.stderr for word in words)
    assert "Traceback" not in said.stderr


async def test_a_group_that_is_open_misses_nothing_of_a_new_stream(account: Account) -> None:
    """It has not even heard of the stream when the first record is published."""
    async with opened(account, options="poll=3600") as reader, opened(account, group="") as other:
        await other.publish([_record("suite.new", "k", 1)])
        await other.publish([_record("elsewhere.new", "k", 1)])
        await reader.streams()
        assert await _take(reader, "suite.new", partition_of("k", 8), 1) == [1]
        with pytest.raises(BrokerRefused, match="no queue"):
            await reader.lag("elsewhere.new", {0: BEGINNING})


async def test_two_groups_get_everything_each(account: Account) -> None:
    async with opened(account) as one, opened(account, group="suite.other") as two:
        await one.create("suite.s", 1)
        await one.publish([_record("suite.s", f"k{n}", n) for n in range(15)])
        assert sorted(await _take(one, "suite.s", 0, 15)) == list(range(15))
        assert sorted(await _take(two, "suite.s", 0, 15)) == list(range(15))


async def test_positions_are_counted_on_from_where_the_reader_says(account: Account) -> None:
    async with opened(account) as broker:
        await broker.create("suite.s", 1)
        await broker.publish([_record("suite.s", f"k{n}", n) for n in range(3)])
        batches = broker.read("suite.s", 0, 700)
        positions: list[int] = []
        async with asyncio.timeout(DEADLINE):
            while len(positions) < 3:
                positions += [record.position for record in (await anext(batches)).records]
        await batches.aclose()
        assert positions == [701, 702, 703]


async def test_lag_is_what_is_left_in_the_queue(account: Account) -> None:
    async with opened(account) as broker:
        await broker.create("suite.s", 2)
        key = next(k for k in map(str, range(9)) if partition_of(k, 2) == 1)
        await broker.publish([_record("suite.s", key, 1)])
        assert await broker.lag("suite.s", {0: 0, 1: 0, 2: 0}) == {0: 0, 1: 1}
        assert await _take(broker, "suite.s", 1, 1) == [1]
        await _until_async(lambda: _is_zero(broker))


async def _is_zero(broker: SnsSqsBroker) -> bool:
    return await broker.lag("suite.s", {1: 0}) == {1: 0}


# -- visibility ------------------------------------------------------------------------------------


async def test_what_a_dead_reader_held_comes_again_soon(account: Account) -> None:
    async with opened(account) as dead, opened(account) as heir:
        await dead.create("suite.s", 1)
        await dead.publish([_record("suite.s", f"k{n}", n) for n in range(5)])
        batches = dead.read("suite.s", 0, BEGINNING)
        held: list[int] = []
        while len(held) < 5:
            held += _numbers((await anext(batches)).records)
        receiving = dead._queues["suite.s", 0]._receiving
        for task in (*dead._tasks, receiving):  # it does nothing any more, as after kill -9
            assert task is not None
            task.cancel()
        async with asyncio.timeout(VISIBILITY + 2.5):
            assert sorted(await _take(heir, "suite.s", 0, 5)) == [0, 1, 2, 3, 4]
        await batches.aclose()


async def test_what_a_reader_that_ended_held_comes_again_sooner(
    account: Account, limits: Limits
) -> None:
    async with opened(account, options="visibility=300") as broker:
        await broker.create("suite.s", 1)
        await broker.publish([_record("suite.s", f"k{n}", n) for n in range(5)])
        batches = broker.read("suite.s", 0, BEGINNING)
        found: list[Record] = []
        while len(found) < 5:
            found += (await anext(batches)).records
        broker.handled("suite.s", 0, found[1].position)
        await batches.aclose()
        broker.handled("suite.s", 0, found[2].position)  # as a lane does that saves as it stops
        left = sorted(_numbers(found[3:]))
        assert sorted(await _take(broker, "suite.s", 0, 2)) == left
        deleted = [e for each in limits.of("delete_message_batch") for e in each["Entries"]]
        assert len(deleted) >= 3


async def test_a_slow_handler_keeps_what_it_has(account: Account) -> None:
    async with opened(account) as broker:
        await broker.create("suite.s", 1)
        await broker.publish([_record("suite.s", f"k{n}", n) for n in range(12)])
        batches = broker.read("suite.s", 0, BEGINNING)
        found: list[Record] = []
        while len(found) < 12:
            found += (await anext(batches)).records
        sqs = account.client("sqs")
        address = sqs.get_queue_url(QueueName="suite_reader__suite_s__0.fifo")["QueueUrl"]
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        until = time.monotonic() + 2.5 * VISIBILITY
        while time.monotonic() < until:
            answer = await asyncio.to_thread(
                sqs.get_queue_attributes, QueueUrl=address, AttributeNames=names
            )
            assert answer["Attributes"] == {names[0]: "0", names[1]: "12"}
            await asyncio.sleep(0.1)
        broker.handled("suite.s", 0, found[-1].position)
        await batches.aclose()


class Stub:
    """In the place of AWS: remembers what it is asked for and gives what it was told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}

    async def call(
        self, service: str, operation: str, seconds: float, /, **parameters: Any
    ) -> dict[str, Any]:
        self.asked.append((operation, parameters))
        if operation in self.answers:
            return self.answers[operation](parameters)
        await asyncio.sleep(0.01)
        return {}


def _received(*receipts: str) -> dict[str, Any]:
    return {"Messages": [{"Body": receipt, "ReceiptHandle": receipt} for receipt in receipts]}


async def _locate(lost: bool) -> str:
    return "http://x/1/q"


async def test_invisible_for_no_longer_than_twelve_hours() -> None:
    stub, ambient = Stub(), VirtualAmbient()
    answers = [_received("a")]
    stub.answers["receive_message"] = lambda _: answers.pop() if answers else _never()
    options = SnsSqsOptions(visibility=3_600)
    queue = Queue(stub, ambient, options, ("s", 0), _locate)  # type: ignore[arg-type]
    batches = queue.read(BEGINNING)
    await anext(batches)
    for _ in range(20):
        await ambient.advance(3_000.0)
        await queue.extend()
    changes = [each for name, each in stub.asked if name == "change_message_visibility_batch"]
    assert 10 < len(changes) * 3_000 / 3_600 < 12
    await batches.aclose()
    await queue.close()


def _never() -> dict[str, Any]:
    raise BrokerUnavailable("nothing more")


async def test_an_expired_receipt_is_not_deleted_for_ever() -> None:
    stub, ambient = Stub(), VirtualAmbient()
    answers = [_received("a", "b", "c")]
    stub.answers["receive_message"] = lambda _: answers.pop() if answers else _never()
    failed = [
        {"Id": "0", "SenderFault": True, "Code": "ReceiptHandleIsInvalid"},
        {"Id": "1", "SenderFault": False, "Code": "InternalError"},
    ]
    stub.answers["delete_message_batch"] = lambda _: {"Failed": [failed.pop()] if failed else []}
    queue = Queue(stub, ambient, SnsSqsOptions(), ("s", 0), _locate)  # type: ignore[arg-type]
    batches = queue.read(BEGINNING)
    await anext(batches)
    queue.handled(3)
    await _until(lambda: queue.undeleted == 0)
    deleted = [each["Entries"] for name, each in stub.asked if name == "delete_message_batch"]
    assert [[e["ReceiptHandle"] for e in entries] for entries in deleted] == [
        ["a", "b", "c"],
        ["b"],
    ]
    await batches.aclose()
    await queue.close()


# -- duplicates and order --------------------------------------------------------------------------


async def test_a_resend_is_not_swallowed_but_a_retry_is(account: Account, limits: Limits) -> None:
    """The event id is the same; only what a lost answer makes the adapter repeat is one."""
    async with opened(account) as broker:
        await broker.create("suite.s", 1)
        lost = ["publish_batch", "publish_batch"]

        def lose(operation: str) -> None:
            if operation in lost:
                lost.remove(operation)
                raise BrokerUnavailable("the answer was lost")

        limits.after = lose
        await broker.publish([_record("suite.s", "k", 1)])
        assert lost == []
        await broker.publish([_record("suite.s", "k", 1)])
        await broker.publish([_record("suite.s", "k", 2)])
        assert await _take(broker, "suite.s", 0, 3) == [1, 1, 2]


async def test_what_may_be_on_its_way_is_settled_before_anything_follows(
    account: Account, limits: Limits
) -> None:
    """A publish that was given up comes before the next of its key, or not at all."""
    async with opened(account, options="deadline=2") as broker:
        await broker.create("suite.s", 1)
        failing = True

        def fail(operation: str) -> None:
            if failing and operation == "publish_batch":
                raise BrokerUnavailable("the answer was lost")

        limits.after = fail
        with pytest.raises(BrokerUnavailable, match="lost"):
            await broker.publish([_record("suite.s", "k", 1)])
        with pytest.raises(BrokerUnavailable, match="lost"):
            await broker.publish([_record("suite.s", "k", 2)])
        assert not any(topic._waiting for topic in broker._topics.values())  # bounded memory
        failing = False
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    await broker.publish([_record("suite.s", "k", 3)])
                    break
                except BrokerUnavailable:
                    continue
        found = await _take(broker, "suite.s", 0, 2)
        assert found == [1, 3]


async def test_records_of_one_key_share_messages(account: Account, limits: Limits) -> None:
    async with opened(account) as broker:
        await broker.create("suite.s", 1)
        await broker.publish([_record("suite.s", "hot", n) for n in range(512)])
        sent = limits.of("publish_batch")
        assert len(sent) == 2
        assert {entry["MessageGroupId"] for each in sent for entry in
                each["PublishBatchRequestEntries"]} == {"hot"}  # fmt: skip
        assert await _take(broker, "suite.s", 0, 512) == list(range(512))


async def test_one_refused_record_of_a_batch_fails_its_own_publish_only(
    account: Account, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(account) as broker:
        await broker.create("suite.s", 1)
        spied = Aws.call

        async def refuse(
            aws: Aws, service: str, operation: str, seconds: float, /, **parameters: Any
        ) -> dict[str, Any]:
            if operation != "publish_batch":
                return await spied(aws, service, operation, seconds, **parameters)
            entries = parameters["PublishBatchRequestEntries"]
            parameters["PublishBatchRequestEntries"] = [
                {**entry, "Id": str(n)}
                for n, entry in enumerate(e for e in entries if e["MessageGroupId"] != "bad")
            ]
            await spied(aws, service, operation, seconds, **parameters)
            return {
                "Successful": [{"Id": e["Id"]} for e in entries if e["MessageGroupId"] != "bad"],
                "Failed": [
                    {"Id": e["Id"], "SenderFault": True, "Code": "InvalidParameter"}
                    for e in entries
                    if e["MessageGroupId"] == "bad"
                ],
            }

        monkeypatch.setattr(Aws, "call", refuse)
        good = broker.publish([_record("suite.s", "good", 1)])
        bad = broker.publish([_record("suite.s", "bad", 2)])
        results = await asyncio.gather(good, bad, return_exceptions=True)
        assert results[0] is None
        assert isinstance(results[1], BrokerRefused)
        assert "InvalidParameter" in str(results[1])


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"\xff" * messages.MAX_BYTES, json.dumps('"' * 90_000).encode()[: 10**6]]
)
async def test_the_largest_record_is_taken(account: Account, data: bytes) -> None:
    async with opened(account) as broker:
        await broker.create("suite.s", 1)
        headers = {"id": "1"}
        data = data[: broker.capabilities.max_bytes - 3]
        await broker.publish([Record(stream="suite.s", key="k", headers=headers, data=data)])
        assert await _take(broker, "suite.s", 0, 1) == [1]


async def test_one_that_is_too_large_is_refused_before_any_is_sent(
    account: Account, limits: Limits
) -> None:
    async with opened(account) as broker:
        await broker.create("suite.s", 1)
        large = _record("suite.s", "k", 2, b"\0" * 262_144)
        with pytest.raises(BrokerRefused, match=r"262147 .*262144.*claim_check"):
            await broker.publish([_record("suite.s", "k", 1), large])
        assert limits.of("publish_batch") == []


async def test_a_batch_is_cut_at_its_bytes(account: Account, limits: Limits) -> None:
    """`Limits` checks the sum."""
    async with opened(account) as broker:
        await broker.create("suite.s", 1)
        records = [_record("suite.s", f"k{n % 3}", n, b"\0" * 60_000) for n in range(12)]
        await broker.publish(records)
        assert sorted(await _take(broker, "suite.s", 0, 12)) == list(range(12))
        assert 3 < len(limits.of("publish_batch")) <= 12


# -- what others write -----------------------------------------------------------------------------

EVENT = {
    "specversion": "1.0",
    "id": "7",
    "source": "/shop",
    "type": "a.b",
    "subject": "order-1",
    "datacontenttype": "application/json",
}


@pytest.fixture
async def topic(account: Account) -> AsyncIterator[tuple[SnsSqsBroker, Callable[..., None]]]:
    """A broker, and what publishes to a stream of its own with the plain driver."""
    async with opened(account) as broker:
        await broker.create("suite.s", 1)
        sns = account.client("sns")
        (arn,) = [each["TopicArn"] for each in sns.list_topics()["Topics"]]

        def publish(body: str, group: str = "order-1", **attributes: str) -> None:
            sns.publish(
                TopicArn=arn,
                Message=body,
                MessageGroupId=group,
                MessageDeduplicationId=uuid4().hex,
                MessageAttributes={
                    name.replace("__", "-"): {"DataType": "String", "StringValue": value}
                    for name, value in attributes.items()
                },
            )

        yield broker, publish


async def _only(broker: SnsSqsBroker) -> Record:
    (record,) = await _records(broker, "suite.s", 0, 1)
    return record


async def test_a_structured_event_of_another_sdk(topic: Any) -> None:
    broker, publish = topic
    publish(json.dumps({**EVENT, "data": {"a": [1, 2]}}, indent=1))
    record = await _only(broker)
    assert (record.key, record.headers) == ("order-1", EVENT)
    assert json.loads(record.data or b"") == {"a": [1, 2]}
    assert open_record(record.headers, record.data).id == "7"


async def test_a_structured_event_whose_attributes_are_not_all_text(topic: Any) -> None:
    broker, publish = topic
    publish(json.dumps({**EVENT, "attempt": 3, "data": 1}))
    record = await _only(broker)
    opened_event = open_record(record.headers, record.data)
    assert (record.key, opened_event.extensions) == ("order-1", {"attempt": "3"})


@pytest.mark.parametrize("prefix", ["ce__", "ce_", "cloudEvents_"])
async def test_a_binary_event(topic: Any, prefix: str) -> None:
    broker, publish = topic
    attributes = {f"{prefix}{name}": value for name, value in EVENT.items()}
    del attributes[f"{prefix}datacontenttype"]
    publish('{"a": 1}', **attributes, content__type="application/json", traceparent="00-1-2-3")
    record = await _only(broker)
    assert (record.key, record.data) == ("order-1", b'{"a": 1}')
    assert record.headers == {**EVENT, "traceparent": "00-1-2-3"}


async def test_a_batch_of_events(topic: Any) -> None:
    broker, publish = topic
    events = [{**EVENT, "id": str(n), "data": n} for n in range(3)]
    publish(json.dumps([*events, 17]), content__type="application/cloudevents-batch+json")
    records = await _records(broker, "suite.s", 0, 4)
    assert [record.data for record in records] == [b"0", b"1", b"2", b"17"]
    assert [record.position for record in records] == [1, 2, 3, 4]
    with pytest.raises(InvalidEvent):
        open_record(records[3].headers, records[3].data)


async def test_an_event_without_data_is_a_tombstone(topic: Any) -> None:
    broker, publish = topic
    publish(json.dumps(EVENT))
    record = await _only(broker)
    assert (record.headers, record.data) == (EVENT, None)


@pytest.mark.parametrize(
    "junk",
    ["hello", "{", "[1]", '{"order": 1}', '{"Type": "Notification"}', "\u0085\t北京", "null"],
)
async def test_junk_is_delivered_as_it_is(topic: Any, junk: str) -> None:
    broker, publish = topic
    publish(junk, group="g")
    record = await _only(broker)
    assert (record.key, record.headers, record.data) == ("g", {}, junk.encode())
    with pytest.raises(InvalidEvent):
        open_record(record.headers, record.data)


@pytest.mark.parametrize(
    "junk", ["{", "[]", '{"specversion": "1.0", "data": 1, "data_base64": ""}']
)
async def test_what_calls_itself_an_event_and_is_none(topic: Any, junk: str) -> None:
    broker, publish = topic
    publish(junk, group="g", content__type="application/cloudevents+json; charset=utf-8")
    record = await _only(broker)
    assert record.data == junk.encode()
    with pytest.raises(InvalidEvent):
        open_record(record.headers, record.data)


async def test_an_envelope_of_sns_is_opened(topic: Any, account: Account) -> None:
    """The subscription was made, or altered, without raw delivery."""
    broker, publish = topic
    sns = account.client("sns")
    (subscription,) = sns.list_subscriptions()["Subscriptions"]
    sns.set_subscription_attributes(
        SubscriptionArn=subscription["SubscriptionArn"],
        AttributeName="RawMessageDelivery",
        AttributeValue="false",
    )
    publish("hello", ce_id="1", ce_type="x")
    await broker.publish([_record("suite.s", "k", 2)])
    records = await _records(broker, "suite.s", 0, 2)
    assert [(r.headers, r.data) for r in records] == [
        ({"id": "1", "type": "x"}, b"hello"),
        ({"id": "2"}, b"2"),
    ]


@pytest.mark.parametrize(
    "data",
    [b'{"a": 1.0, "a" : 2}', b" 1", b"1\n", b'"\xef\xbf\xbf"', b'"\xff"', b"NaN", b"1e999", b"null",
     b"", b'"\\ud800"', b"[" * 5_000 + b"]" * 5_000, None],
)  # fmt: skip
@pytest.mark.parametrize("key", [None, "", "order-1", "other", "a" * 300, " \uffff"])
def test_bytes_and_keys_survive(data: bytes | None, key: str | None) -> None:
    for headers in (
        EVENT,
        {**EVENT, "partitionkey": "p", "note": "\uffff\ufffe \x7f"},
        {"id": "1"},
    ):
        record = Record(stream="s", key=key, headers=headers, data=data)
        text = messages.encode(record).decode()
        assert _ALLOWED.fullmatch(text)
        attributes = {"content-type": {"StringValue": messages.EVENT, "DataType": "String"}}
        (content,) = messages.decode({"Body": text, "MessageAttributes": attributes})
        assert content == (key, headers, data)


# -- what goes wrong with the setup ----------------------------------------------------------------


async def test_a_queue_that_was_deleted_is_made_again(account: Account) -> None:
    async with opened(account) as broker:
        await broker.create("suite.s", 1)
        batches = broker.read("suite.s", 0, BEGINNING)
        await broker.publish([_record("suite.s", "k", 1)])
        batch = await anext(batches)
        broker.handled("suite.s", 0, batch.records[-1].position)
        sqs = account.client("sqs")
        address = sqs.get_queue_url(QueueName="suite_reader__suite_s__0.fifo")["QueueUrl"]
        sqs.delete_queue(QueueUrl=address)
        waiting = asyncio.ensure_future(anext(batches))
        await _until(lambda: bool(sqs.list_queues(QueueNamePrefix="suite_reader").get("QueueUrls")))
        await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE):
            while not waiting.done():
                await broker.publish([_record("suite.s", "k", 2)])
                await asyncio.wait([waiting], timeout=0.2)
        batch = await waiting
        assert batch.missed == 1
        await batches.aclose()


async def test_a_topic_that_was_deleted_is_made_and_subscribed_again(account: Account) -> None:
    async with opened(account) as broker, opened(account, group="") as publisher:
        await broker.create("suite.s", 1)
        await publisher.publish([_record("suite.s", "k", 1)])
        sns = account.client("sns")
        for each in sns.list_subscriptions()["Subscriptions"]:
            sns.unsubscribe(SubscriptionArn=each["SubscriptionArn"])
        for each in sns.list_topics()["Topics"]:
            sns.delete_topic(TopicArn=each["TopicArn"])
        await publisher.publish([_record("suite.s", "k", 2)])
        assert await _take(broker, "suite.s", 0, 2) == [1, 2]


async def test_inspect_finds_what_loses_events(account: Account) -> None:
    async with opened(account) as broker:
        await broker.create("suite.s", 1)
        (emulator,) = await broker.inspect()
        assert "emulator" in emulator.what
        sqs, sns = account.client("sqs"), account.client("sns")
        address = sqs.get_queue_url(QueueName="suite_reader__suite_s__0.fifo")["QueueUrl"]
        (subscription,) = sns.list_subscriptions()["Subscriptions"]
        dead = sqs.create_queue(QueueName="dead.fifo", Attributes={"FifoQueue": "true"})
        arn = sqs.get_queue_attributes(QueueUrl=dead["QueueUrl"], AttributeNames=["QueueArn"])
        redrive = {
            "deadLetterTargetArn": arn["Attributes"]["QueueArn"],
            "maxReceiveCount": 3,
        }
        settings = {
            "MessageRetentionPeriod": "60",
            "RedrivePolicy": json.dumps(redrive),
            "MaximumMessageSize": "1024",
            "DelaySeconds": "5",
            "KmsMasterKeyId": "alias/mine",
        }
        sqs.set_queue_attributes(QueueUrl=address, Attributes=settings)
        for name, value in (("RawMessageDelivery", "false"), ("FilterPolicy", '{"a": ["b"]}')):
            sns.set_subscription_attributes(
                SubscriptionArn=subscription["SubscriptionArn"],
                AttributeName=name,
                AttributeValue=value,
            )
        found = {finding.what: finding for finding in await broker.inspect()}
        grave = " ".join(what for what, finding in found.items() if finding.grave)
        light = " ".join(what for what, finding in found.items() if not finding.grave)
        for word in ("within 60 s", "redrive policy", "smaller messages", "filter policy"):
            assert word in grave
        for word in ("delays", "alias/mine", "wraps each event"):
            assert word in light
        sns.unsubscribe(SubscriptionArn=subscription["SubscriptionArn"])
        assert any("is not subscribed" in each.what for each in await broker.inspect())


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("AccessDenied", BrokerRefused, "sqs:ListQueues"),
        ("AuthorizationError", BrokerRefused, "IAM"),
        ("SignatureDoesNotMatch", BrokerRefused, "credentials"),
        ("ExpiredToken", BrokerRefused, "credentials"),
        ("Throttling", BrokerUnavailable, "busy"),
        ("InternalFailure", BrokerUnavailable, "busy"),
        ("InvalidParameterValue", BrokerRefused, "InvalidParameterValue"),
    ],
)
async def test_errors_of_aws_are_told_without_the_password(
    monkeypatch: pytest.MonkeyPatch, code: str, kind: type[Exception], words: str
) -> None:
    class Client:
        async def list_queues(self, **parameters: object) -> None:
            raise ClientError({"Error": {"Code": code, "Message": "no"}}, "ListQueues")

    async def made(aws: Aws, service: str) -> Client:
        return Client()

    monkeypatch.setattr(Aws, "_connect", made)
    url = "sns+sqs://KEY:canary@eu-west-1?deadline=0.3"
    broker = connect(url, SystemAmbient(), root=Path(), group=GROUP)
    with pytest.raises(kind, match=words) as refused:
        await broker.open()
    assert "canary" not in f"{refused.value}{refused.value!r}{broker!r}"
    await broker.close()


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:1", "http://user:canary@127.0.0.1:1", "ftp://a", ""]
)
def test_an_endpoint_is_an_address_and_no_more(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="endpoint: expected http") as refused:
        connect(f"sns+sqs://us-east-1?endpoint={endpoint}", SystemAmbient(), root=Path())
    assert "canary" not in str(refused.value)


async def test_without_credentials_it_says_where_they_belong(
    account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    url = f"sns+sqs://us-east-1?endpoint={account.endpoint}"
    broker = connect(url, SystemAmbient(), root=tmp_path)
    with pytest.raises(BrokerRefused, match="AWS_ACCESS_KEY_ID"):
        await broker.open()
    await broker.close()


async def test_nothing_is_left_running(account: Account) -> None:
    before = asyncio.all_tasks()
    async with opened(account) as broker:
        await broker.create("suite.s", 2)
        await broker.publish([_record("suite.s", f"k{n}", n) for n in range(20)])
        batches = [broker.read("suite.s", partition, BEGINNING) for partition in range(2)]
        for each in batches:
            batch = await anext(each)
            broker.handled("suite.s", batch.records[0].partition, batch.records[0].position)
            await each.aclose()
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("durable", ["", "https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com"])
def test_only_aws_itself_is_durable(durable: str) -> None:
    for endpoint, durability in ((durable, "power-loss"), ("http://127.0.0.1:1", "volatile")):
        options = SnsSqsOptions(endpoint=endpoint or None)
        broker = SnsSqsBroker(Endpoint("sns+sqs://eu-west-1", port=443), SystemAmbient(), options)
        assert broker.capabilities.durability == durability
        assert not broker.capabilities.history


# -- for the tests above ---------------------------------------------------------------------------


@asynccontextmanager
async def opened(
    account: Account, *, group: str = GROUP, options: str = ""
) -> AsyncIterator[SnsSqsBroker]:
    given = dict(each.split("=") for each in options.split("&") if each)
    merged = {"wait": "1", "visibility": str(VISIBILITY), **given}
    url = account.url(options="&".join(f"{name}={value}" for name, value in merged.items()))
    broker = connect(url, SystemAmbient(), root=Path(), group=group)
    assert isinstance(broker, SnsSqsBroker)
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


def _record(stream: str, key: str | None, number: int, data: bytes | None = None) -> Record:
    text = str(number)
    body = text.encode() if data is None else data
    return Record(stream=stream, key=key, headers={"id": text}, data=body)


def _numbers(records: list[Record]) -> list[int]:
    return [int(record.headers["id"]) for record in records]


async def _records(broker: SnsSqsBroker, stream: str, partition: int, count: int) -> list[Record]:
    found: list[Record] = []
    batches = broker.read(stream, partition, BEGINNING)
    async with asyncio.timeout(DEADLINE):
        while len(found) < count:
            batch = await anext(batches)
            found += batch.records
            broker.handled(stream, partition, batch.records[-1].position)
    await batches.aclose()
    return found


async def _take(broker: SnsSqsBroker, stream: str, partition: int, count: int) -> list[int]:
    return _numbers(await _records(broker, stream, partition, count))


async def _until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not reached():
            await asyncio.sleep(0.02)


async def _until_async(reached: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await reached():
            await asyncio.sleep(0.02)
