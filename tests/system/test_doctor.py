"""`oyez doctor` tells the ways to lose or double an event by how a server is set up."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import botocore.session
import nats
import pytest
import redis
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from oyez import stores
from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from servers import Server, server

SERVICE = """
from oyez import Service

service = Service("desk")
"""


class Doctored:
    """A system with one stream on a real server, and what the doctor says of it."""

    def __init__(self, root: Path, broker: str, store: str = "") -> None:
        self.root = root
        self.name = f"doctored-{uuid4().hex[:8]}"
        self.stream = f"{self.name}.desk"
        self.broker = broker
        self.store = store or "sqlite:desk.db"
        toml = f'[system]\nname = "{self.name}"\nbroker = "{broker}"\n'
        toml += f'[services.desk]\napp = "desk:service"\nstore = "{self.store}"\n'
        (root / "oyez.toml").write_text(toml)
        (root / "desk.py").write_text(SERVICE)

    async def make_stream(self) -> None:
        broker = connect(self.broker, SystemAmbient(), root=self.root, group=f"{self.name}.desk")
        store = stores.connect(self.store, SystemAmbient(), root=self.root)
        try:
            await broker.open()
            await broker.create(self.stream, 2)
            await store.open()
        finally:
            await broker.close()
            await store.close()

    def problems(self) -> str:
        """All that is grave, with the remedies; and every finding has one."""
        ran = subprocess.run(
            [sys.executable, "-m", "oyez", "doctor", "--json"],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=150,  # RabbitMQ tells of its streams one by one, and other tests leave hundreds
            check=False,
        )
        assert ran.stdout, ran.stderr
        found = json.loads(ran.stdout)["findings"]
        grave = [each for each in found if each["level"] == "problem"]
        assert all(each["remedy"] for each in grave)
        secret = urlsplit(self.broker).password
        assert secret is None or secret not in ran.stdout + ran.stderr
        return "\n".join(f"{each['text']} → {each['remedy']}" for each in grave)


@asynccontextmanager
async def redis_set(server: Server, **settings: str) -> AsyncIterator[None]:
    client = redis.Redis.from_url(server.url, decode_responses=True)
    names = {name.replace("_", "-"): value for name, value in settings.items()}
    before = {name: client.config_get(name)[name] for name in names}
    for name, value in names.items():
        client.config_set(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            client.config_set(name, value)
        client.close()


@pytest.mark.parametrize(
    ("settings", "told", "remedy"),
    [
        ({"appendonly": "no"}, "a crash of Redis loses", "config set appendonly yes"),
        ({"appendfsync": "everysec"}, "a power cut loses", "config set appendfsync always"),
        (
            {"maxmemory": "1gb", "maxmemory_policy": "allkeys-lru"},
            "deletes whole streams",
            "maxmemory-policy noeviction",
        ),
    ],
)
async def test_redis(tmp_path: Path, settings: dict[str, str], told: str, remedy: str) -> None:
    running = server("redis")
    doctored = Doctored(tmp_path, running.url)
    await doctored.make_stream()
    assert doctored.problems() == ""
    async with redis_set(running, **settings):
        found = doctored.problems()
    assert told in found
    assert remedy in found
    assert doctored.problems() == ""


async def test_kafka_acknowledged_by_one_broker_alone(tmp_path: Path) -> None:
    doctored = Doctored(tmp_path, f"{server('kafka').url}?acks=1")
    await doctored.make_stream()
    assert "take acks=1 out" in doctored.problems()


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("cleanup.policy", "compact", "of each key only the last event is kept"),
        ("unclean.leader.election.enable", "true", "a replica that lacks confirmed events"),
    ],
)
async def test_kafka_topics(tmp_path: Path, setting: str, value: str, told: str) -> None:
    running = server("kafka")
    doctored = Doctored(tmp_path, running.url)
    await doctored.make_stream()
    assert doctored.problems() == ""
    admin = AdminClient({"bootstrap.servers": f"{running.host}:{running.port}"})
    entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(ConfigResource.Type.TOPIC, doctored.stream, incremental_configs=[entry])
    for future in admin.incremental_alter_configs([topic]).values():
        future.result(20)
    found = doctored.problems()
    # Other systems on the same cluster would be told of it as well.
    for future in admin.delete_topics([doctored.stream]).values():
        future.result(20)
    assert told in found
    assert f"{setting}=" in found


async def test_nats_that_drops_what_nobody_has_read(tmp_path: Path) -> None:
    running = server("nats")
    doctored = Doctored(tmp_path, f"{running.url}?sync=always")
    await doctored.make_stream()
    assert doctored.problems() == ""
    client = await nats.connect(running.url)
    try:
        stream = client.jetstream()
        name = await stream.find_stream_name_by_subject(f"{doctored.stream}.0")
        config = (await stream.stream_info(name)).config
        config.max_msgs = 1_000
        await stream.update_stream(config)
        found = doctored.problems()
        await stream.delete_stream(name)  # others on the same server would be told of it as well
    finally:
        await client.close()
    assert "nats stream edit" in found


async def test_nats_whose_flushing_nobody_vouches_for(tmp_path: Path) -> None:
    doctored = Doctored(tmp_path, server("nats").url)
    await doctored.make_stream()
    assert "sync_interval: always" in doctored.problems()


async def test_rabbitmq_that_drops_what_nobody_has_read(tmp_path: Path) -> None:
    running = server("rabbitmq")
    doctored = Doctored(tmp_path, running.url)
    await doctored.make_stream()
    assert doctored.problems() == ""
    async with _bounded(running, f"{doctored.stream}.0"):
        found = doctored.problems()
    assert "rabbitmqctl delete_queue" in found


@asynccontextmanager
async def _bounded(running: Server, queue: str) -> AsyncIterator[None]:
    import aio_pika

    connection = await aio_pika.connect(running.url)
    async with connection:
        channel = await connection.channel()
        await channel.queue_delete(queue)
        arguments = {"x-queue-type": "stream", "x-max-length-bytes": 1_000_000}
        await channel.declare_queue(queue, durable=True, arguments=arguments)
        try:
            yield
        finally:
            await channel.queue_delete(queue)  # others on the same server would be told of it


@pytest.mark.parametrize("what", ["broker", "store"])
async def test_postgresql_that_answers_before_it_has_written(tmp_path: Path, what: str) -> None:
    running = server("postgresql")
    url = f"{running.url}?schema=doctored_{uuid4().hex[:8]}"
    urls = (url, "") if what == "broker" else ("embedded:events.db", url)
    doctored = Doctored(tmp_path, *urls)
    await doctored.make_stream()
    assert doctored.problems() == ""
    async with _fsync_off(running):
        found = doctored.problems()
    assert "fsync is off" in found
    assert "alter system set fsync = on" in found
    assert doctored.problems() == ""


@asynccontextmanager
async def _fsync_off(running: Server) -> AsyncIterator[None]:
    connection = await asyncpg.connect(running.url)

    async def change(sql: str, wanted: str) -> None:
        await connection.execute(sql)
        await connection.execute("select pg_reload_conf()")
        async with asyncio.timeout(20):
            while await connection.fetchval("show fsync") != wanted:
                await asyncio.sleep(0.01)

    try:
        await change("alter system set fsync = off", "off")
        yield
    finally:
        await change("alter system reset fsync", "on")
        await connection.close()


async def test_sqs_that_moves_events_away_before_they_are_handled(tmp_path: Path) -> None:
    running = server("sns_sqs")
    endpoint = f"http://{running.host}:{running.port}"
    doctored = Doctored(tmp_path, running.url)
    await doctored.make_stream()
    client = botocore.session.get_session().create_client(
        "sqs",
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    prefix = doctored.name
    queues = client.list_queues(QueueNamePrefix=prefix)["QueueUrls"]
    dead = client.create_queue(QueueName=f"{prefix}-dead.fifo", Attributes={"FifoQueue": "true"})[
        "QueueUrl"
    ]
    attributes = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])
    arn = attributes["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 2})
    client.set_queue_attributes(QueueUrl=queues[0], Attributes={"RedrivePolicy": policy})
    assert "has a redrive policy" in doctored.problems()
