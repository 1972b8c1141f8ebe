"""SQLAlchemy sessions in Oyez's own transaction, on every store.

A handler with an ``AsyncSession`` parameter (``async def``) or a ``Session`` parameter (plain
``def``) receives a session for its call; `session` opens one in any other transaction. Its writes
are committed with the inbox, the outbox and the position, or not at all.

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
"""The oldest PostgreSQL that a store accepts; later versions accept its SQL."""

_COMMITS = (
    "Oyez began this session's transaction and ends it: {} is refused. Return to commit, raise to "
    "undo, or use session.begin_nested() for a part that may fail"
)
_UNDONE = (
    "a failed flush rolled back this session's writes: let its error leave the handler, or put "
    "what may fail into session.begin_nested()"
)
_ENDED = "this session ended with the handler that it was given to"


@asynccontextmanager
async def session(tx: Transaction) -> AsyncIterator[AsyncSession]:
    """Open a session in this transaction, for ``async with service.transaction() as tx``.

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
    """Open a session for the thread of a plain ``def``; otherwise as `session`."""
    unit = tx.unit
    opened = _Session(link=_Link(unit), engine=_engine(unit.dialect, False))
    try:
        yield opened
        opened.finish()
    finally:
        opened.release()


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """Return whether Alembic manages a table: not Oyez's own ones.

    Pass it to ``context.configure(include_name=…)``.
    """
    return not (type_ == "table" and name is not None and name.startswith("oyez_"))


class _Session(orm.Session):
    """A session in a shared transaction: it flushes, and Oyez commits or rolls back."""

    def __init__(self, *, link: _Link, engine: Engine, **options: Any) -> None:
        super().__init__(**options)
        self._link = link
        self._engine = engine
        self._opened: Connection | None = None

    def get_bind(self, *asked: object, **options: object) -> Connection:
        """Return the connection to the unit of work, created at the first call."""
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
        """Begin a nested transaction; no other is allowed."""
        if not nested:
            _refuse("begin()")
        transaction = super().begin(nested=True)
        self.connection()  # the savepoint comes before what tx.execute queues from now on
        return transaction

    def commit(self) -> None:
        """Refused."""
        _refuse("commit()")

    def rollback(self) -> None:
        """Refused, unless a failed flush has already rolled back."""
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
        """Flush pending writes; raise when earlier ones must not be committed."""
        if self._link.lost is not None:
            raise self._link.lost
        if self._link.undone:
            raise DeclarationError(_UNDONE)
        while (nested := self.get_nested_transaction()) is not None:
            nested.commit()
        self.flush()

    def release(self) -> None:
        """Detach its objects and release the connection, without waiting."""
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
        """Whether a flush failed: then no write of the session may be committed."""
        self.lost: StoreError | None = None
        """The failure of the store, which the runtime handles even if the handler swallowed it."""
        self.ended = False

    def cursor(self) -> _Cursor:
        return _Cursor(self)

    def commit(self) -> None:
        _refuse("commit()")

    def rollback(self) -> None:
        if self.connected and not self.ended:
            self.undone = True

    def close(self) -> None:
        """Called when its session releases it, or when SQLAlchemy drops it after a cancellation."""

    def run(self, sql: str, sets: Sequence[Sequence[Any]]) -> Answer:
        return self._wait(self._unit.run(sql, sets))

    def savepoint(self, name: str) -> None:
        self._wait(self._unit.savepoint(name))

    def rollback_to(self, name: str) -> None:
        # When everything is rolled back anyway, the error that caused it must not be replaced.
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
        except BaseException:  # cancelled: what was executed is not known
            self.undone = True
            raise


_opening: ContextVar[_Link] = ContextVar("oyez_opening")
"""The connection that the pool's creator returns while a session connects."""


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
        """The SQL itself casts its parameters."""

    async def _async_soft_close(self) -> None:
        """SQLAlchemy's hook: the cursor is done, its rows are not fetched yet."""


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
        """Required by the PostgreSQL dialect; the store handles the case."""

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
    """The parts of a dialect that depend on the connection being a unit of work."""

    supports_server_side_cursors = False
    supports_sane_multi_rowcount = False
    has_terminate = False
    _speaks: tuple[int, ...]

    def initialize(self, connection: Connection) -> None:
        # SQLAlchemy holds a lock meanwhile: with a query here, two transactions could deadlock.
        self.server_version_info = self._speaks
        self.default_schema_name = None

    def on_connect(self) -> Any:
        return None

    def do_terminate(self, dbapi_connection: Any) -> None:
        dbapi_connection.close()

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
    favor_returning_over_lastrowid = True  # otherwise it costs one more statement

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
    """Return the engine of a dialect, which caches compiled SQL and holds no connection."""
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
