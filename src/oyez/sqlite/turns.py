"""Who writes next: the queue of writes and turns, on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import apsw

from oyez.errors import (
    ConstraintViolated,
    OyezError,
    StoreRefused,
    StoreUnavailable,
    TransactionExpired,
)
from oyez.sqlite.connection import Job
from oyez.sqlite.worker import Worker
from oyez.sqlite.writer import Write, Writer

T = TypeVar("T")

GROUP = 512
"""Writes that share one commit, at most."""
HOLD = 30.0
"""A turn (an interactive transaction) that lasts longer than this many seconds is rolled back."""

_FORGIVEN = (ConstraintViolated, StoreRefused)
"""A statement's own faults, which a savepoint undoes."""


class Queue:
    """Writes and turns in the order in which they came, and the task that works them off."""

    def __init__(self, writer: Writer, *, hold: bool, rang: Callable[[], None]) -> None:
        """Nothing runs before `open`.

        Without ``hold`` turns last as long as they like, and share no commit: on one thread another
        file object would wait for the lock for ever. ``rang`` is called on the event loop
        after a write that rings and is not quiet.
        """
        self.writer = writer
        self._hold = hold
        self._rang = rang
        self._entries: deque[Write[Any] | Turn] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        """The worker of the writer's jobs. Raises StoreUnavailable when the file is not open."""
        if self._worker is None:
            raise StoreUnavailable("the file is not open")
        return self._worker

    @property
    def shares(self) -> bool:
        """Whether an entry waits that may share the commit of the one before it."""
        return self._hold and bool(self._entries)

    def open(self, worker: Worker) -> None:
        """Accept entries; the writer's jobs run on the worker."""
        self._worker = worker

    async def drain(self) -> None:
        """Wait until all that was asked for is done."""
        if self._pump is not None:
            await asyncio.wait([self._pump])

    def close(self) -> None:
        """Accept nothing more."""
        self._worker = None

    async def write(self, job: Job[T], *, ring: bool, quiet: bool = False) -> T:
        """Run the job in a group and return its result once that is durable."""
        entry: Write[T] = Write(job, asyncio.get_running_loop().create_future(), ring, quiet)
        self.add(entry)
        return await entry.future

    def add(self, entry: Write[Any] | Turn) -> None:
        """Append an entry. Raises StoreUnavailable when the file is not open."""
        if self._worker is None:
            raise StoreUnavailable(f"{self.writer.path} is closed")
        self._entries.append(entry)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        worker, entries = self.worker, self._entries
        while entries:
            if isinstance(entries[0], Turn):
                turn = entries.popleft()
                assert isinstance(turn, Turn)
                await self._serve(turn)
                continue
            writes: list[Write[Any]] = []
            while entries and isinstance(entries[0], Write) and len(writes) < GROUP:
                entry = entries.popleft()
                assert isinstance(entry, Write)
                if not entry.future.done():  # else its task was cancelled while it waited
                    writes.append(entry)
            commit = not self._next_is_turn()
            await worker.run(partial(self.writer.run, writes, commit=commit))
            self._deliver()

    def _next_is_turn(self) -> bool:
        entries = self._entries
        return self.shares and isinstance(entries[0], Turn) and len(self.writer.group) < GROUP

    async def _serve(self, turn: Turn) -> None:
        if turn.granted.done():  # its task was cancelled while it waited
            if not self._entries:
                await self._flush()
            return
        turn.granted.set_result(None)
        try:
            async with asyncio.timeout(HOLD if self._hold else None):
                await turn.ended
        except TimeoutError:
            await turn.expire()
        if not self.shares or len(self.writer.group) >= GROUP:
            await self._flush()
        self._deliver()

    async def _flush(self) -> None:
        await self.worker.run(partial(self.writer.run, [], commit=True))
        self._deliver()

    def _deliver(self) -> None:
        group = self.writer.group
        done, group.done = group.done, []
        ring = False
        for entry, result, error in done:
            ring = ring or (entry.ring and not entry.quiet and error is None)
            if entry.future.done():
                continue
            if error is None:
                entry.future.set_result(result)
            else:
                entry.future.set_exception(error)
        if ring:
            self._rang()


class Turn:
    """Exclusive use of the writer for several jobs with other work between them.

    The first `run` waits for its turn; `finish` makes all of it durable, together with the turns
    before and after it that share the commit; `cancel` undoes it. Nothing else writes to the file
    meanwhile, so keep it short: after ``HOLD`` seconds it is rolled back.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._writer = queue.writer
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
        worker = self._queue.worker
        if not self._started:
            self._started = True
            self._queue.add(self)
            try:
                await self.granted
            except asyncio.CancelledError:
                self.granted.cancel()
                self._end()
                raise
            await worker.run(self._open)
        self._check()
        return await worker.run(partial(self._step, job))

    async def rollback_to(self, savepoint: str) -> None:
        """Undo what came after a savepoint that a job made, also that a job raised.

        Raises the error of a job that the file itself was the cause of.
        """
        failure = self._failure
        if not isinstance(failure, OyezError) or isinstance(failure, _FORGIVEN):
            self._failure = None
        await self.run(lambda connection: connection.execute(f"rollback to {savepoint}"))

    async def finish(self, job: Job[T], *, ring: bool = False, quiet: bool = False) -> T:
        """Run the last job and return its result once the whole turn is durable."""
        if not self._started:
            return await self._queue.write(job, ring=ring, quiet=quiet)
        self._check()
        loop = asyncio.get_running_loop()
        entry: Write[T] = Write(job, loop.create_future(), ring, quiet)
        try:
            await self._queue.worker.run(partial(self._last, entry))
        finally:
            self._end()
        return await entry.future

    @property
    def pending(self) -> bool:
        """Whether it has started and not ended yet."""
        return self._started and not self.ended.done()

    async def cancel(self) -> None:
        """Undo the turn. Safe when it never started and when it has ended."""
        if not self.pending:
            return
        try:
            if self.granted.done() and not self.granted.cancelled() and not self.expired:
                await self._queue.worker.run(self._undo)
            else:
                self.granted.cancel()
        finally:
            self._end()

    async def expire(self) -> None:
        """Undo the turn because it has lasted too long."""
        self.expired = True
        await self._queue.worker.run(self._undo)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _check(self) -> None:
        if self.expired:
            raise TransactionExpired(
                f"{self._writer.path}: the transaction was open for more than {HOLD:.0f} s and was "
                "rolled back: do slow work outside of it"
            )
        if self.ended.done():
            raise StoreUnavailable(f"{self._writer.path}: the transaction has ended")
        if self._failure is not None:
            raise self._failure

    # -- what runs on the writing thread ----------------------------------------------------------

    def _open(self) -> None:
        self._step(self._savepoint)

    def _savepoint(self, connection: apsw.Connection) -> None:
        self._writer.begin()
        connection.execute("savepoint oyez_turn")
        self._opened = True

    def _step(self, job: Job[T]) -> T:
        try:
            return job(self._connection())
        except BaseException as error:  # noqa: BLE001 - as explain() puts it, it is raised again
            self._failure = self._writer.explain(error)
            self._fail_if_aborted(error)
            raise self._failure from self._failure.__cause__

    def _last(self, entry: Write[Any]) -> None:
        writer = self._writer
        try:
            connection = self._connection()
            result = writer.isolated(entry.job)
            connection.execute("release oyez_turn")
        except BaseException as error:  # noqa: BLE001 - the caller of finish() hears it
            self._undo()
            writer.group.done.append((entry, None, writer.explain(error)))
            self._fail_if_aborted(error)
            return
        self._opened = False
        writer.group.pending.append((entry, result))
        if not self._queue.shares:
            writer.commit()

    def _connection(self) -> apsw.Connection:
        connection = self._writer.connection
        if self._opened and not connection.in_transaction:
            raise StoreUnavailable(f"{self._writer.path}: the transaction was given up: disk full?")
        return connection

    def _undo(self) -> None:
        connection = self._writer.connection
        if self._opened and connection.in_transaction:
            connection.execute("rollback to oyez_turn")
            connection.execute("release oyez_turn")
        self._opened = False

    def _fail_if_aborted(self, error: BaseException) -> None:
        self._writer.fail_if_aborted(error)
        self._opened = self._opened and self._writer.connection.in_transaction
