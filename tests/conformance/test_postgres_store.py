"""The PostgreSQL store is certified by the suite that third parties use, and proves its own ways.

Each test has a schema of its own. The suite runs on the server, and through PgBouncer (in
transaction mode) with an address past it to listen at.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest
from shop import copy_shop

from oyez import tables
from oyez.ambient import SystemAmbient
from oyez.errors import (
    ConfigurationError,
    ConstraintViolated,
    Fenced,
    StoreError,
    StoreOutdated,
    StoreRefused,
    StoreUnavailable,
    TransactionExpired,
)
from oyez.ports import Announcement, Changes, Claim, Row, Store, Writes
from oyez.stores import connect
from oyez.stores.postgres import changes
from oyez.stores.postgres import schema as schemas
from oyez.stores.postgres import store as postgres
from oyez.stores.postgres.lease import RETURN, presence_of
from oyez.stores.postgres.statements import numbered
from oyez.stores.postgres.store import PostgresStore
from oyez.testing.delivery_suite import StoreServerSuite
from oyez.testing.store_suite import Factory, StoreSuite
from servers import Server, server

DEADLINE = 60.0
"""Seconds that a test waits, at most, for what must come."""


class TestPostgres(StoreSuite):
    binary = "bytea"
    big = "bigint"

    @pytest.fixture(autouse=True)
    def _schema(self, database: Database) -> None:
        self.database = database

    def make(self, tmp_path: Path) -> Factory:
        return lambda: connect(self.url(tmp_path), SystemAmbient(), root=tmp_path)

    def url(self, tmp_path: Path) -> str:
        return self.database.url()


class TestPgBouncer(TestPostgres):
    def url(self, tmp_path: Path) -> str:
        return self.database.url(server("pgbouncer").url, listen=self.database.address)


class Database:
    """A schema of one test's own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.schema = f"test_{uuid4().hex[:12]}"
        self.address = f"{server.host}:{server.port}"

    def url(self, url: str = "", **options: object) -> str:
        given = "".join(f"&{name}={value}" for name, value in options.items())
        return f"{url or self.server.url}?schema={self.schema}{given}"

    def store(self, url: str = "", **options: object) -> PostgresStore:
        store = connect(self.url(url, **options), SystemAmbient(), root=Path())
        assert isinstance(store, PostgresStore)
        return store

    @asynccontextmanager
    async def opened(self, url: str = "", **options: object) -> AsyncIterator[PostgresStore]:
        store = self.store(url, **options)
        try:
            await store.open()
            yield store
        finally:
            await store.close()

    @asynccontextmanager
    async def connection(self, **options: Any) -> AsyncIterator[Any]:
        connection = await asyncpg.connect(self.server.url, **options)
        try:
            await connection.execute(f"set search_path = {self.schema}")
            yield connection
        finally:
            await connection.close()


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    found = Database(server("postgresql"))
    yield found
    async with found.connection() as connection:
        await connection.execute(f"drop schema if exists {found.schema} cascade")


@pytest.fixture
async def store(database: Database) -> AsyncIterator[PostgresStore]:
    async with database.opened() as store:
        await store.migrate(
            [
                (
                    "001.sql",
                    "create table item (id integer primary key, n bigint, t text, f float8, "
                    "b boolean, d numeric, at timestamptz); insert into item values (1, 0)",
                )
            ]
        )
        yield store


async def until(condition: Callable[[], Awaitable[bool]], deadline: float = DEADLINE) -> float:
    """Seconds that it took."""
    begun = time.monotonic()
    while not await condition():
        assert time.monotonic() < begun + deadline
        await asyncio.sleep(0.02)
    return time.monotonic() - begun


def shown(error: BaseException) -> str:
    """As a log or a dead letter shows it, with everything that led to it."""
    return "".join(traceback.format_exception(error))


async def change(store: Store, sql: str, **parameters: Any) -> None:
    await store.begin().commit(Changes(writes=[(sql, [parameters])]))


# -- SQL -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "text", "names"),
    [
        ("select :a, :b, :a", "select $1, $2, $1", ("a", "b")),
        ("select ':a', \":b\", 'it''s :c', :d", "select ':a', \":b\", 'it''s :c', $1", ("d",)),
        ("select :a::text, x::int", "select $1::text, x::int", ("a",)),
        ("select 1 -- :a\n, :b /* :c\n */", "select 1 -- :a\n, $1 /* :c\n */", ("b",)),
        (r"select e'\':a', :b, like':c'", r"select e'\':a', $1, like':c'", ("b",)),
        ("do $$ :a $$; $x$ $$ :b $x$ :c", "do $$ :a $$; $x$ $$ :b $x$ $1", ("c",)),
        ("f(a := :a)[1:2] :_b1", "f(a := $1)[1:2] $2", ("a", "_b1")),
        ("select a$b, :c, d$e", "select a$b, $1, d$e", ("c",)),
    ],
)
def test_parameters_are_numbered(sql: str, text: str, names: tuple[str, ...]) -> None:
    assert numbered(sql) == (text, names, sql)


async def test_python_values_fit_or_are_refused_by_name(store: PostgresStore) -> None:
    moment = datetime.now(UTC)
    await change(
        store,
        "update item set n = :n, f = :f, b = :b, d = :d, at = :at where id = :id",
        n=True, f=2, b=False, d=Decimal("1.10"), at=moment, id=1.0,
    )  # fmt: skip
    (row,) = await store.fetch("select n, f, b, d, at from item", {})
    assert row == {"n": 1, "f": 2.0, "b": False, "d": Decimal("1.10"), "at": moment}
    secret = "s3cr3t-canary"
    for column, value, kinds in [
        ("n", 1.5, "float and does not fit int8"),
        ("n", secret, "str and does not fit int8"),
        ("n", 2**63, "int and does not fit int8"),
        ("t", 5, "int and does not fit text"),
        ("t", moment, "datetime and does not fit text"),
        ("b", 1, "int and does not fit bool"),
        ("at", secret, "str and does not fit timestamptz"),
    ]:
        sql = f"update item set {column} = :value where id = :id"
        for rows in (
            [{"value": value, "id": 1}],
            [{"value": None, "id": 1}, {"value": value, "id": 1}],
        ):
            with pytest.raises(StoreRefused) as failure:
                await store.begin().commit(Changes(writes=[(sql, rows)]))
            told = str(failure.value)
            assert told.startswith(
                f":value is {kinds} in the statement update item set {column} = :value"
            ), told
            assert secret not in shown(failure.value)
    with pytest.raises(StoreRefused, match=":id has no value"):
        await change(store, "update item set n = 1 where id = :id")


async def test_errors_tell_what_is_wrong_and_no_values(store: PostgresStore) -> None:
    secret = "s3cr3t-canary"
    await change(store, "create unique index on item (t)")
    await change(store, "update item set t = :t", t=secret)
    for sql, kind, told in [
        ("insert into item (id, t) values (2, :t)", ConstraintViolated, "item_t_idx"),
        ("insert into nowhere values (:t)", StoreRefused, '"nowhere" does not exist'),
        ("update item set n = cast(cast(:t as text) as int)", StoreRefused, "invalid input syntax"),
        ("updat item set t = :t", StoreRefused, "syntax error"),
        ("update item set n = 1 / 0 where t = :t", StoreRefused, "division by zero"),
        ("update item set t = :t || chr(0)", StoreRefused, "null character"),
    ]:
        with pytest.raises(kind) as failure:
            await change(store, sql, t=secret)
        assert told in str(failure.value)
        assert secret not in shown(failure.value)
    password = "canary-password"
    unreachable = f"postgresql://oyez:{password}@127.0.0.1:1/x"
    with pytest.raises(StoreUnavailable) as failure:
        await connect(unreachable, SystemAmbient(), root=Path()).open()
    assert password not in shown(failure.value)


async def test_a_text_with_nul_is_still_a_dead_letter(store: PostgresStore) -> None:
    """A poison event must not poison its own burial."""
    from oyez.testing.store_suite.database import make_letter

    letter = make_letter("1")
    letter.reason, letter.key = "a\0b", "\0"
    await store.begin().commit(Changes(dead=[letter]))
    (row,) = await store.fetch("select reason, key from oyez_dead", {})
    assert row == {"reason": "a\ufffdb", "key": "\ufffd"}


# -- transactions ----------------------------------------------------------------------------------


async def test_deadlocks_between_commits_never_surface(database: Database) -> None:
    """Rows in opposite orders, from two replicas: each commit has its effect, once."""
    async with database.opened() as one, database.opened() as two:
        await one.migrate([("001.sql", "create table t (id integer primary key, n integer)")])
        rows = [{"id": n} for n in range(40)]
        await one.begin().commit(Changes(writes=[("insert into t values (:id, 0)", rows)]))

        async def add(store: Store, order: list[dict[str, int]]) -> None:
            writes = [("update t set n = n + 1 where id = :id", [row]) for row in order]
            await store.begin().commit(Changes(writes=list(writes)))

        async with asyncio.timeout(60):
            await asyncio.gather(
                *(add(one, rows) for _ in range(6)), *(add(two, rows[::-1]) for _ in range(6))
            )
        assert await one.fetch("select distinct n from t", {}) == [{"n": 12}]


async def test_read_committed_locks_nothing_but_what_it_asks_for(database: Database) -> None:
    async with database.opened(isolation="read-committed") as store:
        await store.migrate([("001.sql", "create table t (id integer primary key, n integer)")])
        await change(store, "insert into t values (1, 0), (2, 0)")
        first, second = store.begin(), store.begin()
        lock = "select n from t where id = :id for update"
        async with asyncio.timeout(DEADLINE):
            await first.fetch(lock, {"id": 1}, [])
            await second.fetch(lock, {"id": 2}, [])
            waiting = asyncio.ensure_future(second.fetch(lock, {"id": 1}, []))
            await first.commit(Changes(writes=[("update t set n = 5 where id = 1", [{}])]))
            assert await waiting == [{"n": 5}]
            await second.rollback()


async def test_a_transaction_that_is_held_too_long_expires(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever waits for it goes on."""
    monkeypatch.setattr(postgres, "HOLD", 0.3)
    held = store.begin()
    await held.fetch("select n from item for update", {}, [])
    async with asyncio.timeout(DEADLINE):
        await change(store, "update item set n = 7")
    with pytest.raises(TransactionExpired):
        await held.fetch("select 1", {}, [])
    with pytest.raises(TransactionExpired):
        await held.commit(Changes(writes=[("update item set n = 8", [{}])]))
    await held.rollback()
    assert await store.fetch("select n from item", {}) == [{"n": 7}]


async def test_what_was_cancelled_ends_at_the_server_too(
    store: PostgresStore, database: Database
) -> None:
    tx = store.begin()
    sleeping = asyncio.ensure_future(tx.fetch("select pg_sleep(300)", {}, []))

    async def runs() -> bool:
        sql = "select 1 from pg_stat_activity where query like 'select pg_sleep(300)%'"
        sql += " and state = 'active'"
        return bool(await store.fetch(sql, {}))

    await until(runs)
    sleeping.cancel()
    async with asyncio.timeout(5.0):
        await change(store, "update item set n = 1")
    assert not await runs()


async def test_connections_are_bounded_and_waiting_for_one_ends(database: Database) -> None:
    async with database.opened(connections=3, deadline=0.5, isolation="read-committed") as store:
        held = [store.begin() for _ in range(2)]
        for tx in held:
            await tx.fetch("select 1 as one", {}, [])
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.5 s"):
            await store.begin().fetch("select 1 as one", {}, [])
        assert await store.fetch("select 1 as one", {}) == [{"one": 1}]
        await held[0].rollback()
        assert await store.begin().fetch("select 1 as one", {}, []) == [{"one": 1}]


async def test_a_read_can_not_write(store: PostgresStore) -> None:
    with pytest.raises(StoreError, match="read-only"):
        await store.fetch("update item set n = 9 returning n", {})
    assert await store.fetch("select n from item", {}) == [{"n": 0}]


# -- commits in one round trip ---------------------------------------------------------------------

APPEND = "update item set t = coalesce(t, '') || :x where id = :id"
COUNT = "update item set n = n + 1 where id = :id"


@pytest.fixture
async def warm(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> PostgresStore:
    """A store that has learnt the two statements, and has no other way left to commit."""
    for _ in range(3):
        writes = [(APPEND, [{"x": "", "id": 1}]), (COUNT, [{"id": 0}])]
        await store.begin().commit(Changes(writes=list(writes)))

    async def apply(*_: object) -> None:
        raise AssertionError("the commit went the long way")

    monkeypatch.setattr(postgres, "apply", apply)
    return store


async def test_a_commit_that_repeats_is_one_call_with_all_of_it(warm: PostgresStore) -> None:
    add = "insert into oyez_cursor (stream, partition, owner, epoch) values ('s', 0, 'me', 1)"
    async with warm.server.connection() as connection:
        await connection.execute(add)
    claim = Claim(stream="s", partition=0, owner="me", epoch=1, reader="")

    def announced(*keys: str | None) -> list[Announcement]:
        return [Announcement(stream="s", key=key, headers={}, data=b"d") for key in keys]

    await warm.begin().commit(Changes(announced=announced("k", None, "l")))
    await warm.begin().commit(
        Changes(
            writes=[
                (APPEND, [{"x": "a", "id": 1}, {"x": "b", "id": 1}]),
                (COUNT, [{"id": 1}]),
                (APPEND, [{"x": "c", "id": 1}]),
            ],
            handled=[("1", "/a", "h"), ("2", "/b", "h")],
            announced=announced("m", "m"),
            sent=[1, 3],
            claim=claim,
            position=7,
            time=5.0,
        )
    )
    later = Announcement(
        stream="s", key=None, headers={}, data=b"1", due=9.0, event_id="e", name="n"
    )
    await warm.begin().commit(Changes(announced=[later]))
    replaced = msgspec.structs.replace(later, data=b"2")
    await warm.begin().commit(Changes(announced=[*announced("o"), replaced]))
    assert await warm.fetch("select t, n from item", {}) == [{"t": "abc", "n": 1}]
    assert await warm.fetch("select position from oyez_cursor", {}) == [{"position": 7}]
    rows = await warm.fetch("select source, handler, seen, reader from oyez_inbox order by seq", {})
    assert [tuple(row.values()) for row in rows] == [("/a", "h", 5.0, ""), ("/b", "h", 5.0, "")]
    rows = await warm.fetch("select key, due, name, data from oyez_outbox order by seq", {})
    assert [tuple(row.values()) for row in rows] == [
        (None, 0.0, None, b"d"),
        ("m", 0.0, None, b"d"),
        ("m", 0.0, None, b"d"),
        (None, 9.0, "n", b"2"),
        ("o", 0.0, None, b"d"),
    ]
    assert await warm.seen([("1", "/a", "h"), ("2", "/a", "h"), ("2", "/b", "h")]) == {
        ("1", "/a", "h"), ("2", "/b", "h"),
    }  # fmt: skip


async def test_one_call_writes_all_or_nothing(warm: PostgresStore) -> None:
    lost = Claim(stream="s", partition=0, owner="me", epoch=1, reader="")
    write = (APPEND, [{"x": "a", "id": 1}])
    with pytest.raises(Fenced):
        await warm.begin().commit(Changes(writes=[write], handled=[("1", "/", "h")], claim=lost))
    await warm.begin().commit(Changes(handled=[("2", "/", "h")]))
    with pytest.raises(ConstraintViolated, match="oyez_inbox_event"):
        await warm.begin().commit(Changes(writes=[write], handled=[("2", "/", "h")]))
    assert await warm.fetch("select t from item", {}) == [{"t": ""}]
    assert await warm.seen([("1", "/", "h"), ("2", "/", "h")]) == {("2", "/", "h")}
    await warm.begin().commit(Changes(writes=[write]))
    assert await warm.fetch("select t from item", {}) == [{"t": "a"}]


async def test_one_call_takes_its_turn_with_transactions_that_read(warm: PostgresStore) -> None:
    """What a transaction has read is true until it commits."""
    async with asyncio.timeout(DEADLINE):
        reading = warm.begin()
        (before,) = await reading.fetch("select n from item", {}, [])
        waiting = asyncio.ensure_future(warm.begin().commit(Changes(writes=[(COUNT, [{"id": 1}])])))
        waits = "select 1 from pg_locks where locktype = 'advisory' and not granted"
        await until(lambda: found(warm, waits))
        assert await reading.fetch("select n from item", {}, []) == [before]
        await reading.rollback()
        await waiting
    assert await warm.fetch("select n from item", {}) == [{"n": 1}]


async def found(store: Store, sql: str) -> bool:
    return bool(await store.fetch(sql, {}))


async def test_what_one_call_can_not_do_goes_the_long_way(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same values are taken and refused, and the same is told, as the first time."""

    class Kind(StrEnum):
        GOOD = "good"

    for _ in range(4):
        await change(store, "update item set n = $1 where id = :id", id=1)
        for value in (["list"], 1.5, {"a": 1}):
            with pytest.raises(StoreRefused, match=r":x is \w+ and does not fit text"):
                await change(store, APPEND, x=value, id=1)
        with pytest.raises(StoreRefused, match=":id is float and does not fit int4"):
            await change(store, APPEND, x="", id=1.5)
        with pytest.raises(StoreRefused, match=":x has no value"):
            await change(store, APPEND, id=1)
        await change(store, "insert into item (id, t) values (2, :x) returning id", x=Kind.GOOD)
        await change(store, "delete from item where id = any(:ids)", ids=[2, 3])
        await change(store, "select :x::text", x="$oyez$")
        await change(store, "update item set t = '$oyez$;' || :x where id = 1; -- :y", x=Kind.GOOD)
    assert await store.fetch("select t, n from item", {}) == [{"t": "$oyez$;good", "n": 1}]
    monkeypatch.setattr(postgres, "apply", None)
    await change(store, APPEND, x="!", id=1)


async def test_a_user_without_temporary_functions_and_any_default_isolation(
    database: Database,
) -> None:
    role = name = f"{database.schema}_own"
    async with database.connection() as admin:
        await admin.execute(f"create role {role} login password 'pw'")
        await admin.execute(f"create database {name}")
        try:
            await admin.execute(
                f"revoke temporary on database {name} from public;"
                f"grant create on database {name} to {role};"
                f"alter database {name} set default_transaction_isolation = 'serializable'"
            )
            for temporary in (False, True):
                if temporary:
                    await admin.execute(f"grant temporary on database {name} to {role}")
                url = f"postgresql://{role}:pw@{database.address}/{name}"
                async with database.opened(url) as store:
                    await store.migrate([("001.sql", "create table t (level text)")])
                    write = "insert into t values (current_setting('transaction_isolation'))"
                    for _ in range(4):
                        await change(store, write)
                    rows = await store.fetch("select level, count(*) as n from t group by 1", {})
                    assert rows == [{"level": "read committed", "n": 8 if temporary else 4}]
        finally:
            await admin.execute(f"drop database {name} with (force)")
            await admin.execute(f"drop role {role}")


# -- opening ---------------------------------------------------------------------------------------


async def test_several_that_open_at_once_make_the_schema_once(database: Database) -> None:
    stores = [database.store() for _ in range(6)]
    await asyncio.gather(*(store.open() for store in stores))
    versions = await stores[0].fetch("select version from oyez_schema", {})
    assert versions == [{"version": len(schemas.STEPS)}]
    await asyncio.gather(*(store.close() for store in stores))


async def test_a_newer_schema_is_refused(database: Database) -> None:
    async with database.opened() as store:
        await change(store, "update oyez_schema set version = version + 1")
    with pytest.raises(StoreRefused, match="newer Oyez"):
        await database.store().open()


async def test_an_older_schema_is_upgraded_once_and_keeps_what_it_holds(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.opened() as store:
        await change(store, "insert into oyez_migration values ('kept', 'digest', 1.0)")
    later = "alter table oyez_migration add column by text not null default 'nobody'"
    monkeypatch.setattr(schemas, "STEPS", (*schemas.STEPS, later))
    with pytest.raises(StoreOutdated, match="older Oyez"):
        await database.store().open(create=False)
    stores = [database.store() for _ in range(6)]
    await asyncio.gather(*(store.open() for store in stores))
    rows = await stores[0].fetch("select name, by from oyez_migration", {})
    versions = await stores[0].fetch("select version from oyez_schema", {})
    await asyncio.gather(*(store.close() for store in stores))
    assert rows == [{"name": "kept", "by": "nobody"}]
    assert versions == [{"version": len(schemas.STEPS)}]


async def test_a_step_that_fails_leaves_the_schema_as_it_was(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.opened():
        pass
    former = schemas.STEPS
    monkeypatch.setattr(schemas, "STEPS", (*former, "create table oyez_more (a int)", "nonsense"))
    with pytest.raises(StoreError, match="nonsense"):
        await database.store().open()
    monkeypatch.setattr(schemas, "STEPS", former)
    async with database.opened() as store:
        assert await store.fetch("select to_regclass('oyez_more') as made", {}) == [{"made": None}]


async def test_who_may_not_make_the_schema_is_told_how(database: Database) -> None:
    role = f"{database.schema}_role"
    async with database.connection() as admin:
        await admin.execute(f"create role {role} login password 'pw'")
        try:
            name = await admin.fetchval("select current_database()")
            url = f"postgresql://{role}:pw@{database.address}/{name}"
            with pytest.raises(
                StoreRefused, match=f'create schema if not exists "{database.schema}"'
            ):
                await database.store(url).open()
            remedy = f"create schema {database.schema}; grant create, usage on schema"
            await admin.execute(f"{remedy} {database.schema} to {role}")
            async with database.opened(url) as store:
                await admin.execute(f"revoke delete on {database.schema}.oyez_outbox from {role}")
                told = "".join(finding.what for finding in await store.inspect())
                assert "lacks a privilege on Oyez's tables: delete" in told
            with pytest.raises(StoreRefused):
                await database.store(f"postgresql://{role}:no@{database.address}/{name}").open()
        finally:
            await admin.execute(f"drop owned by {role} cascade; drop role {role}")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shema": "x"}, "schema"),
        ({"isolation": "serializable"}, "isolation"),
        ({"connections": 1}, "connections"),
        ({"deadline": "soon"}, "deadline"),
    ],
)
def test_options_are_checked(database: Database, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        database.store(**options)


async def test_a_weak_database_is_told(database: Database) -> None:
    async with database.connection() as connection:
        name = await connection.fetchval("select current_database()")
        await connection.execute(f"alter database {name} set synchronous_commit = off")
        try:
            async with database.opened() as store:
                found = await store.inspect()
                assert any("synchronous_commit" in finding.what for finding in found)
                assert store.capabilities.durability == "power-loss"  # it is on for Oyez's own
        finally:
            await connection.execute(f"alter database {name} reset synchronous_commit")


# -- many rows -------------------------------------------------------------------------------------


async def test_at_any_size_the_reads_use_an_index(store: PostgresStore, database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute(
            """insert into oyez_cursor (stream, partition, owner, epoch)
                 select 's', n, 'me', 1 from generate_series(0, 7) n;
               insert into oyez_outbox (due, stream, headers, data)
                 select case when n % 3 = 0 then n else 0 end, 's', '{}', ''
                 from generate_series(1, 60000) n;
               insert into oyez_inbox (event_id, source, handler, seen, state, stream, partition,
                   position, chain, due)
                 select n::text, '/s', 'h', n, n % 3, 's', n % 8, n, n % 100, n
                 from generate_series(1, 60000) n;
               analyze oyez_outbox; analyze oyez_inbox; analyze oyez_cursor"""
        )
        texts = {
            postgres._OUTBOX: (0, 50.0, 512, 64, 0),
            postgres._DUE: ("h", 100_000.0, "me", 100),
            postgres._SEEN: (["1", "2"], ["/s", "/s"], ["h", "h"], ""),
            changes._SETTLED: (1.0, [3], ["s"], [3], ["3"], [""]),
            tables.PARKED_HANDLERS: (),
            tables.PARKED_TIMES.replace(":now", "$1"): (50.0,),
        }
        await connection.execute("set plan_cache_mode = force_generic_plan")
        for sql, values in texts.items():
            plan = "\n".join(row[0] for row in await connection.fetch(f"explain {sql}", *values))
            for table in ("oyez_outbox", "oyez_inbox"):
                assert f"Seq Scan on {table}" not in plan, plan


# -- life and death --------------------------------------------------------------------------------


async def _alive(store: Store, owner: str) -> bool:
    sql = "select 1 from oyez_replica where owner = :owner and until > :now"
    return bool(await store.fetch(sql, {"owner": owner, "now": time.time()}))


_CHILD = """
import asyncio, sys
from pathlib import Path
from oyez.ambient import SystemAmbient
from oyez.stores import connect

async def main():
    store = connect(sys.argv[1], SystemAmbient(), root=Path())
    await store.open()
    await store.keep("child", 600.0, "")
    print("kept", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def _child_dies(url: str) -> None:
    from oyez.testing.crash import run_and_kill

    await asyncio.to_thread(run_and_kill, _CHILD, url, lines=1)


async def test_the_dead_are_buried_long_before_their_lease_ends(database: Database) -> None:
    async with database.opened() as store:
        await store.keep("me", 600.0, "")
        await _child_dies(database.url())

        async def buried() -> bool:
            await store.bury()
            return not await _alive(store, "child")

        assert await until(buried) < RETURN + 2.0
        assert await _alive(store, "me")


async def test_through_a_pooler_no_one_is_buried(database: Database) -> None:
    """No session there belongs to one process, so a lock would prove nothing."""
    url = server("pgbouncer").url
    async with database.opened(url) as store:
        await store.keep("me", 600.0, "")
        await _child_dies(database.url(url))
        async with database.opened() as other:
            for _ in range(20):
                await store.bury()
                await other.bury()
                await asyncio.sleep(RETURN / 10)
            assert await _alive(store, "me")
            assert await _alive(store, "child")


async def test_who_loses_its_connection_is_not_buried(database: Database) -> None:
    """It comes back with its lock before anyone believes it dead."""
    async with database.opened() as store, database.opened() as other:
        await store.keep("me", 600.0, "")
        await other.keep("other", 600.0, "")
        async with database.connection() as connection:
            for _ in range(4):
                ended = await connection.fetchval(
                    """select count(pg_terminate_backend(pid)) from pg_locks
                     where locktype = 'advisory' and objsubid = 2 and objid = $1::bigint::oid""",
                    presence_of("me"),
                )
                assert ended == 1
                for _ in range(8):
                    await other.bury()
                    assert await _alive(other, "me")
                    await asyncio.sleep(RETURN / 10)

                async def shown() -> bool:
                    return bool(
                        await connection.fetchval(
                            """select count(*) from pg_locks where locktype = 'advisory'
                             and objsubid = 2 and objid = $1::bigint::oid""",
                            presence_of("me"),
                        )
                    )

                await until(shown)


async def test_a_claim_waits_for_no_transaction_that_runs_alone(database: Database) -> None:
    """And of two replicas that want a partition at once, one has it."""
    place = {"stream": "shop.orders", "partition": 0, "reader": ""}

    async def claim(store: PostgresStore, owner: str) -> list[Row]:
        await store.keep(owner, 600.0, "")
        begun = store.begin(claims=True)
        now = time.time()
        before: Writes = [
            (tables.ADD_CURSOR, [place]),
            (tables.ACQUIRE, [{**place, "owner": owner, "now": now}]),
        ]
        try:
            rows = await begun.fetch(tables.ACQUIRED, {"reader": "", "owner": owner}, before)
            await begun.commit(Changes(time=now))
        finally:
            await begun.rollback()
        return rows

    async with database.opened() as store, database.opened() as other:
        alone = store.begin()
        await alone.fetch("select 1 as one", {}, [])
        try:
            async with asyncio.timeout(5.0):
                found = await asyncio.gather(claim(store, "me"), claim(other, "other"))
        finally:
            await alone.rollback()
        assert sorted(len(rows) for rows in found) == [0, 1]
        (row,) = [row for rows in found for row in rows]
        assert (row["stream"], row["partition"], row["epoch"]) == ("shop.orders", 0, 1)


async def test_a_replica_that_leaves_is_told_to_the_others_at_once(database: Database) -> None:
    """So that nobody has its partitions no longer than a claim takes."""
    async with database.opened() as store, database.opened() as other:
        await store.keep("me", 600.0, "")
        left, rung = asyncio.Event(), asyncio.Event()
        other.on_leave(left.set)
        other.on_commit(rung.set)
        await until(_rings(rung))  # from now on it listens
        store.ring()
        await until(_rings(rung))
        assert not left.is_set(), "a commit is no leave"
        await store.leave("me")
        await asyncio.wait_for(left.wait(), 5.0)
        assert not await _alive(other, "me")


async def test_a_restarted_server_buries_no_one(database: Database) -> None:
    """All locks are gone then; who is alive keeps its lease, and calls go on by themselves."""
    async with database.opened() as store, database.opened() as other:
        await store.keep("me", 600.0, "")
        await other.keep("other", 600.0, "")
        await store.migrate([("001.sql", "create table t (n integer)")])
        rung = asyncio.Event()
        other.on_commit(rung.set)
        await until(_rings(rung))
        try:
            await asyncio.to_thread(database.server.kill)
            with pytest.raises(StoreUnavailable):
                await change(store, "insert into t values (1)")
            with pytest.raises(StoreUnavailable):
                await other.fetch("select n from t", {})
        finally:
            await asyncio.to_thread(database.server.start)

        async def back() -> bool:
            try:
                await change(store, "insert into t values (2)")
                await other.bury()
            except StoreUnavailable:
                return False
            return True

        assert await until(back) < 5.0
        for _ in range(25):
            await other.bury()
            await store.bury()
            assert await _alive(other, "me")
            assert await _alive(store, "other")
            await asyncio.sleep(RETURN / 10)
        assert await store.fetch("select n from t", {}) == [{"n": 2}]
        await until(_rings(rung))  # it listens again
        await store.begin().commit(Changes(ring=True))
        await until(_rings(rung))


def _rings(rung: asyncio.Event) -> Callable[[], Awaitable[bool]]:
    async def rings() -> bool:
        was = rung.is_set()
        rung.clear()
        return was

    return rings


async def test_when_the_connection_is_cut_everything_comes_back(database: Database) -> None:
    """Cut, and stalled without a word: errors within the deadline, then all is well again."""
    async with database.server.proxy() as proxy:
        url = proxy.through(database.server.url)
        async with database.opened(url, deadline=1.0) as store:
            await store.migrate([("001.sql", "create table t (n integer)")])
            await store.keep("me", 600.0, "")
            for fail in (proxy.cut, proxy.stall):
                held = store.begin()
                await held.fetch("select 1 as one", {}, [])
                fail()
                async with asyncio.timeout(3.0):
                    with pytest.raises(StoreUnavailable):
                        await held.fetch("select 1 as one", {}, [])
                    await held.rollback()
                    with pytest.raises(StoreUnavailable):
                        await change(store, "insert into t values (1)")
                proxy.restore()

                async def back() -> bool:
                    try:
                        tx = store.begin()
                        await tx.fetch("select n from t", {}, [])
                        await tx.commit(Changes())
                    except StoreUnavailable:
                        return False
                    return True

                assert await until(back) < 8.0
            tx = store.begin()
            assert await tx.fetch("select count(*) as n from t where n = 1", {}, []) is not None
            await tx.rollback()


async def test_commits_are_whole_while_connections_are_cut(database: Database) -> None:
    """Acknowledged ones are there; each is there as a whole or not at all."""
    async with database.server.proxy() as proxy:
        async with database.opened(proxy.through(database.server.url), deadline=2.0) as store:
            await store.migrate([("001.sql", "create table t (n integer)")])
            acknowledged: set[int] = set()

            async def commit(number: int) -> None:
                tx = store.begin()
                write = ("insert into t values (:n)", [{"n": number}])
                try:
                    if number % 2:
                        await tx.fetch("select 1 as one", {}, [write])
                    announced = [
                        Announcement(stream="s", key="k", headers={"id": str(number)}, data=b"")
                    ]
                    writes = [] if number % 2 else [write]
                    await tx.commit(Changes(writes=list(writes), announced=announced))
                    acknowledged.add(number)
                except StoreUnavailable:
                    pass
                finally:
                    await tx.rollback()

            for round_ in range(12):
                work = [asyncio.ensure_future(commit(round_ * 20 + n)) for n in range(20)]
                await asyncio.sleep(0.004 * round_)
                proxy.cut()
                proxy.restore()
                await asyncio.gather(*work)
        async with database.opened() as store:
            rows = {row["n"] for row in await store.fetch("select n from t", {})}
            outbox = {int(row.headers["id"]) for row in await store.outbox(0, 1.0, 10_000)}
            assert rows == outbox >= acknowledged
            assert len(rows) == (await store.fetch("select count(*) as n from t", {}))[0]["n"]


class TestDelivery(StoreServerSuite):
    """Services on this store keep every promise, whoever is killed."""

    @pytest.fixture(autouse=True)
    def _schema(self, database: Database) -> None:
        self.database = database

    def broker(self, tmp_path: Path) -> str:
        return "embedded:.oyez/events.db"

    def store(self, tmp_path: Path) -> str:
        return self.database.url()

    def store_server(self, tmp_path: Path) -> Server:
        return self.database.server


async def test_the_shop_balances_its_books(database: Database, tmp_path: Path) -> None:
    """Its SQL is one text for both databases: five services, each in a schema of its own."""
    shop = copy_shop(tmp_path)
    shop.environment["OYEZ_STORE"] = f"{database.server.url}?schema={database.schema}_{{service}}"
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "demo.py", "--orders", "60"],
            cwd=shop.root,
            env=shop.environment,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "The books balance." in done.stdout
    finally:
        async with database.connection() as connection:
            for service in ("orders", "inventory", "payments", "shipping", "notifications"):
                await connection.execute(
                    f"drop schema if exists {database.schema}_{service} cascade"
                )
