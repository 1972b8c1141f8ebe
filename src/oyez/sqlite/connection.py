"""Connections to the file, its schema, and what SQLite's errors mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import apsw

from oyez.errors import (
    ConstraintViolated,
    OyezError,
    StoreCorrupt,
    StoreMissing,
    StoreOutdated,
    StoreRefused,
    StoreUnavailable,
)

T = TypeVar("T")
Job = Callable[[apsw.Connection], T]
"""Work on a connection that begins and ends no transaction."""

Step = str | Job[None]
"""A step of a schema: a script, or a function within the transaction that runs the steps."""

Explain = Callable[[BaseException], BaseException]
"""Returns the StoreError that an error of SQLite means."""

QUICK_CHECK = 64 * 1024 * 1024
"""Files up to this many bytes are checked for damage when they are opened."""
OLDEST_SQLITE = 3_051_003
"""Earlier versions can corrupt a WAL database when several connections write and checkpoint."""


def connect(path: Path, *, durable: bool) -> apsw.Connection:
    """Open a connection. Raises what the driver does."""
    connection = apsw.Connection(str(path), statementcachesize=256)
    connection.set_busy_timeout(5_000)
    connection.execute(f"pragma synchronous={'full' if durable else 'off'}")
    connection.execute("pragma mmap_size=0")
    connection.execute("pragma foreign_keys=on")
    return connection


def prepare(connection: apsw.Connection, *, size: int) -> None:
    """Set up a file of ``size`` bytes, and check it for damage. Raises ``apsw.CorruptError``."""
    if size == 0:  # only a file without any page takes this on; the next line writes the first
        connection.execute("pragma auto_vacuum=incremental")
    connection.execute("pragma journal_mode=wal")
    if 0 < size <= QUICK_CHECK:
        (verdict,) = next(connection.execute("pragma quick_check(1)"))
        if verdict != "ok":
            raise apsw.CorruptError(verdict)


def migrate(
    connection: apsw.Connection, path: Path, steps: Sequence[Step], *, upgrade: bool
) -> None:
    """Run the steps of the schema that the file has not seen, all or none.

    Raises StoreRefused for a newer file and, without ``upgrade``, StoreMissing for one without a
    schema and StoreOutdated for an older one.
    """
    (version,) = next(connection.execute("pragma user_version"))
    newest = len(steps)
    if version > newest:
        raise StoreRefused(
            f"{path} was written by a newer Oyez (schema {version}, this one knows "
            f"{newest}): upgrade Oyez"
        )
    if version < newest and not upgrade:
        if version == 0:
            raise StoreMissing(f"{path} has no tables of Oyez yet")
        raise StoreOutdated(
            f"{path} was written by an older Oyez (schema {version}, this one has {newest}): "
            "start its service with this version, which upgrades it"
        )
    if version < newest:
        with connection:
            for step in steps[version:]:
                if isinstance(step, str):
                    connection.execute(step)
                else:
                    step(connection)
            connection.execute(f"pragma user_version={newest}")


class Reader:
    """Reads on a connection of its own, on one snapshot a job; for one thread."""

    def __init__(self, open_one: Callable[[], apsw.Connection], explain: Explain) -> None:
        """Nothing is opened before the first job."""
        self._open = open_one
        self._explain = explain
        self._connection: apsw.Connection | None = None

    def run(self, job: Job[T]) -> T:
        """Run the job on what is committed. Raises StoreErrors instead of the driver's."""
        try:
            if self._connection is None:
                self._connection = self._open()
                self._connection.execute("pragma query_only=on")
            connection = self._connection
            connection.execute("begin")
            try:
                return job(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("rollback")
        except apsw.Error as error:
            explained = self._explain(error)
            raise explained from explained.__cause__

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def explain(path: Path, error: BaseException) -> BaseException:
    """Return the StoreError that an error of SQLite means; any other error as it is."""
    if isinstance(error, apsw.ConstraintError):
        explained: OyezError = ConstraintViolated(str(error))
    elif isinstance(error, apsw.CorruptError | apsw.NotADBError):
        what = " ".join(str(error).split())
        explained = StoreCorrupt(
            f"{path} is damaged ({what}): stop the service, copy the file and its -wal "
            "aside, and restore a backup or recover it with `sqlite3 FILE .recover`"
        )
    elif isinstance(error, apsw.FullError | apsw.IOError | apsw.CantOpenError):
        explained = StoreUnavailable(f"{path}: {error}: is the disk full?")
    elif isinstance(error, apsw.ReadOnlyError | apsw.PermissionsError | apsw.AuthError):
        explained = StoreUnavailable(f"{path}: {error}: it must be writable")
    elif isinstance(error, apsw.BusyError | apsw.LockedError | apsw.ProtocolError):
        explained = StoreUnavailable(f"{path}: {error}: another program holds it")
    elif isinstance(error, apsw.SQLError):
        explained = StoreRefused(str(error))
    else:
        return error
    explained.__cause__ = error
    return explained
