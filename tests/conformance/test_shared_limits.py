"""Limits that replicas of the gateway hold together, by a real Redis and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import pytest
from redis.asyncio import Redis
from test_gateway import KEY, broken, refused, serving

from oyez.ambient import SystemAmbient
from oyez.config import Config, load
from oyez.gateway.limits.buckets import SECOND
from oyez.gateway.limits.postgresql import PostgresStore
from oyez.gateway.limits.redis import RedisStore
from oyez.gateway.limits.store import Ask, Store
from oyez.observe.metrics import Metrics
from servers import Server, server

HOUR = 3600 * SECOND
BY_KEY = {"x-api-key": KEY}
ASK = b"GET /open HTTP/1.1\r\nHost: x\r\n\r\n"


class Kind(NamedTuple):
    """One kind of store, with the server that it is on."""

    server: Server
    url: str
    make: Callable[[str], Store]
    now: Callable[[], Awaitable[float]]
    """The time of the server, in seconds."""


@pytest.fixture(params=["redis", "postgresql"])
async def kind(request: pytest.FixtureRequest) -> AsyncIterator[Kind]:
    found = server(request.param)
    if request.param == "redis":
        redis = Redis.from_url(found.url)

        async def told() -> float:
            seconds, micros = await redis.time()
            return float(seconds + micros / 1e6)

        yield Kind(found, found.url, RedisStore, told)
        await redis.aclose()
        return
    schema = f"test_{uuid4().hex[:12]}"
    connection = await asyncpg.connect(found.url)

    async def asked() -> float:
        return float(await connection.fetchval("select extract(epoch from clock_timestamp())"))

    url = f"{found.url}?schema={schema}"
    yield Kind(found, url, lambda url: PostgresStore(url, SystemAmbient()), asked)
    await connection.execute(f"drop schema if exists {schema} cascade")
    await connection.close()


@pytest.fixture
async def store(kind: Kind) -> AsyncIterator[Store]:
    made = kind.make(kind.url)
    await made.open()
    yield made
    await made.close()
    await made.close()


def name() -> str:
    return f"l{uuid4().hex[:12]}"


# The stores


async def test_a_bucket_gives_what_it_has(store: Store) -> None:
    one, other = name(), name()
    got = [await store.take([Ask(one, HOUR, 5, want)]) for want in (3, 3, 1)]
    assert [grant.tokens for (grant,) in got] == [3, 2, 0]
    for (grant,), full in zip(got, (3, 5, 5), strict=True):
        assert full * HOUR - 60 * SECOND < grant.ahead <= full * HOUR
    both = await store.take([Ask(other, HOUR, 2, 9), Ask(one, HOUR, 5, 1)])
    assert [grant.tokens for grant in both] == [2, 0]


async def test_a_bucket_is_filled_by_the_time_of_the_server(store: Store, kind: Kind) -> None:
    bucket, every, size = name(), SECOND // 50, 10
    began = await kind.now()
    taken = 0
    async with asyncio.timeout(30):
        while taken < 60:
            (grant,) = await store.take([Ask(bucket, every, size, 3)])
            taken += grant.tokens
            spent = await kind.now() - began
            assert taken <= size + spent * 50 + 0.01
    async with asyncio.timeout(30):
        while (await store.take([Ask(bucket, every, size, 0)]))[0].ahead:
            await asyncio.sleep(0.01)
    assert (await store.take([Ask(bucket, every, size, 2 * size)]))[0].tokens == size


async def test_many_at_once_from_many_replicas_get_no_more_than_there_is(kind: Kind) -> None:
    """In any order of buckets: none waits for another that waits for it."""
    buckets = [name() for _ in range(5)]
    stores = [kind.make(kind.url) for _ in range(4)]
    await asyncio.gather(*(each.open() for each in stores))

    async def take(store: Store, turn: int) -> Counter[str]:
        got: Counter[str] = Counter()
        for number in range(20):
            order = buckets[(turn + number) % 5 :] + buckets[: (turn + number) % 5]
            asks = [Ask(bucket, HOUR, 100, 3) for bucket in order]
            for ask, grant in zip(asks, await store.take(asks), strict=True):
                got[ask.bucket] += grant.tokens
        return got

    try:
        got = await asyncio.gather(*(take(each, turn) for turn, each in enumerate(stores)))
    finally:
        for each in stores:
            await each.close()
    assert sum(got, Counter()) == dict.fromkeys(buckets, 100)


async def test_full_buckets_are_forgotten(store: Store, kind: Kind) -> None:
    bucket = name()
    await store.take([Ask(bucket, 1000, 5, 5), Ask(f"{bucket}-kept", HOUR, 5, 5)])

    async def kept() -> set[str]:
        if isinstance(store, RedisStore):
            async with Redis.from_url(kind.url, decode_responses=True) as redis:
                found = await redis.keys(f"oyez:gateway:limits:{bucket}*")
            return {each.rpartition(":")[2] for each in found}
        url, _, schema = kind.url.partition("?schema=")
        connection = await asyncpg.connect(url)
        rows = await connection.fetch(f'select bucket from "{schema}".oyez_gateway_limits')
        await connection.close()
        return {row["bucket"] for row in rows}

    async with asyncio.timeout(30):
        while await kept() != {f"{bucket}-kept"}:
            await store.sweep()


# Gateways


def settings(folder: Path, port: int, url: str, limits: dict[str, str]) -> Config:
    tables = "".join(f"[gateway.limits.{name}]\n{table}\n" for name, table in limits.items())
    folder.mkdir(exist_ok=True)
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    (folder / "keys.toml").write_text(f'[keys.ci]\nsha256 = "{digest}"\n')
    (folder / "keys.toml").chmod(0o600)
    (folder / "oyez.toml").write_text(
        f"""
        [system]
        name = "shop"
        log = "json"
        [services.orders]
        app = "a:b"
        http = "127.0.0.1:{port}"
        [gateway]
        listen = "127.0.0.1:0"
        store = "{url}"
        access_log = 0
        keys = "keys.toml"
        {tables}
        [[gateway.routes]]
        path = "/open"
        service = "orders"
        access = "public"
        limits = {list(limits)}
        """
    )
    return load(folder / "oyez.toml", {})


async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    writer.close()


class Load:
    """Clients that ask as fast as they are answered, and count the answers by status."""

    def __init__(self) -> None:
        self.answers: Counter[int] = Counter()
        self.stopped = False
        self._clients: list[asyncio.Task[None]] = []

    def on(self, host: str, port: int, clients: int = 4) -> None:
        for _ in range(clients):
            self._clients.append(asyncio.create_task(self._ask(host, port)))

    async def stop(self) -> None:
        self.stopped = True
        await asyncio.gather(*self._clients)

    async def _ask(self, host: str, port: int) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            reader, writer = await asyncio.open_connection(host, port)
            while not self.stopped:
                writer.write(ASK)
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: (\d+)", head)
                assert length, head
                await reader.readexactly(int(length[1]))
                self.answers[int(head[9:12])] += 1
            writer.close()


@contextlib.asynccontextmanager
async def gateway_process(
    config: Config,
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, int]]:
    """A gateway in a process of its own, which can be killed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "oyez", "gateway"),
        cwd=config.root,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while line := json.loads(await process.stderr.readline()):
                if line["event"] == "started":
                    break
        host, _, port = line["http"].rpartition(":")
        yield process, host, int(port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_two_replicas_hold_one_limit_and_one_of_them_is_killed(
    tmp_path: Path, kind: Kind
) -> None:
    """All that passes in several seconds, by the clock of the store, is within 5 % of the limit."""
    rate = burst = 200
    table = f'rate = "{rate}/s"\nburst = {burst}\nby = "route"'
    limit = name()
    async with broken(answering) as port:
        one = settings(tmp_path / "one", port, kind.url, {limit: table})
        other = settings(tmp_path / "other", port, kind.url, {limit: table})
        async with serving(one) as first, gateway_process(other) as (process, host, at):
            load = Load()
            began = await kind.now()
            load.on(first.address.host, first.address.port)
            load.on(host, at)
            async with asyncio.timeout(60):
                while await kind.now() < began + 2.5:
                    await asyncio.sleep(0.05)
                process.kill()
                await process.wait()
                while await kind.now() < began + 5:
                    await asyncio.sleep(0.05)
            await load.stop()
            ended = await kind.now()
    allowed = burst + rate * (ended - began)
    print(f"{kind.server.name}: {load.answers[200]} of {allowed:.0f} passed, {load.answers}")
    assert set(load.answers) == {200, 429}
    assert load.answers[429] > 2 * load.answers[200]
    assert 0.95 * allowed <= load.answers[200] <= allowed


async def test_limits_of_one_request_are_held_together(tmp_path: Path, kind: Kind) -> None:
    """What one of them refuses takes nothing of another."""
    few, some = name(), name()
    async with broken(answering) as port:
        limits = {some: 'rate = "4/h"', few: 'rate = "2/h"'}
        async with serving(settings(tmp_path, port, kind.url, limits)) as client:
            answers = [await client.get("/open") for _ in range(6)]
    assert [each.status_code for each in answers] == [200, 200, 429, 429, 429, 429]
    for answer, left in zip(answers, ((3, 1), (2, 0), *[(2, 0)] * 4), strict=True):
        found = re.findall(r'"(\w+)";r=(\d+)', answer.headers["ratelimit"])
        assert found == [(some, f"{left[0]}"), (few, f"{left[1]}")]


async def test_a_replica_counts_alone_while_the_store_is_away(
    tmp_path: Path, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, limit = Metrics("gateway", service="gateway"), name()

    async def alone() -> bool:
        return b'oyez_gateway_limits_alone{service="gateway"} 1.0' in (await metrics.render())[0]

    async with broken(answering) as port, kind.server.proxy() as proxy:
        url = proxy.through(kind.url)
        config = settings(tmp_path, port, url, {limit: 'rate = "2/h"'})
        async with serving(config, observer=metrics) as client:
            assert [(await client.get("/open")).status_code for _ in range(3)] == [200, 200, 429]
            assert not await alone()
            proxy.cut()
            # What is known to be empty needs no store; what is not is counted here from now on.
            refused(await client.get("/open"), 429, "rate_limited")
            by_key = [(await client.get("/open", headers=BY_KEY)).status_code for _ in range(3)]
            assert by_key == [200, 200, 429]
            assert await alone()
            assert [(await client.get("/open")).status_code for _ in range(3)] == [200, 200, 429]
            proxy.restore()
            async with asyncio.timeout(30):
                while await alone():
                    await asyncio.sleep(0.05)
            answer = refused(await client.get("/open"), 429, "rate_limited")
            assert int(answer.headers["retry-after"]) > 1700
    said = capsys.readouterr().err
    assert said.count("limits are counted by each replica alone") == 1
    assert said.count("limits are shared again") == 1


async def test_a_gateway_starts_without_its_store(tmp_path: Path) -> None:
    for url in ("redis://:canary@127.0.0.1:1", "postgresql://u:canary@127.0.0.1:1/x"):
        async with broken(answering) as port:
            config = settings(tmp_path, port, url, {"few": 'rate = "2/h"'})
            async with serving(config) as client:
                found = [(await client.get("/open")).status_code for _ in range(3)]
                assert found == [200, 200, 429]
