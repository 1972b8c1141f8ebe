"""The PostgreSQL broker, held to the suite and to its own traps."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.brokers.postgres import connection, schema
from oyez.brokers.postgres.broker import PostgresBroker
from oyez.brokers.postgres.wire import MAX_BYTES
from oyez.envelope import open_record
from oyez.errors import (
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    InvalidEvent,
)
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Batch, Broker, Finding, Position, Record
from oyez.testing.broker_suite import BrokerSuite, Factory, ServerBrokerSuite
from oyez.testing.proxy import Proxy
from servers import Server, server

DEADLINE = 60.0
NEVER = 3_600.0
SUITE = f"suite_{uuid4().hex[:8]}"
"""The schema that the suites share; dropped at the end."""


@pytest.fixture(scope="module", autouse=True)
def _tidy() -> Iterator[None]:
    yield
    fresh = Fresh(server("postgresql").url)
    asyncio.run(fresh.sql(f"drop schema if exists {SUITE} cascade"))


class TestPostgres(ServerBrokerSuite):
    row = "postgresql"

    @pytest.fixture(autouse=True)
    def _postgresql(self) -> None:
        self.postgresql = server("postgresql")

    def server(self, tmp_path: Path) -> Server:
        return self.postgresql

    def make(self, tmp_path: Path) -> Factory:
        return lambda: _broker(self.postgresql.url, SUITE)

    def url(self, tmp_path: Path) -> str:
        return f"{self.postgresql.url}?schema={SUITE}"

    def proxy(self, tmp_path: Path) -> Proxy:
        return Proxy(self.postgresql.host, self.postgresql.port)

    def make_through(self, tmp_path: Path, proxy: Proxy) -> Factory:
        return lambda: _broker(proxy.through(self.postgresql.url), SUITE, deadline=4)


class TestPostgresToldOnly(BrokerSuite):
    """It never looks by itself here, so that only notifications can wake a reader."""

    def make(self, tmp_path: Path) -> Factory:
        url = server("postgresql").url
        return lambda: _broker(url, SUITE, poll=NEVER)

    def url(self, tmp_path: Path) -> str:
        return f"{server('postgresql').url}?schema={SUITE}"


class TestPostgresPolled(BrokerSuite):
    """The safety net alone: no notification is ever sent or heard."""

    def make(self, tmp_path: Path) -> Factory:
        url = server("postgresql").url
        return lambda: _broker(url, SUITE, listen="poll", poll=0.02)

    def url(self, tmp_path: Path) -> str:
        return f"{server('postgresql').url}?schema={SUITE}&listen=poll"


class TestPgBouncer(BrokerSuite):
    """Each statement may meet another server process; nothing can be listened to."""

    def make(self, tmp_path: Path) -> Factory:
        url = server("pgbouncer").url
        return lambda: _broker(url, SUITE, poll=0.05)

    def url(self, tmp_path: Path) -> str:
        return f"{server('pgbouncer').url}?schema={SUITE}"

    async def test_it_is_recognised(self, tmp_path: Path) -> None:
        async with self._open(tmp_path) as (broker,):
            assert isinstance(broker, PostgresBroker)
            assert broker._server.pooled
            assert not broker._server.can_listen()

    async def test_wrong_credentials_are_refused(self, tmp_path: Path) -> None:
        wrong = urlsplit(server("pgbouncer").url)
        for user in ("oyez", "nobody"):
            there = f"{user}:hush-canary@{wrong.hostname}:{wrong.port}"
            broker = _broker(wrong._replace(netloc=there).geturl(), SUITE)
            with pytest.raises(BrokerRefused, match="check the URL's user") as refused:
                await broker.open()
            await broker.close()
            assert "hush-canary" not in repr(refused.value)

    async def test_listening_may_go_past_it(self, tmp_path: Path) -> None:
        direct = server("postgresql")
        past = _broker(
            server("pgbouncer").url, SUITE, listen=f"{direct.host}:{direct.port}", poll=NEVER
        )
        async with _opened(past), _opened(_broker(direct.url, SUITE)) as other:
            stream = f"past.{uuid4().hex}"
            await other.create(stream, 1)
            reading = asyncio.ensure_future(_first(past, stream))
            await other.publish([_record(stream, "one", 7)])
            assert _numbers(await reading) == [7]


# -- what the server does to us --------------------------------------------------------------------


async def test_wrong_credentials_are_refused_and_not_told(fresh: Fresh) -> None:
    wrong = urlsplit(fresh.url)
    url = wrong._replace(netloc=f"oyez:hush-canary@{wrong.hostname}:{wrong.port}").geturl()
    broker = _broker(url, fresh.schema)
    with pytest.raises(BrokerRefused, match="password") as refused:
        await broker.open()
    await broker.close()
    assert "hush-canary" not in f"{refused.value!r} {refused.value.__cause__!r} {broker!r}"


async def test_a_database_that_is_missing_is_refused(fresh: Fresh) -> None:
    broker = _broker(urlsplit(fresh.url)._replace(path="/nowhere").geturl(), fresh.schema)
    with pytest.raises(BrokerRefused, match=r"nowhere.*create the database"):
        await broker.open()
    await broker.close()


async def test_nobody_answers(unused_tcp_port: int) -> None:
    broker = _broker(f"postgresql://oyez:hush-canary@127.0.0.1:{unused_tcp_port}/oyez", "x")
    with pytest.raises(Exception, match=f"127.0.0.1:{unused_tcp_port}") as unavailable:
        await broker.open()
    await broker.close()
    assert "hush-canary" not in repr(unavailable.value)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("schema=a;b", "schema"),
        ("sslmode=maybe", "sslmode"),
        ("schme=x", "did you mean schema"),
        ("connections=0", "connections"),
        ("listen=nowhere:0", "PORT"),
    ],
)
def test_options_are_read_strictly(option: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        connect(f"postgresql://u:p@h/d?{option}", SystemAmbient(), root=Path())


async def test_an_older_schema_is_upgraded_once_and_keeps_its_records(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fresh.open() as broker:
        await broker.create("s", 1)
        await broker.publish([Record(stream="s", key="k", headers={"id": "1"}, data=b"{}")])
    later = "alter table {schema}.stream add column made text not null default 'before'"
    monkeypatch.setattr(connection, "STEPS", (*schema.STEPS, later))
    brokers = [fresh.broker() for _ in range(4)]
    await asyncio.gather(*(broker.open() for broker in brokers))
    assert await brokers[0].ends("s") == [1]
    await asyncio.gather(*(broker.close() for broker in brokers))
    assert await fresh.value("select version from {schema}.setup") == len(schema.STEPS) + 1
    assert await fresh.value("select made from {schema}.stream") == "before"


async def test_a_newer_schema_is_refused(fresh: Fresh) -> None:
    async with fresh.open():
        await fresh.sql("update {schema}.setup set version = 99")
    broker = fresh.broker()
    with pytest.raises(BrokerRefused, match="upgrade Oyez"):
        await broker.open()
    await broker.close()


async def test_many_who_open_at_once_make_one_schema(fresh: Fresh) -> None:
    brokers = [fresh.broker() for _ in range(6)]
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(broker.open() for broker in brokers))
        await asyncio.gather(*(broker.create("s", 2) for broker in brokers))
    assert await brokers[0].streams() == {"s": 2}
    for broker in brokers:
        await broker.close()


async def test_a_schema_that_is_dropped_is_made_anew(fresh: Fresh) -> None:
    async with fresh.open() as broker:
        await broker.publish([_record("s", "one", n) for n in range(5)])
        (partition,) = {r.partition for r in (await _all(broker, "s"))}
        reading = asyncio.ensure_future(_first(broker, "s", partition, after=5))
        await fresh.sql("drop schema {schema} cascade")
        async with asyncio.timeout(DEADLINE):
            await broker.publish([_record("s", "one", 9)])
            batch = await reading
        assert (_numbers(batch), batch.restarted) == ([9], True)


async def test_order_within_a_partition_is_commit_order(fresh: Fresh) -> None:
    """A publisher that has its number but has not committed holds back those behind it."""
    async with fresh.open(partitions=1) as broker, fresh.connection() as slow:
        await broker.publish([_record("s", "one", 0)])
        reading = asyncio.ensure_future(_take(broker, "s", 3))
        transaction = slow.transaction()
        await transaction.start()
        position = await slow.fetchval(
            f"select \"{fresh.schema}\".publish('s', 'one', '{{\"id\": \"1\"}}', 'x')"
        )
        later = asyncio.ensure_future(broker.publish([_record("s", "one", 2)]))
        other = fresh.broker()
        await other.open()
        assert list(await other.ends("s")) == [position - 1]
        assert not later.done()
        await transaction.commit()
        async with asyncio.timeout(DEADLINE):
            await later
            assert _numbers(Batch(await reading)) == [0, 1, 2]
        await other.close()


async def test_publishers_of_other_partitions_are_not_held_up(fresh: Fresh) -> None:
    async with fresh.open(partitions=2) as broker, fresh.connection() as slow:
        await broker.create("s", 2)
        keys = {partition_of(str(n), 2): str(n) for n in range(20)}
        async with slow.transaction():
            await slow.execute(f"select \"{fresh.schema}\".publish('s', $1, '{{}}', 'x')", keys[0])
            async with asyncio.timeout(DEADLINE / 4):
                await broker.publish([_record("s", keys[1], 1)])


async def test_calls_that_overlap_do_not_deadlock(fresh: Fresh) -> None:
    """Eight connections publish to the same partitions, each in an order of its own."""
    async with fresh.open(partitions=8) as first:
        await first.create("s", 8)
        brokers = [first, *(fresh.broker() for _ in range(7))]
        for broker in brokers[1:]:
            await broker.open()

        async def publish(broker: Broker, seed: int) -> None:
            keys = [str(n) for n in range(64)]
            random.Random(seed).shuffle(keys)
            for turn in range(10):
                await broker.publish([_record("s", key, turn * 8 + seed) for key in keys])

        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(publish(b, n) for n, b in enumerate(brokers)))
        assert len(await _all(first, "s")) == 8 * 10 * 64
        deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
        before = await fresh.value(deadlocks)
        assert before == await fresh.value(deadlocks)
        for broker in brokers[1:]:
            await broker.close()


async def test_calls_that_go_together_fail_alone(fresh: Fresh) -> None:
    async with fresh.open(partitions=1) as broker:
        await broker.publish([_record("s", "one", 0)])
        calls = [
            broker.publish([_record(stream, "one", n)])
            for n, stream in enumerate(("s", "s", "impossible\0name", "s"))
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [
            type(None), type(None), BrokerRefused, type(None)
        ]  # fmt: skip
        assert [int(r.headers["id"]) for r in await _all(broker, "s")] == [0, 0, 1, 3]


async def test_an_old_transaction_does_not_slow_appends(fresh: Fresh) -> None:
    """It keeps every dead version of a row: so an append may not change any."""
    async with fresh.open(partitions=1) as broker, fresh.connection() as old:
        await broker.create("s", 1)
        async with old.transaction(isolation="repeatable_read"):
            await old.fetch("select 1 from pg_class limit 1")
            for number in range(50):
                await broker.publish([_record("s", "one", number)])
        dead = """select sum(n_tup_upd + n_tup_del) from pg_stat_user_tables
          where schemaname = $1 and relname <> 'setup'"""
        async with fresh.connection() as connection:
            assert await connection.fetchval(dead, fresh.schema) == 0


async def test_a_reader_of_a_closed_broker_does_not_spin(fresh: Fresh) -> None:
    broker = fresh.broker(partitions=1)
    await broker.open()
    await broker.publish([_record("s", "one", n) for n in range(300)])
    batches = broker.read("s", 0, BEGINNING)
    await anext(batches)
    await broker.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        await anext(batches)


# -- streams that come and go ----------------------------------------------------------------------


async def test_a_stream_that_is_deleted_and_made_anew(fresh: Fresh) -> None:
    async with fresh.open(partitions=1) as broker:
        await broker.publish([_record("s", "one", n) for n in range(5)])
        reading = asyncio.ensure_future(_first(broker, "s", after=5))
        await fresh.sql("select {schema}.forget_stream('s')")
        await broker.publish([_record("s", "one", 9)])  # with what it knew of the stream before
        async with asyncio.timeout(DEADLINE):
            batch = await reading
            again = await _first(broker, "s", after=5)
        assert (_numbers(batch), batch.restarted, batch.missed) == ([9], True, 0)
        assert (_numbers(again), again.restarted) == ([9], True)
        assert await fresh.value("select count(*) from {schema}.record") == 1


async def test_a_backup_that_is_restored_is_read_from_the_beginning(fresh: Fresh) -> None:
    async with fresh.open(partitions=1) as broker:
        await broker.publish([_record("s", "one", n) for n in range(5)])
        reading = asyncio.ensure_future(_first(broker, "s", after=5))
        await asyncio.sleep(0)
        await fresh.sql("delete from {schema}.record where position > 2")
        async with asyncio.timeout(DEADLINE):
            batch = await reading
        assert (_numbers(batch), batch.restarted, batch.missed) == ([0, 1], True, 0)


async def test_another_process_that_is_ahead_is_no_restart(fresh: Fresh) -> None:
    """A position beyond what this process has seen is asked about, never taken for a restart."""
    async with fresh.open(partitions=1, poll=NEVER, listen="poll") as broker:
        await broker.create("s", 1)
        async with fresh.open(partitions=1) as other:
            await other.publish([_record("s", "one", n) for n in range(5)])
        batch = await _first(broker, "s", after=4)
        assert (_numbers(batch), batch.restarted, batch.missed) == ([4], False, 0)


# -- retention -------------------------------------------------------------------------------------


async def test_retention_counts_what_is_missed(fresh: Fresh) -> None:
    async with fresh.open(partitions=1, retention=100.0) as broker:
        await broker.publish([_record("s", "one", n) for n in range(5)])
        await fresh.sql("update {schema}.record set time = time - 200 where position <= 3")
        await broker._delete_old()
        assert list(await broker.starts("s")) == [3]
        batch = await _first(broker, "s")
        assert (_numbers(batch), batch.missed) == ([3, 4], 3)
        assert (await _first(broker, "s", after=2)).missed == 1
        assert (await _first(broker, "s", after=4)).missed == 0
        await fresh.sql("update {schema}.record set time = time - 200")
        await broker._delete_old()
        assert list(await broker.starts("s")) == list(await broker.ends("s")) == [5]
        reading = asyncio.ensure_future(_first(broker, "s"))
        await broker.publish([_record("s", "one", 5)])
        async with asyncio.timeout(DEADLINE):
            batch = await reading
        assert (_numbers(batch), batch.missed) == ([5], 5)


async def test_retention_deletes_a_long_backlog_in_parts(fresh: Fresh) -> None:
    async with fresh.open(partitions=2, retention=100.0) as broker:
        for start in range(0, 5_000, 1_000):
            await broker.publish([_record("s", str(n), n) for n in range(start, start + 1_000)])
        await fresh.sql("update {schema}.record set time = time - 200")
        await broker._delete_old()
        assert await fresh.value("select count(*) from {schema}.record") == 0
        assert list(await broker.starts("s")) == list(await broker.ends("s"))


async def test_one_process_at_a_time_keeps_house(fresh: Fresh) -> None:
    options = {"retention": 100.0, "housekeeping": 0.2}
    async with fresh.open(**options) as one, fresh.open(**options):
        await one.publish([_record("s", "one", n) for n in range(5)])
        await fresh.sql("update {schema}.record set time = time - 200")
        async with asyncio.timeout(DEADLINE):
            while await fresh.value("select count(*) from {schema}.record"):
                await asyncio.sleep(0.02)


# -- interop ---------------------------------------------------------------------------------------


async def test_any_client_publishes_with_one_function(fresh: Fresh) -> None:
    """Binary, structured, tombstone, junk: each arrives as it was, where Oyez would put it."""
    binary = {"specversion": "1.0", "id": "1", "source": "php", "type": "a.b", "subject": "Jörg"}
    structured = json.dumps({**binary, "data": {"a": 1}})
    kind = {"content-type": "application/cloudevents+json; charset=utf-8"}
    sent = [
        ("Jörg 🚚", binary, b'{"a":1}'),
        ("k", kind, structured.encode()),
        ("k", binary, None),
        ("", {}, b"\xff\x00"),
        (None, {"id": "x", "n": 1, "nothing": None, "deep": {"a": []}}, b""),
    ]
    async with fresh.open(partitions=4) as broker, fresh.connection() as client:
        await client.execute(f"select \"{fresh.schema}\".make_stream('s', 4)")
        for key, headers, data in sent:
            sql = f'select "{fresh.schema}".publish($1, $2, $3, $4)'
            await client.fetchval(sql, "s", key, json.dumps(headers), data)
        async with asyncio.timeout(DEADLINE):
            while (await broker.streams()).get("s") is None:
                await asyncio.sleep(0.01)
        found = await _all(broker, "s")
        by_key = {key: [r for r in found if r.key == key] for key in ("Jörg 🚚", "k", "", None)}
        for key in ("Jörg 🚚", "k", ""):
            assert {r.partition for r in by_key[key]} == {partition_of(key, 4)}
        assert open_record(by_key["Jörg 🚚"][0].headers, b'{"a":1}').subject == "Jörg"
        opened = open_record(by_key["k"][0].headers, by_key["k"][0].data)
        assert (opened.id, json.loads(opened.data)) == ("1", {"a": 1})
        assert by_key["k"][1].data is None
        assert (by_key[""][0].headers, by_key[""][0].data) == ({}, b"\xff\x00")
        assert by_key[None][0].headers == {"id": "x", "n": "1", "deep": '{"a": []}'}
        with pytest.raises(InvalidEvent):
            open_record(by_key[""][0].headers, by_key[""][0].data)


async def test_murmur2_is_the_same_in_sql(fresh: Fresh) -> None:
    keys = ["", "a", "ab", "abc", "abcd", "order-12345", "北京", "🚚" * 30, "x" * 1000]
    keys += [random.Random(n).randbytes(n % 23).hex() for n in range(200)]
    async with fresh.open():
        sql = f"""select key, ("{fresh.schema}".murmur2(convert_to(key, 'UTF8')) & 2147483647) % 7
          from unnest($1::text[]) key"""
        async with fresh.connection() as client:
            found = dict(await client.fetch(sql, keys))
    assert found == {key: partition_of(key, 7) for key in keys}


async def test_rows_that_are_no_text_are_delivered(fresh: Fresh) -> None:
    rows = [
        (b"\xff\xfe", b'{"id":"1"}'),
        (None, b"\xff junk"),
        (b"a\x00b", b"[1, 2]"),
        (b"k", b'{"id":"caf\xe9"}'),
        (b"k", b'{"id":"\\ud800"}'),
        (b"k", b""),
    ]
    async with fresh.open(partitions=1) as broker, fresh.connection() as client:
        await broker.create("s", 1)
        place = await client.fetchval(f'select id from "{fresh.schema}".partition')
        for key, headers in rows:
            await client.fetch(
                f'select "{fresh.schema}".append($1, $2, $3, $4, $5, $6)',
                [place], [1], [1], [key], [headers], [b"data"],
            )  # fmt: skip
        found = await _all(broker, "s")
        assert [r.data for r in found] == [b"data"] * len(rows)
        assert [r.key for r in found] == ["\udcff\udcfe", None, "a\x00b", "k", "k", "k"]
        assert found[0].headers == {"id": "1"}
        assert found[3].headers == {"id": "caf\udce9"}
        await broker.publish(found)  # what was read can be published again, as it was
        again = await _all(broker, "s")
        assert [r.key for r in again[6:]] == [r.key for r in found]
        assert [r.headers for r in again[6:]] == [r.headers for r in found]


async def test_progress_is_shown(fresh: Fresh) -> None:
    async with fresh.open(partitions=1) as broker:
        await broker.publish([_record("s", "one", n) for n in range(5)])
        broker.handled("s", 0, 2)
        broker.handled("s", 0, 4)
        broker.handled("gone", 0, 4)
    shown = "select consumer || ':' || position from {schema}.progress"
    assert await fresh.value(shown) == "shop.orders:4"


# -- size ------------------------------------------------------------------------------------------


async def test_a_record_that_is_too_large_is_refused_before_anything_is_sent(
    fresh: Fresh,
) -> None:
    async with fresh.open(partitions=1) as broker:
        await broker.create("s", 1)
        large = Record(stream="s", key="one", headers={"id": "2"}, data=bytes(MAX_BYTES - 2))
        with pytest.raises(BrokerRefused, match=f"{MAX_BYTES}.*system.claim_check"):
            await broker.publish([_record("s", "one", 1), large])
        assert list(await broker.ends("s")) == [BEGINNING]
        fits = Record(stream="s", key=None, headers={}, data=bytes(MAX_BYTES))
        await broker.publish([fits, _record("s", "one", 1)])
        (first, second) = await _all(broker, "s")
        assert len(first.data or b"") == MAX_BYTES
        assert second.headers["id"] == "1"


async def test_batches_are_bounded_in_bytes(fresh: Fresh) -> None:
    async with fresh.open(partitions=1, batch_bytes=100_000) as broker:
        await broker.publish(
            [Record(stream="s", key="k", headers={"id": str(n)}, data=bytes(30_000))
             for n in range(40)]
        )  # fmt: skip
        batches = broker.read("s", 0, BEGINNING)
        sizes: list[int] = []
        while sum(sizes) < 40:
            sizes.append(len((await anext(batches)).records))
        await batches.aclose()  # type: ignore[attr-defined]
        assert max(sizes) == 4


async def test_many_readers_share_a_few_connections(fresh: Fresh) -> None:
    async with fresh.open(partitions=8, connections=3) as broker:
        streams = [f"s{n}" for n in range(5)]
        for stream in streams:
            await broker.create(stream, 8)
        reading = [
            asyncio.ensure_future(_first(broker, stream, partition))
            for stream in streams
            for partition in range(8)
        ]
        keys = {partition_of(str(n), 8): str(n) for n in range(99)}
        await broker.publish([_record(s, keys[p], p) for s in streams for p in range(8)])
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*reading)
        mine = "select count(*) from pg_stat_activity where application_name = 'fresh'"
        assert await fresh.value(mine) <= 3 + 1


# -- inspection ------------------------------------------------------------------------------------


async def test_a_sound_server_is_found_sound(fresh: Fresh) -> None:
    async with fresh.open() as broker:
        assert broker.capabilities.durability == "power-loss"
        assert [f.what for f in await broker.inspect() if f.grave] == []


async def test_commits_are_durable_although_the_role_says_otherwise(fresh: Fresh) -> None:
    await fresh.sql("alter role current_user set synchronous_commit = off")
    try:
        async with fresh.open() as broker:
            assert broker.capabilities.durability == "power-loss"
            (found,) = _about(await broker.inspect(), "synchronous_commit")
            assert not found.grave
            async with broker._server.connection() as connection:
                assert await connection.fetchval("show synchronous_commit") == "on"
    finally:
        await fresh.sql("alter role current_user reset synchronous_commit")


async def test_unlogged_tables_are_found(fresh: Fresh) -> None:
    async with fresh.open() as broker:
        await fresh.sql("alter table {schema}.record set unlogged")
        (found,) = _about(await broker.inspect(), "unlogged")
        assert found.grave
        assert "set logged" in found.remedy


async def test_a_forgotten_transaction_is_found(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oyez.postgresql.inspection.IDLE", 0.05)
    async with fresh.open() as broker, fresh.connection() as idle:
        await idle.execute("begin")
        async with asyncio.timeout(DEADLINE):
            while not _about(await broker.inspect(), "idle"):
                await asyncio.sleep(0.02)


def _about(findings: object, word: str) -> list[Finding]:
    assert isinstance(findings, list)
    return [found for found in findings if word in found.what]


# -- for the tests above ---------------------------------------------------------------------------


class Fresh:
    """A schema of one test's own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.schema = f"fresh_{uuid4().hex[:12]}"

    def broker(self, **options: object) -> PostgresBroker:
        return _broker(self.url, self.schema, application_name="fresh", **options)

    @asynccontextmanager
    async def open(self, **options: object) -> AsyncIterator[PostgresBroker]:
        async with _opened(self.broker(**options)) as broker:
            yield broker

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        connection = await asyncpg.connect(self.url)
        try:
            yield connection
        finally:
            await connection.close()

    async def sql(self, text: str) -> None:
        async with self.connection() as connection:
            await connection.execute(text.format(schema=f'"{self.schema}"'))

    async def value(self, text: str) -> object:
        async with self.connection() as connection:
            return await connection.fetchval(text.format(schema=f'"{self.schema}"'))


@pytest.fixture
async def fresh() -> AsyncIterator[Fresh]:
    found = Fresh(server("postgresql").url)
    yield found
    with suppress(asyncpg.PostgresError):
        await found.sql("drop schema {schema} cascade")


def _broker(url: str, schema: str, **options: object) -> PostgresBroker:
    given = "&".join(f"{name}={value}" for name, value in options.items() if name not in _GIVEN)
    found = connect(
        f"{url}?schema={schema}&{given}",
        SystemAmbient(),
        root=Path(),
        group="shop.orders",
        **{name: options[name] for name in _GIVEN & options.keys()},  # type: ignore[arg-type]
    )
    assert isinstance(found, PostgresBroker)
    return found


_GIVEN = {"partitions", "retention"}


@asynccontextmanager
async def _opened(broker: PostgresBroker) -> AsyncIterator[PostgresBroker]:
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


def _record(stream: str, key: str | None, number: int) -> Record:
    return Record(stream=stream, key=key, headers={"id": str(number)}, data=b"x")


def _numbers(batch: Batch) -> list[int]:
    return [int(record.headers["id"]) for record in batch.records]


async def _first(
    broker: Broker, stream: str, partition: int = 0, after: Position = BEGINNING
) -> Batch:
    batches = broker.read(stream, partition, after)
    async with asyncio.timeout(DEADLINE):
        batch = await anext(batches)
    await batches.aclose()  # type: ignore[attr-defined]
    return batch


async def _take(broker: Broker, stream: str, count: int) -> list[Record]:
    records: list[Record] = []
    batches = broker.read(stream, 0, BEGINNING)
    async with asyncio.timeout(DEADLINE):
        while len(records) < count:
            records += (await anext(batches)).records
    await batches.aclose()  # type: ignore[attr-defined]
    return records


async def _all(broker: Broker, stream: str) -> list[Record]:
    records: list[Record] = []
    for partition, end in enumerate(await broker.ends(stream)):
        position = BEGINNING
        batches = broker.read(stream, partition, BEGINNING)
        while position < end:
            async with asyncio.timeout(DEADLINE):
                batch = await anext(batches)
            records += batch.records
            position = batch.records[-1].position
        await batches.aclose()  # type: ignore[attr-defined]
    return records
