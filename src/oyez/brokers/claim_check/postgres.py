"""A table in PostgreSQL as a storage, for systems that run that server anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from oyez.ambient import Ambient
from oyez.brokers.claim_check.storage import CONCURRENT, MARGIN
from oyez.endpoint import Count, Endpoint
from oyez.errors import BrokerUnavailable, SchemaMissing, StoreError
from oyez.ports import Finding
from oyez.postgresql import PostgresServer, ServerOptions, as_broker_error

DELETED = 64
"""Rows deleted in one transaction: each may hold a megabyte."""

_LOCK = "select pg_advisory_xact_lock(hashtext($1))"
_CREATE = """create schema if not exists {schema};
create table if not exists {table} (
  name text primary key,
  data bytea not null,
  stored double precision not null
);
create index if not exists large_stored on {table} (stored)"""
_PUT = """insert into {table} values ($1, $2, extract(epoch from clock_timestamp()))
 on conflict (name) do update set data = excluded.data, stored = excluded.stored"""
_GET = "select substring(data from 1 for $2) from {table} where name = $1"
_SWEEP = """delete from {table} where name in (select name from {table}
 where stored < extract(epoch from clock_timestamp()) - $1
 order by stored limit $2 for update skip locked)"""


class PostgresOptions(ServerOptions, frozen=True, kw_only=True):
    """How the storage behaves; its table is called ``large``."""

    connections: Count = CONCURRENT
    """Connections, at most."""


class Table:
    """One table of a database; the face is `oyez.brokers.claim_check.Storage`."""

    def __init__(
        self, endpoint: Endpoint, ambient: Ambient, options: PostgresOptions, retention: float
    ) -> None:
        """``retention`` is in seconds. Raises ConfigurationError."""
        self._server = PostgresServer(endpoint, ambient, options)
        self._retention = retention
        self._schema = f'"{options.schema}"'
        self._table = f"{self._schema}.large"
        self.where = f"table {self._table} of {self._server.name}"
        # Without the host: one service may go through a pooler and another not.
        self.prefix = f"postgresql:///{endpoint.path}/{options.schema}/large/"

    async def put(self, name: str, data: bytes) -> None:
        with _broker_errors():
            try:
                await self._execute(_PUT, name, data)
            except SchemaMissing:
                await self._create()
                await self._execute(_PUT, name, data)

    async def get(self, name: str, most: int) -> bytes | None:
        with _broker_errors():
            try:
                async with self._server.connection() as connection:
                    sql = _GET.format(table=self._table)
                    found: bytes | None = await connection.fetchval(sql, name, most + 1)
                    return found
            except SchemaMissing as error:
                raise BrokerUnavailable(
                    f"{self.where} is missing: is this the database that it is in?"
                ) from error

    async def sweep(self) -> None:
        with _broker_errors():
            try:
                while await self._execute(_SWEEP, self._retention + MARGIN, DELETED) == DELETED:
                    pass
            except SchemaMissing:
                return  # made by what is stored first

    async def inspect(self) -> Sequence[Finding]:
        with _broker_errors():
            return await self._server.inspect()

    async def close(self) -> None:
        await self._server.close()

    async def _execute(self, sql: str, *parameters: object) -> int:
        """How many rows it was about."""
        async with self._server.connection() as connection:
            told = await connection.execute(sql.format(table=self._table), *parameters)
        return int(told.rpartition(" ")[2])

    async def _create(self) -> None:
        async with self._server.connection() as connection, connection.transaction():
            # Two processes that make it at once would fail on each other.
            await connection.execute(_LOCK, self._table)
            await connection.execute(_CREATE.format(schema=self._schema, table=self._table))


@contextmanager
def _broker_errors() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise as_broker_error(error) from error
