"""Entries in PostgreSQL, whose clock all replicas go by."""

from __future__ import annotations

from collections.abc import Sequence

from oyez.config import IdempotencySettings
from oyez.gateway.idempotency.entry import Answered, Entry, Owned, State, answered
from oyez.postgresql import PostgresServer

_NOW = "extract(epoch from clock_timestamp())::float8"
_TABLES = """
create table if not exists {table} (
  id bytea primary key,
  holder bytea not null, payload bytea not null,
  owner bytea not null, until float8 not null,
  expires float8 not null, answer bytea
);
create index if not exists oyez_gateway_idempotency_holder on {table} (holder, expires, until);
create index if not exists oyez_gateway_idempotency_expires on {table} (expires);
"""
_FIND = """select payload, answer, until > {now} as running from {table}
 where id = $1 and expires > {now}"""
# Who waits for another's insert finds its row, and begins nothing.
_BEGIN = """insert into {table} as known (id, holder, payload, owner, until, expires)
 values ($1, $2, $3, $4, {now} + $5, {now} + $6)
 on conflict (id) do update set payload = excluded.payload, owner = excluded.owner,
  until = excluded.until, expires = excluded.expires, answer = null
 where known.expires <= {now} or (known.answer is null and known.until <= {now}
  and known.payload = excluded.payload)
 returning true"""
# Several may delete the same ones: who finds them locked leaves them to the others.
_END = """with ended as (
  update {table} set answer = $3, owner = '', until = 0 where id = $1 and owner = $2
 ), oldest as (
  select id from {table} where holder = $4 and until <= {now} and id <> $1
  order by expires desc offset $5
 )
 delete from {table} where id in (
  select id from {table} where id in (select id from oldest) for update skip locked)"""
_RENEW = """update {table} as known set until = {now} + $3
 from unnest($1::bytea[], $2::bytea[]) as renewed (id, owner)
 where known.id = renewed.id and known.owner = renewed.owner"""
_SWEEP = """delete from {table} where id in (
  select id from {table} where expires <= {now} limit $1 for update skip locked)"""
_STEP = 500
"""Expired entries that are deleted at once."""


class PostgresEntries:
    """The entries in a database; see `oyez.gateway.idempotency.entry.Entries`."""

    def __init__(self, server: PostgresServer, settings: IdempotencySettings) -> None:
        """Nothing is connected yet."""
        self._server = server
        self._settings = settings
        self._schema = server.options.schema

    async def open(self) -> None:
        """See `Entries`."""
        async with self._server.connection() as connection:
            table = f'"{self._schema}".oyez_gateway_idempotency'
            if await connection.fetchval("select to_regclass($1)", table) is not None:
                return
            async with connection.transaction():
                # Gateways that start together make it one after the other.
                await connection.execute("select pg_advisory_xact_lock(hashtext('oyez gateway'))")
                made = "select true from pg_namespace where nspname = $1"
                if await connection.fetchval(made, self._schema) is None:
                    await connection.execute(f'create schema "{self._schema}"')
                await connection.execute(self._sql(_TABLES))

    async def close(self) -> None:
        """See `Entries`."""
        await self._server.close()

    async def begin(self, entry: Entry, mark: bytes) -> State | Answered:
        """See `Entries`."""
        settings = self._settings
        new = (*entry, mark, settings.lease, settings.lifetime)
        async with self._server.connection() as connection:
            while True:
                # Looked for first: an insert locks the row that it meets, and repeats would queue.
                row = await connection.fetchrow(self._sql(_FIND), entry.id)
                if row is not None:
                    if row["payload"] != entry.payload:
                        return State.REUSED
                    if row["answer"] is not None:
                        return answered(row["answer"])
                    if row["running"]:
                        return State.RUNNING
                if await connection.fetchval(self._sql(_BEGIN), *new):
                    return State.BEGUN

    async def end(self, owned: Owned, answer: bytes | None) -> None:
        """See `Entries`."""
        entry, others = owned.entry, self._settings.answers - 1
        async with self._server.connection() as connection:
            await connection.execute(
                self._sql(_END), entry.id, owned.mark, answer, entry.holder, others
            )

    async def renew(self, running: Sequence[Owned]) -> None:
        """See `Entries`."""
        ids = [owned.entry.id for owned in running]
        marks = [owned.mark for owned in running]
        async with self._server.connection() as connection:
            await connection.execute(self._sql(_RENEW), ids, marks, self._settings.lease)

    async def sweep(self) -> bool:
        """See `Entries`."""
        async with self._server.connection() as connection:
            return await connection.execute(self._sql(_SWEEP), _STEP) == f"DELETE {_STEP}"

    def _sql(self, text: str) -> str:
        return text.format(table=f'"{self._schema}".oyez_gateway_idempotency', now=_NOW)
