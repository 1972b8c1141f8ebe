"""One PostgreSQL server: under the broker and the store that live in it.

It promises: a bounded number of connections, and none that failed is used again; every piece of
work ends within its deadline; commits are on the disk when they return, also where the server's
default is ``synchronous_commit=off``; a listener connects again by itself; errors are StoreErrors,
without passwords or parameters in them.

A pooler such as PgBouncer is recognised by the process id that it makes up. Through one, no
statement stays prepared and nothing can be listened to: ``listen`` names an address that goes past.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import asyncpg
import msgspec
from asyncpg import exceptions as pg
from asyncpg.connect_utils import SessionAttribute

from oyez.ambient import Ambient, backoff
from oyez.endpoint import Count, Endpoint, Seconds, Tls, mistrust
from oyez.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    ConstraintViolated,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from oyez.ports import Finding

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection

Ssl = ssl.SSLContext | Literal["prefer", "require", False]

PORT = 5432
OLDEST = 12
"""The oldest major version that is supported."""
KEEPALIVE = 5.0
"""Seconds between two questions to a server that is listened to; it has as many to answer."""
IDLE = 600.0
"""Seconds after which an open transaction that does nothing is a finding."""
SKEW = 2.0
"""Seconds by which the server's clock may differ from ours before it is a finding."""

DRIVER = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What the driver raises; the third when it meets a connection that died while it was idle."""

_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


class Missing(StoreRefused):
    """A schema, a table or a function is not there."""


class ServerOptions(Tls, frozen=True, kw_only=True):
    """How PostgreSQL is reached."""

    schema: str = "oyez"
    """The schema that holds the tables; it is made when it is missing."""
    deadline: Seconds = 10.0
    """Seconds after which a call gives up as unavailable."""
    connections: Count = 8
    """Connections for calls, at most; one more listens."""
    sslmode: Literal["disable", "prefer", "require", "verify-full"] | None = None
    """As in PostgreSQL; ``verify-full`` when ``cafile`` is given, else ``prefer``."""
    listen: str = ""
    """HOST:PORT past a pooler, to hear of changes; ``poll`` never listens, only looks."""
    application_name: str = "oyez"
    """What pg_stat_activity shows."""


def as_broker_error(error: StoreError) -> BrokerError:
    """What a broker raises where its server is a database."""
    if isinstance(error, StoreUnavailable):
        return BrokerUnavailable(str(error))
    return BrokerRefused(str(error))


class PostgresServer:
    """The connections of one process to one server."""

    def __init__(
        self, endpoint: Endpoint, ambient: Ambient, options: ServerOptions, *, session: str = ""
    ) -> None:
        """Nothing is connected yet; ``session`` is SQL that each connection begins with.

        Through a pooler it is left out: there, nothing lasts longer than a transaction. Raises
        ConfigurationError.
        """
        if not _SCHEMA.fullmatch(options.schema):
            raise endpoint.error(
                f"option schema: expected 1 to 40 letters, digits or _, found {options.schema!r}"
            )
        self.options = options
        self.ambient = ambient
        self._session = session
        self.name = ", ".join(f"{host}:{port}" for host, port in endpoint.hosts)
        """The server for people."""
        self.pooled: bool | None = None
        """Whether a pooler stands before it; None before the first connection."""
        self._endpoint = endpoint
        self._listen_at = endpoint.hosts
        if options.listen not in ("", "poll"):
            self._listen_at = Endpoint(f"{endpoint.scheme}://{options.listen}", port=PORT).hosts
        self._ssl: Ssl = _ssl(options)
        self._slots = asyncio.Semaphore(options.connections)
        self._idle: list[tuple[float, Connection]] = []
        self._used: set[Connection] = set()

    async def close(self) -> None:
        """Let go of every connection; what still runs on one fails."""
        idle, self._idle = self._idle, []
        for connection in tuple(self._used):
            connection.terminate()
        closing = [connection.close(timeout=1.0) for _, connection in idle]
        await asyncio.gather(*closing, return_exceptions=True)

    @asynccontextmanager
    async def connection(self, deadline: float | None = None) -> AsyncIterator[Connection]:
        """A connection for one short piece of work that ends within the deadline (seconds).

        To connect, or to wait until one is free, may take the options' deadline besides.

        What the driver raises inside becomes StoreUnavailable, ConstraintViolated or StoreRefused.
        After a cancellation, or when the server failed, the connection is not used again.
        """
        connection: Connection | None = None
        sound = False
        try:
            async with self.within():
                connection = await self.acquire()
            async with self.within(deadline):
                yield connection
                sound = True
        except StoreError as error:
            sound = not isinstance(error, StoreUnavailable)
            raise
        finally:
            if connection is not None:
                self.release(connection, sound=sound)

    @asynccontextmanager
    async def within(self, deadline: float | None = None) -> AsyncIterator[None]:
        """What the driver raises inside becomes a StoreError; all of it ends within the deadline.

        The driver's own error would show values in a traceback, so it is not kept as the cause.
        """
        seconds = self.options.deadline if deadline is None else deadline
        began = self.ambient.monotonic()
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            self._drop_idle(began)
            raise StoreUnavailable(f"{self.name} did not answer within {seconds:g} s") from None
        except DRIVER as error:
            explained = self.explain(error)
            if isinstance(explained, StoreUnavailable):
                self._drop_idle(began)
            raise explained from None

    async def acquire(self) -> Connection:
        """A connection until `release`; waits while all are in use. Raises what the driver does."""
        await self._slots.acquire()
        try:
            connection = self._take() or await self.connect()
        except BaseException:
            self._slots.release()
            raise
        self._used.add(connection)
        return connection

    def release(self, connection: Connection, *, sound: bool) -> None:
        """Give it back; one that is not ``sound``, or has a transaction open, is not used again."""
        self._used.discard(connection)
        if sound and not connection.is_closed() and not connection.is_in_transaction():
            self._idle.append((self.ambient.monotonic(), connection))
        else:
            connection.terminate()
        self._slots.release()

    async def connect(self, *, listening: bool = False) -> Connection:
        """A connection of the caller's own, who terminates it; the driver's errors come through."""
        if self.pooled is None:
            probe = await self._connect(self._endpoint.hosts, cache=0)
            try:
                pid = await probe.fetchval("select pg_backend_pid()")
                self.pooled = pid != probe.get_server_pid()
            finally:
                probe.terminate()
        hosts = self._listen_at if listening else self._endpoint.hosts
        connection = await self._connect(hosts, cache=0 if self.pooled and not listening else 100)
        if not self.pooled:
            try:
                await connection.execute(
                    "select set_config('synchronous_commit', 'on', false)"
                    f" where current_setting('synchronous_commit') = 'off'; {self._session}"
                )
            except BaseException:
                connection.terminate()
                raise
        return connection

    def can_listen(self) -> bool:
        """Whether notifications can be heard; asked after the first connection."""
        return self.options.listen != "poll" and (bool(self.options.listen) or not self.pooled)

    async def durability(self) -> str:
        """``power-loss`` or ``process-crash``: what our commits survive as the server is set up."""
        async with self.connection() as connection:
            settings = await _settings(connection)
        safe = settings["fsync"] == settings["full_page_writes"] == "on"
        return "power-loss" if safe and settings["commit"] != "off" else "process-crash"

    async def inspect(self) -> list[Finding]:
        """What of the server's setup loses commits, or makes it slow or hard to run."""
        async with self.connection() as connection:
            settings = await _settings(connection)
            activity = await connection.fetchrow(_ACTIVITY, IDLE)
            unlogged = await connection.fetch(_UNLOGGED, self.options.schema)
        assert activity is not None
        skew = float(settings["now"]) - self.ambient.now()
        return _judge(settings, dict(activity), [row["relname"] for row in unlogged], skew)

    def explain(self, error: Exception) -> StoreError:
        """The driver's error as ours, without the values of parameters."""
        if isinstance(error, asyncpg.PostgresError):
            told = f"{self.name}: {error.args[0] if error.args else error}"
            if isinstance(error, pg.DataError):
                # What stands behind the colon is a value; the driver's own errors hold one too.
                what = "a parameter has the wrong type or is out of range"
                if error.severity is not None:
                    what = str(error.args[0]).partition(': "')[0]
                return StoreRefused(f"{self.name}: {what}")
            if isinstance(error, pg.IntegrityConstraintViolationError):
                return ConstraintViolated(told)
            if isinstance(error, pg.InvalidAuthorizationSpecificationError) or (
                # PgBouncer's own refusals have the code of a broken protocol.
                isinstance(error, pg.ProtocolViolationError) and re.search("auth|no such", told)
            ):
                return StoreRefused(f"{told}: check the URL's user, password and sslmode")
            if isinstance(error, pg.InvalidCatalogNameError):
                return StoreRefused(f"{told}: create the database, or correct the URL")
            if isinstance(error, pg.InsufficientPrivilegeError):
                return StoreRefused(f"{told}: grant it to the URL's user")
            if isinstance(error, _PASSING):
                return StoreUnavailable(told)
            if isinstance(error, _MISSING):
                return Missing(told)
            return StoreRefused(told)
        if isinstance(error, asyncpg.InterfaceError):
            return StoreUnavailable(f"{self.name}: {error}")
        if distrusted := mistrust(error):
            return StoreRefused(f"{self.name}: {distrusted}")
        what = "is out of reach" if isinstance(error, OSError) else "has cut the connection"
        return StoreUnavailable(f"{self.name} {what}: {error}")

    # -- connections -------------------------------------------------------------------------------

    def _take(self) -> Connection | None:
        while self._idle:
            _, connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            connection.terminate()
        return None

    def _drop_idle(self, began: float) -> None:
        # Where one connection has died the others may have too, and only look alive; those that
        # have answered since the failed work began are not among them.
        idle, self._idle = self._idle, []
        for answered, connection in idle:
            if answered >= began:
                self._idle.append((answered, connection))
            else:
                connection.terminate()

    async def _connect(self, hosts: list[tuple[str, int]], *, cache: int) -> Connection:
        hostnames: list[str] = [host for host, _ in hosts]
        ports: list[int] = [port for _, port in hosts]
        connection: Connection = await asyncpg.connect(
            host=hostnames,
            port=ports,
            user=self._endpoint.user,
            password=self._endpoint.password,
            database=self._endpoint.path or None,
            ssl=self._ssl,
            timeout=self.options.deadline,
            statement_cache_size=cache,
            server_settings={"application_name": self.options.application_name},
            target_session_attrs=SessionAttribute.primary if len(hosts) > 1 else None,
        )
        return connection


class Listener:
    """Hears one channel on a connection of its own, which is made again when it is lost."""

    def __init__(
        self,
        server: PostgresServer,
        channel: str,
        heard: Callable[[str], None],
        joined: Callable[[], None],
    ) -> None:
        """Both are called on the event loop: ``heard`` with each payload, ``joined`` at first and
        after each gap, in which anything may have been missed.
        """
        self._server = server
        self._channel = channel
        self._heard = heard
        self._joined = joined
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen, in the background; where that can't be done, nothing is heard."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"listen {self._channel}")

    async def stop(self) -> None:
        """Listen no more. Safe when never started and when called twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        failures = 0
        ambient = self._server.ambient
        while True:
            began = ambient.monotonic()
            try:
                async with asyncio.timeout(self._server.options.deadline):
                    connection = await self._server.connect(listening=True)
                if not self._server.can_listen():
                    connection.terminate()
                    return
                await self._listen(connection)
            except DRIVER:
                pass
            failures = 1 if ambient.monotonic() - began > KEEPALIVE else failures + 1
            await ambient.sleep(backoff(failures, ambient.chance(), most=2.0))

    async def _listen(self, connection: Connection) -> None:
        """Return when the connection is lost."""
        lost = asyncio.Event()
        connection.add_termination_listener(lambda *_: lost.set())
        try:
            async with asyncio.timeout(self._server.options.deadline):
                await connection.add_listener(self._channel, self._hear)
            self._joined()
            while not connection.is_closed():
                # A connection that died without a word stays silent for ever: ask it.
                with suppress(TimeoutError):
                    async with asyncio.timeout(KEEPALIVE):
                        await lost.wait()
                        return
                await connection.fetchval("select 1", timeout=KEEPALIVE)
        finally:
            connection.terminate()

    def _hear(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        self._heard(str(payload))


_MISSING = (pg.UndefinedTableError, pg.UndefinedFunctionError, pg.InvalidSchemaNameError)
_PASSING = (
    pg.PostgresConnectionError,
    pg.InsufficientResourcesError,
    pg.OperatorInterventionError,
    pg.TransactionRollbackError,
    pg.LockNotAvailableError,
    pg.ReadOnlySQLTransactionError,
    pg.IdleInTransactionSessionTimeoutError,
    pg.PostgresSystemError,
    pg.InvalidCachedStatementError,
    pg.OutdatedSchemaCacheError,
    pg.InvalidSQLStatementNameError,
    pg.DuplicatePreparedStatementError,
)
"""What goes away by itself, or on another connection."""

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


def _ssl(options: ServerOptions) -> Ssl:
    mode = options.sslmode or ("verify-full" if options.cafile is not None else "prefer")
    if mode == "verify-full":
        return options.context()
    if options.certfile is None:
        return False if mode == "disable" else mode
    context = options.context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
