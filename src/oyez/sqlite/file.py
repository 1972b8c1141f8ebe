"""The file as a broker and a store use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import apsw

from oyez.doorbell import Doorbell
from oyez.errors import StoreRefused, StoreUnavailable
from oyez.ports import Finding
from oyez.sqlite.connection import OLDEST_SQLITE, Job, Reader, Step
from oyez.sqlite.turns import Queue, Turn
from oyez.sqlite.worker import Inline, Thread, Worker
from oyez.sqlite.writer import Repeated, Writer

T = TypeVar("T")


class SqliteFile:
    """The file, its one writing and its one reading connection, and its doorbell."""

    def __init__(
        self, path: Path, *, steps: Sequence[Step], inline: bool = False, durable: bool = True
    ) -> None:
        """Nothing is opened yet.

        ``steps`` made the schema what it is, the first one for a new file.
        How many of them a file has seen is its version (``user_version``).
        ``inline`` runs every statement on the event loop itself, in a fixed order, for
        deterministic tests. ``durable=False`` trades power-loss safety for speed, also for tests.
        """
        self.path = path
        self._inline = inline
        self._writer = Writer(path, steps, durable=durable, ring=self._ring)
        self._queue = Queue(self._writer, hold=not inline, rang=self._wrote)
        self._reader = Reader(self._writer.connect, self._writer.explain)
        self._writing: Worker | None = None
        self._reading: Worker | None = None
        self._bell: Doorbell | None = None
        self._listeners: list[Callable[[], None]] = []
        self._others: list[Callable[[], None]] = []

    async def open(self, *, upgrade: bool = True) -> None:
        """Open or create the file, and run the steps that it has not seen, under its lock.

        Raises StoreRefused (network file system, newer schema, old SQLite), StoreUnavailable (no
        permission, disk full), StoreCorrupt; without ``upgrade`` also StoreMissing, StoreOutdated.
        """
        if self._writing is not None:
            return
        if apsw.SQLITE_VERSION_NUMBER < OLDEST_SQLITE:
            raise StoreRefused(
                f"SQLite {apsw.sqlite_lib_version()} can corrupt a database that several processes "
                "write; install a newer apsw"
            )
        kind: type[Inline | Thread] = Inline if self._inline else Thread
        self._writing = kind(f"oyez-write {self.path.name}")
        self._reading = kind(f"oyez-read {self.path.name}")
        self._queue.open(self._writing)
        try:
            await self._writing.run(partial(self._writer.open, upgrade))
            if not self._inline:
                self._bell = Doorbell(self.path)
                self._bell.listen(self._heard)
        except asyncio.CancelledError:
            self._abandon()
            raise
        except BaseException:
            await self.close()
            raise

    def _abandon(self) -> None:
        """Let go without waiting: the thread may wait for the lock as long as its holder likes."""
        for worker, release in (
            (self._writing, self._writer.close),
            (self._reading, self._reader.close),
        ):
            if worker is not None:
                worker.run(release)
                worker.stop()
        self._queue.close()
        self._writing = self._reading = None

    async def close(self) -> None:
        """Finish what was asked for, then let go. Safe when never opened and when called twice."""
        await self._queue.drain()
        if self._bell is not None:
            self._bell.close()
            self._bell = None
        work = ((self._writing, self._writer.close), (self._reading, self._reader.close))
        for worker, release in work:
            if worker is not None:
                await worker.run(release)
                worker.stop()
        self._queue.close()
        self._writing = self._reading = None

    async def write(self, job: Job[T], *, ring: bool = False, quiet: bool = False) -> T:
        """Run the job in a write transaction and return its result once that is durable.

        The job must not begin or end transactions. When it raises, only its own statements are
        undone. ``ring`` wakes everyone who watches the file, if ``quiet`` only those in other
        processes. Errors of SQLite become StoreErrors.
        """
        return await self._queue.write(job, ring=ring, quiet=quiet)

    async def read(self, job: Job[T]) -> T:
        """Run the job on the reading connection, on one snapshot of what is committed."""
        if self._reading is None:
            raise StoreUnavailable("the file is not open")
        return await self._reading.run(partial(self._reader.run, job))

    async def inspect(self) -> list[Finding]:
        """Read the whole file and return what is damaged."""
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
        """Return an interactive write transaction; see `Turn`."""
        return Turn(self._queue)

    def on_ring(self, callback: Callable[[], None], *, own: bool = True) -> None:
        """Call back, on the event loop, after a write with ``ring`` here or in another process.

        Without ``own`` it is not called after writes by this object.
        """
        (self._listeners if own else self._others).append(callback)

    def every(self, seconds: float, job: Job[object]) -> Callable[[], None]:
        """Run the job in a write transaction again and again, whether the loop is blocked or not.

        When another process has held the file for longer than that, the job goes into the first
        transaction that gets it. Returns what stops it. An inline file, which has no thread, never
        runs it.
        """
        repeated = Repeated(seconds, job)
        self._writer.repeated.append(repeated)
        stop = self._queue.worker.every(seconds, partial(self._writer.run_alone, repeated))

        def end() -> None:
            self._writer.repeated.remove(repeated)
            stop()

        return end

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.ring()

    def _wrote(self) -> None:
        for callback in self._listeners:
            callback()

    def _heard(self) -> None:
        for callback in (*self._listeners, *self._others):
            callback()
