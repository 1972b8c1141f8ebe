"""What runs on the writing thread: one transaction for many writes, each undone alone."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import apsw

from oyez.errors import OyezError, StoreMissing, StoreUnavailable
from oyez.sqlite.connection import Job, Step, connect, explain, migrate, prepare
from oyez.sqlite.lock import Lock
from oyez.sqlite.place import refuse_network_file_system

T = TypeVar("T")


class Write(Generic[T]):
    """A job, and the future of who waits until it is durable."""

    __slots__ = ("future", "job", "quiet", "ring")

    def __init__(
        self, job: Job[T], future: asyncio.Future[T], ring: bool, quiet: bool = False
    ) -> None:
        self.job = job
        self.future = future
        self.ring = ring
        self.quiet = quiet


class Group:
    """Writes of the open transaction (``pending``), and those whose outcome is known (``done``)."""

    def __init__(self) -> None:
        self.pending: list[tuple[Write[Any], Any]] = []
        self.done: list[tuple[Write[Any], Any, BaseException | None]] = []

    def __len__(self) -> int:
        return len(self.pending)


class Repeated:
    """A job that is due again so many seconds after it last ran."""

    def __init__(self, seconds: float, job: Job[object]) -> None:
        self._seconds = seconds
        self._job = job
        self.due = 0.0

    def run(self, connection: apsw.Connection) -> None:
        """Run the job and set when it is due again."""
        self._job(connection)
        self.due = time.monotonic() + self._seconds * 0.9


class Writer:
    """The writing connection and the file's lock. All but ``__init__`` belongs to its thread."""

    def __init__(
        self, path: Path, steps: Sequence[Step], *, durable: bool, ring: Callable[[], None]
    ) -> None:
        """Nothing is opened yet. ``ring`` is called after a commit with a write that rings."""
        self.path = path
        self.group = Group()
        self.repeated: list[Repeated] = []
        self._steps = steps
        self._durable = durable
        self._ring = ring
        self._connection: apsw.Connection | None = None
        self._lock: Lock | None = None
        self._broken: BaseException | None = None

    @property
    def connection(self) -> apsw.Connection:
        """The writing connection. Raises StoreUnavailable when it is not open."""
        if self._connection is None:
            raise StoreUnavailable("the file is not open")
        return self._connection

    @property
    def lock(self) -> Lock:
        """The file's lock. Raises StoreUnavailable when it is not open."""
        if self._lock is None:
            raise StoreUnavailable("the file is not open")
        return self._lock

    def open(self, upgrade: bool) -> None:
        """Create or open the file and bring its schema up to date; see `SqliteFile.open`."""
        path = self.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            refuse_network_file_system(path.parent)
            self._lock = Lock(path)
            self._lock.take()
            try:
                self._prepare(self._lock, upgrade)
            finally:
                self._lock.drop()
        except OSError as error:
            raise StoreUnavailable(
                f"{error.filename or path}: {error.strerror}: the folder must be writable by "
                f"user {os.getuid()}"
            ) from error
        except apsw.Error as error:
            explained = self.explain(error)
            raise explained from explained.__cause__

    def connect(self) -> apsw.Connection:
        """Open a further connection to the file. Raises what the driver does."""
        return connect(self.path, durable=self._durable)

    def close(self) -> None:
        """Close the connection and drop the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def run(self, writes: list[Write[Any]], *, commit: bool) -> None:
        """Run the writes in the open transaction, or a new one, and commit it if asked to."""
        group = self.group
        for entry in writes:
            try:
                self.begin()
                group.pending.append((entry, self.isolated(entry.job)))
            except BaseException as error:  # noqa: BLE001 - each job's error is its caller's
                group.done.append((entry, None, self.explain(error)))
                self.fail_if_aborted(error)
        if commit:
            self.commit()

    def isolated(self, job: Job[T]) -> T:
        """Run the job and return its result; when it raises, undo what it did, no more."""
        connection = self.connection
        connection.execute("savepoint oyez_job")
        try:
            result = job(connection)
        except BaseException:
            if connection.in_transaction:
                connection.execute("rollback to oyez_job")
                connection.execute("release oyez_job")
            raise
        connection.execute("release oyez_job")
        return result

    def begin(self) -> None:
        """Take the lock and begin a transaction, with the repeated jobs that are due.

        Does nothing when one is open. Raises StoreCorrupt for a file that was found damaged.
        """
        connection = self.connection
        if self._broken is not None:
            raise self._broken
        if connection.in_transaction:
            return
        self.lock.take()
        try:
            connection.execute("begin immediate")
        except BaseException:
            self.lock.drop()
            raise
        for repeated in tuple(self.repeated):
            if repeated.due <= time.monotonic():
                try:
                    self.isolated(repeated.run)
                except (apsw.Error, OyezError):
                    if not connection.in_transaction:
                        self.lock.drop()
                        raise  # else it is tried again, and no concern of who begins

    def commit(self) -> None:
        """Commit the open transaction, if there is one, and note the outcome of its writes."""
        connection = self.connection
        if connection.in_transaction:
            try:
                connection.execute("commit")
            except BaseException as error:  # noqa: BLE001 - reported to everyone in the group
                if connection.in_transaction:
                    connection.execute("rollback")
                self.fail_if_aborted(error)
            finally:
                self.lock.drop()
        group = self.group
        pending, group.pending = group.pending, []
        group.done.extend((entry, result, None) for entry, result in pending)
        if any(entry.ring for entry, _ in pending):
            self._ring()

    def fail_if_aborted(self, error: BaseException) -> None:
        """Fail all writes of the group where SQLite has given up the whole transaction.

        It does so on a full disk or an I/O error: then what the others in the group wrote is gone
        too, and they must hear so.
        """
        if self.connection.in_transaction:
            return
        self.lock.drop()
        explained = self.explain(error)
        self.group.done.extend((entry, None, explained) for entry, _ in self.group.pending)
        self.group.pending = []

    def run_alone(self, repeated: Repeated) -> None:
        """Run a repeated job in a transaction of its own, or in the turn that is open."""
        connection = self.connection
        if connection.in_transaction:
            try:
                self.isolated(repeated.run)
            except BaseException as error:
                self.fail_if_aborted(error)
                raise
            return
        try:
            self.begin()
            connection.execute("commit")
        finally:
            if connection.in_transaction:
                connection.execute("rollback")
            self.lock.drop()

    def explain(self, error: BaseException) -> BaseException:
        """Return what an error of SQLite means. After damage, nothing is written any more."""
        explained = explain(self.path, error)
        if isinstance(error, apsw.CorruptError | apsw.NotADBError):
            self._broken = explained
        return explained

    def _prepare(self, lock: Lock, upgrade: bool) -> None:
        path = self.path
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied", str(path))
        size = path.stat().st_size if path.exists() else 0
        self._broken = None
        if size == 0 and path.exists() and lock.marked():
            # There was a schema: this is no new file, it was emptied.
            raise apsw.CorruptError("it is empty")
        if size == 0 and not upgrade:
            raise StoreMissing(f"{path} is empty")
        self._connection = self.connect()
        prepare(self._connection, size=size)
        migrate(self._connection, path, self._steps, upgrade=upgrade)
        lock.mark()
