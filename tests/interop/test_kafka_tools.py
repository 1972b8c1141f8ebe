"""Kafka's own tools and kcat (librdkafka) on the topics and groups of a running system."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cases import CASES, record_of
from wires import PARTITIONS, line

from oyez.envelope import open_record
from oyez.partitioning import partition_of
from oyez.ports import Record
from oyez.testing.ticks import Ticks, ticking, until
from servers import ROOT, Server, server

KEYS = ["a", "ab", "abc", "abcd", "order-4711", "customer 7", "Jürgen", "東京", "🎈", "x" * 300]
JAVA_PARTITIONER = "topic.partitioner=murmur2_random"
CLOCKS = [f"clock-{number}" for number in range(40)]


@pytest.fixture
def kafka() -> Server:
    if shutil.which("kcat") is None:
        pytest.skip("kcat is not installed: scripts/system-packages")
    return server("kafka")


async def run(*command: str | Path, data: str = "") -> str:
    """What a command says that must succeed."""
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment
    )
    said, error = await process.communicate(data.encode())
    assert process.returncode == 0, error.decode()
    return said.decode(errors="surrogateescape")  # data may be any bytes


async def kcat(kafka: Server, *arguments: str, data: str = "") -> str:
    return await run("kcat", "-b", f"{kafka.host}:{kafka.port}", *arguments, data=data)


async def kafka_tool(*arguments: str, data: str = "") -> str:
    return await run(ROOT / "scripts" / "services", "kafka-tool", *arguments, data=data)


# -- kcat ------------------------------------------------------------------------------------------


async def test_kcat_reads_events_with_their_attributes(kafka: Server, tmp_path: Path) -> None:
    async with line("kafka", tmp_path) as to:
        await to.broker.publish([record_of(case, "binary", to.stream) for case in CASES.values()])
        from_start = ("-C", "-q", "-t", to.stream, "-o", "beginning", "-e")
        found = await kcat(kafka, *from_start, "-J")
        short = await kcat(kafka, *from_start, "-f", "%k|%h\n")
    seen = set()
    for text in found.splitlines():
        message = json.loads(text)
        flat = message["headers"]
        headers = dict(zip(flat[::2], flat[1::2], strict=True))
        case = CASES[headers["ce_id"]]
        wanted = {f"ce_{name}": value for name, value in case.headers().items()}
        wanted["content-type"] = wanted.pop("ce_datacontenttype")
        assert headers == wanted
        assert message["key"] == case.key
        if case.key is not None:
            assert message["partition"] == partition_of(case.key, PARTITIONS)
        if case.datacontenttype == "application/json":
            assert message["payload"].encode() == case.data
        seen.add(case.id)
    assert seen == CASES.keys()
    (complete,) = (text for text in short.splitlines() if "ce_id=complete" in text)
    assert complete.startswith("customer-7|")
    assert "ce_type=shop.order.placed" in complete


async def test_a_service_handles_what_kcat_writes(kafka: Server, tmp_path: Path) -> None:
    async with ticking(tmp_path / "ticks", broker=kafka.url) as ticks:
        ticks.start_replica()
        await ticks.tick("clock-0")  # as number 1; what kcat writes continues it
        await ticks.all_seen("clock-0")
        attributes = {
            "ce_specversion": "1.0",
            "ce_id": uuid4().hex,
            "ce_source": "/legacy",
            "ce_type": "ticks.tick",
            "ce_subject": "clock-0",
            "content-type": "application/json",
        }
        headers = [part for item in attributes.items() for part in ("-H", "=".join(item))]
        into = ("-P", "-t", ticks.stream, "-k", "clock-0", "-X", JAVA_PARTITIONER)
        data = json.dumps({"name": "clock-0", "number": 2})
        for _ in range(2):  # the second has the same id: a duplicate
            await kcat(kafka, *into, *headers, data=data)
        await ticks.tick("clock-1")
        await ticks.all_seen("clock-1")

        async def heard() -> bool:
            return [number for _, number, _ in await ticks.seen("clock-0", "heard")] == [1, 2]

        await until(heard, why=ticks._last_words)
        lagging = json.loads((await asyncio.to_thread(ticks.run, "lag", "--json")).stdout)
        assert lagging["services"][0]["dead"] == 0
        await until(lambda: caught_up(ticks), why=ticks._last_words)
        assert [number for _, number, _ in await ticks.seen("clock-0")] == [1, 2]


# -- partitions ------------------------------------------------------------------------------------


def by_key(records: Iterable[Record]) -> dict[str | None, int]:
    return {record.key: record.partition for record in records}


async def test_kcat_finds_the_partition_of_a_key_once_told_how(
    kafka: Server, tmp_path: Path
) -> None:
    """librdkafka's default, consistent_random, is CRC32 and no other client's."""
    wanted = {key: partition_of(key, PARTITIONS) for key in KEYS}
    data = "".join(f"{key}\t{{}}\n" for key in KEYS)
    async with line("kafka", tmp_path) as to:
        await kcat(kafka, "-P", "-t", to.stream, "-K", "\\t", "-X", JAVA_PARTITIONER, data=data)
        assert by_key(await to.records(len(KEYS))) == wanted
    async with line("kafka", tmp_path) as to:
        await kcat(kafka, "-P", "-t", to.stream, "-K", "\\t", data=data)
        assert by_key(await to.records(len(KEYS))) != wanted


async def test_a_java_producer_finds_it_by_itself(kafka: Server, tmp_path: Path) -> None:
    """Kafka's console producer, with CloudEvents headers."""
    fixed = "ce_specversion:1.0,ce_source:/java,ce_type:shop.order.placed,ce_id:"
    lines = [f'{fixed}{number}\t{key}\t{{"n": {number}}}\n' for number, key in enumerate(KEYS)]
    properties = ("--reader-property", "parse.key=true", "--reader-property", "parse.headers=true")
    async with line("kafka", tmp_path) as to:
        into = ("console-producer", "--topic", to.stream)
        await kafka_tool(*into, *properties, data="".join(lines))
        records = await to.records(len(KEYS))
    assert by_key(records) == {key: partition_of(key, PARTITIONS) for key in KEYS}
    for record in records:
        envelope = open_record(record.headers, record.data)
        assert envelope.type == "shop.order.placed"
        assert record.key == KEYS[int(envelope.id)]
        assert json.loads(envelope.data) == {"n": int(envelope.id)}


# -- lag -------------------------------------------------------------------------------------------


async def by_kafka(ticks: Ticks) -> dict[tuple[str, int], int]:
    """The lag of each partition as kafka-consumer-groups tells it."""
    group = f"{ticks.name}.counter"
    said = await kafka_tool("consumer-groups", "--describe", "--group", group)
    rows = [row.split() for row in said.splitlines() if row.startswith(group)]
    return {(row[1], int(row[2])): int(row[5]) for row in rows}


async def by_oyez(ticks: Ticks) -> dict[tuple[str, int], int]:
    """The lag of each partition as ``oyez lag`` tells it."""
    done = await asyncio.to_thread(ticks.run, "lag", "--json")
    assert done.returncode == 0, done.stderr
    (service,) = json.loads(done.stdout)["services"]
    partitions: list[dict[str, Any]] = service["partitions"]
    return {(each["stream"], each["partition"]): each["lag"] for each in partitions}


async def caught_up(ticks: Ticks) -> bool:
    return not any((await by_oyez(ticks)).values())


@pytest.mark.timeout(240)
async def test_kafkas_own_tool_tells_the_lag_that_oyez_tells(kafka: Server, tmp_path: Path) -> None:
    assert {partition_of(clock, 8) for clock in CLOCKS} == set(range(8))
    async with ticking(tmp_path / "ticks", broker=kafka.url) as ticks:
        (replica,) = await ticks.started()
        await ticks.tick(*CLOCKS)
        await ticks.all_seen(*CLOCKS)

        async def shown() -> bool:
            found = await by_kafka(ticks)
            return len(found) == 16 and not any(found.values())

        await until(shown, 60.0, ticks._last_words)
        assert await by_kafka(ticks) == await by_oyez(ticks)

        replica.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(replica.wait, 30) == 0
        for _ in range(3):
            await ticks.tick(*CLOCKS)
        found = await by_kafka(ticks)
        assert found == await by_oyez(ticks)
        assert sum(found.values()) == 3 * len(CLOCKS)
        assert {stream for (stream, _), lag in found.items() if lag} == {ticks.stream}

        ticks.start_replica()
        await ticks.all_seen(*CLOCKS)
        await until(shown, 60.0, ticks._last_words)
        assert await by_kafka(ticks) == await by_oyez(ticks)
