"""Entries in a SQLite file, for the replicas on one machine.

All that waits while one transaction is flushed goes into the next one together: so requests that
are answered at the same time share its cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from oyez.ambient import Ambient
from oyez.config import IdempotencySettings
from oyez.gateway.idempotency.entry import Answered, Entry, Owned, State, answered
from oyez.sqlite import Connection, SqliteFile, bind

_TABLES = """
create table if not exists oyez_gateway_idempotency (
  id blob not null unique,
  holder blob not null, payload blob not null,
  owner blob not null, until real not null,    -- the lease
  expires real not null, answer blob
);
create index if not exists oyez_gateway_idempotency_holder
 on oyez_gateway_idempotency (holder, expires, until);
create index if not exists oyez_gateway_idempotency_expires on oyez_gateway_idempotency (expires);
"""
_FIND = """select payload, until, answer from oyez_gateway_idempotency
 where id = :id and expires > :now"""
_BEGIN = """insert into oyez_gateway_idempotency (id, holder, payload, owner, until, expires)
 values (:id, :holder, :payload, :owner, :until, :expires)
 on conflict (id) do update set payload = excluded.payload, owner = excluded.owner,
  until = excluded.until, expires = excluded.expires, answer = null"""
_END = """update oyez_gateway_idempotency set answer = :answer, owner = x'', until = 0
 where id = :id and owner = :owner"""
_TRIM = """delete from oyez_gateway_idempotency where rowid in (
 select rowid from oyez_gateway_idempotency where holder = :holder and until <= :now
 order by expires desc, rowid desc limit -1 offset :most)"""
_RENEW = "update oyez_gateway_idempotency set until = ? where id = ? and owner = ?"
_SWEEP = """delete from oyez_gateway_idempotency where rowid in (
 select rowid from oyez_gateway_idempotency where expires <= :now limit :step)"""
_STEP = 500
"""Expired entries that are deleted at once."""


class SqliteEntries:
    """The entries in a file; see `oyez.gateway.idempotency.entry.Entries`."""

    def __init__(self, file: SqliteFile, ambient: Ambient, settings: IdempotencySettings) -> None:
        """Nothing is opened yet."""
        self._file = file
        self._ambient = ambient
        self._settings = settings

    async def open(self) -> None:
        """See `Entries`."""
        await self._file.open()
        await self._file.write(lambda connection: connection.execute(_TABLES).fetchall())

    async def close(self) -> None:
        """See `Entries`."""
        await self._file.close()

    async def begin(self, entry: Entry, mark: bytes) -> State | Answered:
        """See `Entries`."""
        settings = self._settings

        def begin(connection: Connection) -> State | Answered:
            now = self._ambient.now()  # it may have waited for its turn
            for row in bind(connection, _FIND, {"id": entry.id, "now": now}):
                if row["payload"] != entry.payload:
                    return State.REUSED
                if row["answer"] is not None:
                    return answered(row["answer"])
                if row["until"] > now:
                    return State.RUNNING
            bind(
                connection,
                _BEGIN,
                {
                    **entry._asdict(),
                    "owner": mark,
                    "until": now + settings.lease,
                    "expires": now + settings.lifetime,
                },
            )
            return State.BEGUN

        return await self._file.write(begin)

    async def end(self, owned: Owned, answer: bytes | None) -> None:
        """See `Entries`."""
        entry, now, most = owned.entry, self._ambient.now(), self._settings.answers

        def end(connection: Connection) -> None:
            bind(connection, _END, {"answer": answer, "id": entry.id, "owner": owned.mark})
            bind(connection, _TRIM, {"holder": entry.holder, "now": now, "most": most})

        await self._file.write(end)

    async def renew(self, running: Sequence[Owned]) -> None:
        """See `Entries`."""
        until = self._ambient.now() + self._settings.lease
        rows = [(until, owned.entry.id, owned.mark) for owned in running]
        await self._file.write(lambda connection: connection.executemany(_RENEW, rows).fetchall())

    async def sweep(self) -> bool:
        """See `Entries`."""
        now = self._ambient.now()

        def sweep(connection: Connection) -> int:
            bind(connection, _SWEEP, {"now": now, "step": _STEP})
            return connection.changes()

        return await self._file.write(sweep) == _STEP
