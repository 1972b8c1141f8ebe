"""The creation and migration of Oyez's tables in a service's schema."""

from __future__ import annotations

import re
from hashlib import sha256

from asyncpg import exceptions as pg

from oyez.causes import causes_of
from oyez.errors import StoreMissing, StoreOutdated, StoreRefused, StoreUnavailable
from oyez.postgresql import Connection
from oyez.stores.postgres.statements import query, write
from oyez.tables import SET_CAUSE, WITHOUT_CAUSE

STEPS = (
    """
create table oyez_schema (version integer not null);

create table oyez_inbox (
  seq bigint generated always as identity primary key,
  event_id text not null, source text not null, handler text not null,
  seen double precision not null,
  state integer not null default 0,      -- oyez.tables.Inbox
  stream text, partition integer, position bigint, chain text,
  due double precision, attempt integer, history bytea, key text, headers bytea, data bytea
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
create unique index oyez_inbox_event on oyez_inbox (event_id, source, handler);
create index oyez_inbox_due on oyez_inbox (handler, due, seq) where state = 2;
create index oyez_inbox_chain on oyez_inbox (stream, partition, chain, seq) where state > 0;
create index oyez_inbox_seen on oyez_inbox using brin (seen) with (autosummarize = on);

create table oyez_outbox (
  seq bigint generated always as identity primary key,
  due double precision not null default 0,           -- 0: as soon as possible
  stream text not null, key text, headers bytea not null, data bytea not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
create index oyez_outbox_due on oyez_outbox (due, seq);

create table oyez_cursor (
  stream text not null, partition integer not null, position bigint not null default 0,
  owner text, epoch bigint not null default 0,
  crashes integer not null default 0, crashed_at bigint not null default -1,
  primary key (stream, partition)
) with (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

create table oyez_replica (
  owner text primary key, until double precision not null, started double precision not null,
  note text not null,
  presence bigint not null,              -- the lock that it holds while it lives …
  server text                            -- … in this run of the server; null: it holds none
) with (fillfactor = 20);

create table oyez_dead (
  id bigint generated always as identity primary key,
  event_id text not null, source text not null, type text not null, handler text not null,
  stream text not null, partition integer not null, position bigint not null, key text,
  reason text not null, traceback text not null, attempts integer not null,
  history bytea not null, headers bytea not null, data bytea, time double precision not null,
  state text not null default 'dead', note text not null default ''
);
create index oyez_dead_state on oyez_dead (state, id);

create table oyez_migration (
  name text primary key, digest text not null, applied double precision not null
);
""",
    """
alter table oyez_inbox add column reader text not null default '';
drop index oyez_inbox_event;
create unique index oyez_inbox_event on oyez_inbox (event_id, source, handler, reader);
drop index oyez_inbox_chain;
create index oyez_inbox_chain on oyez_inbox (stream, partition, chain, reader, seq) where state > 0;

alter table oyez_outbox add column state integer not null default 0;
drop index oyez_outbox_due;
create index oyez_outbox_due on oyez_outbox (due, seq) where state = 0;
create index oyez_outbox_held on oyez_outbox (stream, key) where state > 0;

alter table oyez_dead add column reader text not null default '';

alter table oyez_cursor add column reader text not null default '';
alter table oyez_cursor drop constraint oyez_cursor_pkey;
alter table oyez_cursor add primary key (stream, partition, reader);
""",
    """
create table oyez_state (
  kind text not null, key text not null,
  version bigint not null, shape integer not null, data bytea not null,
  changed double precision not null,
  status text, step text, started double precision, ended double precision, correlationid text,
  primary key (kind, key)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
create index oyez_state_status on oyez_state (kind, status, changed) where status is not null;
create index oyez_state_ended on oyez_state (ended) where ended is not null;
create view oyez_saga as
 select kind, key, version, shape, data, changed, status, step, started, ended, correlationid
 from oyez_state where status is not null;

create table oyez_saga_log (
  kind text not null, key text not null, version bigint not null,
  at double precision not null, event_id text not null, type text not null, step text not null,
  outputs bytea not null,
  primary key (kind, key, version)
);

create table oyez_timer (
  kind text not null, key text not null, name text not null,
  due double precision not null, part integer not null, armed double precision not null,
  primary key (kind, key, name)
) with (autovacuum_vacuum_scale_factor = 0.02);
create index oyez_timer_due on oyez_timer (part, kind, due);

alter table oyez_outbox add column event_id text;
alter table oyez_outbox add column name text;
create index oyez_outbox_event on oyez_outbox (event_id) where event_id is not null;
create unique index oyez_outbox_name on oyez_outbox (name) where name is not null;
""",
    """
create table oyez_audit (
  id bigint generated always as identity primary key,
  time double precision not null, who text not null, via text not null, act text not null,
  target text not null, reason text not null, before text not null, after text not null
);
create index oyez_audit_time on oyez_audit (time);

alter table oyez_dead add column cause text not null default '';
create index oyez_dead_cause on oyez_dead (state, cause, id, time);
create index oyez_dead_key on oyez_dead (substr(key, 1, 100), id) where state = 'dead';

alter table oyez_timer add column traceparent text;
alter table oyez_timer add column tracestate text;
""",
    """
alter table oyez_timer add column authid text;
alter table oyez_timer add column authtype text;
""",
)
"""The tables, step by step: what changes them is appended, never edited into an earlier step."""

_CAUSES = 4
"""The step after which dead letters have a cause."""

NAMES = tuple(re.findall(r"create (?:table|view) (\w+)", "".join(STEPS)))
_OWN = re.compile(r"\b(?=" + "|".join(NAMES) + r"\b)")


def lock_key(*names: str) -> int:
    """Return the number of 64 bits of an advisory lock."""
    return int.from_bytes(sha256("\0".join(("oyez", *names)).encode()).digest()[:8], signed=True)


def qualified(sql: str, schema: str) -> str:
    """Return the statement with Oyez's tables qualified, for a connection without search_path."""
    return _OWN.sub(f'"{schema}".', sql)


async def prepare(connection: Connection, schema: str, *, create: bool) -> None:
    """Create the schema and Oyez's tables, and run the steps that are missing.

    Safe in several processes at once. Without ``create``, raises StoreMissing when there are no
    tables and StoreOutdated when they are older. Raises StoreRefused and driver errors.
    """
    made = await connection.fetchrow(
        "select to_regclass($1) is not null as tables, pg_is_in_recovery() as standby",
        f'"{schema}".oyez_schema',
    )
    assert made is not None
    version, newest = 0, len(STEPS)
    if made["tables"]:
        version = await connection.fetchval(qualified("select version from oyez_schema", schema))
    if version > newest:
        raise StoreRefused(
            f"schema {schema} was made by a newer Oyez (version {version}, this one knows "
            f"{newest}): upgrade Oyez"
        )
    if version == newest:
        return
    if not create:
        if version == 0:
            raise StoreMissing(f"schema {schema} has no tables of Oyez yet")
        raise StoreOutdated(
            f"schema {schema} was made by an older Oyez (version {version}, this one has "
            f"{newest}): start its service with this version, which upgrades it"
        )
    if made["standby"]:
        raise StoreUnavailable("this server is a standby, which takes no writes")
    await _upgrade(connection, schema)


async def _upgrade(connection: Connection, schema: str) -> None:
    key = lock_key("schemas")
    await connection.execute(f"begin; select pg_advisory_xact_lock({key})")
    try:
        exists = await connection.fetchval(
            "select exists (select from pg_namespace where nspname = $1)", schema
        )
        if not exists:
            await connection.execute(f'create schema "{schema}"')
        await connection.execute(f'set local search_path = "{schema}"')
        # Another process may have been faster, while this one waited for the lock.
        version = 0
        if await connection.fetchval("select to_regclass($1)", f'"{schema}".oyez_schema'):
            version = await connection.fetchval("select version from oyez_schema")
        for number, step in enumerate(STEPS[version:], version + 1):
            await connection.execute(step)
            if number == _CAUSES and version:
                await _fill_causes(connection)
        if version == 0:
            await connection.execute(f"insert into oyez_schema values ({len(STEPS)})")
        elif version < len(STEPS):
            await connection.execute(f"update oyez_schema set version = {len(STEPS)}")
    except pg.InsufficientPrivilegeError as error:
        await connection.execute("rollback")
        user = await connection.fetchval("select current_user")
        raise StoreRefused(
            f"{error.args[0]}: as an administrator of the database, run: create schema if not "
            f'exists "{schema}"; grant create, usage on schema "{schema}" to "{user}";'
        ) from None
    await connection.execute("commit")


async def _fill_causes(connection: Connection) -> None:
    """Give each dead letter its cause, some at a time."""
    while rows := await query(connection, WITHOUT_CAUSE, {}):
        await write(connection, [(SET_CAUSE, causes_of(rows))])
