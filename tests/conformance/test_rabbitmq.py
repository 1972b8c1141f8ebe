"""RabbitMQ, held to the suite and to its own traps."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pamqp import commands, header

from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.brokers.rabbitmq import amqp, reader
from oyez.brokers.rabbitmq.broker import RabbitMqBroker
from oyez.brokers.rabbitmq.tail import Tail
from oyez.brokers.rabbitmq.wire import decode, encode
from oyez.envelope import open_record
from oyez.errors import BrokerRefused, BrokerUnavailable
from oyez.partitioning import partition_of
from oyez.ports import Batch, Record
from oyez.testing.broker_suite import Factory, ServerBrokerSuite
from oyez.testing.proxy import Proxy
from servers import SERVICES, Server, server

DEADLINE = 60.0

_KILL_LEADERS = (
    '[exit(amqqueue:get_pid(Q), kill) || Q <- rabbit_amqqueue:list(<<"%s">>), '
    "amqqueue:get_type(Q) == rabbit_stream_queue]."
)


@pytest.fixture(scope="module")
def vhost() -> Iterator[str]:
    """Of these tests alone, and gone after them."""
    server("rabbitmq")
    name = f"oyez-{uuid4().hex}"
    _control("add_vhost", name)
    _control("set_permissions", "-p", name, "oyez", ".*", ".*", ".*")
    yield name
    _control("delete_vhost", name)


def _control(*command: str) -> None:
    """rabbitmqctl, with the surroundings of the server that runs."""
    pid = json.loads((SERVICES / "services.json").read_text())["rabbitmq"]["pid"]
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    surroundings = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
    program = "/usr/lib/rabbitmq/bin/rabbitmqctl"
    environment = {os.fsdecode(k): os.fsdecode(v) for k, v in surroundings.items()}
    subprocess.run([program, *command], env=environment, check=True, capture_output=True)


class TestRabbitMq(ServerBrokerSuite):
    row = "rabbitmq"

    @pytest.fixture(autouse=True)
    def _rabbitmq(self, vhost: str) -> None:
        self.rabbitmq = server("rabbitmq")
        self.place = self.rabbitmq.url.rstrip("/") + "/" + vhost

    def server(self, tmp_path: Path) -> Server:
        return self.rabbitmq

    def make(self, tmp_path: Path) -> Factory:
        return lambda: connect(
            self.url(tmp_path), SystemAmbient(), root=tmp_path, group="suite.group"
        )

    def url(self, tmp_path: Path) -> str:
        return self.place

    def proxy(self, tmp_path: Path) -> Proxy:
        return self.rabbitmq.proxy()

    def make_through(self, tmp_path: Path, proxy: Proxy) -> Factory:
        url = proxy.through(self.place) + "?deadline=3"
        return lambda: connect(url, SystemAmbient(), root=tmp_path, group="suite.group")


class TestRabbitMqQuorum(TestRabbitMq):
    """Queues instead of streams: no history, acknowledged after the commit."""

    row = "rabbitmq, quorum queues"

    def url(self, tmp_path: Path) -> str:
        return self.place + "?queue=quorum"

    def make_through(self, tmp_path: Path, proxy: Proxy) -> Factory:
        url = proxy.through(self.place) + "?deadline=3&queue=quorum"
        return lambda: connect(url, SystemAmbient(), root=tmp_path, group="suite.group")

    async def test_a_queue_outlives_a_kill_right_after_it_was_made(self, tmp_path: Path) -> None:
        """RabbitMQ alone loses what it confirmed in a queue's first half second (G1)."""
        stream = f"young.{uuid4().hex}"
        records = [
            Record(stream=stream, key="k", headers={"id": str(n)}, data=b"x") for n in range(20)
        ]
        broker = self.make(tmp_path)()
        try:
            await broker.open()
            await broker.create(stream, 1)
            await broker.publish(records)
            await asyncio.to_thread(self.rabbitmq.kill)
            await asyncio.to_thread(self.rabbitmq.start)
            found: list[str] = []
            batches = broker.read(stream, 0, 0)
            async with asyncio.timeout(DEADLINE):
                while len(found) < len(records):
                    found += [record.headers["id"] for record in (await anext(batches)).records]
            await batches.aclose()  # type: ignore[attr-defined]
        finally:
            await broker.close()
        assert found == [record.headers["id"] for record in records]


class TestRabbitMqTraps:
    @pytest.fixture(autouse=True)
    def _rabbitmq(self, tmp_path: Path, vhost: str) -> None:
        self.url = server("rabbitmq").url.rstrip("/") + "/" + vhost
        self.vhost = vhost
        self.root = tmp_path
        self.stream = f"trap.{uuid4().hex}"

    # -- what others write ------------------------------------------------------------------------

    async def test_events_of_a_plain_client_are_read(self) -> None:
        """Binary with either prefix, structured, and with the exchange and key as documented."""
        attributes = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "subject": "k"}
        structured = json.dumps({**attributes, "id": "3", "data": {"a": 1}}).encode()
        async with self._open("partitions=4") as broker, self._plain() as send:
            await broker.create(self.stream, 4)
            key = str(partition_of("k", 4))
            for number, prefix in enumerate(("cloudEvents:", "cloudEvents_"), 1):
                named = {**attributes, "id": str(number)}
                headers = {prefix + name: value for name, value in named.items()}
                await send(self.stream, key, b"{}", "application/json", headers)
            await send(self.stream, key, structured, "application/cloudevents+json", {})
            found = await self._take(broker, int(key), 3)
        envelopes = [open_record(record.headers, record.data) for record in found]
        assert [envelope.id for envelope in envelopes] == ["1", "2", "3"]
        assert [record.key for record in found] == ["k", "k", None]
        assert envelopes[0].datacontenttype == "application/json"
        assert envelopes[2].data == b'{"a":1}'.replace(b":", b": ")

    async def test_junk_is_delivered_as_it_is(self) -> None:
        """Bytes are untouched; headers of every AMQP type become text; no record is skipped."""
        headers = {"n": 7, "f": 1.5, "yes": True, "cloudEvents:n": 7, "x-death": "1"}
        async with self._open("partitions=1") as broker, self._plain() as send:
            await broker.create(self.stream, 1)
            await send(self.stream, "0", b"\xff\x00", None, {})
            await send(self.stream, "0", b"", "text/plain", {"a": "b"})
            await send(self.stream, "0", b"{", "application/json", headers)
            found = await self._take(broker, 0, 3)
        assert [record.data for record in found] == [b"\xff\x00", b"", b"{"]
        assert [record.position for record in found] == [1, 2, 3]
        assert [record.headers for record in found] == [
            {},
            {"a": "b", "content-type": "text/plain"},
            {"n": "7", "datacontenttype": "application/json"},
        ]

    @pytest.mark.parametrize("key", [None, "", "k", "other"])
    @pytest.mark.parametrize(
        "headers", [{}, {"subject": "k"}, {"partitionkey": "", "subject": "k"}]
    )
    def test_a_key_is_what_it_was(self, key: str | None, headers: dict[str, str]) -> None:
        record = Record(stream="s", key=key, headers=headers, data=None)
        found = decode("s", 0, encode(record, 1.5), b"", 0, 9.0)
        assert (found.key, found.headers, found.data, found.time) == (key, headers, None, 1.5)

    def test_broken_properties_do_not_raise(self) -> None:
        whole = encode(Record(stream="s", key="k", headers={"id": "1", "a": "ü"}, data=b""), 1.5)
        for stop in range(len(whole)):
            assert decode("s", 0, whole[:stop], b"x", 0, 9.0).data == b"x"
        for at in range(len(whole)):
            torn = whole[:at] + b"\xff" + whole[at + 1 :]
            assert decode("s", 0, torn, b"x", 0, 9.0).data == b"x"

    # -- limits and refusals ----------------------------------------------------------------------

    async def test_a_record_that_is_too_large_is_refused_before_any_is_sent(self) -> None:
        async with self._open("partitions=1&max_bytes=1000") as broker:
            await broker.create(self.stream, 1)
            for large in (
                Record(stream=self.stream, key="k", headers={}, data=b"x" * 1001),
                Record(stream=self.stream, key="k", headers={"id": "x" * 140_000}, data=b""),
            ):
                small = Record(stream=self.stream, key="k", headers={}, data=b"x")
                with pytest.raises(BrokerRefused, match=r"1000 are allowed.*claim_check"):
                    await broker.publish([small, large])
            assert await broker.ends(self.stream) == [0]

    async def test_a_wrong_password_is_refused_without_telling_it(self) -> None:
        user, _, rest = self.url.partition("@")
        url = f"{user[: user.rindex(':')]}:canary@{rest}"
        broker = connect(url, SystemAmbient(), root=self.root)
        with pytest.raises(BrokerRefused, match="ACCESS_REFUSED") as refused:
            await broker.open()
        assert "canary" not in str(refused.value)
        assert "canary" not in repr(broker.__dict__)
        await broker.close()

    @pytest.mark.parametrize(
        "answer",
        [
            (404, "NOT_FOUND - home node 'a@b' of durable queue 'q' is down or inaccessible"),
            (406, "PRECONDITION_FAILED - queue 'q' does not have a replica on the local node"),
            (541, "INTERNAL_ERROR"),
        ],
    )
    async def test_a_server_whose_queues_have_not_begun_is_waited_for(
        self, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str]
    ) -> None:
        """For a moment after its start it answers so; it is no refusal, and no stream is gone."""
        async with self._open("partitions=2") as broker:
            await broker.create(self.stream, 2)
        left = 3

        async def ask(channel: amqp.Channel, method: Any) -> Any:
            nonlocal left
            if isinstance(method, commands.Queue.Declare | commands.Basic.Consume) and left:
                left -= 1
                raise amqp.AmqpError(*answer)
            return await channel.asked(method)

        monkeypatch.setattr(amqp.Channel, "ask", ask)
        async with self._open("partitions=3") as broker:
            await self._publish(broker, range(3))
            assert (await broker.streams())[self.stream] == 2
        assert not left

    async def test_what_nobody_has_a_queue_for_costs_no_channel_each_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Quorum queues: an event of which no group wants a copy is returned, and that is well."""
        opened = 0
        writing: amqp.Link | None = None
        open_channel = amqp.Link.channel

        async def channel(link: amqp.Link) -> amqp.Channel:
            nonlocal opened
            opened += link is writing
            return await open_channel(link)

        monkeypatch.setattr(amqp.Link, "channel", channel)
        broker = connect(f"{self.url}?queue=quorum", SystemAmbient(), root=self.root)
        assert isinstance(broker, RabbitMqBroker)
        await broker.open()
        try:
            writing = await broker._writing.link()
            await broker.create(self.stream, 1)
            await self._publish(broker, range(1))
            before = opened
            for number in range(1, 4):
                await self._publish(broker, range(number, number + 1))
            assert opened == before > 0
        finally:
            await broker.close()

    async def test_a_classic_queue_under_our_name_is_refused(self) -> None:
        async with self._open("partitions=1") as broker, self._channel() as channel:
            queue = commands.Queue.Declare(queue=f"{self.stream}.0", durable=True)
            await channel.ask(queue)
            with pytest.raises(BrokerRefused, match=r"durable stream queue.*delete_queue"):
                await broker.create(self.stream, 1)
            findings = [f for f in await broker.inspect() if self.stream in f.what]
            assert [finding.grave for finding in findings] == [True]
            await channel.ask(commands.Queue.Delete(queue=f"{self.stream}.0"))

    async def test_a_shorter_retention_is_found(self) -> None:
        async with self._open("partitions=1&retention=60") as broker:
            await broker.create(self.stream, 1)
            assert not [f for f in await broker.inspect() if self.stream in f.what]
        async with self._open("partitions=1&retention=3600") as broker:
            (finding,) = [f for f in await broker.inspect() if self.stream in f.what]
            async with self._channel() as channel:
                await channel.ask(commands.Queue.Delete(queue=f"{self.stream}.0"))
        assert finding.grave
        assert "60s" in finding.what
        assert "3600s" in finding.remedy

    # -- what goes on in the server ---------------------------------------------------------------

    async def test_a_deleted_queue_is_made_again(self) -> None:
        """Reading goes on and says that it began anew; publishing loses nothing (needs 1)."""
        async with self._open("partitions=1") as broker, self._channel() as channel:
            await self._publish(broker, range(5))
            batches = broker.read(self.stream, 0, 0)
            assert await self._numbers(batches, 5) == list(range(5))
            waiting = asyncio.ensure_future(anext(batches))
            await channel.ask(commands.Queue.Delete(queue=f"{self.stream}.0"))
            await self._publish(broker, range(5, 7))
            async with asyncio.timeout(DEADLINE):
                batch = await waiting
            assert batch.restarted
            numbers = [int(record.headers["id"]) for record in batch.records]
            numbers += await self._numbers(batches, 2 - len(numbers))
            assert numbers == [5, 6]
            await batches.aclose()

    async def test_what_is_confirmed_while_leaders_move_is_there(self) -> None:
        """RabbitMQ before 4.0 drops it where a channel serves several streams (#12236; G1)."""
        moving = True

        async def publish() -> int:
            number = 0
            while moving:
                records = [
                    Record(stream=self.stream, key=f"k{key}", headers={}, data=b"%d" % number)
                    for key in range(24)
                ]
                await broker.publish(records)
                number += 1
            return number

        async with self._open("partitions=8&deadline=60") as broker:
            await broker.create(self.stream, 8)
            publishing = asyncio.create_task(publish())
            for _ in range(4):
                await asyncio.to_thread(_control, "eval", _KILL_LEADERS % self.vhost)
            moving = False
            async with asyncio.timeout(DEADLINE):
                count = await publishing
            found: dict[str, list[int]] = {f"k{key}": [] for key in range(24)}
            for partition, end in enumerate(await broker.ends(self.stream)):
                for record in await self._take(broker, partition, end):
                    found[record.key or ""].append(int(record.data or b""))
        for key, numbers in found.items():
            assert list(dict.fromkeys(numbers)) == list(range(count)), key

    async def test_a_stream_made_anew_is_read_from_its_beginning(self) -> None:
        """Also by who was not there when it was deleted."""
        async with self._open("partitions=1") as broker, self._channel() as channel:
            await self._publish(broker, range(5))
            await channel.ask(commands.Queue.Delete(queue=f"{self.stream}.0"))
            await self._publish(broker, range(3))
            batches = broker.read(self.stream, 0, 5)
            async with asyncio.timeout(DEADLINE):
                batch = await anext(batches)
            assert batch.restarted
            assert batch.records[0].position == 1
            assert list(await broker.ends(self.stream)) == [3]
            await batches.aclose()

    @pytest.mark.parametrize("queue", ["stream", "quorum"])
    async def test_a_consumer_that_the_server_forgot_attaches_again(
        self, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is alive and silent for good, as rabbitmq-server #17317 describes (G5)."""
        tails: list[Tail] = []

        async def follow(*args: Any, **kwargs: Any) -> Tail:
            tails.append(await attach(*args, **kwargs))
            return tails[-1]

        attach = reader.follow
        monkeypatch.setattr(reader, "follow", follow)
        monkeypatch.setattr(reader, "SILENCE", 0.2)
        async with self._open(f"partitions=1&queue={queue}") as broker:
            batches = broker.read(self.stream, 0, 0)
            waiting = asyncio.ensure_future(anext(batches))
            await self._publish(broker, range(1))
            async with asyncio.timeout(DEADLINE):
                batch = await waiting
                broker.handled(self.stream, 0, batch.records[-1].position)
                waiting = asyncio.ensure_future(anext(batches))
                while tails[-1].channel.ended is not None:
                    await asyncio.sleep(0.01)  # it attaches anew, to have more on their way
                for tag in ("1", "2"):
                    tails[-1].channel.tell(commands.Basic.Cancel(tag, nowait=True))
                attached = len(tails)
                await self._publish(broker, range(1, 3))
                numbers = [int(record.headers["id"]) for record in (await waiting).records]
            numbers += await self._numbers(batches, 2 - len(numbers))
            await batches.aclose()
        assert numbers == [1, 2]
        assert len(tails) > attached

    async def test_retention_is_told_as_missed(self) -> None:
        async with self._open("partitions=1&retention=1&segment_bytes=10000") as broker:
            number = 0
            async with asyncio.timeout(60.0):
                while not any(await broker.starts(self.stream)):
                    await self._publish(broker, range(number, number + 50), b"x" * 1_000)
                    number += 50
            (start,), (end,) = await broker.starts(self.stream), await broker.ends(self.stream)
            assert end >= number  # the server keeps notes of its own between the records
            batches = broker.read(self.stream, 0, 0)
            batch = await anext(batches)
            assert batch.records[0].position == batch.missed + 1 >= start + 1
            await batches.aclose()
            batches = broker.read(self.stream, 0, end - 1)
            batch = await anext(batches)
            assert (batch.missed, batch.records[0].position) == (0, end)
            await batches.aclose()
            async with self._channel() as channel:
                await channel.ask(commands.Queue.Delete(queue=f"{self.stream}.0"))

    async def test_a_lost_registry_is_written_again(self) -> None:
        async with self._open("partitions=2") as broker, self._channel() as channel:
            await broker.create(self.stream, 2)
            await channel.ask(commands.Queue.Delete(queue="oyez.streams"))
            assert (await broker.streams())[self.stream] == 2
        async with self._open("partitions=3") as broker:
            assert (await broker.streams())[self.stream] == 2

    async def test_an_alarm_blocks_publishers_and_nobody_else(self) -> None:
        async with self._open("partitions=1&deadline=2") as broker:
            await self._publish(broker, range(3))
            await asyncio.to_thread(_control, "set_vm_memory_high_watermark", "0.0000001")
            try:
                with pytest.raises(BrokerUnavailable, match=r"takes no messages.*alarm"):
                    await self._publish_for_ever(broker)
                batches = broker.read(self.stream, 0, 0)
                assert await self._numbers(batches, 3) == [0, 1, 2]
                await batches.aclose()
                assert any("takes no messages" in f.what for f in await broker.inspect())
            finally:
                await asyncio.to_thread(_control, "set_vm_memory_high_watermark", "0.4")
            async with asyncio.timeout(DEADLINE):
                while True:
                    try:
                        await self._publish(broker, range(9, 10))
                        break
                    except BrokerUnavailable:
                        continue

    async def test_closing_leaves_nothing_running(self) -> None:
        before = asyncio.all_tasks()
        async with self._open("partitions=1") as broker:
            await self._publish(broker, range(3))
            batches = broker.read(self.stream, 0, 0)
            await anext(batches)
            await batches.aclose()
        assert asyncio.all_tasks() == before

    # -- for the tests above ----------------------------------------------------------------------

    @asynccontextmanager
    async def _open(self, options: str) -> AsyncIterator[RabbitMqBroker]:
        given = dict(option.split("=") for option in options.split("&"))
        partitions = int(given.pop("partitions"))
        retention = float(given.pop("retention", "604800"))
        query = "&".join(f"{name}={value}" for name, value in given.items())
        broker = connect(
            f"{self.url}?{query}",
            SystemAmbient(),
            root=self.root,
            partitions=partitions,
            retention=retention,
            group="trap.group",
        )
        assert isinstance(broker, RabbitMqBroker)
        await broker.open()
        try:
            yield broker
        finally:
            await broker.close()

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[amqp.Channel]:
        credentials, _, place = self.url.removeprefix("amqp://").partition("@")
        user, _, password = credentials.partition(":")
        host, _, port = place.partition("/")[0].partition(":")
        link = await amqp.connect(
            host,
            int(port),
            tls=None,
            user=user,
            password=password,
            vhost=self.vhost,
            name="a plain client",
        )
        try:
            yield await link.channel()
        finally:
            await link.close()

    @asynccontextmanager
    async def _plain(self):  # type: ignore[no-untyped-def]
        async with self._channel() as channel:
            await channel.ask(commands.Confirm.Select())

            async def send(exchange, key, body, kind, headers):  # type: ignore[no-untyped-def]
                properties = commands.Basic.Properties(content_type=kind, headers=headers)
                head = header.ContentHeader(0, len(body), properties).marshal()[12:]
                confirmed = asyncio.get_running_loop().create_future()
                channel.on_confirm = lambda *_: confirmed.set_result(None)
                pieces = [channel.route(exchange, key), *channel.content(head, body)]
                channel.link.write(b"".join(pieces))
                async with asyncio.timeout(DEADLINE):
                    await confirmed

            yield send

    async def _publish(self, broker: RabbitMqBroker, numbers: range, data: bytes = b"x") -> None:
        await broker.publish(
            [
                Record(stream=self.stream, key="k", headers={"id": str(n)}, data=data)
                for n in numbers
            ]
        )

    async def _publish_for_ever(self, broker: RabbitMqBroker) -> None:
        async with asyncio.timeout(DEADLINE):
            while True:
                await self._publish(broker, range(3, 4))

    async def _take(self, broker: RabbitMqBroker, partition: int, count: int) -> list[Record]:
        batches = broker.read(self.stream, partition, 0)
        found: list[Record] = []
        async with asyncio.timeout(DEADLINE):
            while len(found) < count:
                found += (await anext(batches)).records
        await batches.aclose()
        return found

    async def _numbers(self, batches: AsyncIterator[Batch], count: int) -> list[int]:
        numbers: list[int] = []
        async with asyncio.timeout(DEADLINE):
            while len(numbers) < count:
                numbers += [int(r.headers["id"]) for r in (await anext(batches)).records]
        return numbers
