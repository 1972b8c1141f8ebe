"""NATS JetStream, held to the suite and to its own traps."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import nats.js
import nats.js.errors
import pytest
from tls import self_signed

from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.brokers.nats.broker import NatsBroker
from oyez.brokers.nats.wire import decode, encode
from oyez.envelope import open_record
from oyez.errors import BrokerRefused, BrokerUnavailable, InvalidEvent
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Batch, Broker, Record
from oyez.testing.broker_suite import Factory, ServerBrokerSuite
from oyez.testing.proxy import Proxy
from servers import ROOT, Server, server

DEADLINE = 60.0


class TestNats(ServerBrokerSuite):
    row = "nats"

    @pytest.fixture(autouse=True)
    def _nats(self) -> None:
        self.nats = server("nats")

    def server(self, tmp_path: Path) -> Server:
        return self.nats

    def make(self, tmp_path: Path) -> Factory:
        return lambda: connect(self.url(tmp_path), SystemAmbient(), root=tmp_path)

    def url(self, tmp_path: Path) -> str:
        return f"{self.nats.url}?sync=always"

    def proxy(self, tmp_path: Path) -> Proxy:
        return self.nats.proxy()

    def make_through(self, tmp_path: Path, proxy: Proxy) -> Factory:
        url = proxy.through(self.nats.url) + "?sync=always&deadline=3"
        return lambda: connect(url, SystemAmbient(), root=tmp_path)


class TestOthers:
    """What a plain client writes and reads."""

    async def test_binary_mode_is_read(self) -> None:
        async with _opened() as (broker, stream, plain):
            headers = {
                "ce-specversion": "1.0",
                "CE-ID": "a%20b",
                "ce-source": '"quoted \\" text"',
                "ce-type": "Euro%20%E2%82%AC%20%f0%9f%98%80",
                "ce-subject": "order-1",
                "ce-datacontenttype": "application/json",
                "traceparent": "of another layer",
                "Nats-Msg-Id": "1",
            }
            await plain.publish(f"{stream}.0", b'{"a":1}', headers=headers)
            record = await _first(broker, stream)
        assert record.headers == {
            "specversion": "1.0",
            "id": "a b",
            "source": 'quoted " text',
            "type": "Euro € 😀",
            "subject": "order-1",
            "datacontenttype": "application/json",
        }
        assert record.key == "order-1"
        assert open_record(record.headers, record.data).data == b'{"a":1}'

    @pytest.mark.parametrize(
        "kind", ["application/cloudevents+json", "Application/CloudEvents; charset=utf-8"]
    )
    async def test_structured_mode_is_read(self, kind: str) -> None:
        event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t", "data": {"a": 1}}
        async with _opened() as (broker, stream, plain):
            data = json.dumps(event).encode()
            await plain.publish(f"{stream}.0", data, headers={"Content-Type": kind})
            record = await _first(broker, stream)
        assert record.data == data
        assert open_record(record.headers, record.data).data == b'{"a": 1}'

    async def test_what_is_no_event_is_delivered_for_the_lane_to_judge(self) -> None:
        async with _opened() as (broker, stream, plain):
            subject = f"{stream}.0"
            await plain.publish(subject, b"\xff\x00")
            await plain.publish(subject, b"")
            await plain.publish(subject, b"x", headers={"X-Shop": "7", "Content-Type": "text/a"})
            await _publish_raw(subject, b"NATS/1.0\r\nce-id: \xff\xfe\r\nce-type:t\r\n\r\n", b"y")
            await _publish_raw(subject, b"NATS/1.0\r\nno colon\r\n:\r\nce-: 1\r\n\r\n", b"z")
            found = await _take(broker, stream, 5)
        assert [record.data for record in found] == [b"\xff\x00", b"", b"x", b"y", b"z"]
        assert found[0].headers == {}
        assert found[0].key is None
        assert found[2].headers == {"X-Shop": "7", "datacontenttype": "text/a"}
        assert found[3].headers == {"id": "\\xff\\xfe", "type": "t"}
        for record in found:
            with pytest.raises(InvalidEvent):
                open_record(record.headers, record.data)

    async def test_a_partition_that_is_not_there_takes_nothing(self) -> None:
        async with _opened() as (_, stream, plain):
            with pytest.raises(nats.js.errors.NoStreamResponseError):
                await plain.publish(f"{stream}.1", b"")

    async def test_a_plain_client_reads_ours(self) -> None:
        async with _opened() as (broker, stream, plain):
            headers = {"specversion": "1.0", "id": "1", "type": "a b", "subject": "k"}
            await broker.publish([Record(stream=stream, key="k", headers=headers, data=b"1")])
            message = await plain.get_last_msg(_name(stream), f"{stream}.0")
        assert message.data == b"1"
        assert message.headers == {
            "ce-specversion": "1.0",
            "ce-id": "1",
            "ce-type": "a%20b",
            "ce-subject": "k",
        }

    async def test_keys_survive_that_no_attribute_tells(self) -> None:
        async with _opened() as (broker, stream, _):
            sent = [
                Record(stream=stream, key=key, headers=headers, data=data)
                for key in (None, "", "k", "ü\r\nce-id: 2")
                for headers in ({}, {"subject": "k"}, {"subject": "s", "partitionkey": "k"})
                for data in (None, b"")
            ]
            for record in sent:
                await broker.publish([record])
            found = await _take(broker, stream, len(sent))
        assert [(r.key, r.headers, r.data) for r in found] == [
            (r.key, r.headers, r.data) for r in sent
        ]

    async def test_no_value_breaks_out_of_its_header(self) -> None:
        evil = "a\r\nce-id: 2\r\n\r\nbody % \" ' \t \x00 é"
        record = Record(stream="s", key=evil, headers={"id": "1", "type": evil}, data=b"")
        header = encode(record)
        assert header.isascii()
        assert header.count(b"\r\n") == 4
        assert decode(header + b"\r\n", b"", "s", 0, 1, 0.0).headers == record.headers
        with pytest.raises(BrokerRefused):
            encode(Record(stream="s", key=None, headers={"a\r\nb": ""}, data=b""))


class TestPositions:
    """What retention and deletion do to them."""

    async def test_a_stream_made_anew_is_told_even_when_it_has_grown(self) -> None:
        async with _opened() as (broker, stream, plain):
            await broker.publish([_record(stream, n) for n in range(3)])
            async with _reading(broker, stream) as batches:
                (_, _, last) = (await anext(batches)).records
                await plain.delete_stream(_name(stream))
                waiting = asyncio.ensure_future(anext(batches))
                await _retry(lambda: broker.publish([_record(stream, n) for n in range(9)]))
                batch = await waiting
                assert batch.restarted
                assert _numbers(batch.records)[0] == 0
                assert batch.records[0].position > last.position
            async with _reading(broker, stream, last.position) as batches:
                batch = await anext(batches)
                assert batch.restarted
                assert batch.missed == 0
                assert batch.records[0].headers["id"] == "0"
            assert await broker.lag(stream, {partition_of("k", 8): last.position}) == {
                partition_of("k", 8): 9
            }

    async def test_what_retention_deleted_is_missed(self) -> None:
        async with _opened("?sync=always", retention=1.0) as (broker, stream, _):
            await broker.publish([_record(stream, n) for n in range(3)])
            (end,) = await broker.ends(stream)
            assert await broker.starts(stream) == [BEGINNING]
            async with asyncio.timeout(DEADLINE):
                while await broker.starts(stream) != [end]:
                    await asyncio.sleep(0.1)
            assert await broker.ends(stream) == [end]
            assert await broker.lag(stream, {0: BEGINNING}) == {0: 0}
            await broker.publish([_record(stream, 3)])
            for after, missed in ((BEGINNING, 1), (end - 1, 1), (end, 0)):
                async with _reading(broker, stream, after) as batches:
                    batch = await anext(batches)
                    assert (_numbers(batch.records), batch.missed) == ([3], missed)

    async def test_a_reader_that_is_overtaken_is_told(self) -> None:
        async with _opened("?sync=always&batch=4") as (broker, stream, plain):
            config = (await plain.stream_info(_name(stream))).config
            config.max_msgs = 20
            await plain.update_stream(config)
            await broker.publish([_record(stream, n) for n in range(10)])
            async with _reading(broker, stream) as batches:
                batch = await anext(batches)
                while batch.records[-1].headers["id"] < "3":
                    batch = await anext(batches)
                await broker.publish([_record(stream, n) for n in range(10, 60)])
                found, missed = _numbers(batch.records), 0
                while found[-1] != 59:
                    batch = await anext(batches)
                    found += _numbers(batch.records)
                    missed += batch.missed
        assert missed == 1
        assert len(found) < 60 == 1 + found[-1]

    async def test_lag_is_exact(self) -> None:
        async with _opened(partitions=2) as (broker, stream, _):
            await broker.publish([_record(stream, n, f"k{n % 5}") for n in range(40)])
            for partition in range(2):
                count = (await broker.lag(stream, {partition: BEGINNING}))[partition]
                places = [r.position for r in await _take(broker, stream, count, partition)]
                assert places[-1] == (await broker.ends(stream))[partition]
                for behind, position in enumerate(reversed(places)):
                    assert await broker.lag(stream, {partition: position}) == {partition: behind}
            assert sum((await broker.lag(stream, {0: 0, 1: 0, 2: 0})).values()) == 40

    async def test_a_reader_outlives_its_consumer(self) -> None:
        async with _opened() as (broker, stream, plain):
            async with _reading(broker, stream) as batches:
                for number in range(3):
                    await broker.publish([_record(stream, number)])
                    assert _numbers((await anext(batches)).records) == [number]
                    for consumer in await plain.consumers_info(_name(stream)):
                        await plain.delete_consumer(_name(stream), consumer.name)
            async with asyncio.timeout(DEADLINE):
                while await plain.consumers_info(_name(stream)):
                    await asyncio.sleep(0.05)


class TestPublishing:
    async def test_larger_than_the_server_takes_is_refused_before_anything_is_sent(self) -> None:
        async with _opened() as (broker, stream, _):
            large = Record(stream=stream, key="k", headers={"id": "1"}, data=b"x" * 1_048_577)
            with pytest.raises(BrokerRefused, match=r"1048\d{3} bytes.*claim_check"):
                await broker.publish([_record(stream, 0), large])
            assert await broker.ends(stream) == [BEGINNING]
            most = broker.capabilities.max_bytes - 1_000
            await broker.publish(
                [
                    Record(stream=stream, key="k", headers={"id": str(n)}, data=b"x" * most)
                    for n in range(18)
                ]
            )
            assert _numbers(await _take(broker, stream, 18)) == list(range(18))

    @pytest.mark.parametrize("trip", [0.0, 1.0])
    async def test_order_stands_one_by_one_and_in_batches(self, trip: float) -> None:
        async with _opened(partitions=4) as (broker, stream, _):
            assert isinstance(broker, NatsBroker)
            for start in range(0, 900, 300):
                broker._publisher(stream)._trip = trip
                await broker.publish(
                    [_record(stream, n, f"k{n % 7}") for n in range(start, start + 300)]
                )
            counts = await broker.lag(stream, dict.fromkeys(range(4), BEGINNING))
            found = [r for p, n in counts.items() for r in await _take(broker, stream, n, p)]
        for name in range(7):
            assert _numbers([r for r in found if r.key == f"k{name}"]) == list(range(name, 900, 7))

    @pytest.mark.parametrize("count", [10, 100])
    async def test_a_stream_without_atomic_batches_keeps_order(self, count: int) -> None:
        async with _opened() as (broker, stream, plain):
            info = await _api(plain, f"STREAM.INFO.{_name(stream)}")
            config = {**info["config"], "allow_atomic": False}
            await _api(plain, f"STREAM.UPDATE.{_name(stream)}", config)
            await broker.publish([_record(stream, n) for n in range(count)])
            assert _numbers(await _take(broker, stream, count)) == list(range(count))
            (finding,) = await _findings(broker, stream)
            assert "atomic" in finding

    @pytest.mark.parametrize("answer", [b'{"stream":"elsewhere","seq":1}', b"+OK", b"{}"])
    async def test_only_the_streams_own_acknowledgement_counts(self, answer: bytes) -> None:
        async with _opened() as (broker, stream, plain):
            await plain.delete_stream(_name(stream))
            service = plain._nc

            async def lie(message: Any) -> None:
                await message.respond(answer)

            await service.subscribe(f"{stream}.0", cb=lie)
            await service.flush()
            with pytest.raises(BrokerUnavailable, match=r"not by the stream|created again"):
                await broker.publish([_record(stream, 1)])

    async def test_a_closed_broker_lets_nobody_wait(self) -> None:
        async with _opened() as (broker, stream, _):
            for turns in range(10):
                async with _broker(server("nats").url) as other:
                    publishing = asyncio.ensure_future(other.publish([_record(stream, turns)]))
                    for _turn in range(turns):
                        await asyncio.sleep(0)
                    await other.close()
                    async with asyncio.timeout(5):
                        await asyncio.wait([publishing])
                    assert isinstance(publishing.exception(), BrokerUnavailable | None)
            await broker.publish([_record(stream, 10)])

    async def test_streams_of_others_are_left_alone(self) -> None:
        async with _opened() as (broker, stream, plain):
            subjects = [f"$O.{stream}.0", f"{stream}.b.>"]
            for number, subject in enumerate(subjects):
                await plain.add_stream(name=f"{_name(stream)}_{number}", subjects=[subject])
            found = await broker.streams()
            for number in range(len(subjects)):
                await plain.delete_stream(f"{_name(stream)}_{number}")
        assert {name: count for name, count in found.items() if stream in name} == {stream: 1}

    async def test_a_name_that_another_stream_has_is_refused(self) -> None:
        async with _opened() as (broker, stream, plain):
            await plain.add_stream(name=f"{_name(stream)}_b", subjects=[f"{stream}.other"])
            with pytest.raises(BrokerRefused, match="taken"):
                await broker.create(f"{stream}.b", 1)
            with pytest.raises(BrokerRefused):
                await broker.create("not a name", 1)
            assert f"{stream}.b" not in await broker.streams()
            await plain.delete_stream(f"{_name(stream)}_b")


class TestSetup:
    """Servers of other kinds."""

    async def test_what_is_wrong_with_a_stream_is_told(self) -> None:
        async with _opened() as (broker, stream, plain):
            assert await _findings(broker, stream) == []
            await plain.delete_stream(_name(stream))
            await plain.add_stream(
                name=_name(stream),
                subjects=[f"{stream}.0"],
                storage="memory",
                max_msgs=5,
                max_age=60,
            )
            found = "\n".join(await _findings(broker, stream))
        for part in ("in memory", "max_msgs 5", "for 60 s, not 604800", "direct", "atomic"):
            assert part in found

    async def test_unknown_durability_is_told(self) -> None:
        async with _opened("") as (broker, _, _):
            assert broker.capabilities.durability == "process-crash"
            assert any("sync=always" in finding.remedy for finding in await broker.inspect())

    async def test_one_connection_carries_many_readers(self) -> None:
        port = server("nats").ports["monitoring"]
        async with _opened(partitions=16) as (broker, stream, _):
            assert isinstance(broker, NatsBroker)
            link = await broker._connection.link()
            assert link._transport is not None
            local = link._transport.get_extra_info("sockname")[1]
            readers = [asyncio.ensure_future(_take(broker, stream, 1, p)) for p in range(16)]
            async with asyncio.timeout(DEADLINE):
                while (await asyncio.to_thread(_connections, port))[local] < 16:
                    pass
            await broker.publish([_record(stream, n, f"k{n}") for n in range(400)])
            found = await asyncio.gather(*readers)
        assert {record.partition for records in found for record in records} == set(range(16))

    async def test_closing_leaves_nothing_behind(self) -> None:
        before = asyncio.all_tasks()
        async with _opened() as (broker, stream, _):
            async with _reading(broker, stream) as batches:
                waiting = asyncio.ensure_future(anext(batches))
                publishing = asyncio.ensure_future(
                    broker.publish([_record(stream, n) for n in range(2_000)])
                )
                await asyncio.sleep(0)
                await broker.close()
                with pytest.raises(BrokerUnavailable):
                    await publishing
                waiting.cancel()
                await asyncio.wait([waiting])
            with pytest.raises(BrokerUnavailable):
                await broker.streams()
        async with asyncio.timeout(DEADLINE):
            while asyncio.all_tasks() > before:
                await asyncio.sleep(0)

    async def test_the_password_lets_in_and_is_never_told(self, tmp_path: Path) -> None:
        users = 'authorization { users: [ {user: u, password: "p@ss"}, \
{user: few, password: few, permissions: {publish: ["other"], subscribe: [">"]}} ] }'
        with _own_server(tmp_path, users) as port:
            await _look(f"nats://u:p%40ss@127.0.0.1:{port}")
            for credentials in ("u:hunter2@", "hunter2@", "u:@", ""):
                with pytest.raises(BrokerRefused) as refused:
                    await _look(f"nats://{credentials}127.0.0.1:{port}")
                assert "password" in str(refused.value)
                assert "hunter2" not in f"{refused.value!r}{refused.value.__cause__!r}"
            with pytest.raises(BrokerRefused, match="permit"):
                await _look(f"nats://few:few@127.0.0.1:{port}")

    async def test_a_token_lets_in(self, tmp_path: Path) -> None:
        with _own_server(tmp_path, "authorization { token: secret }") as port:
            await _look(f"nats://secret@127.0.0.1:{port}")

    async def test_a_server_without_jetstream_is_refused(self, tmp_path: Path) -> None:
        with _own_server(tmp_path, "", jetstream=False) as port:
            url = f"nats://127.0.0.1:{port}"
            with pytest.raises(BrokerRefused, match="-js"):
                await _look(url)

    @pytest.mark.parametrize("first", [False, True])
    async def test_tls_verifies_the_server(self, tmp_path: Path, first: bool) -> None:
        made = self_signed(tmp_path)
        tls = f'tls {{ cert_file: "{made.cafile}", key_file: "{made.keyfile}", handshake_first: '
        tls += f"{'true' if first else 'false'} }}"
        option = "tls_first" if first else "tls"
        with _own_server(tmp_path, tls) as port:
            url = f"nats://127.0.0.1:{port}?{option}=true"
            async with _broker(f"{url}&cafile={made.cafile}") as broker:
                await broker.create("a.b", 1)
            with pytest.raises(BrokerRefused, match="TLS"):
                await _look(url)

    async def test_the_next_of_several_servers_is_taken(self) -> None:
        port = server("nats").port
        for hosts in (f"127.0.0.1:1,127.0.0.1:{port}", f"127.0.0.1:{port},127.0.0.1:1"):
            await _look(f"nats://{hosts}")


# -- for the tests above ---------------------------------------------------------------------------


@asynccontextmanager
async def _broker(url: str, **settings: Any) -> AsyncIterator[Broker]:
    broker = connect(url, SystemAmbient(), root=Path(), **settings)
    try:
        await broker.open()
        yield broker
    finally:
        await broker.close()


async def _look(url: str) -> None:
    async with _broker(url) as broker:
        await broker.streams()


@asynccontextmanager
async def _opened(
    options: str = "?sync=always", partitions: int = 1, **settings: Any
) -> AsyncIterator[tuple[Broker, str, Any]]:
    """A broker, a new stream on it, and a plain client's JetStream."""
    url = server("nats").url
    stream = f"test.{uuid4().hex}"
    plain = await nats.connect(url)
    try:
        async with _broker(url + options, **settings) as broker:
            await broker.create(stream, partitions)
            yield broker, stream, plain.jetstream()
    finally:
        jetstream = plain.jetstream()
        if _name(stream) in {info.config.name for info in await jetstream.streams_info()}:
            await jetstream.delete_stream(_name(stream))
        await plain.close()


def _name(stream: str) -> str:
    return stream.replace(".", "_")


def _record(stream: str, number: int, key: str = "k") -> Record:
    return Record(stream=stream, key=key, headers={"id": str(number)}, data=b"x")


def _numbers(records: list[Record]) -> list[int]:
    return [int(record.headers["id"]) for record in records]


@asynccontextmanager
async def _reading(
    broker: Broker, stream: str, after: int = BEGINNING, partition: int = 0
) -> AsyncIterator[AsyncIterator[Batch]]:
    batches = broker.read(stream, partition, after)
    try:
        async with asyncio.timeout(DEADLINE):
            yield batches
    finally:
        await batches.aclose()  # type: ignore[attr-defined]


async def _take(broker: Broker, stream: str, count: int, partition: int = 0) -> list[Record]:
    records: list[Record] = []
    async with _reading(broker, stream, partition=partition) as batches:
        while len(records) < count:
            records += (await anext(batches)).records
    return records


async def _first(broker: Broker, stream: str) -> Record:
    (record,) = await _take(broker, stream, 1)
    return record


async def _findings(broker: Broker, stream: str) -> list[str]:
    return [f.what for f in await broker.inspect() if _name(stream) in f.what]


async def _retry(call: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await call()
            except BrokerUnavailable:
                await asyncio.sleep(0.05)


async def _api(plain: Any, what: str, body: object = None) -> dict[str, Any]:
    payload = b"" if body is None else json.dumps(body).encode()
    answer = json.loads((await plain._nc.request(f"$JS.API.{what}", payload)).data)
    assert "error" not in answer, answer
    return answer


async def _publish_raw(subject: str, header: bytes, payload: bytes) -> None:
    """What no client library would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server("nats").port)
    size = len(header)
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    writer.write(f"HPUB {subject} {size} {size + len(payload)}\r\n".encode())
    writer.write(header + payload + b"\r\nPING\r\n")
    async with asyncio.timeout(DEADLINE):
        while (await reader.readline()) != b"PONG\r\n":
            pass
    writer.close()
    await writer.wait_closed()


def _connections(port: int) -> dict[int, int]:
    """How many subscriptions each client has, by the port that it comes from."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/connz") as answer:
        found = json.load(answer)["connections"]
    return {each["port"]: each["subscriptions"] for each in found}


@contextmanager
def _own_server(folder: Path, settings: str, *, jetstream: bool = True) -> Iterator[int]:
    """The port of a nats-server with settings of its own."""
    cache = Path(os.environ.get("SERVICES_CACHE") or ROOT / ".services-cache")
    program = next(map(str, cache.glob("nats-*/nats-server")), shutil.which("nats-server"))
    if program is None:
        pytest.skip("nats-server is not installed: make services")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = f'jetstream {{ store_dir: "{folder}/js" }}' if jetstream else ""
    (folder / "nats.conf").write_text(f"listen: 127.0.0.1:{port}\n{store}\n{settings}\n")
    process = subprocess.Popen([program, "-c", folder / "nats.conf"], stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        said = b""
        while b"Server is ready" not in said:
            said = process.stderr.readline()
            assert said, "nats-server ended by itself"
        yield port
    finally:
        process.kill()
        process.communicate()
