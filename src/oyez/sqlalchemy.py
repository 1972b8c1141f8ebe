"""SQLAlchemy inside Oyez's own transaction, on whichever store the service has.

A handler that asks for an ``AsyncSession`` (``async def``) or a ``Session`` (plain ``def``) gets
one for the time of its call; `session` gives one to any other transaction. What it writes commits
with the inbox, the outbox and the position, or not at all.

There is no second connection and no second driver. SQLAlchemy's own dialects write the SQL, and the
DBAPI below hands it to the unit of work. A session's calls run in a greenlet on the event loop or,
from the thread of a plain ``def``, hop to the loop and wait there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NoReturn, TypeVar

import apsw
from sqlalchemy import orm, types
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.engine import Connection, Engine, create_engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only, greenlet_spawn

from oyez.errors import (
    ConstraintViolated,
    DeclarationError,
    OyezError,
    StoreError,
    StoreRefused,
)
from oyez.ports import Answer
from oyez.transaction import Transaction, UnitOfWork

T = TypeVar("T")

OLDEST = (12, 0)
"""The oldest PostgreSQL that a store accepts: its SQL is understood by all later ones."""

_COMMITS = (
    "Oyez began this session's transaction and ends it: {} is refused. Return to commit, raise to "
    "undo, or use session.begin_nested() for a part that may fail"
)
_UNDONE = (
    "a failed flush undid what this session wrote: let its error out of the handler, or put what "
    "may fail into session.begin_nested()"
)
_ENDED = "this session ended with the handler that it was given to"


@asynccontextmanager
async def session(tx: Transaction) -> AsyncIterator[AsyncSession]:
    """A session in this transaction, for ``async with service.transaction() as tx``.

    It is flushed when the block ends, and its objects are detached. Raises DeclarationError for
    ``commit``, ``rollback`` and ``close``, and when a flush failed and its error was swallowed.
    """
    unit = tx.unit
    opened = AsyncSession(
        sync_session_class=_Session, link=_Link(unit), engine=_engine(unit.dialect, True)
    )
    inner = opened.sync_session
    assert isinstance(inner, _Session)
    try:
        yield opened
        await greenlet_spawn(inner.finish)
    finally:
        inner.release()


@contextmanager
def session_on_thread(tx: Transaction) -> Iterator[orm.Session]:
    """A session in this transaction, for the thread of a plain ``def``; else as `session`."""
    unit = tx.unit
    opened = _Session(link=_Link(unit), engine=_engine(unit.dialect, False))
    try:
        yield opened
        opened.finish()
    finally:
        opened.release()


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """For Alembic's ``context.configure(include_name=…)``: it leaves Oyez's own tables alone."""
    return not (type_ == "table" and name is not None and name.startswith("oyez_"))


class _Session(orm.Session):
    """A session whose transaction others share: it flushes, and leaves the rest to Oyez."""

    def __init__(self, *, link: _Link, engine: Engine, **options: Any) -> None:
        super().__init__(**options)
        self._link = link
        self._engine = engine
        self._opened: Connection | None = None

    def get_bind(self, *asked: object, **options: object) -> Connection:
        """The connection to the unit of work, made when it is first needed."""
        if self._link.ended:
            raise DeclarationError(_ENDED)
        if self._opened is None:
            token = _opening.set(self._link)
            try:
                self._opened = self._engine.connect()
            finally:
                _opening.reset(token)
            self._link.connected = True
        return self._opened

    def begin(self, nested: bool = False) -> orm.SessionTransaction:
        """Only a nested transaction can be begun."""
        if not nested:
            _refuse("begin()")
        transaction = super().begin(nested=True)
        self.connection()  # the savepoint stands before what tx.execute queues from here on
        return transaction

    def commit(self) -> None:
        """Refused."""
        _refuse("commit()")

    def rollback(self) -> None:
        """Refused, unless a failed flush has done it already."""
        if not self._link.undone:
            _refuse("rollback()")
        super().rollback()

    def close(self) -> None:
        """Refused."""
        _refuse("close()")

    def reset(self) -> None:
        """Refused."""
        _refuse("reset()")

    def invalidate(self) -> None:
        """Refused."""
        _refuse("invalidate()")

    def finish(self) -> None:
        """Write what is left to write; raises when what was written is not to be kept."""
        if self._link.lost is not None:
            raise self._link.lost
        if self._link.undone:
            raise DeclarationError(_UNDONE)
        while (nested := self.get_nested_transaction()) is not None:
            nested.commit()
        self.flush()

    def release(self) -> None:
        """Detach its objects and let go of the connection; waits for nothing."""
        self._link.ended = True
        super().close()
        if self._opened is not None:
            self._opened.close()


def _refuse(what: str) -> NoReturn:
    raise DeclarationError(_COMMITS.format(what))


# -- the DBAPI -------------------------------------------------------------------------------------


class _Link:
    """A DBAPI connection (PEP 249) that is a unit of work."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self.connected = False
        self.undone = False
        """A flush failed: what came before it in the session is not to be kept either."""
        self.lost: StoreError | None = None
        """The store failed. That is the runtime's to judge, whatever the handler makes of it."""
        self.ended = False

    def cursor(self) -> _Cursor:
        return _Cursor(self)

    def commit(self) -> None:
        _refuse("commit()")

    def rollback(self) -> None:
        if self.connected and not self.ended:
            self.undone = True

    def close(self) -> None:
        """Its session has let go of it, or SQLAlchemy gave it up after a cancellation."""

    def run(self, sql: str, sets: Sequence[Sequence[Any]]) -> Answer:
        return self._wait(self._unit.run(sql, sets))

    def savepoint(self, name: str) -> None:
        self._wait(self._unit.savepoint(name))

    def rollback_to(self, name: str) -> None:
        # Where all is undone anyway, the error that leads there must not be replaced.
        if not (self.ended or self.undone or self.lost):
            self._wait(self._unit.rollback_to(name))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self.ended or self.undone:
            work.close()
            raise DeclarationError(_ENDED if self.ended else _UNDONE)
        try:
            return await_only(work) if _on_the_loop() else self._unit.wait_for(work)
        except ConstraintViolated as error:
            raise _Driver.IntegrityError(str(error)) from error
        except StoreRefused as error:
            raise _Driver.ProgrammingError(str(error)) from error
        except StoreError as error:
            self.lost = error
            raise
        except (OyezError, SQLAlchemyError):
            raise
        except Exception as error:
            raise _Driver.ProgrammingError(str(error)) from error
        except BaseException:  # cancelled: nobody knows how far it came
            self.undone = True
            raise


_opening: ContextVar[_Link] = ContextVar("oyez_opening")
"""What the pool's creator returns while a session connects."""


class _Cursor:
    """A DBAPI cursor: the rows of one answer."""

    arraysize = 1

    def __init__(self, link: _Link) -> None:
        self._link = link
        self._rows: deque[Sequence[Any]] = deque()
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1

    @property
    def lastrowid(self) -> int:
        (row,) = self._link.run("select last_insert_rowid()", [()]).rows
        return int(row[0])

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        self._take(self._link.run(sql, [parameters]))

    def executemany(self, sql: str, sets: Sequence[Sequence[Any]]) -> None:
        self._take(self._link.run(sql, sets))

    def _take(self, answer: Answer) -> None:
        described = [(name, code, None, None, None, None, None) for name, code in answer.columns]
        self.description = described or None
        self._rows = deque(answer.rows)
        self.rowcount = answer.changed

    def fetchone(self) -> Sequence[Any] | None:
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Sequence[Any]]:
        wanted = min(size or self.arraysize, len(self._rows))
        return [self._rows.popleft() for _ in range(wanted)]

    def fetchall(self) -> list[Sequence[Any]]:
        rows, self._rows = list(self._rows), deque()
        return rows

    def close(self) -> None:
        self._rows.clear()

    def setinputsizes(self, *sizes: object) -> None:
        """Types are told in the SQL itself."""

    async def _async_soft_close(self) -> None:
        """SQLAlchemy's own: the cursor is done, its rows are still to be taken."""


class _Driver:
    """A DBAPI module."""

    class Error(Exception):
        pass

    class InterfaceError(Error):
        pass

    class DatabaseError(Error):
        pass

    class OperationalError(DatabaseError):
        pass

    class ProgrammingError(DatabaseError):
        pass

    class IntegrityError(DatabaseError):
        pass

    class InvalidCachedStatementError(DatabaseError):
        """The PostgreSQL dialect looks for it; the store handles what it stands for."""

    class InternalServerError(DatabaseError):
        """As above."""

    Binary = bytes
    sqlite_version_info = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))

    def __init__(self, paramstyle: str) -> None:
        self.paramstyle = paramstyle

    @property
    def asyncpg(self) -> Any:
        import asyncpg

        return asyncpg


def _on_the_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# -- the dialects ----------------------------------------------------------------------------------


class _InUnit(DefaultDialect):
    """What a dialect must know of a connection that is a unit of work."""

    supports_server_side_cursors = False
    supports_sane_multi_rowcount = False
    has_terminate = False
    _speaks: tuple[int, ...]

    def initialize(self, connection: Connection) -> None:
        # SQLAlchemy holds a lock meanwhile. Were the database asked, two transactions could each
        # wait for what the other holds.
        self.server_version_info = self._speaks
        self.default_schema_name = None

    def on_connect(self) -> Any:
        return None

    def is_disconnect(self, e: object, connection: object, cursor: object) -> bool:
        return False

    def set_isolation_level(self, dbapi_connection: object, level: object) -> None:
        _refuse("another isolation level")

    def do_savepoint(self, connection: Connection, name: str) -> None:
        _link(connection).savepoint(name)

    def do_rollback_to_savepoint(self, connection: Connection, name: str) -> None:
        _link(connection).rollback_to(name)

    def do_release_savepoint(self, connection: Connection, name: str) -> None:
        _link(connection).run(f"release savepoint {name}", [()])


class SqliteDialect(_InUnit, SQLiteDialect):
    """SQLAlchemy's SQL for SQLite."""

    driver = "oyez"
    supports_statement_cache = True
    _speaks = _Driver.sqlite_version_info
    favor_returning_over_lastrowid = True  # else it is asked for by one more statement

    @classmethod
    def import_dbapi(cls) -> Any:
        """What executes it."""
        return _Driver("qmark")

    @classmethod
    def get_async_dialect_cls(cls, url: object) -> type[SqliteDialect]:
        """The same in a greenlet."""
        return _AsyncSqliteDialect


class _AsyncSqliteDialect(SqliteDialect):
    supports_statement_cache = True
    is_async = True


class PostgresDialect(_InUnit, PGDialect_asyncpg):
    """SQLAlchemy's SQL for PostgreSQL as asyncpg takes it."""

    driver = "oyez"
    supports_statement_cache = True
    is_async = False
    _speaks = OLDEST
    _backslash_escapes = False
    colspecs = {**PGDialect_asyncpg.colspecs, types.JSON: JSON, JSONB: JSONB}  # noqa: RUF012
    supports_native_json_deserialization = False
    dialect_injects_custom_json_deserializer = False

    @classmethod
    def import_dbapi(cls) -> Any:
        """What executes it."""
        return _Driver("numeric_dollar")

    @classmethod
    def get_async_dialect_cls(cls, url: object) -> type[PostgresDialect]:
        """The same in a greenlet."""
        return _AsyncPostgresDialect


class _AsyncPostgresDialect(PostgresDialect):
    supports_statement_cache = True
    is_async = True


registry.register("sqlite.oyez", __name__, "SqliteDialect")
registry.register("postgresql.oyez", __name__, "PostgresDialect")


def _link(connection: Connection) -> _Link:
    link: Any = connection.connection.dbapi_connection
    assert isinstance(link, _Link)
    return link


@cache
def _engine(dialect: str, asynchronous: bool) -> Engine:
    """One per kind: it keeps what SQLAlchemy has compiled, and no connection."""
    if dialect not in ("sqlite", "postgresql"):
        raise DeclarationError(f"SQLAlchemy sessions: expected a known store, found {dialect}")
    options: dict[str, Any] = {
        "creator": _opening.get,
        "poolclass": NullPool,
        "pool_reset_on_return": None,
        "hide_parameters": True,  # errors are logged and kept with dead letters
    }
    url = f"{dialect}+oyez://"
    if asynchronous:
        return create_async_engine(url, **options).sync_engine
    return create_engine(url, **options)
