"""Books on disk: one SQLite file a server, durable before the answer leaves."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outside.server import fail


class Books:
    """One SQLite file, used from the event loop only.

    A statement blocks the loop for as long as the disk takes (about a millisecond). In return a
    transaction never interleaves with another request, so it needs no lock.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, folder: Path, name: str, schema: str) -> Books:
        """The books ``folder/name.db``, created if absent; a one-line error and exit 2 if not."""
        path = folder / f"{name}.db"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("pragma journal_mode = wal")
            # FULL makes every commit wait for the disk: a kill or a power cut loses no answer.
            connection.execute("pragma synchronous = full")
            connection.executescript(schema)
        except (OSError, sqlite3.Error) as error:
            fail(name, f"can't keep books in {path}: {error}; choose another folder with --data")
        return cls(connection)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything in the block is on disk when it ends, or nothing if it raises."""
        self._connection.execute("begin immediate")
        try:
            yield
            self._connection.execute("commit")
        except BaseException:
            # A failed commit (disk full) may have rolled back by itself.
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            raise

    def write(self, sql: str, **values: object) -> int:
        """Run one statement; the row number it inserted last."""
        return self._connection.execute(sql, values).lastrowid or 0

    def all(self, sql: str, **values: object) -> list[sqlite3.Row]:
        """Every row of the query."""
        return self._connection.execute(sql, values).fetchall()

    def first(self, sql: str, **values: object) -> sqlite3.Row | None:
        """The first row of the query, or None."""
        row: sqlite3.Row | None = self._connection.execute(sql, values).fetchone()
        return row

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._connection.close()
