"""One SQLite file that several processes write: under the embedded broker and the SQLite store.

It promises: a write that returned is on the disk (WAL, ``synchronous=FULL``); writers queue fairly
(before ``BEGIN IMMEDIATE`` they take an advisory lock, which the kernel drops when its process
dies); all writes that wait while one transaction is flushed go into the next one together (group
commit); a write that fails is undone alone; whoever watches the file in another process is woken by
a datagram. SQLite's own calls never run on the event loop, unless ``inline`` asks for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import apsw

from oyez.doorbell import Doorbell
from oyez.errors import (
    ConstraintViolated,
    OyezError,
    StoreCorrupt,
    StoreRefused,
    StoreUnavailable,
    TransactionExpired,
)
from oyez.ports import Answer, Finding

T = TypeVar("T")
Job = Callable[[apsw.Connection], T]

GROUP = 512
"""Writes that share one commit, at most."""
HOLD = 30.0
"""A turn (an interactive transaction) that lasts longer than this many seconds is rolled back."""
QUICK_CHECK = 64 * 1024 * 1024
"""Files up to this many bytes are checked for damage when they are opened."""
OLDEST_SQLITE = 3_051_003
"""Earlier versions can corrupt a WAL database when several connections write and checkpoint."""

_FORGIVEN = (ConstraintViolated, StoreRefused)
"""A statement's own faults, which a savepoint undoes."""
_NETWORK = frozenset(
    (
        "nfs nfs4 cifs smb smb2 smb3 smbfs 9p afs ceph glusterfs lustre gpfs ncpfs ocfs2 gfs2 "
        "fuse.sshfs fuse.s3fs fuse.glusterfs fuse.cephfs fuse.gcsfuse fuse.rclone vboxsf drvfs"
    ).split()
)


class SqliteFile:
    """The file, its one writing and its one reading connection, and its doorbell."""

    def __init__(
        self, path: Path, *, steps: Sequence[str], inline: bool = False, durable: bool = True
    ) -> None:
        """Nothing is opened yet.

        ``steps`` are the scripts that made the schema what it is, the first one for a new file.
        How many of them a file has seen is its version (``user_version``).
        ``inline`` runs every statement on the event loop itself, in a fixed order, for
        deterministic tests. ``durable=False`` trades power-loss safety for speed, also for tests.
        """
        self.path = path
        self._steps = steps
        self._inline = inline
        self._durable = durable
        self._queue: deque[_Write[Any] | Turn] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._group = _Group()
        self._writer: _Worker | None = None
        self._reader: _Worker | None = None
        self._write_connection: apsw.Connection | None = None
        self._read_connection: apsw.Connection | None = None
        self._lock: int | None = None
        self._bell: Doorbell | None = None
        self._listeners: list[Callable[[], None]] = []
        self._repeated: list[_Repeated] = []
        self._broken: OyezError | None = None

    async def open(self, *, upgrade: bool = True) -> None:
        """Open or create the file, and run the steps that it has not seen, under its lock.

        Without ``upgrade`` an older file is refused. Raises StoreRefused (network file system,
        newer schema, old SQLite), StoreUnavailable (no permission, disk full), StoreCorrupt.
        """
        if self._writer is not None:
            return
        if apsw.SQLITE_VERSION_NUMBER < OLDEST_SQLITE:
            raise StoreRefused(
                f"SQLite {apsw.sqlite_lib_version()} can corrupt a database that several processes "
                "write; install a newer apsw"
            )
        kind: type[_Inline | _Thread] = _Inline if self._inline else _Thread
        writer = kind(f"oyez-write {self.path.name}")
        self._reader = kind(f"oyez-read {self.path.name}")
        self._writer = writer
        try:
            await writer.run(partial(self._connect, upgrade))
            if not self._inline:
                self._bell = Doorbell(self.path)
                self._bell.listen(self._heard)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Finish what was asked for, then let go. Safe when never opened and when called twice."""
        if self._pump is not None:
            await asyncio.wait([self._pump])
        if self._bell is not None:
            self._bell.close()
            self._bell = None
        for worker, release in ((self._writer, self._release), (self._reader, self._release_read)):
            if worker is not None:
                await worker.run(release)
                worker.stop()
        self._writer = self._reader = None

    async def write(self, job: Job[T], *, ring: bool = False) -> T:
        """Run the job in a write transaction and return its result once that is durable.

        The job must not begin or end transactions. When it raises, only its own statements are
        undone. ``ring`` wakes everyone who watches the file. Errors of SQLite become StoreErrors.
        """
        entry: _Write[T] = _Write(job, asyncio.get_running_loop().create_future(), ring)
        self._enqueue(entry)
        return await entry.future

    async def read(self, job: Job[T]) -> T:
        """Run the job on the reading connection, on one snapshot of what is committed."""
        return await _need(self._reader).run(partial(self._read_now, job))

    async def inspect(self) -> list[Finding]:
        """Read the whole file and tell what is damaged."""
        verdict = await self.read(lambda c: c.execute("pragma quick_check(1)").get)
        if verdict == "ok":
            return []
        return [
            Finding(
                grave=True,
                what=f"{self.path}: {verdict}",
                remedy="stop the system, copy the file and its -wal aside, and restore a backup",
            )
        ]

    def turn(self) -> Turn:
        """An interactive write transaction; see `Turn`."""
        return Turn(self)

    def on_ring(self, callback: Callable[[], None]) -> None:
        """Call back, on the event loop, after a write with ``ring`` here or in another process."""
        self._listeners.append(callback)

    def every(self, seconds: float, job: Job[object]) -> Callable[[], None]:
        """Run the job in a write transaction again and again, whether the loop is blocked or not.

        When another process has held the file for longer than that, the job goes into the first
        transaction that gets it. Returns what stops it. An inline file, which has no thread, never
        runs it.
        """
        repeated = _Repeated(seconds, job)
        self._repeated.append(repeated)
        stop = _need(self._writer).every(seconds, partial(self._alone, repeated))

        def end() -> None:
            self._repeated.remove(repeated)
            stop()

        return end

    # -- the queue of writes and turns, on the event loop -----------------------------------------

    def _enqueue(self, entry: _Write[Any] | Turn) -> None:
        if self._writer is None:
            raise StoreUnavailable(f"{self.path} is closed")
        self._queue.append(entry)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        writer = _need(self._writer)
        while self._queue:
            if isinstance(self._queue[0], Turn):
                turn = self._queue.popleft()
                assert isinstance(turn, Turn)
                await self._serve(turn)
                continue
            writes: list[_Write[Any]] = []
            while self._queue and isinstance(self._queue[0], _Write) and len(writes) < GROUP:
                entry = self._queue.popleft()
                assert isinstance(entry, _Write)
                if not entry.future.done():  # else its task was cancelled while it waited
                    writes.append(entry)
            await writer.run(partial(self._run, writes, commit=not self._next_is_turn()))
            self._deliver()

    def _next_is_turn(self) -> bool:
        return bool(self._queue) and isinstance(self._queue[0], Turn) and len(self._group) < GROUP

    async def _serve(self, turn: Turn) -> None:
        if turn.granted.done():  # its task was cancelled while it waited
            if not self._queue:
                await self._flush()
            return
        turn.granted.set_result(None)
        try:
            async with asyncio.timeout(None if self._inline else HOLD):
                await turn.ended
        except TimeoutError:
            turn.expired = True
            await _need(self._writer).run(turn._undo)
        if not self._queue or len(self._group) >= GROUP:
            await self._flush()
        self._deliver()

    async def _flush(self) -> None:
        await _need(self._writer).run(partial(self._run, [], commit=True))
        self._deliver()

    def _deliver(self) -> None:
        done, self._group.done = self._group.done, []
        ring = False
        for entry, result, error in done:
            ring = ring or (entry.ring and error is None)
            if entry.future.done():
                continue
            if error is None:
                entry.future.set_result(result)
            else:
                entry.future.set_exception(error)
        if ring:
            self._heard()

    def _heard(self) -> None:
        for callback in self._listeners:
            callback()

    # -- what runs on the writing thread ----------------------------------------------------------

    def _run(self, writes: list[_Write[Any]], *, commit: bool) -> None:
        group = self._group
        for entry in writes:
            try:
                self._begin()
                group.pending.append((entry, self._isolated(entry.job)))
            except BaseException as error:  # noqa: BLE001 - each job's error is its caller's
                group.done.append((entry, None, self._explain(error)))
                self._fail_if_aborted(error)
        if commit:
            self._commit()

    def _isolated(self, job: Job[T]) -> T:
        connection = _need(self._write_connection)
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

    def _begin(self) -> None:
        connection = _need(self._write_connection)
        if self._broken is not None:
            raise self._broken
        if connection.in_transaction:
            return
        fcntl.flock(_need(self._lock), fcntl.LOCK_EX)
        try:
            connection.execute("begin immediate")
        except BaseException:
            fcntl.flock(_need(self._lock), fcntl.LOCK_UN)
            raise
        for repeated in tuple(self._repeated):
            if repeated.due <= time.monotonic():
                try:
                    self._isolated(repeated.run)
                except (apsw.Error, OyezError):
                    if not connection.in_transaction:
                        fcntl.flock(_need(self._lock), fcntl.LOCK_UN)
                        raise  # else it is tried again, and no concern of whoever begins

    def _commit(self) -> None:
        connection = _need(self._write_connection)
        if connection.in_transaction:
            try:
                connection.execute("commit")
            except BaseException as error:  # noqa: BLE001 - reported to everyone in the group
                if connection.in_transaction:
                    connection.execute("rollback")
                self._fail_if_aborted(error)
            finally:
                fcntl.flock(_need(self._lock), fcntl.LOCK_UN)
        group = self._group
        pending, group.pending = group.pending, []
        group.done.extend((entry, result, None) for entry, result in pending)
        if self._bell is not None and any(entry.ring for entry, _ in pending):
            self._bell.ring()

    def _fail_if_aborted(self, error: BaseException) -> None:
        # SQLite gives up the whole transaction on a full disk or an I/O error: then what the
        # others in the group wrote is gone too, and they must hear so.
        if _need(self._write_connection).in_transaction:
            return
        fcntl.flock(_need(self._lock), fcntl.LOCK_UN)
        explained = self._explain(error)
        self._group.done.extend((entry, None, explained) for entry, _ in self._group.pending)
        self._group.pending = []

    def _alone(self, repeated: _Repeated) -> None:
        connection = _need(self._write_connection)
        if connection.in_transaction:
            # A turn is open: join it, under a savepoint of its own.
            try:
                self._isolated(repeated.run)
            except BaseException as error:
                self._fail_if_aborted(error)
                raise
            return
        try:
            self._begin()
            connection.execute("commit")
        finally:
            if connection.in_transaction:
                connection.execute("rollback")
            fcntl.flock(_need(self._lock), fcntl.LOCK_UN)

    def _read_now(self, job: Job[T]) -> T:
        try:
            if self._read_connection is None:
                self._read_connection = self._connection()
                self._read_connection.execute("pragma query_only=on")
            connection = self._read_connection
            connection.execute("begin")
            try:
                return job(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("rollback")
        except apsw.Error as error:
            explained = self._explain(error)
            raise explained from explained.__cause__

    def _connect(self, upgrade: bool) -> None:
        path = self.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            refuse_network_file_system(path.parent)
            self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                self._prepare(upgrade)
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        except OSError as error:
            raise StoreUnavailable(
                f"{error.filename or path}: {error.strerror}: the folder must be writable by "
                f"user {os.getuid()}"
            ) from error
        except apsw.Error as error:
            explained = self._explain(error)
            raise explained from explained.__cause__

    def _prepare(self, upgrade: bool) -> None:
        path = self.path
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied", str(path))
        size = path.stat().st_size if path.exists() else 0
        self._broken = None
        if size == 0 and path.exists() and os.fstat(_need(self._lock)).st_size:
            # The lock file says that there was a schema: this is no new file, it was emptied.
            raise apsw.CorruptError("it is empty")
        connection = self._write_connection = self._connection()
        if size == 0:  # only a file without any page takes this on; the next line writes the first
            connection.execute("pragma auto_vacuum=incremental")
        connection.execute("pragma journal_mode=wal")
        if 0 < size <= QUICK_CHECK:
            (verdict,) = next(connection.execute("pragma quick_check(1)"))
            if verdict != "ok":
                raise apsw.CorruptError(verdict)
        (version,) = next(connection.execute("pragma user_version"))
        newest = len(self._steps)
        if version > newest:
            raise StoreRefused(
                f"{path} was written by a newer Oyez (schema {version}, this one knows "
                f"{newest}): upgrade Oyez"
            )
        if 0 < version < newest and not upgrade:
            raise StoreRefused(
                f"{path} was written by an older Oyez (schema {version}, this one has {newest}): "
                "start its service with this version, which upgrades it"
            )
        if version < newest:
            with connection:  # all steps or none
                for step in self._steps[version:]:
                    connection.execute(step)
                connection.execute(f"pragma user_version={newest}")
        if not os.fstat(_need(self._lock)).st_size:
            os.write(_need(self._lock), b"in use\n")

    def _connection(self) -> apsw.Connection:
        connection = apsw.Connection(str(self.path), statementcachesize=256)
        connection.set_busy_timeout(5_000)
        connection.execute(f"pragma synchronous={'full' if self._durable else 'off'}")
        connection.execute("pragma mmap_size=0")
        connection.execute("pragma foreign_keys=on")
        return connection

    def _release(self) -> None:
        if self._write_connection is not None:
            self._write_connection.close()
            self._write_connection = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _release_read(self) -> None:
        if self._read_connection is not None:
            self._read_connection.close()
            self._read_connection = None

    def _explain(self, error: BaseException) -> BaseException:
        if isinstance(error, apsw.ConstraintError):
            explained: OyezError = ConstraintViolated(str(error))
        elif isinstance(error, apsw.CorruptError | apsw.NotADBError):
            what = " ".join(str(error).split())
            explained = StoreCorrupt(
                f"{self.path} is damaged ({what}): stop the service, copy the file and its -wal "
                "aside, and restore a backup or recover it with `sqlite3 FILE .recover`"
            )
            self._broken = explained
        elif isinstance(error, apsw.FullError | apsw.IOError | apsw.CantOpenError):
            explained = StoreUnavailable(f"{self.path}: {error}: is the disk full?")
        elif isinstance(error, apsw.ReadOnlyError | apsw.PermissionsError | apsw.AuthError):
            explained = StoreUnavailable(f"{self.path}: {error}: it must be writable")
        elif isinstance(error, apsw.BusyError | apsw.LockedError | apsw.ProtocolError):
            explained = StoreUnavailable(f"{self.path}: {error}: another program holds it")
        elif isinstance(error, apsw.SQLError):
            explained = StoreRefused(str(error))
        else:
            return error
        explained.__cause__ = error
        return explained


class Turn:
    """Exclusive use of the writer for several jobs with other work between them.

    The first `run` waits for its turn; `finish` makes all of it durable, together with the turns
    before and after it that share the commit; `cancel` undoes it. Nothing else writes to the file
    meanwhile, so keep it short: after ``HOLD`` seconds it is rolled back.
    """

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._started = False
        self._opened = False
        self._failure: BaseException | None = None
        self.expired = False
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, job: Job[T]) -> T:
        """Run the job inside the turn. Raises TransactionExpired when the turn has expired.

        After a job that raised, the turn can only be cancelled: to go on without what that job
        would have written is never what its caller meant.
        """
        writer = _need(self._file._writer)
        if not self._started:
            self._started = True
            self._file._enqueue(self)
            try:
                await self.granted
            except asyncio.CancelledError:
                self.granted.cancel()
                self._end()
                raise
            await writer.run(self._open)
        self._check()
        return await writer.run(partial(self._step, job))

    async def rollback_to(self, savepoint: str) -> None:
        """Undo what came after a savepoint that a job made, also that a job raised.

        Raises the error of a job that the file itself was the cause of.
        """
        failure = self._failure
        if not isinstance(failure, OyezError) or isinstance(failure, _FORGIVEN):
            self._failure = None
        await self.run(lambda connection: connection.execute(f"rollback to {savepoint}"))

    async def finish(self, job: Job[T], *, ring: bool = False) -> T:
        """Run the last job and return its result once the whole turn is durable."""
        if not self._started:
            return await self._file.write(job, ring=ring)
        self._check()
        loop = asyncio.get_running_loop()
        entry: _Write[T] = _Write(job, loop.create_future(), ring)
        try:
            await _need(self._file._writer).run(partial(self._last, entry))
        finally:
            self._end()
        return await entry.future

    async def cancel(self) -> None:
        """Undo the turn. Safe when it never started and when it has ended."""
        if not self._started or self.ended.done():
            return
        try:
            if self.granted.done() and not self.granted.cancelled() and not self.expired:
                await _need(self._file._writer).run(self._undo)
            else:
                self.granted.cancel()
        finally:
            self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _check(self) -> None:
        if self.expired:
            raise TransactionExpired(
                f"{self._file.path}: the transaction was open for more than {HOLD:.0f} s and was "
                "rolled back: do slow work outside of it"
            )
        if self.ended.done():
            raise StoreUnavailable(f"{self._file.path}: the transaction has ended")
        if self._failure is not None:
            raise self._failure

    # -- what runs on the writing thread ----------------------------------------------------------

    def _open(self) -> None:
        self._step(self._savepoint)

    def _savepoint(self, connection: apsw.Connection) -> None:
        self._file._begin()
        connection.execute("savepoint oyez_turn")
        self._opened = True

    def _step(self, job: Job[T]) -> T:
        try:
            return job(self._connection())
        except BaseException as error:  # noqa: BLE001 - as _explain puts it, it is raised again
            self._failure = self._file._explain(error)
            self._fail_if_aborted(error)
            raise self._failure from self._failure.__cause__

    def _last(self, entry: _Write[Any]) -> None:
        file = self._file
        try:
            connection = self._connection()
            result = file._isolated(entry.job)
            connection.execute("release oyez_turn")
        except BaseException as error:  # noqa: BLE001 - the caller of finish() hears it
            self._undo()
            file._group.done.append((entry, None, file._explain(error)))
            self._fail_if_aborted(error)
            return
        self._opened = False
        file._group.pending.append((entry, result))
        if not file._queue:
            file._commit()

    def _connection(self) -> apsw.Connection:
        connection = _need(self._file._write_connection)
        if self._opened and not connection.in_transaction:
            raise StoreUnavailable(f"{self._file.path}: the transaction was given up: disk full?")
        return connection

    def _undo(self) -> None:
        connection = _need(self._file._write_connection)
        if self._opened and connection.in_transaction:
            connection.execute("rollback to oyez_turn")
            connection.execute("release oyez_turn")
        self._opened = False

    def _fail_if_aborted(self, error: BaseException) -> None:
        self._file._fail_if_aborted(error)
        self._opened = self._opened and _need(self._file._write_connection).in_transaction


def refuse_network_file_system(folder: Path, mounts: str = "/proc/self/mountinfo") -> None:
    """Raise StoreRefused when the folder lies on a file system whose locks can't be trusted."""
    try:
        lines = os.fsdecode(Path(mounts).read_bytes()).splitlines()
    except OSError:
        return
    target = folder.resolve()
    best, kind = Path("/"), ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        escaped = os.fsencode(fields.split(" ")[4])
        point = Path(os.fsdecode(escaped.decode("unicode_escape").encode("latin-1")))
        if (target == point or point in target.parents) and len(point.parts) >= len(best.parts):
            best, kind = point, rest.split(" ")[0]
    if kind in _NETWORK:
        raise StoreRefused(
            f"{folder} is on a network file system ({kind}), where SQLite's locks can't be "
            "trusted: use a local folder, or PostgreSQL"
        )


def bind(
    connection: apsw.Connection, sql: str, parameters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Run one statement and return its rows by column name."""
    cursor = connection.execute(sql, parameters)
    try:
        names = [column[0] for column in cursor.get_description()]
    except apsw.ExecutionCompleteError:
        return []
    return [dict(zip(names, row, strict=True)) for row in cursor]


def answer(connection: apsw.Connection, sql: str, sets: Sequence[Sequence[Any]]) -> Answer:
    """Run one statement with ``?`` for each set of parameters; see `oyez.ports.Answer`."""
    cursor = connection.cursor()
    columns: Sequence[tuple[str, Any]] = ()
    changes = False

    def look(cursor: apsw.Cursor, statement: str, bindings: object) -> bool:
        # Once it has run to its end, apsw does not tell the columns of a statement any more.
        nonlocal columns, changes
        columns, changes = cursor.get_description(), not cursor.is_readonly
        return True

    cursor.exec_trace = look
    if len(sets) == 1:
        rows = list(cursor.execute(sql, sets[0]))
        return Answer(columns=columns, rows=rows, changed=connection.changes() if changes else -1)
    changed = 0
    for parameters in sets:
        for _ in cursor.execute(sql, parameters):
            pass
        changed += connection.changes()
    return Answer(columns=(), rows=[], changed=changed if changes else -1)


class _Worker(Protocol):
    """Runs jobs one after the other, in the order in which they were given."""

    def run(self, job: Callable[[], T]) -> asyncio.Future[T]: ...

    def every(self, seconds: float, job: Callable[[], object]) -> Callable[[], None]: ...

    def stop(self) -> None: ...


class _Write(Generic[T]):
    __slots__ = ("future", "job", "ring")

    def __init__(self, job: Job[T], future: asyncio.Future[T], ring: bool) -> None:
        self.job = job
        self.future = future
        self.ring = ring


class _Group:
    """Writes of the open transaction (``pending``), and those whose outcome is known (``done``)."""

    def __init__(self) -> None:
        self.pending: list[tuple[_Write[Any], Any]] = []
        self.done: list[tuple[_Write[Any], Any, BaseException | None]] = []

    def __len__(self) -> int:
        return len(self.pending)


class _Thread:
    """Runs jobs one after the other on a thread of its own, and repeated ones in between."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._timers: list[_Timer] = []
        threading.Thread(target=self._main, name=name, daemon=True).start()

    def run(self, job: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 - belongs to whoever awaits
                _call(loop, _reject, future, error)
            else:
                _call(loop, _resolve, future, result)

        self._jobs.put(work)
        return future

    def every(self, seconds: float, job: Callable[[], object]) -> Callable[[], None]:
        timer = _Timer(seconds, job)
        self._timers.append(timer)
        self._jobs.put(lambda: None)  # so that the thread sees the new timer
        return partial(self._timers.remove, timer)

    def stop(self) -> None:
        self._timers.clear()
        self._jobs.put(None)

    def _main(self) -> None:
        while True:
            wait = min((timer.due - time.monotonic() for timer in self._timers), default=None)
            try:
                job = self._jobs.get(timeout=None if wait is None else max(wait, 0.0))
            except Empty:
                job = _nothing
            if job is None:
                return
            job()
            for timer in tuple(self._timers):
                if timer.due <= time.monotonic():
                    timer.run()


class _Repeated:
    """A job that is due again so many seconds after it last ran."""

    def __init__(self, seconds: float, job: Job[object]) -> None:
        self._seconds = seconds
        self._job = job
        self.due = 0.0

    def run(self, connection: apsw.Connection) -> None:
        self._job(connection)
        self.due = time.monotonic() + self._seconds * 0.9


class _Timer:
    def __init__(self, seconds: float, job: Callable[[], object]) -> None:
        self._seconds = seconds
        self._job = job
        self.due = time.monotonic() + seconds

    def run(self) -> None:
        # A tick that fails (disk full, say) is tried again at the next one; whoever depends on it
        # notices by its effect, as with a lease that was not renewed.
        with contextlib.suppress(apsw.Error, OyezError):
            self._job()
        self.due = time.monotonic() + self._seconds


class _Inline:
    """The same face on the event loop itself: every job is done when `run` returns."""

    def __init__(self, name: str) -> None:
        pass

    def run(self, job: Callable[[], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(job())
        except BaseException as error:  # noqa: BLE001 - belongs to whoever awaits
            future.set_exception(error)
        return future

    def every(self, seconds: float, job: Callable[[], object]) -> Callable[[], None]:
        # Under a virtual clock nobody dies unseen, so nothing needs repeating.
        return _nothing

    def stop(self) -> None:
        """Nothing runs between calls."""


def _nothing() -> None:
    return None


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
        loop.call_soon_threadsafe(function, *args)


def _resolve(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _reject(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


N = TypeVar("N")


def _need(value: N | None) -> N:
    if value is None:
        raise StoreUnavailable("the file is not open")
    return value
