"""The store in PostgreSQL and its transactions, as `oyez.ports` specifies them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from asyncpg import exceptions as pg

from oyez.ambient import Ambient
from oyez.endpoint import Endpoint, limits
from oyez.errors import (
    ConstraintViolated,
    StateConflict,
    StoreRefused,
    StoreUnavailable,
    TransactionExpired,
)
from oyez.ports import (
    Announcement,
    Answer,
    Capabilities,
    Changes,
    Finding,
    Kept,
    Parameters,
    Parked,
    Row,
    Writes,
)
from oyez.postgresql import Connection, Listener, PostgresServer, ServerOptions
from oyez.stores.postgres import schema
from oyez.stores.postgres.changes import apply, check_fence, fence, fence_text, short
from oyez.stores.postgres.lease import Deaths, Lease, leave
from oyez.stores.postgres.routine import Routine
from oyez.stores.postgres.state import load
from oyez.stores.postgres.statements import answer, query, write
from oyez.tables import Inbox, Outbox, halves, reserved

T = TypeVar("T")

HOLD = 30.0
"""Seconds after which a transaction that blocks others is rolled back."""
LOCK_WAIT = 0.3
"""Seconds that a commit waits for locked rows; then, as in a deadlock, it is made exclusively."""
BRIEF = f"set local lock_timeout = {LOCK_WAIT * 1000:.0f}"
"""SQL that sets this limit."""
MIGRATION = 3_600.0
"""Seconds that one migration may take."""
_LEFT = "left"
"""What is told on the channel when a replica has left; otherwise the name of a store."""
_CLEANING = 5.0
"""Seconds for the rollback of a connection after a failure; after that it is closed."""
_ATTEMPTS = 6
"""The number of attempts at a commit that conflicts with others."""

_IDLE = f"idle_in_transaction_session_timeout = {(HOLD + 5) * 1000:.0f}"
"""The server's own limit like `HOLD`, for a process that is paused or out of reach."""

_headers = msgspec.json.Decoder(dict[str, str]).decode
_history = msgspec.json.Decoder(list[dict[str, Any]]).decode

_SEEN = """select i.event_id, i.source, i.handler
 from unnest($1::text[], $2::text[], $3::text[]) e (event_id, source, handler)
 cross join lateral (select event_id, source, handler from oyez_inbox
  where event_id = e.event_id and source = coalesce(e.source, ($2)[1])
   and handler = coalesce(e.handler, ($3)[1]) and reader = $4 limit 1) i"""
"""The limit makes it a look in the index for each: as a join, a plan made while the inbox was
empty would go on to scan all of it."""
_OUTBOX = f"""select seq, due, stream, key, headers, data from (
  (select * from oyez_outbox where due = 0 and seq > $1 and state = {Outbox.WAITING:d}
   order by seq limit $3)
  union all
  (select * from oyez_outbox where due > 0 and due <= $2 and state = {Outbox.WAITING:d}
   order by due, seq limit $4 offset $5)
) due order by due, seq"""
_DUE_IF = f"""select i.seq, event_id, source, handler, i.reader, i.stream, i.partition, i.position,
  chain, due, attempt, history, key, headers, data
 from oyez_inbox i join oyez_cursor c
  on c.stream = i.stream and c.partition = i.partition and c.reader = i.reader
 where state = {Inbox.DUE:d} and handler = $1 and due {{when}} and c.owner = $3
 order by due, i.seq limit $4"""
_DUE = f"""select * from ({_DUE_IF.format(when="= 0")}) at_once
 union all select * from ({_DUE_IF.format(when="> 0 and due <= $2")}) late"""
_MISSING = """select string_agg(p, ', ') as privileges
 from unnest(array['select', 'insert', 'update', 'delete']) p
 where exists (select from unnest($1::text[]) t where not has_table_privilege(t, p))"""

_CONFLICTS = (
    pg.TransactionRollbackError,
    pg.LockNotAvailableError,
    pg.InvalidCachedStatementError,
)


class PostgresOptions(ServerOptions, frozen=True, kw_only=True):
    """The options of the store."""

    schema: str = "public"
    """The schema of the service's tables and Oyez's, created if missing; the whole search path."""
    connections: Annotated[int, limits(2, 1_000_000)] = 16
    """The limit of connections, a quarter of them for reads; two more listen and keep the lease."""
    isolation: Literal["exclusive", "read-committed"] = "exclusive"
    """``exclusive``: from its first read a transaction runs alone, on all replicas.
    ``read-committed``: transactions are concurrent and lock rows (``select … for update``).
    """


class PostgresStore:
    """A store in one schema of a database; an `oyez.ports.Store`."""

    def __init__(self, endpoint: Endpoint, ambient: Ambient, options: PostgresOptions) -> None:
        """Connect nothing yet. Raises ConfigurationError."""
        self.capabilities = Capabilities(durability="power-loss", history=False, processes=True)
        self.options = options
        self._ambient = ambient
        reads = max(1, options.connections // 4)
        path = f'set search_path = "{options.schema}"'
        # A snapshot must not wait for a transaction to release its connection.
        self._reads = PostgresServer(
            endpoint,
            ambient,
            msgspec.structs.replace(options, connections=reads),
            session=f"{path}; set default_transaction_read_only = on",
        )
        self.server = PostgresServer(
            endpoint,
            ambient,
            msgspec.structs.replace(options, connections=options.connections - reads),
            session=(f"{path}; set {_IDLE}; set default_transaction_isolation = 'read committed'"),
        )
        self.turn = asyncio.Lock()
        """Held by the exclusive transaction of this process, or the one that waits to be."""
        self._key = schema.lock_key("store", options.schema)
        self._routine = Routine(self._lock_text())
        self._channel = f"oyez_{sha256(options.schema.encode()).hexdigest()[:16]}"
        self._name = f"{ambient.bits(64):016x}"
        self._listener = Listener(self._reads, self._channel, self._heard, self._called_back)
        self._callbacks: list[Callable[[], None]] = []
        self._leavers: list[Callable[[], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ringing = False
        self._ringer: asyncio.Task[None] | None = None
        self._lease: Lease | None = None
        self._deaths = Deaths(self.server)
        self._open = False

    async def open(self, *, create: bool = True) -> None:
        if self._open:
            return
        try:
            async with self.server.connection() as connection:
                await schema.prepare(connection, self.options.schema, create=create)
            durability = await self.server.durability()
            self._reads.pooled = self.server.pooled
            self.capabilities = msgspec.structs.replace(self.capabilities, durability=durability)
        except BaseException:
            await self.close()
            raise
        self._open = True

    async def close(self) -> None:
        self._open = False
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.stop()
        await self._listener.stop()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._reads.close()
        await self.server.close()

    async def migrate(self, scripts: Sequence[tuple[str, str]]) -> list[str]:
        return [name for name, sql in scripts if await self._migrate(name, sql)]

    def begin(self, *, claims: bool = False) -> PostgresTransaction:
        return PostgresTransaction(self, free=claims)

    async def fetch(self, sql: str, parameters: Parameters) -> list[Row]:
        async with self._reads.connection() as connection:
            if not self._reads.pooled:
                return await query(connection, sql, parameters)
            await connection.execute(f"begin read only; {self._local()}")
            rows = await query(connection, sql, parameters)
            await connection.execute("commit")
            return rows

    async def seen(
        self, events: Sequence[tuple[str, str, str]], reader: str = ""
    ) -> set[tuple[str, str, str]]:
        if not events:
            return set()
        ids, sources, handlers = zip(*events, strict=True)
        rows = await self._own(_SEEN, ids, short(sources), short(handlers), reader)
        return {(row["event_id"], row["source"], row["handler"]) for row in rows}

    async def outbox(self, after: int, now: float, limit: int) -> list[Announcement]:
        share = reserved(limit)
        rows = await self._own(_OUTBOX, after, now, limit, share, 0)
        late = [row for row in rows if row["due"] > 0]
        at_once = rows[: len(rows) - len(late)][: limit - len(late)]
        if len(late) == share and len(at_once) < limit - share:
            late += await self._own(_OUTBOX, after, now, 0, limit - len(at_once) - share, share)
        return [
            Announcement(
                seq=seq, due=due, stream=stream, key=key, headers=_headers(headers), data=data
            )
            for seq, due, stream, key, headers, data in (*at_once, *late)
        ]

    async def due(self, owner: str, handler: str, now: float, limit: int) -> list[Parked]:
        found = []
        rows = await self._own(_DUE, handler, now, owner, limit)
        late = [row for row in rows if row["due"] > 0]
        for row in halves(rows[: len(rows) - len(late)], late, limit):
            fields = dict(row)
            fields["history"] = _history(row["history"])
            fields["headers"] = _headers(row["headers"])
            found.append(Parked(**fields))
        return found

    async def keep(self, owner: str, seconds: float, note: str) -> None:
        if self._lease is None:
            self._lease = Lease(self.server, owner, seconds, note)
            try:
                await self._lease.start()
            except BaseException:
                self._lease = None
                raise

    async def bury(self) -> None:
        await self._deaths.bury("" if self._lease is None else self._lease.owner)

    async def leave(self, owner: str) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.stop()
        async with self.server.connection() as connection:
            await leave(connection, owner, self.options.schema)
            if self.server.can_listen():
                await connection.execute("select pg_notify($1, $2)", self._channel, _LEFT)

    async def inspect(self) -> Sequence[Finding]:
        found = await self.server.inspect()
        tables = [schema.qualified(name, self.options.schema) for name in schema.NAMES]
        async with self._reads.connection() as connection:
            missing = await connection.fetchval(_MISSING, tables)
        if missing:
            found.append(
                Finding(
                    grave=False,
                    what=f"the URL's user lacks a privilege on Oyez's tables: {missing}",
                    remedy=f'grant {missing} on all tables in schema "{self.options.schema}" to it',
                )
            )
        return found

    def on_commit(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)
        self._listener.start()

    def on_leave(self, callback: Callable[[], None]) -> None:
        self._leavers.append(callback)
        self._listener.start()

    # -- for transactions --------------------------------------------------------------------------

    @property
    def alone(self) -> bool:
        """Whether transactions that read are exclusive."""
        return self.options.isolation == "exclusive"

    def begin_text(self, *, exclusive: bool, then: str = "", free: bool = False) -> str:
        """Return SQL that begins a transaction, takes its lock and then runs ``then``.

        One that is ``free`` takes none.
        """
        parts = ["begin isolation level read committed"]
        if self.server.pooled:
            parts += [self._local(), f"set local {_IDLE}"]
        if self.alone and not free:
            shared = "" if exclusive else "_shared"
            parts.append(f"select pg_advisory_xact_lock{shared}({self._key})")
            if not exclusive:
                parts.append(BRIEF)
        if then:
            parts.append(then)
        return "; ".join(parts)

    def _lock_text(self) -> str:
        """Return what `begin_text` does for a transaction beside others, in PL/pgSQL."""
        if not self.alone:
            return ""
        return (
            f"perform pg_advisory_xact_lock_shared({self._key});\n"
            f"perform set_config('lock_timeout', '{LOCK_WAIT * 1000:.0f}', true);"
        )

    async def commit(self, changes: Changes) -> None:
        """Commit a transaction without reads."""
        # A claim's row serializes the commits of its chains; without one they need exclusivity.
        exclusive = changes.claim is None and bool(changes.parked or changes.settled)
        for attempt in range(1, _ATTEMPTS + 1):
            async with self.server.within():
                try:
                    await self._commit(changes, exclusive)
                except _CONFLICTS:
                    if attempt == _ATTEMPTS:
                        raise
                    exclusive = True  # all writes are at hand, so no handler need run again
                else:
                    return

    async def _commit(self, changes: Changes, exclusive: bool) -> None:
        claim = changes.claim
        then = "" if claim is None else fence_text(claim, changes.position)
        connection = await self.server.acquire()
        try:
            if not (exclusive or self.server.pooled) and await self._routine.commit(
                connection, changes
            ):
                self.server.release(connection, sound=True)
                return
            done = await connection.execute(self.begin_text(exclusive=exclusive, then=then))
            if claim is not None:
                check_fence(claim, done)
            await apply(connection, changes)
            await connection.execute("commit")
        except BaseException:
            self.clean(connection)
            raise
        self.server.release(connection, sound=True)

    def clean(self, connection: Connection) -> None:
        """Roll back the connection in the background, which may take a while, and release it."""

        async def work() -> None:
            sound = False
            try:
                async with asyncio.timeout(_CLEANING):
                    await connection.execute("rollback")
                    sound = True
            except (pg.PostgresError, pg.InterfaceError, OSError):
                pass  # the connection is not used again
            finally:
                self.server.release(connection, sound=sound)

        self._spawn(work())

    def ring(self) -> None:
        """Notify all replicas that outbox or parked events changed.

        Others are notified after the commit: a notification within it would serialize all commits
        of the server. Further rings meanwhile are combined.
        """
        self._called_back()
        if self.server.can_listen():
            self._ringing = True
            if self._ringer is None or self._ringer.done():
                self._ringer = self._spawn(self._notify())

    # -- the rest ----------------------------------------------------------------------------------

    def _local(self) -> str:
        return f'set local search_path = "{self.options.schema}"'

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _own(self, sql: str, *values: Any) -> list[Any]:
        async with self._reads.connection() as connection:
            return await connection.fetch(schema.qualified(sql, self.options.schema), *values)

    async def _notify(self) -> None:
        while self._ringing:
            self._ringing = False
            with contextlib.suppress(StoreUnavailable, StoreRefused):  # they poll anyway
                async with self._reads.connection() as connection:
                    await connection.execute("select pg_notify($1, $2)", self._channel, self._name)

    def _heard(self, payload: str) -> None:
        if payload == _LEFT:
            for callback in self._leavers:
                callback()
        if payload != self._name:
            self._called_back()

    def _called_back(self) -> None:
        for callback in self._callbacks:
            callback()

    async def _migrate(self, name: str, sql: str) -> bool:
        digest = sha256(sql.encode()).hexdigest()
        async with self.server.connection(MIGRATION) as connection:
            await connection.execute(self.begin_text(exclusive=True))
            found = await connection.fetchval(
                "select digest from oyez_migration where name = $1", name
            )
            if found is not None:
                await connection.execute("rollback")
                if found != digest:
                    raise StoreRefused(
                        f"migration {name} has run and was changed since: restore it and put the "
                        "change into a new file with the next number"
                    )
                return False
            try:
                await connection.execute(sql)
            except pg.PostgresError as error:
                await connection.execute("rollback")
                explained = self.server.explain(error)
                raise type(explained)(f"migration {name}: {explained}") from None
            if not connection.is_in_transaction():
                raise StoreRefused(
                    f"migration {name} ended the transaction that it ran in, and is half done: "
                    "remove its commit or rollback"
                )
            now = self._ambient.now()
            await connection.execute(
                "insert into oyez_migration values ($1, $2, $3)", name, digest, now
            )
            await connection.execute("commit")
        return True


class PostgresTransaction:
    """A transaction; an `oyez.ports.StoreTransaction`.

    If it only writes, it takes a connection when it commits. The first read takes a connection and
    the turn. One that loads keyed state, and does not read, takes a connection and locks the rows.
    """

    dialect = "postgresql"

    def __init__(self, store: PostgresStore, *, free: bool = False) -> None:
        """One that is ``free`` takes no turn: who hands partitions over waits for no handler."""
        self._store = store
        self._free = free
        self._connection: Connection | None = None
        self._has_turn = False
        self._shared = False
        """Whether it runs beside others, and so may not read."""
        self._loaded: list[Kept] = []
        self._timer: asyncio.TimerHandle | None = None
        self._failure: Exception | None = None
        self._step = asyncio.Lock()

    async def fetch(self, sql: str, parameters: Parameters, before: Writes) -> list[Row]:
        return await self._do(before, lambda connection: query(connection, sql, parameters))

    async def run(self, sql: str, sets: Sequence[Sequence[Any]], before: Writes) -> Answer:
        return await self._do(before, lambda connection: answer(connection, sql, sets))

    async def load(self, keys: Sequence[tuple[str, str]], *, alone: bool) -> list[Kept]:
        async with self._step:
            self._check()
            try:
                async with self._store.server.within(), _conflicts():
                    connection = self._connection or await self._begin(exclusive=alone)
                    rows = await load(connection, keys)
                    self._loaded += rows
                    return rows
            except BaseException as error:
                self._fail(error)
                raise

    async def rollback_to(self, savepoint: str) -> None:
        if self._connection is not None:  # otherwise it has failed for good
            self._failure = None
        await self._do([], lambda connection: connection.execute(f"rollback to {savepoint}"))

    async def commit(self, changes: Changes) -> None:
        store = self._store
        async with self._step:
            self._check()
            try:
                if self._connection is None:
                    await store.commit(changes)
                else:
                    async with store.server.within(), _conflicts(here=bool(self._loaded)):
                        await self._finish(self._connection, changes)
            except BaseException as error:
                self._fail(error)
                raise
            self._let_go(sound=True)
            self._failure = StoreUnavailable("the transaction has ended")
        if changes.ring or changes.announced or changes.parked or changes.retried:
            store.ring()

    async def rollback(self) -> None:
        self._fail(StoreUnavailable("the transaction has ended"))

    async def _do(self, before: Writes, work: Callable[[Connection], Awaitable[T]]) -> T:
        async with self._step:
            self._check()
            try:
                async with self._store.server.within():
                    if self._shared:
                        raise StoreRefused(
                            "a transaction that loaded state or claimed beside others can't read"
                        )
                    connection = self._connection or await self._begin()
                    await write(connection, before)
                    return await work(connection)
            except (ConstraintViolated, StoreRefused) as error:
                self._failure = error  # `rollback_to` may undo it
                raise
            except BaseException as error:
                self._fail(error)
                raise

    async def _begin(self, *, exclusive: bool = True) -> Connection:
        store, free = self._store, self._free
        if store.alone and exclusive and not free:
            await store.turn.acquire()
            self._has_turn = True
        self._shared = store.alone and (free or not exclusive)
        connection = self._connection = await store.server.acquire()
        then = "" if exclusive else BRIEF
        await connection.execute(store.begin_text(exclusive=exclusive, then=then, free=free))
        self._timer = asyncio.get_running_loop().call_later(HOLD, self._expire)
        return connection

    async def _finish(self, connection: Connection, changes: Changes) -> None:
        if changes.claim is not None:
            await fence(connection, changes.claim, changes.position)
        used = {(row.kind, row.key) for row in changes.kept}
        added = [row for row in self._loaded if not row.version]
        unused = [row for row in added if (row.kind, row.key) not in used]
        changes.kept = [*changes.kept, *unused]
        await apply(connection, changes)
        await connection.execute("commit")

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _expire(self) -> None:
        self._fail(
            TransactionExpired(
                f"the transaction was open for more than {HOLD:.0f} s and was rolled back: do slow "
                "work outside of it"
            )
        )

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            cancelled = StoreUnavailable("the transaction was cancelled")
            self._failure = error if isinstance(error, Exception) else cancelled
        self._let_go(sound=False)

    def _let_go(self, *, sound: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if sound:
                self._store.server.release(connection, sound=True)
            else:
                self._store.clean(connection)
        if self._timer is not None:
            self._timer.cancel()
        if self._has_turn:
            self._has_turn = False
            self._store.turn.release()


@contextlib.asynccontextmanager
async def _conflicts(*, here: bool = True) -> AsyncIterator[None]:
    """Raise StateConflict for what the driver raises where another transaction is in the way."""
    try:
        yield
    except _CONFLICTS as error:
        if not here:
            raise
        raise StateConflict(f"another transaction was in the way: {error.args[0]}") from None
