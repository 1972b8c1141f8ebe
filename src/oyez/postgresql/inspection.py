"""What of a server's setup loses commits, or makes it slow or hard to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from oyez.ports import Finding
from oyez.postgresql.connection import Connection

OLDEST = 12
"""The oldest major version that is supported."""
IDLE = 600.0
"""Seconds after which an open transaction that does nothing is a finding."""
SKEW = 2.0
"""Seconds by which the server's clock may differ from ours before it is a finding."""

_SETTINGS = """select jsonb_object_agg(name, setting)::text as settings,
  max(reset_val) filter (where name = 'synchronous_commit') as by_default,
  pg_is_in_recovery() as standby, extract(epoch from clock_timestamp())::text as now
 from pg_settings where name in ('fsync', 'full_page_writes', 'synchronous_commit',
  'data_checksums', 'server_version_num', 'server_version', 'max_connections',
  'superuser_reserved_connections', 'server_encoding')"""
_ACTIVITY = """select
  count(*) filter (where backend_type = 'client backend') as clients,
  count(*) filter (where state like 'idle in transaction%'
    and state_change < now() - make_interval(secs => $1)) as idle,
  pg_notification_queue_usage() as queue,
  (select count(*) from pg_prepared_xacts
    where prepared < now() - make_interval(secs => $1)) as prepared
 from pg_stat_activity"""
_UNLOGGED = """select relname from pg_class join pg_namespace n on n.oid = relnamespace
 where nspname = $1 and relkind in ('r', 'p') and relpersistence = 'u' order by relname"""


async def durability(connection: Connection) -> str:
    """Return what commits survive: ``power-loss`` or ``process-crash``."""
    settings = await _settings(connection)
    safe = settings["fsync"] == settings["full_page_writes"] == "on"
    return "power-loss" if safe and settings["commit"] != "off" else "process-crash"


async def inspect(connection: Connection, schema: str, now: Callable[[], float]) -> list[Finding]:
    """Return what is wrong with the server; ``now`` returns this machine's time (s since 1970)."""
    settings = await _settings(connection)
    skew = float(settings["now"]) - now()
    activity = await connection.fetchrow(_ACTIVITY, IDLE)
    unlogged = await connection.fetch(_UNLOGGED, schema)
    assert activity is not None
    return _judge(settings, dict(activity), [row["relname"] for row in unlogged], skew)


async def _settings(connection: Connection) -> dict[str, str]:
    row = await connection.fetchrow(_SETTINGS)
    assert row is not None
    found = msgspec.json.decode(row["settings"], type=dict[str, str])
    return {
        **found,
        "commit": found["synchronous_commit"],
        "commit_by_default": row["by_default"],
        "standby": "on" if row["standby"] else "off",
        "now": row["now"],
    }


def _judge(
    settings: Mapping[str, str],
    activity: Mapping[str, Any],
    unlogged: list[str],
    skew: float,
) -> list[Finding]:
    found = []

    def tell(wrong: bool, what: str, remedy: str, *, grave: bool) -> None:
        if wrong:
            found.append(Finding(grave=grave, what=what, remedy=remedy))

    for name in ("fsync", "full_page_writes"):
        tell(
            settings[name] != "on",
            f"{name} is off: a power cut loses or damages what was committed",
            f"alter system set {name} = on; select pg_reload_conf();",
            grave=True,
        )
    commit = "synchronous_commit is off for this user, database or server"
    remedy = (
        "alter role NAME reset synchronous_commit; alter database NAME reset synchronous_commit; "
        "alter system reset synchronous_commit; select pg_reload_conf();"
    )
    tell(
        settings["commit"] == "off",
        f"{commit}: a crash loses the last commits",
        remedy,
        grave=True,
    )
    tell(
        settings["commit"] != "off" and settings["commit_by_default"] == "off",
        f"{commit}: Oyez turns it on for its own connections, but not for what is published by SQL",
        remedy,
        grave=False,
    )
    tell(
        bool(unlogged),
        f"tables {', '.join(unlogged)} are unlogged: a crash empties them",
        "; ".join(f"alter table {name} set logged" for name in unlogged) + ";",
        grave=True,
    )
    tell(
        settings["standby"] == "on",
        "this server is a standby: it takes no writes",
        "name the primary in the URL, or all servers: HOST:PORT,HOST:PORT",
        grave=False,
    )
    major = int(settings["server_version_num"]) // 10_000
    tell(
        major < OLDEST,
        f"PostgreSQL {settings['server_version']} is too old: {OLDEST} or newer is needed",
        "upgrade the server",
        grave=True,
    )
    tell(
        settings["server_encoding"] != "UTF8",
        f"the database's encoding is {settings['server_encoding']}: not every text fits in",
        "create database NAME encoding 'UTF8' template template0; and move there",
        grave=False,
    )
    tell(
        settings["data_checksums"] != "on",
        "data checksums are off: a damaged disk is not noticed",
        "stop the server and run pg_checksums --enable -D DATA_DIRECTORY",
        grave=False,
    )
    most = int(settings["max_connections"]) - int(settings["superuser_reserved_connections"])
    tell(
        activity["clients"] > 0.9 * most,
        f"{activity['clients']} of {most} connections are in use",
        "alter system set max_connections to more and restart, or put PgBouncer before it",
        grave=False,
    )
    tell(
        activity["idle"] > 0,
        f"{activity['idle']} transactions have been open and idle for over {IDLE:.0f} s: tables "
        "grow, and what they have locked waits",
        "select pg_terminate_backend(pid) from pg_stat_activity where state like "
        f"'idle in transaction%' and state_change < now() - interval '{IDLE:.0f} s';",
        grave=False,
    )
    tell(
        activity["queue"] > 0.25,
        f"the queue of notifications is {activity['queue']:.0%} full: when it is, publishing fails",
        "end the session that listens but is in a transaction: see pg_stat_activity",
        grave=False,
    )
    tell(
        activity["prepared"] > 0,
        f"{activity['prepared']} prepared transactions are forgotten: tables grow",
        "select gid from pg_prepared_xacts; then rollback prepared 'GID' for each",
        grave=False,
    )
    tell(
        abs(skew) > SKEW,
        f"the server's clock differs from this machine's by {skew:+.1f} s",
        "run a time service (chrony) on both",
        grave=False,
    )
    return found
