"""A store in memory that does to its clients what a database server does.

`Database` is the server with its data, one for each service; `SimStore` a client of it, an
`oyez.ports.Store` on the statements of the SQLite store. A commit may fail before or after it took
effect, and the connection of a client that dies is closed: its open transaction is rolled back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import copy_context
from pathlib import Path
from typing import Any, TypeVar

import apsw

from oyez import tables
from oyez.ambient import Ambient, SystemAmbient
from oyez.errors import Fenced
from oyez.ports import (
    Announcement,
    Answer,
    Capabilities,
    Changes,
    Kept,
    Parameters,
    Parked,
    Row,
    Writes,
)
from oyez.simulation.world import Node, store_error
from oyez.sqlite import SqliteFile, bind
from oyez.sqlite.connection import Job, migrate
from oyez.sqlite.turns import Queue, Turn
from oyez.sqlite.writer import Write, Writer
from oyez.stores.sqlite import STEPS, SqliteStore, SqliteTransaction

T = TypeVar("T")

LEASE = 3.0
"""Seconds after which others take over from a process that died, where they can't see it die."""
_FOR_EVER = 1e12

_END = "update oyez_replica set until = 0 where owner = ?"
_RENEW = """insert into oyez_replica (owner, until, started, note) values (?, ?, ?, ?)
  on conflict (owner) do update set until = excluded.until"""
_EPOCHS = "select stream, partition, reader, epoch from oyez_cursor"


Rows = list[list[tuple[Any, ...]]]
"""The rows of each table, in the order of the tables."""


class Template:
    """The data that a service begins with in each run, and the connection of one run at a time.

    The connection of the last run is made what it was at first, if it can be: that costs less than
    preparing all statements anew on another one.
    """

    def __init__(self, image: bytes, migrated: Sequence[Sequence[tuple[str, str]]]) -> None:
        """``migrated`` are the migrations that were made in it."""
        self.migrated = migrated
        self._image = image
        self._free: apsw.Connection | None = None
        self._schema: list[tuple[Any, ...]] = []
        self._tables: list[tuple[str, str, str]] = []
        """Of each table what reads it, what empties it, and what fills it."""
        self._rows: Rows = []

    def take(self, rows: Rows | None = None) -> apsw.Connection:
        """Return a connection to a database with this data, or these rows, and no other."""
        connection, self._free = self._free, None
        if connection is None or not self._restore(connection, rows or self._rows):
            connection = _memory()
            connection.deserialize("main", self._image)
            self._look_at_tables(connection)
            if rows is not None:
                self._restore(connection, rows)
        return connection

    def rows(self, connection: apsw.Connection) -> Rows | None:
        """Return what is in all tables; None where `take` can't make a database of it."""
        if connection.in_transaction or connection.execute(_SCHEMA).fetchall() != self._schema:
            return None
        return [connection.execute(reads).fetchall() for reads, _, _ in self._tables]

    def give(self, connection: apsw.Connection) -> None:
        """Take back a connection that nobody uses any more."""
        if not any(sql.startswith("CREATE VIRTUAL") for _, _, sql in self._schema if sql):
            self._free = connection

    def _look_at_tables(self, connection: apsw.Connection) -> None:
        self._schema = connection.execute(_SCHEMA).fetchall()
        self._tables = []
        for kind, name, _ in self._schema:
            if kind != "table":
                continue
            # The order of the rows is that of their numbers, which some statements depend on.
            (bare,) = connection.execute(_WITHOUT_ROWID, (name,)).fetchall()[0]
            columns = [_quoted(str(each)) for (each,) in connection.execute(_COLUMNS, (name,))]
            named = columns if bare else ["rowid", *columns]
            table, all_of_them = _quoted(name), ", ".join(named)
            values = ", ".join("?" * len(named))
            self._tables.append(
                (
                    f"select {all_of_them} from {table}",
                    f"delete from {table}",
                    f"insert into {table} ({all_of_them}) values ({values})",
                )
            )
        self._rows = self.rows(connection) or []

    def _restore(self, connection: apsw.Connection, rows: Rows) -> bool:
        """Make the data what it was; return False where it can't be."""
        try:
            if connection.in_transaction:
                connection.execute("rollback")
            if connection.execute(_SCHEMA).fetchall() != self._schema:
                return False
            connection.execute("pragma foreign_keys=off")
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
            with connection:
                for (_, empties, fills), each in zip(self._tables, rows, strict=True):
                    connection.execute(empties)
                    if each:
                        connection.executemany(fills, each)
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 1)
            connection.execute("pragma foreign_keys=on")
        except apsw.Error:
            return False
        return True


_SCHEMA = "select type, name, sql from sqlite_schema order by rowid"
_WITHOUT_ROWID = "select wr from pragma_table_list where schema = 'main' and name = ?"
_COLUMNS = "select name from pragma_table_info(?)"


def _memory() -> apsw.Connection:
    """Return a connection to an empty database."""
    connection = apsw.Connection(":memory:", statementcachesize=512)
    connection.execute("pragma foreign_keys=on")
    # Else some statements are prepared anew for each value that is bound.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    return connection


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class Database:
    """The data of one service, in memory."""

    def __init__(self, name: str, template: Template | None = None, world: Any = None) -> None:
        """It begins with the data of ``template``, by default with none."""
        self.file = _File(name, template, None if world is None else world.context)
        self.committed: Callable[[Node | None, Changes], None] = lambda node, changes: None
        """Called after each commit that took effect."""
        self.migrated = [] if template is None else [*template.migrated]
        """The migrations that were made together, which need not be looked at again."""
        self.epochs: dict[tuple[str, int, str], int] = {}
        """How often each place was claimed, by stream, partition and reader."""

    def image(self) -> bytes:
        """Return all data, as it is committed."""
        return self.file.image()

    def leave(self) -> None:
        """Let go of the data: nothing can be read or written any more."""
        self.file.writer.leave()

    def pause(self) -> bool:
        """Keep the data as rows until `resume`, where it can be; return whether."""
        return self.file.writer.pause()

    def resume(self) -> None:
        """Go on with the data that was kept."""
        self.file.writer.resume()

    def query(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """Return the rows of a query, at once."""

        return self.file.look(lambda connection: bind(connection, sql, parameters or {}))

    def count_claims(self) -> None:
        """Set the epochs, after places were claimed."""
        rows: list[Any] = self.file.look(lambda c: c.execute(_EPOCHS).fetchall())
        self.epochs = {(stream, part, reader): epoch for stream, part, reader, epoch in rows}

    def run(self, sql: str, *values: Any) -> None:
        """Change the data from outside, as the server itself does."""

        async def write() -> None:
            await self.file.write(lambda connection: connection.execute(sql, values), ring=True)

        asyncio.get_running_loop().create_task(write(), context=self.file.context)


class SimStore(SqliteStore):
    """A client of a database; an `oyez.ports.Store`."""

    def __init__(self, database: Database, node: Node | None = None) -> None:
        """Without a ``node`` nothing goes wrong."""
        ambient: Ambient = SystemAmbient() if node is None else node.ambient
        super().__init__(Path(database.file.path), ambient, inline=True, durable=False)
        self.capabilities = Capabilities(durability="process-crash", history=False, processes=False)
        self._file = database.file
        self._database = database
        self._node = node
        self._owner = self._note = ""
        self._leaving = False
        self._open: dict[SqliteTransaction, None] = {}
        """The open transactions, in the order in which they began."""
        if node is not None:
            node.on_death.append(self._disconnect)
            node.on_freeze.append(self._stand_still)
            node.on_lapse.append(self._lapse)

    async def open(self, *, create: bool = True) -> None:
        await self._file.open(upgrade=create)

    async def close(self) -> None:
        pass  # others use the database

    async def migrate(self, scripts: Sequence[tuple[str, str]]) -> list[str]:
        if scripts in self._database.migrated:
            return []
        done = await super().migrate(scripts)
        self._database.migrated.append(scripts)
        return done

    def begin(self, *, claims: bool = False) -> SqliteTransaction:
        if self._node is None:
            return SqliteTransaction(self._file)
        return _Transaction(self._database, self._node, self._open, claims)

    async def fetch(self, sql: str, parameters: Parameters) -> list[Row]:
        if self._node is not None and self._node.world.faulty:
            await self._read()
        return self._database.query(sql, parameters)

    async def seen(
        self, events: Sequence[tuple[str, str, str]], reader: str = ""
    ) -> set[tuple[str, str, str]]:
        await self._read()
        return await super().seen(events, reader)

    async def outbox(self, after: int, now: float, limit: int) -> list[Announcement]:
        await self._read()
        return await super().outbox(after, now, limit)

    async def due(self, owner: str, handler: str, now: float, limit: int) -> list[Parked]:
        await self._read()
        return await super().due(owner, handler, now, limit)

    async def keep(self, owner: str, seconds: float, note: str) -> None:
        self._owner, self._note = owner, note
        values = self._lease()
        await self._file.write(lambda connection: connection.execute(_RENEW, values))
        if self._node is not None:
            self._node.world.shake(self._node.service)

    async def leave(self, owner: str) -> None:
        self._leaving = True
        await super().leave(owner)

    async def bury(self) -> None:
        pass  # the database ends the leases of the dead itself

    def on_commit(self, callback: Callable[[], None]) -> None:
        node = self._node
        if node is None:
            super().on_commit(callback)
            return
        node.world.bells.hang(node, callback)
        self._file.on_ring(lambda: None if node.dead else callback())

    def _lease(self) -> tuple[str, float, float, str]:
        return self._owner, _FOR_EVER, self._ambient.now(), self._note

    async def _read(self) -> None:
        """Let a query be slow, or fail."""
        node = self._node
        if node is None or not node.world.faulty:
            return
        faults, choices = node.world.faults, node.world.choices
        fate = choices.pick((faults.slow / 4, faults.unavailable / 4), "query")
        if fate == 1:
            await asyncio.sleep(0.0005 * 4 ** choices.draw(6, "query for"))
        elif fate == 2:
            node.suffer("a query failed")
            raise store_error("simulated: out of reach")

    def _disconnect(self) -> None:
        """Roll back what a client leaves that has died, and end its lease, now or in time."""
        assert self._node is not None
        world = self._node.world
        for transaction in self._open:
            world.loop.create_task(transaction.rollback(), context=world.context)
        wait = 0.0 if world.faults.buried else LEASE
        world.loop.call_later(wait, self._end_lease, context=world.context)

    def _end_lease(self) -> None:
        assert self._node is not None
        self._database.run(_END, self._owner)
        self._node.world.shake(self._node.service)

    def _stand_still(self, seconds: float) -> None:
        """End the lease of a client that does not renew it, until it can again."""
        assert self._node is not None
        world = self._node.world
        if seconds > LEASE:
            world.loop.call_later(LEASE, self._end_lease, context=world.context)
        world.loop.call_later(max(seconds, LEASE) + 0.01, self._renew, context=world.context)

    def _lapse(self, seconds: float) -> None:
        """End the lease of a client whose renewals don't arrive, until they do again."""
        assert self._node is not None
        world = self._node.world
        self._end_lease()
        world.loop.call_later(seconds, self._renew, context=world.context)

    def _renew(self) -> None:
        assert self._node is not None
        if self._owner and not self._leaving and not self._node.dead:
            # It may be gone altogether: others forget a lease that has ended.
            self._database.run(_RENEW, *self._lease())
            self._node.world.shake(self._node.service)


class _Transaction(SqliteTransaction):
    """A transaction of a node."""

    def __init__(
        self,
        database: Database,
        node: Node,
        opened: dict[SqliteTransaction, None],
        claims: bool,
    ) -> None:
        super().__init__(database.file)
        self._database = database
        self._node = node
        self._opened = opened
        self._claims = claims

    async def fetch(self, sql: str, parameters: Parameters, before: Writes) -> list[Row]:
        await self._query()
        return await super().fetch(sql, parameters, before)

    async def run(self, sql: str, sets: Sequence[Sequence[Any]], before: Writes) -> Answer:
        await self._query()
        return await super().run(sql, sets, before)

    async def load(self, keys: Sequence[tuple[str, str]], *, alone: bool) -> list[Kept]:
        await self._query()
        return await super().load(keys, alone=alone)

    async def commit(self, changes: Changes) -> None:
        node, file = self._node, self._database.file
        context = copy_context()

        async def work() -> None:
            # The node may die or stand still before it hears of what the database has done.
            file.tell(changes, lambda: context.run(self._committed, changes))
            try:
                await super(_Transaction, self).commit(changes)
            except Fenced as error:
                node.world.tell(node.name, f"can't commit: {error}")
                node.world.shake(node.service)
                raise
            self._opened.pop(self, None)

        await node.call("commit", f"commit of {describe(changes)}", work, store_error)

    def _committed(self, changes: Changes) -> None:
        node = self._node
        if self._claims:
            self._database.count_claims()
        if self._claims or any(sql == tables.RELEASE for sql, _ in changes.writes):
            node.world.shake(node.service)
        elif changes.claim is not None or changes.announced or changes.ring:
            node.world.stir(node.service)  # and not for what is tidied up now and then
        self._database.committed(node, changes)

    async def rollback(self) -> None:
        await super().rollback()
        # Only now: if the node dies before, it is left to the database to undo it.
        self._opened.pop(self, None)

    async def _query(self) -> None:
        node = self._node
        self._opened[self] = None
        world = node.world
        if world.faulty and world.choices.pick((world.faults.unavailable / 4,), "ask"):
            node.suffer("a query in a transaction failed")
            raise store_error("simulated: the connection was lost")


class _Lock:
    """The lock of a file that no other process can open."""

    def take(self) -> None:
        pass

    def drop(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Writer(Writer):
    """The writing connection, to memory."""

    def __init__(self, path: Path, template: Template | None) -> None:
        super().__init__(path, STEPS, durable=False, ring=lambda: None)
        self._template = template
        self._rows: Rows | None = None
        """What was in all tables, while it is paused."""
        self._single = False
        self._before: apsw.Connection | bytes = b""
        """What was committed before the open transaction began."""

    def open(self, upgrade: bool) -> None:
        """Open the database, with the data that it begins with."""
        connection = _memory() if self._template is None else self._template.take()
        self._connection = connection
        self._lock = _Lock()  # type: ignore[assignment]
        migrate(connection, self.path, self._steps, upgrade=upgrade)

    def leave(self) -> None:
        """Give the connection back, for another run."""
        connection, self._connection = self._connection, None
        self._before = b""
        if connection is not None and self._template is not None:
            self._template.give(connection)

    def pause(self) -> bool:
        """Give the connection back, with its data kept, and return whether that could be."""
        if self._template is not None and self._connection is not None:
            self._rows = self._template.rows(self._connection)
        self.leave()
        return self._rows is not None

    def resume(self) -> None:
        """Take a connection with the data that was kept, if there is any."""
        if self._template is not None and self._rows is not None:
            self._connection, self._rows = self._template.take(self._rows), None

    def run(self, writes: list[Write[Any]], *, commit: bool) -> None:
        """Run the writes and commit them, before anyone can read."""
        self._single = True
        if len(writes) == 1 and commit and not self.connection.in_transaction:
            self._run_one(writes[0])
        else:
            super().run(writes, commit=commit)
        self._single = False

    def _run_one(self, entry: Write[Any]) -> None:
        """Run what has a transaction of its own: when it raises, there is nothing else to keep."""
        self.begin()
        try:
            result = entry.job(self.connection)
        except BaseException as error:  # noqa: BLE001 - each job's error is its caller's
            self.connection.execute("rollback")
            self.group.done.append((entry, None, self.explain(error)))
        else:
            self.group.pending.append((entry, result))
            self.commit()

    def begin(self) -> None:
        """Begin a transaction; what was committed before stays readable."""
        if not self._single and not self.connection.in_transaction:
            self._before = self.connection.serialize("main")
        super().begin()

    @property
    def committed(self) -> apsw.Connection:
        """A connection that sees what is committed, and no more."""
        if not self.connection.in_transaction:
            return self.connection
        if isinstance(self._before, bytes):
            image, self._before = self._before, apsw.Connection(":memory:")
            self._before.deserialize("main", image)
        return self._before


class _Queue(Queue):
    """Works in the context of the server, so that no client takes it along when it dies."""

    context: Any = None

    def __init__(self, writer: Writer, *, hold: bool, rang: Callable[[], None]) -> None:
        super().__init__(writer, hold=hold, rang=rang)
        self.told: dict[int, Callable[[], None]] = {}
        """What hears of a commit as soon as it is made, by the id of its changes."""

    def _deliver(self) -> None:
        for entry, _, error in self.writer.group.done:
            changes = getattr(entry.job, "keywords", {}).get("changes")
            told = self.told.pop(id(changes), None)
            if told is not None and error is None:
                told()
        super()._deliver()

    def add(self, entry: Write[Any] | Turn) -> None:
        """Append an entry."""
        if self._pump is None or self._pump.done():
            self._entries.append(entry)
            self._pump = asyncio.get_running_loop().create_task(self._work(), context=self.context)
        else:
            self._entries.append(entry)


class _File(SqliteFile):
    """A file's face over a database in memory, which stays open."""

    def __init__(self, name: str, template: Template | None, context: Any) -> None:
        super().__init__(Path(f":{name}:"), steps=STEPS, inline=True, durable=False)
        self.context = context
        self.writer = self._writer = _Writer(self.path, template)
        queue = _Queue(self._writer, hold=False, rang=self._wrote)
        queue.context = context
        self._queue = self._told_by = queue

    def tell(self, changes: Changes, told: Callable[[], None]) -> None:
        """Call back when these changes are committed, which are about to be."""
        self._told_by.told[id(changes)] = told

    def image(self) -> bytes:
        """Return all data, as it is committed."""
        return bytes(self.writer.committed.serialize("main"))

    async def read(self, job: Job[T]) -> T:
        """Run the job on what is committed."""
        return self.look(job)

    def look(self, job: Job[T]) -> T:
        """Run the job on what is committed, at once."""
        try:
            return job(self.writer.committed)
        except apsw.Error as error:
            explained = self.writer.explain(error)
            raise explained from explained.__cause__


def describe(changes: Changes) -> str:
    """Return what is in a commit, for a story."""
    parts = [f"{handler} of {event_id[-8:]}" for event_id, _, handler in changes.handled]
    parts += [f"{each.handler} of {each.event_id[-8:]}" for each in changes.settled]
    parts += [f"parked {each.handler}" for each in changes.parked]
    parts += [f"retry of {each.handler}" for each in changes.retried]
    parts += [f"a dead letter of {each.handler or 'an unreadable event'}" for each in changes.dead]
    if changes.announced:
        parts.append(f"announcing {', '.join(each.headers['type'] for each in changes.announced)}")
    if changes.sent:
        parts.append(f"{len(changes.sent)} published")
    return "; ".join(parts) or "a position or a claim"
