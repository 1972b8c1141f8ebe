"""Renews a process's lease on a thread of its own, and detects the deaths of others.

Beside the lease, the thread's connection holds an advisory lock, which the server releases with the
connection. A free lock means a dead process unless one of these explains it:

- The server was restarted: all locks were released, but the row still names the earlier run of the
  server; such a row remains until its lease expires. A process that reconnects takes its lock in
  the new run before it updates its row.
- The connection was lost, and the process lives: it reconnects within ``RETURN``, so the lock must
  be seen free twice that far apart, with no renewal in between.
- The connection goes through a pooler, where a lock would belong to another session: the row
  records that there is no lock.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from oyez.ambient import backoff
from oyez.postgresql import KEEPALIVE, Connection, PostgresServer
from oyez.stores.postgres.schema import lock_key, qualified

RETURN = 1.0
"""Seconds within which a living process that lost its connection has reconnected."""
_RECONNECT = 0.3
"""The longest pause between two attempts to reconnect, in seconds."""

_SHOW = """select pg_try_advisory_lock($1::int, $2::int) as shown,
  extract(epoch from pg_postmaster_start_time())::text as server"""
_RENEW = """insert into oyez_replica (owner, until, started, note, presence, server)
 values ($1, $2, $3, $4, $5, $6)
 on conflict (owner) do update set until = excluded.until, note = excluded.note,
  presence = excluded.presence, server = excluded.server"""
_OTHERS = """select owner, until, presence from oyez_replica
 where owner <> $1 and until > 0
  and server = extract(epoch from pg_postmaster_start_time())::text"""
_SHOWN = """select objid::bigint as presence from pg_locks
 where locktype = 'advisory' and classid = $1::bigint::oid and objsubid = 2 and granted
  and database = (select oid from pg_database where datname = current_database())"""
_BURY = "update oyez_replica set until = 0 where owner = $1 and until = $2"
_LEAVE = """with gone as (delete from oyez_replica where owner = $1)
 update oyez_cursor set owner = null where owner = $1"""


class Lease:
    """The lease of this process, under the name ``owner``."""

    def __init__(self, server: PostgresServer, owner: str, seconds: float, note: str) -> None:
        self.owner = owner
        self._server = server
        self._seconds = seconds
        self._note = note
        self._failures = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    async def start(self) -> None:
        """Return when the lease is held. Raises StoreUnavailable."""
        loop = asyncio.get_running_loop()
        held = asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # that loop has closed: nothing waits any more
                loop.call_soon_threadsafe(held.set)

        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(tell)), name="oyez-lease", daemon=True
        )
        self._thread.start()
        try:
            async with self._server.within():
                await held.wait()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop renewing it. Safe when called twice."""
        thread, self._thread = self._thread, None
        self._stopped = True
        if thread is not None:
            if self._loop is not None:
                with suppress(RuntimeError):  # it has ended by itself
                    self._loop.call_soon_threadsafe(self._cancel)
            await asyncio.to_thread(thread.join, self._server.options.deadline)

    def _cancel(self) -> None:
        if self._work is not None:
            self._work.cancel()

    # -- on the thread -----------------------------------------------------------------------------

    async def _run(self, tell: Callable[[], None]) -> None:
        ambient = self._server.ambient
        self._loop = asyncio.get_running_loop()
        while not self._stopped:
            self._work = self._loop.create_task(self._hold(tell))
            await asyncio.wait([self._work])
            if not self._work.cancelled():
                self._work.exception()  # whatever the error, the lease is retried
            self._failures += 1
            if not self._stopped:
                await asyncio.sleep(backoff(self._failures, ambient.chance(), most=_RECONNECT))

    async def _hold(self, tell: Callable[[], None]) -> None:
        """Renew until the connection is lost."""
        server = self._server
        direct = server.can_listen()
        async with asyncio.timeout(server.options.deadline):
            connection = await server.connect(listening=direct)
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        try:
            shown: str | None = None
            while not lost.is_set():
                async with asyncio.timeout(self._seconds):
                    if direct and shown is None:
                        # An earlier session, not yet closed by the server, may still hold it.
                        shown = await self._show(connection)
                    await self._renew(connection, shown)
                self._failures = 0
                tell()
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(self._seconds / 3, KEEPALIVE)):
                        await lost.wait()
        finally:
            connection.terminate()

    async def _show(self, connection: Connection) -> str | None:
        place, presence = _space(self._server), presence_of(self.owner)
        row = await connection.fetchrow(_SHOW, _signed(place), _signed(presence))
        return row["server"] if row is not None and row["shown"] else None

    async def _renew(self, connection: Connection, shown: str | None) -> None:
        now = self._server.ambient.now()
        await connection.execute(
            qualified(_RENEW, self._server.options.schema),
            self.owner,
            now + self._seconds,
            now,
            self._note,
            presence_of(self.owner),
            shown,
        )


class Deaths:
    """The detection of other processes that died, by the server's locks."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._missing: dict[tuple[str, float], float] = {}

    async def bury(self, me: str) -> None:
        """End the leases of dead processes; ``me`` is this process."""
        schema = self._server.options.schema
        async with self._server.connection() as connection:
            rows = await connection.fetch(qualified(_OTHERS, schema), me)
            held: set[int] = set()
            if rows:
                locks = await connection.fetch(_SHOWN, _space(self._server))
                held = {row["presence"] for row in locks}
            missing = [(r["owner"], r["until"]) for r in rows if r["presence"] not in held]
            now = self._server.ambient.monotonic()
            self._missing = {one: self._missing.get(one, now) for one in missing}
            for (owner, until), since in self._missing.items():
                if now - since >= RETURN:
                    await connection.execute(qualified(_BURY, schema), owner, until)


async def leave(connection: Connection, owner: str, schema: str) -> None:
    """Give up the owner's lease and all its claims."""
    await connection.execute(qualified(_LEAVE, schema), owner)


def presence_of(owner: str) -> int:
    """Return the number of the lock that a process of this name holds."""
    return lock_key("owner", owner) & 0xFFFF_FFFF


def _space(server: PostgresServer) -> int:
    return lock_key("owners", server.options.schema) & 0xFFFF_FFFF


def _signed(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number
