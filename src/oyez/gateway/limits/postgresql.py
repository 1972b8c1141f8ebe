"""Buckets in PostgreSQL: one row each of a table that is not logged, as losing it does no harm."""

from __future__ import annotations

from collections.abc import Sequence

from oyez.ambient import Ambient
from oyez.endpoint import Endpoint
from oyez.gateway.limits.store import Ask, Grant
from oyez.postgresql import PORT, PostgresServer, ServerOptions

_SWEPT = 10_000
_LOCK = "select pg_advisory_xact_lock(hashtext('oyez_gateway_limits'))"
# A row is the last ask with its answer. Rows change in place, as nothing but the name is indexed.
_CREATE = """create unlogged table if not exists {table} (
  bucket text primary key,
  every bigint not null,
  size bigint not null,
  want bigint not null,
  asked_at bigint not null,
  granted bigint not null,
  full_at bigint not null
) with (fillfactor = 50)"""
_NOW = "(extract(epoch from clock_timestamp()) * 1000000)::bigint * 1000"
_FULL = "greatest(kept.full_at, excluded.asked_at)"
_GRANTED = f"""greatest(0, least(excluded.want,
  excluded.size - ({_FULL} - excluded.asked_at + excluded.every - 1) / excluded.every))"""
_TAKE = f"""with clock as materialized (select {_NOW} as now)
insert into {{table}} as kept (bucket, every, size, want, asked_at, granted, full_at)
select bucket, every, size, want, now, least(want, size), now + least(want, size) * every
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[])
  as wanted (bucket, every, size, want), clock
order by bucket
on conflict (bucket) do update set
  every = excluded.every, size = excluded.size, want = excluded.want,
  asked_at = excluded.asked_at, granted = {_GRANTED},
  full_at = {_FULL} + excluded.every * {_GRANTED}
returning bucket, granted, full_at - asked_at"""
_SWEEP = f"""delete from {{table}} where bucket in (select bucket from {{table}}
  where full_at < {_NOW} limit {_SWEPT} for update skip locked)"""


class PostgresStore:
    """The buckets in a database; see :class:`oyez.gateway.limits.store.Store`."""

    def __init__(self, url: str, ambient: Ambient) -> None:
        """Nothing is connected yet. Raises ConfigurationError for unknown options."""
        endpoint = Endpoint(url, port=PORT)
        options = endpoint.options(ServerOptions)
        self._server = PostgresServer(endpoint, ambient, options)
        self._schema = options.schema
        self._table = f'"{options.schema}".oyez_gateway_limits'

    async def open(self) -> None:
        """See :class:`oyez.gateway.limits.store.Store`."""
        async with self._server.connection() as connection, connection.transaction():
            # Without the lock, two replicas that create the table at once would conflict.
            await connection.execute(_LOCK)
            if await connection.fetchval("select to_regclass($1)", self._table) is not None:
                return
            exists = "select true from pg_namespace where nspname = $1"
            if not await connection.fetchval(exists, self._schema):
                await connection.execute(f'create schema "{self._schema}"')
            await connection.execute(_CREATE.format(table=self._table))

    async def take(self, asks: Sequence[Ask]) -> list[Grant]:
        """See :class:`oyez.gateway.limits.store.Store`."""
        columns = [list(column) for column in zip(*asks, strict=True)]
        async with self._server.connection() as connection:
            rows = await connection.fetch(_TAKE.format(table=self._table), *columns)
        found = {bucket: Grant(count, ahead) for bucket, count, ahead in rows}
        return [found[ask.bucket] for ask in asks]

    async def sweep(self) -> None:
        """See :class:`oyez.gateway.limits.store.Store`."""
        async with self._server.connection() as connection:
            await connection.execute(_SWEEP.format(table=self._table))

    async def close(self) -> None:
        """See :class:`oyez.gateway.limits.store.Store`."""
        await self._server.close()
